"""What happens to one simulated worker, as data: it can be drawn, shrunk, written down and read by a person."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HOURS = 36


class Aws(enum.StrEnum):
    """Where the AWS identity comes from."""

    KEYS = "keys of a user"
    ROLE_ON_KEYS = "role, on keys of a user"
    ROLE_ON_ROLE = "role, on a role, on keys of a user"
    ROLE_ON_MACHINE = "role, on the machine's own"
    WEB_IDENTITY = "role, on the GCE machine's identity token"
    BROKER = "broker"
    MACHINE = "the machine's own"


class Google(enum.StrEnum):
    """Where the Google identity comes from."""

    USER = "refresh token of a user"
    KEY = "service account key"
    IMPERSONATION = "impersonation, on a refresh token"
    FEDERATION = "federation, on the AWS machine's own"
    FEDERATION_ACCOUNT = "federation with a service account, on the AWS machine's own"
    MACHINE = "the machine's own"


class Kind(enum.StrEnum):
    """What can go wrong. ``size`` is hours for the clocks, nothing for the rest."""

    DOWN = "does not answer: connections are closed"
    HANG = "hangs"
    ERRORS = "answers 500 and 503"
    THROTTLE = "throttles"
    REFUSE = "refuses (a policy was broken, and is mended)"
    FLAKY = "fails every third call"
    LIE = "answers with a wrong Date"
    STEP = "the wall clock is stepped"
    SUSPEND = "the machine sleeps"
    PAUSE = "the hypervisor stops the machine, then its wall clock is set right"


CLOCKS = frozenset({Kind.STEP, Kind.SUSPEND, Kind.PAUSE, Kind.LIE})
OUTAGES = frozenset({Kind.DOWN, Kind.HANG, Kind.ERRORS, Kind.THROTTLE, Kind.REFUSE})


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        gap_minutes: of quiet after the end of the fault before.
        minutes: how long it lasts.
        size_hours: by how much a clock is wrong.
        who: ``aws``, ``gcp`` or ``both``.
    """

    kind: Kind
    gap_minutes: float
    minutes: float
    size_hours: float = 0.0
    who: str = "both"


@dataclass(frozen=True)
class Plan:
    """A worker's day and a half.

    Attributes:
        lifetime_seconds: of the AWS credential.
        wall_error_hours: by how much the wall clock is ahead when the machine boots, before NTP.
        synchronised: whether the kernel says so whenever its wall clock is right; else it never does.
    """

    seed: int
    aws: Aws = Aws.ROLE_ON_KEYS
    google: Google = Google.USER
    lifetime_seconds: int = 3600
    wall_error_hours: float = 0.0
    synchronised: bool = False
    faults: tuple[Fault, ...] = ()
    hours: float = HOURS

    @property
    def clocks_go_wrong(self) -> bool:
        """Whether the machine, or a server, is ever wrong about the time."""
        return bool(self.wall_error_hours) or any(fault.kind in CLOCKS for fault in self.faults)

    def windows(self) -> list[tuple[float, float, Fault]]:
        """Start and end of each fault, in seconds of true time from the boot.

        Two things nobody could survive are left out. A pause where a server lies about the time: with no clock and no
        server that is right, nobody can know what time it is. And anything in the three minutes after a pause: it must
        be noticed first.
        """
        found: list[tuple[float, float, Fault]] = []
        at = 0.0
        liars = any(fault.kind is Kind.LIE for fault in self.faults)
        for fault in self.faults:
            if liars and fault.kind is Kind.PAUSE:
                continue
            quiet = 3.0 if found and found[-1][2].kind is Kind.PAUSE else 0.0
            start = at + max(fault.gap_minutes, quiet) * 60
            end = start + fault.minutes * 60
            if start >= self.hours * 3600:
                break
            found.append((start, end, fault))
            at = end
        return found

    def timeline(self) -> str:
        """The plan as a person reads it."""
        head = f"seed {self.seed}; aws: {self.aws}, for {self.lifetime_seconds} s; google: {self.google}"
        lines = [f"{head}; wall clock {self.wall_error_hours:+g} h at boot"]
        for start, end, fault in self.windows():
            size = f" by {fault.size_hours:+g} h" if fault.kind in (Kind.LIE, Kind.STEP) else ""
            whose = f"{fault.who}: " if fault.kind not in (Kind.STEP, Kind.SUSPEND, Kind.PAUSE) else ""
            lines.append(f"  {clock(start)} - {clock(end)}  {whose}{fault.kind}{size}")
        return "\n".join(lines)


def clock(seconds: float) -> str:
    """``07:15:30``, from the boot on."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"

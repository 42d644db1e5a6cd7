"""Which rules the configuration wants on this machine: ``redirect plan``, in a child of the process that holds them.

See :mod:`agent.host.planning`.
"""

from __future__ import annotations

import contextlib
import itertools
import pwd
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent import config as configuration
from agent.core.errors import AgentError, HostError
from agent.core.installed import SERVER_USER, SERVICE_USER
from agent.host import lasting, nft, nft_text, planning, ranges, subuid, systemctl
from agent.host.bounds import Bounds

MOST_FAMILIES: Final = 256
"""The most users whose subordinate uids are bounded with them: each costs a chain of rules."""
UNUSED_UID: Final = 60578
"""The first of those that systemd's list of uids (systemd.io/UIDS-GIDS) gives to nobody."""
DOUBTFUL_SECONDS: Final = 10.0
_NUMBER: Final = re.compile(r"[0-9]{1,10}\Z")
#: ``batch@EXAMPLE.ORG``, ``EXAMPLE\\batch``, ``EXAMPLE+batch`` (winbind)
_REALM: Final = re.compile(r"^.*[\\+]|[@/].*$", re.DOTALL)
_BETWEEN: Final = re.compile(r"[\s,;:|=]+")
_PATTERN: Final = re.compile(r"(?=.*[A-Za-z0-9]).*[*?\[]", re.DOTALL)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The rules that follow from the configuration and the machine.

    Attributes:
        scripts: for ``nft``; the first that the kernel takes is in force.
        lacking: what each of them does without.
        section: from what the scripts lead: the section, and the port. With an error: as it was before the mistake, and
            whom that may mean is refused. ``None``: they lead nobody.
        reserve: addresses that the process that holds the rules keeps from everybody but root.
        reserve_is_known: whether ``reserve`` could be told; else those before stay.
        closed: the same workers, refused.
        ipv6: whether the IPv6 alias address is wanted.
        error: why ``scripts`` are closed; ``None``: they lead.
        notes: differences from the configuration that were tolerated.
        pending: users and units that were not there; to be looked up again.
        uids: ranges of users who are workers.
        users: the numbers of those that are named, refused ones included.
        refused: ranges of uids that may be meant as workers by what is not understood: neither led nor let through.
        uid: of a worker, to probe as; ``None``: no uid is a worker.
        groups: control groups that the rules name, with the number that each has now.
    """

    scripts: tuple[str, ...]
    closed: str
    ipv6: bool = True
    error: str | None = None
    notes: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    uids: tuple[tuple[int, int], ...] = ()
    users: dict[str, int] = {}
    refused: tuple[tuple[int, int], ...] = ()
    uid: int | None = None
    groups: dict[str, int] = {}
    lacking: tuple[str, ...] = ()
    reserve: tuple[tuple[str, int], ...] = ()
    reserve_is_known: bool = True
    section: tuple[configuration.Redirect, int] | None = None


def make_plan(path: Path, user: str = SERVICE_USER) -> Plan:
    """Read the section and look everything up. Raises nothing: on an error the plan refuses workers."""
    try:
        return plan_of(configuration.load_redirect(path), user, planning.known_users(), lasting.read)
    except AgentError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return msgspec.structs.replace(_after_mistake(path, user), error=f"{error.message}{hint}")


def _after_mistake(path: Path, user: str) -> Plan:
    """Whoever is named is refused too: a mistake must not make a worker the machine.

    Where the section was understood earlier in this boot, whom it led is led; else nobody is, nor where the system
    refuses to say who was a worker: it may be anybody.
    """
    try:
        known, last = planning.known_users(), planning.last_section()
    except HostError:
        known, last = {}, None
    named = _possible(configuration.named_workers(path), known, _Directory())
    usual = configuration.Redirect()
    try:
        section, port = msgspec.convert(last, tuple[configuration.Redirect, int])
        meant = configuration.Meant(
            # The defaults come first. Once more behind them they were written out, and are meant.
            uids=named.uids[len(usual.uids) :],
            users=named.users,
            units=named.units[len(usual.units) :],
        )
        return plan_of(configuration.RedirectRead(section, port, (), meant), user, known, lasting.read)
    except (msgspec.ValidationError, HostError):
        port = configuration.host_port(configuration.Listen().http[0])[1]
        try:
            before: Sequence[lasting.Range] = lasting.read()
        except HostError:
            before = lasting.UNCLEAR
        named = msgspec.structs.replace(named, uids=(*named.uids, *nft_text.elements(before)))
        closed = plan_of(configuration.RedirectRead(named, port), user, known)
        return msgspec.structs.replace(closed, scripts=(closed.closed,), lacking=(), section=None)


def plan_of(
    read: configuration.RedirectRead,
    user: str,
    known: Mapping[str, int] | None = None,
    before: Callable[[], Sequence[lasting.Range]] = tuple,
) -> Plan:
    """Look everything up that the section names.

    Args:
        read: who is a worker, and who may be meant as one.
        user: the agent's own.
        known: the numbers that names had when they were last found. A directory that does not answer, a name that is
            changed or removed, must not make a worker the machine: its processes still run.
        before: tells the system users who were workers in an earlier boot. While a name is not found they are refused:
            it may be one of theirs.

    Raises:
        HostError: a name or a number cannot be one; or while one is not found, ``before`` cannot tell.
    """
    section, port, notes, _ = read
    directory = _Directory()
    named = _users(section, known or {}, directory)
    meant = named.doubtful | _meant(read.meant, known or {}, directory)
    groups, said = _groups(section.units)
    held_back, later = _groups(
        (*filter(_is_unit, read.meant.units), *_meant_units((*section.units, *read.meant.units)))
    )
    among = (text for name in section.users if directory(name) is None for text in configuration.ranges_in(name))
    numbers = ranges.merge((*((uid, uid) for uid in meant.values()), *_numbers((*read.meant.uids, *among))))
    former = ranges.without(before(), ranges.merge((*named.uids, *numbers))) if named.pending else ()
    uids, refused, families, unread = _become(named.uids, numbers, former, directory)
    if former := ranges.without(former, uids):
        uids_before = ", ".join(nft_text.elements(former))
        said.append(f"redirect.users: workers before are refused until each name is found: uids {uids_before}")
    said += unread
    workers = nft.Workers(
        uids=uids,
        cgroups=tuple(groups),
        bridges=section.bridges,
        exempt_bridges=section.exempt_bridges,
        families=families[:MOST_FAMILIES],
        refused=refused,
        refused_cgroups=tuple(path for path in held_back if path not in groups),
    )
    if len(families) > MOST_FAMILIES:
        told = f"{subuid.FILE}: of {len(families)} users {MOST_FAMILIES} are bounded with their subordinate uids"
        notes = (*notes, told)

    def script(bounds: Bounds = Bounds(), *, closed: bool = False) -> str:  # noqa: B008 - frozen
        return nft.ruleset(
            workers,
            port=port,
            agent_uid=directory(user),
            server_uid=directory(SERVER_USER),
            ipv6=section.ipv6,
            closed=closed,
            bounds=bounds,
        )

    # A kernel may be built without counting connections (nft_connlimit) or without rates (nft_limit).
    connections, per_second = section.max_connections_per_worker, section.new_connections_per_worker
    tried = {Bounds(connections, per_second): ""}
    for bounds, lacking in (
        (Bounds(connections, 0), "redirect.new_connections_per_worker: not in force, this kernel bounds no rate"),
        (Bounds(0, per_second), "redirect.max_connections_per_worker: not in force, this kernel counts none"),
        (Bounds(), "redirect: a worker may take any number of connections, this kernel bounds none"),
    ):
        tried.setdefault(bounds, lacking)
    return Plan(
        scripts=tuple(script(bounds) for bounds in tried),
        lacking=tuple(tried.values()),
        closed=script(closed=True),
        ipv6=section.ipv6,
        notes=(*notes, *_said_of_units(section.units)),
        pending=(*named.pending, *said, *later),
        uids=workers.uids,
        users=meant | named.users,
        refused=refused,
        uid=_asker(workers.uids, families),
        groups=held_back | groups,
        section=(section, port),
    )


class _Directory:
    """The numbers of names. Each is asked for once: a directory (LDAP) may take seconds for each that it does not know.

    Who *may* be meant is asked of it for :data:`DOUBTFUL_SECONDS` in all, then of ``/etc/passwd`` alone: a plan that
    comes too late leads nobody.
    """

    def __init__(self) -> None:
        self._found: dict[str, int | None] = {}
        self._local = subuid.LocalUsers()
        self._left = DOUBTFUL_SECONDS

    def __call__(self, name: str) -> int | None:
        if name not in self._found:
            self._found[name] = uid_of(name)
        return self._found[name]

    def perhaps(self, name: str) -> int | None:
        """The number of a name that may be nobody's."""
        local = self._local(name)
        if local is not None or (self._left <= 0 and name not in self._found):
            return local
        began = time.monotonic()
        uid = self(name)
        self._left -= time.monotonic() - began
        return uid

    def like(self, pattern: str) -> dict[str, int]:
        """The users of ``/etc/passwd``, root apart, whom a shell's pattern matches."""
        return self._local.like(pattern)


class _Named(NamedTuple):
    """Whom the section names.

    Attributes:
        uids: ranges of all.
        users: the numbers of names.
        doubtful: the numbers of those who may be meant by a name that is not found.
        pending: what to say of the latter.
    """

    uids: list[tuple[int, int]]
    users: dict[str, int]
    doubtful: dict[str, int]
    pending: list[str]


def _users(section: configuration.Redirect, known: Mapping[str, int], directory: _Directory) -> _Named:
    named = _Named(list(ranges.parse_uids(section.uids)), {}, {}, [])
    for name in section.users:
        uid = directory(name)
        if uid is None and name in known and not _NUMBER.match(name):  # that may be one who is refused
            uid = known[name]
            said = f"redirect.users: no user {name!r} is found any more: uid {uid}, as it was, stays a worker"
            named.pending.append(said)
        elif uid is None:
            alike = _alike(name, directory)
            named.doubtful.update(alike)
            said = "".join(
                f"; {other!r} (uid {number}) may be meant, and is refused" for other, number in alike.items()
            )
            if among := ", ".join(configuration.ranges_in(name)):
                said += f"; uids {among} may be meant, and are refused"
            named.pending.append(f"redirect.users: no user {name!r} on this machine yet{said}")
        if uid is not None:
            named.users[name] = uid
            named.uids.extend(ranges.parse_uids([str(uid)]))
    return named


_Ranges = tuple[subuid.Range, ...]


def _become(
    uids: Iterable[subuid.Range], doubtful: _Ranges, former: _Ranges, directory: _Directory
) -> tuple[_Ranges, _Ranges, tuple[_Ranges, ...], list[str]]:
    """The workers, and who may be one, each with whom they may become; the families; what could not be read."""
    try:
        workers = subuid.with_subordinates(uids, uid_of=directory.perhaps)
        doubtful = (*doubtful, *former, *subuid.unclear(uid_of=directory.perhaps))
        doubtful = subuid.with_subordinates(doubtful, uid_of=directory.perhaps)
        families, unread = subuid.families(uid_of=directory.perhaps), []
    except HostError as error:
        workers, doubtful, families = ranges.merge(uids), (*doubtful, *former, *lasting.USUAL), ()
        unread = [f"{error}: a worker's subordinate uids are not known, and all that may be are refused"]
    return workers, ranges.without(ranges.merge(doubtful), workers), families, unread


def _alike(name: str, directory: _Directory) -> dict[str, int]:
    """Users who may be meant by a name that nobody has.

    Another spelling, a realm, a number in place of the name, several names in one text, a pattern.
    """
    found = {}
    for word in dict.fromkeys((name, *_BETWEEN.split(name))):
        plain = unicodedata.normalize("NFKC", word).strip(" \t\r\n#%@:'\"~^.!-")
        short = _REALM.sub("", plain)
        for other in dict.fromkeys((plain, plain.casefold(), short, short.casefold())):
            uid = int(other) if _NUMBER.match(other) else directory.perhaps(other)
            if uid is not None and 0 < uid <= ranges.MAX_UID:
                found[other] = uid
        if _PATTERN.match(plain):
            found |= directory.like(plain)
    return found


def _meant(meant: configuration.Meant, known: Mapping[str, int], directory: _Directory) -> dict[str, int]:
    """The users who may be meant by what is not understood. Never root: the machine's own services run as root."""
    found: dict[str, int] = {}
    for name in meant.users:
        uid = directory.perhaps(name)
        uid = known.get(name) if uid is None else uid
        found |= _alike(name, directory) if uid is None else {name: uid}
    return {name: uid for name, uid in found.items() if uid}


def _numbers(texts: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The ranges among what may be meant, without root."""
    for text in texts:
        low, _, high = text.partition("-")
        with contextlib.suppress(HostError):
            yield from ranges.parse_uids([f"{max(int(low), 1)}-{high or low}"])


def _possible(
    section: configuration.Redirect, known: Mapping[str, int], directory: _Directory
) -> configuration.Redirect:
    """What can be in a rule of a section that was read in spite of a mistake, and whoever was a worker before it."""
    users, alike = [], []
    for name in dict.fromkeys((*section.users, *known)):
        uid = directory.perhaps(name)
        if uid is not None or name in known:
            users += [name] if uid != 0 else []
        else:
            alike += [str(other) for other in _alike(name, directory).values()]
    uids = [text for text in section.uids if _can_be(lambda one: ranges.parse_uids([one]), text)]
    return configuration.Redirect(
        uids=(*uids, *alike),
        users=tuple(users),
        units=(*filter(_is_unit, section.units), *_meant_units(section.units)),
    )


def _said_of_units(units: tuple[str, ...]) -> Iterator[str]:
    for unit in filter(systemctl.without_gate, units):
        what = "what it starts with is the machine (systemd/README.md, Who is a worker)"
        yield f"redirect.units: {unit} has no gate: {what}"
    for slice_ in _meant_units(units):
        yield f"redirect.units: a template is no unit: what runs in {slice_} is refused, and not led; name that slice"


def _is_unit(name: str) -> bool:
    return _can_be(systemctl.check_unit, name)


def _meant_units(units: Iterable[str]) -> tuple[str, ...]:
    """The units that may be meant by a template, a pattern, a path or a name without its kind, none of which runs."""
    return tuple(filter(_is_unit, itertools.chain.from_iterable(map(systemctl.units_meant, units))))


def _can_be(check: Callable[[str], object], name: str) -> bool:
    try:
        check(name)
    except HostError:
        return False
    return True


def _asker(uids: tuple[subuid.Range, ...], families: tuple[tuple[subuid.Range, ...], ...]) -> int | None:
    """A worker's uid that probably nobody uses: the bounds of a real worker must not keep us from asking.

    Who has subordinate uids shares one bound with all of them: those are somebody's, if there are others.
    """
    free = ranges.without(uids, ranges.merge(each for family in families for each in family)) or uids
    if not free:
        return None
    low, high = next((each for each in free if each[0] <= UNUSED_UID <= each[1]), free[-1])
    return min(max(low, UNUSED_UID), high)


def _groups(units: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    groups, missing = {}, []
    for unit in units:
        systemctl.check_unit(unit)
        try:
            path = systemctl.control_group(unit)
            number = None if path is None else (systemctl.UNIFIED / path).stat().st_ino
        except (HostError, OSError) as error:
            missing.append(f"redirect.units: {unit} cannot be told: {error}")
            continue
        if path is None or number is None:
            missing.append(f"redirect.units: {unit} does not run: it is no worker yet")
        else:
            groups[path] = number
    return groups, missing


def uid_of(user: str) -> int | None:
    """The uid of a user; ``None``: this machine does not know one of that name."""
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # a name with a NUL in it is nobody's
        return None

"""The identity of this computer: what to send of it, when to send it anew, and who may have it by default."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from agent.core.errors import Denied, ProviderError, Transient, UsageError
from agent.core.looks import look_of
from agent.core.model import AwsAssumeRole, AwsSession, Cloud, Env, GcpToken, Grant
from agent.core.secret import Secret, reveal
from agent.enrol import Policy
from agent.identity.forecast import Forecast, forecasts
from agent.sender import Collected, aws, gcp
from agent.sender.aws_identity import ask_for_codes, local_session, undated
from agent.sender.claims import content_of

Renew = Literal["here", "worker", "instance", "never"]

LATEST: Final = timedelta(minutes=20)
"""Clients on a worker ask again 15 minutes before the end: its successor must be there by then."""
EARLIEST: Final = timedelta(hours=1)
RETRY: Final = timedelta(seconds=30)
SAME_AGAIN: Final = timedelta(minutes=5)
"""How often a successor is looked for that is not there yet: a sign-on that renews itself does so only near its end."""

_NO_CODE: Final = "the profile wants the code of a multi-factor device each time, and nobody is asked for it later"
_SESSION_FIRST: Final = "make a session first: `aws configure export-credentials --format env` prints one"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The grants that were collected for one cloud.

    Attributes:
        mark: changes with what this computer knows (:meth:`Local.marks`).
        digest: of what is sent.
        due: when to look for a successor; ``None``: it needs none.
        trouble: why there is no successor yet.
    """

    collected: Collected
    forecast: Forecast
    mark: str
    digest: str
    due: datetime | None
    trouble: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of this computer's identity is sent, and how. See :func:`agent.forward.dask`."""

    aws: Any = "auto"
    gcp: Any = "auto"
    environ: Mapping[str, str] = {}
    role_arn: str | None = None
    policy: str | None = None
    impersonate: str | None = None
    duration: timedelta | None = None
    assume_expiry: timedelta | None = None
    renew: Renew = "here"

    def __repr__(self) -> str:
        return "Options(...)"  # the values of variables are in it


class Local:
    """This computer's identity.

    Args:
        options: what is wanted.
        transport: how google-auth reaches the network; ``None``: its own.

    Raises:
        UsageError: the options contradict each other.
    """

    def __init__(self, options: Options, *, transport: Callable[..., Any] | None = None) -> None:
        if options.aws is None and (options.role_arn or options.policy):
            raise UsageError("role_arn= and policy= are about AWS, and aws=None turns it off", hint="leave one out")
        if options.policy is not None and options.role_arn is None:
            raise UsageError("policy= narrows a role: say which one with role_arn=")
        if options.renew == "instance" and options.role_arn is None:
            raise UsageError('renew="instance" assumes a role on the workers: say which one with role_arn=')
        if options.aws is None and options.gcp is None and not options.environ:
            raise UsageError("nothing to forward: aws=None and gcp=None, and no environ=")
        self._options = options
        self._transport = transport
        self._session: Any = None
        self._begun = False
        self._coded = False  # whether a person typed the code of a device, which renews nothing
        self._seen: dict[str, datetime] = {}  # when each session was seen first, by its key id
        self._absent: dict[Cloud, str] = {}  # by what was seen of this computer when it had no such identity
        self.parts: dict[Cloud, Part] = {}

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that are sent."""
        return tuple(sorted(self._options.environ))

    def more(self) -> tuple[Grant, ...]:
        """Grants beside those of the clouds."""
        if not self._options.environ:
            return ()
        return (Env(id="env", variables={name: Secret(value) for name, value in self._options.environ.items()}),)

    def collect(self, now: datetime) -> bool:
        """Collect what is due; true if there is something new to send.

        Raises:
            Denied: there is nothing to send at all: no identity was found, or the one that was asked for.
            Transient: at the first time: a cloud cannot be reached.
        """
        new = False
        missing: list[ProviderError] = []
        for cloud, wanted in ((Cloud.AWS, self._options.aws), (Cloud.GCP, self._options.gcp)):
            if wanted is None:
                continue
            part = self.parts.get(cloud)
            mark = _mark(cloud)
            if self._as_before(cloud, mark, now):
                continue
            try:
                found = self._part(cloud, mark, now)
            except (Denied, Transient) as error:
                if part is not None:
                    self.parts[cloud] = _again(part, mark, now, error.message)
                elif not self._begun and (
                    isinstance(error, Transient) or wanted != "auto" or error.code != "no-credentials"
                ):
                    raise
                else:
                    missing.append(error)
                    if isinstance(error, Denied):
                        self._absent[cloud] = mark
                continue
            if part is not None and found.digest == part.digest:
                self.parts[cloud] = _again(found, mark, now, None)
                continue
            self.parts[cloud] = found
            new = True
        if not self.parts and not self._options.environ:
            hint = "; ".join(dict.fromkeys(one.hint for one in missing if one.hint))
            raise Denied(
                "neither boto3 nor google.auth finds an identity on this computer", hint=hint, code="no-credentials"
            )
        self._begun = True
        return new

    def _as_before(self, cloud: Cloud, mark: str, now: datetime) -> bool:
        """Whether there is no reason to look. Where nothing was found the SDKs ask metadata services, for seconds."""
        part = self.parts.get(cloud)
        if part is None:
            return self._absent.get(cloud) == mark
        return part.mark == mark and (part.due is None or now < part.due)

    def due(self) -> datetime | None:
        """When :meth:`collect` is worth calling again, should nothing change before."""
        return min((part.due for part in self.parts.values() if part.due is not None), default=None)

    def collected(self, now: datetime) -> tuple[Collected, ...]:
        """The grants to send. Those that have ended are left out: a bundle with one is refused whole."""
        return tuple(
            part.collected for part in self.parts.values() if part.forecast.until is None or part.forecast.until > now
        )

    def policy(self) -> Policy:
        """Who may have it by default: the machines of its own account and project, in its own partition."""
        account = project = partition = None
        for part in self.parts.values():
            for grant in part.collected.grants:
                if isinstance(grant, AwsSession) and grant.account_id:
                    account = account or grant.account_id
                elif isinstance(grant, AwsAssumeRole):
                    account = grant.role_arn.split(":")[4]
            if part.collected.cloud is Cloud.AWS and part.collected.who.startswith("arn:"):
                _, partition, _, _, of, _ = part.collected.who.split(":", 5)
                account = account or of
            project = project or next(
                (getattr(grant, "project_id", None) for grant in part.collected.grants if _is_google(grant)), None
            )
        return Policy.of_identity(account=account, project=project, partition=partition)

    def is_served(self, clouds: object) -> bool:
        """Whether the identities that an agent serves, by its status, are the same roles and accounts as these.

        Whether it has the same variables it does not say.
        """
        if self._options.environ:
            return False
        found = clouds if isinstance(clouds, dict) else {}
        for cloud, part in list(self.parts.items()):
            served = found.get(str(cloud))
            wanted = {
                grant.role_arn if isinstance(grant, AwsSession) else grant.email
                for grant in part.collected.grants
                if isinstance(grant, AwsSession | GcpToken)
            }
            if not isinstance(served, dict) or wanted != {served.get("principal")} or None in wanted:
                return False
        return bool(self.parts)

    def _part(self, cloud: Cloud, mark: str, now: datetime) -> Part:
        collected = self._from_boto(now) if cloud is Cloud.AWS else self._from_adc(now)
        content = content_of(collected.grants, {collected.cloud: collected.route})
        (forecast,) = forecasts(content.grants, content.routes, None, now)
        plain = msgspec.json.encode(collected.grants, enc_hook=reveal)
        due = None if self._options.renew == "never" else successor_due(forecast.until, now)
        coded, self._coded = self._coded, False
        return Part(
            collected=collected,
            forecast=forecast,
            mark=mark,
            digest=hashlib.sha256(plain).hexdigest(),
            due=due,
            trouble=f"{_NO_CODE}; {_SESSION_FIRST}" if coded and due is not None else None,  # said at once
        )

    def _from_boto(self, now: datetime) -> Collected:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415

        options, wanted = self._options, self._options.aws
        if isinstance(wanted, str):
            profile = None if wanted == "auto" else wanted
            try:
                # A new one each time: a session keeps what it has found, though somebody has signed on anew.
                session = local_session(profile, None, os.environ)
                ask_for_codes(session, self._code)
            except BotoCoreError as error:
                raise Denied(str(error), hint="which profiles are there? `aws configure list-profiles`") from None
        else:
            session = wanted
        renewal = {"worker": aws.Renewal.LOCAL, "instance": aws.Renewal.INSTANCE}.get(options.renew, aws.Renewal.NONE)
        return aws.from_boto(
            session,
            aws.AwsOptions(
                role_arn=options.role_arn,
                policy=options.policy,
                duration=options.duration,
                assume_expiry=self._assumed(session, now),
                renew=renewal if options.role_arn else aws.Renewal.NONE,
            ),
            now=now,
        )

    def _code(self, question: str) -> str:
        """Ask for the code of a multi-factor device: while a person begins this, and never out of the blue later."""
        if self._begun:
            raise Denied(_NO_CODE, hint=_SESSION_FIRST, code="no-code")
        code = getpass.getpass(question)
        self._coded = True
        return code

    def _assumed(self, session: Any, now: datetime) -> timedelta | None:
        """What is left of the length that was said: it began when the session was seen first, not at each look."""
        length = self._options.assume_expiry
        key = None if length is None else undated(session)
        if length is None or key is None:
            return length
        left = self._seen.setdefault(key, now) + length - now
        if left <= timedelta(0):
            raise Denied(
                "the local AWS session has ended, by what assume_expiry= said of it",
                hint="sign in again, however this session was made",
                code="ExpiredToken",
            )
        return left

    def _from_adc(self, now: datetime) -> Collected:
        lasting = self._options.renew == "worker"
        wanted = self._options.gcp
        if isinstance(wanted, gcp.GcpOptions):
            options = wanted
        else:
            options = gcp.GcpOptions(
                impersonate=self._options.impersonate,
                send_refresh_token=lasting,
                send_key=lasting,
                adc_file=adc_file(),
            )
        return gcp.from_adc(options, now=now, transport=self._transport)


def marks() -> dict[Cloud, str]:
    """Marks that change when somebody signs on anew. Only files and the environment are read: no helper is run."""
    return {cloud: _mark(cloud) for cloud in Cloud}


def _mark(cloud: Cloud) -> str:
    prefixes = ("AWS_",) if cloud is Cloud.AWS else ("GOOGLE_", "CLOUDSDK_", "GCLOUD_")
    seen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefixes)]
    for path in aws_files() if cloud is Cloud.AWS else [adc_file()]:
        try:
            seen.append(f"{path} {look_of(path.stat())}")
        except OSError:
            continue
    return hashlib.sha256("\n".join(seen).encode("utf-8", "surrogateescape")).hexdigest()


def adc_file() -> Path:
    """Where the application default credentials are (AIP-4110): named by the environment, or where gcloud puts them."""
    if named := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return Path(named)
    directory = os.environ.get("CLOUDSDK_CONFIG") or _at_home("~/.config/gcloud")
    return Path(directory) / "application_default_credentials.json"


def aws_files() -> list[Path]:
    """Where the AWS identity of this computer is, as the SDKs look for it: not all of them need be there."""
    home = _at_home("~/.aws")
    named = [
        _at_home(os.environ.get(name) or home / default)
        for name, default in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials"))
    ]
    return [*named, *sorted((home / "sso/cache").glob("*.json")), *sorted((home / "login/cache").glob("*.json"))]


def _at_home(path: str | Path) -> Path:
    """The path below the user's home, as SDKs read it: as it stands where the user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def successor_due(until: datetime | None, now: datetime) -> datetime | None:
    """When what ends at ``until`` is to have a successor; ``None``: it needs none."""
    if until is None:
        return None
    length = until - now
    lead = min(max(min(length / 3, EARLIEST), LATEST), length / 2)
    return until - lead


def _again(part: Part, mark: str, now: datetime, trouble: str | None) -> Part:
    pause = RETRY if trouble else SAME_AGAIN
    left = None if part.forecast.until is None else (part.forecast.until - now) / 3
    if left is not None and left < pause:
        pause = max(left, timedelta(seconds=1))
    # A new sign-on that could not be collected is tried again soon, however long the former one lives.
    due = None if part.due is None else now + pause if trouble else max(now + pause, part.due)
    return msgspec.structs.replace(part, mark=mark, due=due, trouble=trouble)


def _is_google(grant: Grant) -> bool:
    return isinstance(grant, GcpToken) or type(grant).__name__.startswith("Gcp")

"""The options of a forwarding, and how one is made of them."""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypedDict, get_args

from agent.core.errors import UsageError
from agent.core.text import spell
from agent.enrol import Policy
from agent.forward import signing
from agent.forward.agents import Admission, Verify, check_channel
from agent.forward.engine import Engine
from agent.forward.local import Local, Options, Renew
from agent.forward.session import Forward, OnExit
from agent.forward.telling import Teller
from agent.forward.vouching import Vouching


class Wanted(TypedDict, total=False):
    """The options of every kind of forwarding. All may be left out.

    Attributes:
        aws: the AWS identity: ``"auto"`` (the one that boto3 finds), the name of a profile, a ``boto3.Session``, or
            ``None``.
        gcp: the Google identity: ``"auto"`` (the application default credentials), or ``None``.
        credentials: ``None`` turns both off, for when only ``environ`` is sent.
        environ: variables for the workers' environment file. Programs that start from then on get them; those that run
            already, the workers of the cluster among them, do not.
        role_arn: AWS: assume this role and send its session.
        policy: AWS: a session policy that restricts the role: JSON text or a mapping.
        impersonate: Google: impersonate this service account, and send its tokens.
        duration: AWS: how long a session lasts.
        assume_expiry: AWS: how long a session that does not say so is sure to live, from when it is seen first.
        lease: workers stop serving this long after the last renewal. By default they serve as long as the credentials
            live.
        renew: who renews: ``"here"``, this program; ``"worker"``: the workers, with what is sent to them for it (the
            base of a role, a refresh token: long-lived, so name ``roles`` too); ``"instance"``: the workers, with their
            machine's own role; ``"never"``.
        accounts: AWS accounts whose machines may have it. By default the identity's own.
        roles: only EC2 machines with one of these roles may have it: names, or ARNs. Machines of another partition
            (China's, say) than the identity's may have it only by such an ARN.
        projects: Google projects whose instances may have it. By default the identity's own.
        service_accounts: only GCE instances that run as one of these may have it.
        instance_ids: only these instances may have it.
        thumbprints: keys of workers that you have compared yourself: they need no other proof.
        without_evidence: send to every worker that is reached, without proof of its machine. Only over encrypted
            connections.
        issuer: the issuer of the bundles; by default ``laptop:USER@HOST``.
        signer: the file of the signing key, which must be there. By default one in your configuration directory, made
            at first use.
        on_exit: ``"withdraw"`` the identity at the end of the block, or let the workers ``"keep"`` it to its end.
        progress: say on stderr how it goes; by default if that is a terminal.
    """

    aws: Any
    gcp: Any
    credentials: None
    environ: Mapping[str, str]
    role_arn: str | None
    policy: str | Mapping[str, Any] | None
    impersonate: str | None
    duration: timedelta | None
    assume_expiry: timedelta | None
    lease: timedelta | None
    renew: Renew
    accounts: Sequence[str]
    roles: Sequence[str]
    projects: Sequence[str]
    service_accounts: Sequence[str]
    instance_ids: Sequence[str]
    thumbprints: Sequence[str]
    without_evidence: bool | None
    issuer: str | None
    signer: str | Path | None
    on_exit: OnExit
    progress: bool | None


_ACCOUNT: Final = re.compile(r"[0-9]{12}\Z")
_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]{0,16}:iam::[0-9]{12}:role/[!-~]{1,576}\Z")
_LENGTHS: Final = {
    "duration": (timedelta(minutes=15), timedelta(hours=36)),  # AssumeRole's shortest, GetSessionToken's longest
    "assume_expiry": (timedelta(seconds=1), timedelta(days=366)),
    "lease": (timedelta(seconds=1), timedelta(days=366)),
}
_TO_WHOM: Final = ("accounts", "roles", "projects", "service_accounts", "instance_ids", "thumbprints")


def begin(
    make: Callable[[str, str], Any],
    wanted: Mapping[str, Any],
    *,
    lazy: Callable[[Any], bool] = lambda _: False,
    verify: Callable[[Policy, Callable[[], datetime]], Verify] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Forward:
    """Begin to forward.

    Args:
        make: makes the courier, given the name of this forwarding and the issuer.
        wanted: the members of :class:`Wanted`.
        lazy: whether nothing may be waited for here, since ``async with`` begins.
        verify: makes what asks those who vouch, for a policy; ``None``: STS and Google.
        now: time.

    Raises:
        UsageError: an argument is unknown, or of another kind than it takes.
        AgentError: any other, as :func:`agent.forward.dask` says.
    """
    wanted = _checked(wanted)
    options = _options(wanted)
    local = Local(options)
    verifying = verify or Vouching(options.aws).verifier
    on_exit = wanted.get("on_exit", "withdraw")
    if on_exit not in {"withdraw", "keep"}:
        raise UsageError(f'on_exit: expected "withdraw" or "keep", got {on_exit!r}')
    issuer = signing.check_issuer(wanted.get("issuer") or signing.default_issuer())
    signer = signing.named(wanted.get("signer"))
    # A stream of its own: what ends here takes nothing away that another forwarding of the same person has brought.
    session = f"forward-{secrets.token_hex(6)}"
    courier = make(session, issuer)
    # A caller who says to whom it goes wants that proved, though they name the machines.
    said = any(wanted.get(name) for name in _TO_WHOM if name != "thumbprints")
    without = wanted.get("without_evidence")
    trusted = check_channel(courier, without_evidence=False if without is None and said else without)

    # Whoever names a role of another partition in full wants machines of that one too.
    named = [role.split(":")[1] for role in wanted.get("roles", ()) if role.startswith("arn:")]

    def admission(of: Local) -> Admission:
        own = of.policy()
        return admitting(
            Policy(
                accounts=tuple(wanted.get("accounts", own.accounts)),
                roles=tuple(wanted.get("roles", ())),
                projects=tuple(wanted.get("projects", own.projects)),
                service_accounts=tuple(wanted.get("service_accounts", ())),
                instance_ids=tuple(wanted.get("instance_ids", ())),
                partitions=tuple(dict.fromkeys((*own.partitions, *named))),
            )
        )

    @functools.cache
    def admitting(policy: Policy) -> Admission:
        return Admission(
            thumbprints=frozenset(wanted.get("thumbprints", ())), trust_channel=trusted, verify=verifying(policy, now)
        )

    engine = Engine(
        courier,
        local,
        admission,
        signer=signer,
        issuer=issuer,
        subject=session,
        lease=wanted.get("lease"),
        now=now,
    )
    teller = Teller.of(wanted.get("progress"))
    return Forward(engine, courier, teller, on_exit=on_exit, lazy=lazy(courier), now=now)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, those left out that say nothing.

    Raises:
        UsageError: one is unknown, or of another kind than it takes.
    """
    odd = given.keys() - Wanted.__annotations__.keys()
    if odd:
        raise UsageError(f"forward knows no {min(odd)}=", hint=f"it knows: {', '.join(sorted(Wanted.__annotations__))}")
    wanted = {name: value for name, value in given.items() if value is not None or name not in _TO_WHOM}
    # Kept as it is read here: the next reader of an iterator finds nothing, and no role means any role.
    wanted |= {name: _to_whom(name, some) for name, some in wanted.items() if name in _TO_WHOM}
    for name, (shortest, longest) in _LENGTHS.items():
        length = wanted.get(name)
        if length is None:
            continue
        if not isinstance(length, timedelta):
            raise UsageError(f"{name}= takes a datetime.timedelta, got {length!r}", hint=f"{name}=timedelta(hours=1)")
        if not shortest <= length <= longest:
            raise UsageError(f"{name}= is between {spell(shortest)} and {spell(longest)}, got {spell(length)}")
    environ = wanted.get("environ") or {}
    if not isinstance(environ, Mapping) or not all(isinstance(one, str) for pair in environ.items() for one in pair):
        raise UsageError("environ= takes names and values that are texts", hint='environ={"MYAPP_TOKEN": "..."}')
    role = wanted.get("role_arn")
    if role is not None and not (isinstance(role, str) and _ROLE_ARN.match(role)):
        raise UsageError(f"role_arn= takes arn:aws:iam::ACCOUNT:role/NAME, got {str(role)[:200]!r}")
    if wanted.get("renew", "here") not in get_args(Renew):
        raise UsageError(f"renew= is one of {', '.join(get_args(Renew))}, got {wanted['renew']!r}")
    return wanted


def _to_whom(name: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        raise UsageError(f"{name}= takes a list, got one text", hint=f"{name}=[{given!r}]")
    if not isinstance(given, Iterable):
        raise UsageError(f"{name}= takes a list of texts, got {given!r}", hint=f'{name}=["{given}"]')
    some = tuple(given)
    if not some and name != "thumbprints":
        # What came out empty by mistake would restrict nothing: any role, and where the channel is trusted anybody.
        raise UsageError(f"{name}= takes at least one, got an empty list", hint=f"leave {name}= out for the default")
    for one in some:
        if not isinstance(one, str):
            raise UsageError(f"{name}= takes a list of texts, got {one!r} in it", hint=f'{name}=["{one}"]')
        if name == "accounts" and not _ACCOUNT.match(one):
            raise UsageError(f"accounts= takes account ids of 12 digits, got {one[:100]!r}")
    return some


def _options(wanted: Mapping[str, Any]) -> Options:
    off = "credentials" in wanted
    if off and wanted["credentials"] is not None:
        raise UsageError("credentials= can only be None: neither aws nor gcp", hint="name a profile with aws=")
    policy = wanted.get("policy")
    return Options(
        aws=None if off else wanted.get("aws", "auto"),
        gcp=None if off else wanted.get("gcp", "auto"),
        environ=dict(wanted.get("environ") or {}),
        role_arn=wanted.get("role_arn"),
        policy=policy if policy is None or isinstance(policy, str) else json.dumps(policy, separators=(",", ":")),
        impersonate=wanted.get("impersonate"),
        duration=wanted.get("duration"),
        assume_expiry=wanted.get("assume_expiry"),
        renew=wanted.get("renew", "here"),
    )

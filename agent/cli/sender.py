"""The sender's commands: ``keygen``, ``seal`` and ``inspect``.

What can be piped (a public key, a bundle) goes to stdout; what is for a person goes to stderr. No secret is ever taken
from the command line, where every user of the machine can read it, nor shown.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent import bundle
from agent.core.errors import BundleError, FormatError, SealError, SourceError
from agent.core.horizon import Horizon, horizon, instant, sentence, spell
from agent.core.model import Action, Bundle, Cloud, Grant, OnExpiry
from agent.core.secret import Secret
from agent.core.variables import passes
from agent.sender import Collected, aws, claims, deliver, files, gcp
from agent.wire import userdata, wrapped

_SIGNING_KINDS: Final = {"ed25519": "Ed25519", "es256": "P-256"}
_OPENING_KINDS: Final = {"p256": "P-256", "x25519": "X25519", "rsa": "RSA", "oct": "oct"}
_DOCUMENTS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "raw": lambda sealed: sealed,
    "armored": lambda sealed: userdata.armour(sealed).encode(),
    "cloud-config": lambda sealed: userdata.cloud_config(sealed).encode(),
    "mime": lambda sealed: userdata.mime(sealed).encode(),
    "systemd": lambda sealed: userdata.systemd(sealed).encode(),
}
Key = TypeVar("Key")
Value = TypeVar("Value")

_USER_DATA_BYTES: Final = 16_384  # the limit of EC2, before base64

_FILE: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


class _NewFile(click.Path):
    """A file to write a key to. ``-`` is none: stdout ends in logs and scrollback, and nobody wants a file ``./-``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse ``-``."""
        if str(value) == "-":
            self.fail("expected the name of a file, got '-'; the public key goes to stdout anyway", param, ctx)
        return super().convert(value, param, ctx)


_NEW: Final = _NewFile(path_type=Path, dir_okay=False)


class _Length(click.ParamType[timedelta]):
    """A length of time: ``90s``, ``15m``, ``12h``, ``2d``, ``1h30m``."""

    name = "length"
    _PARTS: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?\Z")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read one."""
        if isinstance(value, timedelta):
            return value
        match = self._PARTS.match(str(value))
        if match is None or not value:
            self.fail(f"expected a length of time such as 90s, 15m, 12h or 1h30m, got {value!r}", param, ctx)
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if not timedelta(0) < length <= timedelta(days=366):
            self.fail(f"expected between 1s and 366d, got {value!r}", param, ctx)
        return length


_LENGTH: Final = _Length()


# ---------------------------------------------------------------------------------------------------------------------
# keygen


@click.command()
@click.option(
    "--kind",
    type=click.Choice([*_OPENING_KINDS, *_SIGNING_KINDS]),
    default="p256",
    show_default=True,
    help="p256, x25519, rsa, oct open bundles (a worker's key); ed25519, es256 sign them (a sender's key).",
)
@click.option("--out", type=_NEW, required=True, help="Where the private key goes, as a JWK, mode 0600.")
@click.option("--public", type=_NEW, help="Also write the public key to this file.")
@click.option("--force", is_flag=True, help="Replace a key that is there already.")
def keygen(kind: str, out: Path, public: Path | None, force: bool) -> None:
    """Make a key pair; print its public half.

    The private key is written as a JWK that only you may read. The public key, a JWK on one line with its RFC 7638
    thumbprint as `kid`, goes to stdout: give a worker's to whoever seals for it, a sender's to the workers that are to
    believe it. An `oct` key has no public half: whoever seals with it needs the same file.
    """
    key: bundle.SigningKey | bundle.OpeningKey
    if kind in _SIGNING_KINDS:
        key = bundle.SigningKey.generate(_SIGNING_KINDS[kind])  # type: ignore[arg-type]  # the table's values
    else:
        key = bundle.OpeningKey.generate(_OPENING_KINDS[kind])  # type: ignore[arg-type]  # the table's values
    private = {**key.private_jwk(), "kid": key.kid}
    if kind == "oct":
        shown: dict[str, str] = {"kty": "oct", "kid": key.kid}
        if public is not None:
            raise click.UsageError("an oct key has no public half to write")
    else:
        shown = {**key.public_jwk(), "kid": key.kid}
    line = json.dumps(shown, separators=(",", ":"))
    files.write(out, (json.dumps(private) + "\n").encode(), mode=files.PRIVATE, replace=force)
    if public is not None:
        files.write(public, (line + "\n").encode(), mode=files.PUBLIC, replace=True)
    click.echo(line)


# ---------------------------------------------------------------------------------------------------------------------
# seal


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_WHAT = _options(
    click.option("--from-boto", is_flag=True, help="The AWS identity that boto3 finds here."),
    click.option("--profile", help="AWS: the profile, instead of AWS_PROFILE or the default."),
    click.option("--region", help="AWS: the region, instead of the profile's; the worker uses its STS."),
    click.option(
        "--aws-mode",
        type=click.Choice([mode.value for mode in aws.Mode]),
        default=aws.Mode.AUTO.value,
        show_default=True,
        help="AWS: exchange keys (session-token), assume a role, send the session as it is (raw), or send an IAM "
        "user's keys for the worker to exchange (keys), with --role-arn to assume that role with. auto: a role if "
        "--role-arn, else whichever of the first and third is possible.",
    ),
    click.option("--role-arn", help="AWS: assume this role and send its session."),
    click.option(
        "--renew-role",
        type=click.Choice([aws.Renewal.LOCAL.value, aws.Renewal.INSTANCE.value]),
        help="AWS: let the worker assume the role, again and again: with this computer's identity sent as its base "
        "(local), or with its own instance profile (instance; no secret is sent).",
    ),
    click.option("--policy", type=_FILE, help="AWS: a session policy (JSON file) that narrows the role."),
    click.option("--policy-arn", multiple=True, help="AWS: a managed policy that narrows the role; repeatable."),
    click.option("--external-id", help="AWS: the external id that the role's trust policy asks for."),
    click.option("--session-name", default="credential-agent", show_default=True, help="AWS: as CloudTrail shows it."),
    click.option("--duration", type=_LENGTH, help="AWS: how long the session lasts (12h for keys, 1h for a role)."),
    click.option("--assume-expiry", type=_LENGTH, help="AWS: take a session of unknown end to live for so long."),
    click.option("--mfa-serial", help="AWS: the multi-factor device; its code is asked for."),
    click.option("--from-adc", is_flag=True, help="The Google identity of this computer (application default)."),
    click.option("--scope", multiple=True, help="Google: an OAuth scope; repeatable. Default: cloud-platform."),
    click.option("--impersonate", metavar="EMAIL", help="Google: send a token of this service account instead."),
    click.option("--impersonate-lifetime", type=_LENGTH, default="1h", show_default=True, help="Google: its lifetime."),
    click.option("--google-project", help="Google: the project that programs are told."),
    click.option("--send-refresh-token", is_flag=True, help="Google: send the user's refresh token. Long-lived!"),
    click.option("--send-service-account-key", is_flag=True, help="Google: send the account's key. Long-lived!"),
    click.option("--claims", "claims_file", type=_FILE, help="Claims as JSON (see FORMAT.md); - reads stdin."),
    click.option("--env", "env_names", multiple=True, metavar="NAME", help="Send this variable of your environment."),
    click.option("--withdraw", is_flag=True, help="Take away what is served, at once; carries no credential."),
)

_HOW = _options(
    click.option("--signer", type=_FILE, required=True, help="Your private signing key."),
    click.option(
        "--recipient", type=_FILE, multiple=True, required=True,
        help="A worker's public key: JWK, JWK Set or PEM; repeatable.",
    ),
    click.option("--issuer", help="Who is speaking: claim iss. Default: laptop:USER@HOST."),
    click.option("--subject", help="The stream that seq counts in: claim sub. Default: default."),
    click.option(
        "--audience", multiple=True, help="Which workers: claim aud; repeatable. Default: who holds a recipient key."
    ),
    click.option("--expires-in", type=_LENGTH, help="Acceptance ends so long from now; serving does not. Default: 1h."),
    click.option("--lease", type=_LENGTH, help="Serve for so long at most."),
    click.option("--on-expiry", type=click.Choice([o.value for o in OnExpiry]), help="What follows the end."),
    click.option("--seq", type=click.IntRange(0, 2**53 - 1), help="Default: milliseconds since 1970, which only grow."),
    click.option(
        "--form", type=click.Choice(["general", "flattened", "compact"]), default="general", show_default=True,
        help="The JWE serialization; compact is the shortest, for one recipient.",
    ),
)  # fmt: skip

_WHERE = _options(
    click.option("--out", type=_FILE, help="A file, replaced in one step; - is stdout, the default."),
    click.option(
        "--format",
        "document",
        type=click.Choice(list(_DOCUMENTS)),
        default="raw",
        show_default=True,
        help="The bundle alone, or in a document for EC2 user-data: armored to paste into a comment of your own, "
        "cloud-config, a mime multipart, or systemd's systemd.credentials.",
    ),
    click.option("--to", help="Also deliver: gce:PROJECT/ZONE/INSTANCE[#KEY], or gce:PROJECT[#KEY] for all its VMs."),
    click.option("--gce-endpoint", default=deliver.COMPUTE, show_default=True, help="The Compute Engine API."),
)


_EXAMPLES: Final = """\b
What you have here, to one worker, as a file:
  credential-agent seal --from-boto --signer me.jwk --recipient worker.pub.jwk --out bundle.jose
One bucket only, for a working day, renewed by the worker:
  credential-agent seal --from-boto --role-arn ROLE --policy bucket.json --renew-role local --lease 10h ...
Take it away again:
  credential-agent seal --withdraw --signer me.jwk --recipient worker.pub.jwk --out bundle.jose
"""


@click.command(epilog=_EXAMPLES)
@_WHAT
@_HOW
@_WHERE
def seal(**given: Any) -> None:
    """Seal an identity to workers: sign it, encrypt it to their keys, write it where they look.

    On stderr it says for each cloud until when it will work, and what renews it.
    """
    now = datetime.now(UTC)
    target = _target(given["to"])
    base = _claims_file(given["claims_file"])
    collected = _collect(given, now)
    withdraw = given["withdraw"] or base.action is Action.WITHDRAW
    grants: list[Grant | dict[str, Any]] = [*base.grants, *(g for one in collected for g in one.grants)]
    if env := _variables(given["env_names"]):
        grants.append(env)
    if withdraw and grants:
        raise click.UsageError("a withdrawal carries nothing: leave out what it would carry")
    if not withdraw and not grants:
        raise click.UsageError("nothing to seal: give --from-boto, --from-adc, --claims, --env or --withdraw")
    routes = _routes(base, collected)
    recipients = [key for path in given["recipient"] for key in _keys(path, bundle.RecipientKey.parse_all)]
    (signer,) = _keys(given["signer"], lambda text: (bundle.SigningKey.parse(text),))
    lease_until = _until(given["lease"], now) or _at(base.lease_until)
    outlook: list[Horizon] = []
    if not withdraw:
        content = claims.content_of(grants, routes)
        outlook = horizon(content.grants, content.routes, lease_until, now)
    accept_until = _until(given["expires_in"], now) or _at(base.exp) or _default_accept(outlook, now)
    issuer = given["issuer"] or base.iss or _default_issuer()
    subject = given["subject"] or base.sub or "default"
    audiences = given["audience"] or base.audiences or tuple(bundle.audience_key(key.kid) for key in recipients)
    seq = given["seq"] if given["seq"] is not None else base.seq
    if seq is None:
        seq = int(now.timestamp() * 1000)
    sealed = bundle.seal(
        signer=signer,
        recipients=recipients,
        issuer=issuer,
        subject=subject,
        audiences=audiences,
        now=now,
        grants=grants,
        routes=routes,
        seq=seq,
        action=Action.WITHDRAW if withdraw else Action.SET,
        not_before=_at(base.nbf),
        accept_until=accept_until,
        lease_until=lease_until,
        on_expiry=OnExpiry(given["on_expiry"]) if given["on_expiry"] else base.on_expiry,
        bundle_id=base.jti,
        form=given["form"],
    )
    for one in collected:
        click.echo(f"{one.cloud}: {one.who}", err=True)
        _warn(one.warnings)
    if not withdraw:
        _tell(outlook, accept_until, now)
    document = _DOCUMENTS[given["document"]](sealed)
    if given["document"] != "raw" and len(document) > _USER_DATA_BYTES:
        _warn([f"the document has {len(document)} bytes; EC2 user-data holds {_USER_DATA_BYTES}"])
    _put(document, given["out"], alone=target is None)
    if target is not None:
        _deliver(target, sealed, given["gce_endpoint"])
    what = "withdrawal" if withdraw else "bundle"
    click.echo(
        f"sealed {what} {issuer} {subject} seq {seq}: {len(sealed)} bytes, to {len(recipients)} "
        f"key{'s' if len(recipients) != 1 else ''}, accepted until {instant(accept_until)}",
        err=True,
    )


def _target(text: str | None) -> deliver.GceTarget | None:
    if text is None:
        return None
    target = deliver.GceTarget.parse(text)
    if target is None:
        raise click.UsageError(
            f"--to: expected gce:PROJECT/ZONE/INSTANCE or gce:PROJECT, either with #KEY, got {text!r}"
        )
    return target


def _claims_file(path: Path | None) -> claims.ClaimsFile:
    return claims.ClaimsFile() if path is None else claims.read_claims(_read(path))


def _collect(given: dict[str, Any], now: datetime) -> list[Collected]:
    """Ask the local identities for what was wanted of them."""
    aws_only = ("profile", "role_arn", "renew_role", "policy", "policy_arn", "external_id", "duration", "mfa_serial")
    google_only = ("scope", "impersonate", "send_refresh_token", "send_service_account_key", "google_project")
    for switch, names in (("from_boto", aws_only), ("from_adc", google_only)):
        stray = [name for name in names if given[name]]
        if stray and not given[switch]:
            raise click.UsageError(
                f"--{stray[0].replace('_', '-')} says how to use --{switch.replace('_', '-')}: give both"
            )
    collected = []
    if given["from_boto"]:
        collected.append(_from_boto(given, now))
    if given["from_adc"]:
        collected.append(_from_adc(given, now))
    return collected


def _from_boto(given: dict[str, Any], now: datetime) -> Collected:
    import boto3
    from botocore.exceptions import BotoCoreError

    mfa = None
    if given["mfa_serial"]:
        mfa = aws.Mfa(given["mfa_serial"], Secret(click.prompt("MFA code", hide_input=True, err=True)))
    options = aws.AwsOptions(
        mode=aws.Mode(given["aws_mode"]),
        role_arn=given["role_arn"],
        renew=aws.Renewal(given["renew_role"] or aws.Renewal.NONE),
        duration=given["duration"],
        policy=_policy(given["policy"]),
        policy_arns=given["policy_arn"],
        external_id=given["external_id"],
        session_name=given["session_name"],
        assume_expiry=given["assume_expiry"],
        mfa=mfa,
    )
    try:
        session = boto3.Session(profile_name=given["profile"], region_name=given["region"])
        if session.region_name is None and "AWS_REGION" in os.environ:
            # Every other SDK reads this variable; boto3 reads AWS_DEFAULT_REGION alone.
            session = boto3.Session(profile_name=given["profile"], region_name=os.environ["AWS_REGION"])
    except BotoCoreError as error:
        raise click.UsageError(str(error)) from None
    return aws.from_boto(session, options, now=now)


def _from_adc(given: dict[str, Any], now: datetime) -> Collected:
    options = gcp.GcpOptions(
        impersonate=given["impersonate"],
        lifetime=given["impersonate_lifetime"],
        send_refresh_token=given["send_refresh_token"],
        send_key=given["send_service_account_key"],
        project_id=given["google_project"],
        adc_file=_adc_file(),
        **({"scopes": given["scope"]} if given["scope"] else {}),
    )
    return gcp.from_adc(options, now=now)


def _adc_file() -> Path:
    """Where the application default credentials are (AIP-4110): named by the environment, or where gcloud puts them."""
    if named := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return Path(named)
    directory = os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser()
    return Path(directory) / "application_default_credentials.json"


def _policy(path: Path | None) -> str | None:
    """A session policy without its white space, which counts against the limit of 2,048 characters."""
    if path is None:
        return None
    try:
        text = json.dumps(json.loads(_read(path)), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--policy {path}: expected JSON, got something else ({error})") from None
    if len(text) > 2048:
        raise click.UsageError(f"--policy {path}: expected at most 2048 characters without spaces, got {len(text)}")
    return text


def _variables(names: Sequence[str]) -> dict[str, Any] | None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise click.UsageError(f"--env {missing[0]}: your environment has no such variable")
    for name in names:
        try:
            os.environ[name].encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"--env {name}: expected UTF-8 in its value") from None
        if not passes(name):
            click.echo(
                f"warning: --env {name}: workers pass it on only if their environment.allow names it; "
                "names such as MYAPP_TOKEN or DATABASE_URL pass by themselves",
                err=True,
            )
    return {"type": "env", "id": "env", "variables": {name: os.environ[name] for name in names}} if names else None


def _routes(base: claims.ClaimsFile, collected: Sequence[Collected]) -> dict[Cloud, str] | None:
    """The routes of the claims file, and those of what was collected; ``None`` lets the worker see for itself."""
    if base.routes is None and base.grants:
        return None
    return {**(base.routes or {}), **{one.cloud: one.route for one in collected}}


def _default_accept(outlook: Sequence[Horizon], now: datetime) -> datetime:
    """An hour, or until the first cloud has ended: a bundle that can do nothing any more need not be accepted."""
    ends = [one.until for one in outlook if one.until is not None and one.until > now]
    return min([now + bundle.DEFAULT_ACCEPT, *ends])


def _tell(outlook: Sequence[Horizon], accept_until: datetime, now: datetime) -> None:
    """For each cloud until when it will work, and what should worry the sender."""
    for one in outlook:
        click.echo(sentence(one, now), err=True)
        warnings = list(one.warnings)
        if one.until is not None and now < one.until < accept_until:
            warnings.append(
                f"it may be accepted until {instant(accept_until)}, but a worker that starts after "
                f"{instant(one.until)} will have no {one.cloud} from it"
            )
        _warn(warnings)
    for cloud in Cloud:
        if cloud not in {one.cloud for one in outlook}:
            click.echo(f"{cloud}: not in this bundle; the worker's own identity, if it has one", err=True)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"  warning: {warning}", err=True)


def _put(document: bytes, out: Path | None, *, alone: bool) -> None:
    """Write the document: to a file, or to stdout unless it was delivered elsewhere."""
    if out is not None and str(out) != "-":
        files.write(out, document, mode=files.PUBLIC, replace=True)
    elif out is not None or alone:
        click.echo(document, nl=not document.endswith(b"\n"))


def _deliver(target: deliver.GceTarget, sealed: bytes, endpoint: str) -> None:
    credentials, request = gcp.authorized(gcp.GcpOptions(scopes=(deliver.COMPUTE_SCOPE,)))
    deliver.GceAttribute(target, credentials=credentials, request=request, endpoint=endpoint).put(sealed)
    click.echo(f"delivered to {target}", err=True)


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(files.MAX_INPUT_BYTES)
    return files.read(path)


def _keys(path: Path, parse: Callable[[bytes], Sequence[Key]]) -> Sequence[Key]:
    """Read keys, saying which file is at fault."""
    try:
        return parse(_read(path))
    except BundleError as error:
        raise FormatError(f"{path}: {error.message}", hint=error.hint, code=error.code) from None


def _until(length: timedelta | None, now: datetime) -> datetime | None:
    return None if length is None else now + length


def _at(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _default_issuer() -> str:
    """Who is speaking when nobody says: enough for a person to recognize; the key is what a worker believes."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such uid in the user database, as in a container
        user = str(os.getuid())
    return "laptop:" + re.sub(r"[^A-Za-z0-9.@_-]", "-", f"{user}@{socket.gethostname()}")


# ---------------------------------------------------------------------------------------------------------------------
# inspect


@click.command()
@click.argument("file", type=_FILE)
@click.option("--key", "key_file", type=_FILE, help="A worker's private key, to open it with.")
@click.option(
    "--signer", "signer_file", type=_FILE, multiple=True, help="A sender's public key, to believe; repeatable."
)
@click.option("--audience", multiple=True, help="Judge it as a worker that answers to this. Default: to what it says.")
def inspect(file: Path, key_file: Path | None, signer_file: tuple[Path, ...], audience: tuple[str, ...]) -> int:
    """Show what a bundle says about itself, and with keys what it carries, secrets redacted.

    FILE is a bundle or a document that carries one. Each check is listed with its verdict; the exit status is 65 when
    one refuses it. Whether `seq` is new is the worker's to know, and not judged here.
    """
    data = _read(file)
    checks = _Checks()
    try:
        sealed = checks.run("document", lambda: _extract(data))
        envelope = checks.run("envelope", lambda: bundle.parse_envelope(sealed, max_bytes=bundle.LARGEST_BYTES))
        click.echo(f"bundle: {len(sealed)} bytes, {envelope.form}, encrypted with A256GCM")
        for recipient in envelope.recipients:
            click.echo(f"  recipient {recipient.kid} by {recipient.alg.value}")
        if key_file is None:
            click.echo("not opened: give --key to open it, and --signer to judge it")
            return 0
        keys = _keys(key_file, bundle.OpeningKey.parse_all)
        kid, signed = checks.run("opens", lambda: _open(envelope, keys))
        if not signer_file:
            raise click.UsageError("give --signer too: without it nothing inside could be believed")
        trust = _trust(signer_file)
        opened = checks.run(
            "signature, claims, times, grants",
            lambda: bundle.verify(
                signed,
                trust=trust,
                recipient_kid=kid,
                audiences=audience or _claimed_audiences(signed),
                now=datetime.now(UTC),
                origin=str(file),
            ),
        )
    except BundleError:
        if not checks.refused:
            raise  # a key file, not the bundle
        return 65
    _show(opened)
    return 0


def _extract(data: bytes) -> bytes:
    """The bundle in a document; what is no document that we know is taken for a bundle, and judged as one."""
    try:
        found = wrapped.find(data)
    except SourceError as error:
        raise FormatError(error.message, hint=error.hint) from None
    return data if found is None else found


class _Checks:
    """Prints a verdict for each check, and remembers whether one refused."""

    def __init__(self) -> None:
        self.refused = False

    def run(self, name: str, check: Callable[[], Value]) -> Value:
        try:
            value = check()
        except BundleError as error:
            self.refused = True
            click.echo(f"check {name}: refused, {error.code}: {error.message}")
            if error.hint:
                click.echo(f"  hint: {error.hint}")
            raise
        click.echo(f"check {name}: ok")
        return value


def _open(envelope: bundle.Envelope, keys: Sequence[bundle.OpeningKey]) -> tuple[str, bytes]:
    by_kid = {key.kid: key for key in keys}
    for recipient in envelope.recipients:
        if (key := by_kid.get(recipient.kid)) is not None:
            return key.kid, bundle.decrypt(envelope, key.content_key(recipient))
    ours = ", ".join(sorted(by_kid))
    raise SealError("it is not sealed to this key", hint=f"this key is {ours}", code=bundle.Code.RECIPIENT)


def _trust(paths: Sequence[Path]) -> bundle.Trust:
    entries = [
        {"name": str(path), "key": _read(path).decode("utf-8", "replace"), "issuers": ["*"], "audiences": ["*"]}
        for path in paths
    ]
    return bundle.Trust.parse(entries)


def _claimed_audiences(signed: bytes) -> tuple[str, ...]:
    """What it claims to be addressed to, unverified: to judge everything else when no audience is given."""
    import base64

    try:
        payload = signed.split(b".")[1]
        said = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))["aud"]
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        return ()
    audiences = [said] if isinstance(said, str) else said
    return tuple(a for a in audiences if isinstance(a, str)) if isinstance(audiences, list) else ()


def _show(opened: Bundle) -> None:
    """The claims of a bundle that passed every check."""
    now = datetime.now(UTC)
    click.echo(json.dumps(claims.redacted(opened), indent=2, default=str))
    for one in horizon(opened.grants, opened.routes, opened.lease_until, now):
        click.echo(sentence(one, now))
        for warning in one.warnings:
            click.echo(f"  warning: {warning}")
    left = opened.accept_until - now
    click.echo(
        f"accepted for another {spell(left)}" if left > timedelta(0) else "accepted only within the leeway of clocks"
    )

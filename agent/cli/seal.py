"""``seal``: sign an identity and encrypt it to workers.

The bundle, which can be piped, goes to stdout; what is for a person goes to stderr.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from agent import bundle
from agent.cli.inputs import FILE, LENGTH, keys_in, read, variables_of
from agent.core.errors import Denied, Transient
from agent.core.model import Action, Cloud, OnExpiry
from agent.core.secret import Secret
from agent.core.text import instant
from agent.forward import local, signing
from agent.forward.local import adc_file
from agent.identity.forecast import Forecast, sentence
from agent.sender import Collected, assemble, aws, claims, deliver, files, gcp
from agent.sender.aws_identity import local_session
from agent.wire import userdata

_DOCUMENTS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "raw": lambda sealed: sealed,
    "armored": lambda sealed: userdata.armour(sealed).encode(),
    "cloud-config": lambda sealed: userdata.cloud_config(sealed).encode(),
    "mime": lambda sealed: userdata.mime(sealed).encode(),
    "systemd": lambda sealed: userdata.systemd(sealed).encode(),
}
WATCH_SECONDS: Final = 5.0
_USER_DATA_BYTES: Final = 16_384  # the limit of EC2, before base64


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
    click.option("--policy", type=FILE, help="AWS: a session policy (JSON file) that narrows the role."),
    click.option("--policy-arn", multiple=True, help="AWS: a managed policy that narrows the role; repeatable."),
    click.option("--external-id", help="AWS: the external id that the role's trust policy asks for."),
    click.option("--session-name", default="credential-agent", show_default=True, help="AWS: as CloudTrail shows it."),
    click.option("--duration", type=LENGTH, help="AWS: how long the session lasts (12h for keys, 1h for a role)."),
    click.option("--assume-expiry", type=LENGTH, help="AWS: take a session of unknown end to live for so long."),
    click.option("--mfa-serial", help="AWS: the multi-factor device; its code is asked for."),
    click.option("--from-adc", is_flag=True, help="The Google identity of this computer (application default)."),
    click.option("--scope", multiple=True, help="Google: an OAuth scope; repeatable. Default: cloud-platform."),
    click.option("--impersonate", metavar="EMAIL", help="Google: send a token of this service account instead."),
    click.option("--impersonate-lifetime", type=LENGTH, default="1h", show_default=True, help="Google: its lifetime."),
    click.option("--google-project", help="Google: the project that programs are told."),
    click.option("--send-refresh-token", is_flag=True, help="Google: send the user's refresh token. Long-lived!"),
    click.option("--send-service-account-key", is_flag=True, help="Google: send the account's key. Long-lived!"),
    click.option("--claims", "claims_file", type=FILE, help="Claims as JSON (see FORMAT.md); - reads stdin."),
    click.option(
        "--env",
        "env_names",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Send this variable of your environment, or this value: a command line is no place for a secret.",
    ),
    click.option("--withdraw", is_flag=True, help="Take away what is served, at once; carries no credential."),
)

_HOW = _options(
    click.option("--signer", type=FILE, required=True, help="Your private signing key."),
    click.option(
        "--recipient", type=FILE, multiple=True, required=True,
        help="A worker's public key: JWK, JWK Set or PEM; repeatable.",
    ),
    click.option("--issuer", help="Who is speaking: claim iss. Default: laptop:USER@HOST."),
    click.option("--subject", help="The stream that seq counts in: claim sub. Default: default."),
    click.option(
        "--audience", multiple=True, help="Which workers: claim aud; repeatable. Default: who holds a recipient key."
    ),
    click.option("--expires-in", type=LENGTH, help="Acceptance ends so long from now; serving does not. Default: 1h."),
    click.option("--lease", type=LENGTH, help="Serve for so long at most."),
    click.option("--on-expiry", type=click.Choice([o.value for o in OnExpiry]), help="What follows the end."),
    click.option("--seq", type=click.IntRange(0, 2**53 - 1), help="Default: milliseconds since 1970, which only grow."),
    click.option(
        "--form", type=click.Choice(["general", "flattened", "compact"]), default="general", show_default=True,
        help="The JWE serialization; compact is the shortest, for one recipient.",
    ),
)  # fmt: skip

_WHERE = _options(
    click.option("--out", type=FILE, help="A file, replaced in one step; - is stdout, the default."),
    click.option(
        "--format",
        "document",
        type=click.Choice(list(_DOCUMENTS)),
        default="raw",
        show_default=True,
        help="The bundle alone, or in a document for EC2 user-data: armored to paste into a comment of your own, "
        "cloud-config, a mime multipart, or systemd's systemd.credentials.",
    ),
    click.option(
        "--watch", is_flag=True, help="Go on: seal again before it ends and at every new sign-on, until Ctrl-C."
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
    if given["watch"] and (given["out"] is None or str(given["out"]) == "-") and given["to"] is None:
        raise click.UsageError("--watch needs a place to deliver to: --out FILE or --to")
    until = _sealed(given, datetime.now(UTC))
    if given["watch"]:
        _watch(given, until)


def _watch(given: dict[str, Any], until: datetime | None) -> None:
    """Seal again before what was sealed ends, and whenever somebody signs on anew; until Ctrl-C."""
    seen, due = local.marks(), local.successor_due(until, datetime.now(UTC))
    while True:
        time.sleep(WATCH_SECONDS)
        now, marks = datetime.now(UTC), local.marks()
        if marks == seen and (due is None or now < due):
            continue
        seen = marks
        try:
            due = local.successor_due(_sealed(given, now), now)
        except (Denied, Transient) as error:
            # What was delivered stays; an identity that has ended can be sealed again after the next sign-on.
            click.echo(f"not sealed: {error.message}" + (f"; {error.hint}" if error.hint else ""), err=True)
            due = now + local.RETRY


def _sealed(given: dict[str, Any], now: datetime) -> datetime | None:
    """Seal and deliver; returns until when the first cloud works."""
    target = _target(given["to"])
    base = claims.read_claims(read(given["claims_file"])) if given["claims_file"] is not None else claims.ClaimsFile()
    collected = _collect(given, now)
    variables = variables_of(given["env_names"], os.environ)
    env = {"type": "env", "id": "env", "variables": variables} if variables else None
    withdraw = given["withdraw"] or base.action is Action.WITHDRAW
    carries = bool(base.grants or collected or env)
    if withdraw and carries:
        raise click.UsageError("a withdrawal carries nothing: leave out what it would carry")
    if not withdraw and not carries:
        raise click.UsageError("nothing to seal: give --from-boto, --from-adc, --claims, --env or --withdraw")
    recipients = [key for path in given["recipient"] for key in keys_in(path, bundle.RecipientKey.parse_all)]
    (signer,) = keys_in(given["signer"], lambda text: (bundle.SigningKey.parse(text),))
    made = assemble.assemble(
        signer=signer,
        recipients=recipients,
        now=now,
        base=base,
        collected=collected,
        more=[env] if env else [],
        withdraw=withdraw,
        issuer=given["issuer"] or base.iss or signing.default_issuer(),
        subject=given["subject"],
        audiences=given["audience"],
        seq=given["seq"],
        accept_until=_until(given["expires_in"], now),
        lease_until=_until(given["lease"], now),
        on_expiry=OnExpiry(given["on_expiry"]) if given["on_expiry"] else None,
        form=given["form"],
    )
    for one in collected:
        click.echo(f"{one.cloud}: {one.who}", err=True)
        _warn(one.warnings)
    if made.action is Action.SET:
        _tell(made.forecast, made.accept_until, now)
    document = _DOCUMENTS[given["document"]](made.sealed)
    if given["document"] != "raw" and len(document) > _USER_DATA_BYTES:
        _warn([f"the document has {len(document)} bytes; EC2 user-data holds {_USER_DATA_BYTES}"])
    _put(document, given["out"], alone=target is None)
    if target is not None:
        _deliver(target, made.sealed, given["gce_endpoint"])
    what = "withdrawal" if made.action is Action.WITHDRAW else "bundle"
    click.echo(
        f"sealed {what} {made.issuer} {made.subject} seq {made.seq}: {len(made.sealed)} bytes, to {len(recipients)} "
        f"key{'s' if len(recipients) != 1 else ''}, accepted until {instant(made.accept_until)}",
        err=True,
    )
    return min((one.until for one in made.forecast if one.until is not None), default=None)


def _target(text: str | None) -> deliver.GceTarget | None:
    if text is None:
        return None
    target = deliver.GceTarget.parse(text)
    if target is None:
        raise click.UsageError(
            f"--to: expected gce:PROJECT/ZONE/INSTANCE or gce:PROJECT, either with #KEY, got {text!r}"
        )
    return target


def _collect(given: dict[str, Any], now: datetime) -> list[Collected]:
    """Collect what was asked for from the local identities."""
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
        session = local_session(given["profile"], given["region"], os.environ)
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
        adc_file=adc_file(),
        **({"scopes": given["scope"]} if given["scope"] else {}),
    )
    return gcp.from_adc(options, now=now)


def _policy(path: Path | None) -> str | None:
    """A session policy without its white space, which counts against the limit of 2,048 characters."""
    if path is None:
        return None
    try:
        text = json.dumps(json.loads(read(path)), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--policy {path}: expected JSON, got something else ({error})") from None
    if len(text) > 2048:
        raise click.UsageError(f"--policy {path}: expected at most 2048 characters without spaces, got {len(text)}")
    return text


def _tell(forecast: Sequence[Forecast], accept_until: datetime, now: datetime) -> None:
    """Print for each cloud until when it will work, and what should worry the sender."""
    for one in forecast:
        click.echo(sentence(one, now), err=True)
        warnings = list(one.warnings)
        if one.until is not None and now < one.until < accept_until:
            warnings.append(
                f"it may be accepted until {instant(accept_until)}, but a worker that starts after "
                f"{instant(one.until)} will have no {one.cloud} from it"
            )
        _warn(warnings)
    for cloud in Cloud:
        if cloud not in {one.cloud for one in forecast}:
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


def _until(length: timedelta | None, now: datetime) -> datetime | None:
    return None if length is None else now + length

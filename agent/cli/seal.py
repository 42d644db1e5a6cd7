"""``seal``: sign an identity and encrypt it to workers.

The bundle, which can be piped, goes to stdout; messages for a person go to stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from agent import bundle
from agent.cli.inputs import keys_in, policy_of, read, spare_inputs, variables_of
from agent.cli.seal_options import DOCUMENTS, EXAMPLES, HOW, WHAT, WHERE
from agent.cli.stderr import say
from agent.core.errors import AgentError
from agent.core.model import Action, Cloud, OnExpiry
from agent.core.secret import Secret
from agent.core.text import instant
from agent.forward import local, signing
from agent.forward.local import adc_file
from agent.identity.forecast import Forecast, sentence
from agent.sender import Collected, assemble, aws, claims, deliver, files, gcp
from agent.sender.aws_identity import local_session

WATCH_SECONDS: Final = 5.0
_USER_DATA_BYTES: Final = 16_384  # the limit of EC2, before base64


@click.command(epilog=EXAMPLES)
@WHAT
@HOW
@WHERE
def seal(**given: Any) -> None:
    """Make a bundle: an identity, signed and encrypted.

    Give what to send (--from-boto, --from-adc, --claims, --env) or --withdraw. The bundle goes to --out, to a GCE
    attribute (--to), or to stdout. stderr says for each cloud until when it will work, and who renews it.
    """
    if given["watch"] and (given["out"] is None or str(given["out"]) == "-") and given["to"] is None:
        raise click.UsageError("--watch needs a place to deliver to: --out FILE or --to")
    if given["watch"] and (
        given["seq"] is not None or (given["claims_file"] is not None and str(given["claims_file"]) == "-")
    ):
        raise click.UsageError("--watch seals more than once: leave out --seq, and give --claims a file")
    if given["watch"] and given["mfa_serial"] and not sys.stdin.isatty():
        raise click.UsageError("--watch asks for a new code of --mfa-serial each time: run it on a terminal")
    if given["out"] is not None or given["to"] is None:
        spare_inputs(given["out"], list(_inputs(given)))
    until = _sealed(given, datetime.now(UTC))
    if given["watch"]:
        _watch(given, until)


def _inputs(given: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The files that are read: those of options, and those in which this computer's own identity is."""
    yield from (("--recipient", path) for path in given["recipient"])
    named = (("--signer", "signer"), ("--claims", "claims_file"), ("--policy", "policy"))
    yield from ((option, given[name]) for option, name in named if given[name] is not None)
    if given["from_boto"]:
        yield from (("--from-boto", path) for path in local.aws_files())
    if given["from_adc"] or given["to"] is not None:
        yield "--from-adc" if given["from_adc"] else "--to", adc_file()


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
        except (AgentError, click.ClickException) as error:
            # What was delivered stays; an identity that has ended can be sealed again after the next sign-on. Files of
            # it may be half written just now, and a full disk may be emptied.
            hint = error.hint if isinstance(error, AgentError) else None
            say(f"not sealed: {error.message}" + (f"; {hint}" if hint else ""))
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
        say(f"{one.cloud}: {one.who}")
        _warn(one.warnings)
    if made.action is Action.SET:
        _tell(made.forecast, made.accept_until, now)
    document = DOCUMENTS[given["document"]](made.sealed)
    if given["document"] != "raw" and len(document) > _USER_DATA_BYTES:
        _warn([f"the document has {len(document)} bytes; EC2 user-data holds {_USER_DATA_BYTES}"])
    _put(document, given["out"], alone=target is None)
    if target is not None:
        _deliver(target, made.sealed, given["gce_endpoint"])
    what = "withdrawal" if made.action is Action.WITHDRAW else "bundle"
    say(
        f"sealed {what} {made.issuer} {made.subject} seq {made.seq}: {len(made.sealed)} bytes, to {len(recipients)} "
        f"key{'s' if len(recipients) != 1 else ''}, accepted until {instant(made.accept_until)}"
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
        policy=policy_of(given["policy"]),
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


def _tell(forecast: Sequence[Forecast], accept_until: datetime, now: datetime) -> None:
    """Print for each cloud until when it will work, and what should worry the sender."""
    for one in forecast:
        say(sentence(one, now))
        warnings = list(one.warnings)
        if one.until is not None and now < one.until < accept_until:
            warnings.append(
                f"it may be accepted until {instant(accept_until)}, but a worker that starts after "
                f"{instant(one.until)} will have no {one.cloud} from it"
            )
        _warn(warnings)
    for cloud in Cloud:
        if cloud not in {one.cloud for one in forecast}:
            say(f"{cloud}: not in this bundle; the worker's own identity, if it has one")


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"  warning: {warning}")


def _put(document: bytes, out: Path | None, *, alone: bool) -> None:
    """Write the document: to a file, or to stdout unless it was delivered elsewhere."""
    if out is not None and str(out) != "-":
        files.write(out, document, mode=files.PUBLIC, replace=True)
    elif out is not None or alone:
        click.echo(document, nl=not document.endswith(b"\n"))


def _deliver(target: deliver.GceTarget, sealed: bytes, endpoint: str) -> None:
    credentials, request = gcp.authorized(gcp.GcpOptions(scopes=(deliver.COMPUTE_SCOPE,)))
    deliver.GceAttribute(target, credentials=credentials, request=request, endpoint=endpoint).put(sealed)
    say(f"delivered to {target}")


def _until(length: timedelta | None, now: datetime) -> datetime | None:
    return None if length is None else now + length

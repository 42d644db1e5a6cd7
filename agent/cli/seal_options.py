"""The options of ``seal``: what to send, how to seal it, where to put it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from agent.cli.inputs import FILE, LENGTH
from agent.core.model import OnExpiry
from agent.sender import aws, deliver
from agent.wire import userdata

DOCUMENTS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "raw": lambda sealed: sealed,
    "armored": lambda sealed: userdata.armour(sealed).encode(),
    "cloud-config": lambda sealed: userdata.cloud_config(sealed).encode(),
    "mime": lambda sealed: userdata.mime(sealed).encode(),
    "systemd": lambda sealed: userdata.systemd(sealed).encode(),
}


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


WHAT = _options(
    click.option("--from-boto", is_flag=True, help="Send the AWS identity that boto3 finds on this computer."),
    click.option("--profile", help="AWS: profile to use. Default: AWS_PROFILE, else the default profile."),
    click.option(
        "--region", help="AWS: region that programs are told, and whose STS the worker asks. Default: the profile's."
    ),
    click.option(
        "--aws-mode",
        type=click.Choice([mode.value for mode in aws.Mode]),
        default=aws.Mode.AUTO.value,
        show_default=True,
        help="AWS: what to send. session-token: a session made from your keys. assume-role: a session of --role-arn. "
        "raw: your present session, unchanged. keys: an IAM user's keys, from which the worker makes sessions itself. "
        "auto: assume-role if --role-arn is given, else session-token, or raw if you have a session already.",
    ),
    click.option("--role-arn", help="AWS: the role to assume."),
    click.option(
        "--renew-role",
        type=click.Choice([aws.Renewal.LOCAL.value, aws.Renewal.INSTANCE.value]),
        help="AWS: let the worker assume --role-arn itself, and renew it. local: with your identity, which is sent for "
        "it. instance: with its own instance profile; no secret is sent.",
    ),
    click.option("--policy", type=FILE, help="AWS: file with a session policy (JSON) that restricts the role."),
    click.option(
        "--policy-arn", multiple=True, help="AWS: ARN of a managed policy that restricts the role. Repeatable."
    ),
    click.option("--external-id", help="AWS: external id, where the role's trust policy requires one."),
    click.option(
        "--session-name",
        default="credential-agent",
        show_default=True,
        help="AWS: name of the session, as CloudTrail shows it.",
    ),
    click.option(
        "--duration", type=LENGTH, help="AWS: how long the session lasts. Default: 12h for keys, 1h for a role."
    ),
    click.option(
        "--assume-expiry", type=LENGTH, help="AWS: how long your session still lasts, if boto3 does not know."
    ),
    click.option("--mfa-serial", help="AWS: ARN or serial of your multi-factor device. You are asked for its code."),
    click.option(
        "--from-adc", is_flag=True, help="Send the Google identity of this computer (application default credentials)."
    ),
    click.option("--scope", multiple=True, help="Google: OAuth scope. Repeatable. Default: cloud-platform."),
    click.option(
        "--impersonate", metavar="EMAIL", help="Google: impersonate this service account, and send its token."
    ),
    click.option(
        "--impersonate-lifetime",
        type=LENGTH,
        default="1h",
        show_default=True,
        help="Google: how long the impersonated token lasts.",
    ),
    click.option("--google-project", help="Google: id of the project that programs are told."),
    click.option(
        "--send-refresh-token",
        is_flag=True,
        help="Google: send your refresh token, so that the worker renews. It does not expire by itself!",
    ),
    click.option(
        "--send-service-account-key",
        is_flag=True,
        help="Google: send the service account's key, so that the worker renews. It does not expire by itself!",
    ),
    click.option(
        "--claims", "claims_file", type=FILE, help="File with claims and grants (JSON, see FORMAT.md); - reads stdin."
    ),
    click.option(
        "--env",
        "env_names",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Also send this variable of your environment, or this value, to programs on the worker. Give a secret by "
        "its name only: every user can read a command line. Repeatable.",
    ),
    click.option("--withdraw", is_flag=True, help="Withdraw what was sealed before: workers stop serving it at once."),
)

HOW = _options(
    click.option("--signer", type=FILE, required=True, help="File with your private signing key."),
    click.option(
        "--recipient",
        type=FILE,
        multiple=True,
        required=True,
        help="File with a worker's public key (JWK, JWK Set or PEM). Repeatable.",
    ),
    click.option("--issuer", help="The issuer (iss). Default: laptop:USER@HOST."),
    click.option(
        "--subject", help="The subject (sub). A bundle replaces those of the same issuer and subject. Default: default."
    ),
    click.option(
        "--audience",
        multiple=True,
        help="A name of the workers that shall accept it (aud). Repeatable. Default: all that hold a recipient's key.",
    ),
    click.option(
        "--expires-in",
        type=LENGTH,
        help="How long workers may accept it, such as 1h. It does not limit how long they serve it. Default: 1h.",
    ),
    click.option(
        "--lease",
        type=LENGTH,
        help="How long workers may serve it, such as 10h. Default: as long as its credentials last.",
    ),
    click.option(
        "--on-expiry",
        type=click.Choice([o.value for o in OnExpiry]),
        help="What workers serve afterwards. deny: nothing. fallback: the machine's own identity. Default: the worker "
        "decides.",
    ),
    click.option(
        "--seq",
        type=click.IntRange(0, 2**53 - 1),
        help="The sequence number (seq). Workers refuse one that is not higher than the last. Default: milliseconds "
        "since 1970.",
    ),
    click.option(
        "--form",
        type=click.Choice(["general", "flattened", "compact"]),
        default="general",
        show_default=True,
        help="The JWE serialization. compact is the shortest, and allows one recipient only.",
    ),
)

WHERE = _options(
    click.option("--out", type=FILE, help="File for the bundle, replaced atomically; - is stdout, the default."),
    click.option(
        "--format",
        "document",
        type=click.Choice(list(DOCUMENTS)),
        default="raw",
        show_default=True,
        help="raw: the bundle alone. The others are for EC2 user-data. armored: lines to paste into a comment of your "
        "own document. cloud-config: a whole document. mime: a multipart document. systemd: systemd.credentials.",
    ),
    click.option(
        "--watch",
        is_flag=True,
        help="Keep running: seal again before it ends, and whenever you sign on anew, until Ctrl-C.",
    ),
    click.option(
        "--to",
        help="Also write it to a GCE metadata attribute: gce:PROJECT/ZONE/INSTANCE[#KEY], or gce:PROJECT[#KEY] for all "
        "VMs of a project.",
    ),
    click.option(
        "--gce-endpoint", default=deliver.COMPUTE, show_default=True, help="Base URL of the Compute Engine API."
    ),
)


EXAMPLES: Final = """\b
Send your AWS identity to one worker, in a file:
  credential-agent seal --from-boto --signer me.jwk --recipient worker.pub.jwk --out bundle.jose
Send a role for one bucket only, for a working day, renewed by the worker:
  credential-agent seal --from-boto --role-arn ROLE --policy bucket.json --renew-role local --lease 10h ...
Withdraw it:
  credential-agent seal --withdraw --signer me.jwk --recipient worker.pub.jwk --out bundle.jose
"""

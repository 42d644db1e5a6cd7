"""``forward``: give the identity of this computer to a cluster, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Final

import click

from agent.cli.inputs import FILE, LENGTH, read, variables_of

_EXAMPLES: Final = """\b
Every worker of a Dask cluster, present and future:
  credential-agent forward --dask tls://scheduler:8786 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
Two hosts, one role, for a working day; what is kept there ends by itself:
  credential-agent forward --ssh w1 --ssh w2 --role-arn ROLE --lease 10h --keep
What to add to the workers' user-data, so that they believe this computer:
  credential-agent forward --launch-line
"""


@click.command(epilog=_EXAMPLES)
@click.option("--dask", metavar="ADDRESS", help="The scheduler of a Dask cluster.")
@click.option("--tls-ca", type=FILE, help="Dask: the certificate authority of the cluster.")
@click.option("--tls-cert", type=FILE, help="Dask: your certificate.")
@click.option("--tls-key", type=FILE, help="Dask: its key.")
@click.option("--ssh", multiple=True, metavar="HOST", help="A host, as ssh takes it; repeatable.")
@click.option("--launch-line", is_flag=True, help="Print the line by which workers are told to believe this computer.")
@click.option("--profile", help="AWS: the profile, instead of AWS_PROFILE or the default.")
@click.option("--no-aws", is_flag=True, help="Send no AWS identity.")
@click.option("--no-gcp", is_flag=True, help="Send no Google identity.")
@click.option("--role-arn", help="AWS: assume this role and send its session.")
@click.option("--policy", type=FILE, help="AWS: a session policy (JSON file) that narrows the role.")
@click.option("--duration", type=LENGTH, help="AWS: how long a session lasts.")
@click.option("--impersonate", metavar="EMAIL", help="Google: send tokens of this service account instead.")
@click.option(
    "--env", multiple=True, metavar="NAME[=VALUE]", help="Send a variable to programs that start from then on."
)
@click.option("--lease", type=LENGTH, help="Workers serve for so long at most without hearing from this program.")
@click.option(
    "--renew",
    type=click.Choice(["here", "worker", "instance", "never"]),
    default="here",
    show_default=True,
    help="Who renews: this program, or the workers with what is sent to them for it, or with their own role.",
)
@click.option("--account", multiple=True, help="To machines of this AWS account. Default: that of the identity.")
@click.option("--role", multiple=True, help="Of them only those with this role.")
@click.option("--project", multiple=True, help="To instances of this Google project. Default: that of the identity.")
@click.option("--service-account", multiple=True, help="Of them only those that run as this.")
@click.option("--instance-id", multiple=True, help="Of all of them only this one.")
@click.option("--thumbprint", multiple=True, help="A worker's key that you have compared: it needs no other proof.")
@click.option("--without-evidence", is_flag=True, help="Who is reached is who was meant. Only on encrypted channels.")
@click.option("--issuer", help="Who is speaking. Default: laptop:USER@HOST.")
@click.option("--signer", type=FILE, help="Your signing key. Default: one in your configuration directory.")
@click.option("--keep", is_flag=True, help="At the end let the workers keep it, as long as it lives.")
@click.option("--once", is_flag=True, help="Serve those who are there now, keep it there, and end.")
def forward(**given: Any) -> None:
    """Give the identity of this computer to every worker of a cluster, and renew it until Ctrl-C.

    Agents run on the workers. It goes to machines of the identity's own account or project; what proves where a machine
    is it asks AWS or Google. At the end it is taken away again, unless --keep.
    """
    from agent import forward as face

    if given["launch_line"]:
        click.echo(face.launch_line(given["signer"]))
        return
    if bool(given["dask"]) == bool(given["ssh"]):
        raise click.UsageError("expected one of --dask ADDRESS and --ssh HOST")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    wanted = _wanted(given)
    if given["dask"]:
        with _client(given) as client, face.dask(client, **wanted) as running:
            status = _until(ended, running, once=given["once"])
    else:
        with face.ssh(given["ssh"], **wanted) as running:
            status = _until(ended, running, once=given["once"])
    if not status.served:
        raise click.exceptions.Exit(1)


def _until(ended: threading.Event, running: Any, *, once: bool) -> Any:
    try:
        while not once and not ended.wait(1.0):
            pass
    except KeyboardInterrupt:
        click.echo(err=True)
    return running.status()


def _wanted(given: dict[str, Any]) -> Any:
    policy: Path | None = given["policy"]
    names = {
        "accounts": "account",
        "roles": "role",
        "projects": "project",
        "service_accounts": "service_account",
        "instance_ids": "instance_id",
    }
    return {
        "aws": None if given["no_aws"] else given["profile"] or "auto",
        "gcp": None if given["no_gcp"] else "auto",
        "environ": variables_of(given["env"], os.environ),
        "role_arn": given["role_arn"],
        "policy": None if policy is None else read(policy).decode(),
        "duration": given["duration"],
        "impersonate": given["impersonate"],
        "lease": given["lease"],
        "renew": given["renew"],
        "thumbprints": given["thumbprint"],
        "without_evidence": given["without_evidence"] or None,
        "issuer": given["issuer"],
        "signer": given["signer"],
        "on_exit": "keep" if given["keep"] or given["once"] else "withdraw",
        "progress": True,
        **{name: given[option] for name, option in names.items() if given[option]},
    }


def _client(given: dict[str, Any]) -> Any:
    try:
        import distributed as untyped
    except ImportError:
        raise click.UsageError(
            "--dask needs the package distributed beside this program: pip install 'credential-agent[dask]'"
        ) from None
    distributed: Any = untyped
    more = {}
    if given["tls_ca"] is not None:
        more["security"] = distributed.Security(
            tls_ca_file=str(given["tls_ca"]),
            tls_client_cert=None if given["tls_cert"] is None else str(given["tls_cert"]),
            tls_client_key=None if given["tls_key"] is None else str(given["tls_key"]),
            require_encryption=True,
        )
    try:
        return distributed.Client(given["dask"], set_as_default=False, **more)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise click.UsageError(f"--dask {given['dask']}: cannot connect: {error}") from None

"""``forward``: give the identity of this computer to a cluster, until Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from agent.cli.exits import EX_UNAVAILABLE
from agent.cli.inputs import FILE, LENGTH, policy_of, variables_of
from agent.cli.stderr import say
from agent.core.errors import CourierError

REACH_SECONDS: Final = 10.0
LAST_PORT: Final = 65_535
_ADDRESS: Final = re.compile(
    r"(?:(?P<scheme>tcp|tls|ws|wss|ucx)://)?\[?(?P<host>[^/\[\]@?#\s]+)\]?:(?P<port>[0-9]{1,5})/?"
)

_EXAMPLES: Final = """\b
Every worker of a Dask cluster, present and future:
  credential-agent forward --dask tls://scheduler:8786 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
Two hosts, one role, for a working day; what is kept there ends by itself:
  credential-agent forward --ssh w1 --ssh w2 --role-arn ROLE --lease 10h --keep
What to add to the workers' user-data, so that they believe this computer:
  credential-agent forward --launch-line
"""


@click.command(epilog=_EXAMPLES)
@click.option("--dask", metavar="ADDRESS", help="Send to every worker of the Dask cluster with this scheduler.")
@click.option("--tls-ca", type=FILE, help="Dask: file with the cluster's certificate authority.")
@click.option("--tls-cert", type=FILE, help="Dask: file with your certificate.")
@click.option("--tls-key", type=FILE, help="Dask: file with the key of your certificate.")
@click.option("--ray", metavar="ADDRESS", help="Send to every node of the Ray cluster at HOST:PORT or ray://HOST:PORT.")
@click.option("--ssh", multiple=True, metavar="HOST", help="Send to this host by ssh. Repeatable.")
@click.option(
    "--launch-line",
    is_flag=True,
    help="Print the line for the workers' user-data that makes them accept bundles of this computer, and exit.",
)
@click.option("--profile", help="AWS: profile to use. Default: AWS_PROFILE, else the default profile.")
@click.option("--no-aws", is_flag=True, help="Send no AWS identity.")
@click.option("--no-gcp", is_flag=True, help="Send no Google identity.")
@click.option("--role-arn", help="AWS: assume this role, and send its session.")
@click.option("--policy", type=FILE, help="AWS: file with a session policy (JSON) that restricts the role.")
@click.option("--duration", type=LENGTH, help="AWS: how long a session lasts, such as 1h.")
@click.option("--assume-expiry", type=LENGTH, help="AWS: how long your session still lasts, if boto3 does not know.")
@click.option("--impersonate", metavar="EMAIL", help="Google: impersonate this service account, and send its tokens.")
@click.option(
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Also send this variable of your environment, or this value, to programs on the workers. Repeatable.",
)
@click.option("--lease", type=LENGTH, help="Workers stop serving this long after the last renewal, such as 10h.")
@click.option(
    "--renew",
    type=click.Choice(["here", "worker", "instance", "never"]),
    default="here",
    show_default=True,
    help="Who renews. here: this program. worker: the workers, with a credential that is sent to them for it. "
    "instance: the workers, with their own role. never: nobody.",
)
@click.option(
    "--account",
    multiple=True,
    help="Send only to machines of this AWS account. Repeatable. Default: the identity's own account.",
)
@click.option("--role", multiple=True, help="Send only to EC2 machines with this role. Repeatable.")
@click.option(
    "--project",
    multiple=True,
    help="Send only to instances of this Google project. Repeatable. Default: the identity's own project.",
)
@click.option(
    "--service-account", multiple=True, help="Send only to GCE instances that run as this service account. Repeatable."
)
@click.option("--instance-id", multiple=True, help="Send only to this instance. Repeatable.")
@click.option(
    "--thumbprint",
    multiple=True,
    help="Send to the worker with this key without further proof; compare it yourself first. Repeatable.",
)
@click.option(
    "--without-evidence",
    is_flag=True,
    help="Send to every worker that is reached, without proof of its machine. Only over encrypted connections.",
)
@click.option("--issuer", help="The issuer (iss) of the bundles. Default: laptop:USER@HOST.")
@click.option(
    "--signer",
    type=FILE,
    help="File with your signing key, which must be there. Default: a key in your configuration directory, made at "
    "first use.",
)
@click.option("--keep", is_flag=True, help="At the end, leave the identity with the workers until it expires.")
@click.option(
    "--once", is_flag=True, help="Send to the workers that are there now, leave the identity with them, and exit."
)
def forward(**given: Any) -> None:
    """Give this computer's identity to a cluster.

    Sends it to the agent on every worker, renews it until Ctrl-C, and takes it away then, except with --keep. Only
    machines of the identity's own AWS account or Google project get it; AWS or Google confirms where each machine runs.
    Exits 69 if the cluster cannot be reached, or no worker was served at any time.
    """
    from agent import forward as face

    if given["launch_line"]:
        _say_what_is_made(given["signer"])
        click.echo(face.launch_line(given["signer"]))
        return
    if [bool(given[one]) for one in ("dask", "ray", "ssh")].count(True) != 1:
        raise click.UsageError("expected one of --dask ADDRESS, --ray ADDRESS and --ssh HOST")
    begin: Callable[..., Any]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_as_before())
        if given["dask"]:
            from agent.forward.unpickling import texts_and_errors_only

            # This program does nothing else, so whoever is the scheduler has nothing to run here.
            stack.enter_context(texts_and_errors_only())
            logging.getLogger("distributed.protocol").setLevel(logging.CRITICAL + 1)  # it would log such a pickle whole
            first = stack.enter_context(_client(given))
            # Dask gives up after half a minute without network; a program that does nothing else goes on.
            begin = functools.partial(
                face.dask, first, reconnect=lambda: stack.enter_context(_client(given, timeout="10s"))
            )
        elif given["ray"]:
            begin = face.ray
            stack.callback(_connect(given["ray"]).shutdown)
        else:
            begin = functools.partial(face.ssh, given["ssh"])
        # After that: ray has a handler of its own for SIGTERM.
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) has it
                signal.signal(number, lambda *_: ended.set())
        wanted = _wanted(given)
        _say_what_is_made(given["signer"])
        with begin(**wanted) as running:
            served = _until(ended, running, once=given["once"])
    if not served:
        raise click.exceptions.Exit(EX_UNAVAILABLE)


def _say_what_is_made(signer: Path | None) -> None:
    """A first key: whoever expected another one (as another user, with another HOME) hears why workers refuse it."""
    from agent.forward import signing

    if signer is None and not os.path.lexists(path := signing.default_path()):
        signing.named(None)
        say(f"made a signing key: {path}")


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Whoever calls this as a function goes on afterwards, and a handler of ours would take its end from it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was made in C, and cannot be made here
                signal.signal(number, handler)


def _connect(address: str) -> Any:
    from agent.forward.on_ray import imported

    ray = imported()
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:([0-9]{1,5})/?", address)
    if found is None or int(found[2]) > LAST_PORT:
        raise click.UsageError(f"--ray: expected ray://HOST:PORT or HOST:PORT, got {address!r}")
    try:
        # Where nobody listens ray itself tries for minutes, and takes no signal meanwhile.
        socket.create_connection((found[1], int(found[2])), REACH_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        said = str(error).strip().splitlines()
        raise CourierError(f"--ray {address}: cannot connect: {said[0] if said else type(error).__name__}") from None
    return ray


def _until(ended: threading.Event, running: Any, *, once: bool) -> bool:
    """Wait for the end; whether any worker was served meanwhile: the cluster may have gone before us."""
    served = False
    try:
        served = running.status().served > 0
        while not once and not ended.wait(1.0):
            served = running.status().served > 0 or served
    except KeyboardInterrupt:
        say()
    return running.status().served > 0 or served


def _wanted(given: dict[str, Any]) -> Any:
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
        "policy": policy_of(given["policy"]),
        "duration": given["duration"],
        "assume_expiry": given["assume_expiry"],
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


def _client(given: dict[str, Any], **more: Any) -> Any:
    try:
        import distributed as untyped
    except ImportError:
        raise click.UsageError(
            "--dask needs the package distributed beside this program: pip install 'credential-agent[dask]'"
        ) from None
    distributed: Any = untyped
    address = _ADDRESS.fullmatch(given["dask"])
    # Of some that it does not understand distributed neither ends nor says so.
    if address is None or int(address["port"]) > LAST_PORT:
        raise click.UsageError(f"--dask: expected tcp://HOST:PORT or tls://HOST:PORT, got {given['dask']!r}")
    if (address["scheme"] or "").startswith(("tls", "wss")):
        more["security"] = _security(distributed, given)
    elif given["tls_ca"] or given["tls_cert"] or given["tls_key"]:
        raise click.UsageError(f"--tls-ca and its like are for tls://, and --dask is {given['dask']}")
    try:
        # Where nobody listens distributed itself tries for half a minute, and does not tell why.
        socket.create_connection((address["host"], int(address["port"])), REACH_SECONDS).close()
        client = distributed.Client(given["dask"], set_as_default=False, **more)
        for topic in ("print", "warn"):
            # What tasks print by dask's print() comes to every client, with whatever a terminal takes for a command.
            client.subscribe_topic(topic, _unheard)
        return client
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise CourierError(f"--dask {given['dask']}: cannot connect: {error}") from None


def _unheard(_event: Any) -> None:
    """Nothing."""


def _security(distributed: Any, given: dict[str, Any]) -> Any:
    """What a cluster with TLS needs: the options, or else what Dask itself is configured with."""
    names = {"--tls-ca": "tls_ca_file", "--tls-cert": "tls_client_cert", "--tls-key": "tls_client_key"}
    files = {member: given[option[2:].replace("-", "_")] for option, member in names.items()}
    try:
        found = distributed.Security(
            require_encryption=True, **{member: str(path) for member, path in files.items() if path is not None}
        )
        # Read here: of a file that cannot be read distributed says nothing until it ends, and it ends minutes later.
        if found.get_connection_args("client")["ssl_context"] is not None:
            return found
    except (OSError, ValueError) as error:  # ssl.SSLError among them
        told = ", ".join(
            f"{option} {given[option[2:].replace('-', '_')]}" for option, member in names.items() if files[member]
        )
        raise click.UsageError(
            f"--dask {given['dask']}: {told or 'what dask is configured with'} cannot be used: {error}"
        ) from None
    raise click.UsageError(
        f"--dask {given['dask']} needs --tls-ca and --tls-cert (and --tls-key, unless that file has the key too), "
        "or the same in dask's configuration (distributed.comm.tls)"
    )

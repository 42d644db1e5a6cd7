"""The environment file for containers (``--env-file`` of Docker, Podman and nerdctl).

A container has no loopback of ours, no token file, and no name server that knows ``metadata.google.internal``. It does
reach the metadata addresses, which the redirection leads to the agent. So this file names addresses only, and only
those that SDKs accept and the redirection covers.

For AWS it has ECS's form, a *relative* URI at 169.254.170.2, since some SDKs know no other, and those that do prefer
it. It carries no bearer token: as with ECS the unguessable id in the path is the permission (:func:`path_id`).

Pure functions: text in, text out.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping

from agent.core.secret import Secret
from agent.host.envfile import HEADER, aws_defaults, checked, google_defaults, merge_no_proxy
from agent.wire import names


def path_id(key: bytes, machine: str) -> Secret:
    """The last segment of the relative URI.

    It stays the same over a restart and a reboot, since a container keeps the environment that it was created with; it
    differs on every machine, clones of one image included.

    Args:
        key: a secret of the agent's, kept over restarts.
        machine: text that tells this machine from another with the same key.
    """
    mac = hmac.digest(key, b"container path\0" + machine.encode(), hashlib.sha256)
    return Secret(urlsafe_b64encode(mac[:24]).decode("ascii"))


def pointers(*, aws: bool, gcp: bool, path: Secret, region: str | None = None, no_proxy: str = "") -> dict[str, str]:
    """The variables that lead every SDK in a container to the agent.

    Args:
        aws: AWS is configured here.
        gcp: Google is served, pending or ended.
        path: the id in the relative URI.
        region: the AWS region, when it is known.
        no_proxy: an existing list of hosts, to which ours are added.
    """
    variables: dict[str, str] = {}
    if aws:
        variables["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = names.ECS_PREFIX + path.reveal()
        variables.update(aws_defaults(region))
    if gcp:
        variables.update(google_defaults(names.METADATA_IPV4))
    if variables:
        variables.update(dict.fromkeys(("NO_PROXY", "no_proxy"), merge_no_proxy(no_proxy, names.METADATA_ADDRESSES)))
    return variables


def render(variables: Mapping[str, str]) -> bytes:
    """The text of an ``--env-file``: a line for each, everything behind ``=`` taken as it is, quotes included.

    Raises:
        HostError: a name or a value cannot stand in such a file.
    """
    lines = [f"{name}={value}\n" for name, value in checked(variables, "container environment file")]
    return (HEADER + "".join(lines)).encode()

"""Who is at the other end of a worker's connection, for the audit."""

from __future__ import annotations

import ipaddress
from typing import Final

from agent.core.served import Who
from agent.host.sockdiag import SocketDiagnosis
from agent.serve.fairness import Endpoint

_UNKNOWN: Final = Who()


class Asking:
    """Asks the kernel (:data:`agent.serve.audit.AskWho`): some 15 microseconds.

    Args:
        diagnosis: of sockets.
    """

    def __init__(self, diagnosis: SocketDiagnosis) -> None:
        self._diagnosis = diagnosis

    def __call__(self, peer: Endpoint, local: Endpoint) -> Who:
        """Who has the socket at ``peer``: a user here, or an address that is another machine's or a container's."""
        try:
            holder = self._diagnosis.holder(peer, local)
        except OSError:
            return _UNKNOWN  # it has left, or the kernel tells no more
        if holder is not None:
            return Who(uid=holder.user, cgroup=holder.cgroup & (1 << 62) - 1)
        return _UNKNOWN if _is_loopback(peer[0]) else Who(address=peer[0][:64])


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback

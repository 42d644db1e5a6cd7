"""The service as it is installed: its configuration, its user, what is typed about it, systemd's exit statuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

CONFIG_PATH: Final = Path("/etc/credential-agent/config.toml")
SERVICE_USER: Final = "credential-agent"
SERVER_USER: Final = "credential-agent-serve"
"""Of the process that answers workers, in a unit of its own."""
OWNER: Final = f"{SERVICE_USER}:{SERVICE_USER}"
WORKERS: Final = "credential-workers"
"""The group of those who may read the environment file and ask the couriers' socket."""
OPERATORS: Final = "credential-operators"
"""The group of those who may ask the control socket."""
OURS: Final = f"chown root:{SERVICE_USER} {{0}} && chmod 0640 {{0}}"
"""What makes a file the service's to read, and nobody else's."""
SERVE_SOCKET: Final = Path("/run/credential-agent-serve.sock")
"""Where the agent tells the unit that answers workers what is to be served."""
PROGRAM: Final = Path("/opt/credential-agent/bin/credential-agent")
JOURNAL: Final = "journalctl --no-pager -n 20 -u credential-agent"
START: Final = "systemctl restart credential-agent"
CAT: Final = "systemctl cat credential-agent.service"
RELOAD: Final = "systemctl reload credential-agent"
KERNEL_JOURNAL: Final = "journalctl --no-pager -k -n 40"
MEMORY_LIMIT: Final = "systemctl show -p MemoryMax credential-agent"

#: The exit statuses of systemd itself, before the program ran (systemd.exec(5), "Process Exit Codes"): cause, next.
BEFORE_IT: Final[Mapping[str, tuple[str, str]]] = {
    "203": ("the program is not there or cannot be executed", "ls -l /opt/credential-agent/bin/credential-agent"),
    "216": ("a group of the service is not there", f"systemd-sysusers && {START}"),
    "217": ("the service's user is not there", f"systemd-sysusers && {START}"),
    "226": ("systemd cannot make the sandbox", JOURNAL),
    "233": ("systemd cannot prepare /run/credential-agent", "df /run"),
    "238": (
        "/var/lib/credential-agent is another user's, or on a read-only file system",
        f"chown -R {OWNER} /var/lib/credential-agent",
    ),
    "243": ("systemd cannot pass a credential of LoadCredential=", JOURNAL),
}

"""A machine's network without the machine: namespaces for a host, a cloud, containers on a bridge and a neighbour.

What the packet filter does can be seen here in a second; what systemd does needs a machine that boots
(:mod:`tests.system.machine`). The cloud answers ``machine`` at every metadata address, whatever the port; on the host
the agent's endpoint answers ``agent``. So an answer says who gave it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from tests.system.leftovers import Claim

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ADDRESSES: Final = (
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd20:ce::254", "fd00:ec2::23",
)  # fmt: skip
AGENT_PORT: Final = 16925
AGENT_UID: Final = 998
_numbers = itertools.count()

_SERVE = """
import selectors, socket, sys
word, listeners, chosen = sys.argv[1].encode(), sys.argv[2:], selectors.DefaultSelector()
for endpoint in listeners:
    host, port = endpoint.rsplit(",", 1)
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in host:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
    else:
        s.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
    s.bind((host, int(port)))
    s.listen(4096)
    chosen.register(s, selectors.EVENT_READ)
print("up", flush=True)
while True:
    for key, _ in chosen.select():
        if key.data is None:
            c, _ = key.fileobj.accept()
            chosen.register(c, selectors.EVENT_READ, True)  # open until the caller goes
            c.sendall(word)
        else:
            chosen.unregister(key.fileobj)
            key.fileobj.close()
"""

ASK: Final = """
import socket, sys
address, port, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
said, kept = [], []
for _ in range(many):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(1.0)
    try:
        s.connect((address, port))
        word = s.recv(100).decode() or "nothing"
        said.append("agent" if " 508 " in word else word)
        kept.append(s)
    except OSError as error:
        said.append("refused" if not isinstance(error, TimeoutError) else "timeout")
        if said[-1] in sys.argv[4:]:
            break
words = [f"{said.count(word)} {word}" for word in sorted(set(said))] if many > 1 else said
print(", ".join(words))
"""


def missing() -> str | None:
    """Why there can be none here; ``None``: there can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    absent = [
        tool for tool in ("ip", "nft", "setpriv") if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
    ]
    return f"needs {', '.join(absent)} (apt-get install nftables iproute2 util-linux)" if absent else None


def call(*command: str, text: str | None = None) -> str:
    """Run a command; its output. An error shows what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=text)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)[:300]}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Lab:
    """The namespaces: ``host`` in the middle; ``cloud`` and ``neighbour`` on cables, ``job`` behind a bridge.

    Args:
        bridge: the name of the host's interface that containers are behind.
        masquerade: hide containers behind the host's address, as Docker does.
    """

    def __init__(self, bridge: str = "docker0", *, masquerade: bool = True) -> None:
        self.name = f"lab{os.getpid() % 100000}x{next(_numbers)}"
        self.host, self.cloud, self.job, self.neighbour = (f"{self.name}{letter}" for letter in "hcjn")
        self.bridge, self._masquerade = bridge, masquerade
        self._processes: list[subprocess.Popen[str]] = []
        self._claims: list[Claim] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        for space in (self.host, self.cloud, self.job, self.neighbour):
            self._claims.append(Claim("netns", space))
            call("ip", "netns", "add", space)
            call("ip", "-n", space, "link", "set", "lo", "up")
        # eth0 to the cloud, eth1 to a network with a neighbour on it.
        for number, space in enumerate((self.cloud, self.neighbour)):
            call(
                "ip",
                "-n",
                self.host,
                "link",
                "add",
                f"eth{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            for there, interface, last in ((space, "eth0", 1), (self.host, f"eth{number}", 2)):
                call("ip", "-n", there, "address", "add", f"10.7{number}.0.{last}/24", "dev", interface)
                call("ip", "-n", there, "address", "add", f"fd7{number}::{last}/64", "dev", interface, "nodad")
                call("ip", "-n", there, "link", "set", interface, "up")
        call("ip", "-n", self.host, "route", "add", "default", "via", "10.70.0.1")
        call("ip", "-n", self.host, "-6", "route", "add", "default", "via", "fd70::1")
        call("ip", "-n", self.host, "link", "add", self.bridge, "type", "bridge")
        call("ip", "-n", self.host, "link", "set", self.bridge, "up")
        call("ip", "-n", self.host, "link", "add", "port0", "type", "veth", "peer", "name", "eth0", "netns", self.job)
        call("ip", "-n", self.host, "link", "set", "port0", "master", self.bridge, "up")
        for there, interface, last in ((self.host, self.bridge, 1), (self.job, "eth0", 2)):
            call("ip", "-n", there, "address", "add", f"172.17.0.{last}/16", "dev", interface)
            call("ip", "-n", there, "address", "add", f"fd17::{last}/64", "dev", interface, "nodad")
        call("ip", "-n", self.job, "link", "set", "eth0", "up")
        # Whoever is not the cloud sends everything through the host.
        for space, gateway in ((self.job, ("172.17.0.1", "fd17::1")), (self.neighbour, ("10.71.0.2", "fd71::2"))):
            call("ip", "-n", space, "route", "add", "default", "via", gateway[0])
            call("ip", "-n", space, "-6", "route", "add", "default", "via", gateway[1])
        for network, via in (("172.17.0.0/16", "10.70.0.2"), ("10.71.0.0/24", "10.70.0.2")):
            call("ip", "-n", self.cloud, "route", "add", network, "via", via)
        for network in ("fd17::/64", "fd71::/64"):
            call("ip", "-n", self.cloud, "-6", "route", "add", network, "via", "fd70::2")
        self.at(self.host, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        if self._masquerade:
            self.nft(
                "table inet theirs {\n chain post {\n type nat hook postrouting priority 100;\n"
                ' oifname "eth0" ip saddr 172.17.0.0/16 masquerade\n }\n}\n'
            )
        for address in ADDRESSES:
            call("ip", "-n", self.cloud, "address", "add", address, "dev", "lo")
        self.serve(self.cloud, "machine", *(f"{host},{port}" for host in ("0.0.0.0", "::") for port in (80, 443, 8080)))

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        for claim in self._claims:
            claim.release()

    def serve(self, space: str, word: str, *listeners: str, uid: int = 0) -> subprocess.Popen[str]:
        """Answer ``word`` at each ``HOST,PORT``."""
        process = subprocess.Popen(
            [*self._enter(space, uid), sys.executable, "-I", "-S", "-c", _SERVE, word, *listeners],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", f"{word} does not start"
        return process

    def serve_agent(self) -> None:
        """The agent's endpoint, where the socket unit has it."""
        hosts = ("127.0.0.1", "::1", "169.254.171.2", "fd6c:9e1f:25b2::2")
        self.serve(self.host, "agent", *(f"{host},{AGENT_PORT}" for host in hosts), uid=AGENT_UID)

    def serve_agent_that_answers(self) -> None:
        """The same, with the fingerprint by which the agent is known to its own probe. It still answers ``agent``."""
        hosts = ("127.0.0.1", "::1", "169.254.171.2", "fd6c:9e1f:25b2::2")
        self.serve(self.host, "HTTP/1.1 508 agent\r\n", *(f"{host},{AGENT_PORT}" for host in hosts), uid=AGENT_UID)

    def _enter(self, space: str, uid: int = 0) -> list[str]:
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        return ["ip", "netns", "exec", space, *become]

    def at(self, space: str, *command: str, uid: int = 0, text: str | None = None) -> str:
        """Run a command in a namespace."""
        return call(*self._enter(space, uid), *command, text=text)

    def nft(self, script: str) -> None:
        """Load rules into the host."""
        self.at(self.host, "nft", "-f", "-", text=script)

    def ask(
        self, address: str, port: int = 80, *, uid: int = 0, space: str | None = None, many: int = 1, last: str = ""
    ) -> str:
        """Who answers: ``agent``, ``machine``, ``refused`` or ``timeout``. With ``many``, how often which; none after ``last``."""
        command = [sys.executable, "-I", "-S", "-c", ASK, address, str(port), str(many), last]
        return self.at(space or self.host, *command, uid=uid).strip()

    def start(self, space: str, *command: str) -> subprocess.Popen[str]:
        """Start something that runs until the end."""
        process = subprocess.Popen([*self._enter(space), *command], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        self._processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL) -> None:
        """End what was started."""
        process.send_signal(number)
        process.wait(10)

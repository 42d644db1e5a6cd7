"""Ways around the rules, each tried on a real kernel: none ends at the machine's service, or it is said in the README."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import nft, ranges
from agent.host.bounds import Bounds
from tests.system import lab
from tests.system.lab import ADDRESSES, AGENT_PORT, AGENT_UID, REPOSITORY, Lab, call
from tests.system.leftovers import Claim

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

METADATA = "169.254.169.254"
ALICE = 1000
DEFAULT = nft.Workers(uids=ranges.parse_uids(["1000-4294967293"]), bridges=("docker0",))
LEAD = nft.ruleset(DEFAULT, port=AGENT_PORT, agent_uid=AGENT_UID)

# A socket of a kind of its own; what it hears at ADDRESS:PORT.
ASK = """
import socket, struct, sys
address, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 262 if how == "mptcp" else 0)
s.settimeout(2)
try:
    if how.startswith("dev:"):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, how[4:].encode() + b"\\0")
    elif how.startswith("from:"):
        s.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
        s.bind((how[5:], 0))
    elif how.startswith("source route"):
        hop = socket.inet_aton(how.partition(":")[2] or "10.70.0.1")
        s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + hop + b"\\0")
    elif how.startswith("out by:"):
        s.setsockopt(socket.IPPROTO_IP, 50, struct.pack(">I", socket.if_nametoindex(how[7:])))  # IP_UNICAST_IF
    if how == "fast open":
        try:
            s.sendto(b"GET / HTTP/1.0\\r\\n\\r\\n", socket.MSG_FASTOPEN, (address, port))
        except BlockingIOError:  # on its way
            pass
    else:
        s.connect((address, port))
    print(s.recv(100).decode())
except ConnectionRefusedError:
    print("refused")
except OSError as error:
    print(type(error).__name__)
"""

# The other end of a tunnel without Ethernet: one SYN to ADDRESS from outside, and the flags of what comes back.
TUNNEL = """
import fcntl, os, select, socket, struct, subprocess, sys
address = sys.argv[1]
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22s", b"wg9", 0x1001, b""))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
for command in ("address add 10.99.0.2/24 dev wg9", "link set wg9 up"):
    subprocess.run(["ip", *command.split()], check=True)

def total(data):
    value = sum(struct.unpack(f">{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF

source, target = socket.inet_aton("10.99.0.1"), socket.inet_aton(address)
def segment(check):
    return struct.pack(">HHIIBBHHH", 40000, 80, 1000, 0, 5 << 4, 2, 64000, check, 0)
check = total(source + target + struct.pack(">BBH", 0, 6, 20) + segment(0))
def header(check):
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, check, source, target)
os.write(tun, header(total(header(0))) + segment(check))
said = "silence"
while select.select([tun], [], [], 2)[0]:
    packet = os.read(tun, 2000)
    if packet[0] >> 4 == 4 and packet[9] == 6:
        said = {0x12: "answered", 0x14: "refused", 0x04: "refused"}.get(packet[33], hex(packet[33]))
        break
print(said)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Lab]:
    with Lab("zz9") as made:
        made.serve_agent()
        made.at(made.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        made.at(made.host, "ip", "address", "add", "fd6c:9e1f:25b2::2/128", "dev", "lo", "nodad")
        made.nft(LEAD)
        yield made


def ask(net: Lab, how: str, address: str = METADATA, port: int = 80, *, uid: int = ALICE) -> str:
    return net.at(net.host, sys.executable, "-I", "-S", "-c", ASK, address, str(port), how, uid=uid).strip()


@pytest.fixture
def tunnel(net: Lab) -> Iterator[None]:
    """One that carries Ethernet, between the neighbour and the host."""
    for space, device, end in ((net.host, "eth1", 2), (net.neighbour, "eth0", 1)):
        link = f"type vxlan id 5 local 10.71.0.{end} remote 10.71.0.{3 - end} dstport 4789 dev {device}"
        try:
            net.at(space, "ip", "link", "add", "vx0", *link.split())
        except AssertionError as error:
            if "Unknown device type" in str(error):
                pytest.skip("this kernel has no vxlan")
            raise
        net.at(space, "ip", "address", "add", f"10.88.0.{end}/24", "dev", "vx0")
        net.at(space, "ip", "link", "set", "vx0", "up")
    net.at(net.neighbour, "ip", "route", "add", METADATA, "via", "10.88.0.2")
    yield
    net.at(net.neighbour, "ip", "link", "delete", "vx0")
    net.at(net.host, "ip", "link", "delete", "vx0")


@pytest.mark.usefixtures("tunnel")
def test_the_other_end_of_a_tunnel_that_carries_ethernet_is_a_neighbour(net: Lab) -> None:
    """What comes in by it looks as what a container sends, and is another machine's: not led."""
    assert net.ask(METADATA, space=net.neighbour) == "refused"
    net.nft(nft.removal() + nft.refusal())
    try:
        assert net.ask(METADATA, space=net.neighbour) == "refused"
    finally:
        net.nft(LEAD)


# As many sockets of that kind as given, held; how many heard what.
MANY = """
import socket, sys
address, many, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
said, kept = {}, []
for _ in range(many):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, kind)
    s.settimeout(2)
    kept.append(s)
    try:
        s.connect((address, 80))
        word = s.recv(100).decode()
    except OSError as error:
        word = type(error).__name__
    said[word] = said.get(word, 0) + 1
print(said)
"""

HOW = ["plain", "dev:eth0", "dev:lo", "from:10.70.0.2", "from:169.254.171.2", "from:127.0.0.1", "source route", "fast open", "mptcp", "out by:eth0"]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_no_socket_of_a_worker_gets_there(net: Lab, how: str) -> None:
    """Bound to a device or an address, of another protocol, with options: the agent, or nobody."""
    for script in (LEAD, nft.removal() + nft.refusal()):
        net.nft(script)
        try:
            assert ask(net, how) != "machine"
            assert ask(net, how, port=443) != "machine"
            assert ask(net, how, f"::ffff:{METADATA}") != "machine"
        finally:
            net.nft(LEAD)
    assert ask(net, "plain", uid=0) == "machine"


def test_no_packet_of_a_worker_gets_there_by_itself(net: Lab) -> None:
    """Where this machine accepts source routes, one that leads a packet back to itself first is no way either."""
    hops = ("127.0.0.1", "10.70.0.2", "169.254.171.2", "172.17.0.1")
    switches = [
        f"net.ipv4.conf.{name}.{what}=1"
        for name in ("all", "lo", "eth0")
        for what in ("accept_source_route", "route_localnet")
    ]
    net.at(net.host, "sysctl", "-qw", *switches)
    try:
        for script in (LEAD, nft.removal() + nft.refusal()):
            net.nft(script)
            for hop in hops:
                for port in (80, 443):
                    assert ask(net, f"source route:{hop}", port=port) != "machine"
    finally:
        net.at(net.host, "sysctl", "-qw", *(switch.replace("=1", "=0") for switch in switches))
        net.nft(LEAD)


# Root's socket, which listened, in the hands of another user: what it hears at ADDRESS:80 when it is led anew (connect(2)).
HANDED = """
import ctypes, os, socket, sys
address, user = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
s.bind(("::" if ":" in address else "0.0.0.0", 0))
s.listen()
os.setgroups([]), os.setgid(user), os.setuid(user)
if ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16) != 0:  # AF_UNSPEC
    sys.exit("it is not let go")
s.settimeout(20)
try:
    s.connect((address, 80))
    print(s.recv(100).decode())
except ConnectionRefusedError:
    print("refused")
"""


@pytest.mark.parametrize("address", [METADATA, "fd00:ec2::254"])
def test_a_socket_is_its_makers_as_the_readme_says(net: Lab, address: str) -> None:
    """The kernel tells who made it, and not who uses it. Were that to change, the README should say so."""
    handed = [sys.executable, "-I", "-S", "-c", HANDED, address, str(ALICE)]
    assert net.at(net.host, *handed).strip() == "machine"
    readme = (REPOSITORY / "systemd/README.md").read_text()
    assert "* **A socket is its maker's.**" in readme


# By a segment (RFC 8754): what it hears at ADDRESS:PORT when the packet goes to SEGMENT first.
SEGMENT = """
import socket, struct, sys
address, port, segment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6)
s.settimeout(2)
header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0)  # two segments, one of them left
header += socket.inet_pton(socket.AF_INET6, address) + socket.inet_pton(socket.AF_INET6, segment)
s.setsockopt(socket.IPPROTO_IPV6, 57, header)  # IPV6_RTHDR
try:
    s.connect((address, port))
    print(s.recv(100).decode())
except ConnectionRefusedError:
    print("refused")
"""


@pytest.mark.parametrize("segment", ["fd70::2", "fd17::1"])
def test_no_segment_of_a_route_is_a_way(net: Lab, segment: str) -> None:
    """Where this machine routes by segments, a worker's packet that comes back to it first is forwarded: refused."""
    net.at(net.host, "sysctl", "-qw", "net.ipv6.conf.all.seg6_enabled=1", "net.ipv6.conf.lo.seg6_enabled=1")
    try:
        for script in (LEAD, nft.removal() + nft.refusal()):
            net.nft(script)
            for port in ("80", "443"):
                asked = [sys.executable, "-I", "-S", "-c", SEGMENT, "fd00:ec2::254", port, segment]
                assert net.at(net.host, *asked, uid=ALICE).strip() == "refused"
    finally:
        net.at(net.host, "sysctl", "-qw", "net.ipv6.conf.all.seg6_enabled=0", "net.ipv6.conf.lo.seg6_enabled=0")
        net.nft(LEAD)


def test_the_kernel_is_asked_for_nothing_that_it_lacks(net: Lab) -> None:
    """At least these ways are open to a worker, so that the test above has tried them."""
    assert ask(net, "plain") == ask(net, "from:10.70.0.2") == "agent"
    net.nft(nft.removal())
    try:
        assert ask(net, "dev:eth0") == ask(net, "from:10.70.0.2") == ask(net, "fast open") == "machine"
    finally:
        net.nft(LEAD)


@pytest.mark.parametrize("kind", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP])
def test_what_has_no_owner_is_counted(net: Lab, kind: int) -> None:
    """Packets of multipath TCP have none on some kernels: whoever sends them has no more of the agent than anybody."""
    net.nft(nft.ruleset(DEFAULT, port=AGENT_PORT, agent_uid=AGENT_UID, bounds=Bounds(connections=20)))
    try:
        for address in (METADATA, "fd00:ec2::254"):
            command = [sys.executable, "-I", "-S", "-c", MANY, address, "30", str(kind)]
            assert ast.literal_eval(net.at(net.host, *command, uid=ALICE))["agent"] == 20
            assert net.ask(address, uid=1001) == "agent"
    finally:
        net.nft(LEAD)


@contextmanager
def beside(net: Lab, kind: str, mode: str) -> Iterator[str]:
    """A container whose interface is a macvlan or ipvlan of the machine's uplink."""
    space = f"{net.name}v"
    with Claim("netns", space):
        call("ip", "netns", "add", space)
        done = subprocess.run(
            ["ip", "-n", net.host, "link", "add", "v0", "link", "eth0", "netns", space, "type", kind, "mode", mode],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "Unknown device type" in done.stderr:
            pytest.skip(f"this kernel has no {kind}")
        assert done.returncode == 0, done.stderr
        call("ip", "-n", space, "address", "add", "10.70.0.9/24", "dev", "v0")
        call("ip", "-n", space, "link", "set", "v0", "up")
        call("ip", "-n", space, "route", "add", "default", "via", "10.70.0.1", "dev", "v0")
        yield space


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("macvlan", "bridge"), ("macvlan", "private"), ("macvlan", "vepa"), ("ipvlan", "l2"), ("ipvlan", "l3"), ("ipvlan", "l3s")],
)  # fmt: skip
def test_macvlan_and_ipvlan_go_past_as_the_readme_says(net: Lab, kind: str, mode: str) -> None:
    """Their packets never meet this machine's hooks. Were that to change, the README should say so."""
    with beside(net, kind, mode) as space:
        assert net.ask(METADATA, space=space) == "machine"
    readme = (REPOSITORY / "systemd/README.md").read_text()
    assert "* **macvlan and ipvlan** go past these rules" in readme


@pytest.mark.parametrize("address", [address for address in ADDRESSES if "." in address])
def test_the_other_end_of_a_tunnel_is_a_neighbour(net: Lab, address: str) -> None:
    """What comes in by a VPN is another machine's: not led, since a worker's identity is not for it, and not the machine."""
    tunnel = [sys.executable, "-I", "-S", "-c", TUNNEL, address]
    assert net.at(net.host, *tunnel).strip() == "refused"
    net.nft(nft.removal())
    try:
        net.at(net.cloud, "ip", "route", "add", "10.99.0.0/24", "via", "10.70.0.2")
        assert net.at(net.host, *tunnel).strip() == "answered"
    finally:
        net.at(net.cloud, "ip", "route", "del", "10.99.0.0/24", "via", "10.70.0.2")
        net.nft(LEAD)


@pytest.mark.parametrize("kind", ["a directory", "a link to itself", "a device without an end", "a pipe", "not there", "not ours to read"])  # fmt: skip
def test_a_configuration_of_any_kind_of_file_is_closed(kind: str, tmp_path: Path) -> None:
    """Whatever lies there is no reason to hang, to fill the memory, or to lead as something else."""
    path = tmp_path / "config.toml"
    match kind:
        case "a directory":
            path.mkdir()
        case "a link to itself":
            path.symlink_to(path)
        case "a device without an end":
            path.symlink_to("/dev/zero")
        case "a pipe":
            call("mkfifo", str(path))
        case "not ours to read":
            path.write_text("")
            path.chmod(0)
        case _:
            pass
    plan = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "agent", "redirect", "plan", "--config", path],
        capture_output=True, text=True, timeout=20, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert f'"error":"{path}' in plan.stdout

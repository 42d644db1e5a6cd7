"""The rules on a real kernel: who reaches whom at the metadata addresses, with the rules that lead and without them."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator

import pytest

from agent import config as configuration
from agent.host import nft, ranges
from agent.host.bounds import BURST_SECONDS, Bounds
from tests.system import lab
from tests.system.lab import ADDRESSES, AGENT_PORT, AGENT_UID, REPOSITORY, Lab, call
from tests.system.leftovers import Claim

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

METADATA = "169.254.169.254"
DEFAULT = nft.Workers(uids=ranges.parse_uids(["1000-4294967293"]), bridges=("docker0", "br-*"))
ALICE, SYSTEM = 1000, 1

# Bridges as Docker, LXD, Incus, libvirt, nerdctl, CNI, flannel and kind name them, and one that nobody has thought of.
BRIDGES = ("docker0", "lxdbr0", "incusbr0", "virbr0", "nerdctl0", "cni0", "flannel.1", "br-0123456789ab", "kind", "zz9")


def lead(
    workers: nft.Workers = DEFAULT,
    *,
    limit: int = 0,
    rate: int = 0,
    closed: bool = False,
    agent_uid: int = AGENT_UID,
    server_uid: int | None = None,
) -> str:
    return nft.ruleset(
        workers,
        port=AGENT_PORT,
        agent_uid=agent_uid,
        server_uid=server_uid,
        closed=closed,
        bounds=Bounds(limit, rate),
    )


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """One network for all tests that leave it as they find it."""
    with Lab("zz9") as made:
        made.serve_agent()
        made.at(made.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        made.at(made.host, "ip", "address", "add", "fd6c:9e1f:25b2::2/128", "dev", "lo", "nodad")
        yield made


@pytest.fixture
def net(world: Lab) -> Iterator[Lab]:
    yield world
    world.nft(nft.removal())


def test_without_rules_everybody_is_the_machine(net: Lab) -> None:
    """What the other tests forbid is possible here."""
    for address in ADDRESSES:
        assert net.ask(address, uid=ALICE) == "machine"
        assert net.ask(address, space=net.job) == "machine"
    assert net.ask(METADATA, space=net.neighbour) == "machine"


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_closed_table_alone_refuses_workers_and_all_that_is_forwarded(net: Lab, address: str) -> None:
    """Before anything is read: no worker, no container and no neighbour is the machine; the machine is."""
    net.nft(nft.refusal())
    for port in (80, 443, 8080):
        assert net.ask(address, port, uid=ALICE) == "refused"
        assert net.ask(address, port, uid=65534) == "refused"
        assert net.ask(address, port, space=net.job) == "refused"
    assert net.ask(address, space=net.neighbour) == "refused"
    assert net.ask(address, uid=0) == net.ask(address, uid=SYSTEM) == net.ask(address, uid=AGENT_UID) == "machine"


def test_somebody_elses_translation_is_no_way_around(net: Lab) -> None:
    """A packet that another's rules lead from a metadata address to a service of this machine is refused too."""
    net.serve(net.host, "their proxy", "127.0.0.1,51679", "172.17.0.1,51679")
    net.nft(
        "table ip theirs {\n chain o {\n type nat hook output priority -150;\n"
        "  ip daddr 169.254.170.2 tcp dport 80 redirect to :51679\n }\n"
        " chain p {\n type nat hook prerouting priority -150;\n"
        "  ip daddr 169.254.170.2 tcp dport 80 dnat to 172.17.0.1:51679\n }\n}\n"
    )
    try:
        assert net.ask("169.254.170.2", uid=ALICE) == net.ask("169.254.170.2", space=net.job) == "their proxy"
        net.nft(nft.refusal())
        assert net.ask("169.254.170.2", uid=ALICE) == "refused"
        assert net.ask("169.254.170.2", space=net.job) in {"refused", "timeout"}
        assert net.ask("169.254.170.2", uid=0) == "their proxy"
    finally:
        net.nft("delete table ip theirs")


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_metadata_address_is_led(net: Lab, address: str) -> None:
    """Port 80 of each is the agent's for workers and containers, the rest is refused; the machine keeps its own."""
    net.nft(lead())
    assert net.ask(address, uid=ALICE) == "agent"
    assert net.ask(address, space=net.job) == "agent"
    for port in (443, 8080):
        assert net.ask(address, port, uid=ALICE) == "refused"
        assert net.ask(address, port, space=net.job) == "refused"
    assert net.ask(address, uid=0) == net.ask(address, uid=SYSTEM) == net.ask(address, uid=AGENT_UID) == "machine"


def test_a_neighbour_is_neither_led_nor_the_machine(net: Lab) -> None:
    """Whoever sends packets through us from a network of ours gets no identity: not the machine's, not a worker's."""
    net.nft(lead())
    net.at(net.host, "ip", "route", "add", "169.254.0.0/16", "via", "10.71.0.1")
    try:
        assert net.ask(METADATA, space=net.neighbour) == "refused"
        assert net.ask("169.254.171.2", AGENT_PORT, space=net.neighbour) == "timeout"
    finally:
        net.at(net.host, "ip", "route", "del", "169.254.0.0/16", "via", "10.71.0.1")


NOTRACK = (
    "table inet quick {\n chain o {\n type filter hook output priority raw;\n notrack\n }\n"
    " chain p {\n type filter hook prerouting priority raw;\n notrack\n }\n}\n"
)


@pytest.mark.parametrize("rules", ["closed", "led", "closed by command"])
@pytest.mark.parametrize("untracked", [False, True])
def test_nobody_from_outside_asks_the_agent(net: Lab, rules: str, untracked: bool) -> None:
    """The kernel answers for its addresses at every interface: only containers may, where the configuration says so."""
    asking = nft.Workers(uids=DEFAULT.uids, bridges=("zz9",))
    net.nft({"closed": nft.refusal(), "led": lead(asking), "closed by command": lead(asking, closed=True)}[rules])
    for alias, gateway in (("169.254.171.2", "10.71.0.2"), ("fd6c:9e1f:25b2::2", "fd71::2")):
        net.at(net.neighbour, "ip", "route", "replace", alias, "via", gateway)
    if untracked:
        net.nft(NOTRACK)
    try:
        for alias in ("169.254.171.2", "fd6c:9e1f:25b2::2"):
            assert net.ask(alias, AGENT_PORT, space=net.neighbour) == "timeout"
            assert net.ask(alias, AGENT_PORT, space=net.job) == ("timeout" if rules == "closed" else "agent")
            assert net.ask(alias, AGENT_PORT, uid=ALICE) == "agent"
    finally:
        if untracked:
            net.nft("delete table inet quick")


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("masquerade", [True, False])
def test_a_container_is_a_worker_whatever_its_bridge_is_called(bridge: str, masquerade: bool) -> None:
    """Led where rules lead, refused where they do not; exempt only by name."""
    with Lab(bridge, masquerade=masquerade) as net:
        net.serve_agent()
        net.at(net.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        for script, said in (
            (nft.refusal(), "refused"),
            (lead(), "agent"),
            (lead(closed=True), "refused"),
            (lead(nft.Workers(uids=DEFAULT.uids, exempt_bridges=(bridge,))), "machine"),
            (lead(nft.Workers(uids=DEFAULT.uids, exempt_bridges=("other*",))), "agent"),
        ):
            net.nft(script)
            assert net.ask(METADATA, space=net.job) == said


def test_fewer_workers_than_usual_are_excepted_from_the_closed_table(net: Lab) -> None:
    """A user that the configuration takes out is closed at boot only until the rules are made."""
    net.nft(nft.refusal())
    assert net.ask(METADATA, uid=2000) == "refused"
    net.nft(lead(nft.Workers(uids=((1000, 1999),))))
    assert net.ask(METADATA, uid=2000) == "machine"
    assert net.ask(METADATA, uid=ALICE) == "agent"
    # The closed table is loaded again (by a slice's start, by a firewall's): the exception stays.
    net.nft(nft.refusal())
    assert net.ask(METADATA, uid=2000) == "machine"
    assert net.ask(METADATA, uid=ALICE) == "agent"


def test_a_service_with_a_dynamic_user_is_a_worker_unless_it_is_taken_out(net: Lab) -> None:
    """By default, before the rules are made too; with what the README says for them they are the machine's."""
    dynamic = (61184, 65519)  # systemd.exec(5), DynamicUser=
    net.nft(nft.refusal())
    assert [net.ask(METADATA, uid=uid) for uid in dynamic] == ["refused", "refused"]
    net.nft(lead())
    assert [net.ask(METADATA, uid=uid) for uid in dynamic] == ["agent", "agent"]
    page = (REPOSITORY / "systemd/README.md").read_text()
    uids = [uids for uids in re.findall(r"^ *uids = (\[.*\])$", page, re.MULTILINE) if "61183" in uids]
    net.nft(lead(nft.Workers(uids=ranges.parse_uids(json.loads(uids[0])))))
    assert [net.ask(METADATA, uid=uid) for uid in (*dynamic, 1000, 65520)] == ["machine", "machine", "agent", "agent"]
    assert net.ask("127.0.0.1", AGENT_PORT, uid=dynamic[0]) == "refused"


def test_every_uid_that_is_no_system_users_is_a_worker(net: Lab) -> None:
    """Also those that systemd keeps for something: a directory gives people any number, and whoever is in doubt is no machine."""
    uids = (1000, 60513, 60514, 60577, 60578, 61183, 65520, 65534, 65536, 100_000, ranges.MAX_UID - 1)
    net.nft(nft.refusal())
    assert {uid: net.ask(METADATA, uid=uid) for uid in uids} == dict.fromkeys(uids, "refused")
    net.nft(lead(nft.Workers(uids=ranges.parse_uids(configuration.Redirect().uids))))
    assert {uid: net.ask(METADATA, uid=uid) for uid in uids} == dict.fromkeys(uids, "agent")
    assert net.ask(METADATA, uid=999) == "machine"


def test_an_agent_with_a_persons_uid_keeps_the_real_service() -> None:
    """Its own user may lie among the workers' uids: it is excepted from both tables, and answers from its port."""
    with Lab() as net:
        net.serve(net.host, "agent", f"127.0.0.1,{AGENT_PORT}", uid=1500)
        net.nft(lead(agent_uid=1500))
        assert net.ask(METADATA, uid=1500) == "machine"
        assert net.ask(METADATA, uid=1501) == "agent"


@pytest.mark.parametrize("server", [997, 1500])
def test_what_answers_for_the_agent_is_believed_and_is_a_worker(server: int) -> None:
    """Its user speaks from the agent's port in each table, and reaches no real service; nobody else beside it speaks."""
    with Lab() as net:
        agent = net.serve(net.host, "agent", f"127.0.0.1,{AGENT_PORT}", uid=server)
        net.nft(lead(server_uid=server))
        assert net.ask(METADATA, uid=ALICE) == "agent"
        assert net.ask(METADATA, uid=server) == "agent"  # led, as a worker is
        assert net.ask(METADATA, 443, uid=server) == "refused"
        assert net.ask(METADATA, uid=SYSTEM) == "machine"
        net.nft(f"delete table {nft.TABLE}")  # the closed table alone is left
        assert net.ask("127.0.0.1", AGENT_PORT, uid=ALICE) == "agent"
        assert net.ask(METADATA, uid=server) == "refused"
        net.nft(nft.refusal())  # and is put back
        assert net.ask("127.0.0.1", AGENT_PORT, uid=ALICE) == "agent"
        net.nft(lead())  # of a release that knows no such user
        assert net.ask(METADATA, uid=ALICE) != "agent"
        net.kill(agent)


def test_a_user_of_the_system_that_is_named_is_a_worker(net: Lab) -> None:
    """The configuration may take in what the closed table lets through; stopped, it is refused as well, after a flush too."""
    net.nft(lead(nft.Workers(uids=((SYSTEM, SYSTEM), (1000, 60000)))))
    assert net.ask(METADATA, uid=SYSTEM) == "agent"
    net.nft(lead(nft.Workers(uids=((SYSTEM, SYSTEM), (1000, 60000))), closed=True))
    assert net.ask(METADATA, uid=SYSTEM) == "refused"
    net.nft(f"delete table {nft.TABLE}")  # the closed table alone is left, and put back
    assert net.ask(METADATA, uid=SYSTEM) == "refused"
    net.nft(nft.refusal())
    assert net.ask(METADATA, uid=SYSTEM) == "refused"
    net.nft(lead())
    assert net.ask(METADATA, uid=SYSTEM) == "machine"


def test_one_uid_cannot_take_all_connections(net: Lab) -> None:
    """What one worker holds open is capped by uid, what a container does by its address; others are not counted with it."""
    net.nft(lead(limit=20))
    for address in (METADATA, "fd00:ec2::254"):
        assert net.ask(address, uid=ALICE, many=50) == "20 agent, 30 refused"
    assert net.ask("127.0.0.1", AGENT_PORT, uid=ALICE, many=50) == "20 agent, 30 refused"
    assert net.ask(METADATA, space=net.job, many=22) == "20 agent, 2 timeout"
    assert net.ask("fd00:ec2::254", space=net.job, many=22) == "20 agent, 2 timeout"
    assert net.ask(METADATA, uid=1001) == "agent"


def test_one_uid_cannot_ask_without_end(net: Lab) -> None:
    """New connections are counted over time, by every way to the agent; what is too fast waits for TCP's second try."""
    net.nft(lead(rate=1))
    for uid, address, port in ((ALICE, METADATA, 80), (1001, "fd00:ec2::254", 80), (1002, "127.0.0.1", AGENT_PORT)):
        assert "timeout" in net.ask(address, port, uid=uid, many=BURST_SECONDS + 5, last="timeout")
        assert net.ask(address, port, uid=1003) == "agent"
    for address in (METADATA, "fd00:ec2::254"):
        assert "timeout" in net.ask(address, space=net.job, many=BURST_SECONDS + 5, last="timeout")
        assert net.ask(address, uid=1004) == "agent"


def test_one_uid_that_asks_without_end_changes_no_rule(net: Lab) -> None:
    """Else whoever holds the rules would put them back each time it looks, and the uid have all that it had at first."""
    net.nft(lead(rate=1))
    look = [sys.executable, "-I", "-c", "from agent.host import ownership; print(ownership.listing())"]
    before = net.at(net.host, *look)
    assert "limit rate over 1/second" in before
    assert "timeout" in net.ask(METADATA, uid=ALICE, many=BURST_SECONDS + 5, last="timeout")
    assert net.at(net.host, *look) == before


def test_a_crowd_that_starts_at_once_is_not_too_fast(net: Lab) -> None:
    """With the limits of the default configuration: three requests each of three hundred programs of one user, at once."""
    section = configuration.Redirect()
    limit, rate = section.max_connections_per_worker, section.new_connections_per_worker
    net.nft(lead(limit=limit, rate=rate))
    assert net.ask(METADATA, uid=ALICE, many=900) == "900 agent"
    assert rate * BURST_SECONDS >= 500 * 6  # processes, requests of each


MANY = """
import select, socket, sys
address, number, close = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "close"
poll, under_way, said = select.poll(), {}, {}
for left in range(number, 0, -1):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.setblocking(False)
    error = s.connect_ex((address, 80))
    if error != 115:
        said[error] = said.get(error, 0) + 1
        continue
    under_way[s.fileno()] = s
    poll.register(s, select.POLLIN)
    for number, _ in poll.poll(0 if left > 1 else 200):
        error = under_way[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        said[error] = said.get(error, 0) + 1
        poll.unregister(number)
        if error == 0 and close:
            under_way[number].recv(100)  # else it is reset, and no port rests
        if error or close:
            under_way.pop(number).close()
print(said, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["hold", "close"])
@pytest.mark.parametrize("uid", [ALICE, 100_000])
def test_one_uid_leaves_ports_to_the_others(net: Lab, how: str, uid: int) -> None:
    """Connections that are not answered yet, and closed ones, have a port each: another uid's next one finds one too.

    With a thirtieth of the ports that a machine has, and of the bounds.
    """
    families = (((1001, 1001), (100_000, 165_535)),)
    section = configuration.Redirect()
    limit, rate = section.max_connections_per_worker // 30, section.new_connections_per_worker // 30
    net.nft(lead(nft.Workers(uids=DEFAULT.uids, families=families), limit=limit, rate=rate))
    ports = net.at(net.host, "sysctl", "-n", "net.ipv4.ip_local_port_range")
    net.at(net.host, "sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50940")
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    greedy = net.start(net.host, *become, sys.executable, "-I", "-S", "-c", MANY, METADATA, "2000", how)
    try:
        assert greedy.stdout is not None
        said = ast.literal_eval(greedy.stdout.readline())
        assert said[0] >= limit  # it has what it may have
        assert 99 not in said  # EADDRNOTAVAIL
        assert net.ask(METADATA, uid=1002) == "agent"
    finally:
        net.kill(greedy)
        net.at(net.host, "sysctl", "-qw", f"net.ipv4.ip_local_port_range={ports.strip()}")


AS_SEVERAL = """
import os, socket, sys
kept, said = [], []
for uid in map(int, sys.argv[1:]):
    os.seteuid(uid)
    got = 0
    for _ in range(10):
        s = socket.socket()
        kept.append(s)
        try:
            s.connect(("169.254.169.254", 80))
            got += s.recv(5) == b"agent"
        except OSError:
            pass
    said.append(got)
    os.seteuid(0)
print(said)
"""


def test_all_uids_of_one_user_are_one_worker(net: Lab) -> None:
    """Who may be 65,536 others by user namespaces has together what one has; so has the neighbour in the table."""
    families = (((ALICE, ALICE), (100_000, 165_535)), ((1001, 1001), (165_536, 231_071)))
    net.nft(lead(nft.Workers(uids=DEFAULT.uids, families=families), limit=15))
    uids = ["1000", "100000", "165535", "165536", "1001", "2000"]
    said = net.at(net.host, sys.executable, "-I", "-S", "-c", AS_SEVERAL, *uids)
    assert json.loads(said) == [10, 5, 0, 10, 5, 10]


# Holds five connections from each address; "mac": a link's address of its own for each, as one container has it.
HOLDING = """
import socket, subprocess, sys
kept, got = [], []
for number, source in enumerate(sys.argv[2:]):
    if sys.argv[1] == "mac":
        subprocess.run(["ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{number + 1:02x}"], check=True)
        subprocess.run(["ip", "route", "replace", "default", "via", "172.17.0.1"], check=True)
    count = 0
    for _ in range(5):
        s = socket.socket()
        s.settimeout(1)
        s.bind((source, 0))
        kept.append(s)
        try:
            s.connect(("169.254.169.254", 80))
            count += s.recv(5) == b"agent"
        except OSError:
            break
    got.append(count)
print(got)
"""


@pytest.mark.parametrize(("how", "got"), [("address", [5, 0, 0, 0, 0, 0]), ("mac", [5, 5, 5, 5, 0, 0])])
def test_containers_of_one_bridge_have_together_what_four_have(how: str, got: list[int]) -> None:
    """A container takes as many addresses of its bridge as it likes, and has no more by it; a bridge has what four have."""
    with Lab() as net:
        net.serve_agent()
        net.at(net.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        net.nft(lead(limit=5))
        addresses = [f"172.17.9.{number}" for number in range(6)]
        for address in addresses:
            net.at(net.job, "ip", "address", "add", f"{address}/16", "dev", "eth0")
        said = net.at(net.job, sys.executable, "-I", "-S", "-c", HOLDING, how, *addresses)
        assert json.loads(said) == got
        assert net.ask(METADATA, uid=ALICE) == "agent"


# Begins a connection from each of many addresses that nobody has, as whoever may use raw sockets can.
FORGED = """
import socket, struct
def total(data):
    value = sum(struct.unpack(f">{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF
raw, target = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), socket.inet_aton("169.254.169.254")
for number in range(60):
    source = socket.inet_aton(f"172.17.50.{number + 1}")
    def segment(check):
        return struct.pack(">HHIIBBHHH", 20000, 80, number, 0, 5 << 4, 2, 64000, check, 0)
    check = total(source + target + struct.pack(">BBH", 0, 6, 20) + segment(0))
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, number, 0, 64, 6, 0, source, target)
    raw.sendto(head + segment(check), ("169.254.169.254", 0))
"""


def test_addresses_that_a_container_makes_up_take_nothing_from_its_neighbour() -> None:
    """It has one share of the bridge's, whatever it says where its packets come from."""
    with Lab() as net, Claim("netns", f"{net.name}b"):
        net.serve_agent()
        net.at(net.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        other = f"{net.name}b"
        call("ip", "netns", "add", other)
        port1 = ("link", "add", "port1", "type", "veth", "peer", "name", "eth0", "netns", other)
        call("ip", "-n", net.host, *port1)
        call("ip", "-n", net.host, "link", "set", "port1", "master", net.bridge, "up")
        call("ip", "-n", other, "address", "add", "172.17.0.3/16", "dev", "eth0")
        call("ip", "-n", other, "link", "set", "eth0", "up")
        call("ip", "-n", other, "route", "add", "default", "via", "172.17.0.1")
        for rules in (lead(limit=5), lead(rate=1)):
            net.nft(rules)
            net.at(net.job, sys.executable, "-I", "-S", "-c", FORGED)
            assert net.ask(METADATA, space=other) == "agent"


def test_tables_that_a_process_holds_are_the_same_rules(net: Lab) -> None:
    """In tables of an owner beside the others, and alone, the rules say what they say."""
    families = (((1002, 1002), (100_000, 165_535)),)
    ours = lead(nft.Workers(uids=DEFAULT.uids, bridges=DEFAULT.bridges, families=families), limit=20, rate=1000)
    script = nft.held(ours).replace("\tflags owner\n", "")  # an owner would take them with it
    for first in (script, ours + script):
        net.nft(first)
        try:
            assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "agent"
            assert net.ask(METADATA, 443, uid=ALICE) == net.ask(METADATA, 443, space=net.job) == "refused"
            assert net.ask(METADATA) == "machine"
            assert net.ask(METADATA, uid=1002, many=30) == "20 agent, 10 refused"
        finally:
            net.nft("".join(f"delete table {name}{nft.HELD}\n" for name in (nft.TABLE, nft.CLOSED)))


# Sends and goes at once: what the kernel sends again for it has no owner any more.
HURRIED = """
import socket, sys
s = socket.socket()
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen()
print("up", flush=True)
while True:
    c, _ = s.accept()
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    c.send(b"thief")
    c.close()
"""


def test_nobody_else_answers_from_the_agents_port() -> None:
    """While the agent's socket is not there a user may listen in its place: who is led believes no such answer."""
    with Lab() as net:
        net.at(net.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        net.at(net.host, "ip", "address", "add", "fd6c:9e1f:25b2::2/128", "dev", "lo", "nodad")
        for uid in (ALICE, SYSTEM):
            thief = net.serve(
                net.host,
                "thief",
                *(f"{host},{AGENT_PORT}" for host in ("127.0.0.1", "::1", "169.254.171.2", "fd6c:9e1f:25b2::2")),
                uid=uid,
            )
            if uid == ALICE:
                assert net.ask("127.0.0.1", AGENT_PORT, uid=1001) == "thief", "without rules it can"
            net.nft(lead())
            for address, port in (("::1", AGENT_PORT), (METADATA, 80)):
                assert "thief" not in net.ask(address, port, uid=1001)
            assert "thief" not in net.ask(METADATA, space=net.job)
            if uid == ALICE:
                net.nft(nft.removal() + nft.refusal())
            else:  # who is a worker by name is nobody to be believed either
                net.nft(lead(nft.Workers(uids=((SYSTEM, SYSTEM), (1000, 60000)))))
                net.nft(f"delete table {nft.TABLE}")
            assert "thief" not in net.ask("127.0.0.1", AGENT_PORT, uid=1001)
            net.nft(nft.removal())
            net.kill(thief)
        # The answer to a SYN has no owner here, and what is accepted has.
        net.at(net.host, "sysctl", "-qw", "net.ipv4.tcp_syncookies=2")
        hurried = net.start(
            net.host,
            "setpriv",
            f"--reuid={ALICE}",
            "--clear-groups",
            sys.executable,
            "-I",
            "-S",
            "-c",
            HURRIED,
            str(AGENT_PORT),
        )
        assert hurried.stdout is not None
        assert hurried.stdout.readline() == "up\n"
        net.nft(lead())
        assert "thief" not in net.ask(METADATA, uid=1001)
        net.kill(hurried)
        net.serve_agent()
        assert net.ask(METADATA, uid=1001) == net.ask(METADATA, space=net.job) == "agent"


def test_a_firewall_that_filters_what_goes_out_needs_the_pages_rule(net: Lab) -> None:
    """It sees what is led to loopback leave by the uplink: the usual rule for loopback does not match."""
    net.nft(lead())
    rules = "table inet strict {\n chain o {\n type filter hook output priority 0; policy drop\n oifname lo accept\n"
    net.nft(rules + "ct state established accept\n ip daddr 169.254.0.0/16 accept\n }\n}\n")
    try:
        assert net.ask(METADATA, uid=ALICE) == "timeout"
        assert net.ask(METADATA, uid=0) == "machine"
        assert (
            f"ufw allow out to 127.0.0.1 port {AGENT_PORT} proto tcp" in (REPOSITORY / "systemd/README.md").read_text()
        )
        net.nft(f"add rule inet strict o ip daddr 127.0.0.1 tcp dport {AGENT_PORT} accept")
        assert net.ask(METADATA, uid=ALICE) == "agent"
        assert net.ask("127.0.0.1", AGENT_PORT, uid=SYSTEM) == "refused"
    finally:
        net.nft("delete table inet strict")


def test_what_is_not_tracked_is_no_way_around(net: Lab) -> None:
    """Somebody's `notrack` takes away what translation needs: workers are refused, with sockets of any owner."""
    net.nft(lead())
    net.nft(NOTRACK)
    try:
        for port in (80, 443):
            assert net.ask(METADATA, port, uid=ALICE) == "refused"
            assert net.ask(METADATA, port, space=net.job) in {"refused", "timeout"}
        assert net.ask(METADATA, uid=0) == net.ask(METADATA, uid=SYSTEM) == "machine"
    finally:
        net.nft("delete table inet quick")
    assert net.ask(METADATA, uid=ALICE) == "agent"

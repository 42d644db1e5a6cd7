"""Each table by itself: what one refuses is seen only where the other does not refuse it too."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from agent.host import nft, ranges
from tests.system import lab
from tests.system.lab import ADDRESSES, AGENT_PORT, AGENT_UID, Lab
from tests.system.test_interception import NOTRACK

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

ALICE = 1000
WORKERS = (1000, 65_534, 4_294_967_293)
MACHINES = (0, 1, AGENT_UID, 999)
ROUTED = nft.Workers(uids=ranges.parse_uids(["1000-4294967293"]), bridges=("zz9",))
ALONE = f"delete table {nft.CLOSED}\n"
OTHER_PORT = 5555
SERVICES = [("tcp", port) for port in (80, 443, 8080, 53, 123)] + [("udp", port) for port in (80, 53, 123)]
LET_THROUGH = (53, 123)  # Google's address is also the resolver and the clock


def lead(*, port: int = AGENT_PORT, closed: bool = False) -> str:
    return nft.ruleset(ROUTED, port=port, agent_uid=AGENT_UID, closed=closed)


# Asks for all at once: [kind, address, port, address to ask from, port to ask from]; who answers each.
ASK = """
import json, select, socket, struct, sys, time
sockets, said = {}, {}
questions, patience = json.loads(sys.argv[1]), float(sys.argv[2])
for number, (kind, address, port, here, from_port) in enumerate(questions):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setblocking(False)
    try:
        if here:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or the port rests for a minute
            s.bind((here, from_port))
        s.connect_ex((address, port))
        if kind == "udp":
            s.send(b"?")
        sockets[s] = number
    except OSError:
        said[number] = "refused"
until = time.monotonic() + patience
while sockets and (left := until - time.monotonic()) > 0:
    for s in select.select(list(sockets), [], [], left)[0]:
        try:
            number = sockets.pop(s)
            said[number] = s.recv(100).decode() or "nothing"
        except OSError:
            said[number] = "refused"
print(json.dumps([said.get(number, "timeout") for number in range(len(questions))]))
"""

ECHO = """
import select, socket, sys
sockets = []
for address in sys.argv[1].split():
    for port in (53, 80, 123):
        s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((address, port))
        sockets.append(s)
print("up", flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        s.sendto(b"machine", s.recvfrom(100)[1])
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab("zz9") as made:
        made.serve_agent()
        made.at(made.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        made.at(made.host, "ip", "address", "add", "fd6c:9e1f:25b2::2/128", "dev", "lo", "nodad")
        made.serve(made.cloud, "machine", *(f"{host},{port}" for host in ("0.0.0.0", "::") for port in (53, 123)))
        echo = made.start(made.cloud, sys.executable, "-I", "-S", "-c", ECHO, " ".join(ADDRESSES))
        assert echo.stdout is not None
        assert echo.stdout.readline() == "up\n"
        yield made


@pytest.fixture
def net(world: Lab) -> Iterator[Lab]:
    yield world
    world.nft(nft.removal())


def asked(
    net: Lab, questions: Sequence[Sequence[object]], *, uid: int = 0, space: str = "", patience: float = 20
) -> list[str]:
    """Who answers each of (kind, address, port[, address and port to ask from])."""
    whole = json.dumps([[*question, "", 0][:5] for question in questions])
    command = [sys.executable, "-I", "-S", "-c", ASK, whole, str(patience)]
    words = json.loads(net.at(space or net.host, *command, uid=uid))
    assert isinstance(words, list)
    return words


def is_so(kind: str, word: str, expected: str) -> bool:
    """A refusal of what is no TCP may not be heard: the kernel bounds how many it sends."""
    return word == expected or (kind == "udp" and {word, expected} == {"timeout", "refused"})


TABLES = {
    "refuses": (nft.refusal(), "refused"),
    "leads": (lead() + ALONE, "agent"),
    "closed by command": (lead(closed=True) + ALONE, "refused"),
}


@pytest.fixture(params=[False, True], ids=["tracked", "untracked"])
def untracked(request: pytest.FixtureRequest, net: Lab) -> Iterator[bool]:
    """Whether somebody keeps connections from being known."""
    if request.param:
        net.nft(NOTRACK)
    yield request.param
    if request.param:
        net.nft("delete table inet quick")


@pytest.mark.parametrize("table", TABLES)
def test_of_a_worker_only_names_and_time_get_there(net: Lab, table: str, *, untracked: bool) -> None:
    """At each address, by each protocol and port; whoever is no worker has all. Nobody is led whose packets are not tracked."""
    script, at_80 = TABLES[table]
    at_80 = "refused" if untracked else at_80
    questions = [(kind, address, port) for address in ADDRESSES for kind, port in SERVICES]
    net.nft(script)
    for uid in MACHINES:
        assert set(asked(net, questions, uid=uid)) == {"machine"}, uid
    for uid in WORKERS:
        said = dict(zip(questions, asked(net, questions, uid=uid), strict=True))
        for (kind, address, port), word in said.items():
            expected = "machine" if port in LET_THROUGH else at_80 if (kind, port) == ("tcp", 80) else "refused"
            assert is_so(kind, word, expected), (uid, kind, address, port, word)


def test_of_what_is_forwarded_only_names_and_time_get_there(net: Lab, *, untracked: bool) -> None:
    """Refused by the table that asks nobody who he is: a container's, and a neighbour's."""
    services = [(kind, port) for kind, port in SERVICES if not untracked or port not in LET_THROUGH]
    questions = [(kind, address, port) for address in ADDRESSES for kind, port in services]
    net.nft(nft.refusal())
    for space in (net.job, net.neighbour):
        said = asked(net, questions, space=space, patience=2 if untracked else 20)
        for (kind, address, port), word in zip(questions, said, strict=True):
            if untracked:  # the refusal may not find its way back
                assert word in {"refused", "timeout"}, (space, kind, address, port, word)
            else:
                expected = "machine" if port in LET_THROUGH else "refused"
                assert is_so(kind, word, expected), (space, kind, address, port, word)


# Where somebody else's rules lead a packet to a metadata address: (hook, where to); what the answer there is.
ELSEWHERE = {
    "output, to this machine": ("output", "127.0.0.1", "[::1]"),
    "output, to another": ("output", "10.70.0.1", "[fd70::1]"),
    "prerouting, to this machine": ("prerouting", "172.17.0.1", "[fd17::1]"),
    "prerouting, to another": ("prerouting", "10.70.0.1", "[fd70::1]"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_where_others_lead_it_is_refused_by_where_it_was_sent(net: Lab, name: str) -> None:
    """Of each family, at each hook: what counts is the address that the worker or the container asked for."""
    hook, to4, to6 = ELSEWHERE[name]
    here = [address.strip("[]") for address in (to4, to6)]
    theirs = None if "another" in name else net.serve(net.host, "theirs", *(f"{address},8099" for address in here))
    port = 8080 if theirs is None else 8099
    net.nft(
        f"table inet elsewhere {{\n chain c {{\n type nat hook {hook} priority -150;\n"
        f"  ip daddr 169.254.170.2 tcp dport 9 dnat ip to {to4}:{port}\n"
        f"  ip6 daddr fd00:ec2::254 tcp dport 9 dnat ip6 to {to6}:{port}\n }}\n}}\n"
    )
    questions = [("tcp", "169.254.170.2", 9), ("tcp", "fd00:ec2::254", 9)]
    who = partial(asked, net, questions, space=net.job if hook == "prerouting" else "", uid=ALICE)
    try:
        word = "machine" if theirs is None else "theirs"
        assert who() == [word] * 2, "without rules they lead there"
        net.nft(nft.refusal())
        # (A container may not hear the refusal: it comes from where the packet was led.)
        assert set(who(patience=2)) <= {"refused", "timeout"}
        if hook == "output":
            assert asked(net, questions) == [word] * 2
    finally:
        net.nft("delete table inet elsewhere")
        if theirs is not None:
            net.kill(theirs)


FRONTS = ("127.0.0.1", "::1", "169.254.171.2", "fd6c:9e1f:25b2::2")
# The agent's port, where the agent is not, in each table that names it.
GUARDED = {
    **{
        f"refuses, by {ports}": nft.refusal() + f"add element {nft.CLOSED} {ports} {{ {OTHER_PORT} }}\n"
        for ports in re.findall(r"set (\w+) { type inet_service", nft.refusal())
    },
    "leads": lead(port=OTHER_PORT) + ALONE,
    "closed by command": lead(port=OTHER_PORT, closed=True) + ALONE,
}


@pytest.mark.parametrize("name", GUARDED)
def test_no_worker_answers_at_any_of_the_agents_addresses(net: Lab, name: str) -> None:
    """Whoever asks there would believe him."""
    questions = [("tcp", front, OTHER_PORT) for front in FRONTS]
    thief = net.serve(net.host, "thief", *(f"{front},{OTHER_PORT}" for front in FRONTS), uid=ALICE)
    try:
        assert asked(net, questions, uid=1001) == ["thief"] * 4, "without rules he does"
        net.nft(GUARDED[name])
        assert "thief" not in asked(net, questions, uid=1001, patience=2)
    finally:
        net.kill(thief)


@pytest.mark.parametrize("name", GUARDED)
def test_who_asks_others_from_the_agents_port_hears_them(net: Lab, name: str) -> None:
    """A number of a port is nobody's own where connections begin: only who is asked there is guarded."""
    net.nft(GUARDED[name])
    shop = net.serve(net.host, "shop", *(f"{front},8098" for front in FRONTS))
    try:
        here = [("tcp", front, 8098, front, OTHER_PORT) for front in FRONTS]
        assert asked(net, here, uid=ALICE) == ["shop"] * 4
        there = [("tcp", "10.70.0.1", 8080, "10.70.0.2", OTHER_PORT), ("tcp", "fd70::1", 8080, "fd70::2", OTHER_PORT)]
        assert asked(net, there, uid=ALICE) == ["machine"] * 2
    finally:
        net.kill(shop)


@pytest.mark.parametrize("name", GUARDED)
def test_nobody_outside_asks_at_the_agents_port_by_any_name_of_it(net: Lab, name: str) -> None:
    """By either family, where the port has its former name too."""
    outside = [("tcp", address, OTHER_PORT) for address in ("10.71.0.2", "fd71::2")]
    front = net.serve(net.host, "front", f"0.0.0.0,{OTHER_PORT}", f"::,{OTHER_PORT}", uid=AGENT_UID)
    try:
        assert asked(net, outside, space=net.neighbour) == ["front"] * 2, "without rules it may"
        net.nft(GUARDED[name])
        assert asked(net, outside, space=net.neighbour, patience=1) == ["timeout"] * 2
    finally:
        net.kill(front)

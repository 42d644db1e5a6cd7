"""Who is a worker, in numbers; and rules that a real nft accepts."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Listen, Redirect, host_port
from agent.core.errors import HostError
from agent.host import nft, ranges, systemctl
from agent.host.bounds import Bounds

RANGES = st.lists(
    st.tuples(st.integers(1, 1 << 20), st.integers(0, 1 << 16)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=8,
)


@given(RANGES, st.integers(0, 1 << 21))
def test_every_uid_is_a_worker_or_is_not(pairs: list[tuple[int, int]], uid: int) -> None:
    """Merging changes no membership, and the complement is everybody else."""
    merged = ranges.merge(pairs)
    inside = any(low <= uid <= high for low, high in pairs)
    assert any(low <= uid <= high for low, high in merged) == inside
    assert any(low <= uid <= high for low, high in ranges.complement(merged)) != inside


@given(RANGES)
def test_merged_ranges_rise_and_lie_apart(pairs: list[tuple[int, int]]) -> None:
    """Merged ranges rise and do not touch, as the elements of an interval set must (nft(8))."""
    merged = ranges.merge(pairs)
    for (_, high), (low, _) in itertools.pairwise(merged):
        assert high + 1 < low


def test_uids_are_read_as_written() -> None:
    """Single numbers and ranges, in any order."""
    assert ranges.parse_uids(["2000", "1000-1999", "60578-4294967293"]) == ((1000, 2000), (60578, 4294967293))


@pytest.mark.parametrize(
    "text", ["", "-", "1000-", "a", "1000-999", "4294967295", "1000 - 2000", "\u0661", "0x3e8", "-5"]
)
def test_what_is_no_uid_is_refused(text: str) -> None:
    """A typing mistake must not quietly be another range."""
    with pytest.raises(HostError):
        ranges.parse_uids([text])


@pytest.mark.parametrize("text", ["0", "0-100"])
def test_root_is_never_a_worker_by_uid(text: str) -> None:
    """The machine's own services run as root."""
    with pytest.raises(HostError, match="uid 0") as refusal:
        ranges.parse_uids([text])
    assert "units" in (refusal.value.hint or "")


def test_a_slice_lies_in_the_slices_of_its_name() -> None:
    """systemd.slice(5): dashes are the path."""
    assert systemctl.slice_path("credential-agent-workers.slice") == (
        "credential.slice/credential-agent.slice/credential-agent-workers.slice"
    )


@pytest.mark.parametrize("unit", ["-.slice", "a--b.slice", "-a.slice", "a-.slice"])
def test_what_is_no_slice_of_workers_is_refused(unit: str) -> None:
    """The root slice holds every process; the others are no names."""
    with pytest.raises(HostError):
        systemctl.slice_path(unit)


@pytest.mark.parametrize("name", ['eth0"', "a b", "", "a" * 16, "*x", 'x" accept; #'])
def test_an_interface_cannot_smuggle_a_rule(name: str) -> None:
    """Names stand in quotes and are checked before."""
    with pytest.raises(HostError):
        nft.ruleset(nft.Workers(bridges=(name,)), port=1, agent_uid=None)


@pytest.mark.parametrize("path", ["/a", "a/../b", 'a" accept', ""])
def test_a_control_group_cannot_smuggle_a_rule(path: str) -> None:
    """The path of a control group that could end its quotes, or leave its directory, is refused."""
    with pytest.raises(HostError):
        nft.ruleset(nft.Workers(cgroups=(path,)), port=1, agent_uid=None)


def test_closed_rules_lead_nowhere() -> None:
    """Closed means reject: there is no address translation left."""
    workers = nft.Workers(uids=((1000, 2000),), bridges=("docker0",))
    closed = nft.ruleset(workers, port=16925, agent_uid=998, closed=True)
    assert "redirect to" not in closed
    assert "dnat ip" not in closed
    assert "type nat" not in closed
    assert "meta skuid @workers goto refuse" in closed


def test_roots_job_in_a_slice_of_workers_does_not_speak_for_the_agent() -> None:
    """It has systemd's uid, so the kernel lets it listen beside systemd's socket, which shares its port."""
    workers = nft.Workers(uids=((1000, 2000),), cgroups=("a.slice/a-b.slice",))
    text = nft.ruleset(workers, port=16925, agent_uid=998)
    own = text[text.index(f"delete table {nft.TABLE}\n") :]
    chain = own[own.index("chain speaker") :]
    refused = chain.index('socket cgroupv2 level 2 "a.slice/a-b.slice" counter reject with tcp reset')
    assert chain.index("meta skuid 998 return") < chain.index("ct direction original return") < refused
    assert refused < chain.index("meta skuid 0 return")


def test_what_answers_workers_is_a_worker_that_may_speak() -> None:
    """Its user answers from the agent's port in both tables, and is led and refused like any worker's: it needs no service."""
    workers = nft.Workers(uids=((1000, 2000),))
    text = nft.ruleset(workers, port=16925, agent_uid=998, server_uid=997)
    assert f"add element {nft.CLOSED} speaker_uids {{ 998, 997 }}" in text
    own = text[text.index(f"delete table {nft.TABLE}\n") :]
    chain = own[own.index("chain speaker") :]
    assert chain.index("meta skuid 997 return") < chain.index("counter reject with tcp reset")
    assert own.count("meta skuid 997") == 1
    for name, uids in (("workers", "997-997, 1000-2000"), ("others", "0-996, 998-999")):
        assert f"elements = {{ {uids}" in own[own.index(f"set {name} ") :][:200].replace("997, ", "997-997, ")
    assert f"add element {nft.CLOSED} worker_uids {{ 997" in text
    without = nft.ruleset(workers, port=16925, agent_uid=998)
    assert f"add element {nft.CLOSED} speaker_uids {{ 998 }}" in without


def test_what_comes_by_a_cable_is_a_neighbours() -> None:
    """Bonds, teams, VLANs, what has no kind, and the machine's own way out are not led: they are no containers."""
    text = nft.ruleset(nft.Workers(), port=1, agent_uid=None)
    chain = text[text.index("chain forwarded") :]
    assert chain.index("fib daddr . iif oif exists return") < chain.index('meta iifkind { "bond", "team", "vlan", ')
    assert chain.index('{ "bond", "team", "vlan", ') < chain.index('meta iifkind != "none" jump to_alias')


def test_the_closed_table_stands_for_the_defaults() -> None:
    """What it knows without reading the configuration is what an empty configuration says, and every address is in it."""
    text = nft.refusal()
    assert f"meta skuid {Redirect().uids[0]} jump worker" in text
    assert len(Redirect().uids) == 1
    assert str(host_port(Listen().http[0])[1]) in text
    for addresses in nft.METADATA.values():
        assert ", ".join(addresses) in text


SCRIPTS = [
    nft.refusal(),
    *(
        nft.ruleset(nft.Workers(uids=((1000, 2000),), exempt_bridges=("v*",)), port=16925, agent_uid=998, **more)
        for more in ({}, {"closed": True}, {"bounds": Bounds(9, 5)})
    ),
]


@pytest.mark.parametrize("script", [*SCRIPTS, *(nft.held(script) for script in SCRIPTS)])
def test_no_script_flushes_a_set_that_it_makes_with_elements(script: str) -> None:
    """Nft 1.0.9 and 1.1.3 (Ubuntu 24.04, Debian 13) crash on one that does, where the set was not there before."""
    made = set(re.findall(r"^\s*set (\w+) \{[^}]*elements", script, re.MULTILINE))
    flushed = set(re.findall(r"^flush set \w+ \w+ (\w+)$", script, re.MULTILINE))
    assert made
    assert not made & flushed


def test_who_may_be_a_worker_is_named_where_he_is_refused() -> None:
    """In the chain that leads, before everybody is led; in the one that refuses; and no rule names a set that is not made."""
    for refused in ((), ((7, 9),)):
        text = nft.ruleset(nft.Workers(uids=((1000, 2000),), refused=refused), port=1, agent_uid=998)
        own = text[text.index(f"delete table {nft.TABLE}\n") :]
        assert set(re.findall(r"@(\w+)", own)) == set(re.findall(r"^\s*set (\w+) \{", own, re.MULTILINE))
        assert ("meta skuid @refused return" in own, "meta skuid @refused goto refuse" in own) == (bool(refused),) * 2


def test_where_the_agent_has_no_user_nobody_but_root_answers_for_it() -> None:
    """No worker may; and else no user at all, since one that has taken the port would be believed."""
    workers = nft.Workers(uids=((1000, 2000),))
    for agent_uid, others in ((None, "@workers"), (998, "1-4294967294")):
        text = nft.ruleset(workers, port=1, agent_uid=agent_uid)
        chain = text[text.index("chain speaker", text.index(f"delete table {nft.TABLE}\n")) :]
        assert f"meta skuid {others} counter reject with tcp reset" in chain[: chain.index("}")]


def test_a_boot_refuses_whom_it_is_told_to_refuse_too() -> None:
    """Without a plan it knows the defaults alone, and the users that the last one named."""
    assert f"add element {nft.CLOSED} worker_uids {{ 5, 7-9 }}" in nft.refusal(((5, 5), (7, 9)))
    assert "worker_uids" not in nft.refusal().replace("@worker_uids", "").replace("set worker_uids", "")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads rules in a network namespace of its own")
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
def test_of_a_former_configuration_nothing_is_left(tmp_path: Path) -> None:
    """Whom it excepted, which ports and interfaces it named: the rules in force are those of the last one alone."""
    wide = nft.ruleset(
        nft.Workers(
            uids=((1000, 2000), (5000, 5000)),
            bridges=("docker0", "br-*"),
            exempt_bridges=("v*", "lxd0"),
            families=(((1000, 1000), (100000, 165535)),),
            refused=((7, 9),),
        ),
        port=5555,
        agent_uid=998,
        server_uid=997,
    )
    narrow = nft.ruleset(nft.Workers(uids=((3000, 4000),)), port=16925, agent_uid=None, ipv6=False)
    for name, script in (("wide", wide), ("narrow", narrow)):
        (tmp_path / name).write_text(script)

    def after(*names: str) -> str:
        steps = [f"nft -f {tmp_path / name}" for name in names]
        argv = ["unshare", "--net", "sh", "-c", " && ".join([*steps, "nft -s list ruleset"])]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    everything, little = after("wide"), after("narrow")
    assert after("wide", "narrow") == little
    assert after("narrow", "wide", "wide") == everything
    closed = everything[everything.index(f"table {nft.CLOSED} ") :]
    for said in ('iifname "lxd0" accept', 'iifname "docker0" accept', "elements = { 5555 }", "elements = { 997, 998 }"):
        assert said in closed
    assert ["tcp dport 80 ip6 daddr @metadata_ip6 jump worker" in rules for rules in (everything, little)] == [
        True,
        False,
    ]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads rules in a network namespace of its own")
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
@pytest.mark.parametrize("ipv6", [True, False])
@pytest.mark.parametrize("agent_uid", ["None", "998"])
@pytest.mark.parametrize(
    "workers",
    [
        "uids=((1000, 2000),)",
        "bridges=('docker0', 'br-*'), exempt_bridges=('lxdbr0', 'v*')",
        "",
        "uids=((1, 4294967294),)",
        "uids=((1000, 2000),), refused=((1, 1), (7, 9))",
    ],
)
def test_the_kernel_takes_the_rules_and_gives_them_back(workers: str, agent_uid: str, *, ipv6: bool) -> None:
    """Open and closed, loaded twice, leave one table; removal, done twice too, leaves none."""
    code = f"""
from agent.host import aliases, nft, ranges, systemctl
workers = nft.Workers({workers})
assert nft.show() is None
for closed in (False, False, True, True, False):
    nft.run(nft.ruleset(workers, port=16925, agent_uid={agent_uid}, ipv6={ipv6}, closed=closed))
    aliases.set_aliases(present=True, ipv6={ipv6})
    table = nft.show()
    assert table is not None
    assert ("redirect to :16925" in table) is not closed
for _ in range(2):
    nft.run(nft.removal())
    aliases.set_aliases(present=False)
    assert nft.show() is None
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: has addresses in a network namespace of its own")
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip (apt-get install iproute2)")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
def test_an_address_that_begins_like_ours_is_not_ours() -> None:
    """Somebody's 169.254.171.20 on the loopback interface: containers are led to 169.254.171.2, which must be there."""
    code = """
import subprocess
from agent.host import aliases
for address in ("169.254.171.20/32", "fd6c:9e1f:25b2::2a/128"):
    subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)
for present in (True, True, False):
    aliases.set_aliases(present=present)
    said = subprocess.run(["ip", "address", "show", "dev", "lo"], check=True, capture_output=True, text=True).stdout
    assert [f" {address}/" in said for address in (aliases.ALIAS4, aliases.ALIAS6)] == [present] * 2, said
    assert "169.254.171.20/32" in said and "fd6c:9e1f:25b2::2a/128" in said
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WHO = """
import os, socket, subprocess
from agent.host import nft

for command in ("link set lo up", "address add 169.254.169.254 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
agent, real = socket.create_server(("127.0.0.1", 5555)), socket.create_server(("169.254.169.254", 80))

def asked(uid: int, address: str, port: int) -> str:
    child = os.fork()
    if child == 0:
        os.setuid(uid)
        try:
            with socket.socket() as asking:  # imports nothing: this user may not read our Python
                asking.settimeout(5)
                asking.connect((address, port))
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        return "refused"
    for name, listener in (("agent", agent), ("real", real)):
        listener.settimeout(0)
        try:
            listener.accept()
            return name
        except OSError:
            continue
    return "nobody"

workers = nft.Workers(uids=((1000, 2000),), refused=((5, 5), (7, 9), (3000, 3000)))
for closed in (False, True):
    nft.run(nft.ruleset(workers, port=5555, agent_uid=998, closed=closed))
    print([asked(uid, "169.254.169.254", 80) for uid in (1500, 5, 8, 3000, 6, 0, 998)])
print([asked(uid, "127.0.0.1", 5555) for uid in (1500, 5)])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads rules in a network namespace of its own")
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
def test_who_may_be_a_worker_gets_no_identity_at_all() -> None:
    """Neither the agent's, to which others are led, nor the machine's, whether the rules lead or refuse."""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", WHO], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "['agent', 'refused', 'refused', 'refused', 'real', 'real', 'real']",
        "['refused', 'refused', 'refused', 'refused', 'real', 'real', 'real']",
        "['agent', 'refused']",
    ], done.stderr


UPGRADE = """
import os, pathlib, socket, subprocess
from agent.host import nft

before = pathlib.Path("tests/vectors/nft/closed-before-listener-ports.nft").read_text()
workers = nft.Workers(uids=((1000, 2000),))
after = nft.ruleset(workers, port=5555, agent_uid=998)
# As the earlier release had it: its closed table with its own set, and rules that lead.
earlier = (
    before
    + "flush set inet credential_agent_closed doors\\nadd element inet credential_agent_closed doors { 5555 }\\n"
    + after[after.index("add table inet credential_agent\\n") :]
)
for command in ("link set lo up", "route add 169.254.169.254 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
listener = socket.create_server(("127.0.0.1", 5555))

def worker_is_led() -> bool:
    child = os.fork()
    if child == 0:
        os.setuid(1500)
        try:
            with socket.socket() as asking:  # imports nothing: this user may not read our Python
                asking.settimeout(5)
                asking.connect(("169.254.169.254", 80))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

for name, script in STEPS:
    nft.run(script)
    print(name, "led" if worker_is_led() else "refused")
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads rules in a network namespace of its own")
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            "('earlier', earlier), ('refusal', nft.refusal()), ('saved plan', earlier), ('plan', after), ('again', after)",
            "earlier led, refusal led, saved plan led, plan led, again led",
        ),
        ("('plan', after), ('rollback', before), ('earlier', earlier)", "plan led, rollback led, earlier led"),
        ("('other port', nft.refusal()), ('plan', after)", "other port refused, plan led"),
    ],
    ids=["upgrade", "rollback", "boot"],
)
def test_a_worker_is_led_through_an_upgrade(steps: str, expected: str) -> None:
    """The closed table excepts the configured port under the name of the earlier release too, at each step between them."""
    code = UPGRADE.replace("STEPS", f"[{steps}]")
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected.split(", ")

"""The conditions inside what is written to the kernel, the disk and the environment; each was found by a change."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.core.model import Cloud
from agent.core.verdict import Mark, Memory
from agent.host import envfile, nft, ranges, systemctl
from agent.host.bounds import BURST_SECONDS, Bounds
from agent.host.state import MEMORY_FILE, SPARE_FILE, StateDirectory
from tests.fakes.clock import START


def memory(seq: int, **fields: object) -> Memory:
    mark = Mark("cp", "team", seq, f"{seq:064x}")
    return Memory("i-1", (mark,), {Cloud.AWS: None}, mark, **fields)  # type: ignore[arg-type]


def save(directory: StateDirectory, found: Memory, sealed: bytes | None) -> None:
    asyncio.run(directory.save(found, sealed))


@pytest.mark.parametrize("sealed", [b"two", None])
def test_what_was_saved_outlives_a_cut_of_the_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bytes | None
) -> None:
    """Each file is on the disk before it gets its name, the bundle before the memory that names it; the names at last."""
    state = StateDirectory(tmp_path)
    for seq in (1, 2):  # from then on there is a spare that is long enough
        save(state, memory(seq), b"one")
    synced: set[int] = set()
    named: list[str] = []
    sync, replace = os.fsync, Path.replace

    def syncs(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def replaces(self: Path, target: Path) -> Path:
        assert target.name == SPARE_FILE or self.stat().st_ino in synced, target
        named.append(target.name)
        synced.discard(tmp_path.stat().st_ino)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", syncs)
    monkeypatch.setattr(Path, "replace", replaces)
    save(state, memory(3), sealed)
    assert [name.partition("-")[0] for name in named] == [*(["bundle"] if sealed else []), MEMORY_FILE, SPARE_FILE]
    assert tmp_path.stat().st_ino in synced


class TestOneOwner:
    def test_a_second_process_waits_and_writes_nothing(self, tmp_path: Path) -> None:
        """While one owns the directory another is refused, and what it would write does not take a number back."""
        first, second = StateDirectory(tmp_path), StateDirectory(tmp_path)
        assert first.claim()
        assert first.claim()
        assert not second.claim()
        assert not second.claim()
        save(first, memory(5), b"five")
        with pytest.raises(HostError, match="another process owns it"):
            save(second, memory(1), b"one")
        assert second.load() == (memory(5), b"five")

    def test_who_waited_writes_once_the_other_has_ended(self, tmp_path: Path) -> None:
        """However the other ended; from then on it is the owner."""
        second = StateDirectory(tmp_path)
        (ready, claimed), (wait, go) = os.pipe(), os.pipe()
        owner = os.fork()
        if not owner:
            os.write(claimed, b"y" if StateDirectory(tmp_path).claim() else b"n")
            os.read(wait, 1)
            os._exit(0)
        assert os.read(ready, 1) == b"y"
        assert not second.claim()
        os.write(go, b"x")
        os.waitpid(owner, 0)
        save(second, memory(2), b"two")
        assert not StateDirectory(tmp_path).claim()
        assert second.load() == (memory(2), b"two")

    def test_a_directory_that_is_not_there_cannot_be_owned(self, tmp_path: Path) -> None:
        """It is an error that names it, neither an owner nor a wait."""
        with pytest.raises(HostError, match="cannot be opened"):
            StateDirectory(tmp_path / "missing").claim()


class TestState:
    def test_a_version_that_knows_floors_says_so(self, tmp_path: Path) -> None:
        """An agent that does not know them would take forgotten streams for new; without floors it may read the file."""
        directory = StateDirectory(tmp_path)
        save(directory, memory(1), b"one")
        assert b'"version":1' in (tmp_path / MEMORY_FILE).read_bytes()
        save(directory, memory(1, floors={"cp": START}), b"one")
        assert b'"version":2' in (tmp_path / MEMORY_FILE).read_bytes()
        assert directory.load() == (memory(1, floors={"cp": START}), b"one")

    def test_a_memory_nested_without_end_or_in_no_letters_is_an_error(self, tmp_path: Path) -> None:
        """Not a crash of the start: it is closed, as any other that makes no sense."""
        for content in (b'{"version":1,"memory":' + b"[" * 200_000, b'{"version":1,"memory":{"instance_id":"\xff"}}'):
            (tmp_path / MEMORY_FILE).write_bytes(content)
            with pytest.raises(HostError):
                StateDirectory(tmp_path).load()

    def test_an_acceptance_without_its_bytes_keeps_those_that_are_there(self, tmp_path: Path) -> None:
        """A memory that changed beside its bundle (a name was learned) loses no copy of it."""
        directory = StateDirectory(tmp_path)
        save(directory, memory(1), b"one")
        (path,) = tmp_path.glob("bundle-*")
        before = path.stat().st_ino
        save(directory, memory(1), None)
        save(directory, memory(1), b"one")
        assert path.stat().st_ino == before  # nor is it written again, on a disk that may be full
        assert directory.load() == (memory(1), b"one")


class TestEnvironment:
    def test_each_cloud_unmasks_itself_alone(self) -> None:
        """In a shell too: on a machine with one cloud the other's own settings are nobody's business."""
        for aws, gcp in ((True, False), (False, True), (True, True)):
            found = envfile.pointers(address="127.0.0.1:1", aws=aws, gcp=gcp, token_file="/t")
            text = envfile.render_shell(found).decode()
            (unset,) = re.findall(r"^unset (.*)$", text, re.MULTILINE)
            assert ("AWS_PROFILE" in unset.split()) is aws
            assert ("GOOGLE_APPLICATION_CREDENTIALS" in unset.split()) is gcp
        assert "unset" not in envfile.render_shell({}).decode()

    def test_an_address_that_sdks_refuse_is_no_container_uri(self) -> None:
        """They would ask nobody; IMDS is told of all the same."""
        found = envfile.pointers(address="10.0.0.1:1", aws=True, gcp=False, token_file="/t", container_uri=False)
        assert not [name for name in found if "CONTAINER" in name]
        assert found["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == "http://10.0.0.1:1"
        assert found["AWS_METADATA_SERVICE_NUM_ATTEMPTS"] == "5"

    def test_ours_reads_back_with_its_comment_and_blank_lines(self) -> None:
        """The heading is no variable; what is no text is refused, with the number of the line that is not ours."""
        assert envfile.parse_systemd(b'# heading\n\nA="1"\n') == {"A": "1"}
        assert envfile.parse_systemd(envfile.render_systemd({"A": '$"x'})) == {"A": '$"x'}
        with pytest.raises(HostError, match="UTF-8"):
            envfile.parse_systemd(b'A="\xff"')
        with pytest.raises(HostError, match="line 2"):
            envfile.parse_systemd(b'A="1"\nB=2\n')

    def test_a_program_keeps_a_region_it_chose_and_takes_ours_else(self) -> None:
        """One of the two names is a choice of both; an empty one is none. What it exempted from the proxy stays so."""
        ours = envfile.pointers(address="127.0.0.1:1", aws=True, gcp=False, token_file="/t", region="eu-1")
        assert envfile.overlay({}, ours)["AWS_REGION"] == "eu-1"
        assert envfile.overlay({"AWS_REGION": ""}, ours)["AWS_REGION"] == "eu-1"
        chosen = envfile.overlay({"AWS_DEFAULT_REGION": "us-1"}, ours)
        assert chosen["AWS_DEFAULT_REGION"] == "us-1"
        assert "AWS_REGION" not in chosen
        assert chosen["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == "http://127.0.0.1:1"
        for given in ({"NO_PROXY": "a.example"}, {"no_proxy": "a.example"}):
            both = envfile.overlay(given, ours)
            assert both["NO_PROXY"].startswith("a.example,")
            assert both["no_proxy"].startswith("a.example,")
        apart = envfile.overlay({"NO_PROXY": "a.example", "no_proxy": "b.example"}, ours)
        assert (apart["NO_PROXY"][:9], apart["no_proxy"][:9]) == ("a.example", "b.example")


def rules(
    workers: nft.Workers | None = None, *, agent_uid: int | None = 998, limit: int = 0, rate: int = 0, ipv6: bool = True
) -> str:
    return nft.ruleset(workers or nft.Workers(), port=16925, agent_uid=agent_uid, ipv6=ipv6, bounds=Bounds(limit, rate))


class TestRules:
    def test_the_agent_itself_reaches_the_real_service_and_its_own_listener(self) -> None:
        """By its user, where there is one; and where there is none nobody stands for it."""
        assert rules().count("meta skuid 998 return") == 3  # neither led nor refused, and it answers from its port
        assert rules().count("meta skuid 998 accept") == 1
        assert "meta skuid None" not in rules(agent_uid=None)
        assert "998" not in rules(agent_uid=None).replace("16998", "")

    def test_who_is_exempt_is_so_in_both_tables(self) -> None:
        """Each interface in the closed one, and in what leads."""
        text = rules(nft.Workers(exempt_bridges=("lxdbr0", "v*")))
        for name in ("lxdbr0", "v*"):
            assert f'exempt_interfaces iifname "{name}" accept' in text
            assert f'iifname "{name}" return' in text

    def test_the_limits_are_for_each_user_address_and_bridge(self) -> None:
        """A set for each kind; without a limit there is none, and nothing that a kernel without it would refuse."""
        keys = (("uids", "meta skuid", 1), ("ip", "ip saddr", 1), ("ip6", "ip6 saddr", 1), ("links", "iif", 4))
        for name, key, fold in keys:
            both = rules(limit=7, rate=5)
            assert f"@busy_{name} {{ {key} ct count over {7 * fold} }}" in both
            rate = f"limit rate over {5 * fold}/second burst {5 * fold * BURST_SECONDS} packets"
            then = "jump late" if name == "uids" else "counter drop"
            assert f"update @busy_new_{name} {{ {key} {rate} }} {then}\n" in both
            assert f"set busy_{name} " in rules(limit=7)
            assert f"set busy_new_{name} " in rules(rate=5)
        assert "limit rate" not in rules(limit=7)
        assert "ct count" not in rules(rate=5)
        assert "busy_" not in rules()

    def test_what_is_remembered_of_a_rate_is_forgotten(self) -> None:
        """A set that only fills is full some day, and bounds nobody who comes after."""
        sets = [line for line in rules(rate=5).splitlines() if "flags dynamic" in line]
        assert len(sets) == 6
        assert [line for line in sets if "flags dynamic,timeout; timeout 60s;" not in line] == []

    def test_a_set_that_fills_by_itself_is_no_change_of_the_rules(self) -> None:
        """By their name the comparison of the rules in force leaves them out: else a greedy worker has them loaded anew."""
        text = rules(limit=7, rate=5)
        made = re.findall(r"^\tset (\w+) \{.*flags dynamic", text, re.MULTILINE)
        assert len(made) == 11
        assert [name for name in made if not name.startswith("busy_")] == []
        assert set(re.findall(r"(?:add|update) @(\w+)", text)) == set(made)

    def test_a_user_with_subordinate_uids_counts_once(self) -> None:
        """Its uids go to a chain of its own; where nothing is bounded there is none."""
        workers = nft.Workers(families=(((1000, 1000), (100000, 165535)),))
        text = rules(workers, limit=7, rate=5)
        assert "meta skuid vmap { 1000 : goto family_0, 100000-165535 : goto family_0 }" in text
        assert text.index("vmap") < text.index("@busy_new_uids { meta skuid")
        assert "family_" not in rules(workers)

    def test_ipv6_is_led_only_where_it_is_on(self) -> None:
        """IPv6 is led only where it is on, and refused in any case."""
        assert "dnat ip6" in rules()
        assert "dnat ip6" not in rules(ipv6=False)
        assert "dnat ip " in rules(ipv6=False)
        assert "ip6 daddr @metadata_ip6 jump real" in rules(ipv6=False)

    def test_a_range_of_one_is_one(self) -> None:
        """A range of one number is written as nft writes it; and what is no worker is everybody else, to the last number."""
        text = rules(nft.Workers(uids=((1000, 1000), (2000, 3000))), agent_uid=None)
        assert "1000, 2000-3000" in text
        assert f"0-999, 1001-1999, 3001-{ranges.MAX_UID}" in text
        assert ranges.complement(((0, 5), (7, ranges.MAX_UID))) == ((6, 6),)
        assert ranges.complement(((1, ranges.MAX_UID - 1),)) == ((0, 0), (ranges.MAX_UID, ranges.MAX_UID))
        assert ranges.parse_uids([str(ranges.MAX_UID)]) == ((ranges.MAX_UID, ranges.MAX_UID),)

    def test_removal_names_both_tables(self) -> None:
        """One that stays would refuse the machine itself for ever."""
        text = nft.removal()
        for table in (nft.TABLE, nft.CLOSED):
            assert f"add table {table}\ndelete table {table}\n" in text

    @pytest.mark.parametrize("unit", ["jobs.slice", "a-b.slice", "job@1.service", "session-1.scope"])
    def test_what_systemd_calls_a_unit_of_processes_may_hold_workers(self, unit: str) -> None:
        """A slice, a service or a scope may hold them."""
        systemctl.check_unit(unit)

    @pytest.mark.parametrize(
        "unit", ["-.slice", "a--b.slice", "jobs", "jobs.timer", "a b.service", 'x".slice', "../x.slice"]
    )
    def test_no_unit_of_workers(self, unit: str) -> None:
        """The root slice holds every process of the machine; a name that is none could smuggle a rule."""
        with pytest.raises(HostError, match=r"redirect\.units"):
            systemctl.check_unit(unit)

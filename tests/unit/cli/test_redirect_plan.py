"""``redirect plan``: what the configuration makes of the rules, whoever loads them."""

from __future__ import annotations

import errno
import json
import pwd
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.redirect import redirect
from agent.host import lasting, planning, subuid, systemctl
from tests.fakes.refusing import refuse


@pytest.fixture(autouse=True)
def nobody_has_subordinate_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of the machine that runs the tests have some, if somebody has made any there."""
    subordinate_uids(tmp_path, monkeypatch, "")


def subordinate_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    for reads in (subuid.with_subordinates, subuid.families, subuid.unclear):
        monkeypatch.setattr(reads, "__defaults__", (file, None))


def plan(tmp_path: Path, section: str) -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_text(f"[redirect]\nunits = []\n{section}\n")
    document = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert isinstance(document, dict)
    assert document["error"] is None
    return document


def test_what_a_kernel_lacks_is_done_without_and_named(tmp_path: Path) -> None:
    """Each bound can be left out alone, the last resort has none, and every script but the first says what it lacks."""
    made = plan(tmp_path, "max_connections_per_worker = 7\nnew_connections_per_worker = 5")
    has = [("ct count over 7" in script, "limit rate over 5" in script) for script in made["scripts"]]
    assert has == [(True, True), (True, False), (False, True), (False, False)]
    assert [bool(lacking) for lacking in made["lacking"]] == [False, True, True, True]


@pytest.mark.parametrize(
    ("connections", "new", "scripts"), [(0, 0, [(False, False)]), (7, 0, [(True, False), (False, False)])]
)
def test_a_bound_that_is_not_wanted_is_not_missed(
    tmp_path: Path, connections: int, new: int, scripts: list[tuple[bool, bool]]
) -> None:
    """Zero is any number: the first script is what was asked for, and nothing is said of it."""
    made = plan(tmp_path, f"max_connections_per_worker = {connections}\nnew_connections_per_worker = {new}")
    assert [("ct count" in script, "limit rate" in script) for script in made["scripts"]] == scripts
    assert made["lacking"][0] == ""


@pytest.mark.parametrize(
    ("uids", "uid"), [('"1000-4294967293"', 60578), ('"1000-1999"', 1999), ('"1500"', 1500), ("", None)]
)
def test_whoever_asks_whether_requests_arrive_is_nobody(tmp_path: Path, uids: str, uid: int | None) -> None:
    """The first worker's uid is somebody's, who may have used up what one worker may: all would look lost."""
    assert plan(tmp_path, f"uids = [{uids}]")["uid"] == uid


@pytest.mark.parametrize(
    ("uids", "uid"),
    [
        ('"1000-4294967293"', 60578),  # what nobody has, also where somebody has what lies above it
        ('"1000-1999"', 1999),
        ('"1000-1999", "100000-300000"', 165536),
        ('"1500"', 100000),  # everything is somebody's
    ],
)
def test_whoever_asks_has_no_share_of_a_user_with_subordinate_uids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uids: str, uid: int
) -> None:
    """All uids of such a user have one bound together: while the user has used it up, all would look lost."""
    subordinate_uids(tmp_path, monkeypatch, "1500:100000:65536\n")
    assert plan(tmp_path, f"uids = [{uids}]")["uid"] == uid


def test_a_name_that_is_found_no_more_stays_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that does not answer, a user who was renamed: the number it had is led on, and that is said."""
    known = tmp_path / "users.json"
    monkeypatch.setattr(planning.known_users, "__defaults__", (known,))
    section = 'uids = []\nusers = ["root-of-nobody", "daemon"]'
    assert plan(tmp_path, section)["uids"] == [[1, 1]]
    known.write_text(json.dumps({"root-of-nobody": 777, "daemon": 9, "else": 5}))
    made = plan(tmp_path, section)
    assert made["uids"] == [[1, 1], [777, 777]]  # who is found has the number that was found
    assert made["users"] == {"root-of-nobody": 777, "daemon": 1}
    assert "uid 777, as it was" in made["pending"][0]


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"root-of-nobody": "0"}', '{"root-of-nobody": 0}'])
def test_what_was_remembered_is_read_with_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Whatever is in the file: at worst nothing was remembered, and root is no worker by it."""
    known = tmp_path / "users.json"
    known.write_text(text)
    monkeypatch.setattr(planning.known_users, "__defaults__", (known,))
    assert plan(tmp_path, 'uids = []\nusers = ["root-of-nobody"]')["uids"] == []


def test_a_mistake_refuses_those_too_who_are_named(tmp_path: Path) -> None:
    """A system user that is a worker by its name alone is refused like the others, and not the machine."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[redirect]\nunits = ["no unit"]\nusers = ["daemon", "root", "nobody-of-that-name"]\nuids = ["0", "7-9", "x"]\nport = -1\n'
    )
    made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert "redirect.port" in made["error"]
    assert made["uids"] == [[1, 1], [7, 9], [1000, 4294967293]]
    (script,) = made["scripts"]
    assert script == made["closed"]
    assert "set workers { type uid; flags interval; elements = { 1, 7-9, " in script


def test_a_mistake_refuses_those_too_who_were_workers_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was named in this boot is refused although the file names nobody any more, and root is by no name."""
    known = tmp_path / "users.json"
    known.write_text(json.dumps({"root-of-nobody": 777, "daemon": 9, "root": 5, "a\0b": 778}))
    monkeypatch.setattr(planning.known_users, "__defaults__", (known,))
    path = tmp_path / "config.toml"
    path.write_text("[redirect")
    made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert made["error"]
    assert made["users"] == {"root-of-nobody": 777, "daemon": 1, "a\0b": 778}
    assert [1, 1] in made["uids"]
    assert [777, 778] in made["uids"]


def test_a_name_that_nobody_can_have_is_nobodys(tmp_path: Path) -> None:
    """A NUL can stand in a text of TOML, and in no name: the others are led."""
    assert plan(tmp_path, 'uids = []\nusers = ["a\\u0000b", "daemon"]')["uids"] == [[1, 1]]


def test_who_may_be_meant_is_neither_led_nor_the_machine(tmp_path: Path) -> None:
    """A misspelt key: the users, numbers and units named there are refused; who is a worker anyway is led; root stays."""
    made = plan(
        tmp_path, 'uids = ["2000-2999"]\nuser = ["daemon", "root", "nobody-of-that-name"]\nuid = ["7-9", 2500, 0]'
    )
    assert made["uids"] == [[2000, 2999]]
    assert made["refused"] == [[1, 1], [7, 9]]
    assert {"redirect.user", "redirect.uid"} <= {note.partition(":")[0] for note in made["notes"]}
    for script in (*made["scripts"], made["closed"]):
        assert "set refused { type uid; flags interval; elements = { 1, 7-9 }" in script
        assert "set others { type uid; flags interval; elements = { 0, 2-6, 10-1999, " in script
        assert "worker_uids { 1, 7-9, 2000-2999 }" in script
    (chain,) = re.findall(
        r"chain worker \{.*?\}", made["scripts"][0].partition("table inet credential_agent {")[2], re.DOTALL
    )
    assert chain.index("@refused return") < chain.index("@others return") < chain.index("redirect to")


@pytest.mark.parametrize(
    "key",
    [
        *("[redirect]\n" + key for key in ("units", "unit", "Units", "slice", "services", "more.units")),
        *("[redirects]\n" + key for key in ("units", "unit", "more.unit")),
        "[[redirects]]\nunits",
        "[redirect]\n[listen]\nunits",
        "unit",
    ],
)
@pytest.mark.parametrize("text", ["batch", "/batch.slice", "root.slice/batch.slice"])
def test_jobs_of_a_unit_that_is_named_without_its_kind_are_not_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    """Root's too: whoever writes `batch` means batch.slice or batch.service, and the mistake refuses them."""
    monkeypatch.setattr(systemctl, "UNIFIED", tmp_path)
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "batch.slice").mkdir()
    path = tmp_path / "config.toml"
    for beside in ("", "port = -1\n", "[broken"):
        path.write_text(f'{key} = ["{text}"]\n{beside}')
        made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
        said = (made["error"], *made["notes"])
        assert beside or any("unknown key" in str(one) or "redirect.units" in str(one) for one in said)
        for script in (*made["scripts"], made["closed"]):
            assert '"batch.slice"' in script


def test_a_mistake_refuses_whoever_may_be_meant_too(tmp_path: Path) -> None:
    """A name in another spelling, in a file that has a mistake besides."""
    path = tmp_path / "config.toml"
    path.write_text('[redirect]\nport = -1\nusers = ["Daemon@EXAMPLE.ORG", "nobody-of-that-name"]\n')
    made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert made["error"]
    assert [1, 1] in made["uids"]


def test_a_mistake_at_a_reload_leads_whom_it_led_and_refuses_whoever_is_named_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who is added by the same edit that breaks the file is not the machine until somebody mends it."""
    last = tmp_path / "plan.json"
    monkeypatch.setattr(planning.last_section, "__defaults__", (last,))
    last.write_text(json.dumps(plan(tmp_path, 'uids = ["2000-2999"]\nport = 5')))
    path = tmp_path / "config.toml"
    path.write_text('[redirect]\nuids = ["2000-2999", "33"]\nusers = ["daemon"]\nport = "none"\nunits = []\n')
    made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert "redirect.port" in made["error"]
    assert made["section"] is not None
    assert made["uids"] == [[2000, 2999]]
    assert made["refused"] == [[1, 1], [33, 33]]
    assert "redirect to :5" in made["scripts"][0]
    for words in ("no JSON", "{}", '{"section": [{}, "x"]}'):
        last.write_text(words)
        made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
        assert made["error"]
        assert made["section"] is None
        assert made["scripts"] == [made["closed"]]


def test_a_slow_directory_is_not_asked_for_long_about_who_may_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that comes too late leads nobody: each name is asked for once, and who is on this machine is known anyway."""
    asked: list[str] = []
    now = [0.0]

    def slow(name: str) -> None:
        asked.append(name)
        now[0] += 4.0
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    words = ", ".join(f'"w{number}"' for number in range(50))
    made = plan(tmp_path, f'uids = []\nuser = [{words}, "daemon"]')
    assert made["refused"] == [[1, 1]]
    assert len(asked) == len(set(asked))
    assert len([name for name in asked if name.startswith("w")]) == 3


@pytest.mark.parametrize(
    "name", [" daemon", "Daemon", "daemon@EXAMPLE.ORG", "EXAMPLE\\\\daemon", "1", "#1", "ｄａｅｍｏｎ", "daemon "]
)
def test_who_may_be_meant_by_a_name_that_nobody_has_is_refused(tmp_path: Path, name: str) -> None:
    """Another spelling, a realm, a number in place of the name: until the name is found, and that is said."""
    made = plan(tmp_path, f'uids = []\nusers = ["{name}"]')
    assert made["uids"] == []
    assert made["refused"] == [[1, 1]]
    assert "(uid 1) may be meant, and is refused" in made["pending"][0]
    made = plan(tmp_path, f'uids = []\nuser = ["{name}"]')
    assert (made["uids"], made["refused"]) == ([], [[1, 1]])
    assert made["notes"] == ["redirect.user: unknown key, left out: who is named there is refused"]


@pytest.mark.parametrize(
    "name",
    [
        "daemon, bin",
        "daemon bin",
        "daemon;bin",
        "daemon:bin",
        "uid=1,2",
        "1-2",
        "1..2",
        "[bd][ia][ne]*",
        "~daemon ^bin",
    ],
)
def test_all_who_may_be_meant_by_one_text_are_refused(tmp_path: Path, name: str) -> None:
    """Several names in one text, a pattern, a range: none of those who are named there is left to the machine."""
    made = plan(tmp_path, f'uids = []\nusers = ["{name}"]')
    assert made["uids"] == []
    assert made["refused"] == [[1, 2]]
    assert "may be meant, and " in made["pending"][0]
    assert plan(tmp_path, f'uids = []\nuser = ["{name}"]')["refused"] == [[1, 2]]


@pytest.mark.parametrize("name", ["*", "??", "0", "ro*t", "nobody-is-called-so"])
def test_nobody_is_refused_for_what_names_nobody(tmp_path: Path, name: str) -> None:
    """A star alone names no one, and root is never refused; by a key that is not known neither."""
    for key in ("users", "user"):
        assert plan(tmp_path, f'uids = []\n{key} = ["{name}"]')["refused"] == []


def test_who_may_be_meant_does_not_become_a_worker_by_being_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number in place of a name is no name that was found before, however often a plan is made."""
    known = tmp_path / "users.json"
    monkeypatch.setattr(planning.known_users, "__defaults__", (known,))
    for name in ("1", "Daemon", "daemon@EXAMPLE.ORG"):
        known.unlink(missing_ok=True)
        for _ in range(3):
            made = plan(tmp_path, f'uids = []\nusers = ["{name}"]\nuser = ["bin"]')
            assert (made["uids"], made["refused"]) == ([], [[1, 2]])
            known.write_text(json.dumps(made["users"]))


def test_a_worker_is_one_by_each_uid_that_it_may_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rootless container on the host's network, or newuidmap(1): else a worker would be the machine by another uid."""
    file = tmp_path / "subuid"
    file.write_text("2500:100000:65536\n100005:200000:10\n3500:300000:65536\nroot:400000:10\n2501:0:3\n")
    monkeypatch.setattr(subuid.with_subordinates, "__defaults__", (file, None))
    made = plan(tmp_path, 'uids = ["2000-2999"]')
    assert made["uids"] == [[1, 2], [2000, 2999], [100000, 165535], [200000, 200009]]


def test_who_was_a_worker_before_the_boot_is_refused_while_a_name_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that does not answer yet, a mistake: its user's number is known from the last boot, and not let through."""
    before = tmp_path / "workers"
    before.write_text("777\n800-805\n")
    monkeypatch.setattr(lasting.read, "__defaults__", (before,))
    section = 'uids = ["803"]\nusers = ["root-of-nobody", "daemon"]'
    made = plan(tmp_path, section)
    assert made["uids"] == [[1, 1], [803, 803]]
    assert made["refused"] == [[777, 777], [800, 802], [804, 805]]
    assert "777, 800-802, 804-805" in made["pending"][-1]
    assert plan(tmp_path, 'uids = ["803"]\nusers = ["daemon"]')["refused"] == []
    path = tmp_path / "config.toml"
    path.write_text("[redirect")
    closed = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert closed["error"]
    assert [777, 777] in closed["uids"]
    assert [800, 805] in closed["uids"]


@pytest.mark.parametrize("which", [lasting.read, planning.known_users])
def test_who_was_a_worker_is_not_nobody_where_the_system_refuses_to_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Callable[..., object]
) -> None:
    """What is in force stays, as at a mistake; nothing is led by what is left, and nothing is written down of it."""
    file = tmp_path / "refused"
    file.write_text("777\n")
    monkeypatch.setattr(which, "__defaults__", (file,))
    monkeypatch.setattr(planning, "last_section", lambda: [{"users": ["root-of-nobody"]}, 16925])
    refuse(monkeypatch, file, errno.EIO)
    path = tmp_path / "config.toml"
    path.write_text('[redirect]\nuids = []\nusers = ["root-of-nobody"]\n')
    made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
    assert "cannot be read" in made["error"]
    assert made["section"] is None
    assert made["scripts"] == [made["closed"]]
    if which is lasting.read:
        assert made["uids"] == [[1, 4294967294]]
        monkeypatch.setattr(lasting, "write", lambda _uids: pytest.fail("written over"))
        assert CliRunner().invoke(redirect, ["record", "--config", str(path)]).exit_code == 1
        assert plan(tmp_path, 'users = ["daemon"]')["users"] == {"daemon": 1}  # nobody of the file may be meant


def test_who_may_be_meant_is_refused_by_each_uid_that_it_may_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user who is refused in doubt is the machine by a subordinate uid, as no worker is."""
    file = tmp_path / "subuid"
    file.write_text("1:100000:65536\n2500:200000:10\n")
    monkeypatch.setattr(subuid.with_subordinates, "__defaults__", (file, None))
    made = plan(tmp_path, 'uids = ["2000-2999"]\nuser = ["daemon"]')
    assert made["uids"] == [[2000, 2999], [200000, 200009]]
    assert made["refused"] == [[1, 1], [100000, 165535]]


def test_who_may_be_a_workers_subordinate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose user is not found (a directory does not answer yet), and everybody where the file cannot be read."""
    subordinate_uids(tmp_path, monkeypatch, "nobody-of-this-name:100000:65536\n2500:100010:5\n1:165536:5\n")
    made = plan(tmp_path, 'uids = ["2000-2999"]')
    assert made["uids"] == [[2000, 2999], [100010, 100014]]
    assert made["refused"] == [[100000, 100009], [100015, 165535]]
    assert made["pending"] == []  # it may be a name that nobody has any more
    monkeypatch.setattr(subuid, "MOST_BYTES", 10)
    made = plan(tmp_path, 'uids = ["2000-2999"]')
    assert made["uids"] == [[2000, 2999]]
    assert made["refused"] == [[1000, 1999], [3000, 4294967293]]
    (said,) = made["pending"]  # so that it is looked at again
    assert "subuid" in said


def test_a_mistake_at_a_reload_refuses_the_usual_workers_too_where_they_are_named_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults count only as what nobody wrote; who writes them out means them."""
    last = tmp_path / "plan.json"
    monkeypatch.setattr(planning.last_section, "__defaults__", (last,))
    last.write_text(json.dumps(plan(tmp_path, 'uids = ["2000-2999"]')))
    monkeypatch.setattr(subuid.with_subordinates, "__defaults__", (tmp_path / "none", None))
    path = tmp_path / "config.toml"
    for uids, refused in (('"2000-2999"', []), ('"2000-2999", "1000-60513"', [[1000, 1999], [3000, 60513]])):
        path.write_text(f'[redirect]\nuids = [{uids}]\nport = "none"\nunits = []\n')
        made = json.loads(CliRunner().invoke(redirect, ["plan", "--config", str(path)]).output)
        assert made["error"]
        assert made["uids"] == [[2000, 2999]]
        assert made["refused"] == refused

"""Whose are subordinate uids? A user with many is one."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import HostError
from agent.host import subuid
from agent.host.subuid import LOOK_AGAIN_SECONDS, LocalUsers, Whose, families, unclear, with_subordinates

UIDS = {"alice": 1000, "bob": 1001, "root": 0}


def read(tmp_path: Path, text: str) -> tuple[tuple[tuple[int, int], ...], ...]:
    path = tmp_path / "subuid"
    path.write_text(text)
    return families(path, UIDS.get)


def test_a_user_has_its_own_and_the_subordinate_ones(tmp_path: Path) -> None:
    """By name or by number, in several lines; others stay apart."""
    text = "alice:100000:65536\n1001:165536:65536\nalice:300000:10\n1000:300010:5\n"
    alice, bob = read(tmp_path, text)
    assert alice == ((1000, 1000), (100000, 165535), (300000, 300014))
    assert bob == ((1001, 1001), (165536, 231071))


def test_roots_are_nobodys(tmp_path: Path) -> None:
    """LXD gives root a billion, for containers that are not one worker."""
    text = "root:1000000:1000000000\n0:100000:65536\n"
    assert read(tmp_path, text) == ()
    assert families(tmp_path / "subuid", lambda _: None) == ()  # also where nothing says that root is 0


def test_a_user_that_is_not_known_here_has_the_subordinate_ones(tmp_path: Path) -> None:
    """One of a directory is not asked for: that may take minutes, and this is asked by who may not wait."""
    assert read(tmp_path, "carol:100000:65536\n") == (((100000, 165535),),)


def test_no_uid_is_two_users(tmp_path: Path) -> None:
    """Ranges that overlap are the first one's, and nobody takes another's own: nft refuses a map that says two things."""
    alice, bob = read(tmp_path, "alice:1000:65536\nbob:2000:100000\n")
    assert alice == ((1000, 1000), (1002, 66535))
    assert bob == ((1001, 1001), (66536, 101999))
    [alice] = read(tmp_path, "alice:1000:5\nalice:1003:5\n")
    assert alice == ((1000, 1007),)


@given(entries=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=6))
def test_each_uid_is_its_own_or_else_the_first_that_may_take_it(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int, int]]
) -> None:
    """Whatever ranges overlap: every uid that the file gives to anybody is one user's, by one rule."""
    path = tmp_path_factory.mktemp("subuid") / "subuid"
    path.write_text("".join(f"{user}:{first}:{count}\n" for user, first, count in entries))
    users = list(dict.fromkeys(user for user, _, _ in entries))
    wanted = {
        user: {uid for who, first, count in entries if who == user for uid in range(first, first + count)}
        for user in users
    }
    owner = {uid: user for user in reversed(users) for uid in wanted[user]} | {user: user for user in users}
    found = families(path)
    assert {
        uid: user
        for user, ranges in zip(users, found, strict=True)
        for low, high in ranges
        for uid in range(low, high + 1)
    } == owner
    assert all(low <= high for ranges in found for low, high in ranges)


def steps_of(path: Path, users: int) -> int:
    """How many lines of Python it takes to tell so many users apart, and who of them is a worker."""
    path.write_text("".join(f"{2000 + user}:{100_000 + 70_000 * user}:65536\n" for user in range(users)))
    count, before = 0, sys.gettrace()

    def step(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal count
        count += 1
        return step

    sys.settrace(step)
    try:
        assert len(families(path)) == users
        assert len(with_subordinates([(2000, 2000 + users)], path)) == users + 1
    finally:
        sys.settrace(before)
    return count


def test_a_user_costs_the_same_among_many_as_among_few(tmp_path: Path) -> None:
    """useradd(8) gives each its own, to thousands: a plan of the rules has a minute, and the agent's loop waits for it."""
    path = tmp_path / "subuid"
    assert steps_of(path, 400) < 3 * steps_of(path, 200)


@pytest.mark.parametrize("text", ["", "alice", "alice:1", "alice:x:1", "alice:1:0", "alice:99999999999:5", "alice:4294967295:5", f"alice:{'9' * 5000}:5", "alice:٣٠٠٠:5", "alice:-1:5", "\x00\xff", "alice:100000:6 5536"])  # fmt: skip
def test_what_is_no_entry_says_nothing(tmp_path: Path, text: str) -> None:
    """It is a file of people's hands."""
    assert read(tmp_path, text + "\nbob:5000:1\n") == (((1001, 1001), (5000, 5000)),)


def test_the_last_uid_is_the_last(tmp_path: Path) -> None:
    """A range that goes on behind it ends there."""
    assert read(tmp_path, "alice:4294967000:4294967000\n") == (((1000, 1000), (4294967000, 4294967294)),)
    assert read(tmp_path, "alice:4294967294:1\n") == (((1000, 1000), (4294967294, 4294967294)),)


def test_what_is_not_there_is_nobodys(tmp_path: Path) -> None:
    """There is none on most machines."""
    for path in (tmp_path / "absent", tmp_path, tmp_path / "absent" / "too"):
        assert families(path) == ()
        assert unclear(path) == ()


def failing(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the file be opened in vain."""
    as_ever = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == path:
            raise OSError(number, "cannot be opened")
        return as_ever(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_what_cannot_be_read_is_not_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A disk that fails, a machine that has no descriptor or memory left: whose they are is not known then."""
    path = tmp_path / "subuid"
    path.write_text("alice:100000:65536\n")
    failing(path, monkeypatch, number)
    for read_ in (families, unclear, lambda file: with_subordinates([(1000, 1000)], file)):
        with pytest.raises(HostError, match="cannot be read"):
            read_(path)


def test_what_is_longer_than_is_read_is_not_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file would make its second half nobody's."""
    path = tmp_path / "subuid"
    path.write_text("1000:100000:65536\n")
    monkeypatch.setattr(subuid, "MOST_BYTES", path.stat().st_size)
    assert families(path) == (((1000, 1000), (100000, 165535)),)
    monkeypatch.setattr(subuid, "MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(HostError, match="got more"):
        families(path)


def test_whose_user_is_not_found_may_be_anybodys(tmp_path: Path) -> None:
    """One of a directory that does not answer yet, say; but it is never root."""
    path = tmp_path / "subuid"
    path.write_text(
        "carol:100000:65536\nalice:300000:10\nroot:400000:10\n7:500000:5\ndave:165536:4\ndave:0:3\nerin:0:1\n"
    )
    assert unclear(path, UIDS.get) == ((1, 2), (100000, 165539))


def test_a_worker_is_also_who_it_may_become(tmp_path: Path) -> None:
    """By its subordinate uids, and by theirs; root is nobody's, and who is no worker adds nothing."""
    path = tmp_path / "subuid"
    path.write_text("alice:5000:10\n5005:7000:10\nbob:9000:10\n5006:0:3\n5007:0:1\nroot:100000:65536\ncarol:8000:10\n")
    assert with_subordinates([(1000, 1000)], path, UIDS.get) == ((1, 2), (1000, 1000), (5000, 5009), (7000, 7009))
    assert with_subordinates([(2000, 2000)], path, UIDS.get) == ((2000, 2000),)
    assert with_subordinates([(900, 1001)], tmp_path / "absent", UIDS.get) == ((900, 1001),)


def test_names_are_those_of_the_machines_own_file(tmp_path: Path) -> None:
    """A line that says no uid is no user (passwd(5)); one that is not there has no uid."""
    path = tmp_path / "passwd"
    path.write_text(
        "alice:x:1000:1000::/home/alice:/bin/sh\nshort:x\nthree:x:7\nodd:x:-1:0:::\nnone:x::0:::\n\n+::::::\n"
    )
    known = LocalUsers(path)
    assert {name: known(name) for name in ("alice", "short", "three", "odd", "none", "+", "bob", "")} == {
        **dict.fromkeys(("short", "odd", "none", "+", "bob", "")), "alice": 1000, "three": 7
    }  # fmt: skip
    assert LocalUsers(tmp_path / "absent")("alice") is None


class TestWhose:
    def test_a_uid_counts_to_its_user(self, tmp_path: Path) -> None:
        """Within each range, at both ends; outside it is its own."""
        path = tmp_path / "subuid"
        path.write_text("1000:100000:65536\n1001:165536:65536\n")
        whose = Whose(path)
        for uid, owner in ((1000, 1000), (100000, 1000), (165535, 1000), (165536, 1001), (231071, 1001)):
            assert whose(uid) == owner
        for uid in (0, 999, 1002, 99999, 231072, 4294967294):
            assert whose(uid) == uid

    def test_the_file_is_read_again_when_it_changes(self, tmp_path: Path) -> None:
        """A user that is made later counts as one too; it is not looked at for every connection."""
        path = tmp_path / "subuid"
        now = [0.0]
        whose = Whose(path, lambda: now[0])
        assert whose(100000) == 100000
        path.write_text("1000:100000:65536\n")
        now[0] += LOOK_AGAIN_SECONDS
        assert whose(100000) == 100000
        now[0] += 1
        assert whose(100000) == 1000
        path.unlink()
        now[0] += LOOK_AGAIN_SECONDS + 1
        assert whose(100000) == 100000

    def test_what_was_known_stays_while_the_file_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else its users would have as many shares as uids, until somebody changes the file again."""
        path = tmp_path / "subuid"
        path.write_text("1000:100000:65536\n")
        now = [0.0]
        whose = Whose(path, lambda: now[0])
        assert whose(100000) == 1000
        path.write_text("1000:100000:65536\n1001:165536:65536\n")
        with monkeypatch.context() as while_it_fails:
            failing(path, while_it_fails, errno.ENFILE)
            now[0] += LOOK_AGAIN_SECONDS + 1
            assert (whose(100000), whose(165536)) == (1000, 165536)
        now[0] += LOOK_AGAIN_SECONDS + 1
        assert (whose(100000), whose(165536)) == (1000, 1001)

    def test_who_has_no_uid_here_goes_by_the_first_of_the_subordinate_ones(self, tmp_path: Path) -> None:
        """A user of a directory is one worker too, and the ranges that are told say the same."""
        path = tmp_path / "subuid"
        path.write_text("nobody-of-this-name:100000:65536\n1000:300000:2\n")
        now = [0.0]
        whose = Whose(path, lambda: now[0])
        assert whose.rows() == ((1000, 1000, 1000), (100000, 165535, 100000), (300000, 300001, 1000))
        assert (whose(100000), whose(165535), whose(300001)) == (100000, 100000, 1000)
        path.unlink()
        now[0] += LOOK_AGAIN_SECONDS + 1
        assert whose.rows() == ()

"""A job that needs a thread is done also where the machine has none any more, or whoever asked for it is told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agent.host import threads
from agent.host.threads import Kept, Threads


@pytest.fixture(params=[RuntimeError("can't start new thread"), MemoryError()], ids=["no number", "no memory"])
def none_left(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> threading.Event:
    """No thread can be begun until the event is set; with it the kept ones, of which there are none yet."""
    again = threading.Event()
    really = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if not again.is_set():
            raise request.param
        really(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(threads, "KEPT_THREADS", Kept())
    return again


def test_where_none_is_kept_whoever_asks_is_told_so(none_left: threading.Event) -> None:
    """The error is the kernel's own, as of any call that fails."""
    del none_left
    with pytest.raises(OSError, match="temporarily unavailable"):
        Threads().submit(lambda: 1).result(5)
    with pytest.raises(OSError, match="temporarily unavailable"):
        threads.begin(lambda: None, "work")


def test_kept_threads_do_what_there_is_no_thread_for(none_left: threading.Event) -> None:
    """More jobs than there are kept threads, each after the other."""
    none_left.set()
    threads.KEPT_THREADS.begin(2)
    none_left.clear()
    pool = Threads()
    names = {pool.submit(lambda: threading.current_thread().name).result(5) for _ in range(5)}
    assert names == {"kept"}


def test_a_thread_of_a_later_job_does_what_waits_for_a_stalled_one(none_left: threading.Event) -> None:
    """The only kept thread hangs on a disk: what waits for it is done as soon as there is another thread."""
    none_left.set()
    threads.KEPT_THREADS.begin(1)
    none_left.clear()
    stalled, pool = threading.Event(), Threads()
    first: Any = pool.submit(stalled.wait)
    waits: Any = pool.submit(lambda: "done")
    assert not waits.done()
    none_left.set()
    assert pool.submit(lambda: "at once").result(5) == "at once"
    assert waits.result(5) == "done"
    assert not first.done()
    stalled.set()
    assert first.result(5)


def test_no_more_are_kept_than_are_wanted(none_left: threading.Event) -> None:
    """Where none can be begun at the start either, that is no error: what needs one is refused later."""
    kept = Kept()
    kept.begin(2)
    with pytest.raises(OSError, match="temporarily unavailable"):
        kept.put(lambda: None)
    none_left.set()
    kept.begin(1)
    ran = threading.Event()
    kept.put(ran.set)
    assert ran.wait(5)


def test_kept_threads_that_could_not_be_begun_are_begun_later(none_left: threading.Event) -> None:
    """Those that were wanted when there was none are there as soon as any thread could be begun."""
    threads.KEPT_THREADS.begin(2)
    none_left.set()
    assert Threads().submit(lambda: 1).result(5) == 1
    none_left.clear()
    stalled, pool = threading.Event(), Threads()
    first = pool.submit(stalled.wait)
    assert pool.submit(lambda: threading.current_thread().name).result(5) == "kept"
    stalled.set()
    assert first.result(5)


def test_a_thread_that_dies_before_it_begins_holds_up_nobody(none_left: threading.Event) -> None:
    """There is no memory for its first steps, and nothing tells of that: a kept one does the work."""
    none_left.set()
    threads.KEPT_THREADS.begin(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "BEGUN_SECONDS", 0.01)
        patch.setattr(threading.Thread, "_bootstrap", lambda _thread: None)
        pool = Threads(1)
        done = [pool.submit(lambda: threading.current_thread().name).result(5) for _ in range(3)]
    assert done == ["kept"] * 3
    assert Threads(1).submit(lambda: threading.current_thread().name).result(5) == "aside"


def test_a_thread_that_begins_too_late_does_nothing_twice(none_left: threading.Event) -> None:
    """Nobody waits for it any more: whoever comes first does the work, the thread or a kept one."""
    none_left.set()
    threads.KEPT_THREADS.begin(1)
    times: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "BEGUN_SECONDS", 0.0)
        pool = Threads()
        for future in [pool.submit(times.append, number) for number in range(100)]:
            future.result(5)
    assert sorted(times) == list(range(100))


@pytest.mark.parametrize("error", [OSError(11, "Resource temporarily unavailable"), MemoryError()])
def test_no_more_run_at_once_than_may(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Further ones wait and are done; so it stays whatever was done before, or could not be, which whoever asked is told."""
    pool, lock, go = Threads(2), threading.Lock(), threading.Semaphore(0)
    now = most = 0

    def job() -> bool:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        done = go.acquire(timeout=60)
        with lock:
            now -= 1
        return done

    def refused(*_: object) -> None:
        raise error

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(threads, "begin", refused)
            assert [pool.submit(job).exception(60) for _ in range(3)] == [error] * 3
        futures = [pool.submit(job) for _ in range(6)]
        go.release(6)
        assert all(future.result(60) for future in futures)
        assert most <= 2

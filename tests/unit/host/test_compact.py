"""What a process gives back to the kernel, in a process of its own: what was forgotten there is of no other test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.host import memory

RESIDENT = """
from pathlib import Path

def resident(mode):
    "Of cryptography, what is so mapped and has no page of its own, in kB."
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            counts = rest[0] == mode and line.endswith("_rust.abi3.so")
        elif counts and first == "Rss:":
            size = int(rest[0])
        elif counts and first == "Anonymous:" and rest[0] == "0":
            found += size
    return found
"""

PROGRAM = (
    RESIDENT
    + """
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from agent.host import memory

rsa.generate_private_key(65537, 2048)
modes = ("r-xp", "r--p")
before = list(map(resident, modes))
memory.compact()
after = list(map(resident, modes))
assert all(before), "it is not found"
assert all(now < then / 4 for now, then in zip(after, before, strict=True)), (before, after)
assert ec.generate_private_key(ec.SECP256R1()).sign(b"x", ec.ECDSA(hashes.SHA256()))
"""
)

BESIDE = (
    RESIDENT
    + """
import sys, threading
from agent.host import memory

def load():
    from cryptography.hazmat.primitives.asymmetric import rsa
    rsa.generate_private_key(65537, 2048)

if sys.argv[1] == "before":
    load()
    memory.note_loaded()
going = threading.Event()
other = threading.Thread(target=going.wait)
other.start()
try:
    if sys.argv[1] == "after":
        load()
        memory.note_loaded()
    before = resident("r-xp")
    memory.compact()
    after = resident("r-xp")
finally:
    going.set()
    other.join()
assert before > 0, "its text is not found"
assert (after < before / 2) is (sys.argv[1] == "before"), (before, after)
"""
)

HEAP = """
import ctypes, gc, weakref
from pathlib import Path
from agent.host import memory

class Thing:
    pass

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

gc.disable()
thing = Thing()
thing.own, gone = thing, weakref.ref(thing)
del thing
holes = [bytearray(4000) for _ in range(10_000)]
last = bytearray(4000)
del holes
before = resident()
memory.compact()
after = resident()
assert gone() is None, "what nobody holds was not collected"
assert gc.get_freeze_count() > 1000
if hasattr(ctypes.CDLL(None), "malloc_trim"):
    assert after < before - 20_000, (before, after)
"""

WRITTEN = """
import ctypes, mmap
from agent.host import memory

page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.write(b"made here")
where = ctypes.addressof(ctypes.c_char.from_buffer(page))
READ_AND_RUN = mmap.PROT_READ | mmap.PROT_EXEC
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(where), mmap.PAGESIZE, READ_AND_RUN) == 0
memory.compact()
assert ctypes.string_at(where, 9) == b"made here"
"""

RELOCATED = """
import ctypes, mmap, sys, tempfile
from agent.host import memory

with tempfile.TemporaryFile() as file:
    file.write(b"as in the file".ljust(4 * mmap.PAGESIZE))
    file.flush()
    pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
pages.seek(2 * mmap.PAGESIZE)
pages.write(b"relocated")
where = ctypes.addressof(ctypes.c_char.from_buffer(pages))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(where), len(pages), mmap.PROT_READ) == 0
memory.compact()
assert ctypes.string_at(where, 14) == b"as in the file"
assert ctypes.string_at(where + 2 * mmap.PAGESIZE, 9) == b"relocated"
"""


MAPPING = b"7f00000000-7f00003000 r--p 00001000 08:01 77                       /usr/lib/a library.so"
"""As the kernel says it in both files."""


def smaps(*entries: tuple[bytes, int | None, int | None]) -> bytes:
    """What the kernel says of mappings: kB of their own in memory, and swapped out; ``None``: that line is missing."""
    said = b""
    for mapping, own, swapped in entries:
        said += mapping + b"\nSize:                 12 kB\nRss:                   8 kB\n"
        said += b"" if own is None else b"Anonymous: %14d kB\n" % own
        said += b"AnonHugePages:         0 kB\n"
        said += b"" if swapped is None else b"Swap: %19d kB\n" % swapped
        said += b"SwapPss:               0 kB\nVmFlags: rd mr mw me sd \n"
    return said


def run(program: str, *argv: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_start_needed_of_libraries_is_resident_no_more() -> None:
    """Their text and constants are given back, and come again where they are needed: keys are made as before."""
    run(PROGRAM)


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_what_is_loaded_beside_another_thread_stays(loaded: str) -> None:
    """Only what was there before a second thread is known to be complete."""
    run(BESIDE, loaded)


def test_what_was_written_of_a_file_stays() -> None:
    """Pages that the loader relocated can be written no more, and no file has them."""
    run(RELOCATED)


@pytest.mark.parametrize(
    ("mapping", "own", "swapped", "found"),
    [
        (MAPPING, 0, 0, [(0x7F00000000, 0x3000)]),
        (MAPPING.replace(b"r--p", b"r-xp"), 0, 0, [(0x7F00000000, 0x3000)]),
        (MAPPING.replace(b"r--p", b"rw-p"), 0, 0, []),
        (MAPPING.replace(b"r--p", b"r--s"), 0, 0, []),
        (MAPPING.replace(b" 77 ", b" 0 "), 0, 0, []),
        (MAPPING, 4, 0, []),
        (MAPPING, 0, 4, []),
        (MAPPING, None, 0, []),
        (MAPPING, 0, None, []),
    ],
)
def test_clean_is_what_no_page_of_differs_from_the_file(
    mapping: bytes, own: int | None, swapped: int | None, found: list[tuple[int, int]]
) -> None:
    """A page that was written is the process's own, in memory or swapped out; what is not told is taken for that."""
    other = MAPPING.replace(b"7f0", b"6f0")
    said = smaps((other, 0, 0), (mapping, own, swapped), (other, 0, 0))
    assert list(memory.clean(said.splitlines(keepends=True), {mapping + b"\n"})) == found


def test_what_nobody_holds_is_given_back() -> None:
    """Objects and the holes between those that stay; and no collection looks at the latter again."""
    run(HEAP)


def test_text_that_was_made_in_memory_stays() -> None:
    """A library writes calls for itself, and lets them be run: no file has them, so they are not to be forgotten."""
    run(WRITTEN)

"""What a process gives back to the kernel, in a process of its own: what was forgotten there is of no other test."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from pathlib import Path
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from agent.host import memory

def resident():
    "Of cryptography's text, in kB."
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            counts = rest[0] == "r-xp" and line.endswith("_rust.abi3.so")
        elif counts and first == "Rss:":
            found += int(rest[0])
    return found

rsa.generate_private_key(65537, 2048)
before = resident()
memory.compact()
after = resident()
assert before > 0, "its text is not found"
assert after < before / 4, (before, after)
assert ec.generate_private_key(ec.SECP256R1()).sign(b"x", ec.ECDSA(hashes.SHA256()))
"""

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


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_text_that_the_start_needed_is_resident_no_more() -> None:
    """Libraries' text is given back, and comes again where it is needed: keys are made as before."""
    run(PROGRAM)


def test_what_nobody_holds_is_given_back() -> None:
    """Objects and the holes between those that stay; and no collection looks at the latter again."""
    run(HEAP)


def test_text_that_was_made_in_memory_stays() -> None:
    """A library writes calls for itself, and lets them be run: no file has them, so they are not to be forgotten."""
    run(WRITTEN)

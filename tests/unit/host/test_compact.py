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


def test_the_text_that_the_start_needed_is_resident_no_more() -> None:
    """Libraries' text is given back, and comes again where it is needed: keys are made as before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""The JOSE peers that this machine can run, and what each can do."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETUP = "run tests/conformance/jose/setup"


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        command: how to run it.
        missing: why it cannot be run here; empty when it can.
        x25519: forms in which it speaks X25519.
        without: cases its library cannot make or read.
    """

    name: str
    command: tuple[str, ...]
    missing: str
    x25519: frozenset[str]
    without: frozenset[str] = frozenset()

    def run(self, what: str, request: dict[str, Any]) -> str:
        done = subprocess.run(
            [*self.command, what], input=json.dumps(request), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _missing(tool: str, built: Path) -> str:
    if shutil.which(tool) is None and tool != "-":
        return f"no {tool} on this machine"
    return "" if built.exists() else SETUP


EVERY = frozenset({"general", "flattened", "compact"})
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "panva",
            ("node", str(HERE / "panva" / "peer.mjs")),
            _missing("node", HERE / "panva" / "node_modules" / "jose"),
            EVERY,
        ),
        Peer("gojose", (str(HERE / ".build" / "gojose"),), _missing("-", HERE / ".build" / "gojose"), frozenset()),
        Peer(
            "nimbus",
            ("java", "-cp", f"{HERE}/nimbus/target/classes:{HERE}/nimbus/target/lib/*", "Peer"),
            _missing("java", HERE / "nimbus" / "target" / "classes" / "Peer.class"),
            frozenset({"compact"}),
            # Its JSON form with one recipient puts epk into a shared unprotected header, and seals over another
            # protected header than it writes (10.5): one recipient is the compact form's business there.
            frozenset({"general-one", "flattened-p256", "flattened-rsa"}),
        ),
        Peer(
            "jwcrypto",
            (sys.executable, str(HERE / "jwcrypto_peer.py")),
            "" if importlib.util.find_spec("jwcrypto") else "jwcrypto is not installed",
            EVERY,
        ),
    )
}

#: name: (signer, recipients, form, direct); names of tests/vectors/bundle/keys.json
CASES: dict[str, tuple[str, tuple[str, ...], str, bool]] = {
    "general-mixed": ("signer-ed25519", ("worker-p256", "worker-rsa", "group", "fellow"), "general", False),
    "general-x25519": ("signer-ed25519", ("worker-p256", "worker-x25519"), "general", False),
    "general-two-p256": ("signer-p256", ("worker-p256", "worker-previous"), "general", False),
    "general-one": ("signer-p256", ("worker-p256",), "general", False),
    "flattened-p256": ("signer-p256", ("worker-p256",), "flattened", False),
    "flattened-rsa": ("signer-ed25519", ("worker-rsa",), "flattened", False),
    "compact-p256": ("signer-ed25519", ("worker-p256",), "compact", False),
    "compact-direct": ("signer-ed25519", ("worker-p256",), "compact", True),
    "compact-x25519": ("signer-p256", ("worker-x25519",), "compact", False),
    "compact-rsa": ("signer-p256", ("worker-rsa",), "compact", False),
    "compact-group": ("signer-p256", ("group",), "compact", False),
}


def able(peer: Peer, case: str) -> bool:
    """Whether the peer's library has what the case needs."""
    _, recipients, form, _ = CASES[case]
    return case not in peer.without and ("worker-x25519" not in recipients or form in peer.x25519)

"""The parts of a daemon that a reload touches, wired as :class:`agent.daemon.Daemon` does, in one loop with the test."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent import bundle
from agent.controller import Controller
from agent.core.clock import Clock
from agent.core.secret import Secret
from agent.core.verdict import Memory
from agent.daemon import compose
from agent.daemon.configured import Configured
from agent.daemon.prepare import Prepared
from agent.daemon.publish import Publisher
from agent.daemon.ready import Readiness
from agent.daemon.reload import Reloader
from agent.daemon.who import Who
from agent.host import systemd
from agent.host.clock import SystemClock
from agent.identity.store import Store
from tests.fakes.silent_files import SilentFile
from tests.system.harness import ISSUER, merged, toml


class Worker:
    """A directory with a worker's files, and the parts.

    Args:
        root: an empty directory.
        looks: tells the reloader when to look at files again.
        notify: the socket of a service manager that is told; ``None``: there is none.
    """

    def __init__(self, root: Path, *, looks: Clock | None = None, notify: str | None = None) -> None:
        self.root = root
        for name in ("etc", "run", "state"):
            (root / name).mkdir(mode=0o700)
        self.signer = bundle.SigningKey.generate("Ed25519")
        self.key = bundle.OpeningKey.generate("P-256")
        (root / "etc" / "worker.jwk").write_text(json.dumps({**self.key.private_jwk(), "kid": self.key.kid}))
        (root / "etc" / "worker.jwk").chmod(0o600)
        self.signer_file = root / "etc" / "sender.jwk"
        self.signer_file.write_text(json.dumps({**self.signer.public_jwk(), "kid": self.signer.kid}))
        self.base: dict[str, Any] = {
            "listen": {"control": root / "run" / "control"},
            "identity": {"instance_id": "i-1", "grace_seconds": 0.0},
            "keys": [{"kind": "file", "path": root / "etc" / "worker.jwk"}],
            "signers": [{"key": self.signer_file, "issuers": [ISSUER]}],
            "upstream": {"ec2": "off", "gce": "off"},
            "environment": {
                "file": root / "run" / "env",
                "shell_file": root / "run" / "env.sh",
                "token_file": root / "run" / "token",
                "mode": "0600",
            },
            "state": {"directory": root / "state"},
        }
        self.configuration = root / "etc" / "config.toml"
        self.configure({})
        self.file = Configured(self.configuration)
        settings = self.file.first({})
        self.clock = SystemClock()
        rng = random.Random(1)
        self.prepared = Prepared(settings, environ={}, clock=self.clock, rng=rng, hear=lambda _w, _d, _t: None)
        who = Who(self.prepared.metadata, self.clock, configured="i-1", root=root)
        self.store = Store(compose.policy(settings), Memory("i-1"), self.clock.now(), rng)
        self.controller = Controller(
            store=self.store,
            issuer=self.prepared.mint,
            opener=self.prepared.opening,
            recorder=self.prepared.state,
            sources=[self.prepared.push],
            clock=self.clock,
            rng=rng,
        )
        self.prepared.opening.accepted = lambda: self.controller.durable.sealed
        self.prepared.opening.in_force = lambda: self.store.bundle is not None
        self.publisher = Publisher(
            settings.environment,
            store=self.store,
            clock=self.clock,
            address="127.0.0.1:1",
            token=self.prepared.tokens.present,
            path_id=Secret("path"),
            gid=self.prepared.gid,
            expects_bundle=True,
        )
        self.readiness = Readiness(systemd.Notifier(notify), self.clock, self.store, self.clock.now())
        self.handed: list[str] = []
        self.rekeyed: list[str] = []
        self.reloader = Reloader(
            settings,
            file=self.file,
            prepared=self.prepared,
            who=who,
            controller=self.controller,
            publisher=self.publisher,
            readiness=self.readiness,
            clock=looks or self.clock,
            hand_over=lambda: self.handed.append(self.file.text),
            keys_changed=lambda: self.rekeyed.append(self.file.text),
        )

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Write the configuration: the base with ``changes``, by a rename."""
        new = self.configuration.with_suffix(".new")
        new.write_text(toml(merged(self.base, changes)))
        new.replace(self.configuration)

    @property
    def token(self) -> Path:
        return self.root / "run" / "token"

    def stall(self, path: Path) -> SilentFile:
        """Have ``path`` answer nobody until the test says what it holds."""
        return SilentFile(path)

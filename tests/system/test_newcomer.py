"""An operator with a fresh machine and README.md: what stands there is typed as it stands, by a root who hides everything."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from agent import bundle
from agent.core.model import AwsSession
from agent.core.secret import Secret
from tests.system import machine as m
from tests.system.machine import Disk, Machine, python
from tests.test_docs import commands

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("newcomer")]

PAGE = (m.REPOSITORY / "README.md").read_text()


OPERATIONS = (m.REPOSITORY / "systemd/OPERATIONS.md").read_text()


def section(name: str, page: str = PAGE) -> str:
    return page.split(f"\n## {name}\n")[1].split("\n## ", maxsplit=1)[0]


def blocks(kind: str, name: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", section(name, page), re.DOTALL)


class Newcomer:
    """Root, with a home, a umask and no other shell than the system's; their laptop has sealed an identity."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        home = machine.root / "root"
        shutil.copytree(m.payload(), home / "packer", symlinks=False)
        self._signer, key = bundle.SigningKey.generate("Ed25519"), bundle.OpeningKey.generate("P-256")
        (home / "worker.jwk").write_text(json.dumps(key.private_jwk()))
        (home / "sender.pub.jwk").write_text(json.dumps(self._signer.public_jwk()))
        self.seal(json.dumps(key.public_jwk()), 1)

    def seal(self, public: str, seq: int) -> None:
        """What the laptop does: a bundle to that key, in root's home."""
        now = datetime.now(UTC)
        session = AwsSession(
            id="aws", access_key_id=m.USER_KEY, secret_access_key=Secret("s" * 40), session_token=Secret("t" * 80),
            expires_at=int((now + timedelta(hours=6)).timestamp()),
        )  # fmt: skip
        recipient = bundle.RecipientKey.parse(public)
        sealed = bundle.seal(
            signer=self._signer, recipients=[recipient], issuer="laptop:ada@desk", subject="default",
            audiences=[bundle.audience_key(recipient.kid)], now=now, grants=[session], seq=seq,
        )  # fmt: skip
        (self.machine.root / "root/bundle.jose").write_bytes(sealed)

    def types(self, line: str) -> str:
        """Type a line at root's prompt; what it says."""
        done = self.machine.result("sh", "-c", f"cd; umask 077; {line}", seconds=170)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def follow(self, name: str, page: str = PAGE) -> str:
        """Type every line that a section tells root to; what all of them say."""
        lines = [line for block in blocks("console", name, page) for line in commands(block)]
        # This machine has no network: it has its packages, and the payload carries the agent's.
        return "".join(
            self.types(line.replace("packer/install.sh", "packer/install.sh --no-packages")) for line in lines
        )


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    reason = m.missing()
    if reason:
        pytest.skip(reason)
    with closing(Disk(tmp_path_factory.mktemp("newcomer") / "disk", [m.base_image()])) as disk, m.ec2() as cloud:
        for package in m.sdk():
            shutil.copytree(package, disk.root / "opt/sdk" / package.name)
        with Machine(disk, cloud) as machine:
            yield Newcomer(machine)


def test_the_first_look_after_the_installation_finds_nothing_wrong(newcomer: Newcomer) -> None:
    """`status` right after the script says that workers' requests arrive, and not what was before the agent listened."""
    newcomer.follow("Install")
    assert "redirect: workers' requests arrive" in newcomer.types("credential-agent status || true")


def test_the_page_leads_from_a_bundle_to_a_program_that_has_it(newcomer: Newcomer) -> None:
    """Configure and Deliver, line by line: no line fails, and a program of an ordinary user has the laptop's identity."""
    (added,) = blocks("toml", "Configure")
    with (newcomer.machine.root / "etc/credential-agent/config.toml").open("a") as file:
        file.write(added)
    newcomer.follow("Configure")
    assert "from the bundle" in newcomer.follow("Deliver")
    found = newcomer.machine.run(*python(m.AWS), uid=m.WORKER_UID).strip()
    assert found == m.USER_KEY


def test_an_ordinary_user_is_told_of_no_mistake_on_a_sound_machine(newcomer: Newcomer) -> None:
    """`doctor` and `whoami` of a user in no group: the identity, and nothing that the user or root should mend."""
    said = newcomer.machine.run("credential-agent", "whoami", uid=m.WORKER_UID)
    assert "from the bundle" in said
    done = newcomer.machine.result("credential-agent", "doctor", uid=m.WORKER_UID)
    assert done.returncode == 0, done.stdout
    assert "chown" not in done.stdout


def test_a_key_is_changed_without_an_end(newcomer: Newcomer) -> None:
    """Change a key, line by line: a bundle to the new key is taken, and the old key's entry and file can go."""
    newcomer.follow("Change a key", OPERATIONS)
    newcomer.seal((newcomer.machine.root / "root/worker-2.pub.jwk").read_text(), 2)
    newcomer.follow("Deliver")
    newcomer.machine.until(lambda: "bundle: seq 2 " in newcomer.types("credential-agent status"), what="the new bundle")
    file = newcomer.machine.root / "etc/credential-agent/config.toml"
    old = '[[keys]]\nkind = "file"                                     # or credential, aws-kms, gcp-kms, ephemeral\n'
    old += 'path = "/etc/credential-agent/worker.jwk"\n'
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, ""))
    newcomer.types("systemctl reload credential-agent")
    newcomer.types("rm /etc/credential-agent/worker.jwk")
    newcomer.types("systemctl restart credential-agent")
    assert "bundle: seq 2 " in newcomer.types("credential-agent status")
    assert newcomer.machine.run(*python(m.AWS), uid=m.WORKER_UID).strip() == m.USER_KEY

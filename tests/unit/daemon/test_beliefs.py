"""Which keys and signers a start and a reload come to, from files that are there, away, or not what they should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from agent import bundle, config, keys
from agent.core.errors import ConfigError, Denied
from agent.core.model import Cloud
from agent.daemon import beliefs
from agent.daemon.beliefs import Away, Faults, Former
from agent.daemon.opening import REMEMBERED, Opened, Opening
from agent.providers import Mint
from agent.upstream import Upstream
from tests.fakes.clock import START
from tests.unit.identity.worlds import aws_credential, google_token

ARN = "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-0000-0000-000000000000"
VERSION = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"
NOBODY = cast("Upstream", None)


def public(path: Path, *, of: bundle.SigningKey | None = None) -> str:
    """A signer's public key in a file; its text."""
    key = of or bundle.SigningKey.generate("Ed25519")
    path.write_text(json.dumps({**key.public_jwk(), "kid": key.kid}))
    return path.read_text()


def signers(*entries: config.SignerEntry) -> config.Config:
    return config.Config(signers=entries)


def entry(path: Path, **fields: Any) -> config.SignerEntry:
    return config.SignerEntry(key=str(path), **{"issuers": ("*",), **fields})


def kids(trust: bundle.Trust) -> list[str]:
    return [one.kid for one in trust.signers]


def private(path: Path) -> bundle.OpeningKey:
    """A worker's key in a file."""
    key = bundle.OpeningKey.generate("P-256")
    path.write_text(json.dumps({**key.private_jwk(), "kid": key.kid}))
    path.chmod(0o600)
    return key


def half(path: Path, kind: Literal["P-256", "RSA"] = "P-256") -> str:
    """The public half of a key that a service has, in a file; its id."""
    key = bundle.OpeningKey.generate(kind).recipient_key()
    path.write_text(json.dumps({**key.public_jwk(), "kid": key.kid}))
    return key.kid


def keyring(
    *entries: config.KeyEntry,
    away: Away | None = None,
    directory: Path | None = None,
    ephemeral: keys.LocalKey | None = None,
    mint: object = None,
) -> keys.Keyring:
    return beliefs.keyring(
        config.Config(keys=entries),
        out=NOBODY,
        mint_=cast("Mint", mint),
        credentials_directory=None if directory is None else str(directory),
        ephemeral=ephemeral,
        away=away or Former(),
    )


SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "junk": lambda path: path.write_text("{}"),
    "empty": lambda path: path.write_text(" \n"),
    "no text": lambda path: path.write_bytes(b"\xff"),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b" " * beliefs.MAX_PUBLIC_BYTES),
}


class TestSigners:
    def test_each_is_trusted_for_what_its_entry_says(self, tmp_path: Path) -> None:
        """No signer has what another one was given, and what is not limited is not."""
        for name in "ab":
            public(tmp_path / name)
        found = beliefs.trust(
            signers(
                entry(tmp_path / "a", issuers=("https://cp",), audiences=("urn:team",), max_lease_seconds=60),
                entry(tmp_path / "b", issuers=("laptop:*",)),
            ),
            Former(),
        ).signers
        assert [(one.issuers, one.audiences, one.max_lease) for one in found] == [
            (("https://cp",), ("urn:team",), timedelta(seconds=60)),
            (("laptop:*",), ("*",), None),
        ]

    @pytest.mark.parametrize("spoilt", SPOILT)
    def test_a_file_that_is_spoilt_costs_its_own_signer_alone_and_only_at_a_start(
        self, tmp_path: Path, spoilt: str
    ) -> None:
        """The others are trusted; what the process before had read of it is trusted on; a reload is refused."""
        path, other = tmp_path / "a", tmp_path / "b"
        text = public(path)
        public(other)
        settings = signers(entry(path), entry(other))
        both = kids(beliefs.trust(settings, Former()))
        SPOILT[spoilt](path)

        away = Away()
        assert kids(beliefs.trust(settings, away)) == both[1:]
        assert away.reasons.keys() == {"signers[0].key"}
        assert away.files == {str(other): other.read_text()}

        handed = Away({str(path): text})
        assert kids(beliefs.trust(settings, handed)) == both
        assert handed.reasons.keys() == {"signers[0].key"}
        assert handed.files[str(path)] == text

        with pytest.raises(ConfigError, match=r"^signers\[0\]\.key: "):
            beliefs.trust(settings, Former())

    def test_what_was_read_before_and_is_taken_no_more_is_away(self, tmp_path: Path) -> None:
        """It costs that signer alone at a restart too, as at a first start."""
        other = tmp_path / "b"
        public(other)
        settings = signers(entry(tmp_path / "a"), entry(other))
        first, restart = Away(), Away({str(tmp_path / "a"): "a key of another version"})
        assert kids(beliefs.trust(settings, restart)) == kids(beliefs.trust(settings, first))
        assert restart.reasons == first.reasons

    def test_all_faults_are_told_in_one_go(self, tmp_path: Path) -> None:
        """A check names each entry."""
        faults = Faults()
        beliefs.trust(signers(entry(tmp_path / "a"), entry(tmp_path / "b")), faults)
        assert [key for key, _ in faults.errors] == ["signers[0].key", "signers[1].key"]

    def test_one_key_is_pinned_once(self, tmp_path: Path) -> None:
        """For what it would be trusted is not said: that is a mistake of the configuration, for each who looks."""
        key = bundle.SigningKey.generate("Ed25519")
        for name in "ab":
            public(tmp_path / name, of=key)
        settings = signers(entry(tmp_path / "a"), entry(tmp_path / "b", issuers=("laptop:*",)))
        for away in (Former(), Away()):
            with pytest.raises(ConfigError, match=f"^signers: .*{key.kid}"):
                beliefs.trust(settings, away)
        faults = Faults()
        beliefs.trust(settings, faults)
        assert [key for key, _ in faults.errors] == ["signers"]


class TestKeys:
    def test_they_are_in_the_order_of_the_configuration(self, tmp_path: Path) -> None:
        """Of each kind; the key that was made at an earlier start is used again, and else a new one is made."""
        file, passed = (private(tmp_path / name) for name in ("file", "passed"))
        aws, google = half(tmp_path / "aws"), half(tmp_path / "google", "RSA")
        made = keys.ephemeral_key()
        entries = (
            config.EphemeralKey(),
            config.FileKey(path=str(tmp_path / "file")),
            config.CredentialKey(name="passed"),
            config.AwsKmsKey(key_id=ARN, public_key=str(tmp_path / "aws")),
            config.GcpKmsKey(key_version=VERSION, public_key=str(tmp_path / "google")),
        )
        found = keyring(*entries, directory=tmp_path, ephemeral=made)
        assert [(key.kind, key.kid) for key in found.keys] == [
            ("ephemeral", made.kid), ("file", file.kid), ("systemd", passed.kid), ("aws-kms", aws), ("gcp-kms", google),
        ]  # fmt: skip
        assert found.absent == ()
        (other,) = keyring(config.EphemeralKey()).kids
        assert other != made.kid

    @pytest.mark.parametrize("given", ["no directory", "no file", "an empty file"])
    def test_a_credential_that_was_not_passed_is_absent_and_no_fault(self, tmp_path: Path, given: str) -> None:
        """For a reload neither; the keys beside it are there."""
        made = private(tmp_path / "file")
        if given == "an empty file":
            (tmp_path / "worker").touch()
        found = keyring(
            config.CredentialKey(name="worker"),
            config.FileKey(path=str(tmp_path / "file")),
            directory=None if given == "no directory" else tmp_path,
        )
        assert (found.kids, found.absent) == ((made.kid,), ("worker",))

    @pytest.mark.parametrize(
        "one",
        [
            config.FileKey(path="/nonexistent/key"),
            config.FileKey(path="/dev/null"),
            config.AwsKmsKey(key_id=ARN, public_key="/nonexistent/key"),
            config.GcpKmsKey(key_version=VERSION, public_key="/dev/null"),
        ],
        ids=str,
    )
    def test_one_that_may_come_yet_is_away_at_a_start(self, one: config.KeyEntry) -> None:
        """It is absent, so that what it opened before stays open; a reload is refused."""
        away = Away()
        found = keyring(config.EphemeralKey(), one, away=away)
        assert (len(found.kids), found.absent) == (1, ("keys[1]",))
        assert away.reasons.keys() == {"keys[1]"}
        with pytest.raises(ConfigError, match=r"^keys\[1\]"):
            keyring(config.EphemeralKey(), one)

    @pytest.mark.parametrize("one", ["an alias that is none", "a name with a slash", "dots"])
    def test_a_mistake_in_its_own_entry_never_passes(self, tmp_path: Path, one: str) -> None:
        """Nothing that comes to lie anywhere makes it right: the start ends. A check tells it with the others."""
        half(tmp_path / "pub")
        entries: dict[str, config.KeyEntry] = {
            "an alias that is none": config.AwsKmsKey(key_id="alias/x", public_key=str(tmp_path / "pub")),
            "a name with a slash": config.CredentialKey(name="a/b"),
            "dots": config.CredentialKey(name=".."),
        }
        wrong = entries[one]
        with pytest.raises(ConfigError, match=r"^keys\[0\]: "):
            keyring(wrong, away=Away())
        faults = Faults()
        assert keyring(wrong, config.FileKey(path="/nonexistent"), away=faults).absent == ("keys[0]", "keys[1]")
        assert [key for key, _ in faults.errors] == ["keys[0]", "keys[1]"]

    def test_one_key_is_there_once(self, tmp_path: Path) -> None:
        """Twice is a mistake of the configuration, for each who looks."""
        key = private(tmp_path / "key")
        entries = (config.EphemeralKey(), *2 * (config.FileKey(path=str(tmp_path / "key")),))
        for away in (Former(), Away()):
            with pytest.raises(ConfigError, match=f"^keys: .*{key.kid}"):
                keyring(*entries, away=away)
        faults = Faults()
        assert key.kid in keyring(*entries, away=faults).kids
        assert [name for name, _ in faults.errors] == ["keys"]

    def test_the_public_half_of_before_does_while_its_file_is_away(self, tmp_path: Path) -> None:
        """The key service has the other half: nothing need wait for the file."""
        path = tmp_path / "pub"
        kid = half(path)
        one = config.AwsKmsKey(key_id=ARN, public_key=str(path))
        before = Away()
        keyring(one, away=before)
        assert before.files == {str(path): path.read_text()}
        path.unlink()
        away = Away(before.files)
        assert keyring(one, away=away).kids == (kid,)
        assert away.reasons.keys() == {"keys[0].public_key"}
        assert away.files == before.files

    @pytest.mark.parametrize("cloud", list(Cloud))
    @pytest.mark.parametrize("issued", ["the machine's", "none", "another cloud's"])
    def test_a_key_service_is_asked_as_the_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, issued: str
    ) -> None:
        """Never as a bundle, which that key must open first; where the machine has no identity it is not asked."""
        own, others = {
            Cloud.AWS: (aws_credential(START), google_token(START)),
            Cloud.GCP: (google_token(START), aws_credential(START)),
        }[cloud]
        credential = {"the machine's": own, "another cloud's": others, "none": None}[issued]
        asked: list[Cloud] = []

        class Machine:
            async def instance(self, of: Cloud, _now: object) -> object:
                asked.append(of)
                return None if credential is None else SimpleNamespace(credential=credential)

        made: dict[str, Any] = {}

        def kms(**given: Any) -> SimpleNamespace:
            made.update(given)
            return SimpleNamespace(kid="k")

        for name in ("AwsKmsKey", "GcpKmsKey"):
            monkeypatch.setattr(keys, name, kms)
        half(tmp_path / "pub")
        pub = str(tmp_path / "pub")
        keyring(
            config.AwsKmsKey(key_id=ARN, public_key=pub)
            if cloud is Cloud.AWS
            else config.GcpKmsKey(key_version=VERSION, public_key=pub),
            mint=Machine(),
        )
        give = made["credentials" if cloud is Cloud.AWS else "token"]
        if issued == "the machine's":
            assert asyncio.run(give(START)) is own
        else:
            with pytest.raises(Denied, match="identity of its own"):
                asyncio.run(give(START))
        assert asked == [cloud]


class TestRemembered:
    @pytest.mark.parametrize("accepted", [b"first", None])
    def test_a_flood_drops_the_oldest_but_never_what_was_accepted(self, accepted: bytes | None) -> None:
        """Anybody can seal to our public key: so many are kept beside the one that a restart needs."""
        opening = Opening(keys.Keyring([]), bundle.Trust(()), frozenset())
        opening.accepted = lambda: accepted
        flood = [b"first", *(b"%d" % number for number in range(10))]
        for sealed in flood:
            opening.remember(sealed, Opened(sealed, "kid"))
        kept = [sealed for sealed in flood if opening.opened(sealed) is not None]
        assert kept == ([accepted] if accepted is not None else [flood[-REMEMBERED - 1]]) + flood[-4:]

    def test_what_comes_again_is_new(self) -> None:
        """A source that goes on to bring the same bytes has them opened once."""
        opening = Opening(keys.Keyring([]), bundle.Trust(()), frozenset())
        for sealed in (b"a", b"b", b"c", b"d", b"e", b"a", b"f"):
            opening.remember(sealed, Opened(sealed, "kid"))
        assert opening.opened(b"a") is not None
        assert opening.opened(b"b") is None

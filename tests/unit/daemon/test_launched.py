"""Which signers did the launch name? Places are real (directories, both metadata services); the clock is the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from agent import bundle, config
from agent.bundle.short_key import short_key
from agent.daemon import launched
from agent.daemon.launched import ASK_SECONDS, LOOK_SECONDS, Launched, told
from agent.upstream import Ec2Metadata, GceMetadata, Upstream
from agent.wire.signers import MAX_SIGNERS, line
from tests.fakes.clock import FakeClock, settle
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.unit.daemon.test_reload_between import come_true

EC2 = config.Ec2UserDataSigners(issuers=("laptop:*",), max_lease_seconds=7200)
TAG = config.Ec2TagSigners(issuers=("laptop:*",))
GCE = config.GceAttributeSigners(issuers=("laptop:*",))
CREDENTIAL = config.CredentialSigners(issuers=("laptop:*",))
KEYS = [bundle.SigningKey.generate("Ed25519").verify_key() for _ in range(MAX_SIGNERS + 2)]
ONE, TWO = KEYS[0], KEYS[1]


def directory(path: Path, **more: object) -> config.DirectorySigners:
    return config.DirectorySigners(**{"issuers": ("laptop:*",), "path": str(path), **more})  # type: ignore[arg-type]


class World:
    """A machine with both metadata services, where credentials lie in ``here``."""

    def __init__(self, here: Path, ec2: Ec2MetadataService, gce: GceMetadataServer, out: Upstream) -> None:
        self.here, self.ec2, self.gce = here, ec2, gce
        self.clock = FakeClock()
        self._out = out
        self._ways = Ec2Metadata(out, self.clock, ec2.url), GceMetadata(out, gce.url)

    def at(self, url: str) -> tuple[Ec2Metadata, GceMetadata]:
        """Both clouds' services are asked at one address, as on a machine."""
        return Ec2Metadata(self._out, self.clock, url), GceMetadata(self._out, url)

    def made(
        self,
        *entries: config.LaunchSignersEntry,
        left: Mapping[str, str] | None = None,
        services: bool = True,
        ways: tuple[Ec2Metadata, GceMetadata] | None = None,
    ) -> Launched:
        ec2, gce = (ways or self._ways) if services else (None, None)
        return Launched(
            entries, ec2=ec2, gce=gce, credentials_directory=str(self.here), left=left or {}, clock=self.clock
        )

    def silence(self) -> None:
        for one in (self.ec2, self.gce):
            one.faults.append(Fault(drop=True, times=None))


def play(here: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        out = Upstream()
        try:
            async with Ec2MetadataService() as ec2, GceMetadataServer() as gce:
                await scenario(World(here, ec2, gce, out))
        finally:
            await out.close()

    asyncio.run(main())


def kids(of: Launched) -> list[str]:
    return [signer.kid for signer in of.trust.signers]


def test_each_place_names_signers_within_the_bounds_of_its_entry(tmp_path: Path) -> None:
    """Issuers, audiences and the longest lease are the configuration's; only the key is the launch's."""

    async def scenario(world: World) -> None:
        word = short_key(ONE)
        world.ec2.user_data = f"#cloud-config\n# {line(word)}\n".encode()
        world.ec2.tags["credential-agent-signer"] = word
        world.gce.attributes["credential-agent-signer"] = json.dumps(ONE.public_jwk())
        (tmp_path / "credential-agent.signers").write_text(f"# keys\n{line(word)}\n")
        (tmp_path / "one.pub").write_text(word)
        for entry in (EC2, TAG, GCE, CREDENTIAL, directory(tmp_path, audiences=("urn:a",))):
            found = world.made(entry)
            assert await found.look()
            (signer,) = found.trust.signers
            assert signer.kid == ONE.kid
            assert (signer.issuers, signer.audiences) == (entry.issuers, entry.audiences)
            assert signer.max_lease == timedelta(seconds=entry.max_lease_seconds)
            (said,) = told(found.trust)
            assert said["origin"] == entry.__struct_config__.tag
            assert not await found.look()  # and it is news once

    play(tmp_path, scenario)


def test_a_key_that_two_places_name_is_had_from_the_first_entry(tmp_path: Path) -> None:
    """The order of the configuration decides whose bounds hold, whatever answers first."""

    async def scenario(world: World) -> None:
        (tmp_path / "one.pub").write_text(short_key(ONE))
        world.ec2.user_data = line(short_key(ONE)).encode()
        bounded = directory(tmp_path, issuers=("only:this",))
        for entries, issuers in (((EC2, bounded), ("laptop:*",)), ((bounded, EC2), ("only:this",))):
            found = world.made(*entries)
            await found.look()
            assert [signer.issuers for signer in found.trust.signers] == [issuers]

    play(tmp_path, scenario)


def test_silence_revokes_nobody_and_an_answer_does(tmp_path: Path) -> None:
    """While a place is silent its last answer counts; once it answers without a signer, that one is out."""

    async def scenario(world: World) -> None:
        world.ec2.user_data = line(short_key(ONE)).encode()
        world.gce.attributes["credential-agent-signer"] = short_key(TWO)
        found = world.made(EC2, GCE)
        await found.look()
        assert kids(found) == [ONE.kid, TWO.kid]
        world.silence()
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                await world.clock.advance(ASK_SECONDS)
                assert not await found.look()
        assert [one["event"] for one in logs] == ["signers.unreadable"] * 2  # once for each, not at each look
        assert kids(found) == [ONE.kid, TWO.kid]
        world.ec2.faults.clear()
        world.gce.faults.clear()
        world.ec2.user_data = None
        del world.gce.attributes["credential-agent-signer"]
        await world.clock.advance(ASK_SECONDS)
        assert await found.look()
        assert kids(found) == []

    play(tmp_path, scenario)


@pytest.mark.parametrize("entry", [EC2, TAG])
@pytest.mark.parametrize(("status", "body"), [(200, b"<html>sign in"), (200, b""), (404, b"no such page")])
def test_a_page_in_place_of_ec2_revokes_nobody(
    tmp_path: Path, entry: config.LaunchSignersEntry, status: int, body: bytes
) -> None:
    """While EC2's session token is good, a proxy may answer in its place: that it names no signer is not EC2's word."""

    async def scenario(world: World) -> None:
        world.ec2.user_data = line(short_key(ONE)).encode()
        world.ec2.tags["credential-agent-signer"] = short_key(ONE)
        found = world.made(entry)
        await found.look()
        world.ec2.inject(Fault("/", status=status, body=body, times=None))
        await world.clock.advance(ASK_SECONDS)
        assert not await found.look()
        assert kids(found) == [ONE.kid]
        world.ec2.faults.clear()
        world.ec2.user_data = None
        world.ec2.tags.clear()
        await world.clock.advance(ASK_SECONDS)
        assert await found.look()
        assert kids(found) == []

    play(tmp_path, scenario)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_page_in_place_of_google_revokes_nobody(tmp_path: Path, everywhere: bool) -> None:
    """What says 404 without Google's flavor may be a page; the list of the attributes says which are there."""

    async def scenario(world: World) -> None:
        place, key = "/computeMetadata/v1/instance/attributes/", "credential-agent-signer"
        world.gce.attributes[key] = short_key(ONE)
        found = world.made(GCE)
        await found.look()
        world.gce.inject(Fault(place if everywhere else place + key, status=404, body=b"no such page", times=None))
        await world.clock.advance(ASK_SECONDS)
        assert not await found.look()
        assert kids(found) == [ONE.kid]
        del world.gce.attributes[key]
        await world.clock.advance(ASK_SECONDS)
        assert await found.look() is not everywhere  # a host may leave the flavor out of its errors
        assert kids(found) == ([ONE.kid] if everywhere else [])

    play(tmp_path, scenario)


def test_a_place_that_has_not_answered_is_asked_soon(tmp_path: Path) -> None:
    """Until it has, an unknown signer may be one that it names; at a restart only where the process before had no answer."""

    async def scenario(world: World) -> None:
        world.silence()
        found = world.made(EC2, GCE, CREDENTIAL, directory(tmp_path))
        assert found.silent == "ec2-user-data"
        await found.look()
        assert found.silent == "ec2-user-data"
        world.ec2.faults.clear()
        await world.clock.advance(LOOK_SECONDS)
        await found.look()
        assert found.silent == "gce-attribute"
        world.gce.faults.clear()
        await world.clock.advance(LOOK_SECONDS)
        await found.look()  # it names nobody
        assert found.silent == ""
        assert world.made(EC2, GCE, left=found.found).silent == ""
        assert world.made(EC2, TAG, left=found.found).silent == "ec2-tag"

    play(tmp_path, scenario)


def test_a_directory_that_cannot_be_read_has_no_service_asked_more_often(tmp_path: Path) -> None:
    """A mistake of the configuration lasts: services are asked soon only until they have answered themselves."""

    async def scenario(world: World) -> None:
        (tmp_path / "file").write_text("no directory")
        found = world.made(EC2, directory(tmp_path / "file"))
        await found.look()
        assert found.silent == "directory"
        asked = len(world.ec2.paths("GET"))
        await world.clock.advance(LOOK_SECONDS)
        await found.look()
        assert len(world.ec2.paths("GET")) == asked

    play(tmp_path, scenario)


def test_a_service_that_is_switched_off_names_nobody(tmp_path: Path) -> None:
    """By its own word: nothing is waited for."""

    async def scenario(world: World) -> None:
        world.ec2.endpoint_enabled = False
        found = world.made(EC2)
        await found.look()
        assert (found.silent, kids(found)) == ("", [])

    play(tmp_path, scenario)


def test_a_place_of_the_other_cloud_names_nobody(tmp_path: Path) -> None:
    """One image may be for both: on each, the other's place is not waited for, once the cloud's own service answers there."""

    async def scenario(world: World) -> None:
        here_is_ec2, here_is_google = world.at(world.ec2.url), world.at(world.gce.url)
        for entry, ways in ((GCE, here_is_ec2), (EC2, here_is_google), (TAG, here_is_google)):
            found = world.made(entry, ways=ways)
            await found.look()
            assert (found.silent, kids(found)) == ("", [])
        world.ec2.inject(Fault(status=404, body=b"no such page", times=None))
        world.gce.inject(Fault(status=404, body=b"no such page", times=None))
        for entry, ways in ((GCE, here_is_ec2), (EC2, here_is_google)):
            found = world.made(entry, ways=ways)
            await found.look()
            assert found.silent, "a page may stand in the place of either"

    play(tmp_path, scenario)


def test_a_restart_trusts_whom_the_process_before_trusted(tmp_path: Path) -> None:
    """Before any place is asked, and while it is silent; but only by entries that there still are, and can be asked."""

    async def scenario(world: World) -> None:
        (tmp_path / "one.pub").write_text(short_key(ONE))
        world.ec2.user_data = line(short_key(TWO)).encode()
        place = directory(tmp_path)
        before = world.made(EC2, place)
        await before.look()
        world.silence()
        again = world.made(place, EC2, left=before.found)
        assert kids(again) == [ONE.kid, TWO.kid]
        await again.look()
        assert kids(again) == [ONE.kid, TWO.kid]
        assert kids(world.made(place, left=before.found)) == [ONE.kid]
        assert kids(world.made(TAG, directory(tmp_path / "other"), left=before.found)) == []
        # The operator has said that this machine has no such service.
        without = world.made(EC2, GCE, TAG, left=before.found, services=False)
        await without.look()
        assert kids(without) == []

    play(tmp_path, scenario)


def test_what_a_later_version_left_is_passed_over(tmp_path: Path) -> None:
    """A word that is no key to us names nobody, and the others beside it all the same."""

    async def scenario(world: World) -> None:
        place = directory(tmp_path)
        left = {f"launch:directory:{tmp_path}": f"ml-dsa:x\n{short_key(ONE)}\n{{"}
        assert kids(world.made(place, left=left)) == [ONE.kid]

    play(tmp_path, scenario)


def test_files_are_looked_at_often_and_services_seldom(tmp_path: Path) -> None:
    """A metadata service bounds how often it is asked; a change of either is told once, by itself."""

    async def scenario(world: World) -> None:
        found = world.made(EC2, directory(tmp_path))
        await found.look()
        changes: list[list[str]] = []
        watching = asyncio.create_task(found.watch(lambda: changes.append(kids(found))))

        async def after(seconds: float) -> list[list[str]]:
            changes.clear()
            await world.clock.advance(seconds)
            await come_true(lambda: world.clock.sleeping)
            await settle()
            return list(changes)

        asked = len(world.ec2.paths("GET"))
        assert asked == 1
        (tmp_path / "one.pub").write_text(short_key(ONE))
        world.ec2.user_data = line(short_key(TWO)).encode()
        assert await after(LOOK_SECONDS) == [[ONE.kid]]
        assert len(world.ec2.paths("GET")) == asked
        for _ in range(round(ASK_SECONDS / LOOK_SECONDS) - 2):
            assert await after(LOOK_SECONDS) == []
        assert await after(LOOK_SECONDS) == [[TWO.kid, ONE.kid]]
        assert len(world.ec2.paths("GET")) == asked + 1
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    play(tmp_path, scenario)


def test_without_an_entry_nobody_is_asked(tmp_path: Path) -> None:
    """It is off unless the configuration bounds it."""

    async def scenario(world: World) -> None:
        found = world.made()
        await found.look_first()
        await found.watch(lambda: None)
        assert not await found.look()
        assert world.ec2.asked == world.gce.asked == []

    play(tmp_path, scenario)


def test_a_start_waits_for_no_place_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is asked again at the next look, not only when it is its turn again."""
    monkeypatch.setattr(launched, "FIRST_SECONDS", 0.05)

    async def scenario(world: World) -> None:
        world.ec2.user_data = line(short_key(ONE)).encode()
        world.ec2.faults.append(Fault(delay=3600.0, times=None))
        found = world.made(EC2)
        await found.look_first()
        assert kids(found) == []
        world.ec2.faults.clear()
        assert await found.look()
        assert kids(found) == [ONE.kid]

    play(tmp_path, scenario)


class TestDirectories:
    @pytest.mark.parametrize("name", ["a.jwk", "a.pem", "a.pub"])
    def test_a_file_of_each_kind_is_read(self, tmp_path: Path, name: str) -> None:
        """A JWK, a PEM or a line of short keys, whatever the ending says it is."""

        async def scenario(world: World) -> None:
            for text in (json.dumps(ONE.public_jwk()), short_key(ONE), line(short_key(ONE))):
                (tmp_path / name).write_text(text)
                found = world.made(directory(tmp_path))
                await found.look()
                assert kids(found) == [ONE.kid], text

        play(tmp_path, scenario)

    @pytest.mark.parametrize("name", [".a.pub", "a.pub~", "a", "a.txt", "pub"])
    def test_what_an_editor_leaves_names_nobody(self, tmp_path: Path, name: str) -> None:
        """A hidden file or a copy is not the file that somebody meant."""

        async def scenario(world: World) -> None:
            (tmp_path / name).write_text(short_key(ONE))
            found = world.made(directory(tmp_path))
            await found.look()
            assert kids(found) == []

        play(tmp_path, scenario)

    def test_no_more_than_a_bound_are_trusted(self, tmp_path: Path) -> None:
        """Of a directory, and of a file in it; the first by their names."""

        async def scenario(world: World) -> None:
            for number, key in enumerate(KEYS):
                (tmp_path / f"{number:03}.pub").write_text(short_key(key))
            found = world.made(directory(tmp_path))
            await found.look()
            assert kids(found) == [key.kid for key in KEYS[:MAX_SIGNERS]]
            (tmp_path / "000.pub").write_text("\n".join(map(short_key, reversed(KEYS))))
            await found.look()
            assert kids(found) == [key.kid for key in KEYS[::-1][:MAX_SIGNERS]]

        play(tmp_path, scenario)

    def test_one_that_is_not_there_names_nobody_and_is_no_trouble(self, tmp_path: Path) -> None:
        """It may come later; a file in its place is a trouble, and revokes nobody."""

        async def scenario(world: World) -> None:
            place = tmp_path / "later"
            found = world.made(directory(place))
            with structlog.testing.capture_logs() as logs:
                await found.look()
                place.mkdir()
                (place / "one.pub").write_text(short_key(ONE))
                assert await found.look()
                (place / "one.pub").rename(tmp_path / "one")
                place.rmdir()
                place.write_text("")
                assert not await found.look()
            assert kids(found) == [ONE.kid]
            assert [one["event"] for one in logs] == ["signers.launched", "signers.unreadable"]

        play(tmp_path, scenario)


@pytest.mark.parametrize("text", ["{}", '{"kty":"RSA"', "ed25519:short", "-----BEGIN PUBLIC KEY-----\nx", '{"kty":1}'])
def test_a_slip_revokes_nobody(tmp_path: Path, text: str) -> None:
    """A key that was cut off while it was copied is a mistake, which is told; a document of another kind names nobody."""

    async def scenario(world: World) -> None:
        (tmp_path / "one.pub").write_text(short_key(ONE))
        found = world.made(directory(tmp_path))
        await found.look()
        (tmp_path / "one.pub").write_text(text)
        with structlog.testing.capture_logs() as logs:
            await found.look()
        assert kids(found) == ([] if text == "{}" else [ONE.kid])
        (said,) = logs
        assert said["event"] == ("signers.launched" if text == "{}" else "signers.unreadable")

    play(tmp_path, scenario)


def test_a_document_of_user_data_is_no_key(tmp_path: Path) -> None:
    """There only lines count: a JSON document there is a bundle, or somebody else's."""

    async def scenario(world: World) -> None:
        for text in (json.dumps(ONE.public_jwk()), short_key(ONE)):
            world.ec2.user_data = text.encode()
            found = world.made(EC2)
            await found.look()
            assert kids(found) == []

    play(tmp_path, scenario)

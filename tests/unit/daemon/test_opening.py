"""What opens a bundle: the keys, the trust and the names of the moment at which it comes into force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest

from agent import bundle, keys
from agent.core.errors import BundleError, KeyUnavailableError
from agent.core.model import Cloud, OnExpiry, SealedBundle
from agent.core.verdict import Policy
from agent.daemon.opening import Opening
from tests.fakes import jose
from tests.unit.bundle.kit import NOW, OPENING, TRUST, WORLD
from tests.vectors.bundle import generate

SEALED = SealedBundle(jose.compact_json(generate.sealed(generate.claims())), "file")
OTHER = bundle.OpeningKey.generate("P-256")


class Service:
    """A key behind a service that answers when the test lets it."""

    kind = "aws-kms"

    def __init__(self) -> None:
        self._key = keys.LocalKey(OPENING[0], kind="file")
        self.kid = self._key.kid
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    def public_jwk(self) -> dict[str, str] | None:
        return self._key.public_jwk()

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:
        self.asked.set()
        await self.answers.wait()
        return await self._key.content_key(recipient, now)


def opening(key: keys.WorkerKey) -> Opening:
    return Opening(keys.Keyring([key]), TRUST, frozenset(WORLD["audiences"]))


@pytest.mark.parametrize("what", ["key", "signer", "audience", "nothing", "key that is only away"])
def test_what_is_dropped_while_a_key_service_is_asked_opens_nothing(what: str) -> None:
    """A reload comes before the answer: of what it dropped the answer makes no use, nor does it remember any."""

    async def scenario() -> None:
        service = Service()
        it = opening(service)
        opened = asyncio.ensure_future(it(SEALED, NOW, None))
        await service.asked.wait()
        if what == "key":
            it.keyring = keys.Keyring([keys.LocalKey(OTHER, kind="file")])
        elif what == "signer":
            it.pinned = bundle.Trust(())
        elif what == "audience":
            it.answer_to(["urn:credbundle:cluster:another"], ())
        elif what == "key that is only away":
            it.keyring = keys.Keyring([keys.LocalKey(OTHER, kind="file")], absent=["keys[0]"])
        service.answers.set()
        if what in {"nothing", "key that is only away"}:
            assert (await opened).recipient == service.kid
            return
        with pytest.raises(BundleError) as caught:
            await opened
        assert caught.value.code == {"key": "recipient", "signer": "signer", "audience": "audience"}[what]
        assert (it.opened(SEALED.data) is None) == (what == "key")

    asyncio.run(scenario())


WAYS = ["new", "new beside another", "from before", "in force"]
"""A bundle that was never accepted, while none is in force or another; one that was accepted, and is opened anew at a
boot; one that is in force."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["", "ec2-user-data"])
def test_an_unknown_signer_may_be_one_whom_a_silent_place_names(place: str, way: str) -> None:
    """A bundle of such a signer is tried again, whatever is in force; one that is in force itself is not held over."""

    async def scenario() -> None:
        it = opening(keys.LocalKey(OPENING[0], kind="file"))
        it.unsaid = lambda: place
        digest = (await it(SEALED, NOW, None)).digest
        it.pinned = bundle.Trust(())
        it.in_force = lambda: way in {"in force", "new beside another"}
        with pytest.raises(BundleError) as caught:
            await it(SEALED, NOW, None if way.startswith("new") else digest)
        assert isinstance(caught.value, KeyUnavailableError) == (bool(place) and way != "in force")
        assert caught.value.code == ("key-unavailable" if place and way != "in force" else "signer")
        it.pinned = TRUST
        assert (await it(SEALED, NOW, None)).digest == digest

    asyncio.run(scenario())


@pytest.mark.parametrize("off", [timedelta(days=-400), timedelta(days=400), timedelta(days=20_000)])
@pytest.mark.parametrize("told", ["nothing", "the true time", "another wrong time"])
def test_a_bundle_may_be_right_by_the_time_that_the_metadata_service_says(told: str, off: timedelta) -> None:
    """Where that contradicts our time, and the bundle is over or far ahead by ours alone, it is tried again."""

    async def scenario() -> None:
        it = opening(keys.LocalKey(OPENING[0], kind="file"))
        ahead = {"nothing": timedelta(), "the true time": -off, "another wrong time": -off + timedelta(days=500)}[told]
        it.disputed = ahead.total_seconds
        with pytest.raises(BundleError) as caught:
            await it(SEALED, NOW + off, None)
        assert isinstance(caught.value, KeyUnavailableError) == (told == "the true time")
        if told == "the true time":
            assert "one of the two clocks is wrong" in caught.value.message
        it.disputed = float
        assert (await it(SEALED, NOW, None)).recipient == OPENING[0].kid

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("way", "told", "fallback", "on_expiry", "waits"),
    [
        ("from before", "the true time", Cloud, OnExpiry.FALLBACK, True),
        ("in force", "the true time", Cloud, OnExpiry.FALLBACK, False),
        ("from before", "nothing", Cloud, OnExpiry.FALLBACK, False),
        ("from before", "a time by which it is over too", Cloud, OnExpiry.FALLBACK, False),
        ("from before", "the true time", Cloud, OnExpiry.DENY, False),
        ("from before", "the true time", [Cloud.GCP], OnExpiry.FALLBACK, False),
    ],
)
def test_what_was_accepted_is_not_lost_by_our_time_alone(
    way: str, told: str, fallback: Iterable[Cloud], on_expiry: OnExpiry, waits: bool
) -> None:
    """Where the machine's identity would follow it, it is waited for; what was in force meanwhile ends by our time."""
    grant = {**generate.SESSION, "expires_at": int((NOW + timedelta(days=100)).timestamp())}
    sealed = SealedBundle(jose.compact_json(generate.with_grants(grant)), "state")

    async def scenario() -> None:
        it = opening(keys.LocalKey(OPENING[0], kind="file"))
        it.policy = lambda: Policy(fallback=frozenset(fallback), on_expiry=on_expiry)
        digest = (await it(sealed, NOW, None)).digest
        it.in_force = lambda: way == "in force"
        ahead = {"nothing": 0, "the true time": -300, "a time by which it is over too": -180}[told]
        it.disputed = timedelta(days=ahead).total_seconds
        if not waits:
            assert (await it(sealed, NOW + timedelta(days=300), digest)).digest == digest
            return
        with pytest.raises(KeyUnavailableError, match="one of the two clocks is wrong"):
            await it(sealed, NOW + timedelta(days=300), digest)

    asyncio.run(scenario())


@pytest.mark.parametrize("refused", ["expired", "recipient", "signer", "audience"])
def test_who_is_silent_makes_right_only_what_he_could_say(refused: str) -> None:
    """What is refused for anything else is refused: neither a silent place nor another time has it tried again."""

    async def scenario() -> None:
        it = opening(keys.LocalKey(OTHER if refused == "recipient" else OPENING[0], kind="file"))
        it.unsaid = lambda: "" if refused == "signer" else "ec2-user-data"
        it.unnamed = lambda: refused != "audience"
        it.disputed = lambda: 0.0 if refused == "expired" else 86400.0
        if refused == "signer":
            it.pinned = bundle.Trust(())
        elif refused == "audience":
            it.answer_to(["urn:credbundle:cluster:another"], ())
        with pytest.raises(BundleError) as caught:
            await it(SEALED, NOW + timedelta(days=400 if refused in {"expired", "signer"} else 0), None)
        assert caught.value.code == refused

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["new", "from before"])
@pytest.mark.parametrize("silent", [False, True])
def test_a_bundle_may_be_for_a_machine_whose_name_is_not_said(silent: bool, way: str) -> None:
    """While the metadata service is silent it may be this machine's name: then the bundle is tried again."""

    async def scenario() -> None:
        it = opening(keys.LocalKey(OPENING[0], kind="file"))
        it.unnamed = lambda: silent
        digest = None if way == "new" else (await it(SEALED, NOW, None)).digest
        it.answer_to(["urn:credbundle:cluster:another"], ())
        with pytest.raises(BundleError) as caught:
            await it(SEALED, NOW, digest)
        assert caught.value.code == ("key-unavailable" if silent else "audience")
        it.answer_to((), WORLD["audiences"])
        assert (await it(SEALED, NOW, digest)).recipient == OPENING[0].kid

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("away", "waits"), [({"keys[0]": "it cannot be read"}, "key"), ({"signers[1].key": "it cannot be read"}, "signer")]
)
def test_a_file_that_cannot_be_read_yet_may_make_it_right(away: dict[str, str], waits: str) -> None:
    """A key or a signer that the configuration names, and whose file is away, is missing only until it is read."""

    async def scenario() -> None:
        for what, dropped, code in (
            ("key", Opening(keys.Keyring([]), TRUST, frozenset(WORLD["audiences"])), "recipient"),
            ("signer", opening(keys.LocalKey(OPENING[0], kind="file")), "signer"),
        ):
            if what == "signer":
                dropped.pinned = bundle.Trust(())
            dropped.away = lambda: away
            with pytest.raises(BundleError) as caught:
                await dropped(SEALED, NOW, None)
            assert caught.value.code == ("key-unavailable" if what == waits else code)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("configured", "names", "named"),
    [
        (WORLD["audiences"], [], False),
        ([], WORLD["audiences"], True),
        (WORLD["audiences"], WORLD["audiences"], False),
    ],
)
def test_a_bundle_says_whether_only_the_machines_name_makes_it_ours(
    configured: list[str], names: list[str], named: bool
) -> None:
    """Where a metadata service's name alone makes it ours, it is marked so: that name may turn out another machine's."""

    async def scenario() -> None:
        key = keys.LocalKey(OPENING[0], kind="file")
        it = opening(key)
        it.answer_to(configured, names)
        assert (await it(SEALED, NOW, None)).named is named

    asyncio.run(scenario())

"""Opening, beyond the kit: truncation, mutation, round trips, cost, restarts."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import bundle
from agent.bundle import envelope as container
from agent.core.errors import BundleError, FormatError, PayloadError, SealError
from agent.core.model import Action, AwsSession, Cloud, Env, OnExpiry
from agent.core.secret import Secret
from agent.keys import MAX_TRIES, Keyring
from tests.fakes import jose
from tests.unit.bundle.kit import KEYS, NOW, OPENING, TRUST, VECTORS, WORLD, CountingKey, counting_keys, opened
from tests.vectors.bundle import generate

SIGNER = bundle.SigningKey.parse(KEYS["signer-ed25519"])
WORKER = OPENING[0]


def sealed(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "signer": SIGNER,
        "recipients": [WORKER.recipient_key()],
        "issuer": "https://control.example",
        "subject": "user:alice",
        "audiences": [bundle.audience_cluster("blue")],
        "now": NOW,
        "grants": [generate.SESSION],
        **changes,
    }
    return bundle.seal(**arguments)


@pytest.mark.parametrize("form", ["general", "flattened", "compact"])
def test_truncated_at_every_byte_is_refused(form: str) -> None:
    """No beginning of a bundle is a bundle: every cut is refused with one of the bundle's own errors."""
    whole = json.loads((VECTORS / "good" / f"{form}.json").read_text())["bundle"].encode()
    opened(whole)
    for cut in range(len(whole)):
        with pytest.raises((FormatError, SealError)):
            opened(whole[:cut])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_change_of_bytes_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    """A bundle with some bytes replaced is refused by the bundle's own errors, or is read as the same bundle."""
    form = data.draw(st.sampled_from(["general", "flattened", "compact"]))
    whole = bytearray(json.loads((VECTORS / "good" / f"{form}.json").read_text())["bundle"].encode())
    expected = opened(bytes(whole)).digest
    for where in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[where] = data.draw(st.integers(0, 255))
    try:
        result = opened(bytes(whole))
    except BundleError:
        return
    assert result.digest == expected


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_by_the_bundles_own_errors(noise: bytes) -> None:
    """Nothing but a BundleError comes out of any bytes, in any of the three places where bytes are read."""
    for data in (
        noise,
        jose.compact_json(jose.encrypt(noise, [generate.P256])),
        jose.compact_json(generate.sealed(noise)),
    ):
        with pytest.raises(BundleError):
            opened(data)


identifiers = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True).filter(lambda i: i != "instance")
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True).filter(
    lambda n: not bundle.is_refused_variable(n)
)
values = st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="\u2028\u2029"), max_size=100)
sessions = st.builds(
    AwsSession,
    id=identifiers,
    access_key_id=st.from_regex(r"ASIA[A-Z0-9]{16}", fullmatch=True),
    secret_access_key=printable.map(Secret),
    session_token=printable.map(Secret),
    expires_at=st.integers(WORLD["now"] + 1, WORLD["now"] + 86400),
    region=st.sampled_from([None, "eu-west-1", "us-gov-east-1"]),
)
environments = st.builds(Env, id=identifiers, variables=st.dictionaries(names, values.map(Secret), max_size=5))


@given(
    session=sessions,
    environment=environments,
    seq=st.integers(0, 2**53 - 1),
    kinds=st.sets(st.sampled_from(range(5)), min_size=1),
    form=st.sampled_from(["general", "flattened", "compact"]),
    on_expiry=st.sampled_from([None, OnExpiry.DENY, OnExpiry.FALLBACK]),
    lease=st.one_of(st.none(), st.integers(60, 86000)),
)
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_is_what_is_opened(  # noqa: PLR0917 - one argument a strategy
    session: AwsSession,
    environment: Env,
    seq: int,
    kinds: set[int],
    form: str,
    on_expiry: OnExpiry | None,
    lease: int | None,
) -> None:
    """Every sealed bundle opens, for each of its recipients alone, to the very values that were sealed."""
    if session.id == environment.id:
        return
    keys = [OPENING[k] for k in kinds]
    if form != "general":
        keys = keys[:1]
    lease_until = None if lease is None else NOW + timedelta(seconds=lease)
    data = sealed(
        grants=[session, environment],
        recipients=[k.recipient_key() for k in keys],
        seq=seq,
        form=form,
        on_expiry=on_expiry,
        lease_until=lease_until,
    )
    for key in keys:
        result = opened(data, [CountingKey(key)])
        assert result.grants == (session, environment)
        assert result.routes == {Cloud.AWS: session.id}
        assert (result.seq, result.on_expiry, result.recipient) == (seq, on_expiry, key.kid)
        assert result.lease_until == (lease_until or NOW + timedelta(days=1))


def test_sealing_the_same_claims_again_has_the_same_digest() -> None:
    """The digest is of what was signed: encrypting it anew, for others, changes nothing."""
    signed = jose.sign(generate.claims(recip=[generate.P256["kid"], generate.PREVIOUS["kid"]]), generate.SIGNER)
    one = opened(jose.compact_json(jose.encrypt(signed, [generate.P256], seed="one")))
    two = opened(jose.compact_json(jose.encrypt(signed, [generate.PREVIOUS], seed="two")))
    assert one.digest == two.digest == hashlib.sha256(signed.rpartition(".")[0].encode()).hexdigest()


def test_the_default_seq_grows_with_time() -> None:
    """A sender without a memory gets a seq from its clock, in milliseconds."""
    assert opened(sealed()).seq == int(NOW.timestamp() * 1000)


def test_a_withdrawal_carries_nothing() -> None:
    """A sealed withdrawal opens to an empty bundle of its own action."""
    result = opened(sealed(action=Action.WITHDRAW, grants=()))
    assert (result.action, result.grants, result.routes, result.lease_until) == (Action.WITHDRAW, (), {}, None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"recipients": []}, "recipients"),
        ({"recipients": [WORKER.recipient_key()] * 2}, "recipients"),
        ({"recipients": [k.recipient_key() for k in OPENING], "form": "compact"}, "recipients"),
        ({"grants": []}, "claims"),
        ({"grants": [{**generate.SESSION, "extra": 1}]}, "grant"),
        ({"grants": [generate.SESSION, {**generate.SESSION, "id": "b"}]}, "route"),
        ({"grants": [{**generate.ENV, "variables": {"LD_PRELOAD": "x"}}]}, "variable"),
        ({"issuer": ""}, "claims"),
        ({"audiences": []}, "claims"),
        ({"seq": 2**53}, "json"),
        ({"grants": [{**generate.ENV, "variables": {f"V{n}": "x" * 16000 for n in range(20)}}]}, "size"),
    ],
)
def test_sealing_refuses_what_a_worker_would_refuse(changes: dict[str, Any], code: str) -> None:
    """The sender hears the worker's refusal while somebody can still mend it."""
    with pytest.raises(BundleError) as caught:
        sealed(**changes)
    assert caught.value.code == code


def test_sealing_wants_aware_instants() -> None:
    """A naive datetime would be read in the sender's own time zone."""
    with pytest.raises(ValueError, match="naive"):
        sealed(now=datetime(2026, 1, 15, 12))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("crowd", [1, 64, 256])
def test_opening_asks_for_one_key_however_many_recipients(crowd: int) -> None:
    """The worker does the work of one recipient, wherever among the others its entry stands."""
    strangers = [{**generate.STRANGER, "kid": f"stranger-{n}"} for n in range(crowd - 1)]
    entry = jose.encrypt(jose.sign(generate.claims(), generate.SIGNER), [generate.P256])
    for position in {0, crowd // 2, crowd - 1}:
        jwe = copy.deepcopy(entry)
        for n, stranger in enumerate(strangers):
            other = copy.deepcopy(entry["recipients"][0])
            other["header"]["kid"] = stranger["kid"]
            jwe["recipients"].insert(n if n < position else n + 1, other)
        keys = counting_keys()
        result = opened(jose.compact_json(jwe), list(keys), max_bytes=bundle.LARGEST_BYTES)
        assert result.recipient == generate.P256["kid"]
        assert [key.asked for key in keys] == [1, 0, 0, 0, 0]


def test_a_stranger_cannot_make_us_try_more_than_so_often() -> None:
    """Entries are unsigned, so a stranger can name all our keys; the tries are bounded."""
    jwe = jose.encrypt(b"x", [generate.P256, generate.PREVIOUS, generate.X25519, generate.GROUP])
    keys = [CountingKey(key) for key in OPENING]
    extra = CountingKey(bundle.OpeningKey.generate())
    jwe["recipients"] = [
        {**jwe["recipients"][0], "header": {**jwe["recipients"][0]["header"], "kid": key.kid}} for key in [extra, *keys]
    ]
    jwe["recipients"][1]["encrypted_key"] = jose.b64(bytes(40))
    several = [extra, keys[2], keys[3], keys[4], keys[0], keys[1]]
    with pytest.raises(SealError):
        opened(jose.compact_json(jwe), list(several))
    assert sum(key.asked for key in several) == MAX_TRIES


def test_the_limit_of_the_channel_holds_before_anything_is_read() -> None:
    """A bundle a byte over the channel's limit is refused by its size alone, and one at the limit is read."""
    data = sealed()
    assert opened(data, max_bytes=len(data)).seq
    with pytest.raises(FormatError) as caught:
        opened(data, max_bytes=len(data) - 1)
    assert caught.value.code == "size"


def test_a_larger_limit_than_the_formats_is_our_own_mistake() -> None:
    """No caller can ask for more than the format allows."""
    with pytest.raises(RuntimeError):
        container.parse_envelope(b"{}", max_bytes=bundle.LARGEST_BYTES + 1)


def test_resuming_still_checks_who_and_to_whom() -> None:
    """Re-opening what was accepted skips the clock only: a signer or an audience taken away since is a refusal."""
    data = sealed()
    first = opened(data)
    late = NOW + timedelta(days=40)
    assert opened(data, now=late, accepted_digest=first.digest) == first
    with pytest.raises(PayloadError) as caught:
        opened(data, now=late)
    assert caught.value.code == "expired"
    with pytest.raises(SealError):
        opened(data, now=late, accepted_digest=first.digest, trust=bundle.Trust(()))
    with pytest.raises(PayloadError) as caught:
        opened(data, now=late, accepted_digest=first.digest, audiences=[])
    assert caught.value.code == "audience"


def test_a_worker_without_keys_says_so() -> None:
    """An empty keyring refuses with a hint rather than an index error."""
    with pytest.raises(SealError) as caught:
        opened(sealed(), [])
    assert caught.value.code == "recipient"
    assert "none" in (caught.value.hint or "")


@given(instant=st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
@settings(max_examples=100, deadline=None)
def test_acceptance_is_exactly_the_window_and_its_leeway(instant: datetime) -> None:
    """A bundle is accepted when, and only when, now is in [nbf - 60 s, exp + 60 s) and it is not far in the future."""
    inside = NOW - timedelta(seconds=60) <= instant < NOW + timedelta(days=1, seconds=60)
    if inside:
        assert opened(DATA_OF_A_DAY, now=instant).issued_at == NOW
        return
    with pytest.raises(PayloadError) as caught:
        opened(DATA_OF_A_DAY, now=instant)
    assert caught.value.code in {"expired", "not-yet-valid", "far-future"}


DATA_OF_A_DAY = bundle.seal(
    signer=SIGNER,
    recipients=[WORKER.recipient_key()],
    issuer="https://control.example",
    subject="user:alice",
    audiences=[bundle.audience_cluster("blue")],
    now=NOW,
    accept_until=NOW + timedelta(days=1),
    grants=[generate.ENV],
)


def test_two_keys_of_one_id_are_our_own_mistake() -> None:
    """Which of the two would open would depend on order: the composition root must not do it."""
    with pytest.raises(RuntimeError):
        Keyring([CountingKey(WORKER), CountingKey(WORKER)])


def test_trust_is_read_by_key_id_only() -> None:
    """A key in the bundle's own header is never believed, even when it verifies."""
    assert TRUST.signer(generate.SIGNER["kid"]) is not None
    assert TRUST.signer(KEYS["rogue"]["kid"]) is None


def test_opening_is_safe_to_run_many_times_at_once() -> None:
    """The keyring holds no state: fifty openings at once end like one."""
    keyring = Keyring(counting_keys())

    async def all_at_once() -> set[str]:
        data = sealed()
        results = await asyncio.gather(
            *(keyring.open(data, trust=TRUST, audiences=WORLD["audiences"], now=NOW) for _ in range(50))
        )
        return {r.digest for r in results}

    assert len(asyncio.run(all_at_once())) == 1

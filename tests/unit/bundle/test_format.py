"""FORMAT.md and the code say the same."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey, OKPKey

from agent import bundle
from agent.bundle import claims, envelope, strict
from agent.bundle import open as opening
from agent.core import model
from agent.core.clock import utc
from agent.core.errors import BundleError
from agent.keys import MAX_TRIES, Keyring, LocalKey
from tests.unit.bundle.kit import VECTORS

TEXT = (VECTORS.parents[2] / "agent" / "bundle" / "FORMAT.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"FORMAT.md has no section {title}"
    return found[1]


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```(?:json)?\n(.*?)```", TEXT, re.DOTALL)
    assert found, f"FORMAT.md has no example {name}"
    return found[1]


GRANTS = {str(kind.__struct_config__.tag): kind for kind in get_args(model.Grant)}


@pytest.mark.parametrize("tag", GRANTS)
def test_every_grant_is_documented_with_exactly_its_members(tag: str) -> None:
    """The table of a grant has each member of its struct, and no other, in the same order after id."""
    assert sorted(first_column(section(f"`{tag}`"))) == sorted(GRANTS[tag].__struct_fields__)


@pytest.mark.parametrize("tag", GRANTS)
def test_every_default_and_option_is_documented(tag: str) -> None:
    """A member is called optional or given its default exactly when the struct has one, and the default is the same."""
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", section(f"`{tag}`"), re.MULTILINE))
    for field in msgspec.structs.fields(GRANTS[tag]):
        says = rows[field.name]
        assert field.required == ("optional" not in says and "default" not in says), field.name
        if field.default is None:
            assert "optional" in says, field.name
        elif isinstance(field.default, str | int) and not field.required:
            assert str(field.default) in says, field.name


def test_no_other_grant_is_documented() -> None:
    """Every section of FORMAT.md that looks like a grant is one."""
    documented = re.findall(r"^### `([^`]+)`$", TEXT, re.MULTILINE)
    assert set(documented) == GRANTS.keys() | {"expect", "token"}
    assert sorted(first_column(section("`expect`"))) == sorted(model.Expect.__struct_fields__)


def test_every_kind_of_token_is_documented_with_its_members() -> None:
    """The table of token has each of its forms with exactly the members of its struct."""
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", section("`token`"), re.MULTILINE))
    kinds = {str(kind.__struct_config__.tag): kind for kind in get_args(model.WebToken)}
    assert rows.keys() - {"from"} == kinds.keys()
    for tag, kind in kinds.items():
        assert set(re.findall(r"`(\w+)`", rows[tag])) == set(kind.__struct_fields__)


def test_the_claims_are_documented() -> None:
    """The table of claims has exactly the members of the frame."""
    table = section("Claims").split("**Audiences.**")[0]
    assert sorted(first_column(table)) == sorted(claims.Claims.__struct_fields__)


def test_every_code_is_documented() -> None:
    """The table of refusals is the closed list of codes, in its order."""
    assert first_column(section("Refusals")) == [str(code) for code in bundle.Code]


def test_every_algorithm_is_documented() -> None:
    """The table of key management algorithms is the closed list."""
    table = section("Container").split("| `alg` | worker key")[1]
    assert set(first_column(table)) == {str(alg) for alg in bundle.KeyAlg}


def test_the_limits_are_documented() -> None:
    """The numbers in FORMAT.md are those of the code."""
    limits = section("Limits")
    for number in (
        f"{envelope.MAX_BYTES:,}",
        f"{envelope.LARGEST_BYTES:,}",
        f"| recipients | {envelope.MAX_RECIPIENTS} |",
        f"| grants | {claims.MAX_GRANTS} |",
        f"| variables | {claims.MAX_VARIABLES} |",
        f"| audiences | {claims.MAX_AUDIENCES} |",
        f"| chain of bases | {claims.MAX_CHAIN} |",
        f"{opening.LEEWAY.seconds} seconds",
        f"{opening.FARTHEST.days} days",
    ):
        assert number in limits
    assert f"at most {MAX_TRIES} entries" in TEXT
    assert f"{claims.MAX_SECRET_BYTES:,}" in section("Variables")
    assert envelope.MEDIA_TYPE in TEXT


def test_every_refused_variable_is_documented() -> None:
    """FORMAT.md lists exactly the names and prefixes that are refused, and the AWS names that are not."""
    prefixes, aws, names = section("Variables").split("\n* ")[1:]
    assert tuple(re.findall(r"`([A-Z_]+)`", prefixes)) == claims._REFUSED_PREFIXES
    assert set(re.findall(r"`([A-Z_]+)`", aws)) - {"AWS_"} == claims._ALLOWED_AWS
    assert set(re.findall(r"`([A-Z0-9_]+)`", names)) == claims._REFUSED_NAMES


def test_the_names_of_the_container_are_documented() -> None:
    """Types and content encryption are spelt as the code wants them."""
    for word in (envelope.OUTER_TYPE, envelope.INNER_TYPE, "A256GCM"):
        assert word in section("Container") + section("Signature")


def opened_as_the_page_says(data: bytes) -> model.Bundle:
    """What the worker of the page makes of it, at its time."""
    trust = bundle.Trust.parse(
        [
            {
                "key": example("signer-public"),
                "issuers": ["https://control.example"],
                "audiences": ["urn:credbundle:cluster:blue"],
            }
        ]
    )
    now = int(re.search(r"`now` = (\d+)", TEXT)[1])  # type: ignore[index] # a failure here is a failure of the test
    keyring = Keyring([LocalKey(bundle.OpeningKey.parse(example("worker-key")), kind="file")])
    return asyncio.run(keyring.open(data, trust=trust, audiences=["urn:credbundle:cluster:blue"], now=utc(now)))


def taken_as_the_page_says(data: bytes) -> None:
    """The worker of the page, at its time, accepts this as the bundle of the page's claims."""
    expected: dict[str, Any] = json.loads(example("claims"))
    result = opened_as_the_page_says(data)
    assert (result.issuer, result.subject, result.seq) == (expected["iss"], expected["sub"], expected["seq"])
    assert [grant.id for grant in result.grants] == [grant["id"] for grant in expected["grants"]]
    assert {str(cloud): grant for cloud, grant in result.routes.items()} == expected["routes"]


@pytest.mark.parametrize("form", ["general", "compact"])
def test_the_examples_open(form: str) -> None:
    """The example bundles open with the example keys, at the example's time, to the example's claims."""
    data = example(form).encode()
    if form == "compact":
        data = data.replace(b"\n", b"")
    taken_as_the_page_says(data)


def test_the_example_of_the_content_is_the_content() -> None:
    """The JWS shown is what is inside both examples, its payload the claims shown, its signature the key's shown."""
    signed = example("signed").replace("\n", "").encode()
    key = bundle.OpeningKey.parse(example("worker-key"))
    for data in (example("general").encode(), example("compact").replace("\n", "").encode()):
        parsed = bundle.parse_envelope(data)
        mine = next(r for r in parsed.recipients if r.kid == key.kid)
        assert bundle.decrypt(parsed, key.content_key(mine)) == signed
    payload = json.loads(strict.base64url(signed.split(b".")[1], "payload"))
    assert payload == json.loads(example("claims"))
    private = bundle.SigningKey.parse(example("signer-private"))
    assert private.public_jwk() == json.loads(example("signer-public"))


@pytest.mark.parametrize("library", ["joserfc", "jwcrypto"])
def test_what_a_producer_is_told_to_write_is_accepted(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's Python, with keys and claims from the page alone, makes the bundle that the page's worker accepts."""
    (code,) = [
        text
        for text in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
        if f"from {library}" in text
    ]
    worker = json.loads(example("worker-key"))
    (tmp_path / "sender.jwk").write_text(example("signer-private"))
    (tmp_path / "worker.pub.jwk").write_text(json.dumps({name: worker[name] for name in worker if name != "d"}))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"claims": json.loads(example("claims"))}
    exec(compile(code, "FORMAT.md", "exec"), names)
    taken_as_the_page_says(names["sealed"].encode())


def made_by_hand(
    content: object,
    *,
    signature: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    recipient: str = "worker-key",
    key: Any = None,
) -> bytes:
    """What a producer of another house makes of claims with another library; headers may differ from the page's."""
    private = json.loads(example("signer-private"))
    header = {"alg": "Ed25519", "typ": "credbundle+jwt", "kid": private["kid"], **(signature or {})}
    signing = key or OKPKey.import_key(private)
    signed = jws.serialize_compact(header, json.dumps(content), signing, algorithms=["Ed25519", "HS256"])
    worker = ECKey.import_key(json.loads(example(recipient))) if recipient else ECKey.generate_key("P-256")
    protected = {"typ": "credbundle+jwe", "cty": "credbundle+jwt", "enc": "A256GCM", **(container or {})}
    sealing = jwe.GeneralJSONEncryption(protected, signed.encode())
    sealing.add_recipient({"alg": "ECDH-ES+A256KW", "kid": worker.kid or worker.thumbprint()}, worker)
    algorithms = ["ECDH-ES+A256KW", "A256GCM", "A128GCM", "DEF"]
    return json.dumps(jwe.encrypt_json(sealing, None, algorithms=algorithms)).encode()


LEAST: dict[str, Any] = json.loads(example("least"))


def test_the_least_that_is_accepted_is_accepted() -> None:
    """The claims that the page calls the least make a bundle that the page's worker takes, routed to its one grant."""
    result = opened_as_the_page_says(made_by_hand(LEAST))
    assert {str(cloud): grant for cloud, grant in result.routes.items()} == {"aws": "alice"}


@pytest.mark.parametrize("claim", LEAST)
def test_less_is_refused(claim: str) -> None:
    """Without any one of them it is refused, as the page says."""
    less = {name: value for name, value in LEAST.items() if name != claim}
    with pytest.raises(BundleError) as refused:
        opened_as_the_page_says(made_by_hand(less))
    assert refused.value.code == ("version" if claim == "ver" else "claims")


def inside_out() -> bytes:
    """Encrypted first and signed afterwards."""
    private = json.loads(example("signer-private"))
    header = {"alg": "Ed25519", "typ": "credbundle+jwt", "kid": private["kid"]}
    return jws.serialize_compact(
        header, made_by_hand(LEAST), OKPKey.import_key(private), algorithms=["Ed25519"]
    ).encode()


def with_grants(*grants: dict[str, Any]) -> bytes:
    return made_by_hand({**LEAST, "grants": list(grants)})


GRANT: dict[str, Any] = LEAST["grants"][0]
MISTAKES: dict[str, Callable[[], bytes]] = {
    "milliseconds": lambda: made_by_hand({**LEAST, "iat": LEAST["iat"] * 1000, "exp": LEAST["exp"] * 1000}),
    "for ever": lambda: made_by_hand({**LEAST, "lease_until": 253402300799}),
    "fraction": lambda: made_by_hand({**LEAST, "iat": LEAST["iat"] + 0.25}),
    "as text": lambda: made_by_hand({**LEAST, "exp": str(LEAST["exp"])}),
    "so short": lambda: made_by_hand({**LEAST, "iat": LEAST["iat"] - 900, "exp": LEAST["iat"] - 600}),
    "a member of your own": lambda: made_by_hand({**LEAST, "note": "for the night's run"}),
    "not in `recip`": lambda: made_by_hand({**LEAST, "recip": ["worker-1"]}),
    "machine before": lambda: made_by_hand(LEAST, recipient=""),
    "with a star": lambda: made_by_hand({**LEAST, "aud": "urn:credbundle:cluster:*"}),
    "an issuer for which": lambda: made_by_hand({**LEAST, "iss": "https://control.example/"}),
    "`typ` of `JWT`": lambda: made_by_hand(LEAST, signature={"typ": "JWT"}),
    "content encryption": lambda: made_by_hand(LEAST, container={"enc": "A128GCM"}),
    "in a header": lambda: made_by_hand(LEAST, container={"zip": "DEF"}),
    "`HS256`": lambda: made_by_hand(LEAST, signature={"alg": "HS256"}, key=OctKey.generate_key(256)),
    "signed afterwards": inside_out,
    "two grants": lambda: with_grants(GRANT, {**GRANT, "id": "bob"}),
    "ended already": lambda: with_grants({**GRANT, "expires_at": LEAST["iat"] - 1}),
    "keys as variables": lambda: with_grants(
        GRANT, {"type": "env", "id": "env", "variables": {"AWS_ACCESS_KEY_ID": "ASIA"}}
    ),
}
#: What the store says, which remembers: tests/unit/identity/test_store.py.
REMEMBERED = ("a counter for `seq`", "the same `seq`")


def test_each_common_mistake_is_refused_as_the_page_says() -> None:
    """Every row of the table, made as it says, is refused with its code, and there is no row that is not tried."""
    rows = re.findall(r"^\| (.*?) \| `([a-z-]+)` \| .* \|$", section("Common mistakes"), re.MULTILINE)
    tried = {}
    for mistake, code in rows:
        if mistake.startswith(REMEMBERED):
            continue
        (make,) = [make for words, make in MISTAKES.items() if words in mistake]
        with pytest.raises(BundleError) as refused:
            opened_as_the_page_says(make())
        tried[mistake] = (code, refused.value.code)
    assert {mistake: pair for mistake, pair in tried.items() if pair[0] != pair[1]} == {}
    assert len(tried) == len(MISTAKES)

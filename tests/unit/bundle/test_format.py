"""FORMAT.md and the code say the same."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agent import bundle
from agent.bundle import claims, envelope, strict
from agent.bundle import open as opening
from agent.core import model
from agent.core.clock import utc
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


def taken_as_the_page_says(data: bytes) -> None:
    """The worker of the page, at its time, accepts this as the bundle of the page's claims."""
    expected: dict[str, Any] = json.loads(example("claims"))
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
    result = asyncio.run(keyring.open(data, trust=trust, audiences=["urn:credbundle:cluster:blue"], now=utc(now)))
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

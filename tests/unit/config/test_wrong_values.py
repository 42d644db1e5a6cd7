"""A key with a wrong value, or a key that is misspelt: what is said leads to the mistake."""

from __future__ import annotations

import re

import msgspec
import pytest

from agent import config
from agent.core.errors import ConfigError
from tests.readme import _SECTIONS as SECTIONS

WRONG = (
    '"words"', "-1", "1.5", "true", "[]", "[1]", "{}", "{a = 1}", '""', "9999999999999999", "nan", "inf", "1979-05-27",
    '" "', '["x"]', '[""]', '"/tmp"', r'"a\u0000b"', r'"a\nb"', r'["a\u0000b"]', r'["a\nb"]', r'{A = "a\nb"}',
)  # fmt: skip
REQUIRED = {
    "path": "/x", "key": "/x", "url": "https://x.example/b", "key_id": "alias/x", "name": "a", "public_key": "/x",
    "key_version": "projects/p/cryptoKeyVersions/1",
}  # fmt: skip
IN_VAIN = "expected at least one beside"
ELSEWHERE = "[redirect]"  # tests/unit/config/test_redirect_alone.py: in doubt it refuses workers


def entry(title: str, struct: type, **values: str) -> str:
    """A section with what it must have, and these values."""
    kind = re.search(r'kind = ".*"', title)
    known = {field.name: field for field in msgspec.structs.fields(struct)}
    needed = {
        name: '["a"]' if name == "issuers" else f'"{REQUIRED[name]}"' for name, field in known.items() if field.required
    }
    lines = [
        title.split(" ", maxsplit=1)[0],
        kind[0] if kind else "",
        *(f"{k} = {v}" for k, v in (needed | values).items()),
    ]
    return "\n".join(lines) + "\n"


def refusal(text: str) -> str | None:
    """What is said of a configuration; ``None``: it is accepted."""
    try:
        config.parse(text, origin="c.toml")
    except ConfigError as error:
        return error.message
    return None


@pytest.mark.parametrize(("title", "struct"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_a_wrong_value_is_said_with_its_key(title: str, struct: type) -> None:
    """Whatever stands there, a key is accepted or named; nothing else is raised, and no line break or NUL is taken in."""
    for field in msgspec.structs.fields(struct):
        for value in WRONG:
            said = refusal(entry(title, struct, **{field.name: value}))
            if said is None:
                taken = "\\n" in value or "\\u0000" in value
                assert not taken or title == ELSEWHERE or field.name == "allowed_origins", (field.name, value)
            else:
                assert field.name in said or IN_VAIN in said, (field.name, value, said)
                assert "regex" not in said


@pytest.mark.parametrize(("title", "struct"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_a_misspelt_key_is_said_with_the_one_that_was_meant(title: str, struct: type) -> None:
    """The hint lists the keys that stand there, for a kind of entries those of that kind, so that the right one is seen."""
    for field in msgspec.structs.fields(struct):
        text = entry(title, struct) + f"{field.name}x = 1\n"
        with pytest.raises(ConfigError) as caught:
            config.parse(text, origin="c.toml")
        assert f"{field.name}x: unknown key" in caught.value.message
        assert field.name in re.split(r" knows |, ", caught.value.hint or "")

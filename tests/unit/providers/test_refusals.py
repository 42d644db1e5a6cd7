"""What an upstream says becomes one harmless line."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.secret import Secret
from agent.providers.refusals import said, word


@given(
    # Longer than what stands in its place: a shorter one may be a part of that, or of its seams.
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=len("[redacted]") + 1, max_size=40),
    before=st.text(max_size=50),
    after=st.text(max_size=50),
)
def test_what_was_sent_is_cut_out(secret: str, before: str, after: str) -> None:
    """No secret that we sent survives in what we repeat, whatever stands around it."""
    assert secret not in said(f"{before}{secret}{after}", [Secret(secret)])


@pytest.mark.parametrize(
    "write",
    [
        lambda value: quote(value, safe=""),
        quote,
        quote_plus,
        lambda value: json.dumps({"a": value}),
        escape,
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode().rstrip("="),
    ],
    ids=["percent", "path", "form", "json", "xml", "base64", "base64url"],
)
def test_what_was_sent_is_cut_out_in_other_writings(write: Callable[[str], str]) -> None:
    """A secret that comes back percent-encoded, escaped or in base64 is cut out, however short."""
    secret = '1//short + <"secret">&?'

    assert said(f"you sent refresh_token={write(secret)}, no", [Secret(secret)]) in (
        "you sent refresh_token=[redacted], no",
        'you sent refresh_token={"a": "[redacted]"}, no',
        "you sent refresh_token=[redacted]==, no",
        "you sent refresh_token=[redacted]=, no",
    )


@given(st.text(max_size=2000))
def test_one_short_printable_line(text: str) -> None:
    """Whatever comes, the result is one printable line of bounded length."""
    result = said(text)

    assert len(result) <= 300
    assert result.isprintable()


def test_long_opaque_runs_are_cut_out() -> None:
    """A token in an encoding that we did not send is cut out too, and an ARN stays."""
    arn = "arn:aws:sts::111122223333:assumed-role/a-role-with-quite-a-long-name/i-0123456789abcdef0"

    assert said(f"{arn} sent {'Zm9v' * 20}") == f"{arn} sent [redacted]"


@pytest.mark.parametrize("text", [None, 7, [], {}])
def test_what_is_not_text_is_nothing(text: object) -> None:
    """A message of another type is not repeated."""
    assert said(text) == ""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDenied", "AccessDenied"),
        ("invalid_grant", "invalid_grant"),
        ("", "http-400"),
        (None, "http-400"),
        ("two words", "http-400"),
        ("x\nlevel=error", "http-400"),
        ("x" * 65, "http-400"),
    ],
)
def test_codes_are_words(code: object, expected: str) -> None:
    """A code becomes a log field and a metric label only if it is one word."""
    assert word(code, "http-400") == expected

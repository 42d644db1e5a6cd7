"""A signer's key as one short word: every key comes back from it, and no other text is a key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import bundle
from agent.core.errors import FormatError


@pytest.mark.parametrize("kind", ["Ed25519", "P-256"])
def test_every_key_comes_back_from_its_word(kind: str) -> None:
    """The word is one that a tag and a line of user-data hold, and names the same key with its thumbprint as id."""
    for _ in range(20):
        key = bundle.SigningKey.generate(kind).verify_key()  # type: ignore[arg-type]
        word = bundle.short_key(key)
        assert len(word) <= 52
        again = bundle.read_short_key(word)
        assert again.public_jwk() == {**key.public_jwk(), "kid": again.kid}
        assert again.kid == bundle.thumbprint(key.public_jwk())


@settings(deadline=None)
@given(st.text(max_size=60))
def test_another_text_is_no_key(text: str) -> None:
    """It is refused in one way, whatever it is."""
    for word in (text, f"ed25519:{text}", f"p256:{text}", "p256:" + "A" * 44):
        with pytest.raises(FormatError):
            bundle.read_short_key(word)

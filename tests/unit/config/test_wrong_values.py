"""A key with a wrong value, or a key that is misspelt: what is said leads to the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec
import pytest

from agent import bundle, config
from agent.core.errors import AgentError, ConfigError
from agent.keys import AwsKmsKey, GcpKmsKey
from agent.providers.remote import AllowList
from agent.upstream import origin_of
from tests.readme import _SECTIONS as SECTIONS

WRONG = (
    '"words"', "-1", "1.5", "true", "[]", "[1]", "{}", "{a = 1}", '""', "9999999999999999", "nan", "inf", "1979-05-27",
    '" "', '["x"]', '[""]', '"/tmp"', r'"a\u0000b"', r'"a\nb"', r'["a\u0000b"]', r'["a\nb"]', r'{A = "a\nb"}',
)  # fmt: skip
REQUIRED = {
    "path": "/x", "key": "/x", "url": "https://x.example/b", "name": "a", "public_key": "/x",
    "key_id": "arn:aws:kms:eu-west-1:123456789012:alias/x",
    "key_version": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
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
                assert not re.search(r"regex|\bnull\b|\b(str|int|bool|object)\b", said), (field.name, value, said)


@pytest.mark.parametrize(("title", "struct"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_a_misspelt_key_is_said_with_the_one_that_was_meant(title: str, struct: type) -> None:
    """The hint lists the keys that stand there, for a kind of entries those of that kind, so that the right one is seen."""
    for field in msgspec.structs.fields(struct):
        text = entry(title, struct) + f"{field.name}x = 1\n"
        with pytest.raises(ConfigError) as caught:
            config.parse(text, origin="c.toml")
        assert f"{field.name}x: unknown key" in caught.value.message
        assert field.name in re.split(r" knows |, ", caught.value.hint or "")


class TestLaterReaders:
    """What the text says wrong is said when it is read: a start that finds out later would not be what a check said."""

    PATTERNS = ("*", "a", "a*", "a**", "a*b", "*b", "**", "", "a b", "\u00e4", "a" * 256, "a" * 257, "a" * 255 + "*")
    LISTS = (*((pattern,) for pattern in PATTERNS), ("a", "*"), ("a", "a*b"), ())
    SECONDS = (0, 1, 366 * 86_400, 366 * 86_400 + 1, -1)

    @pytest.mark.parametrize("member", ["issuers", "audiences"])
    @pytest.mark.parametrize("values", LISTS, ids=str)
    def test_a_signer_may_sign_for_what_trust_takes_alone(self, member: str, values: tuple[str, ...]) -> None:
        """A list that the pinned signers refuse is a mistake of the text, of ``launch_signers`` too."""
        key = bundle.SigningKey.generate("Ed25519").public_jwk()
        taken = {"issuers": ["a"], "audiences": ["a"], member: list(values)}
        refused = _refuses(lambda: bundle.Trust.parse([{"key": key, **taken}])) or any(len(v) > 256 for v in values)
        written = "".join(f"{name} = {_toml(value)}\n" for name, value in taken.items())
        for head in ('[[signers]]\nkey = "/k"\n', '[[launch_signers]]\nkind = "ec2-tag"\n'):
            said = refusal(head + written)
            assert (said is not None) is refused, (head, said)
            assert said is None or f"[0].{member}" in said

    @pytest.mark.parametrize("seconds", SECONDS)
    def test_a_signer_leases_for_as_long_as_trust_takes(self, seconds: int) -> None:
        """A lease that the pinned signers refuse is a mistake of the text."""
        key = bundle.SigningKey.generate("Ed25519").public_jwk()
        refused = _refuses(
            lambda: bundle.Trust.parse(
                [{"key": key, "issuers": ["a"], "audiences": ["a"], "max_lease_seconds": seconds}]
            )
        )
        said = refusal(f'[[signers]]\nkey = "/k"\nissuers = ["a"]\nmax_lease_seconds = {seconds}\n')
        assert (said is not None) is refused

    @pytest.mark.parametrize(
        "name",
        [
            "arn:aws:kms:eu-west-1:123456789012:key/0-1", "arn:aws-cn:kms:cn-north-1:123456789012:alias/a/b", "alias/x",
            "arn:aws:kms:eu-west-1:12345:key/0", "arn:aws:iam::123456789012:role/x", "0-1", "",
        ],
    )  # fmt: skip
    def test_a_key_of_aws_is_named_as_it_is_asked_for(self, name: str) -> None:
        """A name that no request can carry is a mistake of the text, whether the public half is there or not."""
        half = bundle.OpeningKey.generate("P-256").recipient_key()
        refused = _refuses(lambda: AwsKmsKey(key_id=name, public_key=half, credentials=None, upstream=None))  # type: ignore[arg-type]
        said = refusal(entry('[[keys]] kind = "aws-kms"', config.AwsKmsKey, key_id=f'"{name}"'))
        assert (said is not None and "keys[0].key_id" in said) is refused

    @pytest.mark.parametrize(
        "name",
        [
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "projects/p/cryptoKeyVersions/1",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k", "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/x",
        ],
    )  # fmt: skip
    def test_a_key_of_google_is_named_as_it_is_asked_for(self, name: str) -> None:
        """Likewise."""
        half = bundle.OpeningKey.generate("RSA").recipient_key()
        refused = _refuses(lambda: GcpKmsKey(key_version=name, public_key=half, token=None, upstream=None))  # type: ignore[arg-type]
        said = refusal(entry('[[keys]] kind = "gcp-kms"', config.GcpKmsKey, key_version=f'"{name}"'))
        assert (said is not None and "keys[0].key_version" in said) is refused


# Written as people do, or as they mistype.
URLS = [
    "https://a.example", "http://10.0.0.5:8080", "https://a.example/", "https://A.example:443", "https://[fd00::1]:8443",
    "https://a.example/b", "https://a.example?b", "https://a.example#b", "https://[bad", "https://[bad]", "https://a.example:99999",
    "https://a.example:", "https://a.example:b", "https://?", "https://", "https:///b", "https://user@a.example",
    "https://user:pass@a.example", "https://a b.example", "https://ä.example", "https://a.example\\u007f", "https://a..example/",
    "https://*.a.example", "https://a.example,b.example", "HTTPS://a.example", "ftp://a.example", "https//a.example", "https:/a.example",
]  # fmt: skip


@pytest.mark.parametrize("url", [*URLS, "a.example", "a.example:8443", "10.0.0.5:8080", "", "a/b", "[fd00::1]"])
def test_what_no_bundle_may_lead_to_is_a_mistake_of_the_text(url: str) -> None:
    """What the start would refuse of the allowed origins, the text is refused for, with its key: a reload goes by that."""
    said = refusal(entry("[mint]", config.Mint, allowed_origins=f'["https://b.example", "{url}"]'))
    if _refuses(lambda: AllowList([url.encode().decode("unicode_escape") if url.isascii() else url])):
        assert said is not None
    assert said is None or "mint.allowed_origins[1]" in said
    assert "pass" not in (said or "")


@pytest.mark.parametrize("url", ["HTTPS://a.example", "https://A.EXAMPLE/", "A.example:8443", "http://[FD00::1]:80"])
def test_the_case_of_an_allowed_origin_does_not_matter(url: str) -> None:
    """What leads to an origin, however it is written (RFC 3986 section 6.2.2.1), is no mistake."""
    AllowList([url])
    assert refusal(entry("[mint]", config.Mint, allowed_origins=f'["{url}"]')) is None


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("title", "struct", "key"),
    [
        ("[mint]", config.Mint, "sts_endpoint"), ("[mint]", config.Mint, "google_token_url"),
        ('[[sources]] kind = "https"', config.HttpsEntry, "url"), ('[[sources]] kind = "https"', config.HttpsEntry, "ack_url"),
        ('[[keys]] kind = "aws-kms"', config.AwsKmsKey, "endpoint"), ('[[keys]] kind = "gcp-kms"', config.GcpKmsKey, "endpoint"),
        ("[upstream]", config.Upstream, "ec2"), ("[upstream]", config.Upstream, "gce"),
    ],
)  # fmt: skip
def test_a_url_that_nobody_can_ask_is_a_mistake_of_the_text(title: str, struct: type, key: str, url: str) -> None:
    """It is told when it is written, with its key and without itself where it may be a credential."""
    said = refusal(entry(title, struct, **{key: f'"{url}"'})) or ""
    if "@" in url and struct is not config.Upstream:
        return  # told by whoever asks it: what stands before the host may be all that is wrong
    if _refuses(lambda: origin_of(url.encode().decode("unicode_escape") if url.isascii() else url)):
        assert key in said
        assert url == "https://" or url not in said.replace("http://169.254.169.254", "")
    elif url == URLS[0]:
        assert key not in said


@pytest.mark.parametrize(
    ("proxy", "right"), [("http://user:secret@proxy.example:3128", True), ("http://user:secret@[bad", False)]
)
def test_a_proxy_may_want_a_name_and_a_word(proxy: str, right: bool) -> None:
    """They stand in its URL, and are not said again."""
    said = refusal(entry("[upstream]", config.Upstream, proxy=f'"{proxy}"'))
    assert (said is None) is right
    assert "secret" not in (said or "")


def _refuses(make: Callable[[], object]) -> bool:
    try:
        make()
    except AgentError:
        return True
    return False


def _toml(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"

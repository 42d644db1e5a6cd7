"""Words for what is wrong: the key, what was expected, and what there is instead."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from agent.config.schema import (
    Aws,
    Config,
    Enrol,
    Environment,
    Gcp,
    Identity,
    KeyEntry,
    LaunchSignersEntry,
    Listen,
    Log,
    Mint,
    PassThrough,
    Redirect,
    SignerEntry,
    SourceEntry,
    State,
    Upstream,
)

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$")
_CHOICE = re.compile(r"^Invalid (?:enum )?value '(?P<value>.*)'$")
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<regex>.*)$")


# What a pattern means, for a person: every pattern of the schema has its words.
MEANING: Final = {
    repr(pattern): words
    for pattern, words in {
        r"^/[^\x00]{1,4095}\Z": "an absolute path",
        r"^(?:auto|off|/[^\x00]{1,4095})\Z": '"auto", "off" or an absolute path',
        r"^https?://[^\s]{1,2000}\Z": "an http or https URL",
        r"^[A-Za-z0-9_.-]{1,64}\Z": "1 to 64 letters, digits, dots, dashes or underscores",
        r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z": "the name of a variable: letters, digits and underscores, no digit first",
        r"^[^\x00-\x08\x0a-\x1f\x7f]{0,32768}\Z": "one line without control characters, of at most 32768 characters",
        r"^/(?:latest|computeMetadata/v1)(?:/[A-Za-z0-9._~@:+=,*-]+)+/?\Z": (
            "a path of metadata such as /latest/user-data or /computeMetadata/v1/instance/attributes/NAME"
        ),
        r"^[A-Za-z0-9.:_-]{1,253}\Z": "the name or the address of a host, without a port and without brackets",
        r"^[A-Za-z0-9_*]{1,128}\Z": "a pattern for names: letters, digits, underscores, and * for any rest",
        r"^0[0-7]{3}\Z": 'an octal mode such as "0640"',
        r"^[0-9]{12}\Z": "a twelve-digit account id",
        r"^[0-9]{1,20}\Z": "a project number: 1 to 20 digits",
        r"^[A-Za-z0-9_+=,.@-]{1,64}\Z": "the name of a role: 1 to 64 letters, digits or _+=,.@-",
        r"^[A-Za-z0-9_-]{1,128}\Z": "1 to 128 letters, digits, dashes or underscores",
        r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\Z": "NAMESPACE/KEY, each of letters, digits, dashes and underscores",
        r"^projects/[!-~]{1,1000}/cryptoKeyVersions/[0-9]+\Z": (
            "projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V"
        ),
    }.items()
}


def key_of(where: str | None, under: str = "") -> str:
    """``$.sources[0].path`` as an operator writes it: ``sources[0].path``."""
    return (under + (where or "$").removeprefix("$")).removeprefix(".") or "the file"


def explain(error: msgspec.ValidationError, under: str = "") -> tuple[str, str]:
    """The key and what was expected, from msgspec's message about what stands ``under`` a key."""
    match = _WHERE.match(str(error))
    if match is None:
        raise AssertionError("internal error: a message that matches nothing")
    what, key = match["what"], key_of(match["where"], under)
    unknown = _UNKNOWN.match(what)
    if unknown is not None:
        name = unknown["field"] if key == "the file" else f"{key}.{unknown['field']}"
        return name, "unknown key"
    pattern = _PATTERN.match(what)
    if pattern is not None:
        meaning = MEANING.get(pattern["regex"], "other text")
        return key, f"expected {meaning}"
    choice = _CHOICE.match(what)
    if choice is not None:
        bare = re.sub(r"\[[0-9]+\]", "", key)
        section, _, name = bare.partition(".")
        kinds = f"one of {_KINDS.get(section, 'the known kinds')}"
        expected = kinds if name == "kind" else _CHOICES.get(bare) or _CHOICES.get(name, "another value")
        return key, f"expected {expected}, got {choice['value']!r}"
    return key, f"{what[0].lower()}{what[1:]}".replace("`", "")


def hint_for(key: str) -> str | None:
    """What to do about what is wrong with ``key``."""
    section = re.split(r"[.\[]", key, maxsplit=1)[0]
    if section in _KINDS:
        return f"each [[{section}]] has a kind: {_KINDS[section]}"
    struct = {"the file": Config}.get(key) or SECTIONS.get(section)
    if struct is None:
        return f"the sections are {', '.join(Config.__struct_fields__)}"
    return None if key == "the file" else f"[{section}] knows {', '.join(struct.__struct_fields__)}"


_KINDS: Final = {
    "launch_signers": "ec2-user-data, ec2-tag, gce-attribute, credential, directory",
    "keys": "file, credential, aws-kms, gcp-kms, ephemeral",
    "sources": "file, ec2-user-data, gce-attribute, https",
}


ENTRIES: Final[dict[str, object]] = {
    "keys": KeyEntry,
    "signers": SignerEntry,
    "launch_signers": LaunchSignersEntry,
    "sources": SourceEntry,
}


_CHOICES: Final = {
    "identity.fallback": '"aws" or "gcp"',
    "identity.on_expiry": '"deny" or "fallback"',
    "log.level": '"debug", "info", "warning" or "error"',
    "log.format": '"auto", "json" or "console"',
    "scope": '"instance", "project" or "both"',
}


SECTIONS: Final = {
    "listen": Listen,
    "identity": Identity,
    "signers": SignerEntry,
    "enrol": Enrol,
    "upstream": Upstream,
    "mint": Mint,
    "aws": Aws,
    "gcp": Gcp,
    "pass_through": PassThrough,
    "environment": Environment,
    "state": State,
    "log": Log,
    "redirect": Redirect,
}

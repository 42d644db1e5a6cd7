"""From a file to frozen values: strictly, or with a list of everything that is wrong."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, get_args

import msgspec

from agent.config.checks import contradictions, host_port
from agent.config.faults import Fault
from agent.config.meant import Meant, by_unknown_keys, sorted_out, units_by_unknown_keys
from agent.config.schema import (
    Config,
    Listen,
    Redirect,
)
from agent.config.words import (
    ENTRIES,
    explain,
    hint_for,
    with_number,
)
from agent.core.errors import ConfigError
from agent.core.text import os_reason

MAX_FILE_BYTES: Final = 1 << 20


_S = TypeVar("_S")


def parse(text: str, *, origin: str) -> Config:
    """Decode the text of a configuration file.

    Args:
        text: TOML.
        origin: how to name it in errors.

    Raises:
        ConfigError: it is not TOML, or a key is unknown, missing or of the wrong type; the message names the key.
    """
    tree = _tree(text, origin)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        key, expected = explain(error)
        raise ConfigError(
            f"{origin}: {key}: {with_number(expected, tree, key)}", hint=hint_for(key, _kind(tree, key))
        ) from None
    for fault in contradictions(config):
        raise fault.error(origin)
    return config


def _kind(tree: dict[str, object], key: str) -> object:
    """The ``kind`` of the entry that ``key`` stands in (``sources[0].path``); ``None``: it has none, or it is wrong."""
    found = re.match(r"(\w+)\[([0-9]+)\]", key)
    entries = tree.get(found[1]) if found else None
    entry = entries[int(found[2])] if found and isinstance(entries, list) else None
    return entry.get("kind") if isinstance(entry, dict) else None


def survey(path: Path) -> tuple[Config, tuple[Fault, ...]]:
    """Everything that is wrong in a file, for a person who wants to mend it in one go.

    Returns:
        The rest of the configuration, without its mistakes, never to be served from; and the faults, in the order of
        the sections. A list of entries is cut off at its first faulty one, so that an index stays true.

    Raises:
        ConfigError: it cannot be read, or it is not TOML.
    """
    tree = _tree(text(path), str(path))
    faults = [Fault(key, "unknown key", hint_for(key)) for key in tree if key not in Config.__struct_fields__]
    sound: dict[str, object] = {}
    for field in msgspec.structs.fields(Config):
        if field.encode_name not in tree:
            continue
        value, found = tree[field.encode_name], []
        if field.name in ENTRIES and isinstance(value, list):
            left: list[object] = []
            for index, entry in enumerate(value):
                found += _mended(entry, ENTRIES[field.name], f"{field.name}[{index}]")[1]
                if not found:
                    left.append(entry)
            sound[field.name] = left
        else:
            sound[field.name], found = _mended(value, field.type, field.name)
        faults += found
    config = msgspec.convert({key: value for key, value in sound.items() if value is not None}, Config)
    faults += [fault for fault in contradictions(config) if not follows(fault.key, faults)]
    return config, tuple(faults)


def follows(key: str, faults: Iterable[Fault]) -> bool:
    """Whether what is wrong with ``key`` may be so only because of one of the ``faults``, in the same list or value."""
    lists = {re.split(r"[.\[]", fault.key)[0] for fault in faults} & ENTRIES.keys()
    return re.split(r"[.\[]", key)[0] in lists or any(key in (fault.key, fault.key.split(".")[0]) for fault in faults)


def _mended(value: object, kind: object, origin: str) -> tuple[object | None, list[Fault]]:
    """``value`` without its mistakes, ``None`` when nothing is left; and the mistakes.

    msgspec reports the first mistake only. It is taken out, and msgspec is asked again.
    """
    faults: list[Fault] = []
    value = dict(value) if isinstance(value, dict) else value
    while True:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            key, said = explain(error, origin)
            if isinstance(value, dict) and key == origin and said.startswith("object missing required field"):
                return None, [*faults, *_missing(value, kind, origin, faults)]
            said = with_number(said, value, key.removeprefix(origin))
            faults.append(Fault(key, said, hint_for(key, value.get("kind") if isinstance(value, dict) else None)))
            name = re.split(r"[.\[]", key.removeprefix(origin).removeprefix("."))[0]
            if not isinstance(value, dict) or name not in value or name == "kind":
                return None, faults
            del value[name]
        else:
            return value, faults


def _missing(value: dict[str, object], kind: object, origin: str, faults: list[Fault]) -> Iterator[Fault]:
    """The required keys that are missing, except those taken out because they were wrong."""
    kinds: Iterable[type[msgspec.Struct]] = get_args(kind) or (kind,)
    for one in kinds:
        tag = one.__struct_config__.tag
        if tag is not None and "kind" not in value:
            yield Fault(f"{origin}.kind", "required, and not there", hint_for(origin))
            return
        if tag == value.get("kind"):
            for field in msgspec.structs.fields(one):
                key = f"{origin}.{field.name}"
                if field.required and field.name not in value and not any(f.key.startswith(key) for f in faults):
                    yield Fault(key, "required, and not there", hint_for(origin))


def load(path: Path) -> Config:
    """Read and decode a configuration file.

    Raises:
        ConfigError: it cannot be read, or :func:`parse` refuses it.
    """
    return parse(text(path), origin=str(path))


class RedirectRead(NamedTuple):
    """The section ``[redirect]``, as far as it is clear.

    Attributes:
        section: its known keys.
        port: the agent's.
        notes: what was ignored, in words.
        meant: whoever may be meant by what is not known: to be refused.
    """

    section: Redirect
    port: int
    notes: tuple[str, ...] = ()
    meant: Meant = Meant()


def load_redirect(path: Path) -> RedirectRead:
    """Read the section ``[redirect]`` alone, and ignore every mistake elsewhere.

    A misspelt key of another section must not decide whether workers are redirected. An unknown key of this section is
    reported and left out (a newer release wrote it, or it is misspelt), and who is named there is
    :attr:`RedirectRead.meant`; a *value* of this section that cannot be right is an error: its meaning is not known,
    and the caller refuses workers.

    Raises:
        ConfigError: it cannot be read, is no TOML, or a value of this section or the port is wrong.
    """
    document = _tree(text(path), str(path))
    notes = []
    section = document.get("redirect", {})
    if isinstance(section, dict):
        section = {key: value for key, value in section.items() if key in Redirect.__struct_fields__}
    unknown = by_unknown_keys(document)
    notes += [
        f"{key}: unknown key, {'left out: who is named there is refused' if unknown[key] else 'left out'}"
        for key in sorted(unknown)
    ]
    redirect = _section(section, Redirect, f"{path}: redirect")
    port = redirect.port
    if not port:
        listen = document.get("listen", {})
        http = listen.get("http", Listen().http) if isinstance(listen, dict) else Listen().http
        try:
            port = host_port(http[0])[1]
        except (ConfigError, TypeError, IndexError, KeyError):
            # The sockets are systemd's, and their unit has the default.
            port = host_port(Listen().http[0])[1]
            notes.append(f"listen.http: cannot be read, taken for port {port}")
    words = dict.fromkeys(word for words in unknown.values() for word in words)
    return RedirectRead(redirect, port, tuple(notes), sorted_out(words, units_by_unknown_keys(document)))


def _tree(text: str, origin: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    except ValueError:
        raise ConfigError(f"{origin}: not valid TOML: a number of too many digits") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not valid TOML: nested too deeply") from None


def _section(document: object, kind: type[_S], origin: str) -> _S:
    """One section of a document.

    Raises:
        ConfigError: it is not what its type says.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        key, text = explain(error)
        raise ConfigError(f"{origin}.{key}: {with_number(text, document, key)}") from None


def text(path: Path) -> str:
    """Read the text of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no plain file, is too long, or is no text.
    """
    try:
        return data(path).decode().removeprefix("\ufeff")  # some editors begin a text with the mark of its encoding
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text", hint="save it as UTF-8") from None


def data(path: Path) -> bytes:
    """Read the bytes of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no plain file, or is too long.
    """
    read = head(path)
    if len(read) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    return read


def head(path: Path) -> bytes:
    """Read the beginning of a configuration file: one byte more than it may have.

    Raises:
        ConfigError: it cannot be read, or is no plain file.
    """
    try:
        # Non-blocking: opening a pipe that was put there would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: expected a plain file")
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = None
        if isinstance(error, PermissionError):
            hint = "it is for root and the service: root:credential-agent, mode 0640"
        elif isinstance(error, FileNotFoundError):
            hint = "it is made by the installation of the agent; --config names another"
        raise ConfigError(f"{path}: cannot be read: {os_reason(error)}", hint=hint) from None

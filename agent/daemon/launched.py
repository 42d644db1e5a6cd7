"""Which signers did the launch of this machine name? Named from outside, within the bounds of the configuration.

Whoever launches a machine is root on it anyway, so it may say whose bundles the machine takes: in EC2 user-data, a tag
or a GCE attribute, a systemd credential, or a directory of public keys. Each entry of the configuration
(``launch_signers``) says where to look, which issuers such a signer may speak as, and for how long; without an entry
nobody is asked.

While a place is silent its last answer counts. It is handed to the next process: a restart trusts whom this one
trusted. When a place answers and no longer names a signer, that signer is no longer trusted. Before it has answered at
all, an unknown signer may be one that it names: such a bundle waits (:attr:`Launched.silent`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from agent import bundle, config
from agent.bundle.short_key import read_signer_word, signer_word
from agent.core.clock import Clock
from agent.core.errors import BundleError, HostError, UpstreamError
from agent.core.text import os_reason
from agent.host.files import read_plain
from agent.host.patience import Patience
from agent.upstream import Ec2Metadata, GceMetadata, OtherCloud, SwitchedOff
from agent.wire.names import EC2_TAGS, EC2_USER_DATA_PATH, gce_attributes
from agent.wire.signers import MAX_SIGNERS, find_signers

FIRST_SECONDS: Final = 2.0
"""How long a start waits for the first look."""
LOOK_SECONDS: Final = 2.0
ASK_SECONDS: Final = 30.0
"""Between two questions to a metadata service; files are looked at every :data:`LOOK_SECONDS`."""
_LARGEST: Final = 65_536
_SUFFIXES: Final = (".jwk", ".pem", ".pub")
_LOCAL: Final = (config.CredentialSigners, config.DirectorySigners)


class Launched:
    """See the module.

    Args:
        settings: where to look.
        ec2, gce: the machine's own metadata services; an entry whose service is not here names nobody.
        credentials_directory: where systemd puts credentials.
        left: what the previous process had found, by :func:`_key`.
        clock: time.

    Attributes:
        found: by :func:`_key`, the keys that the place names, one a line (:func:`_word`).
    """

    def __init__(
        self,
        settings: Sequence[config.LaunchSignersEntry],
        *,
        ec2: Ec2Metadata | None,
        gce: GceMetadata | None,
        credentials_directory: str | None,
        left: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._entries = tuple(settings)
        self._ec2 = ec2
        self._gce = gce
        self._credentials = Path(credentials_directory) if credentials_directory else None
        self._clock = clock
        self._patience = Patience()
        self._log = structlog.get_logger()
        self._asked = float("-inf")
        self._troubled: dict[str, str] = {}
        self._unanswered = {_key(entry): _kind(entry) for entry in self._entries if _key(entry) not in left}
        self.found: dict[str, str] = {key: left[key] for entry in self._entries if (key := _key(entry)) in left}

    @property
    def silent(self) -> str:
        """The kind of a place that has not answered yet; empty: each has."""
        return next(iter(self._unanswered.values()), "")

    @property
    def trust(self) -> bundle.Trust:
        """The signers that the places name: each key once, from the first entry that names it."""
        signers: dict[str, bundle.Signer] = {}
        for entry in self._entries:
            for word in self.found.get(_key(entry), "").split():
                try:
                    key = read_signer_word(word)
                except BundleError:
                    continue  # what was left by another version
                signer = bundle.Signer(
                    name=f"{LAUNCHED}{_kind(entry)}",
                    key=key,
                    issuers=entry.issuers,
                    audiences=entry.audiences,
                    max_lease=timedelta(seconds=entry.max_lease_seconds),
                )
                signers.setdefault(signer.kid, signer)
        return bundle.Trust(tuple(signers.values()))

    async def look(self) -> bool:
        """Look everywhere now; returns whether anything has changed."""
        # A directory that cannot be read is no reason to ask a service that has answered.
        early = any(_key(entry) in self._unanswered for entry in self._entries if not isinstance(entry, _LOCAL))
        ask = self._clock.boottime() >= self._asked + (LOOK_SECONDS if early else ASK_SECONDS)
        due = [entry for entry in self._entries if ask or isinstance(entry, _LOCAL)]
        if ask:
            self._asked = self._clock.boottime()
        before = dict(self.found)
        await asyncio.gather(*(self._look(_key(entry), entry) for entry in due))
        return self.found != before

    async def look_first(self) -> None:
        """Look for a start, which waits for no place for long."""
        if self._entries:
            try:
                async with asyncio.timeout(FIRST_SECONDS):
                    await self.look()
            except TimeoutError:
                self._asked = float("-inf")

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look again and again, and tell of each change; returns only if there is nowhere to look."""
        while self._entries:
            await self._clock.sleep(LOOK_SECONDS)
            if await self.look():
                changed()

    async def _look(self, key: str, entry: config.LaunchSignersEntry) -> None:
        try:
            said = await self._ask(entry)
            words = await asyncio.to_thread(_read, said, lines=isinstance(entry, config.Ec2UserDataSigners))
        except (UpstreamError, HostError, BundleError) as error:
            if isinstance(error, SwitchedOff | OtherCloud | BundleError):
                self._unanswered.pop(key, None)  # it has said so itself, or the other cloud's service, which is here
            # Silence and a mistake revoke nobody: the signers named before stay.
            if self._troubled.get(key) != error.message:
                self._log.warning("signers.unreadable", kind=_kind(entry), reason=error.message)
            self._troubled[key] = error.message
            return
        self._troubled.pop(key, None)
        self._unanswered.pop(key, None)
        if self.found.get(key, "") != words:
            self._log.warning("signers.launched", kind=_kind(entry), signers=words.split())
        self.found[key] = words

    async def _ask(self, entry: config.LaunchSignersEntry) -> list[bytes]:
        """The text there; empty where there is no such place."""
        match entry:
            case config.Ec2UserDataSigners():
                return await self._ec2_says(EC2_USER_DATA_PATH)
            case config.Ec2TagSigners():
                return await self._ec2_says(EC2_TAGS + entry.tag)
            case config.GceAttributeSigners():
                if self._gce is None:
                    return []
                said = await self._gce.attribute(gce_attributes("instance"), entry.key)
                return [] if said is None else [said]
            case config.CredentialSigners():
                place = self._credentials
                if place is None:
                    return []
                return await self._patience.ask(place, partial(_files, [place / entry.name]))
            case config.DirectorySigners():
                return await self._patience.ask(Path(entry.path), partial(_directory, Path(entry.path)))

    async def _ec2_says(self, path: str) -> list[bytes]:
        said = None if self._ec2 is None else await self._ec2.get(path)
        return [] if said is None else [said]


LAUNCHED: Final = "launch:"
"""How the names of such signers begin."""


def told(trust: bundle.Trust) -> list[dict[str, Any]]:
    """The trusted signers, for a status: key ids, bounds, and who named them. Public, and without a path."""
    return [
        {
            "kid": signer.kid,
            "issuers": list(signer.issuers),
            "max_lease_seconds": None if signer.max_lease is None else int(signer.max_lease.total_seconds()),
            "origin": signer.name.removeprefix(LAUNCHED) if signer.name.startswith(LAUNCHED) else "configuration",
        }
        for signer in trust.signers
    ]


def _key(entry: config.LaunchSignersEntry) -> str:
    """A name of a place that the next process knows too: its configuration may list other places before it."""
    match entry:
        case config.Ec2UserDataSigners():
            place = ""
        case config.Ec2TagSigners():
            place = entry.tag
        case config.GceAttributeSigners():
            place = entry.key
        case config.CredentialSigners():
            place = entry.name
        case config.DirectorySigners():
            place = entry.path
    return f"{LAUNCHED}{_kind(entry)}:{place}"


def _kind(entry: config.LaunchSignersEntry) -> str:
    return str(entry.__struct_config__.tag)


def _read(documents: list[bytes], *, lines: bool) -> str:
    """The keys in what was found, as short words: a document that is a key, or has lines that name some.

    Args:
        documents: what was found.
        lines: whether lines alone count: in user-data a JSON document is something else (a bundle, say).

    Raises:
        FormatError: code ``key``: it is a key, and a broken one.
    """
    words: dict[str, None] = {}
    for document in documents:
        text = document[:_LARGEST].strip()
        named = find_signers(text)
        if not named and not lines and text.startswith((b"ed25519:", b"p256:")):
            named = tuple(text.decode("ascii", "replace").split())
        if named:
            words.update((signer_word(read_signer_word(word)), None) for word in named)
        elif (
            not lines
            and text.startswith((b"{", b"-----BEGIN PUBLIC KEY"))
            and (b'"kty"' in text or text.startswith(b"-"))
        ):
            words.update((signer_word(key), None) for key in bundle.VerifyKey.parse_all(text))
    return "\n".join(list(words)[:MAX_SIGNERS])


def _files(paths: Sequence[Path]) -> list[bytes]:
    found = []
    for path in paths:
        try:
            found.append(read_plain(path, _LARGEST))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"{path.name}: cannot be read: {os_reason(error)}") from None
    return found


def _directory(place: Path) -> list[bytes]:
    try:
        names = sorted(one.name for one in place.iterdir() if one.suffix in _SUFFIXES and not one.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"the directory cannot be read: {os_reason(error)}") from None
    return _files([place / name for name in names[:MAX_SIGNERS]])

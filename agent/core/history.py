"""What happened on this worker lately, for the person who asks at three in the morning what came before.

Bounded, and without a secret. Of renewals fewer are kept than of the rest: they come by the hour, and must not push out
the one bundle that was refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final

import msgspec

KEPT: Final = 80
KEPT_RENEWALS: Final = 24
RENEWED: Final = "renewed"
_FLAPPING: Final = frozenset({"refused", "not-renewed", "source-failed", "source-recovered"})
"""What may happen again and again: the same in a row is one entry."""
_LONGEST: Final = 300


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened.

    Attributes:
        at: when, by our time; the last time, if it happened more than once in a row.
        kind: a stable word: ``started``, ``bundle``, ``withdrawn``, ``refused``, ``revoked``, ``identity``, ``ended``,
            ``ends-soon``, ``renewed``, ``not-renewed``, ``source-failed``, ``source-recovered``.
        about: of what: a cloud, a source, a grant.
        said: a sentence for a person.
        times: how often in a row.
    """

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    kind: str
    about: str
    said: str
    times: int = 1

    @property
    def _what(self) -> tuple[str, str, str]:
        return self.kind, self.about, self.said


class History:
    """The last entries, the oldest first.

    Attributes:
        version: rises with each change.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self.version = 0
        self.restore(entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All that is kept."""
        return tuple(self._entries)

    def add(self, at: datetime, kind: str, about: str, said: str) -> None:
        """Take note. A trouble that is the same as the last of its kind and thing counts as that, once more."""
        entry = Entry(at=at, kind=kind, about=_writable(about), said=_writable(said[:_LONGEST]))
        last = next((one for one in reversed(self._entries) if (one.kind, one.about) == (kind, about)), None)
        if kind in _FLAPPING and last is not None and last._what == entry._what:  # noqa: SLF001 - of the same class
            self._entries.remove(last)
            entry = msgspec.structs.replace(entry, times=last.times + 1)
        self._entries.append(entry)
        self._bound()
        self.version += 1

    def restore(self, entries: Iterable[Entry]) -> None:
        """Take back what an earlier process kept, from wherever it was left, beside what is here."""
        found = {(one.at, one._what): one for one in (*entries, *self._entries)}  # noqa: SLF001 - of the same class
        self._entries = sorted(found.values(), key=lambda one: one.at)
        self._bound()
        self.version += 1

    def clear(self) -> None:
        """Forget: it was another machine's."""
        self._entries.clear()
        self.version += 1

    def _bound(self) -> None:
        renewals = [one for one in self._entries if one.kind == RENEWED]
        others = [one for one in self._entries if one.kind != RENEWED]
        gone = {id(one) for one in (*renewals[:-KEPT_RENEWALS], *others[:-KEPT])}
        self._entries = [one for one in self._entries if id(one) not in gone]


def _writable(text: str) -> str:
    """A text that can be written as UTF-8: one that quotes a header of a server may hold what no text may."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

"""What may still be the first bundle, though the boot grace is over?

The grace says how long one is waited for that *comes*. What is here and could not be looked at is waited for longer:
the machine's own identity, served meanwhile, would be the wrong one, and the programs that got it would keep it.

* A source at a cloud's metadata service (user-data, an attribute) that has not answered once: in that cloud. Nothing is
  missed by it, since the machine's identity comes from there too. A file that has not: in all clouds.
* A bundle that a source brought, and that is just being opened, or cannot be yet, since a key service does not answer:
  in all clouds, as nobody knows yet which it decides. (What anybody may hand in is not waited for: it would be in their
  power to keep a worker waiting.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from agent.core.errors import KeyUnavailableError, SourceError, UnansweredError
from agent.core.model import Cloud
from agent.core.source import OURS, Ack, OfTheMachine, Source


class Awaited:
    """See the module.

    Args:
        sources: the ways in.
    """

    def __init__(self, sources: Collection[Source]) -> None:
        self._sources = frozenset(source.name for source in sources) - OURS
        self._unread: dict[str, tuple[tuple[Cloud, ...], str]] = {
            source.name: (source.awaited_in, f"{source.name} is being looked at: it may hold the first bundle")
            for source in sources
            if isinstance(source, OfTheMachine)
        }
        self._opening: Counter[str] = Counter()
        self._unopened: dict[tuple[str, str], str] = {}  # by source and its part

    @property
    def why(self) -> dict[Cloud, str]:
        """What is waited for, as a sentence, by cloud; nothing that is here in those that are left out."""
        opening = [f"a bundle of {origin} is being opened" for origin in self._opening]
        for said in (*self._unopened.values(), *opening):
            return dict.fromkeys(Cloud, said)
        return {cloud: said for clouds, said in self._unread.values() for cloud in clouds}

    def go_on(self, clouds: Iterable[Cloud]) -> None:
        """An earlier process waited in these: each source is read before nothing is waited for there."""
        waited = tuple(clouds)
        for name in self._sources if waited else ():
            own, _ = self._unread.get(name, ((), ""))
            said = f"{name} is being looked at: it may hold the first bundle"
            self._unread[name] = (tuple({*waited, *own}), said)

    def answered(self, name: str) -> None:
        """A source was read."""
        self._unread.pop(name, None)

    def failed(self, name: str, error: SourceError) -> None:
        """A source could not be read. Once it has said so itself, it holds nothing that could be waited for."""
        if name not in self._unread:
            return
        if isinstance(error, UnansweredError):
            said = f"{name} does not answer, and may hold the first bundle: {error.message}"
            self._unread[name] = (self._unread[name][0], said)
        else:
            del self._unread[name]

    def opens(self, origin: str) -> None:
        """A bundle is being opened, until :meth:`opened`."""
        if origin in self._sources:
            self._opening[origin] += 1

    def opened(self, origin: str, ack: Ack | None, *, part: str = "", newest: bool = True) -> None:
        """It was, or could not be; ``None``: nothing came of it.

        Args:
            origin: of it.
            ack: the verdict.
            part: of its source.
            newest: whether that part has brought none since. Only such a one is looked at again: what becomes of an
                earlier one says nothing of it.
        """
        if origin not in self._sources:
            return
        self._opening[origin] -= 1
        self._opening += Counter()  # those without any are left out
        if not newest:
            return
        if ack is not None and ack.code == KeyUnavailableError.code:
            self._unopened[origin, part] = f"a bundle of {origin} cannot be opened yet: {ack.reason}"
        else:
            self._unopened.pop((origin, part), None)

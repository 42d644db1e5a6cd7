"""Answers that are given again to the very bytes that asked for them: for this second, and for what is served now.

A thousand programs that start at once ask the same thing in the same words. The first of them is read, checked and
answered as any request; whoever asks with the same bytes within that second is given the same answer, since everything
that it was made from is the same: the request, what is served, and the second.

Answers that are never the same are made anew each time: a session token (nobody is given another's), and the time that
is left of the one that a request shows, which is checked each time. Parts on which no answer depends are not compared:
the name of the program that asks, as long as the gate lets that pass. So two requests are the same that differ in a
good token and in a plain ``User-Agent``.

* Nothing is remembered beyond a second, beyond the end of what is served, nor once something else is served:
  everything is dropped in the moment in which that is told (:meth:`Memory.forget`).
* Only whole answers (200) that were made at once are remembered: no refusal, nothing that was waited for.
* Only a request that comes again is remembered: of a request that comes once, only a number is kept.
* Where none comes again, most are not even compared: that cost a seventh of what reading one does.
* What came again is found at a glance the next time, by its bytes without the token, at the place where that was.

A bearer token is part of the bytes. They are looked up by a hash that is keyed for each process, so how long that takes
tells nothing of a token (it is compared in constant time where a request is checked).

The control socket has no memory: a push that is repeated is evaluated again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from agent.core.clock import Clock
from agent.core.model import Cloud
from agent.serve.handling import Access
from agent.serve.waiting import Served
from agent.wire import ec2, names
from agent.wire.http import Request, Response

MOST_ENTRIES: Final = 1024
MOST_BYTES: Final = 1 << 22
"""Of requests and answers together. Above either everything is forgotten."""
MOST_REQUEST_BYTES: Final = 4096
MOST_ANSWER_BYTES: Final = 8192
"""The most bytes that fit into a fresh socket at once."""
_MOST_MARKS: Final = 2048
IN_VAIN: Final = 64
"""After so many in a row that were not remembered, one in :data:`SAMPLE` is looked at, until one is."""
SAMPLE: Final = 7
"""A prime: of programs that ask two, four or six times it is not the same request each time."""
_END: Final = b"\r\n\r\n"
_MOST_AT_A_GLANCE: Final = 64
"""Requests. With more all are forgotten, and found the longer way."""
_TOKEN_LENGTH: Final = 48
_TOKEN: Final = rb"[Xx]-[Aa]ws-[Ee]c2-[Mm]etadata-[Tt]oken: ([A-Za-z0-9_-]{%d})" % _TOKEN_LENGTH
_HOLES: Final = re.compile(rb"\r\n(?:" + _TOKEN + rb"|[Uu]ser-[Aa]gent: ([ -~]{1,512}))(?=\r\n)")
_SHOWN: Final = re.compile(rb"\r\n" + _TOKEN + rb"\r\n")
_TOKEN_NAME: Final = f"{names.EC2_TOKEN_HEADER}:".lower().encode()
_ECHO: Final = f"{names.EC2_TTL_ECHO}: ".encode()
_OURS: Final = names.USER_AGENT_PREFIX.encode()

_NO_TOKEN: Final = -1

Key = tuple[bool, bool, tuple[bytes, ...]]
"""Whether a token and a name were cut out, and what is left. Without the first two a request that shows no token would
equal one that shows a good one."""


def _cut(data: bytes) -> tuple[Key, bytes | None] | None:
    """A request without its token and its program's name, and that token; ``None``: it is never remembered."""
    pieces = _HOLES.split(data)
    if len(pieces) == 1:
        return (False, False, (data,)), None
    token = name = None
    for shown, called in zip(pieces[1::3], pieces[2::3], strict=True):
        if shown is not None:
            if token is not None:
                return None  # which of two counts is not for us to say
            token = shown
        else:
            if name is not None or called.lstrip().startswith(_OURS) or b"mozilla" in called.lower():
                return None  # what is said by the gate
            name = called
    return (token is not None, name is not None, tuple(pieces[0::3])), token


class _Entry(NamedTuple):
    """An answer. ``ttl``: if it is a session token, how long the next one is good; else ``None``."""

    before: bytes
    behind: bytes
    ttl: int | None
    access: Access


class _Glance:
    """Answers by all bytes of a request but its token, which stands where it stood when that was last found.

    It says less than :func:`_cut`: that these bytes, with a good token there, were answered so. Any other bytes there
    are no good token, whatever they are.
    """

    def __init__(self) -> None:
        # All mutable state:
        self._places: dict[int, int] = {}  # by the length of a request: where its token begins
        self._known: dict[tuple[bytes, bytes] | bytes, _Entry] = {}  # in two pieces, if one was cut out

    def find(self, data: bytes) -> tuple[_Entry, bytes | None] | None:
        """The answer to these bytes, and the token that they show."""
        place = self._places.get(len(data))
        if place is None:
            return None
        if place == _NO_TOKEN:
            entry = self._known.get(data)
            return None if entry is None else (entry, None)
        behind = place + _TOKEN_LENGTH
        entry = self._known.get((data[:place], data[behind:]))
        return None if entry is None else (entry, data[place:behind])

    def keep(self, data: bytes, entry: _Entry) -> None:
        """These bytes are answered so."""
        if len(self._known) >= _MOST_AT_A_GLANCE:
            self.forget()
        shown = _SHOWN.search(data)
        place = self._places[len(data)] = _NO_TOKEN if shown is None else shown.start(1)
        self._known[data if place == _NO_TOKEN else (data[:place], data[place + _TOKEN_LENGTH :])] = entry

    def forget(self) -> None:
        """Nothing is known."""
        self._places.clear()
        self._known.clear()


class Memory:
    """See the module.

    Args:
        served: what is served.
        clock: decides when that ends.
        mint: makes a session token that is good for so many seconds.
        left: seconds that a session token is still good for; ``None``: it is not.
    """

    def __init__(
        self, served: Served, clock: Clock, *, mint: Callable[[int], bytes], left: Callable[[str], int | None]
    ) -> None:
        self._served = served
        self._clock = clock
        self._mint = mint
        self._left = left
        # All mutable state:
        self._known: dict[Key, _Entry] = {}
        self._bytes = 0
        self._marks: set[int] = set()
        self._in_vain = 0  # so many in a row were not remembered
        self._asked: tuple[bytes, tuple[Key, bytes | None] | None] | None = None  # what was cut last, and how
        self._glance = _Glance()
        self._since = self._until = clock.timestamp()

    def __len__(self) -> int:
        return len(self._known)

    def forget(self) -> None:
        """Something else is served now, or may be."""
        self._known.clear()
        self._glance.forget()
        self._bytes = 0
        self._asked = None

    def answer(self, data: bytes) -> tuple[bytes, Access] | None:
        """The answer to a request of those bytes; ``None``: it has to be read."""
        self._in_vain += 1
        if not self._known or self._is_passed_over():
            return None
        if self._is_over():
            self.forget()
            return None
        known = self._glance.find(data) or self._find(data)
        if known is None:
            return None
        self._in_vain = 0
        entry, token = known
        if token is not None:
            left = self._left(token.decode("latin-1"))
            return None if left is None else (b"%b%d%b" % (entry.before, left, entry.behind), entry.access)
        if entry.ttl is not None:
            return entry.before + self._mint(entry.ttl), entry.access
        return entry.before, entry.access

    def _find(self, data: bytes) -> tuple[_Entry, bytes | None] | None:
        found = _cut(data)
        entry = None if found is None else self._known.get(found[0])
        if found is None or entry is None:
            self._asked = (data, found)
            return None
        self._glance.keep(data, entry)
        return entry, found[1]

    def keep(self, data: bytes, request: Request, response: Response, date_line: bytes, access: Access) -> None:
        """Remember an answer that was made at once, if it is one to be given again.

        Args:
            data: all that came of the request, in one piece.
            request: the same, read.
            response: what was answered.
            date_line: sent with it.
            access: what is reported of it.
        """
        if self._is_passed_over():
            return
        asked, self._asked = self._asked, None
        if not _may_be_kept(data, response):
            return
        found = asked[1] if asked is not None and asked[0] is data else _cut(data)
        if found is None or self._is_first(found[0]):
            return
        entry = self._entry(data, request, response, date_line, access, shown=found[1] is not None)
        if entry is None:
            return
        size = len(data) + len(entry.before) + len(entry.behind)
        if self._is_over() or len(self) >= MOST_ENTRIES or self._bytes + size > MOST_BYTES:
            self.forget()
        if not self._known:
            self._since, self._until = self._clock.timestamp(), self._end()
        self._known[found[0]] = entry
        self._bytes += size

    def _is_passed_over(self) -> bool:
        """Whether the newest is not worth a look."""
        return self._in_vain > IN_VAIN and self._in_vain % SAMPLE != 0

    @staticmethod
    def _entry(
        data: bytes, request: Request, response: Response, date_line: bytes, access: Access, *, shown: bool
    ) -> _Entry | None:
        ending = date_line + b"\r\n" + (b"" if request.method == "HEAD" else response.body)
        if shown:
            before, echo, seconds = response.head.rpartition(_ECHO)
            # Without an echo it is not EC2's dialect.
            if not echo or not seconds.rstrip().isdigit() or data.lower().count(_TOKEN_NAME) != 1:
                return None
            return _Entry(before + echo, b"\r\n" + ending, None, access)
        if request.method == "PUT":
            ttl = ec2.ttl_asked(request.headers.get(names.EC2_TTL_HEADER))
            if request.segments[1:] != ("api", "token") or ttl is None:
                return None
            return _Entry(response.head + date_line + b"\r\n", b"", ttl, access)
        if names.EC2_TOKEN_HEADER in request.headers:
            return None  # the token is shown in a spelling that _cut does not find
        return _Entry(response.head + ending, b"", None, access)

    def _is_first(self, key: Key) -> bool:
        """Whether it was not asked before; one that comes once is worth no more than a number."""
        mark = hash(key)
        if mark in self._marks:
            return False
        if len(self._marks) >= _MOST_MARKS:
            self._marks.clear()
        self._marks.add(mark)
        return True

    def _is_over(self) -> bool:
        """Whether that second has passed, or our clock was set back before it."""
        return not self._since <= self._clock.timestamp() < self._until

    def _end(self) -> float:
        """The instant at which answers remembered from now on end: with this second, or with what is served."""
        now = self._clock.now()
        ends = [self._served.stretch(cloud, now).until for cloud in Cloud]
        return min([math.floor(now.timestamp()) + 1.0, *(end.timestamp() for end in ends if end is not None)])


def _may_be_kept(data: bytes, response: Response) -> bool:
    """Whether it is a whole answer to a head with nothing behind it, both of them small."""
    if response.status != 200 or len(data) > MOST_REQUEST_BYTES or len(response.body) > MOST_ANSWER_BYTES:
        return False
    return data.find(_END) == len(data) - len(_END)

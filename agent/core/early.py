"""How soon a client asks again: the end that the machine's own credential is given while a bundle may still come.

A client keeps what it was given until shortly before the end it was told. A bundle that comes a minute after a program
asked would find it as the machine until that end: five hours later, for an instance profile. So what is served in a
bundle's absence is told with an end :data:`SHORTEST` to :data:`SHORTEST` + :data:`STEP` from now, never later than its
true one.

Why eighteen minutes (measured, each client against a scripted service):

* botocore renews from 15 minutes before the end, on every call if less is left when it asked (container credentials);
  over EC2's metadata it keeps what ends within 12 to 20 minutes for as long as that again. So it asks every 3 to 5
  minutes and at no call in between.
* Go, JavaScript, CRT, object_store and Google's clients renew from 3 to 5 minutes before, Java at half, Rust and Go's
  EC2 provider at the end itself: they ask every 10 to 20 minutes, and none of them storms above 5.

The end stands on a grid, so that within :data:`STEP` every answer is the same; each worker has a grid of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

SHORTEST: Final = timedelta(minutes=18)
STEP: Final = timedelta(minutes=2)

_ORIGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)


def early_end(now: datetime, phase: timedelta = timedelta()) -> datetime:
    """The end to tell at ``now``.

    Args:
        now: by the clock of those who are told: a client compares an instant with the machine's wall clock, however
            wrong it is.
        phase: where this worker's grid stands, from nothing to :data:`STEP`.
    """
    earliest = now + SHORTEST
    steps = -((_ORIGIN + phase - earliest) // STEP)  # rounded up
    return (_ORIGIN + phase + steps * STEP).replace(microsecond=0)

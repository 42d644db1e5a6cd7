"""How soon a client asks again: the end told with the machine's own credential while a bundle may still come.

A client keeps a credential until shortly before the end that it was told. A program that asks a minute before a bundle
comes would use the machine's identity until that end: five hours, for an instance profile. So an identity served
without a bundle gets an end :data:`SHORTEST` to :data:`SHORTEST` + :data:`STEP` from now, never later than its true
one.

Why eighteen minutes (measured, each client against a scripted service):

* botocore renews from 15 minutes before the end, on every call if less is left when it asked (container credentials);
  over EC2's metadata it keeps what ends within 12 to 20 minutes for as long as that again. So it asks every 3 to 5
  minutes and at no call in between.
* Go, JavaScript, CRT, object_store and Google's clients renew from 3 to 5 minutes before, Java at half, Rust and Go's
  EC2 provider at the end itself: they ask every 10 to 20 minutes, and none of them storms above 5.

The end lies on a grid, so that within :data:`STEP` every answer is the same; each worker has a grid of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

SHORTEST: Final = timedelta(minutes=18)
STEP: Final = timedelta(minutes=2)

_ORIGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)


def early_end(now: datetime, phase: timedelta = timedelta()) -> datetime:
    """The end to tell a client at ``now``.

    Args:
        now: by the machine's wall clock, however wrong it is: a client compares the end with that clock.
        phase: the offset of this worker's grid, from 0 to :data:`STEP`.
    """
    earliest = now + SHORTEST
    steps = -((_ORIGIN + phase - earliest) // STEP)  # rounded up
    return (_ORIGIN + phase + steps * STEP).replace(microsecond=0)

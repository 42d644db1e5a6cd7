"""What end a client is told, by which clock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agent.core.view import Live, Origin
from agent.serve.early import Early
from tests.fakes.clock import START
from tests.fakes.view import FakeView
from tests.unit.identity.worlds import aws_credential, google_token

MINUTE = timedelta(minutes=1)


def early(*, expects: bool = True, ahead: timedelta = timedelta()) -> Early:
    view = FakeView()
    view.expects_bundle = expects
    return Early(view.served, lambda: ahead)


@pytest.mark.parametrize("hours", [-2, -1, 0, 1, 3])
def test_it_is_counted_by_the_clock_of_those_who_are_told(hours: int) -> None:
    """Where the wall clock is wrong by hours a client still sees 18 to 20 minutes, and never more than the true end."""
    ahead = timedelta(hours=hours)
    credential = aws_credential(START, minutes=360)
    told = early(ahead=ahead).aws(Live(credential, "m", Origin.FALLBACK), credential, START)

    assert 17 * MINUTE < told.expires_at - (START + ahead) <= 20 * MINUTE
    assert told.expires_at <= credential.expires_at
    assert told.access_key_id == credential.access_key_id


@pytest.mark.parametrize(("origin", "expects"), [(Origin.BUNDLE, True), (Origin.FALLBACK, False)])
def test_elsewhere_the_end_is_true(origin: Origin, expects: bool) -> None:
    """A bundle's credential, and the machine's where no bundle can come, are told with their own end."""
    credential, token = aws_credential(START, minutes=360), google_token(START, minutes=59)
    one = early(expects=expects)

    assert one.aws(Live(credential, "m", origin), credential, START) is credential
    assert one.google(Live(token, "m", origin), token, START) == token.expires_at


def test_google_s_end_is_early_too() -> None:
    """A Google token of 59 minutes is told as one of 18 to 20; one of seven minutes as that."""
    long, short = google_token(START, minutes=59), google_token(START, minutes=7)
    one = early(ahead=timedelta(hours=5))

    assert 17 * MINUTE < one.google(Live(long, "m", Origin.FALLBACK), long, START) - START <= 20 * MINUTE
    assert one.google(Live(short, "m", Origin.FALLBACK), short, START) == short.expires_at


def test_within_two_minutes_it_is_the_same_document() -> None:
    """Who asks again at once sees the very same credential: nothing is rendered anew, nothing seems to have changed."""
    credential = aws_credential(START, minutes=360)
    one = early()
    live = Live(credential, "m", Origin.FALLBACK)
    seen = [one.aws(live, credential, START + timedelta(seconds=second)) for second in range(120)]

    assert len({id(told) for told in seen}) <= 2

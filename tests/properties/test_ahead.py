"""What is said beforehand of the answers is what the store answers when that time has come."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from agent.core.model import Cloud, IdToken
from agent.core.scopes import given_by
from agent.core.secret import Secret
from agent.core.view import Answer
from agent.identity import ahead
from agent.identity.standing import google_source
from tests.properties.test_store_machine import StoreMachine

MOMENT: Final = timedelta(microseconds=1)


def at(told: tuple[ahead.Ahead, ...], now: datetime) -> ahead.Ahead:
    """What was told of that instant."""
    return next(one for one in told if one.until is None or now < one.until)


class AheadMachine(StoreMachine):
    """The machine of the store, with somebody beside it who only hears what is ahead, and a clock."""

    @initialize()
    def listen(self) -> None:
        self.heard_of: tuple[object, int] | None = None
        self.heard: Mapping[Cloud, tuple[ahead.Ahead, ...]] = {}
        self.heard_tokens: dict[str, tuple[IdToken, datetime]] = {}

    def hear(self) -> None:
        self.heard_of = self.store, self.store.version
        self.heard = {cloud: ahead.answers(self.store.state, cloud, self.now) for cloud in Cloud}
        self.heard_tokens = {
            token.audience: (token, until) for token, until in ahead.id_tokens(self.store.state, self.now)
        }

    @rule(audience=st.sampled_from("ab"), minutes=st.sampled_from([5, 11, 60]))
    def mint_id_token(self, audience: str, minutes: int) -> None:
        source = google_source(self.store.state, self.now)
        if source is not None:
            token = IdToken(Secret("t"), audience, self.now, self.now + timedelta(minutes=minutes))
            self.store.put_id_token(token, source[0])

    @invariant()
    def what_was_heard_is_so(self) -> None:
        """No time passes by which an answer changes without having been told, unless the version has changed."""
        if self.heard_of == (self.store, self.store.version):
            for cloud in Cloud:
                self.same(at(self.heard[cloud], self.now), cloud, self.now)
            for token, until in self.heard_tokens.values():
                if self.now < until:
                    assert self.store.view_id_token(token.audience, self.now) == token
        self.hear()

    @invariant()
    def what_is_heard_will_be_so(self) -> None:
        for cloud in Cloud:
            told = ahead.answers(self.store.state, cloud, self.now)
            ends = [one.until for one in told if one.until is not None]
            assert told[-1].until is None
            assert len(ends) == len(told) - 1
            assert ends == sorted(set(ends))
            later = [self.now + timedelta(seconds=seconds) for seconds in (0, 30, 61, 1300, 7200, 50000)]
            for end in ends:
                later += [end - MOMENT, end, end + MOMENT]
            for moment in later:
                if moment >= self.now:
                    self.same(at(told, moment), cloud, moment)

    @invariant()
    def identity_tokens_end_with_whom_they_speak_for(self) -> None:
        for token, until in ahead.id_tokens(self.store.state, self.now):
            for moment in (self.now, until - MOMENT):
                if self.now <= moment:
                    assert self.store.view_id_token(token.audience, moment) == token
            assert self.store.view_id_token(token.audience, until + MOMENT) is None

    def same(self, told: ahead.Ahead, cloud: Cloud, now: datetime) -> None:
        answer: Answer = self.store.answer(cloud, now)
        assert told.answer == answer
        source = google_source(self.store.state, now) if cloud is Cloud.GCP else None
        assert told.scopes == (given_by(source[0]) if source is not None else ())


AheadMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAhead = AheadMachine.TestCase
del StoreMachine  # its own file runs it

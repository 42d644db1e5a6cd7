"""How are the processes that answer workers kept up to date? All that they must know, anew whenever any of it changes.

A withdrawal, an end or a new token is told before the call that caused it returns, so before anybody hears that it was
done.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from agent import snapshot
from agent.controller import Controller
from agent.core.clock import Clock
from agent.core.model import Cloud
from agent.core.secret import Secret
from agent.core.view import Ended
from agent.host.clock import SystemClock
from agent.identity import ahead
from agent.identity.standing import can_mint_id_tokens, facts
from agent.snapshot import ForAudience, ForScopes, ServeSettings, Snapshot, Stretch, Time
from agent.snapshot.model import MOST_RANGES


class Snapshots:
    """Makes them.

    Args:
        controller: the served identities, and why a bundle was refused.
        clock: time.
        settings: what stays the same for the process.
        tokens: the bearer tokens of the container endpoint that are good now.
        path_id: the id in a path that stands for a token.
        expects_bundle: whether the configuration has a key for one at present.
        time: what time it is.
        subordinate: ranges of uids that are one user's (:meth:`agent.host.subuid.Whose.rows`).
        first: the version of the first: above that of every process before this one, whose snapshots a server may hold.

    Attributes:
        latest: the bytes of the newest.
    """

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        settings: ServeSettings,
        *,
        tokens: Callable[[], tuple[Secret, ...]],
        path_id: Secret,
        expects_bundle: Callable[[], bool],
        time: Callable[[], Time] = Time,
        subordinate: Callable[[], tuple[tuple[int, int, int], ...]] = tuple,
        first: int = 0,
    ) -> None:
        self._controller = controller
        self._clock = clock
        self._settings = settings
        self._tokens = tokens
        self._path_id = path_id
        self._expects_bundle = expects_bundle
        self._time = time
        self._subordinate = subordinate
        self._log = structlog.get_logger()
        self._hear: list[Callable[[bytes], None]] = []
        self._last = self._made(first)
        self.latest = snapshot.encode(self._last)
        self._is_told = True  # whether all were told of the last
        self._unmade: str | None = None  # the error for which that is not the true one
        controller.store.watch(self.publish)

    @property
    def version(self) -> int:
        """The version of the newest snapshot."""
        return self._last.version

    @property
    def outdated(self) -> bool:
        """Whether the time, or whose a uid is, is not as it was said, or a telling broke off; nobody tells of these."""
        is_other = self._last.time != self._time() or self._last.subordinate != self._subordinate()[:MOST_RANGES]
        return is_other or not self._is_told or self._unmade is not None

    @property
    def expects_bundle(self) -> bool:
        """Whether bundles are taken here."""
        return self._last.expects_bundle

    def send_to(self, hear: Callable[[bytes], None]) -> None:
        """Have ``hear`` called at once with each new snapshot, from now on."""
        self._hear.append(hear)

    def publish(self) -> None:
        """Send everybody the present snapshot, if it differs from the last one, or not all were told of that."""
        version, unmade = self._last.version + 1, None
        try:
            new = self._made(version)
            if self._is_told and self._unmade is None and new.same_as(self._last):
                return
            data = snapshot.encode(new)
            snapshot.decode(data)
        except Exception as error:  # noqa: BLE001 - without the new state they must not go on with the old one
            unmade = type(error).__name__
            if unmade != self._unmade:
                self._log.error("snapshot.not_made", error=unmade, exc_info=True)
            new = self._closed(version)
            if self._is_told and unmade == self._unmade and new.same_as(self._last):
                return
            data = snapshot.encode(new)
        self._last, self.latest, self._is_told, self._unmade = new, data, False, unmade
        for hear in self._hear:
            hear(data)
        self._is_told = True

    def _made(self, version: int) -> Snapshot:
        controller, now = self._controller, self._clock.now()
        state = controller.store.state
        names = {cloud: tuple(sorted(controller.store.names(cloud))) for cloud in Cloud}
        answers = {
            cloud: tuple(Stretch(one.answer, one.until, one.scopes) for one in ahead.answers(state, cloud, now))
            for cloud in Cloud
        }
        return Snapshot(
            version=version,
            settings=self._settings,
            time=self._time(),
            subordinate=self._subordinate()[:MOST_RANGES],
            aws=answers[Cloud.AWS],
            gcp=answers[Cloud.GCP],
            aws_names=names[Cloud.AWS],
            gcp_names=names[Cloud.GCP],
            facts=facts(state),
            mints_id_tokens=can_mint_id_tokens(state),
            id_tokens=tuple(ForAudience(token, until) for token, until in ahead.id_tokens(state, now)),
            scoped=tuple(ForScopes(*one) for one in controller.issuing.scoped.held(now)),
            container_tokens=self._tokens(),
            container_ids=(self._path_id,),
            expects_bundle=self._expects_bundle(),
            refused=self._refused_why(),
        )

    def _closed(self, version: int) -> Snapshot:
        """A snapshot without any identity, for when the true one cannot be made."""
        nothing = (Stretch(Ended("the agent cannot tell what is served; see its log", passing=True)),)
        return Snapshot(version=version, settings=self._settings, time=self._time(), aws=nothing, gcp=nothing)

    def _refused_why(self) -> str | None:
        """Why the last bundle that came was not taken; nothing while one is in force."""
        refusal = self._controller.intake.last_refusal
        if refusal is None or self._controller.store.bundle is not None:
            return None
        return f"{refusal.code}: {refusal.reason}"


def told_of(clock: SystemClock) -> Time:
    """What a clock knows beside CLOCK_BOOTTIME."""
    return Time(clock.timekeeper.lost, clock.timekeeper.offset)

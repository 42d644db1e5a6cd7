"""What is loaded anew? SIGHUP, and every change of a file that the configuration names.

A configuration that cannot be applied leaves the running one in force: a typing error must not cost a worker its
identity. A file that the running one names as well is no such reason where it cannot be read: what it gave before stays
in force, which is told as a refusal, and all the rest is applied. Else a signer who was taken away would be believed
for as long as something is wrong with another's file. The log names what a reload did, and what needs a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent import config, log
from agent.controller import Controller
from agent.core.clock import Clock
from agent.core.errors import AgentError, ConfigError, HostError
from agent.core.source import Source
from agent.daemon import beliefs, compose, listening
from agent.daemon.configured import Configured, Written
from agent.daemon.files import LOOK_SECONDS, looks_patiently, otherwise
from agent.daemon.loading import Found, former, loaded
from agent.daemon.looking import look_now
from agent.daemon.once import Once
from agent.daemon.prepare import ABSENT_KEY_HINT, Prepared
from agent.daemon.publish import Publisher
from agent.daemon.ready import Readiness
from agent.daemon.tokens import Rotation
from agent.daemon.who import Who
from agent.host.patience import Patience
from agent.host.quiet import Quiet
from agent.sources.file import FileSource

LOADED_ONCE: Final = (
    "listen",
    "identity.instance_id",
    "identity.grace_seconds",
    "launch_signers",
    "sources",
    "enrol",
    "upstream",
    "mint",
    "aws.region",
    "aws.imdsv1",
    "pass_through",
    "environment.token_file",
    "state",
    "audit.mode",
)
"""The sections that a reload does not apply, or only in part: a change of them needs a restart, which loses no
request."""


def needs_restart(settings: config.Config, loaded: config.Config) -> list[str]:
    """The keys of ``settings`` that are not in force in a process that was started with ``loaded``."""
    return [name for name in LOADED_ONCE if attrgetter(name)(settings) != attrgetter(name)(loaded)]


PATIENCE_SECONDS: Final = 5.0
"""How long a file that the configuration names is waited for while we run."""
REST_APPLIED: Final = "; what it gave before stays in force, and the rest is applied"
STILL_BELIEVED: Final = "; nothing of it is in force, and these signers, whom it takes away or changes, are believed: "
REDIRECT_HINT: Final = "the rules are another unit's: systemctl reload credential-agent-redirect"


class Reloaded(msgspec.Struct, frozen=True):
    """What came of a reload.

    Attributes:
        outcome: ``applied``; ``refused``: what was in force stays so, or that of one file where ``reason`` says so;
            ``later``: this process has not started yet.
        needs_restart: the sections that were changed and are not in force.
        reason: why it was refused.
        hint: what to do about that.
    """

    outcome: str
    needs_restart: list[str] = []
    reason: str | None = None
    hint: str | None = None


def _refused(error: AgentError, running: config.Config, written: Written | None) -> Reloaded:
    """What came of a reload that failed, by what is in force after it and what was to be."""
    signers = running.signers if written is None else written.settings.signers
    held = [entry.key for entry in running.signers if entry not in signers]
    said = STILL_BELIEVED + ", ".join(held) if held else ""
    return Reloaded("refused", reason=error.message + said, hint=error.hint)


class _Silent:
    """The files that do not answer.

    Attributes:
        keys: of the configuration, that name them. They may have changed, and nobody would see it.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self._log = structlog.get_logger()

    def tell(self, silent: Iterable[str]) -> None:
        """Log what has changed of that."""
        now = set(silent)
        for key in sorted(now - self.keys):
            self._log.error("file.stalled", key=key, hint="what was loaded from it stays in force; look at its mount")
        for key in sorted(self.keys - now):
            self._log.info("file.answers", key=key)
        self.keys = now


class Reloader:
    """See the module.

    Args:
        settings: what is in force.
        file: the configuration, which is read anew.
        prepared: what was opened; its trust, keys and files are replaced.
        who: knows the audiences of the machine.
        controller: is told of the policy, and when to evaluate anew.
        publisher: of the environment files.
        readiness: is told when a reload begins and ends.
        clock: time.
        hand_over: gives the service manager what the next process gets.
        keys_changed: (re)starts the publishing of our key.

    Attributes:
        settings: what is in force now.
        applied: each is called after a configuration was applied; it returns at once.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        file: Configured,
        prepared: Prepared,
        who: Who,
        controller: Controller,
        publisher: Publisher,
        readiness: Readiness,
        clock: Clock,
        hand_over: Callable[[], None],
        keys_changed: Callable[[], None],
    ) -> None:
        self.settings = self._loaded = settings
        self.file = file
        self._prepared = prepared
        self._who = who
        self._controller = controller
        self._publisher = publisher
        self._readiness = readiness
        self._clock = clock
        self._hand_over = hand_over
        self._keys_changed = keys_changed
        self._quiet = Quiet(LOOK_SECONDS)
        self.applied = [self._quiet.stir]  # others are watched from then on
        self._log = structlog.get_logger()
        self._announces = Once(self._announce, name="announce listeners")
        self._reloads = Once(self._reload_all, name="reload")
        self._looks = Once(self._look_at_sources, name="look")
        self._patience = Patience(PATIENCE_SECONDS)
        self._reader = Patience(PATIENCE_SECONDS, again=True)
        self._token = Rotation(prepared.tokens, publisher, self._patience, changed=hand_over)
        self._applying = asyncio.Lock()
        self._asked: list[asyncio.Future[Reloaded]] = []
        self._silent = _Silent()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks under way, to be ended with the process."""
        return [task for task in (self._reloads.task, self._looks.task, self._announces.task) if task is not None]

    def on_hangup(self) -> None:
        """SIGHUP. Returns at once. All that come during a reload cause one more reload, after it."""
        self._readiness.reload_began()
        self._reloads.ask()

    async def reload(self) -> Reloaded:
        """As SIGHUP; waits for what comes of it. What was written before this call is read."""
        told: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._asked.append(told)
        self.on_hangup()
        return await told

    async def _reload_all(self) -> None:
        asked, self._asked = self._asked, []
        done = Reloaded("refused", reason="it was broken off: see the log")
        written = None
        try:
            # The configuration file may be on a disk that stalls, like the others.
            written = await self._reader.ask(Path("the configuration"), self.file.read)
            await self.apply(written.settings, text=written.text)
            done = Reloaded("applied", needs_restart=needs_restart(written.settings, self._loaded))
        except AgentError as error:
            done = _refused(error, self.settings, written)
            self._log.error("reload.refused", reason=done.reason, hint=done.hint)
        finally:
            if not self._reloads.wanted:
                self._readiness.reload_ended()
            for told in asked:
                if not told.done():  # whoever asked may have gone
                    told.set_result(done)
            self._looks.ask()  # a source that does not answer must not delay the next reload

    async def _look_at_sources(self) -> None:
        # Files are left out: they are looked at every second anyway, and may be half written just now.
        slow: list[Source] = [source for source in self._prepared.sources if not isinstance(source, FileSource)]
        await look_now(slow, self._controller.intake.submit)

    async def follow_files(self) -> None:
        """Apply the running configuration once more when a file that it names has changed and then stayed as it is."""
        before = self._prepared.files.seen
        told: object = None
        while True:
            if before == self._prepared.files.seen and not self._silent.keys and not self._token.unread:
                differs = otherwise(lambda: self._prepared.files, self._token.path, self._token.seen)
                await self._quiet.pause(differs, (*before, self._token.path))
            else:
                await self._clock.sleep(LOOK_SECONDS)
            await self._token.look()
            watched = self._prepared.files
            seen, silent = await looks_patiently(watched.named, self._patience, watched.seen)
            self._silent.tell(silent)
            watched = self._prepared.files  # a reload may have come between
            settled, before = seen == before, seen
            if not settled or seen == watched.seen:
                continue
            changed = watched.changed(seen)
            try:
                await self.apply(changed=changed)
                told = None
            except AgentError as error:
                # This is logged once for each change, and tried again at each look: what errs for once changes no file.
                if told != (told := (error.message, seen)):
                    self._log.error("reload.refused", reason=error.message, hint=error.hint, changed=changed)
            except Exception as error:  # noqa: BLE001 - a file that we have no words for ends nobody's identity
                if told != (told := (type(error).__name__, seen)):
                    self._log.error("work.crashed", work="files", error=type(error).__name__, exc_info=True)

    async def follow_launched(self) -> None:
        """Trust the signers that the launch of this machine names, for as long as it names them."""
        launched, opening = self._prepared.launched, self._prepared.opening
        before = opening.trust

        def changed() -> None:
            nonlocal before
            if not beliefs.trusts_at_least(opening.trust, before):
                self._controller.intake.review(beliefs.kept(opening.trust, before))
            before = opening.trust
            self._controller.intake.reconsider()
            self._hand_over()

        await launched.watch(changed)
        await asyncio.Event().wait()  # nowhere to look: this task must not end

    async def apply_late(self) -> None:
        """Take files that did not answer at the start, as soon as they do. Returns when all are taken."""
        late, named = self._prepared.late_files, self._prepared.files.named
        await self._prepared.first_look.answered(late)
        self._log.info("files.answer", paths=sorted(map(str, late)))
        told = ""
        while True:
            try:
                # As at a start: what is away must not hold back the rest.
                await self.apply(changed=[file.key for file in named], tolerant=True)
            except AgentError as error:
                if told != error.message:
                    self._log.error("reload.refused", reason=error.message, hint=error.hint)
                told = error.message
                await self._clock.sleep(LOOK_SECONDS)
            else:
                return

    async def apply(
        self,
        settings: config.Config | None = None,
        changed: Sequence[str] = (),
        *,
        text: str | None = None,
        tolerant: bool = False,
    ) -> None:
        """Put ``settings`` into force, with what their files hold now; see the module.

        Args:
            settings: the configuration; ``None``: the one in force, whichever that is once it is our turn.
            changed: the keys of the files that have changed, for the log.
            text: what says ``settings``.
            tolerant: whether a missing file is only noted, as at a start.

        Raises:
            ConfigError: a file is not what it should be. If what is in force names it too, the rest is applied.
            StalledError: a file does not answer.
        """
        async with self._applying:
            if settings is None:
                settings, text = self.settings, self.file.text
            prepared = self._prepared
            silent = frozenset(file.path for file in prepared.files.named if file.key in self._silent.keys)
            away = former(self.settings, settings, prepared, silent=silent, tolerant=tolerant)
            load = partial(loaded, settings, prepared, prepared.ephemeral, away)
            # A call that has asked one of those is not waited for: it may never end.
            asked = Path("a file that the configuration names") / ("and that answers" if silent else "")
            found = await self._reader.ask(asked, load)
            fault = None if tolerant else away.fault
            if fault is None or settings != self.settings or found.files.seen != prepared.files.seen:
                await self._token.look()  # before the files are written: it may be the operator's
                if text is not None:
                    self.file.text = text
                differ = prepared.files.changed(found.files.seen)
                self._take(settings, found, changed if fault is None else differ)
            if fault is not None:
                prepared.away = away
                raise ConfigError(f"{fault.message}{REST_APPLIED}", hint=fault.hint)

    def _take(self, settings: config.Config, found: Found, changed: Sequence[str]) -> None:
        old, prepared, opening = self.settings, self._prepared, self._prepared.opening
        trusted, before = opening.trust, opening.audiences
        fewer = not set(found.keyring.kids) >= set(opening.keyring.kids)
        opening.answer_to(settings.identity.audience, self._who.audiences)
        self.settings = settings
        prepared.away, prepared.gid = found.away, found.gid
        opening.pinned, opening.keyring = found.trust, found.keyring
        # Of all that is trusted, not of the pins: one may be new, and narrow a signer that the launch has named.
        same_audiences = opening.audiences >= before
        if not beliefs.trusts_at_least(opening.trust, trusted) or not same_audiences:
            kept = beliefs.kept(opening.trust, trusted) if same_audiences else ()
            self._controller.intake.review(kept)  # before all that may break off
        elif fewer:
            self._controller.intake.verify_anew()  # what is in force stays: keys are changed while it is
        self._controller.reconfigure(compose.policy(settings))
        self._publisher.reconfigure(settings.environment, gid=found.gid, expects_bundle=bool(settings.keys))
        self.announce()
        log.set_up(level=settings.log.level, style=settings.log.format)
        self._controller.intake.reconsider()
        self._log.info(
            "reload.applied",
            needs_restart=needs_restart(settings, self._loaded),
            changed=list(changed),
            signers=len(found.trust.signers),
            keys=list(found.keyring.kids),
            files=[msgspec.to_builtins(file) for file in found.files.loaded],
        )
        if settings.redirect != old.redirect:
            self._log.warning("reload.elsewhere", section="redirect", hint=REDIRECT_HINT)
        self.tell_absent_keys()
        self._hand_over()
        prepared.files = found.files  # not before: what breaks off is done again at the next look
        for tell in self.applied:
            tell()
        if settings.keys != old.keys:
            self._keys_changed()

    def announce(self) -> None:
        """Tell programs on this machine where our listeners are. Returns at once: the disk may hang."""
        self._announces.ask()  # one at a time: what a disk held up must not be written over what is newer

    async def _announce(self) -> None:
        # The listeners and the token stay where they were, so what is announced of them stays too.
        told = msgspec.structs.replace(self.settings, listen=self._loaded.listen, environment=self._publisher.settings)
        try:
            await asyncio.to_thread(listening.announce, told, self._publisher.address)
        except HostError as error:
            self._log.warning("doors.not_announced", reason=error.message)

    def tell_absent_keys(self) -> None:
        """Say which keys this machine was not given."""
        for name in self._prepared.absent_keys:
            # No error: a worker's image is made, and checked, before the worker has a key.
            self._log.warning("key.absent", credential=name, hint=ABSENT_KEY_HINT)

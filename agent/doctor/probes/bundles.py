"""What the sources hold just now, and what this worker would say of it: opened and verified as the agent does it.

Nothing is submitted or remembered: whether a bundle is newer than the one in force is told from the status.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from agent import bundle, config
from agent.core.errors import BundleError, SourceError
from agent.core.model import Action, SealedBundle
from agent.core.source import Source
from agent.core.view import Facts
from agent.daemon import beliefs
from agent.daemon.launched import told
from agent.daemon.opening import Opening
from agent.daemon.prepare import Prepared
from agent.daemon.who import Who
from agent.doctor.facts import Bundles, Held
from agent.host.clock import SystemClock
from agent.host.threads import Threads
from agent.sources.file import FileSource
from agent.sources.push import unwrapped

T = TypeVar("T")

SECONDS: Final = 1.4
"""For each question; the look as a whole has two."""


def look_at_bundles(path: Path, environ: Mapping[str, str], file: bytes | None) -> Bundles:
    """Ask every source once.

    Args:
        path: the configuration.
        environ: what the service would be passed.
        file: a bundle to evaluate beside those.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    settings, _ = config.survey(path)
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(Threads())  # a look-up that hangs is not waited for at the end
        return runner.run(_look(settings, environ, file))


async def _look(settings: config.Config, environ: Mapping[str, str], file: bytes | None) -> Bundles:
    clock = SystemClock()
    prepared = Prepared(
        settings,
        environ=environ,
        clock=clock,
        rng=random.Random(0),  # noqa: S311 - nothing is retried
        hear=lambda _witness, _date, _took: None,
        faults=beliefs.Faults(),
    )
    try:
        return await _seen(settings, prepared, clock, file)
    finally:
        await prepared.close()


async def _seen(settings: config.Config, prepared: Prepared, clock: SystemClock, file: bytes | None) -> Bundles:
    who = Who(prepared.metadata, clock, configured=settings.identity.instance_id, root=Path("/"))
    machines, _, found = await asyncio.gather(
        _in_time(who.ask(), []),
        _in_time(prepared.launched.look_first(), None),
        asyncio.gather(*map(_fetch, prepared.sources)),
    )
    who.learn(machines, Facts())
    opening = prepared.opening
    opening.answer_to(settings.identity.audience, who.audiences)
    if file is not None:
        found.append((Held(name="", state="bundle"), await unwrapped(file)))
    held = [await _evaluated(one, data, opening, clock.now()) for one, data in found]
    made_here = any(isinstance(key, config.EphemeralKey) for key in settings.keys)  # for this look: nobody else's
    return Bundles(
        held=tuple(held),
        signers=tuple(told(opening.trust)),
        audiences=tuple(sorted(opening.audiences)) if made_here else tuple(sorted(_all(opening))),
        kids=() if made_here else opening.keyring.kids,
        configured=bool(settings.keys),
    )


def _all(opening: Opening) -> frozenset[str]:
    return opening.audiences | opening.keyring.audiences


async def _in_time(question: Coroutine[Any, Any, T], otherwise: T) -> T:
    try:
        async with asyncio.timeout(SECONDS):
            return await question
    except TimeoutError:
        return otherwise


async def _fetch(source: Source) -> tuple[Held, bytes | None]:
    """What it holds, in its time."""
    path = str(source.path) if isinstance(source, FileSource) else ""
    held = Held(name=source.name, path=path)
    try:
        async with asyncio.timeout(SECONDS):
            found = await source.fetch()
    except TimeoutError:
        return msgspec.structs.replace(held, state="broken", why=f"no answer within {SECONDS:g} s"), None
    except SourceError as error:
        return msgspec.structs.replace(held, state="broken", why=error.message, hint=error.hint or ""), None
    return (held, None) if found is None else (msgspec.structs.replace(held, state="bundle"), found.data)


async def _evaluated(held: Held, data: bytes | None, opening: Opening, now: datetime) -> Held:
    """The verdict on what was found, but for what only the running agent remembers."""
    if data is None:
        return held
    recipients: tuple[str, ...] = ()
    try:
        envelope = bundle.parse_envelope(data, max_bytes=bundle.LARGEST_BYTES)
        recipients = tuple(recipient.kid for recipient in envelope.recipients)
        async with asyncio.timeout(SECONDS):  # a key service may be asked
            opened = await opening(SealedBundle(data=data, origin=held.name), now, None)
    except TimeoutError:
        why = f"the key service did not answer within {SECONDS:g} s"
        return msgspec.structs.replace(held, code=bundle.Code.KEY_UNAVAILABLE, why=why, recipients=recipients)
    except BundleError as error:
        hint = error.hint or ""
        return msgspec.structs.replace(held, code=str(error.code), why=error.message, hint=hint, recipients=recipients)
    return msgspec.structs.replace(
        held,
        recipients=recipients,
        issuer=opened.issuer,
        subject=opened.subject,
        seq=opened.seq,
        signer=opened.signer,
        withdraws=opened.action is Action.WITHDRAW,
    )

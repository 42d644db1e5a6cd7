"""``whoami``: which identity a program of this user gets here, until when, and who says so. No secret is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from agent.cli import ask
from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_UNAVAILABLE
from agent.cli.options import config_option
from agent.core.errors import HostError
from agent.core.text import instant, printable, when
from agent.wire import names

ANSWER_SECONDS: Final = 2.0
SDK_SECONDS: Final = 5.0
"""For each request that is made as an SDK makes it."""
_YEAR: Final = 366 * 86_400
_WHOSE: Final = {"bundle": "from the bundle", "fallback": "the machine's own"}


@click.command()
@config_option
@json_option
@ask.understood()
def whoami(path: Path, as_json: bool) -> int:
    """Show which identity your programs get here.

    And until when. Every worker may ask; no secret is shown. Asks the control socket, else the couriers' socket, else
    the workers' endpoint as an SDK would. Exits 69 if there is no identity, and 71 if nobody answers.
    """
    now = datetime.now(UTC)
    said = _asked(path, now)
    if as_json:
        tell("whoami", said)
    else:
        for line in _lines(said, now):
            click.echo(printable(line))
    return 0 if any(cloud["state"] == "live" for cloud in said["clouds"].values()) else EX_UNAVAILABLE


def _lines(said: Mapping[str, Any], now: datetime) -> Iterator[str]:
    for name, cloud in said["clouds"].items():
        if cloud["state"] != "live":
            why = f": {cloud['why']}" if cloud["why"] else ""
            yield f"{name}: none ({cloud['state']}){why}"
            continue
        whose = _WHOSE.get(cloud["origin"], "of which the agent does not say whose it is")
        account = f", account {cloud['account_id']}" if cloud["account_id"] else ""
        yield f"{name}: {cloud['identity']} ({whose}){account}"
        if cloud["until"] is not None:
            yield f"     until {cloud['until']} ({when(datetime.fromisoformat(cloud['until']), now)})"
    yield f"asked: {said['endpoint']}"


def _asked(path: Path, now: datetime) -> dict[str, Any]:
    from agent.cli import where

    found = where.find(path)
    refused: HostError | None = None
    for socket, what, read in (
        (found.control, "control socket", _of_status),
        (found.courier, "couriers' socket", _of_courier),
    ):
        if socket is None:
            continue
        try:
            answer = ask.control(socket, "GET", names.STATUS_PATH, timeout_seconds=ANSWER_SECONDS)
        except (ask.NotAllowedError, ask.NotListeningError) as error:
            refused = refused or error
            continue
        if answer.status == 200:
            clouds = {name: read(cloud) for name, cloud in answer.document("clouds")["clouds"].items()}
            return {"endpoint": f"{what} {socket}", "clouds": clouds}
    try:
        clouds = {"aws": ask_aws(found.http, now), "gcp": ask_gcp(found.http, now)}
    except HostError as error:
        raise (refused if isinstance(refused, ask.NotListeningError) else error) from None
    host, port = found.http
    return {"endpoint": f"workers' endpoint http://{host}:{port}", "clouds": clouds}


def _cloud(state: str, **members: Any) -> dict[str, Any]:
    base = {"state": state, "origin": "none", "identity": None, "account_id": None, "until": None, "why": None}
    return {**base, **members}


def _of_status(cloud: Mapping[str, Any]) -> dict[str, Any]:
    return _cloud(
        cloud["state"],
        origin=cloud["origin"],
        identity=cloud.get("role_arn") or cloud["identity"],
        account_id=cloud.get("account_id"),
        until=cloud["horizon"] or cloud["expires_at"],
        why=cloud["why"],
    )


def _of_courier(cloud: Mapping[str, Any]) -> dict[str, Any]:
    return _cloud(
        cloud["state"],
        origin=cloud["origin"],
        identity=cloud.get("principal") or cloud["identity"],
        account_id=cloud.get("account_id"),
        until=cloud["until"],
        why=cloud.get("why"),
    )


def ask_aws(http: tuple[str, int], now: datetime, *, patience: float = SDK_SECONDS) -> dict[str, Any]:
    """As an SDK asks: a token, the role's name, and of the credential its end alone is kept."""
    token = ask.worker(http, names.EC2_TOKEN_PATH, {names.EC2_TTL_HEADER: "60"}, method="PUT", timeout_seconds=patience)
    if token.status != 200:
        return _cloud("absent", why=token.why())
    headers = {names.EC2_TOKEN_HEADER: token.body.decode("ascii", errors="replace")}
    role = ask.worker(http, names.EC2_ROLES_PATH, headers, timeout_seconds=patience)
    if role.status != 200:
        return _cloud("absent" if role.status == 404 else "pending", why=role.why(), origin=role.origin or "none")
    name = role.body.decode("ascii", errors="replace").strip()
    answer = ask.worker(http, f"{names.EC2_ROLES_PATH}{name}", headers, timeout_seconds=patience)
    if answer.status != 200:
        return _cloud("pending", why=answer.why())
    document = answer.document()
    return _cloud(
        "live",
        origin=answer.origin or role.origin,
        identity=name,
        account_id=document.get("AccountId"),
        until=_end(document.get("Expiration"), now),
    )


def ask_gcp(http: tuple[str, int], now: datetime, *, patience: float = SDK_SECONDS) -> dict[str, Any]:
    """As a Google client asks: a token, of which the end alone is kept, and the account."""
    headers = {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR}
    answer = ask.worker(http, names.GCE_TOKEN_PATH, headers, timeout_seconds=patience)
    if answer.status != 200:
        return _cloud("absent" if answer.status == 404 else "pending", why=answer.why(), origin=answer.origin or "none")
    email = ask.worker(http, f"{names.GCE_ACCOUNT}email", headers, timeout_seconds=patience)
    seconds = answer.document().get("expires_in")
    until = instant(now + timedelta(seconds=seconds)) if isinstance(seconds, int) and 0 <= seconds < _YEAR else None
    identity = email.body.decode("ascii", errors="replace").strip() if email.status == 200 else None
    return _cloud("live", origin=answer.origin, identity=identity, until=until)


def _end(stamp: Any, now: datetime) -> str | None:
    """The end that a document tells, if it is one."""
    try:
        end = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return instant(end) if end.tzinfo is not None else instant(end.replace(tzinfo=now.tzinfo))

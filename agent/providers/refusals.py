"""From "the way out failed" and "the upstream said no" to ``Denied`` and ``Transient``.

The one place that decides which failures pass by themselves. A wrong *permanent* costs minutes of slow retries, a
wrong *passing* costs a burst of useless calls, so an unknown code is classified by its status alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote, quote_plus

from agent.core.errors import Denied, ProviderError, Transient
from agent.core.secret import Secret
from agent.upstream import UpstreamError, UpstreamRefused, UpstreamResponse

#: AWS accepts signatures up to five minutes away, Google assertions about as much. Half of it is suspicious enough to
#: blame a refused signature on the clock.
CLOCK_SUSPECT: Final = timedelta(seconds=150)

#: An end this near to the requested one counts as the requested one: the answer took the rest.
AS_ASKED: Final = timedelta(seconds=60)

_PASSING_STATUSES: Final = frozenset({407, 408, 421, 425, 429})
#: A run that could be a token; but an ARN is long too, and the very thing an operator needs to see.
_OPAQUE_RUN: Final = re.compile(r"(\barn:aws[a-z-]*:\S+)|[A-Za-z0-9+/=_.~%-]{48,}")
_MAX_TEXT_LENGTH: Final = 300


def passing_status(status: int) -> bool:
    """Whether a status by itself says "later": throttled, timed out, broken, or somebody else's answer.

    A redirect counts: the endpoints we ask never send one, captive portals and misconfigured proxies do. So do the
    words of a proxy (407, 421) and an interim answer that is the last (101).
    """
    return status >= 500 or status in _PASSING_STATUSES or status < 400


def refusal(answer: UpstreamResponse) -> type[Denied | Transient]:
    """Whether an answer that is no success refuses or only fails, where no error code of the server's says it.

    A web page is a proxy's, which blocks today and may be told better tomorrow: what we ask speaks to programs.
    """
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    page = kind in {"text/html", "application/xhtml+xml"} or answer.body.lstrip()[:1] == b"<"
    return Transient if page or passing_status(answer.status) else Denied


def from_upstream(error: UpstreamError, doing: str) -> ProviderError:
    """The provider's error for a request that got no answer."""
    kind = Denied if isinstance(error, UpstreamRefused) else Transient
    return kind(
        f"{doing}: {error.message}",
        hint=error.hint,
        code=error.code,
        server_time=error.server_time,
        pause_seconds=error.pause_seconds,
    )


def clock_is_suspect(server_time: datetime | None, now: datetime) -> bool:
    """Whether our clock and the server's disagree enough to make it refuse what we sign."""
    return server_time is not None and abs(server_time - now) > CLOCK_SUSPECT


def good_for(
    expires_at: datetime, server_time: datetime | None, now: datetime, asked: timedelta | None = None
) -> timedelta | None:
    """How long a credential is good for from the moment of asking.

    There are two opinions of when the asking was, the answer's ``Date`` and our own time, and either may be wrong. An
    end that lies as far from one of them as was asked for proves that one right: a ``Date`` that is half an hour ahead
    of a right ``Expiration`` costs nothing, and neither does a clock of ours that is hours off. Otherwise the nearer
    end counts, of those that are ahead. The length asked for is never exceeded. The times are cut to the second, so a
    second is taken off.

    Returns:
        Zero or less for a credential that is over by all accounts; ``None`` when the answer had no ``Date``: the
        instant that it names is then all there is.
    """
    if server_time is None:
        return None
    second = timedelta(seconds=1)
    lengths = [expires_at - server_time, expires_at - now]
    if asked is not None:
        if any(abs(length - asked) <= AS_ASKED for length in lengths):
            nearest = min(lengths, key=lambda length: abs(length - asked))
            return min(nearest, asked) - second
        lengths = [min(length, asked) for length in lengths]
    ahead = [length for length in lengths if length > timedelta()]
    return (min(ahead) if ahead else max(lengths)) - second


def over(expires_at: datetime, server_time: datetime | None, now: datetime) -> bool:
    """Whether a credential that has just come is over by the answer's ``Date`` *and* by our own time."""
    return expires_at <= now and (server_time is None or expires_at <= server_time)


def clock_hint(server_time: datetime | None, now: datetime) -> str | None:
    """Say by how much the clocks disagree, when they do."""
    if server_time is None or not clock_is_suspect(server_time, now):
        return None
    seconds = round((now - server_time).total_seconds())
    return f"this machine's clock is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the server's"


def said(text: object, secrets: Iterable[Secret | str] = ()) -> str:
    """The words of an upstream, fit for a log: one short printable line without secrets.

    Servers echo what they were sent (STS puts the session token into the text of a signature error), so whatever we
    sent is cut out, also as a form, JSON, XML and base64 write it, and so is any long run that could be a token in
    another encoding.
    """
    if not isinstance(text, str):
        return ""
    for secret in secrets:
        value = secret.reveal() if isinstance(secret, Secret) else secret
        if value:
            for written in _writings(value):
                text = text.replace(written, "[redacted]")
    text = "".join(c if c.isprintable() else " " for c in text)
    text = _OPAQUE_RUN.sub(lambda found: found[1] or "[redacted]", " ".join(text.split()))
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 3] + "..."


def _writings(value: str) -> list[str]:
    """``value`` as it may come back in somebody's error text, the longest first."""
    raw = value.encode(errors="surrogatepass")
    # By hand: xml.sax.saxutils loads 2 MB of HTTP client to do the same.
    xml = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    forms = {value, quote(raw, safe=""), quote(raw), quote_plus(raw), json.dumps(value)[1:-1], xml}
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        forms.add(encoded.decode().rstrip("="))
    return sorted(forms, key=len, reverse=True)


def word(code: object, otherwise: str) -> str:
    """An upstream's error code if it looks like one: it becomes a log field and a metric label."""
    if isinstance(code, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", code):
        return code
    return otherwise

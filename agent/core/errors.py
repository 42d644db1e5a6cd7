"""The error tree, grouped by who can act on it.

Each family is raised by certain packages and caught in certain places:

==================  ==========================  ===========================================================
family              raised by                   caught by
==================  ==========================  ===========================================================
``UsageError``      sender                      the command line
``ConfigError``     config, compose, providers  the command line, and a reload
``SourceError``     sources                     the loop of each source, which reports and retries
``BundleError``     bundle, keys                the controller, which refuses the bundle and says so
``EvidenceError``   enrol, sender               the couriers' endpoint; the sender, which refuses the worker
``UpstreamError``   upstream                    whoever asked: sources, providers, keys, the pass-through
``WireError``       wire                        whoever called the codec
``SnapshotError``   snapshot                    the writer, which closes; the reader, which keeps what it has
``TargetError``     wire                        the listener, which answers 400
``ProviderError``   providers, sender           the controller, which retries; the command line
``CourierError``    forward                     the forwarding, which reports that worker and asks it again
``HostError``       host                        whoever needed it done: daemon, command line
==================  ==========================  ===========================================================

Our own misuse (calling the state machine out of order) is ``RuntimeError``; the impossible is
``AssertionError("internal error: ...")``. Messages are lower case, say what was expected and what was got, and never
hold the value of a secret. A ``hint`` is a second line for the person who has to do something about it.
"""

from __future__ import annotations

from datetime import datetime


class AgentError(Exception):
    """The base of every error the agent means to raise. Never raised directly.

    Args:
        message: lower case, no final period, no secret.
        hint: what the reader can do next; printed on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(AgentError):
    """The request makes no sense, and nobody was asked: ask differently. Exit status 64 (EX_USAGE)."""


class ConfigError(AgentError):
    """The operator's configuration is wrong; the daemon starts nothing and exits 78 (EX_CONFIG)."""


class SourceError(AgentError):
    """A source is here but broken: wait, or repair the source. Nothing that is served changes."""


class UnansweredError(SourceError):
    """Whoever would say what a source holds does not answer: it may hold anything, or nothing."""


class UnreadableError(SourceError):
    """Something a source holds looks like a bundle and cannot be read: somebody meant this worker to have one."""


class BundleError(AgentError):
    """A sealed bundle was not accepted; the sender must issue another one.

    Attributes:
        code: a stable, dotted-free word (``signature``, ``expired``, ``rollback``...) for logs, metrics and
            acknowledgements. ``agent/bundle/FORMAT.md`` lists them all.
        doubtful: whether only a key service says so, which may answer otherwise another day.
    """

    code: str = "bundle"
    doubtful: bool = False

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint)
        if code is not None:
            self.code = code


class FormatError(BundleError):
    """The bytes are not a bundle in the grammar of FORMAT.md: size, JSON, headers, algorithm lists."""

    code = "format"


class SealError(BundleError):
    """No key of ours opens it, the content was tampered with, or no pinned signer vouches for it."""

    code = "seal"


class PayloadError(BundleError):
    """It opened and the signature holds, but the claims are not acceptable: schema, audience, times."""

    code = "payload"


class KeyUnavailableError(BundleError):
    """The worker's key could not be used now (a KMS is unreachable, say); the same bundle is worth trying again.

    Attributes:
        pause_seconds: for how long the key service asked not to be asked again (``Retry-After``), within reason.
    """

    code = "key-unavailable"

    def __init__(
        self, message: str, *, hint: str | None = None, code: str | None = None, pause_seconds: float = 0.0
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.pause_seconds = pause_seconds


class EvidenceError(AgentError):
    """An enrolment is not one, or its evidence is not what PROTOCOL.md asks for, or the policy does not admit it.

    Attributes:
        code: a stable word: ``form``, ``nonce``, ``key``, ``host``, ``action``, ``headers``, ``unsigned``, ``binding``,
            ``date``, ``principal``, ``token``, ``rejected`` (whoever vouches said no), ``unavailable`` (it did not
            answer: may pass), ``policy``, ``none`` (there is no evidence).
    """

    def __init__(self, message: str, *, hint: str | None = None, code: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class UpstreamError(AgentError):
    """A server that we asked gave no usable answer: unreachable, too slow, too large, broken HTTP or TLS. It may pass.

    The caller turns it into an error of its own: a source is broken (:class:`SourceError`), a credential cannot be
    issued (:class:`Transient`), a request cannot be passed through.

    Attributes:
        code: ``timeout``, ``network``, ``tls``, ``too-large``, ``protocol``, ``status``, ``refused``, ``not-here``,
            ``stranger``.
        server_time: the ``Date`` of the answer that was unusable, when there was one.
        pause_seconds: for how long it asked not to be asked again (``Retry-After``), within reason.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str = "network",
        server_time: datetime | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.server_time = server_time
        self.pause_seconds = pause_seconds


class SnapshotError(AgentError):
    """Bytes are no snapshot, or no snapshot can be made. The message quotes none of them: they hold secrets."""


class WireError(AgentError):
    """Bytes are not in the dialect that they should be in. Something else may have answered.

    Raised by the codecs of :mod:`agent.wire`; their caller turns it into an error of its own.
    """


class TargetError(AgentError):
    """A request target that we refuse, since two readers might understand it differently."""


class ProviderError(AgentError):
    """A credential could not be issued. Use one of the two kinds below.

    Attributes:
        code: the upstream's own code when it gave one (``AccessDenied``, ``invalid_grant``, ``timeout``).
        server_time: the upstream's ``Date`` that came with the refusal: it corrects a clock that is too far off
            to sign a valid request.
        pause_seconds: for how long the upstream asked not to be asked again (``Retry-After``), within reason.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str = "unknown",
        server_time: datetime | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.server_time = server_time
        self.pause_seconds = pause_seconds


class Denied(ProviderError):
    """The upstream said no and will say no again: retry slowly, report at once."""


class Transient(ProviderError):
    """The upstream was unreachable, slow, throttling or broken: retry with backoff."""


class CourierError(AgentError):
    """A worker could not be reached, or what runs there failed before it said anything: it is asked again."""


class HostError(AgentError):
    """The machine refused something: a file, a socket, nftables, systemd."""

"""Which AWS identity has this computer? The one that boto3 finds, frozen at one moment, and the way to STS with it.

Errors: :class:`~agent.core.errors.Denied` (there is none, it has ended, or it may not do that) or
:class:`~agent.core.errors.Transient` (the network or STS failed; try again). Every exception of the SDK becomes one of
them, without a secret in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from agent.core.errors import Denied, ProviderError, Transient
from agent.core.secret import Secret
from agent.core.text import instant

REGION_WITHOUT_ONE: Final = "us-east-1"
"""Where STS is asked when this computer has no region configured: every account of the main partition has it."""

CONNECT_TIMEOUT_SECONDS: Final = 5
READ_TIMEOUT_SECONDS: Final = 15

# What programs that write sessions into ~/.aws/credentials call the end of them: botocore has no name of its own.
# saml2aws writes the first, aws-azure-login and others the rest.
_PROFILE_ENDS: Final = ("x_security_token_expires", "aws_expiration", "aws_session_expiration", "expiration")

# These escape botocore when a credential_process prints no JSON, or JSON that is no object, and when a cached sign-on
# lacks a member.
_ODD: Final = (ValueError, LookupError, TypeError, AttributeError)

_PASSING_CODES: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "InternalFailure",
        "InternalError",
    }
)


def local_session(profile: str | None, region: str | None, environ: Mapping[str, str]) -> Any:
    """A new boto3 session; ``region`` and ``profile``: instead of what boto3 finds.

    Raises:
        botocore.exceptions.BotoCoreError: there is no such profile, or its file cannot be read.
    """
    import boto3  # noqa: PLC0415 - only when there is something to collect

    session = boto3.Session(profile_name=profile, region_name=region)
    if session.region_name is None and "AWS_REGION" in environ:
        # Every other SDK reads this variable; boto3 reads AWS_DEFAULT_REGION alone.
        session = boto3.Session(profile_name=profile, region_name=environ["AWS_REGION"])
    return session


def ask_for_codes(session: Any, prompter: Callable[[str], str]) -> None:
    """Have boto3 ask this for the code of a multi-factor device (``mfa_serial`` of a profile), and not the terminal.

    Args:
        session: from :func:`local_session`.
        prompter: given the question; what it raises ends the look for an identity.
    """
    chain = session._session.get_component("credential_provider")  # noqa: SLF001 - boto3 shows no other way
    chain.get_provider("assume-role")._prompter = prompter  # noqa: SLF001 - as above


class LocalAws:
    """The credentials of this computer, frozen at one moment, and an STS client that uses them."""

    def __init__(self, session: Any, now: datetime) -> None:
        found = asked(session.get_credentials, _ODD)
        if found is None:
            raise Denied(
                "boto3 finds no AWS identity on this computer",
                hint="does `aws sts get-caller-identity` work here? set AWS_PROFILE, or sign in (`aws sso login`)",
                code="no-credentials",
            )
        # Frozen first: that refreshes a session near its end, and so moves the end that is read next.
        frozen = _frozen(found)
        self.session = session
        self.region: str | None = session.region_name
        self.access_key_id: str = frozen.access_key
        self.secret_access_key = Secret(frozen.secret_key)
        self.session_token = Secret(frozen.token) if frozen.token else None
        self.ends = _end(found, session)
        self.method: str = found.method
        if self.ends is not None and self.ends <= now:
            raise Denied(
                f"the local AWS session has ended, {instant(self.ends)}",
                hint="sign in again (`aws sso login`, or however this session was made), then do this again",
                code="ExpiredToken",
            )

    def sts(self) -> Any:
        """An STS client of the session's region and endpoint, made from the frozen credentials."""
        from botocore.config import Config  # noqa: PLC0415 - only when a call is made

        return asked(
            lambda: self.session.client(
                "sts",
                region_name=self.region or REGION_WITHOUT_ONE,
                aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key.reveal(),
                aws_session_token=self.session_token.reveal() if self.session_token else None,
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=READ_TIMEOUT_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": 3},
                ),
            )
        )

    def caller(self) -> tuple[str, str]:
        """The account and ARN of this identity. STS answers this to everyone whose credential is alive."""
        answer = asked(self.sts().get_caller_identity)
        return answer["Account"], answer["Arn"]


def undated(session: Any) -> str | None:
    """The id of the key of a session whose end nothing here tells; ``None``: it is told, or there is no session.

    Raises:
        Denied, Transient: as :class:`LocalAws`.
    """
    found = asked(session.get_credentials, _ODD)
    frozen = None if found is None else _frozen(found)
    return frozen.access_key if frozen and frozen.token and _end(found, session) is None else None


def _end(found: Any, session: Any) -> datetime | None:
    """The true end of the session boto3 found, as far as anything on this computer knows it."""
    # botocore has no public name for it; it is there for every kind that it knows how to refresh, and for the
    # environment when AWS_CREDENTIAL_EXPIRATION is set.
    ends = getattr(found, "_expiry_time", None)
    if isinstance(ends, datetime):
        return ends.astimezone(UTC)
    if found.method != "shared-credentials-file":
        return None
    profiles = session._session.full_config.get("profiles", {})  # noqa: SLF001 - boto3 shows no other way
    profile = profiles.get(session.profile_name, {})
    for name in _PROFILE_ENDS:
        text = profile.get(name)
        if isinstance(text, str):
            try:
                ends = datetime.fromisoformat(text.strip())
            except ValueError:
                continue
            # Without a zone the instant is unknown.
            if ends.tzinfo is not None:
                return ends.astimezone(UTC)
    return None


def _frozen(found: Any) -> Any:
    """The credentials at one moment: three parts that belong together."""
    try:
        return asked(found.get_frozen_credentials, _ODD)
    except RuntimeError:
        # botocore raises it when a refresh brings nothing fresher: from the environment it never does.
        raise Denied(
            f"the local AWS session (from {found.method}) has ended",
            hint="sign in again (`aws sso login`, or however this session was made), then do this again",
            code="ExpiredToken",
        ) from None


def asked(function: Any, odd: tuple[type[Exception], ...] = ()) -> Any:
    """Call the SDK; every way it fails becomes an error of ours, with the code AWS gave and no secret.

    Args:
        function: makes the call.
        odd: further exceptions that it may raise.

    Raises:
        Denied: AWS refuses, or this computer's identity cannot be used: the person mends it.
        Transient: AWS cannot be reached.
    """
    from botocore.exceptions import (  # noqa: PLC0415 - only when a call is made
        BotoCoreError,
        ClientError,
        ConnectionError,  # noqa: A004 - botocore's own
        HTTPClientError,
    )
    from botocore.parsers import ResponseParserError  # noqa: PLC0415 - as above

    try:
        return function()
    except ClientError as error:
        raise _refusal(error.response.get("Error", {})) from None
    except (ConnectionError, HTTPClientError) as error:
        raise Transient(f"AWS cannot be reached: {error}", code="network") from None
    except ResponseParserError:
        raise _stranger() from None
    except EOFError:
        # Of getpass: a profile that has an mfa_serial.
        raise Denied(
            "boto3 asks for the code of a multi-factor device, and there is no terminal to type it on",
            hint="make a session on a terminal first: `aws configure export-credentials --format env` prints one",
            code="no-terminal",
        ) from None
    except (BotoCoreError, OSError, *odd) as error:
        # The odd ones may quote what a helper printed: only their type is told.
        words = str(error) if isinstance(error, BotoCoreError | OSError) else type(error).__name__
        raise Denied(
            f"boto3 cannot use the AWS identity of this computer: {words.strip().partition(chr(10))[0].rstrip('.: ')}",
            hint="does `aws sts get-caller-identity` work here? an ended sign-on needs `aws sso login`",
            code=type(error).__name__,
        ) from None


def _stranger() -> Transient:
    return Transient(
        "what answers in the place of AWS does not speak as AWS does",
        hint="is there a proxy, or a network that wants you to sign in first? see HTTPS_PROXY and AWS_ENDPOINT_URL",
        code="network",
    )


def _refusal(said: Mapping[str, Any]) -> ProviderError:
    code = str(said.get("Code") or "")
    if not code:
        return _stranger()
    # The first line only: SignatureDoesNotMatch goes on with the canonical request, session token and all.
    words = str(said.get("Message", "")).strip().partition("\n")[0][:300].rstrip(". ")
    message = f"AWS refused: {code}: {words}"
    # Where the body is no error of AWS's, botocore gives the status in place of the code.
    if code in _PASSING_CODES or code == "429" or (code.isdigit() and code.startswith("5")):
        return Transient(message, code=code)
    hints = {
        "ExpiredToken": "the local session has ended: sign in again, then do this again",
        "SignatureDoesNotMatch": "the secret does not belong to the key id, or this computer's clock is wrong",
        "InvalidClientTokenId": "the local keys are not valid (any more); `aws configure list` shows which are used",
        "ForbiddenException": "is the profile's role assigned to you in that account (sso_account_id, sso_role_name)?",
        "AccessDenied": "may this identity make that call, and does the role's trust policy name it?",
        "ValidationError": "a role assumed with a role's session lasts an hour at most (--duration 1h)",
    }
    return Denied(message, hint=hints.get(code), code=code)

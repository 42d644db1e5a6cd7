"""HTTPS requests without credentials, by the way that boto3 takes on this computer: its proxies and certificates.

Who can exchange an identity here can also ask whose machine a worker is: behind a proxy that opens TLS, and whose
certificates only a profile names, nothing else would be reached. Blocks; safe to call from several threads at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from agent.core.errors import UsageError

TIMEOUT_SECONDS: Final = 10.0
LARGEST_ANSWER: Final = 65_536
CONNECTIONS: Final = 32

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers, and the body: at most one byte beyond :data:`LARGEST_ANSWER`."""


class Https:
    """The transport of botocore. It follows no redirect, and reads no ``.netrc``.

    Args:
        session: the ``boto3.Session``, or the name of the profile, with an identity; ``None``: the default.
        environ: the program's environment, of which botocore's clients read one variable themselves.
    """

    def __init__(self, session: Any = None, environ: Mapping[str, str] = MappingProxyType({})) -> None:
        self._session = session
        self._environ = environ
        self._lock = threading.Lock()
        self._transports: dict[str, Any] = {}

    def exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Ask once.

        Raises:
            OSError: nothing came: no name, nobody there, an answer that breaks off. Its text is the kind of error.
        """
        from botocore.awsrequest import AWSPreparedRequest, HeadersDict  # noqa: PLC0415 - Google's senders do without
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - as above

        try:
            request = AWSPreparedRequest(method, url, HeadersDict(headers), body, stream_output=True)
            answer = self._transport(url).send(request)
            data: bytes = answer.raw.read(LARGEST_ANSWER + 1)
            answer.raw.close()
        except (BotoCoreError, HTTPError, OSError) as error:
            raise OSError(type(error).__name__) from None
        return answer.status_code, answer.headers, data

    def sts_endpoint(self) -> str:
        """Where boto3 asks STS: a URL of AWS's, or the one that the environment or the profile names.

        Raises:
            UsageError: it names something that is none.
        """
        from botocore.exceptions import BotoCoreError, ProfileNotFound  # noqa: PLC0415 - as above

        try:
            # The keys are nobody's: nothing is asked with this client, and no helper is run for it.
            made = self._core.create_client("sts", "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106
        except ProfileNotFound:  # who needs that profile says so
            return "https://sts.amazonaws.com"
        except (BotoCoreError, ValueError) as error:
            raise UsageError(
                f"the endpoint of sts that is configured here cannot be used: {error}",
                hint="see AWS_ENDPOINT_URL_STS, AWS_ENDPOINT_URL and endpoint_url in the profile",
            ) from None
        return str(made.meta.endpoint_url)

    def _transport(self, url: str) -> Any:
        """One for all hosts that are reached by the same proxies."""
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415 - as above
        from botocore.utils import get_environ_proxies  # noqa: PLC0415 - as above

        given = self._core.get_default_client_config()
        # By the host that is asked, since no_proxy= names hosts.
        proxies = getattr(given, "proxies", None) or get_environ_proxies(url)
        key = repr(sorted(proxies.items()))
        with self._lock:
            if key not in self._transports:
                self._transports[key] = URLLib3Session(
                    timeout=TIMEOUT_SECONDS,
                    max_pool_connections=CONNECTIONS,
                    verify=self._certificates(),
                    proxies=proxies,
                    proxies_config=getattr(given, "proxies_config", None),
                    client_cert=getattr(given, "client_cert", None),
                )
            return self._transports[key]

    def _certificates(self) -> Any:
        from botocore.exceptions import ProfileNotFound  # noqa: PLC0415 - as above

        try:
            named = self._core.get_config_variable("ca_bundle")
        except ProfileNotFound:  # what is sent may be of another cloud
            named = None
        # In this order botocore's clients look for them.
        return named or self._environ.get("REQUESTS_CA_BUNDLE") or True

    @functools.cached_property
    def _core(self) -> Any:
        from botocore.session import Session  # noqa: PLC0415 - as above

        if self._session is None or isinstance(self._session, str):
            return Session(profile=self._session)
        return self._session._session  # noqa: SLF001 - boto3 shows no other way

"""Is this a signed ``GetCallerIdentity`` that binds the key and the nonce, and nothing else? Whose is the answer?

The sender sends a request that a stranger made. So nothing is sent that is not known here, to the byte: another
header could ask for another form of answer, another parameter could make STS say what the stranger wants (the hole of
HashiCorp Vault's CVE-2020-16250 was of this kind), another host could be the stranger's own.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from agent.core.errors import EvidenceError
from agent.core.model import Cloud
from agent.enrol.binding import KEY_HEADER, NONCE_HEADER
from agent.enrol.message import AwsSts
from agent.enrol.policy import Machine

STS_BODY: Final = "Action=GetCallerIdentity&Version=2011-06-15"
STS_CONTENT_TYPE: Final = "application/x-www-form-urlencoded; charset=utf-8"
FRESH: Final = timedelta(minutes=5)
"""How far ``x-amz-date`` may be from the sender's time."""

_HEADERS: Final = frozenset(
    {
        "host",
        "content-type",
        "x-amz-date",
        "x-amz-security-token",
        "authorization",
        KEY_HEADER,
        NONCE_HEADER,
    }
)
_SIGNED: Final = _HEADERS - {"authorization"}

# botocore's partitions.json (a test compares). A region is of letters, digits and dashes: no dot can get into the host.
_PARTITIONS: Final = (
    ("aws", re.compile(r"(?:us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]{1,2}\Z"), ("amazonaws.com", "api.aws")),
    ("aws-us-gov", re.compile(r"us-gov-[a-z]+-[0-9]{1,2}\Z"), ("amazonaws.com", "api.aws")),
    (
        "aws-cn",
        re.compile(r"cn-[a-z]+-[0-9]{1,2}\Z"),
        ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ),
    (
        "aws-eusc",
        re.compile(r"eusc-de-[a-z]+-[0-9]{1,2}\Z"),
        ("amazonaws.eu", "api.amazonwebservices.eu"),
    ),
    ("aws-iso", re.compile(r"us-iso-[a-z]+-[0-9]{1,2}\Z"), ("c2s.ic.gov", "api.aws.ic.gov")),
    ("aws-iso-b", re.compile(r"us-isob-[a-z]+-[0-9]{1,2}\Z"), ("sc2s.sgov.gov", "api.aws.scloud")),
    ("aws-iso-e", re.compile(r"eu-isoe-[a-z]+-[0-9]{1,2}\Z"), ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk")),
    ("aws-iso-f", re.compile(r"us-isof-[a-z]+-[0-9]{1,2}\Z"), ("csp.hci.ic.gov", "api.aws.hci.ic.gov")),
)
_HOST: Final = re.compile(r"sts(?:-fips)?\.([a-z]+(?:-[a-z0-9]+){1,4})\.([a-z0-9.-]+)\Z")
_VPC_ENDPOINT: Final = re.compile(r"vpce-[a-z0-9-]{1,64}\.sts\.([a-z0-9-]{1,32})\.vpce\.([a-z0-9.-]+)\Z")
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([A-Z0-9]{16,128})/([0-9]{8})/([a-z0-9-]{1,32})/sts/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]{1,256}), Signature=([0-9a-f]{64})\Z"
)
_DATE: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z\Z")
_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,8190}[!-~])?\Z")
_CALLER: Final = re.compile(
    r"arn:(aws[a-z-]{0,16}):sts::([0-9]{12}):assumed-role/([A-Za-z0-9+=,.@_-]{1,64})/([A-Za-z0-9+=,.@_-]{2,64})\Z"
)
_INSTANCE: Final = re.compile(r"i-(?:[0-9a-f]{17}|[0-9a-f]{8})\Z")


class StsRequest(msgspec.Struct, frozen=True):
    """The request that may be sent: made anew from the parts that were checked.

    Attributes:
        host: an STS host. The request goes to ``https://HOST/``, as a ``POST`` of :data:`STS_BODY`.
        headers: all of them, in lower case.
        partition: whose host it is: the answer's ARN must be of it.
    """

    host: str
    headers: dict[str, str]
    partition: str

    def __repr__(self) -> str:
        return f"StsRequest({self.host!r}, ...)"  # a session token is in it


def is_sts_host(host: str) -> bool:
    """Whether ``host`` is one at which AWS serves STS, in its one spelling."""
    return _place(host) is not None


def is_vpc_endpoint(host: str) -> bool:
    """Whether ``host`` is a VPC endpoint of STS: AWS gives such names out, and they lead to nothing but its STS."""
    match = _VPC_ENDPOINT.match(host)
    return match is not None and any(
        regions.match(match[1]) and match[2] in suffixes for _, regions, suffixes in _PARTITIONS
    )


def _place(host: str) -> tuple[str, str] | None:
    """The partition and the region of an STS host."""
    if host == "sts.amazonaws.com":
        return "aws", "us-east-1"  # the global endpoint, which signs for this region
    match = _HOST.match(host)
    if match is None:
        return None
    region, suffix = match.groups()
    for partition, regions, suffixes in _PARTITIONS:
        if regions.match(region):
            return (partition, region) if suffix in suffixes else None
    return None


def checked_request(evidence: AwsSts, *, thumbprint: str, nonce: str, now: datetime) -> StsRequest:
    """The request, if it is as PROTOCOL.md demands. Asks nobody.

    Args:
        evidence: from a stranger.
        thumbprint: of the key that it is to vouch for.
        nonce: of the question that was asked.
        now: the sender's time, aware.

    Raises:
        EvidenceError: it is not.
    """
    if evidence.method != "POST" or evidence.body != STS_BODY:
        raise EvidenceError(f"aws-sts: expected a POST of {STS_BODY} and nothing else", code="action")
    host = evidence.url.removeprefix("https://").removesuffix("/")
    place = _place(host)
    if evidence.url != f"https://{host}/" or place is None:
        raise EvidenceError("aws-sts: expected https://, the name of an sts host, and /", code="host")
    partition, region = place
    headers = _headers(evidence.headers)
    if headers["host"] != host:
        raise EvidenceError("aws-sts: the host header names another host", code="host")
    if headers["content-type"] != STS_CONTENT_TYPE:
        raise EvidenceError(f"aws-sts: expected the content-type {STS_CONTENT_TYPE}", code="headers")
    _check_signature(headers["authorization"], headers["x-amz-date"], region, now)
    if headers[KEY_HEADER] != thumbprint:
        raise EvidenceError("aws-sts: it vouches for another key", code="binding")
    if headers[NONCE_HEADER] != nonce:
        raise EvidenceError("aws-sts: it is the answer to another question", code="binding")
    return StsRequest(host, headers, partition)


def _headers(given: dict[str, str]) -> dict[str, str]:
    headers = {name.lower(): value for name, value in given.items()}
    if len(headers) != len(given):
        raise EvidenceError("aws-sts: a header is there twice", code="headers")
    if headers.keys() != _HEADERS:
        odd = min(headers.keys() ^ _HEADERS)
        shown = odd if odd in _HEADERS else "one that does not belong there"
        raise EvidenceError(f"aws-sts: expected just {', '.join(sorted(_HEADERS))}; see {shown}", code="headers")
    if not all(_VALUE.match(value) for value in headers.values()):
        raise EvidenceError("aws-sts: a header has characters that none may have", code="headers")
    return headers


def _check_signature(authorization: str, date: str, region: str, now: datetime) -> None:
    match = _AUTHORIZATION.match(authorization)
    if match is None:
        raise EvidenceError("aws-sts: the authorization is not of signature version 4 for sts", code="headers")
    _, day, signed_for, signed, _ = match.groups()
    names = signed.split(";")
    if sorted(names) != sorted(_SIGNED):
        raise EvidenceError("aws-sts: expected every header to be signed, and no other", code="unsigned")
    if signed_for != region:
        raise EvidenceError("aws-sts: it is signed for another region than that of the host", code="headers")
    at: datetime | None = None
    if _DATE.match(date):
        try:
            at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:
            at = None
    if at is None or date[:8] != day:
        raise EvidenceError("aws-sts: x-amz-date is not a date, or not that of the signature", code="date")
    if abs(at - now) > FRESH:
        raise EvidenceError(
            f"aws-sts: signed at {date}, more than {FRESH.seconds // 60} minutes from now",
            hint="ask the worker again; if that does not help, compare its clock with yours",
            code="date",
        )


def aws_machine(arn: Any, account: Any, *, partition: str) -> Machine:
    """The owner of the session, by the answer of STS.

    Args:
        arn: the answer's ``Arn``.
        account: the answer's ``Account``.
        partition: that of the host that answered.

    Raises:
        EvidenceError: code ``principal``: it is no role's session.
    """
    match = _CALLER.match(arn) if isinstance(arn, str) else None
    if match is None:
        raise EvidenceError("aws-sts: expected the session of a role, as an instance profile has", code="principal")
    of, number, role, session = match.groups()
    if of != partition or number != account:
        raise EvidenceError("aws-sts: the answer contradicts itself or its host", code="principal")
    return Machine(
        cloud=Cloud.AWS,
        account=number,
        principal=role,
        session=session,
        # EC2 names its sessions so, and anyone else who may assume the role can: see PROTOCOL.md.
        instance_id=session if _INSTANCE.match(session) else None,
        source="aws-sts",
        partition=of,
    )

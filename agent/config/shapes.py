"""The shapes of single values: for each a pattern, and the words that tell an operator what was expected."""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.core.model import ACCOUNT_ID, REGION, ROLE_NAME, VARIABLE_NAME, WORD


def _text(pattern: str, words: str) -> msgspec.Meta:
    r"""A text that matches ``pattern``, which ends in ``\Z``: ``$`` would let a newline follow."""
    return msgspec.Meta(pattern=pattern, description=words)


Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400 * 7)]
Path_ = Annotated[str, _text(r"^/[^\x00]{1,4095}\Z", "an absolute path")]
SocketPath = Annotated[str, _text(r"^(?:auto|off|/[^\x00]{1,4095})\Z", '"auto", "off" or an absolute path')]
MetricsPath = Annotated[
    str, _text(r"^/[^\x00]{1,4000}\.prom\Z", "an absolute path that ends in .prom: the collector reads no other")
]
Mode = Annotated[str, _text(r"^0[0-7]{3}\Z", 'an octal mode such as "0640"')]

Url = Annotated[str, _text(r"^https?://[^\s]{1,2000}\Z", "an http or https URL")]
HostName = Annotated[
    str, _text(r"^[A-Za-z0-9.:_-]{1,253}\Z", "the name or the address of a host, without a port and without brackets")
]

Name = Annotated[str, _text(r"^[A-Za-z0-9_.-]{1,64}\Z", "1 to 64 letters, digits, dots, dashes or underscores")]
# As they stand in bundles: what has a space in it names nothing that could ever come.
PlainText = Annotated[str, _text(WORD, "1 to 256 characters from ! to ~, without spaces")]
# Of what a signer may sign: the same that agent.bundle.trust takes, so that no start finds out later than a check.
Signed = Annotated[
    str,
    _text(
        r"^(?=[!-~]{1,256}\Z)[^*]*\*?\Z",
        "1 to 256 characters from ! to ~, without spaces, with * at the end only",
    ),
]
AttributeKey = Annotated[str, _text(r"^[A-Za-z0-9_-]{1,128}\Z", "1 to 128 letters, digits, dashes or underscores")]
GuestAttribute = Annotated[
    str,
    _text(r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\Z", "NAMESPACE/KEY, each of letters, digits, dashes and underscores"),
]
MetadataPath = Annotated[
    str,
    _text(
        r"^/(?:latest|computeMetadata/v1)(?:/[A-Za-z0-9._~@:+=,*-]+)+/?\Z",
        "a path of metadata such as /latest/user-data or /computeMetadata/v1/instance/attributes/NAME",
    ),
]

RoleName = Annotated[str, _text(ROLE_NAME, "the name of a role: 1 to 64 letters, digits or _+=,.@-")]
AccountId = Annotated[str, _text(ACCOUNT_ID, "a twelve-digit account id")]
# What a person types here workers read in answers and in the environment file: no line of it may end early.
Region = Annotated[str, _text(REGION, "the name of a region such as eu-west-1")]
Zone = Annotated[str, _text(r"^[a-z0-9-]{1,64}\Z", "the name of a zone such as eu-west-1a or europe-west1-b")]
ProjectId = Annotated[
    str, _text(r"^[a-z0-9][a-z0-9.:-]{0,127}\Z", "the id of a project: lower-case letters, digits, dashes")
]
MachineName = Annotated[str, _text(r"^[!-~]{1,256}\Z", '"auto", or a name of 1 to 256 characters without spaces')]
# A directory may call a group "domain users".
GroupName = Annotated[
    str, _text(r"^[^\x00-\x20\x7f:/][^\x00-\x1f\x7f:/]{0,255}\Z", "the name of a group, without colons and slashes")
]
ProjectNumber = Annotated[str, _text(r"^[0-9]{1,20}\Z", "a project number: 1 to 20 digits")]
# As agent.keys takes them.
KmsArn = Annotated[
    str,
    _text(
        r"^arn:aws[a-z-]*:kms:[a-z0-9-]{1,64}:[0-9]{12}:(?:key|alias)/[A-Za-z0-9/_-]{1,256}\Z",
        "the ARN of a key or of an alias, such as arn:aws:kms:REGION:ACCOUNT:key/ID",
    ),
]
KmsKeyVersion = Annotated[
    str,
    _text(
        r"^projects/[a-z0-9.:-]{1,100}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
        r"/cryptoKeys/[A-Za-z0-9_-]{1,63}/cryptoKeyVersions/[0-9]{1,9}\Z",
        "projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V",
    ),
]

VariablePattern = Annotated[
    str, _text(r"^[A-Za-z0-9_*]{1,128}\Z", "a pattern for names: letters, digits, underscores, and * for any rest")
]
VariableName = Annotated[
    str,
    _text(VARIABLE_NAME, "the name of a variable: letters, digits and underscores, no digit first"),
]
# What an environment file can hold. agent.host.envfile refuses the same characters, but too late to tell the operator.
VariableValue = Annotated[
    str,
    _text(r"^[^\x00-\x08\x0a-\x1f\x7f]{0,32768}\Z", "one line without control characters, of at most 32768 characters"),
]

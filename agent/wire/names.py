"""The words of the dialects: addresses, paths and header names, each written once, here.

This module imports nothing, so that a command that must answer at once can use it. ``tests/unit/wire/test_names.py``
compares the words with the clouds' manuals, and finds each file that writes one a second time.
"""

from __future__ import annotations

from typing import Final

# ---------------------------------------------------------------------------------------------------------------------
# Where clients look

METADATA_IPV4: Final = "169.254.169.254"
"""EC2's and Google's."""
EC2_IPV6: Final = "fd00:ec2::254"
GCE_IPV6: Final = "fd20:ce::254"
GCE_HOST: Final = "metadata.google.internal"
ECS_IPV4: Final = "169.254.170.2"
"""Where SDKs send a relative URI."""
EKS_IPV4: Final = "169.254.170.23"
EKS_IPV6: Final = "fd00:ec2::23"

METADATA_ADDRESSES: Final = (METADATA_IPV4, ECS_IPV4, EKS_IPV4, EC2_IPV6, EKS_IPV6, GCE_IPV6)
"""All of them: no router passes them on, and every SDK asks at one."""

METADATA_URL: Final = f"http://{METADATA_IPV4}"

# ---------------------------------------------------------------------------------------------------------------------
# EC2 (user guide: "Instance metadata", "Use the Instance Metadata Service Version 2")

EC2_TOKEN_HEADER: Final = "X-aws-ec2-metadata-token"  # noqa: S105 - a header's name
EC2_TTL_HEADER: Final = "X-aws-ec2-metadata-token-ttl-seconds"
EC2_TTL_ECHO: Final = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
"""The same header as the real service spells it in its answers."""

EC2_TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - a path
EC2_USER_DATA_PATH: Final = "/latest/user-data"
EC2_IDENTITY_PATH: Final = "/latest/dynamic/instance-identity/document"
EC2_INSTANCE_ID_PATH: Final = "/latest/meta-data/instance-id"
EC2_REGION_PATH: Final = "/latest/meta-data/placement/region"
EC2_TAGS: Final = "/latest/meta-data/tags/instance/"
EC2_ROLES_PATH: Final = "/latest/meta-data/iam/security-credentials/"
EC2_IAM: Final = ("meta-data", "iam")
"""The subtree of the machine's own credential, as segments below the version."""

# ---------------------------------------------------------------------------------------------------------------------
# Containers (ECS developer guide: "Task IAM role"; EKS user guide: "EKS Pod Identity")

EKS_PATH: Final = "/v1/credentials"
ECS_PREFIX: Final = "/v2/credentials/"

# ---------------------------------------------------------------------------------------------------------------------
# GCE (Compute Engine documentation: "About VM metadata", "Authenticate workloads using service accounts")

GCE_FLAVOR_HEADER: Final = "Metadata-Flavor"
GCE_FLAVOR: Final = "Google"
GCE_LEGACY_HEADER: Final = "X-Google-Metadata-Request"

GCE_ROOT: Final = "computeMetadata"
GCE_VERSION: Final = "v1"
GCE_PREFIX: Final = f"/{GCE_ROOT}/{GCE_VERSION}/"
GCE_INSTANCE_ID_PATH: Final = f"{GCE_PREFIX}instance/id"
GCE_ZONE_PATH: Final = f"{GCE_PREFIX}instance/zone"
GCE_PROJECT_ID_PATH: Final = f"{GCE_PREFIX}project/project-id"
GCE_PROJECT_NUMBER_PATH: Final = f"{GCE_PREFIX}project/numeric-project-id"
GCE_GUEST_ATTRIBUTES: Final = f"{GCE_PREFIX}instance/guest-attributes/"
GCE_ACCOUNT: Final = f"{GCE_PREFIX}instance/service-accounts/default/"
GCE_ACCOUNT_PATH: Final = f"{GCE_ACCOUNT}?recursive=true"
GCE_TOKEN_PATH: Final = f"{GCE_ACCOUNT}token"
GCE_IDENTITY_PATH: Final = f"{GCE_ACCOUNT}identity"


def gce_attributes(scope: str) -> str:
    """The directory of the custom attributes of ``instance`` or ``project``, with its final slash."""
    return f"{GCE_PREFIX}{scope}/attributes/"


# ---------------------------------------------------------------------------------------------------------------------
# Our own

BUNDLE_MEDIA_TYPE: Final = "application/credbundle+jose"
"""Of a sealed bundle in a MIME document and in an answer (FORMAT.md)."""
BUNDLE_TYPE: Final = "credbundle+jwe"
"""Its protected header's ``typ``: how a bundle is told from any other JWE."""

BUNDLE_ATTRIBUTE: Final = "credential-bundle"
"""The custom attribute of a GCE instance or project that carries a bundle, unless the operator names another."""

USER_AGENT_PREFIX: Final = "credential-agent/"
"""How our own requests to a metadata service begin their ``User-Agent``. One that comes to us is a loop."""
PROBE_USER_AGENT: Final = f"{USER_AGENT_PREFIX}redirect-check"
"""Of the request by which we find out, every half minute, whether a worker's arrives here: refused, and no news."""
ORIGIN_HEADER: Final = "X-Credential-Agent-Origin"
"""In a request of our own ``wait``: asks whose identity it is. In the answer: ``bundle``, ``fallback`` or ``none``."""
REFUSED_HEADER: Final = "X-Credential-Agent-Refused"
"""Beside it in the answer: why the last bundle that came was refused, if it was."""
ENROL_AUDIENCE_PREFIX: Final = "urn:credential-agent:enrol:"
"""How the audience of a token begins that vouches for a worker's key (agent/enrol/PROTOCOL.md). Workers get none."""

STATUS_PATH: Final = "/v1/status"
"""On the control socket (agent/daemon/control.py) and, with less in it, on the couriers' (agent/enrol/PROTOCOL.md)."""
BUNDLE_PATH: Final = "/v1/bundle"
"""On both: the same."""
ENROL_PATH: Final = "/v1/enrol"
"""On the couriers' socket alone."""
KEYS_PATH: Final = "/v1/keys"
"""On the control socket alone, as the next two."""
REFRESH_PATH: Final = "/v1/refresh"
RELOAD_PATH: Final = "/v1/reload"

"""The sender's side: what a laptop or a control plane does to give its workers an identity.

``aws`` and ``gcp`` turn the identity that this computer already has into grants; ``deliver`` puts the sealed bundle
where a worker looks. Nothing here is imported by the daemon. A control plane that makes its own grants needs only
:func:`agent.bundle.seal`.
"""

from __future__ import annotations

import msgspec

from agent.core.model import Cloud, Grant


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The grants gathered from one local identity.

    Attributes:
        cloud: whose identity it is.
        grants: the grants to send; the last one may stand on the first.
        route: the id of the grant that the cloud is to be served from.
        who: whose identity it is, for the person who sends it: an ARN, an e-mail.
        warnings: what that person should know before sending it.
    """

    cloud: Cloud
    grants: tuple[Grant, ...]
    route: str
    who: str
    warnings: tuple[str, ...] = ()

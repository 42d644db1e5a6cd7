"""The EC2 metadata dialect (IMDSv2).

The table (the issue and SDK behaviour behind each line are in :mod:`agent.wire.ec2` and the tests' request table):

==================  =========================  ==============================  =====================================
AWS is              role list                  document of a role              else
==================  =========================  ==============================  =====================================
Live                200 the bare name          200 for every name that was     the real service, or what is known
                                               ever listed, else 404
Pending             held, then 503 empty       held, then the connection ends  the same
Ended               503 empty                  was listed: the connection      the same
                                               ends; else 404
Absent              404 empty                  404                             the same
==================  =========================  ==============================  =====================================

A failure is said on the role list and never on a document: awscrt aborts its whole process on a malformed
document, whatever the status; when the connection ends, it retries once and reports a clean error.

No answer takes longer than 400 ms: Go gives up after 500.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from agent.core.model import AwsCredential, Cloud
from agent.core.partition import domain_of, partition_of
from agent.core.view import Absent, Answer, Facts, Live, Origin, Pending
from agent.serve.early import Early
from agent.serve.handling import DROP, Drop, Later, Outcome, aws_given
from agent.serve.hiding import EC2_ROOT, Hiding, folded
from agent.serve.proxy import EC2_STATIC, Proxy, relisted, target
from agent.serve.session_tokens import SessionTokens
from agent.serve.waiting import Watch
from agent.wire import ec2, names
from agent.wire.http import Request, Response

_NOT_FOUND: Final = ec2.failure(404)
_UNAVAILABLE: Final = ec2.failure(503, ("Retry-After", "1"))
_UNAUTHORIZED: Final = ec2.failure(401).noted("token")
_BAD_TTL: Final = ec2.failure(400)
_GET_ONLY: Final = ec2.failure(405, ("Allow", "GET, HEAD"))
_PUT_ONLY: Final = ec2.failure(405, ("Allow", "PUT"))
_ECHO: Final = f"{names.EC2_TTL_ECHO}: ".encode()
_TTL_MEMO: Final = 64
_Tree = dict[str, "str | _Tree"]


class Ec2Dialect:
    """``/latest/...`` and its dated versions."""

    def __init__(self, watch: Watch, proxy: Proxy | None, early: Early) -> None:
        settings = watch.served.settings
        self._settings = settings
        self._watch = watch
        self._proxy = proxy
        self._hiding = Hiding(
            EC2_ROOT,
            hide=settings.hide,
            show=settings.show,
            expects_bundle=lambda: watch.served.now.expects_bundle,
        )
        self._early = early
        self.tokens = SessionTokens(settings.token_key, watch.clock)
        """Those of this dialect."""
        # The only mutable state: earlier renderings, each with its input.
        self._token_heads: dict[int, Response] = {}
        self._live: tuple[AwsCredential, str] | None = None
        self._list = _NOT_FOUND
        self._document = _NOT_FOUND
        self._extended = _NOT_FOUND
        self._facts: Facts | None = None
        self._tree: _Tree = {}

    def handle(self, request: Request) -> Outcome | Later:
        """Answer one request."""
        below = request.segments[1:]
        if below == ("api", "token"):
            return self._token(request)
        if request.method not in {"GET", "HEAD"}:
            return _GET_ONLY
        echo = b""
        token = request.headers.get(names.EC2_TOKEN_HEADER)
        if token is not None:
            left = self.tokens.left(token)
            if left is None:
                return _UNAUTHORIZED
            echo = b"%b%d\r\n" % (_ECHO, left)
        elif not self._settings.imdsv1:
            return _UNAUTHORIZED
        outcome = self._resource(request, below)
        if isinstance(outcome, Response):
            return outcome.plus(echo) if echo else outcome
        if isinstance(outcome, Drop):
            return outcome
        return partial(_echoed, outcome, echo) if echo else outcome

    # -- session tokens ----------------------------------------------------------------------------------------------

    def _token(self, request: Request) -> Response:
        """The most reliable path: arithmetic only. A failure here sends SDKs to IMDSv1, and from there nowhere."""
        if request.method != "PUT":
            return _PUT_ONLY
        ttl = ec2.ttl_asked(request.headers.get(names.EC2_TTL_HEADER))
        if ttl is None:
            return _BAD_TTL
        token = self.tokens.mint(ttl)
        head = self._token_heads.get(ttl)
        if head is None:
            if len(self._token_heads) >= _TTL_MEMO:
                self._token_heads.clear()
            head = ec2.text(token, (names.EC2_TTL_ECHO, str(ttl)))
            self._token_heads[ttl] = head
        return head.filled(token)

    # -- resources ---------------------------------------------------------------------------------------------------

    def _resource(self, request: Request, below: tuple[str, ...]) -> Outcome | Later:
        if not request.segments:
            return self._other(request, below)
        if not ec2.VERSION_SEGMENT.match(request.segments[0]):
            return _NOT_FOUND
        if below[:2] == names.EC2_IAM:
            answer = self._watch.look(Cloud.AWS)
            if isinstance(answer, Pending):
                return partial(self._settle, request, below[2:])
            return self._iam(request, below[2:], answer)
        return self._other(request, below)

    async def _settle(self, request: Request, below: tuple[str, ...]) -> Outcome:
        answer = await self._watch.settled(Cloud.AWS, self._settings.ec2_hold_seconds)
        outcome = self._iam(request, below, answer)
        # ``iam/info`` from the real service, after a wait: the two together would be too long.
        return outcome if isinstance(outcome, Response | Drop) else _UNAVAILABLE

    def _iam(self, request: Request, below: tuple[str, ...], answer: Answer) -> Outcome | Later:
        kind = below[0] if below else ""
        if kind == "security-credentials" and len(below) <= 2:
            return self._roles(answer) if len(below) == 1 else self._role(below[1], answer)
        if kind == "security-credentials-extended" and len(below) <= 2:
            return self._roles_extended(below[1:], answer)
        if isinstance(answer, Absent):
            return _NOT_FOUND
        if not isinstance(answer, Live):
            return _UNAVAILABLE
        if answer.origin is Origin.FALLBACK and self._proxy is not None:
            return partial(self._pass, request, request.segments[1:])
        if not below:
            # Who follows a listing is told of nothing that is not there.
            known = self._info(answer).status == 200
            return ec2.text(b"info\nsecurity-credentials/" if known else b"security-credentials/")
        if below == ("info",):
            return self._info(answer)
        return _NOT_FOUND

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._live = None
        self._list = self._document = self._extended = _NOT_FOUND

    def _rendered(self, live: Live) -> bool:
        if not isinstance(live.credential, AwsCredential):
            return False
        credential = live.credential
        if live.origin is Origin.FALLBACK:
            credential = self._early.aws(live, credential, self._watch.clock.now())
        if self._live is None or self._live[0] is not credential or self._live[1] != live.name:
            self._list = ec2.text(live.name.encode("ascii", "replace"))
            given = aws_given("ec2", live, credential)
            self._document = ec2.text(ec2.render_credential(credential)).noted(given)
            self._extended = (
                _NOT_FOUND
                if credential.account_id is None
                else ec2.text(ec2.render_credential(credential, account_id=credential.account_id)).noted(given)
            )
            self._live = (credential, live.name)
        return True

    def _roles(self, answer: Answer) -> Outcome:
        if isinstance(answer, Live) and self._rendered(answer):
            return self._list
        return _NOT_FOUND if isinstance(answer, Absent) else _UNAVAILABLE

    def _role(self, name: str, answer: Answer) -> Outcome:
        if isinstance(answer, Live) and name == answer.name and self._rendered(answer):
            return self._document
        if isinstance(answer, Pending):
            return DROP  # it may become any name
        if name not in self._watch.served.names(Cloud.AWS):
            return _NOT_FOUND
        # It was ours under another name a moment ago: whoever read the list then gets what there is now.
        return self._document if isinstance(answer, Live) and self._rendered(answer) else DROP

    def _roles_extended(self, name: tuple[str, ...], answer: Answer) -> Outcome:
        # 404 sends Ruby and PHP to the older path, where the failure is said; any other failure ends them here.
        if not isinstance(answer, Live) or not self._rendered(answer) or self._extended.status != 200:
            return _NOT_FOUND
        if not name:
            return self._list
        return self._extended if name[0] in self._watch.served.names(Cloud.AWS) | {answer.name} else _NOT_FOUND

    def _info(self, live: Live) -> Response:
        credential = live.credential
        if not isinstance(credential, AwsCredential) or credential.account_id is None:
            return _NOT_FOUND
        partition = partition_of(self._watch.served.now.facts.region)
        arn = f"arn:{partition}:iam::{credential.account_id}:instance-profile/{live.name}"
        return ec2.text(ec2.render_instance_profile(arn=arn, updated=credential.issued_at))

    # -- everything else ---------------------------------------------------------------------------------------------

    def _other(self, request: Request, below: tuple[str, ...]) -> Outcome | Later:
        # No name in this tree has other letters than ASCII: what the real service makes of them does not matter.
        if not all(segment.isascii() for segment in below) or self._hiding.hides(below, decided=self._decided()):
            return _NOT_FOUND
        # ``IAM`` in another case: answered above only in its exact case, hidden in any.
        if folded(below[:2]) == names.EC2_IAM:
            return _NOT_FOUND
        if self._proxy is None:
            return self._known(request.segments) or _NOT_FOUND
        if below in EC2_STATIC and (fresh := self._proxy.fresh(target(request.segments, slash=False))) is not None:
            return fresh
        return partial(self._pass, request, below)

    def _decided(self) -> bool:
        """Whether the machine's own AWS identity is not what workers have."""
        answer = self._watch.look(Cloud.AWS)
        return not (isinstance(answer, Absent) or (isinstance(answer, Live) and answer.origin is Origin.FALLBACK))

    async def _pass(self, request: Request, below: tuple[str, ...]) -> Outcome:
        assert self._proxy is not None
        if below in EC2_STATIC:
            # A leaf is the same with a slash behind it (the AWS CLI adds one).
            answer = await self._proxy.static(target(request.segments, slash=False), request.asker)
        else:
            answer = await self._proxy.fetch("GET", target(request.segments, slash=request.slash), asker=request.asker)
        if self._decided():  # since then, perhaps
            if below[:2] == names.EC2_IAM:
                ours = self._iam(request, below[2:], self._watch.look(Cloud.AWS))
                return ours if isinstance(ours, Response | Drop) else _UNAVAILABLE
            if self._hiding.hides(below, decided=True):
                return _NOT_FOUND
        if answer is None or answer.status in {401, 403} or 300 <= answer.status < 400:
            # 401 and 403 are about *our* session, 3xx is not of this dialect: neither is for the worker.
            return self._known(request.segments) or _UNAVAILABLE
        if answer.status == 200:
            answer = self._overlaid(answer, below)
        return answer

    def _overlaid(self, answer: Response, below: tuple[str, ...]) -> Response:
        if not self._hiding.lists(below):
            return answer
        decided = self._decided()

        def gone(name: str) -> bool:
            return self._hiding.hides((*below, name), decided=decided)

        ours = below == ("meta-data",) and decided and isinstance(self._watch.look(Cloud.AWS), Live)
        return relisted(answer, gone, add=("iam/",) if ours else ())

    def _known(self, segments: tuple[str, ...]) -> Response | None:
        """Answer without the real service: from the bundle or the configuration."""
        facts = self._watch.served.now.facts
        if self._facts is not facts and self._facts != facts:
            self._tree = _tree_of(facts)
            self._facts = facts
        node: str | _Tree = {"latest": self._tree}
        for segment in ("latest", *segments[1:]) if segments else ():
            if not isinstance(node, dict) or segment not in node:
                return None
            node = node[segment]
        if isinstance(node, str):
            return ec2.text(node.encode())
        if not segments:
            return ec2.text(b"latest")
        names = [name + ("/" if isinstance(child, dict) else "") for name, child in sorted(node.items())]
        if segments[1:] == ("meta-data",) and isinstance(self._watch.look(Cloud.AWS), Live):
            names = sorted([*names, "iam/"])
        return ec2.text("\n".join(names).encode()) if names else None


async def _echoed(later: Later, echo: bytes) -> Outcome:
    outcome = await later()
    return outcome.plus(echo) if isinstance(outcome, Response) else outcome


_REGION_OF: Final = re.compile(r"[a-z]{2,}(?:-[a-z]+)+-[0-9]+")


def _place(facts: Facts) -> tuple[str | None, str | None]:
    """Region and zone, each from the other where it is not known.

    Several clients read nothing but the zone and cut its last letter off to find the region: the AWS CLI, aws-sdk-cpp,
    google-auth. So a region alone answers with its first zone, and a zone of another region (the machine's, beside the
    region of a bundle) is dropped. A local zone (``us-west-2-lax-1a``) is in the region that its name begins with.
    """
    region, zone = facts.region, facts.availability_zone
    if region is None and zone is not None:
        found = _REGION_OF.match(zone)
        region = found[0] if found else zone[:-1]
    if region is not None and (zone is None or not zone.startswith(region)):
        zone = f"{region}a"
    return region, zone


def _tree_of(facts: Facts) -> _Tree:
    placement: _Tree = {}
    meta: _Tree = {}
    tree: _Tree = {"meta-data": meta}
    region, zone = _place(facts)
    if zone is not None:
        placement["availability-zone"] = zone
    if facts.instance_id is not None:
        meta["instance-id"] = facts.instance_id
    if region is not None:
        placement["region"] = region
        meta["services"] = {"domain": domain_of(region), "partition": partition_of(region)}
        identity = ec2.InstanceIdentity(
            region=region,
            account_id=facts.account_id,
            availability_zone=zone,
            instance_id=facts.instance_id,
        )
        tree["dynamic"] = {"instance-identity": {"document": ec2.render_identity(identity).decode()}}
    if placement:
        meta["placement"] = placement
    return tree

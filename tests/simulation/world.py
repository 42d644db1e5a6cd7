"""One worker for a day and a half: the real controller, store, schedule, clock and mint, against clouds that misbehave.

Only the edges are simulated: time (:mod:`tests.simulation.timewarp`), the sockets, and the clouds themselves, which
verify signatures and times for real. What is served is checked at the last instant before time moves and at the first
after it; in between nothing changes but the time, so that is every instant.

What must hold:

1. *Nothing expired, ever.* What ``Store.view`` gives is alive by the cloud's own clock, however wrong the machine's
   clocks are, and no client is told of more life than there is.
2. *The promise.* While the upstream has been well for ``recovery_seconds``, the credential served has at least the
   promised life left (two thirds of its lifetime for AWS, 32 minutes for Google). From the instant at which that ends,
   what is left shrinks no faster than time passes: so an outage of 20 minutes leaves no hole where an hour was issued.
   One cloud, or a broker, that lies about the time changes nothing of that, nor do all of them while the kernel is
   synchronised. Where nobody is left to outweigh the liars nothing is promised of *either* cloud until the truth was
   heard again: the machine has one clock. Rule 1 holds then as ever.
3. *No storm.* In any minute no credential is asked for more than :data:`ATTEMPTS_A_MINUTE` times, and over the whole
   run no more than the schedule and the faults account for.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NoReturn

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from multidict import CIMultiDict, CIMultiDictProxy

from agent.controller import Controller
from agent.core.history import Entry
from agent.core.model import (
    Action,
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsWebIdentity,
    Bundle,
    Cloud,
    Expect,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    Grant,
    HttpBroker,
    SealedBundle,
    WebTokenGce,
)
from agent.core.secret import Secret
from agent.core.verdict import Memory, Policy
from agent.core.view import Live
from agent.host.clock import SystemClock
from agent.identity import notices
from agent.identity.standing import statuses
from agent.identity.store import Store
from agent.providers import Mint, MintSettings
from agent.providers.sts import warm
from agent.upstream import Ec2Metadata, GceMetadata, Reach, UpstreamError, UpstreamResponse, origin_of
from agent.upstream.dates import witness_of
from tests.fakes.broker import FakeBroker
from tests.fakes.google_tokens import FakeGoogle
from tests.fakes.machine_metadata import FakeEc2Metadata, FakeGceMetadata
from tests.fakes.net import Answer, Fault, InProcess
from tests.fakes.sts import FakeSts, Weather
from tests.simulation.plan import OUTAGES, Aws, Google, Kind, Plan, clock
from tests.simulation.plan import Fault as Trouble
from tests.simulation.timewarp import Time, WarpLoop, run

ACCOUNT = "111122223333"
USER = f"arn:aws:iam::{ACCOUNT}:user/laptop"
FIRST = f"arn:aws:iam::{ACCOUNT}:role/first"
JOB = f"arn:aws:iam::{ACCOUNT}:role/job"
MACHINE = f"arn:aws:sts::{ACCOUNT}:assumed-role/machine-role/i-0abc"
MACHINE_SECONDS = 6 * 3600
REGION = "eu-west-1"
BROKER = "https://broker.example"
BROKER_TOKEN = "Bearer broker"
ROBOT = "robot@project.iam.gserviceaccount.com"
OWN = "worker@project.iam.gserviceaccount.com"
POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws"
GOOGLE_SECONDS = 3599
EC2 = "http://169.254.169.254"
GCE = "http://[fd20:ce::254]"
"""Two machines in one: a real one has one of them."""

ATTEMPTS_A_MINUTE = 30
"""Twice and a half what the fastest retry does on average (full jitter up to 10 s: one in five seconds)."""
STEP_SECONDS = 241.0
"""After a step forward: what looks over is asked for anew, at the pace of retries where a signature was refused first."""
SLACK = timedelta(seconds=12)
"""For the calls themselves: up to three in a row, of up to two seconds each, and a probe."""


NAP_SECONDS = 60.0
"""Longer than in the daemon (15 s), to simulate fewer of them: a resume is noticed later here, if anything."""
SELDOM = timedelta(minutes=20)
"""How often the controller looks, where no clock is ever wrong, beside the instants at which something is due: in the
daemon each minute, as a safety net that nothing may need. Nine of ten looks were such ones."""


class Broken(AssertionError):
    """An invariant did not hold; the text tells the whole story."""


class World:
    """See the module.

    Args:
        store: the class of the store: tests give broken ones, to prove that the checks bite.
    """

    def __init__(self, loop: WarpLoop, plan: Plan, *, store: type[Store] = Store, ignore_dates: bool = False) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.time = Time(loop)
        self.time.wall_error = plan.wall_error_hours * 3600
        self.clock = SystemClock(
            boottime=self.time.boottime,
            wall=self.time.wall,
            synchronised=lambda: self.plan.synchronised and not self.time.wall_error,
            nap_seconds=NAP_SECONDS if plan.clocks_go_wrong else SELDOM.total_seconds(),
        )
        self.troubles: dict[str, list[Trouble]] = {"aws": [], "gcp": []}
        self.sts = FakeSts(self.time.true, random.Random(plan.seed), lambda operation: self._weather("aws", operation))
        self.google = FakeGoogle(
            self.time.true,
            sts=self.sts,
            rng=random.Random(plan.seed),
            weather=lambda operation: self._weather("gcp", operation),
        )
        self.broker = FakeBroker(
            self.time.true, lambda: self.sts.session(JOB, "role-session", plan.lifetime_seconds), BROKER_TOKEN
        )
        self.ec2 = FakeEc2Metadata(self.time.true, self._machine_keys)
        self.gce = FakeGceMetadata(self.time.true, self._machine_token, self._machine_identity)
        self.attempts: dict[str, list[float]] = {}
        self.ignore_dates = ignore_dates
        upstream: Any = _Wire(self)
        grants, routes = self._bundle()
        self.clouds = tuple(sorted({*routes, *(c for c in Cloud if plan_uses_machine(plan, c))}))
        self.store = store(
            Policy(fallback=frozenset(Cloud)), Memory("i-1"), self.clock.now(), random.Random(plan.seed + 1)
        )
        self.controller = Controller(
            store=self.store,
            issuer=Mint(
                upstream,
                MintSettings(region=REGION, allowed_origins=(BROKER,)),
                self.clock,
                ec2=Ec2Metadata(upstream, self.clock, EC2),
                gce=GceMetadata(upstream, GCE),
            ),
            opener=self._open,
            recorder=_Recorder(),
            sources=(),
            clock=self.clock,
            rng=random.Random(plan.seed + 2),
            follow=self.clock.follow,
        )
        self.bundle = _bundle(grants, routes, self.clock.now())
        self._health = {cloud: _Health(self, cloud) for cloud in self.clouds}
        self._seen: tuple[Any, ...] = ()
        self._sure_until = 0.0
        self._served: dict[Cloud, datetime | None] = {}
        self._wall_was_wrong = bool(plan.wall_error_hours)
        self.blind_until = 0.0
        """Until this instant (true seconds) nothing on the machine can know what time it is: after a pause all its clocks
        are behind by as much, and what ended in it looks alive to every program there is. The wall clock that NTP then
        sets right is looked at within a nap (60 s here, 15 s in the daemon), a cloud is asked within 30 s of that, and
        answers: two minutes. Only rule 1 is suspended for so long, and no longer."""
        self.least_left: dict[Cloud, timedelta] = {}

    # -- the clouds

    def _machine_keys(self) -> dict[str, str]:
        """As EC2: six hours long, and another one every hour."""
        hour = int(self.time.elapsed() // 3600)
        if getattr(self, "_keys_hour", None) != hour:
            self._keys_hour = hour
            self._keys = self.sts.session(MACHINE, "role-session", MACHINE_SECONDS)
        return self._keys

    def _machine_token(self) -> tuple[str, int]:
        """As GCE: the same token until five minutes before its end."""
        now = self.time.true()
        held = getattr(self, "_token", None)
        if held is None or self.google.tokens[held].ends - now < timedelta(minutes=5):
            held = self._token = self.google.access_token(OWN, GOOGLE_SECONDS)
        return held, int((self.google.tokens[held].ends - now).total_seconds())

    def _machine_identity(self, audience: str) -> str:
        return self.google._jwt({"aud": audience, "sub": "12345", "email": OWN})

    def _weather(self, cloud: str, operation: str) -> Weather:
        if self.troubles[cloud]:
            trouble = self.troubles[cloud][-1]
            lie = timedelta(hours=trouble.size_hours)
            match trouble.kind:
                case Kind.ERRORS:
                    return Weather(status=self.rng.choice([500, 503]), code="InternalFailure")
                case Kind.THROTTLE if cloud == "aws":
                    return Weather(status=400, code="Throttling")
                case Kind.THROTTLE:
                    return Weather(status=429, code="rate_limit_exceeded")
                case Kind.REFUSE:
                    return Weather(status=403, code="AccessDenied" if cloud == "aws" else "invalid_grant")
                case Kind.LIE:
                    return Weather(date_error=lie)
        return Weather()

    def fault(self, cloud: str) -> Fault | None:
        """What the network does to one request."""
        for trouble in self.troubles[cloud]:
            if trouble.kind is Kind.DOWN:
                return Fault.DOWN
            if trouble.kind is Kind.HANG:
                return Fault.HANG
            if trouble.kind is Kind.FLAKY and self.rng.random() < 1 / 3:
                self.disturb(cloud)
                return self.rng.choice([Fault.DOWN, Fault.HANG])
        return None

    def lied_to(self) -> bool:
        """Whether servers lie about the time now that could be believed."""
        return any(
            trouble.kind is Kind.LIE and self.may_be_fooled(trouble)
            for troubles in self.troubles.values()
            for trouble in troubles
        )

    def may_be_fooled(self, trouble: Trouble) -> bool:
        """Whether the rule lets such a lie move our time.

        Not while the kernel is synchronised, nor where one cloud stands against a wall clock that was right all the time.
        """
        if self.plan.synchronised and not self.time.wall_error:
            return False
        return self._wall_was_wrong or trouble.who == "both"

    def refused(self, cloud: str) -> Answer | None:
        """What a server without a weather of its own answers while its cloud is in trouble."""
        kinds = {trouble.kind for trouble in self.troubles[cloud]}
        return Answer(503) if kinds & {Kind.ERRORS, Kind.THROTTLE, Kind.REFUSE} else None

    # -- the bundle

    def _bundle(self) -> tuple[list[Grant], dict[Cloud, str]]:
        key, secret = self.sts.user(USER)
        seconds = self.plan.lifetime_seconds
        self.sts.role(FIRST)
        self.sts.role(JOB)
        keys = AwsKeys(id="keys", access_key_id=key, secret_access_key=Secret(secret), duration_seconds=seconds)
        expect = Expect(account_id=ACCOUNT)
        grants: list[Grant] = []
        match self.plan.aws:
            case Aws.KEYS:
                grants += [keys]
            case Aws.ROLE_ON_KEYS:
                grants += [
                    keys,
                    AwsAssumeRole(id="job", role_arn=JOB, base="keys", duration_seconds=seconds, expect=expect),
                ]
            case Aws.ROLE_ON_ROLE:
                grants += [
                    keys,
                    AwsAssumeRole(id="first", role_arn=FIRST, base="keys", duration_seconds=seconds),
                    AwsAssumeRole(id="job", role_arn=JOB, base="first", duration_seconds=seconds),
                ]
            case Aws.ROLE_ON_MACHINE:
                grants += [AwsAssumeRole(id="job", role_arn=JOB, duration_seconds=seconds)]
            case Aws.WEB_IDENTITY:
                token = WebTokenGce(audience="aws")
                grants += [AwsWebIdentity(id="job", role_arn=JOB, token=token, duration_seconds=seconds)]
            case Aws.BROKER:
                grants += [HttpBroker(id="job", url=f"{BROKER}/v1/credentials", authorization=Secret(BROKER_TOKEN))]
        routes = {Cloud.AWS: grants[-1].id} if grants else {}
        user = self.google.user()
        refresh = GcpAuthorizedUser(
            id="user",
            client_id=user["client_id"],
            client_secret=Secret(user["client_secret"]),
            refresh_token=Secret(user["refresh_token"]),
            email=user["email"],
        )
        robot = self.google.account(ROBOT)
        self.google.pools[POOL] = "aws"
        match self.plan.google:
            case Google.USER:
                grants += [refresh]
            case Google.KEY:
                pem, robot.keys["k1"] = rsa_key()
                grants += [
                    GcpServiceAccount(id="key", client_email=ROBOT, private_key_id="k1", private_key=Secret(pem))
                ]
            case Google.IMPERSONATION:
                grants += [refresh, GcpImpersonation(id="robot", target_principal=ROBOT, base="user")]
            case Google.FEDERATION:
                grants += [GcpExternalAccount(id="pool", audience=POOL, base="instance")]
            case Google.FEDERATION_ACCOUNT:
                grants += [GcpExternalAccount(id="pool", audience=POOL, base="instance", service_account=ROBOT)]
        if self.plan.google is not Google.MACHINE:
            routes[Cloud.GCP] = grants[-1].id
        return grants, routes

    async def _open(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        return self.bundle

    # -- the run

    async def live(self) -> None:
        """Live through the plan."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WarpLoop)
        warm()
        loop.watch = self.check
        controller = asyncio.create_task(self.controller.run())
        await asyncio.sleep(0)
        if self.bundle.routes:
            await self.controller.intake.submit(SealedBundle(b"", "push"))
        try:
            for start, end, trouble in self.plan.windows():
                # A pause may have come later than planned: three quiet minutes after it all the same.
                quiet = self.blind_until + 60.0 if self.blind_until else 0.0
                await asyncio.sleep(max(start, quiet) - self.time.elapsed())
                await self._suffer(trouble, end - start)
            await asyncio.sleep(max(self.plan.hours * 3600 - self.time.elapsed(), 0.0))
            self.check()
            self.check_calls()
        finally:
            loop.watch = lambda: None
            controller.cancel()
            await asyncio.gather(controller, return_exceptions=True)

    async def _suffer(self, trouble: Trouble, seconds: float) -> None:
        self.check()
        match trouble.kind:
            case Kind.STEP:
                self.time.wall_error += trouble.size_hours * 3600
                self._wall_was_wrong = True
                if trouble.size_hours > 0:
                    # It looks like a pause: what may be over is not served until a witness says that it was none.
                    for health in self._health.values():
                        health.held_at = None
                    self.disturb(*self.troubles, seconds=STEP_SECONDS)
                self._stepped()
                await asyncio.sleep(seconds)
            case Kind.SUSPEND:
                self.time.suspended += seconds
                self.disturb("aws", "gcp", seconds=NAP_SECONDS)
            case Kind.PAUSE:
                if self.time.wall_error:
                    # NTP had set it right before: else the two steps could cancel out, and nobody could tell.
                    self.time.wall_error = 0.0
                    await asyncio.sleep(2 * NAP_SECONDS)
                self.check()
                self.time.paused += seconds
                self._wall_was_wrong = True  # to who looks from inside it was stepped
                self._stepped()
                self.blind_until = self.time.elapsed() + 120.0
                self.disturb("aws", "gcp", seconds=120.0)
            case _:
                whom = ["aws", "gcp"] if trouble.who == "both" else [trouble.who]
                for cloud in whom:
                    self.troubles[cloud].append(trouble)
                if trouble.kind is not Kind.LIE or self.may_be_fooled(trouble):
                    self.disturb(*whom)
                if trouble.kind is Kind.LIE and self.may_be_fooled(trouble):
                    # Nobody is left who could outweigh the liars: nothing is promised but that nothing expired is served.
                    for health in self._health.values():
                        health.held_at = None
                await asyncio.sleep(seconds)
                for cloud in whom:
                    self.troubles[cloud].remove(trouble)
                # The slowest retry after a refusal is four minutes later than the slowest after anything else. A clock
                # that was lied to signs what is refused, and believes the truth when it has heard it twice.
                if trouble.kind is Kind.LIE and self.may_be_fooled(trouble):
                    self.disturb(*self.troubles, seconds=481.0)
                if trouble.kind is not Kind.LIE or self.may_be_fooled(trouble):
                    self.disturb(*whom, seconds=241.0 if trouble.kind is Kind.REFUSE else 0.0)
        self.check()

    def _stepped(self) -> None:
        """The kernel tells of a step of the wall clock (``TFD_TIMER_CANCEL_ON_SET``)."""
        self.controller.time_moved()

    def disturb(self, *clouds: str, seconds: float = 0.0) -> None:
        """The upstream of these clouds is not well now, nor for so many seconds more."""
        for health in self._health.values():
            if health.depends & set(clouds):
                health.well_since = max(health.well_since, self.time.elapsed() + seconds)

    # -- the invariants

    def check(self) -> None:
        """Look at what is served, now.

        Between two changes (of the store, of a clock, of the upstream) only time passes, and what that does is known:
        what is left shrinks by a second a second, and so does the promise, unless the upstream is well, when it stands.
        Until one of the two crosses the other, or what is left comes to nothing, there is nothing to see.
        """
        elapsed = self.time.elapsed()
        well = tuple(health.note(elapsed) for health in self._health.values())
        clocks = (round(self.clock.wall_error_seconds, 3), self.time.wall_error, self.time.paused)
        seen = (self.store.version, clocks, well, elapsed >= self.blind_until)
        if seen == self._seen and elapsed < self._sure_until:
            return
        self._seen = seen
        self._sure_until = float("inf")
        for cloud, health in self._health.items():
            self._sure_until = min(self._sure_until, elapsed + self._look(cloud, health, elapsed))
        if any(name.endswith(":internal") for name in self.controller.counters.failures):
            self.fail(Cloud.AWS, "an internal error")

    def _look(self, cloud: Cloud, health: _Health, elapsed: float) -> float:
        """Check one cloud; return for how many seconds it is sure to hold if nothing but the time changes."""
        now, true = self.clock.now(), self.time.true()
        answer, due = self.store.answer(cloud, now), health.promised_now(elapsed)
        was_to_end = self._served.get(cloud)
        if was_to_end is not None and due > timedelta():
            self._least(cloud, was_to_end - true)  # the last instant of what was served until now
        if not isinstance(answer, Live):
            self._served[cloud] = None
            if due > timedelta():
                self._least(cloud, timedelta())
                self.fail(cloud, f"a hole: expected {due} left, got {answer}")
            return float("inf")
        self._served[cloud] = end = self.end(answer.credential)
        left, told = end - true, answer.credential.expires_at - now
        if due > timedelta():
            self._least(cloud, left)
            if left < due:
                self.fail(cloud, f"expected {due} left, got {left}")
        if elapsed < self.blind_until:
            return 0.0
        if left <= timedelta():
            self.fail(cloud, f"served {-left} after its end")
        if cloud is Cloud.AWS and answer.credential.expires_at > end + timedelta(seconds=2):
            self.fail(cloud, f"told of an end at {answer.credential.expires_at}, while it is at {end}")
        if cloud is Cloud.GCP and told > left + timedelta(seconds=2):
            self.fail(cloud, f"told of {told}, while {left} was left")
        return (left - health.promise if health.well else left).total_seconds()

    def _least(self, cloud: Cloud, left: timedelta) -> None:
        self.least_left[cloud] = min(self.least_left.get(cloud, timedelta.max), left)

    def end(self, credential: Any) -> datetime:
        """Its end, by the cloud's own books."""
        if isinstance(credential, AwsCredential):
            ends = self.sts.principals[credential.access_key_id].ends
            assert ends is not None
            return ends
        return self.google.tokens[credential.access_token.reveal()].ends

    def check_calls(self) -> None:
        """That nobody was stormed."""
        for name, times in self.attempts.items():
            first = 0
            for last, at in enumerate(times):
                while times[first] < at - 60.0:
                    first += 1
                if last - first >= ATTEMPTS_A_MINUTE:
                    self.fail(Cloud.AWS, f"{last - first + 1} calls of {name} in the minute before {clock(at)}")
            bound = self.calls_bound(name)
            if len(times) > bound:
                self.fail(Cloud.AWS, f"expected at most {bound:.0f} calls of {name}, got {len(times)}")

    def calls_bound(self, name: str) -> float:
        """How many calls the schedule and the faults account for.

        Renewals come no faster than 0.75 x L/3. An outage is answered with the first tries of the backoff and then one
        every 30 s on average (bounded by one in 15); with less than a quarter of an hour left, one in 5 (bounded by one
        in 2.5).
        """
        shortest = min(self.plan.lifetime_seconds, GOOGLE_SECONDS)
        renewals = self.plan.hours * 3600 / (0.75 * shortest / 3) + 2
        slow = shortest >= 3600 - 1
        extra = 0.0
        for start, end, trouble in self.plan.windows():
            extra += 12
            if trouble.kind in OUTAGES or trouble.kind is Kind.LIE:
                minutes = (end - start) / 60
                extra += minutes * 4 + (max(minutes - 20, 0) if slow else minutes) * 24
            if trouble.kind is Kind.FLAKY:
                extra += (end - start) / 60
        return renewals + extra

    def fail(self, cloud: Cloud, what: str) -> NoReturn:
        recent = [
            f"  {clock(at)}  asks {name}"
            for name, times in self.attempts.items()
            for at in times
            if at > self.time.elapsed() - 7200
        ]
        slots = "\n".join(
            f"  {slot.cloud}:{slot.id}  ends {slot.expires_at}, next at {slot.renew_at}, {slot.attempts} failures"
            f"{', ' + slot.failure.message if slot.failure else ''}"
            for slot in statuses(self.store.state)
        )
        raise Broken(
            f"{cloud} at {clock(self.time.elapsed())} (true {self.time.true():%H:%M:%S}, ours {self.clock.now():%H:%M:%S}): {what}\n"
            f"{self.plan.timeline()}\nthe last two hours:\n" + "\n".join(sorted(recent)[-40:]) + f"\nslots:\n{slots}"
        )


class _Health:
    """What is promised of one cloud, from how its upstream has been."""

    def __init__(self, world: World, cloud: Cloud) -> None:
        self._world = world
        plan = world.plan
        self.depends = {str(cloud)}
        if cloud is Cloud.AWS and plan.aws is Aws.WEB_IDENTITY:
            self.depends.add("gcp")
        if cloud is Cloud.GCP and plan.google in (Google.FEDERATION, Google.FEDERATION_ACCOUNT):
            self.depends.add("aws")
        self.promise = promise(plan, cloud)
        depth = {Aws.ROLE_ON_ROLE: 3, Aws.ROLE_ON_KEYS: 2, Aws.ROLE_ON_MACHINE: 2}.get(plan.aws, 1)
        self.recovery_seconds = 60.0 * (depth if cloud is Cloud.AWS else 2) + 30.0
        if len(self.depends) > 1:
            # The other cloud's outage reaches this one's server, which words it as a refusal: retried more slowly.
            self.recovery_seconds += 240.0
        self.well_since = 0.0
        self.well = False
        self.held_at: float | None = None  # the last instant at which the whole promise was due

    def note(self, elapsed: float) -> bool:
        """Look at the upstream, ``elapsed`` seconds from the start; return whether it has been well for long enough."""
        troubles = self._world.troubles
        if any(t.kind is not Kind.LIE for name in self.depends for t in troubles[name]) or self._world.lied_to():
            self.well_since = elapsed
        self.well = elapsed - self.well_since >= self.recovery_seconds
        if self.well:
            self.held_at = elapsed
        return self.well

    def promised_now(self, elapsed: float) -> timedelta:
        """The least that must be left now; nothing (or less) when nothing is promised."""
        if self.held_at is None:
            return timedelta()
        return self.promise - timedelta(seconds=elapsed - self.held_at)


def plan_uses_machine(plan: Plan, cloud: Cloud) -> bool:
    return plan.aws is Aws.MACHINE if cloud is Cloud.AWS else plan.google is Google.MACHINE


def promise(plan: Plan, cloud: Cloud) -> timedelta:
    """The least life of what is served while the upstream is well."""
    if cloud is Cloud.AWS:
        seconds = float(plan.lifetime_seconds)
        if plan.aws is Aws.MACHINE:
            # Not ours to choose: EC2 replaces it every hour, and we look every five minutes.
            return timedelta(hours=4, minutes=50)
        if plan.aws in (Aws.ROLE_ON_ROLE, Aws.ROLE_ON_MACHINE):
            seconds = min(seconds, 3600.0)
        return timedelta(seconds=max(seconds * 2 / 3, seconds - 3600)) - SLACK
    if plan.google is Google.MACHINE:
        return timedelta(minutes=4)  # the real server replaces it no sooner than at five
    return timedelta(minutes=32) - SLACK


class _Wire:
    """The way out, without sockets: takes its time, loses requests and answers."""

    def __init__(self, world: World) -> None:
        self._world = world
        handlers: Mapping[str, Any] = {
            f"https://sts.{REGION}.amazonaws.com": world.sts,
            "https://oauth2.googleapis.com": world.google,
            "https://sts.googleapis.com": world.google,
            "https://iamcredentials.googleapis.com": world.google,
            BROKER: world.broker,
            EC2: world.ec2,
            GCE: world.gce,
        }
        self._net = InProcess(handlers)
        self._cloud = {origin: "gcp" if "google" in origin or origin == GCE else "aws" for origin in handlers}

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
        reach: Reach = Reach.CONFIGURED,
    ) -> UpstreamResponse:
        world, origin = self._world, origin_of(url)
        cloud = self._cloud[origin]
        self._count(origin, body or b"", url)
        await asyncio.sleep(world.rng.uniform(0.005, 1.0))
        match world.fault(cloud):
            case Fault.DOWN:
                raise UpstreamError(f"{origin} closed the connection", code="network")
            case Fault.HANG:
                if world.rng.random() < 0.5:  # it may have done what was asked, and the answer was lost
                    await self._net.request(method, url, headers=headers, body=body)
                await asyncio.sleep(timeout_seconds or 30.0)
                world.disturb(cloud)
                raise UpstreamError(f"{origin} did not answer in time", code="timeout")
        refused = world.refused(cloud) if origin in (BROKER, EC2, GCE) else None
        if refused is not None:
            return UpstreamResponse(refused.status, CIMultiDictProxy(CIMultiDict()), b"", None)
        asked_at = asyncio.get_running_loop().time()
        answer = await self._net.request(method, url, headers=headers, body=body)
        if origin == BROKER:
            for trouble in world.troubles[cloud]:
                if trouble.kind is Kind.LIE and answer.date is not None:
                    answer = replace(answer, date=answer.date + timedelta(hours=trouble.size_hours))
        if url.startswith("https:"):  # the machine's metadata is no network away
            await asyncio.sleep(world.rng.uniform(0.005, 1.0))
        witness = witness_of(origin, link=reach is Reach.LINK, chosen=reach is not Reach.PUBLIC)
        if witness is not None and answer.date is not None and not world.ignore_dates:
            took = asyncio.get_running_loop().time() - asked_at
            if world.clock.hear(witness, answer.date, took):
                world.controller.time_moved()
        return answer

    def _count(self, origin: str, body: bytes, url: str) -> None:
        if origin in (EC2, GCE) or b"GetCallerIdentity" in body:
            return
        what = body.partition(b"Action=")[2].partition(b"&")[0].decode() or url.rpartition("/")[2]
        if what == "AssumeRole":
            what += body.partition(b"role%2F")[2].partition(b"&")[0].decode()
        self._world.attempts.setdefault(f"{origin} {what}", []).append(self._world.time.elapsed())

    async def close(self) -> None:
        pass


class _Recorder:
    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        pass

    async def note(self, history: tuple[Entry, ...]) -> None:
        pass


def _bundle(grants: list[Grant], routes: dict[Cloud, str], now: datetime) -> Bundle:
    return Bundle(
        issuer="cp",
        subject="team",
        bundle_id="b1",
        seq=1,
        digest=hashlib.sha256(b"1").hexdigest(),
        action=Action.SET,
        issued_at=now,
        not_before=now,
        accept_until=now + timedelta(hours=1),
        lease_until=None,
        grants=tuple(grants),
        routes=routes,
        origin="push",
    )


@cache
def rsa_key() -> tuple[str, rsa.RSAPublicKey]:
    """One key for all runs: to make one costs more than a simulated day."""
    key = rsa.generate_private_key(65537, 2048)
    private: PrivateKeyTypes = key
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode(), key.public_key()


def simulate(plan: Plan, **options: Any) -> World:
    """Live through ``plan`` and return the world after it.

    Raises:
        Broken: an invariant did not hold.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    worlds: list[World] = []
    each_minute = notices.LOOK_AGAIN
    if not plan.clocks_go_wrong:
        notices.LOOK_AGAIN = SELDOM  # type: ignore[misc]

    async def main(loop: WarpLoop) -> None:
        worlds.append(World(loop, plan, **options))
        await worlds[0].live()

    try:
        run(main)
    finally:
        notices.LOOK_AGAIN = each_minute  # type: ignore[misc]
        structlog.reset_defaults()
    return worlds[0]

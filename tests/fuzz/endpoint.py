"""Two fuzzers of the workers' endpoint, over real sockets.

``bytes``: rows of the gate table and real SDK requests, cut, doubled, flipped and spliced, sent in random pieces.
``requests``: well-formed requests put together from the vocabulary of all dialects, in front of a view that changes
between its states and of real services that would give the machine's secrets away (:class:`Gullible`).

After each input it is true that:

* the connection ended, within the deadlines, with nothing or with one whole answer whose length is as it says;
* no answer is 500 and nothing was let through to the border of our code;
* the machine's own secrets were in no answer, and ours only where the request had what it takes;
* the listener still answers a plain request.

``python -m tests.fuzz.endpoint --seconds 3600 [--seed N] [--only bytes|requests]`` runs it for long; the same, for a second
each, is in the test suite.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import socket
import tomllib
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Self

from agent.core.model import Cloud
from agent.core.view import Ended, Facts, Origin, Pending
from agent.serve.endpoint import WorkerEndpoint
from agent.serve.intake import Intake
from agent.snapshot import Limits, ServeSettings
from agent.wire.ec2 import TokenKey
from tests.fakes.clock import START, FakeClock
from tests.fakes.upstreams import CANARY, Gullible
from tests.fakes.view import CONTAINER_TOKEN, KEY, FakeView, no_id_tokens, no_scoped

VECTORS = Path(__file__).parents[1] / "vectors/serve"
GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")
CONCURRENCY = 16
#: Nothing here may last longer: the head deadline, a hold and scheduling on a busy machine.
PATIENCE_SECONDS = 10.0


@dataclass
class Report:
    """What a run did and found."""

    inputs: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    slowest_seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def found(self, what: str, data: bytes) -> None:
        self.findings.append(f"{what}: {data[:2000]!r}")


class World:
    """A endpoint on a real port, its view, and the services behind it."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.ec2, self.gce = Gullible(), Gullible()
        settings = ServeSettings(
            token_key=KEY,
            ec2_hold_seconds=0.01,
            container_hold_seconds=0.01,
            gce_hold_seconds=0.01,
            limits=Limits(head_seconds=1.5, spared_seconds=0.1),
        )
        self.view = FakeView(settings)
        self.endpoint = WorkerEndpoint(
            self.view.served,
            FakeClock(),
            wall_ahead=timedelta,
            demand=no_id_tokens,
            scoped=no_scoped,
            ec2=self.ec2,
            gce=self.gce,
            broken=lambda _request, error: self.failures.append(error),
        )
        self.server: Intake | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self.server = self.endpoint.listen([socket.create_server(("127.0.0.1", 0), backlog=1024)])
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.server is not None
        self.server.close()
        await self.endpoint.listener.close(0.1)

    def turn(self, rng: random.Random) -> None:
        """Put the view in another state in which a bundle decides both clouds."""
        for cloud, live in ((Cloud.AWS, self.view.live_aws), (Cloud.GCP, self.view.live_gcp)):
            match rng.randrange(4):
                case 0:
                    self.view.set(cloud, Pending("waiting"))
                case 1:
                    self.view.set(cloud, Ended("over", passing=rng.random() < 0.5))
                case _:
                    live(START, origin=Origin.BUNDLE)
        facts = Facts("eu-west-1", "eu-west-1a", "123456789012", "7001", "p", "42", "europe-west1-b")
        self.view.set_facts(facts if rng.random() < 0.5 else Facts())


async def exchange(world: World, pieces: list[bytes], *, half_close: bool) -> bytes:
    """Send the pieces one by one on a connection of their own, and read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if half_close and not writer.is_closing():
            writer.write_eof()
        return await reader.read()  # to the end: a part of an answer is no answer
    except OSError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def evaluate(report: Report, data: bytes, answer: bytes, *, may_have_ours: bool) -> None:
    """The invariants of one exchange."""
    if CANARY.encode() in answer:
        report.found("the machine's secret was given away", data)
    if not may_have_ours and (b"ASIAEXAMPLE" in answer or b"ya29." in answer):
        report.found("a credential without what it takes", data)
    # Told to go on, a client may still leave: that is no answer, and none was due.
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        report.answers[0] = report.answers.get(0, 0) + 1
        return
    head, separator, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not separator or not lines[0].startswith(b"HTTP/1.1 "):
        report.found("not an answer", data + b" -> " + answer[:200])
        return
    status = int(lines[0].split(b" ")[1])
    report.answers[status] = report.answers.get(status, 0) + 1
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b": ")
        if name.lower() in fields and name.lower() in {b"content-length", b"connection", b"date"}:
            report.found("a header twice", data)
        fields[name.lower()] = value
    if status == 500:
        report.found("status 500", data)
    if fields.get(b"connection") != b"close" or b"content-length" not in fields:
        report.found("no framing", data)
    elif body and int(fields[b"content-length"]) != len(body):
        report.found("another length than it says", data + b" -> " + answer[:200])


# ---------------------------------------------------------------------------------------------------------------------


def corpus() -> list[bytes]:
    """Seeds: the gate's rows, and what SDKs send."""
    seeds = []
    for group in tomllib.loads((VECTORS / "gate.toml").read_text())["group"]:
        for row in group["rows"]:
            text = group["request"].replace("{}", row[0], 1).replace("{good}", GOOD)
            seeds.append(text.replace("\n", "\r\n").encode("latin-1"))
    seeds += [
        (
            b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept-Encoding: identity\r\nContent-Length: 0\r\n"
            b"x-aws-ec2-metadata-token-ttl-seconds: 21600\r\nUser-Agent: Botocore/1.44.5\r\n\r\n"
        ),
        b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n"
        b"x-aws-ec2-metadata-token: " + GOOD.encode() + b"\r\nConnection: keep-alive\r\n\r\n",
        (
            b"GET /computeMetadata/v1/instance/service-accounts/default/?recursive=true HTTP/1.1\r\n"
            b"Host: metadata.google.internal\r\nmetadata-flavor: Google\r\nx-goog-api-client: gl-python/3.11\r\n\r\n"
        ),
        (
            b"PUT /computeMetadata/v1/instance/guest-attributes/ns/key HTTP/1.1\r\nHost: metadata\r\n"
            b"Metadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ),
        b"GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + CONTAINER_TOKEN.encode() + b"\r\n\r\n",
    ]
    return seeds


SPICE = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b":", b"/", b"//", b"/../", b"%2e", b"%2f", b"%00", b"%", b"?", b"#",
    b";", b"\xff", b"\xc3\xa9", b"HTTP/1.1", b"HTTP/1.0", b"Host: localhost\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Content-Encoding: gzip\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1", b"A" * 9000, b"X: " + b"y" * 5000 + b"\r\n",
    b"http://", b"[::1]", b"@", b"GET ", b"PUT ", b"HEAD ", b"CONNECT ",
)  # fmt: skip


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """One seed, changed a few times."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 20)]
            case 2:
                data[at:at] = rng.choice(SPICE)
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 8))
            case 4:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case 5:
                data[at:at] = data[max(0, at - rng.randrange(1, 60)) : at]
            case _:
                del data[at:]
    return bytes(data[:300_000])


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """In pieces, as a network might."""
    if rng.random() < 0.4 or len(data) < 2:
        return [data]
    marks = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 6)))
    return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]


# ---------------------------------------------------------------------------------------------------------------------

WORDS = (
    "latest", "2021-07-15", "1.0", "meta-data", "iam", "security-credentials", "security-credentials-extended", "info",
    "reader", "api", "token", "user-data", "dynamic", "instance-identity", "document", "placement", "region", "spot",
    "identity-credentials", "ec2", "ec2-instance", "computeMetadata", "v1", "v1beta1", "instance", "project",
    "service-accounts", "default", "email", "scopes", "identity", "attributes", "credential-bundle", "fine",
    "credentials", "gce-workload-certificates", "guest-attributes", "universe", "universe-domain", "zone", "v2",
    CONTAINER_TOKEN, "reader@example-project.iam.gserviceaccount.com", "", "0.1", "..", ".", "x",
)  # fmt: skip
PATHS = (
    "/latest/meta-data/iam/security-credentials/reader", "/latest/user-data", "/latest/meta-data/iam/info",
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance", "/latest/api/token", "/",
    "/computeMetadata/v1/instance/service-accounts/default/token", "/computeMetadata/v1/instance/",
    "/computeMetadata/v1/instance/attributes/credential-bundle", "/computeMetadata/v1/", "/computeMetadata/v1/instance",
    "/computeMetadata/v1/project/attributes/credential-bundle", "/computeMetadata/v1/instance/attributes/",
    "/computeMetadata/v1/project/", "/computeMetadata/v1/instance/credentials/mds-client-certificate", "/v1/credentials",
    "/computeMetadata/v1/instance/gce-workload-certificates/workload-identities", "/v2/credentials/x",
)  # fmt: skip
QUERIES = (
    "recursive=true", "recursive=TRUE", "recursive=1", "Recursive=true", "recursive=false&recursive=true", "alt=json",
    "alt=text", "alt=Text", "wait_for_change=true", "timeout_sec=0", "timeout_sec=x", "last_etag=0", "audience=a",
    "audience=", "scopes=a,b", "%72ecursive=true", "recursive=%74rue", "x=y", "&&", "=", "recursive", "+", "%ff=1",
)  # fmt: skip


def spelt(path: str, rng: random.Random) -> str:
    """The same path, or nearly, as somebody with intent would write it."""
    if rng.random() < 0.5:
        return path
    letters = []
    for letter in path:
        dice = rng.random()
        if dice < 0.02:
            letters.append(f"%{ord(letter):02x}")
        elif dice < 0.03:
            letters.append(f"%25{ord(letter):02x}")
        elif dice < 0.04:
            letters.append(letter.swapcase())
        elif dice < 0.05 and letter == "/":
            letters.append(rng.choice(("//", "/./", "/x/../", "%2f", "%5c", "\\", "/%2e/", "/;/", ";a=b/")))
        else:
            letters.append(letter)
    return "".join(letters)


@dataclass(frozen=True)
class Structured:
    data: bytes
    may_have_ours: bool


def structured(rng: random.Random) -> Structured:
    """A request that most parsers would take, about things that matter."""
    if rng.random() < 0.6:
        path = spelt(rng.choice(PATHS), rng)
    else:
        path = spelt("/" + "/".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 7))), rng)
    if rng.random() < 0.2:
        path += rng.choice(("/", "//", ";x", "%00", "/.", "%20"))
    query = "&".join(rng.choice(QUERIES) for _ in range(rng.choice((0, 0, 1, 2, 3))))
    if "wait_for_change" in query:
        query += "&timeout_sec=0"
        query = query.replace("timeout_sec=x", "timeout_sec=0")
        if "timeout_sec=0" not in query.split("&"):
            query = ""
    method = rng.choice(("GET", "GET", "GET", "GET", "HEAD", "PUT", "DELETE", "POST", "OPTIONS"))
    headers: dict[str, str] = {
        "Host": rng.choice(("169.254.169.254", "metadata.google.internal", "127.0.0.1:1", "evil"))
    }
    has_token = rng.random() < 0.7
    if has_token:
        headers["X-aws-ec2-metadata-token"] = GOOD
    if rng.random() < 0.7:
        headers["Metadata-Flavor"] = "Google"
    if rng.random() < 0.3:
        headers["Authorization"] = CONTAINER_TOKEN
    if rng.random() < 0.3:
        headers["X-aws-ec2-metadata-token-ttl-seconds"] = rng.choice(("1", "21600", "0", "x"))
    if rng.random() < 0.05:
        headers[rng.choice(("X-Forwarded-For", "Origin", "Referer", "Sec-Fetch-Site"))] = "x"
    body = b""
    if method in {"PUT", "POST"} and rng.random() < 0.5:
        body = rng.randbytes(rng.randrange(100))
        headers["Content-Length"] = str(len(body))
    refused = headers["Host"] == "evil" or any(n in headers for n in ("X-Forwarded-For", "Origin", "Referer"))
    allowed = (
        has_token
        or "Metadata-Flavor" in headers
        or "Authorization" in headers
        or CONTAINER_TOKEN.casefold() in path.casefold()
    )
    target = path.replace(" ", "%20") + (f"?{query}" if query else "")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    data = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body
    return Structured(data, may_have_ours=allowed and not refused)


# ---------------------------------------------------------------------------------------------------------------------

# However busy the machine, a test sees so many.
_LEAST_INPUTS = 100

CANARY_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def fuzz(kind: str, seconds: float, seed: int, *, progress: bool = False) -> Report:
    """Run one of the fuzzers."""
    rng = random.Random(seed)
    report = Report()
    seeds = corpus()
    ends = monotonic() + seconds
    async with World() as world:
        world.turn(rng)

        def going_on() -> bool:
            return (monotonic() < ends or report.inputs < _LEAST_INPUTS) and len(report.findings) < 20

        async def one() -> None:
            if kind == "bytes":
                data, may, pieces = mutated(seeds, rng), True, []
                pieces = cut(data, rng)
            else:
                made = structured(rng)
                data, may, pieces = made.data, made.may_have_ours, [made.data]
            began = monotonic()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    answer = await exchange(world, pieces, half_close=kind == "bytes" and rng.random() < 0.95)
            except TimeoutError:
                report.found("a hang", data)
                return
            report.slowest_seconds = max(report.slowest_seconds, monotonic() - began)
            report.inputs += 1
            evaluate(report, data, answer, may_have_ours=may)

        async def worker() -> None:
            while going_on():
                await one()

        async def controller() -> None:
            said = monotonic()
            while going_on():
                await asyncio.sleep(0.05)
                if kind == "requests":
                    world.turn(rng)
                    world.ec2.asked.clear()
                    world.gce.asked.clear()
                answer = await exchange(world, [CANARY_REQUEST], half_close=False)
                if not answer.startswith(b"HTTP/1.1 200"):
                    report.found("a plain request went wrong", answer)
                if world.failures:
                    report.findings.extend(f"exception: {error!r}" for error in world.failures)
                    world.failures.clear()
                if progress and monotonic() - said > 60:
                    said = monotonic()
                    print(f"{kind}: {summary(report)}", *report.findings, sep="\n  ", flush=True)

        await asyncio.gather(controller(), *(worker() for _ in range(CONCURRENCY)))
        # Each connection ends by a deadline of its own: of the request that never came whole, or of the answer unread.
        limits = world.endpoint.listener.limits
        gone = monotonic() + limits.head_seconds + limits.unread_seconds + 2.0
        while world.endpoint.listener.connections and monotonic() < gone:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.1)
        if world.endpoint.listener.connections:
            report.findings.append(f"{world.endpoint.listener.connections} connections were left open")
    return report


def summary(report: Report) -> str:
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    statuses = " ".join(f"{status}:{count}" for status, count in sorted(report.answers.items()))
    return (
        f"{report.inputs} inputs, {len(report.findings)} findings, slowest {report.slowest_seconds:.2f} s, "
        f"most resident {rss} MB, answers {statuses}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.endpoint", description="fuzz the workers' endpoint")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--only", choices=("bytes", "requests"))
    given: Any = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    kinds = [given.only] if given.only else ["bytes", "requests"]
    bad = 0
    for kind in kinds:
        print(f"{kind}: seed {seed}, {given.seconds / len(kinds):.0f} s", flush=True)
        report = asyncio.run(fuzz(kind, given.seconds / len(kinds), seed, progress=True))
        print(f"{kind}: {summary(report)}", flush=True)
        for finding in report.findings:
            print("  " + finding, flush=True)
        bad += len(report.findings)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

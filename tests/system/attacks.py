"""A hostile worker: every way we know of to take from others what is theirs, at full effort.

A program of its own, with the standard library alone, run as another user::

    python tests/system/attacks.py KIND HOST:PORT UID [SOCKETS]

It says ``on`` once it is at work and goes on until its standard input ends. :data:`KINDS` lists what it can.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - before it becomes another user, who may not read this interpreter
import itertools
import os
import resource
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator

Address = tuple[str, int]
HOST = b"Host: 169.254.169.254\r\n"
TOKEN = b"PUT /latest/api/token HTTP/1.1\r\n" + HOST + b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"
GCE = b"GET /computeMetadata/v1/%s HTTP/1.1\r\n" + HOST + b"Metadata-Flavor: Google\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def endless(head: bytes, piece: bytes) -> Callable[[Address, int], None]:
    """As many sockets as given; on each ``head``, then ``piece`` without end; a new one for each that is closed."""

    def attack(address: Address, sockets: int) -> None:
        block = piece * max(1, 65536 // len(piece))
        poll, held = select.poll(), {}

        def fresh() -> None:
            sock = _connect(address)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(head)
                sock.setblocking(False)
                held[sock.fileno()] = sock
                poll.register(sock, select.POLLOUT)

        for _ in range(sockets):
            fresh()
        _on()
        while True:
            for number, _ in poll.poll(100):
                try:
                    held[number].send(block)
                except BlockingIOError:
                    continue
                except OSError:
                    poll.unregister(number)
                    held.pop(number).close()
                    fresh()
            while len(held) < sockets:
                fresh()

    return attack


def held(data: bytes | Callable[[], Iterator[bytes]], *, read: bool = False) -> Callable[[Address, int], None]:
    """As many sockets as given, each with ``data`` and then nothing; a new one for each that is closed."""

    def attack(address: Address, sockets: int) -> None:
        pieces = data() if callable(data) else itertools.repeat(data)
        poll, kept = select.poll(), {}

        def fresh() -> None:
            sock = _connect(address)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(next(pieces))
                kept[sock.fileno()] = sock
                poll.register(sock, select.POLLIN if read else select.POLLHUP)

        for _ in range(sockets):
            fresh()
        _on()
        while True:
            for number, _ in poll.poll(100):
                sock = kept[number]
                with contextlib.suppress(OSError):
                    if read and sock.recv(1 << 20, socket.MSG_DONTWAIT):
                        continue
                poll.unregister(number)
                del kept[number]
                sock.close()
                fresh()
            while len(kept) < sockets:
                fresh()

    return attack


def churn(data: bytes, *, reset: bool, half: bool = False) -> Callable[[Address, int], None]:
    """Connections that are left as soon as their request is sent: closed, reset, or with their own side ended."""

    def attack(address: Address, sockets: int) -> None:
        kept: list[socket.socket] = []
        _on()
        while True:
            sock = _connect(address)
            if sock is None:
                continue
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(data)
                if half:
                    sock.shutdown(socket.SHUT_WR)
            if not half:
                sock.close()
                continue
            _keep(kept, sock, sockets)

    return attack


def _read_a_byte_of_each(kept: list[socket.socket]) -> None:
    """And let go of those that have ended."""
    for sock in list(kept):
        try:
            if sock.recv(1):
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        sock.close()
        kept.remove(sock)


def slow_reader(address: Address, sockets: int) -> None:
    """Large answers, of which a byte is read at a time."""
    kept: list[socket.socket] = []
    _on()
    while True:
        while len(kept) < sockets:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            try:
                sock.connect(address)
                sock.sendall(GCE % b"instance/attributes/large")
            except OSError:
                sock.close()
                continue
            sock.setblocking(False)
            kept.append(sock)
        _read_a_byte_of_each(kept)


def resets(address: Address, _sockets: int) -> None:
    """Connections that are reset as soon as they are there."""
    _on()
    while True:
        sock = _connect(address)
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def dripping(address: Address, sockets: int) -> None:
    """Heads that come byte by byte, as fast as bytes can."""
    head = b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 8000
    kept: dict[socket.socket, int] = {}  # and how far each has come
    _on()
    while True:
        while len(kept) < sockets:
            sock = _connect(address)
            if sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                kept[sock] = 0
        for one, at in list(kept.items()):
            try:
                one.send(head[at : at + 1])
                kept[one] = at + 1
            except OSError:
                one.close()
                del kept[one]


def begun(address: Address, _sockets: int) -> None:
    """As many connections under way as there are descriptors for, and a new one for each that comes to anything."""
    poll, kept = select.poll(), {}
    most = max(100, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 50)

    def fresh() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        kept[sock.fileno()] = sock
        poll.register(sock, select.POLLOUT)

    _on()
    while True:
        for _ in range(min(256, most - len(kept))):
            fresh()
        for number, _ in poll.poll(0):
            poll.unregister(number)
            kept.pop(number).close()


def bursts(address: Address, sockets: int) -> None:
    """Silence, then many whole requests in one moment, again and again: what is owed after a rest, taken at once."""
    _on()
    while True:
        made = []
        for _ in range(5 * sockets):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            made.append(sock)
        for sock in made:
            with contextlib.suppress(OSError):
                sock.send(GCE % b"instance/tags/x")
        for sock in made:
            with contextlib.suppress(OSError):
                sock.recv(4096)
            sock.close()
        select.select([], [], [], 0.5)


def urgent(address: Address, sockets: int) -> None:
    """Heads in the middle of which urgent data stands, without end (RFC 9293 section 3.8.5)."""
    kept: list[socket.socket] = []
    _on()
    while True:
        while len(kept) < sockets:
            sock = _connect(address)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"X: ")
                sock.setblocking(False)
                kept.append(sock)
        for sock in list(kept):
            try:
                sock.send(b"!", socket.MSG_OOB)
            except BlockingIOError:
                continue
            except OSError:
                sock.close()
                kept.remove(sock)


def elsewhere(address: Address, sockets: int) -> None:
    """Each request comes from another address of loopback, of which there are sixteen million."""
    kept: list[socket.socket] = []
    _on()
    for number in itertools.count(1):
        sock = socket.socket()
        with contextlib.suppress(OSError):
            if address[0].startswith("127."):
                sock.bind((f"127.{number >> 16 & 127 | 1}.{number >> 8 & 255}.{number & 255}", 0))
            sock.connect(address)
            sock.sendall(GCE % b"instance/x%d?wait_for_change=true" % number)
        _keep(kept, sock, sockets)


def mapped(address: Address, sockets: int) -> None:
    """Requests from sockets of IPv6 that speak IPv4 (RFC 4291 section 2.5.5.2), which the kernel keeps in another table."""
    kept: list[socket.socket] = []
    _on()
    for number in itertools.count():
        sock = socket.socket(socket.AF_INET6)
        with contextlib.suppress(OSError):
            sock.connect((f"::ffff:{address[0]}", address[1]))
            sock.sendall(GCE % b"instance/x%d?wait_for_change=true" % number)
        _keep(kept, sock, sockets)


def same_ports(address: Address, sockets: int) -> None:
    """From each port to several of the addresses that are led to the agent: whose a connection is can be told by none."""
    kept: list[socket.socket] = []
    addresses = [address, *((host, 80) for host in ("169.254.170.2", "169.254.170.23") if address[1] == 80)]
    _on()
    for number in itertools.count():
        port = 10000 + number % 20000
        for to in addresses:
            sock = socket.socket()
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", port))
                sock.connect(to)
                sock.sendall(GCE % b"instance/x%d?wait_for_change=true" % number)
            _keep(kept, sock, sockets)


def fast_open(address: Address, sockets: int) -> None:
    """Requests that the first packet of a connection already has (RFC 7413), where the kernel lets it."""
    kept: list[socket.socket] = []
    _on()
    for number in itertools.count():
        sock = socket.socket()
        with contextlib.suppress(OSError):
            sock.sendto(GCE % (b"instance/x%d?wait_for_change=true" % number), socket.MSG_FASTOPEN, address)
        _keep(kept, sock, sockets)


def datagrams(address: Address, _sockets: int) -> None:
    """Packets of another protocol, to every port there: each is refused, or is the resolver's and the clock's."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    data = b"q" * 1200
    _on()
    for port in itertools.cycle((80, 443, 53, 123, 8080, 1)):
        with contextlib.suppress(OSError):
            sock.sendto(data, (address[0], port))


def diagnosis(address: Address, sockets: int) -> None:
    """Many connections, and the kernel asked about all of them without end (sock_diag(7)): the agent asks it too."""
    kept = [sock for _ in range(sockets) if (sock := _connect(address)) is not None]
    asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)  # NETLINK_SOCK_DIAG
    body = struct.pack("=BBBBI48s", socket.AF_INET, socket.IPPROTO_TCP, 0xFF, 0, 0xFFF, bytes(48))
    _on()
    while kept:
        asking.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)  # NLM_F_REQUEST | NLM_F_DUMP
        with contextlib.suppress(OSError):
            while struct.unpack_from("=H", asking.recv(1 << 16), 4)[0] != 3:  # NLMSG_DONE
                pass


def in_flight(address: Address, sockets: int) -> None:
    """Sockets that are on their way in sockets that are on their way: what the kernel has to look through, or let go of."""
    _on()
    while True:
        kept, sock = [], _connect(address)
        with contextlib.suppress(OSError):
            for _ in range(sockets):
                one, other = socket.socketpair()
                socket.send_fds(one, [b"x"], [other.fileno(), one.fileno(), *([] if sock is None else [sock.fileno()])])
                kept += [one, other]
        for one in kept:
            one.close()


def changing(address: Address, sockets: int) -> None:
    """Everybody waits for a change of a directory, and something in it changes again and again."""
    kept: list[socket.socket] = []
    wait = GCE % b"instance/?recursive=true&wait_for_change=true"
    writes = guests()
    _on()
    while True:
        while len(kept) < sockets:
            sock = _connect(address)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(wait)
                sock.setblocking(False)
                kept.append(sock)
        sock = _connect(address)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.sendall(next(writes))
                sock.recv(1000)
            sock.close()
        for sock in list(kept):
            try:
                if sock.recv(1 << 20):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            sock.close()
            kept.remove(sock)


def half_read(address: Address, _sockets: int) -> None:
    """Answers of which one byte is read: then the connection is reset."""
    _on()
    while True:
        sock = _connect(address)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(GCE % b"instance/attributes/large")
                sock.recv(1)
            sock.close()


def multipath(address: Address, sockets: int) -> None:
    """Requests from sockets of multipath TCP, whose packets have no owner on some kernels."""
    kept: list[socket.socket] = []
    _on()
    for number in itertools.count():
        sock = socket.socket(proto=socket.IPPROTO_MPTCP)
        with contextlib.suppress(OSError):
            sock.connect(address)
            sock.sendall(GCE % b"instance/x%d?wait_for_change=true" % number)
        _keep(kept, sock, sockets)


def tiny_segments(address: Address, sockets: int) -> None:
    """Answers that must be sent in pieces of a few bytes, into buffers that hold hardly any, and are read by bytes."""
    kept: list[socket.socket] = []
    _on()
    while True:
        while len(kept) < sockets:
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.settimeout(5)
            with contextlib.suppress(OSError):
                sock.connect(address)
                sock.sendall(GCE % b"instance/?recursive=true")
            sock.setblocking(False)
            kept.append(sock)
        _read_a_byte_of_each(kept)


def bodies_by_bytes(address: Address, sockets: int) -> None:
    """Bodies that are waited for, asked for by ``Expect``, and come byte by byte."""
    head = b"PUT /computeMetadata/v1/instance/guest-attributes/a/b HTTP/1.1\r\n" + HOST
    head += b"Metadata-Flavor: Google\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n"
    kept: list[socket.socket] = []
    _on()
    while True:
        while len(kept) < sockets:
            sock = _connect(address)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(head)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                kept.append(sock)
        for sock in list(kept):
            try:
                sock.send(b"v")
            except BlockingIOError:
                continue
            except OSError:
                sock.close()
                kept.remove(sock)


def names() -> Iterator[bytes]:
    """A credential each time, for a program that is never called the same: what is written down of it has no end."""
    head = (GCE % b"instance/service-accounts/default/token").removesuffix(b"\r\n")
    return (head + b"User-Agent: %s/%d\r\n\r\n" % (b"n" * 200, number) for number in itertools.count())


def thousands() -> Iterator[bytes]:
    """A thousand whole requests in one piece."""
    return (
        b"".join(GCE % (b"instance/tags/x%d" % number) for number in range(first, first + 1000))
        for first in itertools.count(step=1000)
    )


#: What a client of TLS says first (RFC 8446 section 4.1.2), as far as a server that speaks none looks.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\x20" + bytes(32) + b"\x00\x02\x13\x01\x01\x00"


def lives() -> Iterator[bytes]:
    """Session tokens for every length that there is: no two answers are the same."""
    put = b"PUT /latest/api/token HTTP/1.1\r\n" + HOST + b"X-aws-ec2-metadata-token-ttl-seconds: %d\r\n\r\n"
    return (put % (number % 21600 + 1) for number in itertools.count())


def fields() -> Iterator[bytes]:
    """Long names of fields, never the same."""
    return (
        b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"x%d-%02d-%s: a\r\n" % (n, m, b"n" * 190) for m in range(60)) + b"\r\n"
        for n in itertools.count()
    )


def audiences() -> Iterator[bytes]:
    path = b"instance/service-accounts/default/identity?audience=https://a%d.example"
    return (GCE % (path % number) for number in itertools.count())


def paths() -> Iterator[bytes]:
    return (GCE % (b"instance/tags/x%d" % number) for number in itertools.count())


def queries() -> Iterator[bytes]:
    """Large directories under queries that are long, and never the same."""
    return (GCE % (b"instance/?recursive=true&x%d=%s" % (n, b"y" * 6000)) for n in itertools.count())


def scopes() -> Iterator[bytes]:
    path = b"instance/service-accounts/default/token?scopes=https://www.googleapis.com/auth/s%d"
    return (GCE % (path % n) for n in itertools.count())


def polls() -> Iterator[bytes]:
    return (GCE % (b"instance/x%d?wait_for_change=true" % number) for number in itertools.count())


def forged() -> Iterator[bytes]:
    """Session tokens that are nearly right: each is verified."""
    token = b"X-aws-ec2-metadata-token: AQAAA%051d\r\n\r\n"
    return (
        b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n" + HOST + token % n for n in itertools.count()
    )


def guests() -> Iterator[bytes]:
    """Guest attributes: what a worker may write to the real service."""
    put = b"PUT /computeMetadata/v1/instance/guest-attributes/a/k%d HTTP/1.1\r\n" + HOST
    put += b"Metadata-Flavor: Google\r\nContent-Length: 4000\r\n\r\n" + b"v" * 4000
    return (put % n for n in itertools.count())


def spellings() -> Iterator[bytes]:
    """Never the same target or host twice: nothing that is remembered is of use."""
    return (
        b"GET /%%6c%d/?x=%d HTTP/1.1\r\nHost: 127.0.0.%d:%d\r\n\r\n" % (n, n, n % 250 + 1, n % 60000)
        for n in itertools.count()
    )


KINDS: dict[str, Callable[[Address, int], None]] = {
    "one-byte-chunks": endless(TOKEN + CHUNKED, b"1\r\nx\r\n"),
    "attribute-chunks": endless(
        b"PUT /computeMetadata/v1/instance/guest-attributes/a/b HTTP/1.1\r\n"
        + HOST
        + b"Metadata-Flavor: Google\r\n"
        + CHUNKED,
        b"1\r\nx\r\n",
    ),
    "extensions": endless(TOKEN + CHUNKED + b"1;", b"e" * 1000),
    "trailers": endless(TOKEN + CHUNKED + b"0\r\n", b"T: r\r\n"),
    "announced": endless(TOKEN + b"Content-Length: 1000000000\r\n\r\n", b"x" * 1000),
    "tiny-headers": endless(TOKEN, b"a:\r\n"),
    "endless-head": endless(TOKEN + b"X: ", b"y" * 1000),
    "pipelined": endless(b"", TOKEN + b"\r\n"),
    "garbage": endless(b"", b"\x16\x03\x01\x02\x00\x01"),
    "dripping": dripping,
    "resets": resets,
    "abandoned": churn(GCE % b"instance/tags/x", reset=False),
    "reset-requests": churn(TOKEN + b"\r\n", reset=True),
    "half-closed": churn(GCE % b"instance/x?wait_for_change=true", reset=False, half=True),
    "slow-reader": slow_reader,
    "http2": held(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), read=True),
    "long-queries": held(queries, read=True),
    "scopes": held(scopes, read=True),
    "idle": held(b""),
    "half-heads": held(TOKEN + b"X: " + b"y" * 8000 + b"\r\nZ: " + b"z" * 7000),
    "half-bodies": held(TOKEN + b"Content-Length: 1000\r\n\r\nab"),
    "expecting": held(TOKEN + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"),
    "never-reading": held(GCE % b"instance/attributes/large"),
    "recursive": held(GCE % b"instance/?recursive=true", read=True),
    "recursive-text": held(GCE % b"instance/?recursive=true&alt=text", read=True),
    "tokens": held(TOKEN + b"\r\n", read=True),
    "heads": held((TOKEN + b"\r\n").replace(b"PUT", b"HEAD"), read=True),
    "spellings": held(spellings, read=True),
    "our-polls": held(GCE % b"instance/service-accounts/default/email?wait_for_change=true", read=True),
    "their-polls": held(polls, read=True),
    "paths": held(paths, read=True),
    "audiences": held(audiences, read=True),
    "begun": begun,
    "bursts": bursts,
    "forged": held(forged, read=True),
    "bearers": held(
        b"GET /v1/credentials HTTP/1.1\r\n" + HOST + b"Authorization: " + b"w" * 4000 + b"\r\n\r\n", read=True
    ),
    "guest-attributes": held(guests, read=True),
    "preflights": held(
        b"OPTIONS /latest/meta-data/ HTTP/1.1\r\n" + HOST + b"Origin: http://a.example\r\n\r\n", read=True
    ),
    "full-heads": held(TOKEN + b"".join(b"X-%02d: %s\r\n" % (n, b"z" * 100) for n in range(60)) + b"\r\n", read=True),
    "upgrades": held(
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", read=True
    ),
    "recursive-json": held(GCE % b"instance/attributes/?recursive=true&alt=json", read=True),
    "instant-polls": held(GCE % b"instance/?recursive=true&wait_for_change=true&timeout_sec=0", read=True),
    "urgent": urgent,
    "elsewhere": elsewhere,
    "mapped": mapped,
    "half-read": half_read,
    "multipath": multipath,
    "tiny-segments": tiny_segments,
    "bodies-by-bytes": bodies_by_bytes,
    "names": held(names, read=True),
    "thousands": held(thousands, read=True),
    "hello": held(HELLO, read=True),
    "ended-at-once": churn(b"", reset=False, half=True),
    "left-polls": churn(GCE % b"instance/x?wait_for_change=true", reset=True),
    "left-mints": churn(GCE % b"instance/service-accounts/default/identity?audience=a", reset=True),
    "lives": held(lives, read=True),
    "fields": held(fields, read=True),
    "kept-alive": endless(b"", (GCE % b"instance/id").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")),
    "same-ports": same_ports,
    "fast-open": fast_open,
    "datagrams": datagrams,
    "diagnosis": diagnosis,
    "in-flight": in_flight,
    "changing": changing,
    "stale-etags": held(GCE % b"instance/service-accounts/?recursive=true&wait_for_change=true&last_etag=0", read=True),
}


def _connect(address: Address) -> socket.socket | None:
    try:
        return socket.create_connection(address, timeout=5)
    except OSError:
        return None


_said = threading.Event()


def _keep(kept: list[socket.socket], sock: socket.socket, sockets: int) -> None:
    """Hold it open; above so many the oldest is closed."""
    kept.append(sock)
    if len(kept) > sockets:
        kept.pop(0).close()


def _on() -> None:
    if not _said.is_set():
        _said.set()
        print("on", flush=True)


def main() -> None:
    kind, user = sys.argv[1], int(sys.argv[3])
    host, _, port = sys.argv[2].rpartition(":")
    sockets = int(sys.argv[4]) if len(sys.argv) > 4 else 200
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    threading.Thread(target=KINDS[kind], args=((host, int(port)), sockets), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

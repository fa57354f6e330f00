"""Proves what can happen to a link and a NAT at run time, by plain sockets at both of its ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from .lab import Lab
from .profiles import ACCESS_DELAY_MS, SERVER_DELAY_MS
from .sockets import WAIT_S, Address, receive
from .topology import PROBES

PACKETS: Final = 300
BATCH: Final = 50
DELAY_MS: Final = ACCESS_DELAY_MS + SERVER_DELAY_MS
LATE_MS: Final = 15.0
"""By how much a busy machine may hold a packet back."""
RATE_BPS: Final = 800_000
OVERHEAD: Final = 28
"""Bytes of the IPv4 and UDP headers, which a link's rate and MTU count."""
# The socket module has no names for these of Linux.
IP_MTU_DISCOVER, PMTUDISC_DO = 10, 2
SO_TIMESTAMPNS: Final = 35


@dataclass
class Finding:
    """What one impairment did.

    Attributes:
        name: of the impairment.
        found: in words.
        right: whether that is what it should do.

    """

    name: str
    found: str
    right: bool


@dataclass
class Arrival:
    """One packet that came: its number, and how long it was under way."""

    number: int
    ms: float
    at: float


class Bench:
    """A host behind a NAT, and a server; a packet from one to the other takes ``DELAY_MS``."""

    def __init__(self, lab: Lab, host: socket.socket, server: socket.socket) -> None:
        self.lab = lab
        self.host = host
        self.server = server
        self.target: Address = server.getsockname()[:2]
        # The kernel notes when a packet came; this process may look later.
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    @contextlib.contextmanager
    def impaired(self, **params: Any) -> Iterator[None]:
        """Impair the host's way out; a name's plain value is 0, or what ``normal`` says."""
        normal = {name: False if value is True else 0 for name, value in params.items()}
        normal.update({name: True for name in ("mtu_icmp",) if name in params})
        normal.update({name: 5 for name in ("reorder_ms",) if name in params})
        self.lab.set_link("a", "out", **params)
        try:
            yield
        finally:
            self.lab.set_link("a", "out", **normal)

    def stream(self, count: int = PACKETS, size: int = 40, gap_s: float = 0.001) -> list[Arrival]:
        """Send numbered packets; return what came, in the order of arrival."""
        sent: list[float] = []
        started = time.monotonic()
        for number in range(count):
            sent.append(time.time())
            self.host.sendto(b"%d" % number + b" " * size, self.target)
            time.sleep(max(started + (number + 1) * gap_s - time.monotonic(), 0))
        came: list[Arrival] = []
        self.server.settimeout(WAIT_S)
        with contextlib.suppress(TimeoutError):
            while True:
                data, ((_, _, stamp),), _, _ = self.server.recvmsg(2048, 64)
                seconds, nanos = struct.unpack("=qq", stamp)
                at, number = seconds + nanos / 1e9, int(data)
                came.append(Arrival(number, (at - sent[number]) * 1000, at))
        return came

    def source(self, size: int = 5) -> Address | None:
        """Send a packet out; return the source that the server sees."""
        self.host.sendto(bytes(size), self.target)
        came = receive([self.server], WAIT_S, 1)
        return came[0][2] if came else None

    def comes_in(self, outside: Address) -> bool:
        """Tell whether the server reaches the host there."""
        self.server.sendto(b"in", outside)
        return bool(receive([self.host], WAIT_S, 1))


def _swaps(came: list[Arrival]) -> int:
    """Return how many packets came after one that was sent later."""
    highest, swaps = -1, 0
    for arrival in came:
        swaps += arrival.number < highest
        highest = max(highest, arrival.number)
    return swaps


def jitter(bench: Bench) -> Iterator[Finding]:
    """±10 ms, in order and, when told, out of order."""
    for free in (False, True):
        with bench.impaired(jitter_ms=10, **({"jitter_reorder": True} if free else {})):
            came = bench.stream()
        times = [arrival.ms for arrival in came]
        low, high = (min(times), max(times)) if times else (0.0, 0.0)
        swaps = _swaps(came)
        # Uniform over 20 ms: the ends are nearly reached; what may not overtake comes later.
        right = low >= DELAY_MS - 11 and high <= DELAY_MS + 10 + LATE_MS and high - low >= 12
        right = right and len(came) == PACKETS and (swaps > PACKETS / 10 if free else not swaps)
        name = "jitter 10 ms, reordering" if free else "jitter 10 ms"
        yield Finding(name, f"{low:.1f} to {high:.1f} ms, {swaps} overtaken", right)


def reordering(bench: Bench) -> Iterator[Finding]:
    """A fifth of the packets are held back."""
    with bench.impaired(reorder=0.2, reorder_ms=20):
        came = bench.stream()
    share = _swaps(came) / PACKETS
    right = len(came) == PACKETS and 0.1 <= share <= 0.3
    yield Finding("reordering 20 %", f"{share:.0%} overtaken", right)


def duplication(bench: Bench) -> Iterator[Finding]:
    """Three of ten packets come twice."""
    with bench.impaired(duplicate=0.3):
        came = bench.stream()
    numbers = [arrival.number for arrival in came]
    twice = len(numbers) - len(set(numbers))
    right = len(set(numbers)) == PACKETS and 0.2 <= twice / PACKETS <= 0.4
    yield Finding("duplication 30 %", f"{twice / PACKETS:.0%} came twice", right)


def bursts(bench: Bench) -> Iterator[Finding]:
    """Of a bad spell's packets all are lost: one in seven, four in a row on average."""
    with bench.impaired(burst_p=1 / 24, burst_r=1 / 4):
        came = {arrival.number for arrival in bench.stream(3 * PACKETS)}
    gaps = [after - before - 1 for before, after in pairwise(sorted(came))]
    runs = [gap for gap in gaps if gap]
    lost = 1 - len(came) / (3 * PACKETS)
    mean = statistics.mean(runs) if runs else 0.0
    right = 0.07 <= lost <= 0.23 and 2.5 <= mean <= 6
    yield Finding("loss 14 % in bursts of 4", f"{lost:.0%}, bursts of {mean:.1f}", right)


def rate(bench: Bench) -> Iterator[Finding]:
    """A slow link, and a queue that overflows."""
    size, count = 1000, 60
    with bench.impaired(rate_bps=RATE_BPS):
        came = bench.stream(count, size, 0)
    spent = came[-1].at - came[0].at if came else 0.0
    sent = sum(len(b"%d" % number) + size + OVERHEAD for number in range(1, count))
    found = sent * 8 / spent if spent else 0.0
    right = len(came) == count and 0.9 * RATE_BPS <= found <= 1.05 * RATE_BPS
    yield Finding(f"rate {RATE_BPS // 1000} kbit/s", f"{found / 1000:.0f} kbit/s", right)
    bench.lab.set_link("a", "out", queue_bytes=10_000)
    with bench.impaired(rate_bps=RATE_BPS):
        came = bench.stream(count, size, 0)
    bench.lab.set_link("a", "out", queue_bytes=150_000)
    # Ten of a burst fit, and one or two leave while it is being sent.
    yield Finding("queue of 10 kB", f"{len(came)} of {count} packets fit", 8 <= len(came) <= 20)


def mtu(bench: Bench) -> Iterator[Finding]:
    """A narrow link that says nothing, then one that tells the sender."""
    bench.host.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    for tells in (False, True):
        with bench.impaired(mtu=1000, mtu_icmp=tells):
            fits = bench.source(1000 - OVERHEAD) is not None
            through = bench.source(1001 - OVERHEAD) is not None
            told = False
            try:
                bench.source(1001 - OVERHEAD)
            except OSError:  # EMSGSIZE: the kernel has learnt the path's MTU
                told = True
        name = "MTU 1000 with ICMP" if tells else "MTU 1000, black hole"
        words = f"1000 {'passes' if fits else 'lost'}, 1001 {'passes' if through else 'lost'}"
        words += ", sender told" if told else ""
        yield Finding(name, words, fits and not through and told is tells)
    bench.host.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)


def cut(bench: Bench) -> Iterator[Finding]:
    """A link that is cut and mended, both ways and one way; the NAT remembers."""
    before = bench.source()
    bench.lab.cut("a")
    gone = bench.source() is None
    bench.lab.restore("a")
    back = bench.source()
    bench.lab.cut("a", "in")
    one_way = bench.source() == before and back is not None and not bench.comes_in(back)
    bench.lab.restore("a")
    again = back is not None and bench.comes_in(back)
    words = f"nothing while cut: {gone}; one way: {one_way}; again, from the same port: {again}"
    right = gone and one_way and again and before is not None and back == before
    yield Finding("link cut and restored", words, right)


def reboot(bench: Bench) -> Iterator[Finding]:
    """Mappings are forgotten; new ones are made."""
    before = bench.source()
    held = before is not None and bench.comes_in(before)
    bench.lab.reboot_nat("a")
    forgotten = before is not None and not bench.comes_in(before)
    after = bench.source()
    again = after is not None and bench.comes_in(after)
    words = f"came in before: {held}; not after: {forgotten}; with a new mapping: {again}"
    yield Finding("NAT reboot", words, held and forgotten and again)


def address(bench: Bench) -> Iterator[Finding]:
    """The NAT gets another public address; the old one is dead."""
    before = bench.source()
    named = bench.lab.change_address("a")
    dead = before is not None and not bench.comes_in(before)
    after = bench.source()
    again = after is not None and bench.comes_in(after)
    seen = [source[0] if source else "nothing" for source in (before, after)]
    right = dead and again and seen[0] != seen[1] == named
    yield Finding("address change", f"{seen[0]} → {seen[1]}; old one dead: {dead}", right)


def captive(bench: Bench) -> Iterator[Finding]:
    """A portal answers TCP for everybody, in TLS too, and UDP not at all; until the login."""
    target = (PROBES[0], 7003)
    bench.lab.captive("a")
    plain = exchange(bench.lab, target, b"hello\n")
    name = tls_name(bench.lab, target)
    silent = bench.source() is None
    bench.lab.login("a")
    after = exchange(bench.lab, target, b"hello\n")
    back = bench.source() is not None
    words = f"{plain[:12]!r}, TLS by {name}, UDP lost: {silent}; after the login {after!r}, {back}"
    right = plain.startswith(b"HTTP/1.1 302") and name == "a stranger" and silent
    yield Finding("captive portal", words, right and after == b"refused" and back)


def exchange(lab: Lab, target: Address, data: bytes) -> bytes:
    """Return what host a gets from a TCP port where nobody listens, after it has sent something."""
    with lab.a.socket(socket.SOCK_STREAM) as sock:
        sock.settimeout(3 * WAIT_S)
        try:
            sock.connect(target)
            sock.sendall(data)
            return sock.recv(4096)
        except ConnectionRefusedError:
            return b"refused"
        except OSError as error:
            return repr(error).encode()


def tls_name(lab: Lab, target: Address) -> str:
    """Return who speaks TLS there: ``nobody``, or ``a stranger`` whose authority is not known."""
    with lab.a.socket(socket.SOCK_STREAM) as sock:
        sock.settimeout(3 * WAIT_S)
        try:
            sock.connect(target)
            ssl.create_default_context().wrap_socket(sock, server_hostname="broker0.lab").close()
        except ssl.SSLCertVerificationError:
            return "a stranger"
        except OSError:
            return "nobody"
    return "somebody known"


CHECKS: Final[tuple[Callable[[Bench], Iterator[Finding]], ...]] = (
    jitter, reordering, duplication, bursts, rate, mtu, cut, reboot, address, captive,
)  # fmt: skip


def check(lab: Lab) -> list[Finding]:
    """Try everything on host a's access link and NAT.

    Args:
        lab: its host a is behind a user-space NAT.

    """
    server = lab.net.socket(ip=PROBES[0], port=7002)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    with server, lab.a.socket(ip=lab.a.ip) as host:
        bench = Bench(lab, host, server)
        return [finding for test in CHECKS for finding in test(bench)]


def check_impairments(seed: int = 1) -> list[Finding]:
    """Build a laboratory for it, and try everything; about ten seconds."""
    with Lab("port-restricted", "open", seed=seed) as lab:
        return check(lab)

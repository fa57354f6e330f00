"""Measures what a host is behind, from outside: plain sockets on the host and on the internet.

Nothing here knows how a NAT is made; it sends, looks at what arrives where and from whom, and
names what it saw in the words of RFC 4787 (the tests are those of RFC 5780, and a few more).
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from . import kernel_nat
from .profiles import AD, APD, EI
from .topology import PROBES, nat64, server_v6

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .lab import Lab

Address = tuple[str, int]

PORTS: Final = (443, 7001)
LISTEN_PORT: Final = 18080
WAIT_S: Final = 0.35
"""How long to wait for a packet; it is under way for 50 ms at the most, there and back."""
SAMPLES: Final = 16
BLOCK_SPREAD: Final = 1024
TIMER_S: Final = 1
LOSS: Final = 0.25
LOSS_PACKETS: Final = 600
BATCH: Final = 50
DELAY_SAMPLES: Final = 10


@dataclass
class Measurement:
    """What was found; the fields of :class:`~warpgate_natlab.profiles.Expectation`, and more.

    Attributes:
        tcp_mapping: the mapping behaviour for TCP.
        delay_out_ms, delay_in_ms: one way, host to server and back; None: nothing came through.
        loss: the fraction lost while the link lost ``LOSS``; None: UDP does not get through.
        loss_free: the fraction lost without impairment.

    """

    mapping: str
    filtering: str
    allocation: str
    hairpin: str
    tcp: str
    tcp_mapping: str
    syn: str
    timer: str
    delay_out_ms: float | None
    delay_in_ms: float | None
    loss: float | None
    loss_free: float | None


class Prober:
    """Probes one interface of host ``a`` in one family; a context manager.

    Args:
        lab: the laboratory.
        version: 4, 6, or 64 for IPv4 servers through NAT64.
        nic: the interface's number.

    """

    def __init__(self, lab: Lab, version: int = 4, nic: int = 0) -> None:
        self.lab = lab
        self.version = version
        self.nic = lab.a.nics[nic]
        self.local = self.nic.local[6 if version == 64 else version]
        self.public = self.nic.public[version]
        self._stack = contextlib.ExitStack()
        self.own = [server_v6(ip) if version == 6 else ip for ip in PROBES]
        self.targets: list[Address] = []
        self.servers: list[socket.socket] = []
        self.listeners: list[socket.socket] = []
        for ip in self.own:
            for port in PORTS:
                self.targets.append((nat64(ip) if version == 64 else ip, port))
                server = self._stack.enter_context(self.lab.net.socket(ip=ip, port=port))
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                self.servers.append(server)
                listener = self.lab.net.socket(socket.SOCK_STREAM, ip, port, reuse=True)
                self.listeners.append(self._stack.enter_context(listener))
                listener.listen(16)
                listener.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> Measurement:
        """Measure everything; about four seconds."""
        mapping = self.udp_mapping()
        tcp = self.tcp_reach()
        delay = self.delay() if mapping != "blocked" else self.tcp_delay()
        return Measurement(
            mapping=mapping,
            filtering=self.udp_filtering(),
            allocation=self.udp_allocation(),
            hairpin="n/a" if mapping == "none" else self.hairpin(),
            tcp=tcp,
            tcp_mapping=self.tcp_mapping(tcp),
            syn=self.stray_syn(),
            timer=self.udp_timer(),
            delay_out_ms=delay[0],
            delay_in_ms=delay[1],
            loss=self.loss(LOSS),
            loss_free=self.loss(0.0),
        )

    # UDP.

    @contextlib.contextmanager
    def host_sockets(self, count: int = 1) -> Iterator[list[socket.socket]]:
        """Make sockets on the host, at ports that are no neighbours."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.lab.a.socket(ip=self.local)) for _ in range(count)]

    def mapped(self, sock: socket.socket, targets: Sequence[int]) -> dict[int, Address]:
        """Send from a host's socket to some targets; return the sources that these see."""
        seen: dict[int, Address] = {}
        for attempt in range(2):
            token = b"%d-%d" % (id(sock), attempt)
            missing = [index for index in targets if index not in seen]
            for index in missing:
                sock.sendto(token, self.targets[index])
            for server, data, source in receive(self.servers, WAIT_S, len(missing)):
                if data.rpartition(b"-")[0] == token.rpartition(b"-")[0]:
                    seen[self.servers.index(server)] = source
            if len(seen) == len(targets):
                break
        return seen

    def udp_mapping(self) -> str:
        """Return how the outside endpoint depends on the destination."""
        with self.host_sockets() as (sock,):
            seen = self.mapped(sock, range(4))
            local = sock.getsockname()[:2]
        return _classify([seen.get(index) for index in range(4)], local)

    def udp_allocation(self) -> str:
        """Return how outside ports are chosen, from one mapping of each of several sockets."""
        with self.host_sockets(SAMPLES) as socks:
            pairs = []
            for sock in socks:
                seen = self.mapped(sock, [0])
                if 0 not in seen:
                    return "blocked"
                pairs.append((sock.getsockname()[:2], seen[0]))
        if all(local == outside for local, outside in pairs):
            return "none"
        ports = [outside[1] for _, outside in pairs]
        if all(local[1] == outside[1] for local, outside in pairs):
            return "preserving"
        steps = {after - before for before, after in pairwise(ports)}
        if len(steps) == 1:
            return "sequential"
        return "block" if max(ports) - min(ports) < BLOCK_SPREAD else "random"

    def udp_filtering(self) -> str:
        """Return who may answer to a mapped endpoint."""
        with self.host_sockets(2) as (sock, silent):
            # A port that never sent anything, reached from outside: there is no filter at all.
            self.servers[2].sendto(b"unasked", (self.public, silent.getsockname()[1]))
            if receive([silent], WAIT_S, 1):
                return "none"
            outside = self.mapped(sock, [0]).get(0)
            if outside is None:
                return "blocked"
            for index in (0, 1, 2):
                self.servers[index].sendto(b"%d" % index, outside)
            came = {int(data) for _, data, _ in receive([sock], WAIT_S, 3)}
        if 0 not in came:
            return "blocked"
        if 2 in came:
            return EI
        return AD if 1 in came else APD

    def hairpin(self) -> str:
        """Return whether two sockets of the host reach one another's outside endpoints."""
        with self.host_sockets(2) as (one, two):
            outside = [self.mapped(sock, [0]).get(0) for sock in (one, two)]
            if outside[0] is None or outside[1] is None:
                return "no"
            for _ in range(2):  # the first packet of each opens the own filter
                one.sendto(b"from one", self._as_host_sees(outside[1]))
                two.sendto(b"from two", self._as_host_sees(outside[0]))
                came = receive([one, two], WAIT_S / 2, 2)
                if came:
                    external = all(
                        source[0] == self._as_host_sees(outside[0])[0] for _, _, source in came
                    )
                    return "yes" if external else "internal"
        return "no"

    def _as_host_sees(self, address: Address) -> Address:
        return (nat64(address[0]), address[1]) if self.version == 64 else address

    def udp_timer(self) -> str:
        """Shorten the mapping's life, and see that it holds for that long and no longer."""
        if self.nic.router is not None:
            kernel_nat.set_udp_timer(self.lab.router("a"), TIMER_S)
        elif self.nic.nodes:
            self.lab.set_nat("a", timers={"udp_s": TIMER_S, "udp_first_packet_s": None})
        with self.host_sockets(2) as (early, late):
            outside = [self.mapped(sock, [0]).get(0) for sock in (early, late)]
            if outside[0] is None or outside[1] is None:
                return "n/a"
            time.sleep(TIMER_S * 0.4)
            self.servers[0].sendto(b"early", outside[0])
            alive = bool(receive([early], WAIT_S, 1))
            time.sleep(TIMER_S * 1.2)
            self.servers[0].sendto(b"late", outside[1])
            over = not receive([late], WAIT_S, 1)
        if alive and over:
            return "yes"
        return "n/a" if alive and self._unfiltered() else f"early {alive}, over {over}"

    def _unfiltered(self) -> bool:
        with self.host_sockets() as (silent,):
            self.servers[2].sendto(b"unasked", (self.public, silent.getsockname()[1]))
            return bool(receive([silent], WAIT_S, 1))

    def delay(self) -> tuple[float | None, float | None]:
        """Return the median delay each way in ms."""
        out, back = [], []
        with self.host_sockets() as (sock,):
            outside = self.mapped(sock, [0]).get(0)
            for _ in range(DELAY_SAMPLES if outside else 0):
                start = time.perf_counter()
                sock.sendto(b"there", self.targets[0])
                if receive([self.servers[0]], WAIT_S, 1):
                    out.append(time.perf_counter() - start)
                start = time.perf_counter()
                assert outside is not None
                self.servers[0].sendto(b"back", outside)
                if receive([sock], WAIT_S, 1):
                    back.append(time.perf_counter() - start)
        if not out or not back:
            return None, None
        return statistics.median(out) * 1000, statistics.median(back) * 1000

    def loss(self, rate: float) -> float | None:
        """Return the fraction of packets lost on the way out while the access link loses ``rate``."""
        with self.host_sockets() as (sock,):
            if not self.mapped(sock, [0]):
                return None
            self.lab.set_link("a", "out", loss=rate)
            came = 0
            try:
                for _ in range(LOSS_PACKETS // BATCH):
                    for _ in range(BATCH):
                        sock.sendto(b"loss", self.targets[0])
                    came += len(receive([self.servers[0]], 0.12, BATCH))
            finally:
                self.lab.set_link("a", "out", loss=0.0)
        return 1 - came / LOSS_PACKETS

    # TCP.

    def connect(self, index: int, port: int = 0) -> tuple[float, Address] | None:
        """Connect from the host to a target; return the seconds, and the source that it sees."""
        sock = self.lab.a.socket(socket.SOCK_STREAM, self.local, port, reuse=True)
        with sock:
            start = time.perf_counter()
            if dial(sock, self.targets[index], WAIT_S) != 0:
                return None
            seconds = time.perf_counter() - start
            wanted = sock.getsockname()[1]
            with contextlib.suppress(BlockingIOError):
                accepted, source = _accept(self.listeners[index])
                self._abort(sock)
                self._abort(accepted)
                accepted.close()
                return seconds, (source[0], source[1])
        raise AssertionError(f"a connection from port {wanted} was not accepted")

    @staticmethod
    def _abort(sock: socket.socket) -> None:
        # Closing with RST leaves no TIME_WAIT behind, so that the port can be used again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def tcp_reach(self) -> str:
        """Return which of the two ports can be reached."""
        first, second = self.connect(0), self.connect(1)
        if first and second:
            return "all"
        return "443" if first else "none"

    def tcp_mapping(self, reach: str) -> str:
        """Return how TCP's outside endpoint depends on the destination."""
        if reach == "none":
            return "blocked"
        with self.lab.a.socket(socket.SOCK_STREAM, self.local, reuse=True) as holder:
            port = holder.getsockname()[1]
            ways = [self.connect(index, port) for index in range(4)]
        seen = [way[1] if way else None for way in ways]
        if reach == "443":
            seen = [seen[0], seen[0], seen[2], seen[2]]
        return _classify(seen, (self.local, port))

    def tcp_delay(self) -> tuple[float | None, float | None]:
        """Return half a TCP handshake's time in ms, twice."""
        times = [way[0] for way in (self.connect(0) for _ in range(DELAY_SAMPLES)) if way]
        if not times:
            return None, None
        half = statistics.median(times) * 500
        return half, half

    def stray_syn(self) -> str:
        """Return what becomes of a SYN to a port where the host listens, from a stranger."""
        with (
            self.lab.a.socket(socket.SOCK_STREAM, self.local, LISTEN_PORT, reuse=True) as listener,
            self.lab.net.socket(socket.SOCK_STREAM, self.own[1]) as stranger,
        ):
            listener.listen()
            error = dial(stranger, (self.public, LISTEN_PORT), WAIT_S)
        if error == 0:
            return "accept"
        return "rst" if error == errno.ECONNREFUSED else "drop"


def _accept(listener: socket.socket) -> tuple[socket.socket, Address]:
    for _ in range(50):
        try:
            sock, source = listener.accept()
        except BlockingIOError:
            time.sleep(0.005)
        else:
            return sock, (source[0], source[1])
    raise BlockingIOError


def _classify(seen: Sequence[Address | None], local: Address) -> str:
    """Name the mapping, from the sources that (ip1, p1), (ip1, p2), (ip2, p1), (ip2, p2) saw."""
    if all(source is None for source in seen):
        return "blocked"
    if any(source is None for source in seen):
        return "unreliable"
    if all(source == local for source in seen):
        return "none"
    if len(set(seen)) == 1:
        return EI
    if seen[0] == seen[1] and seen[2] == seen[3]:
        return AD
    return APD


def receive(
    socks: Sequence[socket.socket], seconds: float, count: int
) -> list[tuple[socket.socket, bytes, Address]]:
    """Return what arrives on some sockets, until there are ``count`` datagrams or time is over."""
    came: list[tuple[socket.socket, bytes, Address]] = []
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        while len(came) < count and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    while True:
                        data, source = sock.recvfrom(2048)
                        came.append((sock, data, (source[0], source[1])))
    return came


def dial(sock: socket.socket, address: Address, seconds: float) -> int:
    """Connect a TCP socket; return 0 or the error's number."""
    sock.setblocking(False)
    error = sock.connect_ex(address)
    if error not in (errno.EINPROGRESS, 0):
        return error
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        if not selector.select(seconds):
            return errno.ETIMEDOUT
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

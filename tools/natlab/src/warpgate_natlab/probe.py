"""Measures what a host is behind, from outside: plain sockets on the host and on the internet.

Nothing here knows how a NAT is made; it sends, looks at what arrives where and from whom, and
names what it saw in the words of RFC 4787 (the tests are those of RFC 5780, and a few more).
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from . import kernel_nat
from .measurement import Measurement
from .profiles import AD, APD, EI
from .sockets import WAIT_S, Address, accept, classify, dial, reaction, readable, receive
from .topology import PROBES, nat64, server_v6

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .lab import Lab

PORTS: Final = (443, 7001)
LISTEN_PORT: Final = 18080
SAMPLES: Final = 16
BLOCK_SPREAD: Final = 1024
TIMER_S: Final = 1
LOSS: Final = 0.25
LOSS_PACKETS: Final = 600
BATCH: Final = 50
DELAY_SAMPLES: Final = 10


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
                self.targets.append(self._as_host_sees((ip, port)))
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
        tcp_filtering, syn_mapped = self.tcp_filtering()
        udp_timer, tcp_timer = self.timers()
        return Measurement(
            mapping=mapping,
            filtering=self.udp_filtering(),
            allocation=self.udp_allocation(),
            hairpin="n/a" if mapping == "none" else self.hairpin(),
            tcp=tcp,
            tcp_mapping=self.tcp_mapping(tcp),
            syn=self.stray_syn(),
            timer=udp_timer,
            tcp_filtering=tcp_filtering,
            syn_mapped=syn_mapped,
            tcp_timer=tcp_timer,
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
        return classify([seen.get(index) for index in range(4)], local)

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
        if self.version != 64:
            return address
        return nat64(address[0], self.nic.profile.nat64_prefix), address[1]

    def timers(self) -> tuple[str, str]:
        """Shorten the life of UDP and TCP mappings; see that each holds for that long and no longer."""
        if self.nic.router is not None:
            kernel_nat.set_timers(self.lab.router("a"), TIMER_S)
        elif self.nic.nodes:
            timers = {"udp_s": TIMER_S, "udp_first_packet_s": None, "tcp_established_s": TIMER_S}
            self.lab.set_nat("a", timers=timers)
        with self.host_sockets(2) as (early, late), contextlib.ExitStack() as stack:
            outside = [self.mapped(sock, [0]).get(0) for sock in (early, late)]
            streams = stack.enter_context(self.connections(2))
            time.sleep(TIMER_S * 0.4)
            alive = self._arrive(early, outside[0]), self._arrive_stream(streams[:1])
            time.sleep(TIMER_S * 1.2)
            over = not self._arrive(late, outside[1]), not self._arrive_stream(streams[1:])
        udp = "n/a" if None in outside else self._timer(alive[0], over[0])
        return udp, self._timer(alive[1], over[1]) if len(streams) == 2 else "n/a"

    def _timer(self, alive: bool, over: bool) -> str:
        if alive and over:
            return "yes"
        return "n/a" if alive and self._unfiltered() else f"early {alive}, over {over}"

    def _arrive(self, sock: socket.socket, outside: Address | None) -> bool:
        """Tell whether a packet of the server that was written to comes in."""
        if outside is None:
            return False
        self.servers[0].sendto(b"in", outside)
        return bool(receive([sock], WAIT_S, 1))

    def _arrive_stream(self, streams: Sequence[tuple[socket.socket, socket.socket]]) -> bool:
        for near, far in streams:
            far.send(b"in")
            return readable(near)
        return False

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
                accepted, source = accept(self.listeners[index])
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
        return classify(seen, (self.local, port))

    @contextlib.contextmanager
    def connections(self, count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
        """Connect to the first target; give both ends of what came up, and reset it at the end."""
        with contextlib.ExitStack() as stack:
            made = []
            for _ in range(count):
                near = self.lab.a.socket(socket.SOCK_STREAM, self.local, reuse=True)
                stack.enter_context(near)
                if dial(near, self.targets[0], WAIT_S) == 0:
                    far, _ = accept(self.listeners[0])
                    stack.enter_context(far)
                    for sock in (near, far):
                        self._abort(sock)
                    made.append((near, far))
            yield made

    def tcp_filtering(self) -> tuple[str, str]:
        """Return who may connect to a mapped TCP endpoint, and what becomes of a stranger's SYN."""
        with self.connections(1) as made, contextlib.ExitStack() as stack:
            if not made:
                return "blocked", "n/a"
            near, far = made[0]
            outside = far.getpeername()[:2]
            # The host listens at the very port that its connection has.
            port = near.getsockname()[1]
            listener = self.lab.a.socket(socket.SOCK_STREAM, self.local, port, reuse=True)
            stack.enter_context(listener).listen()
            # A stranger first: with its address the host has exchanged nothing.
            errors = []
            for ip in (self.own[1], self.own[0]):
                caller = stack.enter_context(self.lab.net.socket(socket.SOCK_STREAM, ip))
                self._abort(caller)
                errors.append(dial(caller, outside, WAIT_S))
        stranger = reaction(errors[0])
        if errors[0] == 0:
            return ("none" if self._accepts_unasked() else EI), stranger
        return (AD if errors[1] == 0 else APD), stranger

    def _accepts_unasked(self) -> bool:
        return self.stray_syn() == "accept"

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
        return reaction(error)

"""Finds out what the NATs of this machine do: everything at once, in about a second.

All interfaces, families and servers are asked in parallel, and nobody waits for the slowest. On
each path eight sockets ask every server (port allocation), one of them the servers' second
addresses as well (mapping), others ask for answers from elsewhere (filtering), two write to one
another's external endpoints (hairpinning), and TCP connections do the same as far as they can.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import RemoteProtocolError
from ..events import Counters
from ..nat.behaviour import Filtering, Mapping
from ..nat.classify import (
    Observation,
    behind_several_nats,
    classify_allocation,
    classify_filtering,
    classify_mapping,
    same_ip,
    synthesize,
)
from ..nat.report import PathReport
from ..net.addresses import is_ip, system_address
from ..net.constants import IP6
from ..net.datagram import DatagramSocket
from .attributes import CHANGE_IP, CHANGE_PORT, Address
from .client import Exchange, shared_tcp_socket, tcp_mapped_addresses
from .hops import first_hops
from .message import (
    BINDING,
    TRANSACTION_ID_BYTES,
    MessageClass,
    encode,
    looks_like_stun,
    transaction_id_of,
)
from .transaction import Transaction, Volley

SOCKETS: Final = 8  # eight mappings place an aligned block with P = 0.992
TCP_SOCKETS: Final = 5  # beyond the one whose port asks every server
MAX_SERVERS: Final = 4  # on one path
FILTER_SERVERS: Final = 2  # asked to answer from elsewhere
MAX_OTHERS: Final = 6  # second addresses asked on one path: a server's word makes us write there
RTO_S: Final = 0.12
GRACE_S: Final = 0.06
QUIET_S: Final = 0.25  # this and two round trips without an answer mean no
DEADLINE_S: Final = 0.9
HAIRPIN_TIMES: Final = 3
HAIRPIN_GAP_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """Where a probe sends from: an interface, a family, a local address.

    ``nat64`` is the prefix by which IPv4 servers are reached, or None.
    """

    interface: str
    af: int
    ip: str
    nat64: str | None = None

    def reach(self, address: Address) -> Address:
        """Return the address to write to, for one that a server has named."""
        if self.nat64 is not None and ":" not in address[0]:
            return synthesize(self.nat64, address[0]), address[1]
        return address


@dataclass(frozen=True, slots=True)
class PathResult:
    """What was found on one path: the facts, and every transaction, for the report on servers."""

    report: PathReport
    transactions: tuple[Transaction, ...]


async def probe_path(
    place: Place,
    servers: Sequence[Address],
    *,
    gateway_external_ip: str | None = None,
    deadline_s: float = DEADLINE_S,
    counters: Counters | None = None,
) -> PathResult:
    """Probe one path.

    Args:
        place: from where.
        servers: addresses of STUN servers of the place's family; the first ``MAX_SERVERS`` count.
        gateway_external_ip: what the router calls its external address, where it says so.
        deadline_s: when it ends at the latest, whatever is still open, in seconds.
        counters: counts what was ignored, as ``stun-…``.

    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    chosen = list(servers)[:MAX_SERVERS]
    udp = _Udp(place, chosen, deadline, Counters() if counters is None else counters)
    tcp = _Tcp(place, chosen, deadline, udp.counters)
    if chosen:
        await asyncio.gather(udp.run(), tcp.run())
    every = (*udp.transactions, *tcp.transactions)
    external = [each.mapped[0] for each in every if each.mapped is not None]
    through = udp.works if udp.works or tcp.works or len(chosen) > 1 else None
    mapping = classify_mapping(udp.seen)
    filtering = udp.filtering()
    trips = [each.rtt_s for each in every if each.mapped is not None and each.rtt_s is not None]
    report = PathReport(
        interface=place.interface,
        af=place.af,
        local_ip=place.ip,
        nat64=place.nat64 is not None,
        udp=through if chosen and udp.usable else None,
        tcp=tcp.works if chosen and (tcp.works or udp.works or len(chosen) > 1) else None,
        external=tuple(dict.fromkeys(external)),
        mapping=mapping,
        filtering=filtering,
        allocation=classify_allocation(udp.seen),
        tcp_mapping=classify_mapping(tcp.seen),
        tcp_allocation=classify_allocation(tcp.seen),
        hairpin=udp.hairpin,
        firewall=_firewall(mapping, filtering),
        several_nats=behind_several_nats(place.ip, external, gateway_external_ip, udp.hops),
        rtt_s=min(trips, default=None),
        taken=tuple(dict.fromkeys(t.mapped[1] for t in udp.transactions if t.mapped is not None)),
    )
    return PathResult(report, every)


def _firewall(mapping: Mapping | None, filtering: Filtering | None) -> bool | None:
    if mapping is not Mapping.NONE or filtering is None:
        return None
    return filtering is not Filtering.ENDPOINT_INDEPENDENT


class _Udp:
    """The tests over UDP."""

    def __init__(
        self, place: Place, servers: list[Address], deadline: float, counters: Counters
    ) -> None:
        self.place = place
        self.servers = servers
        self.deadline = deadline
        self.counters = counters
        self.hairpin: bool | None = None
        self.hops: tuple[str | None, ...] = ()
        self.usable = True
        self._loop = asyncio.get_running_loop()
        self._samplers: list[Exchange] = []
        self._filters: list[tuple[Transaction, Transaction, Transaction]] = []
        self._exchanges: list[Exchange] = []
        self._token = os.urandom(TRANSACTION_ID_BYTES)
        self._turned = asyncio.Event()

    @property
    def transactions(self) -> list[Transaction]:
        return [each for exchange in self._exchanges for each in exchange.volley.transactions]

    @property
    def works(self) -> bool:
        return any(each.mapped is not None for each in self.transactions)

    @property
    def seen(self) -> list[Observation]:
        """Everything that servers saw; answers to CHANGE-REQUEST say nothing new."""
        return [
            Observation(exchange.link.local, each.server, each.mapped, each.started)
            for exchange in self._exchanges
            for each in exchange.volley.transactions
            if each.mapped is not None and not each.change
        ]

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                for _ in range(SOCKETS):
                    self._samplers.append(await self._open(stack))
                filters = [await self._open(stack) for _ in self.servers[:FILTER_SERVERS]]
            except OSError:
                self.usable = False
                return
            for exchange in self._samplers:
                for server in self.servers:
                    exchange.ask(server)
            for exchange, server in zip(filters, self.servers, strict=False):
                first = exchange.ask(server)
                both = exchange.ask(server, CHANGE_IP | CHANGE_PORT)
                self._filters.append((first, both, exchange.ask(server, CHANGE_PORT)))
            for exchange in self._exchanges:  # ports are judged by the order of sending
                exchange.flush()
            mapping, one, other, *rest = self._samplers
            await asyncio.gather(
                self._mapping(mapping),
                self._hairpin(one, other),
                self._hops(),
                *(self._sample(exchange) for exchange in rest),
                *(self._filter(exchange, *asked)
                  for exchange, asked in zip(filters, self._filters, strict=True)),
            )  # fmt: skip

    async def _open(self, stack: contextlib.AsyncExitStack) -> Exchange:
        sock = socket.socket(self.place.af, socket.SOCK_DGRAM)
        try:
            if self.place.af == IP6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(system_address(self.place.af, (self.place.ip, 0)))
            link = await DatagramSocket.open(sock)
        except BaseException:
            sock.close()
            raise
        stack.callback(link.close)
        link.default = self._stranger
        volley = Volley(entropy=os.urandom, rto_s=RTO_S, retransmissions=3, last_wait=5,
                        grace_s=GRACE_S, counters=self.counters)  # fmt: skip
        exchange = Exchange(link, volley)
        self._exchanges.append(exchange)
        return exchange

    def _stranger(self, data: bytes, _addr: Address) -> None:
        if looks_like_stun(data) and transaction_id_of(data) == self._token:
            self._turned.set()

    async def _sample(self, exchange: Exchange) -> None:
        await exchange.until(lambda: exchange.volley.finished(self._loop.time()), self.deadline)

    async def _mapping(self, exchange: Exchange) -> None:
        await self._sample(exchange)
        asked = []
        for other in _others(exchange.volley.answers, self.place):
            if all(other != each.server for each in exchange.volley.transactions):
                asked.append(exchange.ask(other))
        await self._quiet(exchange, asked)

    async def _hops(self) -> None:
        request = encode(BINDING, MessageClass.REQUEST, os.urandom(TRANSACTION_ID_BYTES))
        self.hops = await first_hops(self.place.af, self.place.ip, self.servers[0], request)

    async def _filter(
        self, exchange: Exchange, first: Transaction, both: Transaction, port: Transaction
    ) -> None:
        await exchange.until(lambda: first.over, self.deadline)
        if first.mapped is not None:
            await self._quiet(exchange, [both, port])

    async def _quiet(self, exchange: Exchange, asked: Sequence[Transaction]) -> None:
        """Wait for answers until they would have come, all repetitions counted."""
        trip = min((each.rtt_s or 0.0 for each in exchange.volley.answers), default=0.0)
        last = max((each.started for each in asked), default=0.0) + 3 * RTO_S
        until = min(self.deadline, last + QUIET_S / 2 + 2 * trip)
        await exchange.until(lambda: all(each.over for each in asked), until)

    async def _hairpin(self, one: Exchange, other: Exchange) -> None:
        await asyncio.gather(self._sample(one), self._sample(other))
        answers = [exchange.volley.answers for exchange in (one, other)]
        ends = [found[0].mapped for found in answers if found]
        if len(ends) < 2 or ends[0] is None or ends[1] is None:
            return
        local = one.link.local[0]
        if same_ip(local, ends[0][0]):
            return
        trip = answers[0][0].rtt_s or 0.0
        packet = encode(BINDING, MessageClass.INDICATION, self._token)
        for _ in range(HAIRPIN_TIMES):  # the first one of each opens the own filter
            with contextlib.suppress(ValueError):
                one.link.send_to(packet, self.place.reach(ends[1]))
                other.link.send_to(packet, self.place.reach(ends[0]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAIRPIN_GAP_S):
                    await self._turned.wait()
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(
                min(self.deadline, self._loop.time() + max(0.1, 2 * trip))
            ):
                await self._turned.wait()
        self.hairpin = self._turned.is_set()

    def filtering(self) -> Filtering | None:
        """Return the strictest that a test found: a lost answer is taken back by another server."""
        found = [self._filtering(*asked) for asked in self._filters]
        known = [each for each in found if each is not None]
        order = list(Filtering)
        return min(known, key=order.index, default=None)

    def _filtering(
        self, first: Transaction, both: Transaction, port: Transaction
    ) -> Filtering | None:
        if first.mapped is None or first.other_address is None:
            return None
        other = self.place.reach(first.other_address)
        return classify_filtering(
            self._came(both, other, lambda source: source[0] != first.server[0]),
            self._came(
                port,
                (first.server[0], other[1]),
                lambda source: source[0] == first.server[0] and source[1] != first.server[1],
            ),
        )

    def _came(
        self, it: Transaction, expected: Address, elsewhere: Callable[[Address], bool]
    ) -> bool | None:
        """Return whether an answer came from elsewhere; None: the server does not do it."""
        if it.source is not None:
            return True if it.mapped is not None and elsewhere(it.source) else None
        # No answer means something only where that address does answer those who ask it.
        alive = any(each.server == expected and each.mapped for each in self.transactions)
        return False if alive else None


class _Tcp:
    """The tests over TCP."""

    def __init__(
        self, place: Place, servers: list[Address], deadline: float, counters: Counters
    ) -> None:
        self.place = place
        self.servers = servers
        self.deadline = deadline
        self.counters = counters
        self.seen: list[Observation] = []
        self.transactions: list[Transaction] = []
        self._loop = asyncio.get_running_loop()

    @property
    def works(self) -> bool:
        return any(each.mapped is not None for each in self.transactions)

    async def run(self) -> None:
        shared = asyncio.create_task(self._ask(self.servers, others=True))
        one = self.servers
        more = [
            asyncio.create_task(self._ask([one[number % len(one)]]))
            for number in range(TCP_SOCKETS)
        ]
        try:
            await asyncio.gather(shared, *more[: len(one)])
            # What a dead server has not shown, others do.
            await asyncio.gather(*more)
        finally:
            for task in (shared, *more):
                task.cancel()

    async def _ask(self, servers: Sequence[Address], others: bool = False) -> None:
        try:
            holder = shared_tcp_socket(self.place.af, (self.place.ip, 0))
        except OSError:
            return
        with holder:
            local = (self.place.ip, holder.getsockname()[1])
            first = await self._round(local, servers)
            mapped = {each.mapped for each in first}
            if others and mapped != {local} and first:
                found = [each for each in _others(first, self.place) if each not in servers]
                await self._round(local, found)

    async def _round(self, local: Address, servers: Sequence[Address]) -> list[Transaction]:
        left = self.deadline - self._loop.time()
        if left <= 0 or not servers:
            return []
        done = await tcp_mapped_addresses(
            local, servers, grace_s=GRACE_S, timeout_s=left, counters=self.counters
        )
        self.transactions += done
        good = [each for each in done if each.mapped is not None]
        self.seen += [
            Observation(local, each.server, each.mapped, each.started)
            for each in good
            if each.mapped is not None
        ]
        return good


def _others(answers: Iterable[Transaction], place: Place) -> list[Address]:
    """Return the second addresses of servers: with RFC 5780's, both IPs by both ports."""
    found: list[Address] = []
    for each in answers:
        if each.other_address is None or not is_ip(each.other_address[0]):
            continue
        try:
            ip, port = place.reach(each.other_address)
            system_address(place.af, (ip, port))
        except (ValueError, OSError, RemoteProtocolError):
            continue
        server = each.server
        found += [(server[0], port), (ip, server[1]), (ip, port)]
    return list(dict.fromkeys(found))[:MAX_OTHERS]

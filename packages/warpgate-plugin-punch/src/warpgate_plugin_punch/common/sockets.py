"""The UDP sockets of a punch: bound, metered, and asked of servers how NATs show them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from warpgate.net.addresses import Address, SystemAddress, is_ip, system_address
from warpgate.net.constants import EXT_BIND, IP6, LOOPBACK_BIND
from warpgate.net.datagram import DatagramSocket
from warpgate.net.udp import DatagramLink
from warpgate.protocol.ip import is_public, split_scope
from warpgate.server_urls import STUN_PORT, parse_host_port
from warpgate.stun.client import Exchange
from warpgate.stun.transaction import Volley
from warpgate_plugin_punch.common.counting import counter
from warpgate_plugin_punch.common.facts import DIRECT, MAX_STEP, SideFacts, from_report, from_types

if TYPE_CHECKING:
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin

MAX_SERVERS: Final = 3
RTO_S: Final = 0.1
REQUESTS: Final = 4
GRACE_S: Final = 0.02
COUNT_GRACE_S: Final = 0.15
"""How long other servers are waited for, where the order of ports is what matters."""
VOLLEY_S: Final = 0.6


class PunchSocket(DatagramSocket):
    """A UDP socket of one attempt, which can send packets that do not get far."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._option = (
            (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
            if sock.family == IP6
            else (socket.IPPROTO_IP, socket.IP_TTL)
        )
        self._default_ttl = sock.getsockopt(*self._option)

    def set_ttl(self, hops: int | None) -> None:
        """Let what is sent from now on cross so many routers; None: as many as usual."""
        if not self.closed:
            self._sock.setsockopt(*self._option, self._default_ttl if hops is None else hops)

    def send_prepared(self, data: bytes, target: SystemAddress) -> None:
        """Send unmetered to an address in the system's form: for many, that form costs the most."""
        if self._endpoint is not None:
            self._endpoint.send(data, target)
        elif not self.closed:
            try:
                self._sock.sendto(data, target)
            except OSError:
                self.errors += 1

    def send_low(self, data: bytes, addr: Address, hops: int) -> bool:
        """Send one datagram that opens the own NAT and dies before it reaches the peer's."""
        self.set_ttl(hops)
        try:
            return self.send_to(data, addr)
        finally:
            self.set_ttl(None)


async def open_udp(plugin: Plugin, port: int = 0) -> PunchSocket:
    """Return a reading UDP socket on the attempt's local address; ``plugin.budget`` meters it.

    Args:
        plugin: the attempt.
        port: the local port; 0: any.

    Raises:
        OSError: the address or port can't be used.

    """
    route = await plugin.bind(port)
    local = route.source_for(plugin.dest_info["ip"]) or ("::" if plugin.af == IP6 else "0.0.0.0")
    link = await bound_udp(plugin.af, (local, port))
    metered(plugin, link)
    return link


async def bound_udp(af: int, local: Address) -> PunchSocket:
    """Return a reading UDP socket on a local ``(ip, port)``, without a meter.

    Raises:
        OSError: the address or port can't be used.
        ValueError: it is no address of the family.

    """
    sock = socket.socket(af, socket.SOCK_DGRAM)
    try:
        if af == IP6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(system_address(af, local))
        return await PunchSocket.open(sock)
    except BaseException:
        sock.close()
        raise


def metered(plugin: Plugin, link: DatagramSocket) -> None:
    """Let an attempt's budget decide on everything that a socket sends (WIRE.md section 5)."""
    budget = plugin.budget

    def meter(addr: Address, size: int) -> bool:
        ours = budget.purse is not None and addr in stun_servers(plugin.node, plugin.af)
        return budget.take(addr[0], 1, 0 if ours else size)

    link.meter = meter


def crosses_nat(plugin: Plugin) -> bool:
    """Whether the way to the peer leads over the internet; not on one machine or one link."""
    ip = split_scope(plugin.dest_info["ip"])[0]
    if plugin.route_type == LOOPBACK_BIND or ip in plugin.node.own_ips():
        return False
    return plugin.route_type == EXT_BIND or is_public(ip)


def own_facts(plugin: Plugin, transport: object) -> SideFacts:
    """Return what this node knows of its own NAT on the attempt's way."""
    if not crosses_nat(plugin):
        return DIRECT
    report = plugin.node.net_report
    path = None if report is None else report.path(plugin.af, plugin.nic.name)
    return from_types(plugin.src_info.get("nat")) if path is None else from_report(path, transport)


def peer_facts(plugin: Plugin) -> SideFacts:
    """Return what the peer's signed address says of its NAT (types only, and for UDP)."""
    return from_types(plugin.dest_info.get("nat")) if crosses_nat(plugin) else DIRECT


def stun_servers(node: Node, af: int) -> list[Address]:
    """Return the addresses of the node's STUN servers; none where STUN is off."""
    if not node.conf["enable_stun_clients"]:
        return []
    found = node.network.servers(af)
    if not found:  # names are looked up by the node's own survey; addresses need no looking up
        named = [parse_host_port(text, STUN_PORT) for text in node.conf["stun_servers"]]
        found = [a for a in named if is_ip(a[0]) and (":" in a[0]) == (af == IP6)]
    return found[:MAX_SERVERS]


@dataclass(frozen=True, slots=True)
class Mapped:
    """How servers see a socket.

    Attributes:
        endpoint: the external ``(ip, port)`` that most saw.
        seen: ``(index of the request, port)`` in the order of sending.
        requests: how many servers were asked.
        independent: all saw the same endpoint; None: only one answered.
        rtt_s: to the quickest server.

    """

    endpoint: Address
    seen: tuple[tuple[int, int], ...]
    requests: int
    independent: bool | None
    rtt_s: float

    def counter(self, step: int) -> int:
        """Return the port that a NAT which counts by ``step`` has given last."""
        return counter(self.seen, self.requests, step)

    def corrects(self, facts: SideFacts) -> SideFacts:
        """Return the facts, mended where servers just saw what does not agree with them."""
        if not facts.easy or self.independent is not False:
            return facts
        (first, low), (last, high) = self.seen[0], self.seen[-1]
        step, rest = divmod(high - low, last - first)
        counts = rest == 0 and 0 < abs(step) <= MAX_STEP
        kind: Literal["sequential", "random"] = "sequential" if counts else "random"
        return SideFacts(
            mapping="apd", filtering=facts.filtering, kind=kind, step=step if counts else 0
        )


async def mapped(
    plugin: Plugin,
    link: DatagramLink,
    *,
    between: Callable[[], None] | None = None,
    every: bool = False,
) -> Mapped | None:
    """Ask the node's STUN servers how they see a socket; as :func:`mapped_for`."""
    return await mapped_for(plugin.node, plugin.af, link, between=between, every=every)


async def mapped_for(
    node: Node,
    af: int,
    link: DatagramLink,
    *,
    between: Callable[[], None] | None = None,
    every: bool = False,
) -> Mapped | None:
    """Ask a node's STUN servers how they see a socket.

    Args:
        node: whose servers.
        af: the socket's family.
        link: the socket, which goes on with whatever it does.
        between: called after the request to the first server has left and before the others, without
            a pause: mappings that it makes lie between theirs.
        every: wait for all the servers; otherwise the first answer decides.

    Returns:
        None when there is no server, or none has answered in ``VOLLEY_S``.

    """
    loop = asyncio.get_running_loop()
    servers = stun_servers(node, af)
    if not servers:
        if between is not None:
            between()
        return None
    volley = Volley(
        entropy=os.urandom,
        rto_s=RTO_S,
        retransmissions=REQUESTS,
        last_wait=2,
        grace_s=COUNT_GRACE_S if every else GRACE_S,
        counters=node.stats,
    )
    with Exchange(link, volley) as exchange:
        for index, server in enumerate(servers):
            exchange.ask(server)
            exchange.flush()
            if index == 0 and between is not None:
                between()
        await exchange.until(lambda: volley.finished(loop.time()), loop.time() + VOLLEY_S)
    answers = [
        (index, each.mapped)
        for index, each in enumerate(volley.transactions)
        if each.mapped is not None and (":" in each.mapped[0]) == (af == IP6)
    ]
    if not answers:
        return None
    endpoints = [endpoint for _, endpoint in answers]
    return Mapped(
        endpoint=max(endpoints, key=endpoints.count),
        seen=tuple((index, endpoint[1]) for index, endpoint in answers),
        requests=len(servers),
        independent=len(set(endpoints)) == 1 if len(endpoints) > 1 else None,
        rtt_s=min(each.rtt_s or 0.0 for each in volley.answers),
    )


def foretold(plugin: Plugin, facts: SideFacts, local: Address) -> Address | None:
    """Return where the peer reaches a socket on ``local``; None: only a server can tell.

    Without facts, and without a NAT in the way, that is the socket's own address.
    """
    ip = split_scope(local[0])[0]
    if not crosses_nat(plugin) or (facts.mapping == "none" and is_public(ip)):
        return ip, local[1]
    port = facts.outer_port(local[1])
    return None if port is None else (plugin.src_info["ext"], port)

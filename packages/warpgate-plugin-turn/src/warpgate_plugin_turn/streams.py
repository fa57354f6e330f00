"""One attempt's ways for streams: TCP connections over relays (RFC 6062).

Whoever has a server over TCP or TLS gets a relay for TCP, lets the peer in and tells where it is. The
peer dials that from a plain socket. Where it can't, since its network lets nothing out but the way to
its own server, the relays are connected: by a Connect request from the one to the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from typing import Final

from warpgate import IP4, IP6, TCP, NATType, Pipe, Plugin, RelayError
from warpgate.net.addresses import Address, canonical_ip
from warpgate.net.budget import MAX_SYNS, SYN_BYTES
from warpgate.net.tcp import TcpPipe
from warpgate.protocol.ip import is_public
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.calls import Calls, Way
from warpgate_plugin_turn.errors import NotSupported
from warpgate_plugin_turn.messages import MAX_MAPPED, RelayFacts
from warpgate_plugin_turn.policy import PeerPolicy, family_of
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.sockets import local_ip_towards, tcp_mapped_ips
from warpgate_plugin_turn.tcp_relay import DataConnection, connect, join, open_beside

PERMIT_S: Final = 2.0
DIAL_S: Final = 5.0
DIALS_FIRST_S: Final = 0.25
"""The head start of a plain connection over one from relay to relay, which takes more."""
OTHERS_TURN_S: Final = 1.0
"""The initiator's head start with Connect: both at once could use one pair of addresses and ports."""
MAX_CONNECTIONS: Final = 4  # that are accepted
MAX_DIALS: Final = 3
MAX_QUESTIONS: Final = 2  # one SYN may be lost; with dials and Connects these are 48 packets
MAX_CONNECTS: Final = 2
MAX_LET_IN: Final = 16

SWITCHED_OFF: Final = 'streams over relays are switched off here: plugin_conf["turn"]["streams"]'


class Streams:
    """One attempt's connections over relays.

    Args:
        plugin: the attempt.
        pool: where relays come from; None: there are none.
        policy: what the peer may make this side and its relay do.
        calls: the attempt's.
        way: tells by which address a server is reached, NAT64 may be in between; None: by its own.

    Attributes:
        allocation: this side's relay for TCP.
        relayed: where the peer can connect to; None while that is not so.
        lets: the addresses that may connect there.
        refused: the addresses that the relay refuses to let in, and why.
        mapped: where this side's connections come from.
        unreachable: why the peer's relay can't be dialled.
        why_not: what went wrong.

    """

    def __init__(
        self,
        plugin: Plugin,
        pool: Pool | None,
        policy: PeerPolicy,
        calls: Calls,
        way: Way | None = None,
    ) -> None:
        self.allocation: Allocation | None = None
        self.relayed: Address | None = None
        self.lets: set[str] = set()
        self.refused: dict[str, RelayError] = {}
        self.mapped: set[str] = set()
        self.unreachable: RelayError | None = None
        self.why_not: RelayError | None = None
        self._plugin = plugin
        self._pool = pool
        self._policy = policy
        self._calls = calls
        self._way = way
        self._peer = RelayFacts()
        self._offered = False
        self._wanted: set[str] = set()
        self._asked: set[str] = set()
        self._settled = asyncio.Event()
        self._pipes: list[Pipe] = []
        self._incoming_connections = 0
        self._dialled: list[tuple[Address, frozenset[str]]] = []
        self._dialling = False
        self._connected: set[Address] = set()
        self._learning = False
        self._opening: asyncio.Task[None] | None = None
        self._ahead: DataConnection | None = None

    @property
    def joined(self) -> bool:
        """Whether there is a connection, proven or not."""
        return any(not pipe.closed for pipe in self._pipes)

    def is_cut_off(self) -> bool:
        """Return whether this network is known to let out neither UDP nor TCP, but to some ports."""
        info = self._plugin.src_info
        silent = info["nat"]["type"] == NATType.BLOCKED and info["ext"] == info["nic"]
        return silent or (self._pool is not None and self._pool.servers.https_only)

    # This side's relay.

    def let_in(self, ips: Iterable[str]) -> None:
        """Let connections from further addresses in, now or as soon as there is a relay."""
        for ip in ips:
            if ip in self._wanted:
                continue
            if len(self._wanted) >= MAX_LET_IN:
                self._plugin.node.stats.count("turn_permissions_limit")
                break
            self._wanted.add(ip)
        allocation = self.allocation
        if allocation is None:
            return
        for ip in self._wanted - self._asked:
            if family_of(ip) == allocation.family:
                self._asked.add(ip)
                self._settled.clear()
                allocation.permit(ip)

    def _let_peer_in(self) -> None:
        self.let_in(self._policy.peer_ips(IP4) | self._policy.peer_ips(IP6))

    async def _allocate(self, pool: Pool) -> Allocation:
        """Get a relay of the peer's family, or one of IPv4 that IPv6 hosts may reach through NAT64."""
        family = self._plugin.dest_info["af"]
        try:
            return await pool.allocate(family, streams=True)
        except NotSupported as error:
            if family != IP6:
                raise
            try:
                return await pool.allocate(IP4, streams=True)
            except RelayError:
                raise error from None

    async def offer(self) -> tuple[str, ...]:
        """Get a relay for TCP, once; then ``relayed`` is set.

        Returns:
            What went wrong with other servers before.

        Raises:
            RelayError: no server gives one.

        """
        if self._offered:
            return ()
        self._offered = True
        if self._pool is None:
            raise RelayError(SWITCHED_OFF)
        allocation = await self._allocate(self._pool)
        self.allocation = allocation
        self._policy.trusted |= {allocation.relayed[0], allocation.address[0]}
        allocation.on_permitted, allocation.on_refused = self._permitted, self._refused
        allocation.on_incoming = self._incoming
        # A connection from an address without a permission is closed: so first the permissions.
        self._let_peer_in()
        self._settle()
        try:
            async with asyncio.timeout(PERMIT_S):
                await self._settled.wait()
        except TimeoutError:
            slow = f"TURN server {allocation.name} gave no permission in time"
            raise allocation.failure or RelayError(slow) from None
        self.relayed = allocation.relayed
        self._opening = self._calls.spawn(self._open_ahead(allocation))
        self._reach_by_relay()
        return allocation.notes

    async def _open_ahead(self, allocation: Allocation) -> None:
        """Have a connection to the server ready: it is what takes longest when the peer comes."""
        with contextlib.suppress(RelayError):  # the next one says what is wrong
            self._ahead = await open_beside(allocation, self._tls(allocation))

    async def _joined(self, allocation: Allocation, connection_id: int, peer: Address) -> None:
        """Hand over the pipe to a peer with whom the relay has a connection."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wait([opening])
        connection, self._ahead = self._ahead, None
        try:
            if connection is None or connection.transport.is_closing():
                connection = await open_beside(allocation, self._tls(allocation))
            pipe = await join(allocation, connection_id, peer, connection)
        except RelayError as error:
            self.why_not = error
            return
        self._take(pipe)

    def _tls(self, allocation: Allocation) -> ssl.SSLContext | None:
        assert self._pool is not None
        return self._pool.context(allocation.server)

    def _permitted(self, ip: str) -> None:
        self.lets.add(ip)
        self._settle()
        if self.relayed is not None:
            self._calls.spawn(self._calls.tell())

    def _refused(self, ip: str, error: RelayError) -> None:
        self.why_not = self.why_not or error
        self.refused[ip] = error
        self.lets.discard(ip)
        self._settle()
        self._calls.check_hopeless()

    def _settle(self) -> None:
        if self._asked <= self.lets | set(self.refused):
            self._settled.set()

    def _incoming(self, connection_id: int, peer: Address) -> None:
        if self._incoming_connections < MAX_CONNECTIONS:
            self._incoming_connections += 1
            assert self.allocation is not None
            self._calls.spawn(self._joined(self.allocation, connection_id, peer))
        else:
            self._plugin.node.stats.count("turn_connections_limit")

    # The peer's relay.

    def heard(self, facts: RelayFacts) -> None:
        """Take the peer's newest facts, and open every way to its relay for TCP."""
        self._peer = facts
        self._let_peer_in()
        relay = facts.stream
        if relay is None:
            return
        if self._policy.may_connect(relay):
            self.let_in([canonical_ip(relay[0])])
        refusal = self._policy.refusal(relay[0])
        if refusal is None:
            self._calls.spawn(self.dial(relay, facts.lets))
            if self._plugin.src_info["ext"] not in facts.lets and not self._learning:
                self._learning = True
                self._calls.spawn(self._learn(relay, facts.stun))
        else:
            self.why_not = self.why_not or RelayError(f"the peer's relay {relay[0]}: {refusal}")
        self._reach_by_relay()

    async def dial(self, relay: Address, lets: Iterable[str]) -> None:
        """Connect to the peer's relay, and again when it lets further addresses in.

        Args:
            relay: where it is.
            lets: the addresses that it lets in.

        """
        plugin, let_in = self._plugin, frozenset(lets)
        known = {ip for to, before in self._dialled if to == relay for ip in before}
        if self._dialling or self.joined or let_in <= known or len(self._dialled) >= MAX_DIALS:
            return
        self._dialling = True
        try:
            to = await self._affordable(relay)
            if to is None:
                return
            self._dialled.append((relay, let_in))
            # A server without IPv6 relays has one of IPv4, for an IPv6 peer as well.
            pipe = await plugin.nic.route(family_of(to[0])).connect(to, TCP, timeout=DIAL_S)
        except ConnectionResetError:
            self.unreachable = None  # connected, and closed as below before we looked
        except (OSError, ValueError) as error:  # ValueError: no address of that family here
            self._lost(relay, str(error))
        else:
            assert isinstance(pipe, TcpPipe)
            self.unreachable = None
            pipe.path, pipe.half_closes = "relay", False
            self._take(pipe)
            await pipe.wait_closed()  # as a server does that has no permission for this address
        finally:
            self._dialling = False
        if not plugin.result.done():
            self._calls.allocate()
            await self._calls.tell()
            self._calls.check_hopeless()
            if self._peer.stream is not None:
                await self.dial(self._peer.stream, self._peer.lets)

    async def _affordable(self, relay: Address) -> Address | None:
        """Return by which address a relay is reached; None, counted, where too much went there.

        Whether it is this side that connects or its relay, and through NAT64 or not: it is one budget.
        """
        to = relay if self._way is None else await self._way(relay)
        if self._plugin.budget.take(to[0], MAX_SYNS, SYN_BYTES):
            return to
        self._plugin.node.stats.count("turn_dials_limited")
        return None

    def _lost(self, relay: Address, why: str) -> None:
        self.unreachable = RelayError(f"the other's relay {relay[0]} can't be reached: {why}")

    async def _learn(self, relay: Address, stun: Address | None) -> None:
        """Learn from which address the peer's relay sees this side's connections, and tell it."""
        to = relay if self._way is None else await self._way(relay)
        local = local_ip_towards(relay) if to == relay else None
        if local is not None and (is_public(local) or not is_public(relay[0])):
            self.mapped.add(local)
            await self._calls.tell()
        if stun is not None and self._policy.refusal(stun[0]) is None:
            beside = stun if self._way is None else await self._way(stun)
            for _ in range(MAX_QUESTIONS):
                found = await tcp_mapped_ips(family_of(beside[0]), beside, self._plugin.budget)
                self.mapped |= found
                if found:
                    break
        if not (self.mapped or self._peer.lets):
            self._lost(relay, "nobody knows the address that it would be dialled from")
        await self._calls.tell()
        self._calls.check_hopeless()

    def _reach_by_relay(self) -> None:
        """Connect this side's relay to the peer's, where that one lets it in."""
        relay, own = self._peer.stream, self.relayed
        if (
            relay is None
            or own is None
            or family_of(relay[0]) != family_of(own[0])
            or canonical_ip(own[0]) not in self._peer.lets
            or relay in self._connected
            or len(self._connected) >= MAX_CONNECTS
        ):
            return
        if not self._policy.may_connect(relay):
            self._plugin.node.stats.count("turn_connects_refused")
            return
        self._connected.add(relay)
        self._calls.spawn(self._connect(relay))

    async def _connect(self, relay: Address) -> None:
        wait = 0.0 if self.is_cut_off() else DIALS_FIRST_S
        await asyncio.sleep(wait if self._plugin.initiator else OTHERS_TURN_S)
        allocation = self.allocation
        if allocation is None or self.joined:
            return
        if await self._affordable(relay) is None:
            return
        try:
            number = await connect(allocation, relay)
        except RelayError as error:
            self.why_not = error
            return
        await self._joined(allocation, number, relay)

    def _take(self, pipe: Pipe) -> None:
        self._pipes.append(pipe)
        self._calls.hand_over(pipe)

    # The end.

    def told(self) -> dict[str, object]:
        """Return what the peer is told of these ways."""
        if self.relayed is None:
            return {}
        lets = sorted(self.lets)[:MAX_MAPPED]
        return {"stream_ip": self.relayed[0], "stream_port": self.relayed[1], "lets": lets}

    def close(self) -> None:
        """Let go of the relay, unless a pipe goes over it."""
        if self._ahead is not None:
            self._ahead.close()
        if self.allocation is not None:
            self.allocation.on_incoming = None
            self.allocation.retire()

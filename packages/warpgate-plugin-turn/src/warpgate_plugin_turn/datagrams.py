"""One attempt's ways for datagrams: over the peer's relay, over this side's own, over both."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from warpgate import NATType, Plugin, RelayError
from warpgate.net.addresses import Address, canonical_ip
from warpgate.net.datagram import DatagramSocket
from warpgate.net.udp import UdpPipe
from warpgate.protocol.ip import is_public
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.calls import Calls
from warpgate_plugin_turn.knock import Knocker, knock
from warpgate_plugin_turn.messages import RelayFacts
from warpgate_plugin_turn.policy import PeerPolicy, family_of
from warpgate_plugin_turn.sockets import MAX_OWN_STUN, mapped_ips, open_towards, tcp_mapped_ips

if TYPE_CHECKING:
    from warpgate_plugin_turn.factory import TurnFactory

OWN_RELAY_S: Final = 0.2
"""Where the peer has a relay: a responder whose UDP has not proven to work by then gets its own."""
TWO_RELAYS_S: Final = 0.25
"""The head start of a plain socket over a second relay."""
MAX_SOCKETS: Final = 2  # the peer may name another relay once


class Datagrams:
    """One attempt's ways for datagrams.

    Args:
        plugin: the attempt.
        factory: the node's relays; None: it has none.
        policy: what the peer may make this side and its relay do.
        secret: what opens a way to this side's relay.
        calls: the attempt's.

    Attributes:
        allocation: this side's relay.
        mapped: where this side's packets come from.
        refused: which addresses the relay refuses to let through, and why.
        works: set once UDP has proven to get out of here.
        blocked: it has proven not to.
        unreachable: why the peer's relay can't be written to from here; None: it can.

    """

    def __init__(
        self,
        plugin: Plugin,
        factory: TurnFactory | None,
        policy: PeerPolicy,
        secret: bytes,
        calls: Calls,
    ) -> None:
        self.allocation: Allocation | None = None
        self.mapped: set[str] = set()
        self.refused: dict[str, RelayError] = {}
        self.works = asyncio.Event()
        self.blocked = False
        self.unreachable: RelayError | None = None
        self._plugin = plugin
        self._factory = factory
        self._policy = policy
        self._secret = secret
        self._calls = calls
        self._peer = RelayFacts()
        self._sockets: list[DatagramSocket] = []
        self._knockers: list[Knocker] = []
        self._tried: set[tuple[str, Address]] = set()

    def udp_is_blocked(self) -> bool:
        """Return whether UDP is known not to get out of here."""
        known = self._plugin.src_info["nat"]["type"] == NATType.BLOCKED
        return known or (self._factory is not None and self._factory.udp_silent)

    def adopt(self, allocation: Allocation) -> None:
        """Take this side's relay."""
        self.allocation = allocation
        self._tried = {way for way in self._tried if way[0] != "relay"}  # it may be a second one
        self._policy.trusted |= {allocation.relayed[0], allocation.address[0]}
        allocation.knock = knock(self._secret)
        allocation.stranger = self._stranger
        allocation.on_refused = self._permission_refused
        if allocation.server.transport == "udp":
            self.mapped.add(canonical_ip(allocation.mapped[0]))
            self.works.set()
        self.permit()
        if self._peer.relay is not None:
            self.two_relays(self._peer.relay)

    def give_up_relay(self) -> None:
        """Let go of this side's relay, which has died."""
        allocation, self.allocation = self.allocation, None
        if allocation is not None:
            allocation.stranger = allocation.on_refused = None
            allocation.retire()

    def heard(self, facts: RelayFacts) -> None:
        """Take note of the peer's newest facts, and let its packets through."""
        self._peer = facts
        self.permit()

    def permit(self) -> None:
        """Let the peer's packets through, wherever they may come from."""
        allocation = self.allocation
        if allocation is None:
            return
        relay = self._peer.relay
        for ip in self._policy.peer_ips(allocation.family) - set(self.refused):
            allocation.permit(ip)
        if relay is not None and self._serves(allocation, relay[0]):
            allocation.permit(canonical_ip(relay[0]))

    def _serves(self, allocation: Allocation, ip: str) -> bool:
        """Return whether this side's relay can and may write to a relay of the peer's."""
        return family_of(ip) == allocation.family and self._policy.may_relay(ip)

    def _permission_refused(self, ip: str, error: RelayError) -> None:
        self.refused[ip] = error
        self._calls.check_hopeless()

    async def towards(self, relay: Address) -> None:
        """Open every way to the peer's relay."""
        if self.udp_is_blocked():
            self._calls.allocate()
        if self.allocation is not None:
            wait = TWO_RELAYS_S if self.allocation.server.transport == "udp" else 0.0
            self._calls.spawn(self._two_relays_after(wait, relay))
        await self.one_relay(relay)

    async def one_relay(self, relay: Address) -> None:
        """Write to the peer's relay from a plain socket, and find out from where that comes."""
        before = sum(kind == "socket" for kind, _ in self._tried)
        if ("socket", relay) in self._tried or before >= MAX_SOCKETS:
            return
        self._tried.add(("socket", relay))
        facts, budget = self._peer, self._plugin.budget
        way = await self._way(relay)
        try:
            sock = await open_towards(way)
        except OSError as error:
            if self._sockets:
                return
            self.unreachable = RelayError(f"the other's relay {relay[0]} can't be reached: {error}")
            self._calls.allocate()  # of the other's family; the other may write to that
            self._calls.check_hopeless()
            await self._calls.tell()
            return
        self.unreachable = None
        self._sockets.append(sock)
        pipe = UdpPipe(sock, way)
        pipe.path = "relay"
        self._calls.hand_over(pipe)

        def send(data: bytes) -> None:
            if budget.take(way[0], 1, len(data)):  # as the hello on this pipe does
                sock.send_to(data, way)

        self._knockers.append(Knocker(pipe, facts.knock, send))
        local = canonical_ip(sock.local[0])
        if way == relay:
            self.mapped.add(local)  # what the relay sees where no NAT is in the way
            if is_public(local) or not is_public(relay[0]):
                await self._calls.tell()
        asking = self._calls.spawn(self._learn(sock, relay, facts))
        await asyncio.wait([asking], timeout=OWN_RELAY_S)
        if not self.works.is_set() and not pipe.closed and pipe.peer_id is None:
            self._calls.allocate()

    async def _way(self, server: Address) -> Address:
        """Return by which address a server is reached: NAT64 may be in between."""
        return server if self._factory is None else await self._factory.way(server)

    async def _learn(self, sock: DatagramSocket, relay: Address, facts: RelayFacts) -> None:
        """Learn which IP address the peer's relay will see, and tell the peer."""
        plugin, stun = self._plugin, facts.stun
        if stun is not None and self._policy.refusal(stun[0]) is not None:
            stun = None
        stun = None if stun is None else await self._way(stun)
        ours = self._factory.stun_servers if self._factory is not None else ()
        alike = [each for each in ours if family_of(each[0]) == family_of(relay[0])]
        own = [await self._way(each) for each in alike[:MAX_OWN_STUN]]
        found = await mapped_ips(sock, stun, own, plugin.budget)
        if found:
            self.works.set()
        else:
            found = await tcp_mapped_ips(sock.af, stun, plugin.budget)
            self.blocked = True
        if self._factory is not None:
            self._factory.udp_was(heard=not self.blocked)
        self.mapped |= found
        await self._calls.tell()
        self._calls.check_hopeless()

    async def _two_relays_after(self, delay_s: float, relay: Address) -> None:
        await asyncio.sleep(delay_s)
        self.two_relays(relay)

    def two_relays(self, relay: Address) -> None:
        """Write to the peer's relay over this side's own."""
        allocation = self.allocation
        if (
            allocation is None
            or ("relay", relay) in self._tried
            or not self._serves(allocation, relay[0])
        ):
            return
        self._tried.add(("relay", relay))
        if not allocation.has(relay):
            self._open(allocation, relay)

    # Ways in over this side's own relay.

    def _stranger(self, data: bytes, peer: Address) -> None:
        """Open the way to whoever knows this attempt's secret."""
        allocation = self.allocation
        if allocation is None or data != allocation.knock:
            self._plugin.node.stats.count("turn_stranger")
        else:
            self._open(allocation, peer)

    def _open(self, allocation: Allocation, peer: Address) -> None:
        try:
            pipe = allocation.pipe(peer)
        except RelayError:
            self._plugin.node.stats.count("turn_pipes_limit")
            return
        self._calls.hand_over(pipe)

    # The end.

    def stop(self) -> None:
        """Knock no more."""
        for knocker in self._knockers:
            knocker.stop()

    def close(self) -> None:
        """Let go of what carries no pipe."""
        for sock in self._sockets:
            if sock.default is None:  # no pipe is on it
                sock.close()
        self.give_up_relay()

"""The last way of an attempt: a TCP connection to the relay, where UDP does not get through to it.

One side has a relay, the other none, and its UDP is blocked: then the first one gets a relay for
TCP (RFC 6062), and the second one connects to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from warpgate import TCP, Pipe, Plugin, RelayError
from warpgate.net.addresses import Address
from warpgate.net.budget import MAX_SYNS, SYN_BYTES
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.tcp_relay import accept

PERMIT_S: Final = 2.0
DIAL_S: Final = 5.0
MAX_CONNECTIONS: Final = 4

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Streams:
    """One attempt's connections through a relay.

    Args:
        plugin: the attempt.
        pool: where relays come from; None: there are none.
        hand_over: takes each pipe.
        spawn: runs a task that ends with the attempt.

    Attributes:
        relayed: where the peer can connect to; None while that is not so.
        why_not: what went wrong.

    """

    def __init__(
        self, plugin: Plugin, pool: Pool | None, hand_over: Callable[[Pipe], None], spawn: Spawn
    ) -> None:
        self.relayed: Address | None = None
        self.why_not: RelayError | OSError | None = None
        self._plugin = plugin
        self._pool = pool
        self._hand_over = hand_over
        self._spawn = spawn
        self._allocation: Allocation | None = None
        self._offered = False
        self._dialled: set[Address] = set()
        self._connections = 0

    async def offer(self, ips: Iterable[str]) -> None:
        """Get a relay for TCP, once, and let a peer's addresses in; then ``relayed`` is set."""
        wanted = set(ips)
        if self._offered or self._pool is None or not wanted:
            return
        self._offered = True
        try:
            allocation = await self._pool.allocate(self._plugin.dest_info["af"], streams=True)
        except RelayError as error:
            self.why_not = error
            return
        self._allocation = allocation
        settled: set[str] = set()
        all_settled = asyncio.Event()

        def settle(ip: str, error: RelayError | None = None) -> None:
            self.why_not = self.why_not or error
            settled.add(ip)
            if settled >= wanted:
                all_settled.set()

        allocation.on_permitted, allocation.on_refused = settle, settle
        allocation.on_incoming = self._incoming
        for ip in wanted:
            allocation.permit(ip)
        # A connection from an address without a permission is closed: so first the permission.
        try:
            async with asyncio.timeout(PERMIT_S):
                await all_settled.wait()
        except TimeoutError:
            self.why_not = RelayError(f"TURN server {allocation.name} gave no permission in time")
            return
        self.relayed = allocation.relayed

    async def dial(self, relay: Address) -> None:
        """Connect to the peer's relay, once."""
        if relay in self._dialled or len(self._dialled) >= MAX_CONNECTIONS:
            return
        self._dialled.add(relay)
        plugin = self._plugin
        if not plugin.budget.take(relay[0], MAX_SYNS, SYN_BYTES):
            plugin.node.stats.count("turn_dials_limited")
            return
        try:
            pipe = await plugin.nic.route(plugin.af).connect(relay, TCP, timeout=DIAL_S)
        except OSError as error:
            self.why_not = error
            return
        pipe.path = "relay"
        self._hand_over(pipe)

    def close(self) -> None:
        """Let go of the relay, unless a pipe goes over it."""
        if self._allocation is not None:
            self._allocation.on_incoming = None
            self._allocation.retire()

    def _incoming(self, connection_id: int, peer: Address) -> None:
        if self._connections < MAX_CONNECTIONS:
            self._connections += 1
            self._spawn(self._accept(connection_id, peer))

    async def _accept(self, connection_id: int, peer: Address) -> None:
        assert self._allocation is not None
        assert self._pool is not None
        tls = self._pool.context(self._allocation.server)
        try:
            pipe = await accept(self._allocation, connection_id, peer, tls)
        except RelayError as error:
            self.why_not = error
            return
        self._hand_over(pipe)

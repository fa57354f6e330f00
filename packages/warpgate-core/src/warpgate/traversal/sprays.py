"""What a node's sprays may do together: rare, one at a time, within what a router can hold.

A spray is the only thing that may send more than 50 packets to an address that has not answered
(WIRE section 5). A strategy that sprays asks the node's one :class:`SprayGate`, ``manager.sprays``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from warpgate.errors import AttemptSkipped, TraversalError
from warpgate.traversal.report import SkipReason

MAX_SPRAY_PACKETS = 1400
"""Of one spray; and as many flows, by all sprays through one gateway within ``PERIOD_S``."""
PERIOD_S = 60.0
TURN_S = 2.0
"""How long a spray waits for another one to end."""
MAX_TARGETS = 1024
"""Addresses of the last ``PERIOD_S`` that are remembered; when they are so many, nobody sprays."""
MAX_GATEWAYS = 64


class Spray:
    """One spray that the gate has let through.

    Attributes:
        packets: how many it may send.
        sent: how many it has sent.
        flows: how many of them were new flows to the gateway.

    """

    def __init__(self, packets: int) -> None:
        self.packets = packets
        self.sent = 0
        self.flows = 0

    def take(self, new_flow: bool = True) -> bool:
        """Count one packet; False when there are no more."""
        if self.sent >= self.packets:
            return False
        self.sent += 1
        self.flows += new_flow
        return True


class SprayGate:
    """Lets sprays through: to one address once a minute, one at a time, so many flows a gateway.

    Args:
        clock: monotonic seconds; None: the running loop's.

    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._turn = asyncio.Lock()
        self._targets: OrderedDict[str, float] = OrderedDict()  # when the last one ended
        self._flows: dict[str, deque[tuple[float, int]]] = {}

    def room(self, ip: str, gateway: str) -> int:
        """Return how many packets a spray may have now; 0: none may be begun.

        Args:
            ip: where it would go.
            gateway: what it goes through, such as an interface and a family.

        """
        self._forget()
        if ip in self._targets or len(self._targets) >= MAX_TARGETS:
            return 0
        if gateway not in self._flows and len(self._flows) >= MAX_GATEWAYS:
            return 0
        return max(0, MAX_SPRAY_PACKETS - self._held(gateway))

    def refusal(self, ip: str, gateway: str, packets: int) -> str | None:
        """Return why a spray may not begin now, None when it may; arguments as for :meth:`room`."""
        room = self.room(ip, gateway)
        if packets <= room:
            return None
        too_soon = self.too_soon(ip)
        if too_soon is not None:
            return str(too_soon)
        return (
            f"{packets} packets would be too many flows for the router behind {gateway}: sprays of "
            f"the last {PERIOD_S:g} s leave room for {room} of {MAX_SPRAY_PACKETS}"
        )

    def too_soon(self, ip: str) -> AttemptSkipped | None:
        """Return what to raise where a spray went to an address lately; None: none went there."""
        self._forget()
        if ip not in self._targets:
            return None
        ago = self._clock() - self._targets[ip]
        return AttemptSkipped(f"{ip}, {ago:.0f} s ago", SkipReason.TOO_SOON)

    @asynccontextmanager
    async def spray(self, ip: str, gateway: str, packets: int) -> AsyncIterator[Spray]:
        """Hold the node's turn to spray; another one is waited for, at most ``TURN_S``.

        Raises:
            AttemptSkipped: one went to this address lately.
            TraversalError: it may not begin; the text is that of :meth:`refusal`.

        """
        try:
            async with asyncio.timeout(TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            raise TraversalError(
                f"another spray of this node went on for more than {TURN_S:g} s"
            ) from None
        try:
            refused = self.refusal(ip, gateway, packets)
            if refused is not None:
                raise self.too_soon(ip) or TraversalError(refused)
            made = Spray(packets)
            self._targets[ip] = self._clock()
            try:
                yield made
            finally:
                now = self._clock()
                self._targets[ip] = now
                self._targets.move_to_end(ip)
                self._flows.setdefault(gateway, deque()).append((now, made.flows))
        finally:
            self._turn.release()

    def _held(self, gateway: str) -> int:
        return sum(flows for _, flows in self._flows.get(gateway, ()))

    def _forget(self) -> None:
        """Drop what is older than ``PERIOD_S``; both tables are in the order of time."""
        limit = self._clock() - PERIOD_S
        while self._targets and next(iter(self._targets.values())) <= limit:
            self._targets.popitem(last=False)
        for gateway, flows in list(self._flows.items()):
            while flows and flows[0][0] <= limit:
                flows.popleft()
            if not flows:
                del self._flows[gateway]

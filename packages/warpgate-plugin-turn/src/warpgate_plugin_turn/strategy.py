"""``turn``: a pipe through a relay, when nothing else leads to the peer.

One relay is enough: the side without one writes from a plain UDP socket to the other's relayed
address, whatever its own NAT does, since a relay's permissions are for IP addresses and the first
authenticated packet shows the port. Only where UDP is blocked on one side, or on both, do packets go
over two relays. ``docs/turn.md`` has the whole picture.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, ClassVar, Final

from warpgate import AttemptSkipped, ConMsg, Pipe, RelayError, SkipReason, register
from warpgate.net.addresses import Address
from warpgate.net.udp import UdpPipe
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.datagrams import Calls, Datagrams
from warpgate_plugin_turn.diagnosis import Diagnosed
from warpgate_plugin_turn.errors import NoServers, named
from warpgate_plugin_turn.knock import HELLO_REPEATS_S
from warpgate_plugin_turn.messages import (
    KNOCK_BYTES,
    MAX_CAUSE,
    MAX_MAPPED,
    RelayFacts,
    TurnAnswer,
    TurnOffer,
)
from warpgate_plugin_turn.policy import PeerPolicy
from warpgate_plugin_turn.story import how_far, printable_cause
from warpgate_plugin_turn.streams import Streams

if TYPE_CHECKING:
    from warpgate import Node
    from warpgate_plugin_turn.factory import TurnFactory

SOON_S: Final = 0.01
"""A warm relay is there by then; otherwise the peer is told that one is coming."""
OFFER_S: Final = 0.7
"""The initiator waits so long for its own relay before it asks the peer for one."""
STREAM_S: Final = 0.6
"""The head start of datagrams over a stream: knocks that were early come again within that time."""
MAX_PIPES: Final = 6
MAX_RELAYS: Final = 3
"""So many relays one attempt takes, one after another, where they turn out to be dead."""
SPARE_S: Final = 0.1
"""So long before its time is up an attempt says what it has waited for."""


@register(phase="relay")
class Turn(Diagnosed):
    """Relays by TURN (RFC 8656); the pipe is one of datagrams."""

    name: ClassVar[str] = "turn"
    transport: ClassVar[Any] = "udp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 10, "set_bind": False}
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = (
        (TurnOffer, 6, 30.0),
        (TurnAnswer, 6, 30.0),
    )

    def __init__(self, factory: TurnFactory | None = None) -> None:
        """Make an attempt; ``factory`` holds the node's relays, None: it has none."""
        super().__init__()
        self._factory = factory
        self._secret = os.urandom(KNOCK_BYTES)
        self._policy = PeerPolicy(self)
        self._begun = False
        self._turn: asyncio.Event | None = None
        self._cause: RelayError | None = None  # why this side has no relay
        self._allocating: asyncio.Task[None] | None = None
        self._peer: RelayFacts = RelayFacts()
        self._tasks: set[asyncio.Task[None]] = set()
        pool = factory.pool if factory is not None and factory.streams else None
        self._streams = Streams(self, pool, self._hand_over, self._spawn)
        calls = Calls(
            self._hand_over, self._spawn, self._tell, self._allocate, self._check_hopeless
        )
        self._datagrams = Datagrams(self, factory, self._policy, self._secret, calls)
        self._pipes = 0
        self._relays = 0
        self._known = asyncio.Event()  # whether this side has a relay
        self._told: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def setup(cls, node: Node) -> TurnFactory | None:
        """Return the node's pool of relays; None where ``enable_turn`` is off."""
        from warpgate_plugin_turn.factory import TurnFactory

        if not node.conf["enable_turn"]:
            return None
        return node.resources.register(TurnFactory(node))

    # What the core calls.

    async def run(self, reply: ConMsg | None = None) -> None:
        """Get relays, tell the peer, and hand over whatever may become a pipe."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self.timeout - SPARE_S), self._out_of_time)
        if self.initiator:
            if reply is None:
                await self._call()
            elif isinstance(reply, TurnAnswer) and isinstance(reply.payload, RelayFacts):
                await self._hear(reply.payload)
        elif isinstance(reply, TurnOffer) and isinstance(reply.payload, RelayFacts):
            await self._hear(reply.payload)
        elif not self._begun:
            self.result.set_result(None)  # no offer of ours: somebody else's message started this

    async def close(self) -> None:
        """Let go of everything that carries no pipe."""
        if self._timer is not None:
            self._timer.cancel()
        self._datagrams.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._datagrams.close()
        self._streams.close()
        if self._turn is not None:
            self._turn.set()

    @property
    def _allocation(self) -> Allocation | None:
        return self._datagrams.allocation

    # The initiator's first step.

    async def _call(self) -> None:
        self._begun = True
        if self._factory is not None:
            self._turn = await self._factory.my_turn((self.dest_info["node_id"], self.af))
        self._allocate()
        if not await self._relay_known(SOON_S):
            await self._tell(coming=True)  # a peer whose UDP is blocked can get its own meanwhile
            if not await self._relay_known(OFFER_S):
                await self._tell()

    async def _relay_known(self, timeout_s: float) -> bool:
        """Wait until this side has its relay, or knows that it gets none; it tells that by itself."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
        except TimeoutError:
            return False
        return True

    def _allocate(self) -> None:
        """Get a relay of this side's own, once; the peer is told when there is one."""
        if self._allocating is None:
            self._allocating = self._spawn(self._own_relay())

    async def _own_relay(self) -> None:
        try:
            if self._factory is None:
                raise RelayError("this attempt was made without a factory")
            pool, blocked = self._factory.pool, self._datagrams.udp_is_blocked()
            allocation = await pool.take(self.dest_info["af"], udp_blocked=blocked)
        except RelayError as error:
            self._cause = error
            if not isinstance(error, NoServers):
                self.note(named(error))
        else:
            self._adopt(allocation)
        self._known.set()
        await self._tell()
        self._check_hopeless()

    def _adopt(self, allocation: Allocation) -> None:
        self._relays += 1
        for text in allocation.notes:
            self.note(text)
        allocation.on_lost.append(self._relay_lost)
        self._datagrams.adopt(allocation)

    def _relay_lost(self, error: RelayError) -> None:
        """Take another relay where this side's is dead; the peer is told of the new one."""
        if self.result.done():
            return
        self.note(named(error))
        if self._relays < MAX_RELAYS:
            self._datagrams.give_up_relay()
            self._allocating = None
            self._allocate()

    # What the peer says.

    async def _hear(self, facts: RelayFacts) -> None:
        """Take the peer's facts, the first ones or newer ones."""
        self._begun = True
        self._peer = facts
        self._policy.hear(facts.mapped)
        self._datagrams.heard(facts)
        relay, stream = self._allowed(facts.relay), self._allowed(facts.stream)
        if stream is not None:
            self._spawn(self._streams.dial(stream))
        if facts.no_udp and relay is None and self._allocation is not None:
            self._spawn(self._offer_stream())
        if relay is None:
            blocked = self._datagrams.udp_is_blocked()
            if blocked or not (facts.coming or self.initiator) or facts.wants_relay:
                self._allocate()
            self._check_hopeless()
        else:
            await self._datagrams.towards(relay)

    def _allowed(self, relay: Address | None) -> Address | None:
        """Return a relay of the peer's that this side may write to."""
        refusal = None if relay is None else self._policy.refusal(relay[0])
        if relay is not None and refusal is not None:
            self._cause = self._cause or RelayError(f"the peer's relay {relay[0]}: {refusal}")
        return relay if refusal is None else None

    async def _offer_stream(self) -> None:
        await asyncio.sleep(STREAM_S)
        await self._streams.offer(self._policy.peer_ips(self.dest_info["af"]))
        await self._tell()

    def _hand_over(self, pipe: Pipe) -> None:
        if self._pipes >= MAX_PIPES or self.result.done():
            self.node.stats.count("turn_pipes_limit")
            pipe.abort()
            return
        self._pipes += 1
        if isinstance(pipe, UdpPipe):
            pipe.hello_repeats_s = HELLO_REPEATS_S
        self.result.set_result(pipe)

    # Talking to the peer, and giving up.

    async def _tell(self, coming: bool = False) -> None:
        """Send this side's facts."""
        ways = self._datagrams
        facts: dict[str, Any] = {"mapped": sorted(ways.mapped)[:MAX_MAPPED], "knock": self._secret}
        allocation = ways.allocation
        if allocation is not None and not allocation.ended:
            facts.update(relay_ip=allocation.relayed[0], relay_port=allocation.relayed[1])
            if self._factory is not None:
                stun = self._factory.stun_beside(allocation)
                facts.update(stun_ip=stun[0], stun_port=stun[1])
        elif self._cause is not None:
            facts["cause"] = str(self._cause)[:MAX_CAUSE]
            facts["no_servers"] = isinstance(self._cause, NoServers)
        if self._streams.relayed is not None:
            facts["stream_ip"], facts["stream_port"] = self._streams.relayed
        facts["no_udp"] = ways.blocked
        facts["coming"] = coming
        facts["unreachable"] = ways.unreachable is not None
        facts["wants_relay"] = not (coming or ways.works.is_set() or allocation is not None)
        if facts == self._told:
            return
        self._told = facts
        kind = TurnOffer if self.initiator else TurnAnswer
        await self.send_signal_msg(kind(payload=facts))

    def _check_hopeless(self) -> None:
        """Fail with the cause as soon as nothing can come any more."""
        if self.result.done() or not self.initiator:
            return
        own, theirs = self._cause, printable_cause(self._peer.cause)
        far, near = self._datagrams.unreachable, self._allocation
        if near is None and own is not None and self._peer.relay is None and theirs:
            if isinstance(own, NoServers) and self._peer.no_servers:
                nobody = AttemptSkipped(str(own), SkipReason.NO_TURN_SERVER)
                self.result.set_exception(nobody)
                return
            text = f"no relay here: {named(own)}; the peer says: {theirs}"
            self.result.set_exception(RelayError(text))
            return
        if near is None and own is not None and far is not None:
            self.result.set_exception(RelayError(f"no relay here: {own}; {far}"))
            return
        if near is not None and self._peer.unreachable and self._peer.relay is None and theirs:
            text = f"the relay here, {near.relayed[0]}, can't be reached by the peer; it says: {theirs}"
            self.result.set_exception(RelayError(text))
            return
        mapped = self._policy.peer_ips(near.family) & self._policy.mapped if near else set()
        refused = self._datagrams.refused
        if mapped and not mapped - set(refused) and self._peer.relay is None:
            self.result.set_exception(next(iter(refused.values())))

    def _out_of_time(self) -> None:
        if not self.result.done():
            others = filter(None, [self._streams.why_not, self._datagrams.unreachable])
            refused = [*self._datagrams.refused.values(), *others]
            story = how_far(self._allocation, self._cause, self._peer, refused)
            self.result.set_exception(RelayError(f"no pipe in time: {story}"))

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await coroutine
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends the attempt only
                if not self.result.done():
                    self.result.set_exception(error)

        task = asyncio.get_running_loop().create_task(guarded(), name="warpgate turn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

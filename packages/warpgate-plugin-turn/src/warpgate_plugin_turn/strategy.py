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

from warpgate import ConMsg, Pipe, RelayError, register
from warpgate.net.addresses import Address
from warpgate.net.udp import UdpPipe
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.calls import Calls
from warpgate_plugin_turn.datagrams import OWN_RELAY_S, Datagrams
from warpgate_plugin_turn.diagnosis import Diagnosed
from warpgate_plugin_turn.errors import NoServers, named
from warpgate_plugin_turn.hopeless import no_permission, no_relay, no_way, only_a_stream
from warpgate_plugin_turn.knock import HELLO_REPEATS_S, PAUSES_S
from warpgate_plugin_turn.messages import (
    KNOCK_BYTES,
    MAX_CAUSE,
    MAX_MAPPED,
    RelayFacts,
    TurnAnswer,
    TurnOffer,
)
from warpgate_plugin_turn.policy import PeerPolicy
from warpgate_plugin_turn.story import how_far
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
    """Relays by TURN (RFC 8656): a pipe of datagrams, or a stream where the call asks for one."""

    name: ClassVar[str] = "turn"
    transport: ClassVar[Any] = "udp"
    transports: ClassVar[tuple[Any, ...]] = ("udp", "tcp")
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
        way = None if factory is None else factory.way
        calls = Calls(
            self._hand_over, self._spawn, self._tell, self._allocate, self._check_hopeless
        )
        self._datagrams = Datagrams(self, factory, self._policy, self._secret, calls)
        self._streams = Streams(self, pool, self._policy, calls, way)
        self._pipes = 0
        self._relays = 0
        self._doubting = False
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
            if self.wanted_transport == "tcp":
                for text in await self._streams.offer():
                    self.note(text)
            else:
                pool, blocked = self._factory.pool, self._datagrams.udp_is_blocked()
                allocation = await pool.take(self.dest_info["af"], udp_blocked=blocked)
                self._adopt(allocation)
        except RelayError as error:
            self._cause = error
            if not isinstance(error, NoServers):
                self.note(named(error))
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
        if facts.wants and not self.initiator:
            self.wanted_transport = facts.wants
        self._policy.hear(facts.mapped)
        if self.wanted_transport == "tcp":
            await self._hear_of_streams(facts)
        else:
            await self._hear_of_datagrams(facts)

    async def _hear_of_streams(self, facts: RelayFacts) -> None:
        self._streams.heard(facts)
        if facts.stream is None:
            if not (facts.coming or self.initiator) or facts.wants_relay:
                self._allocate()
        elif not self._streams.is_cut_off():
            await asyncio.sleep(OWN_RELAY_S)
        if self._streams.is_cut_off() or (facts.stream is not None and not self._streams.joined):
            self._allocate()
        self._check_hopeless()

    async def _hear_of_datagrams(self, facts: RelayFacts) -> None:
        self._datagrams.heard(facts)
        relay = self._allowed(facts.relay)
        if self.wanted_transport is None:  # a stream is the last way
            stream = self._allowed(facts.stream)
            if stream is not None:
                self._spawn(self._streams.dial(stream, facts.lets))
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
        try:
            await self._streams.offer()
        except RelayError as error:
            self._streams.why_not = error
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
        ways, streams = self._datagrams, self._streams
        mapped = sorted(ways.mapped | streams.mapped)[:MAX_MAPPED]
        facts: dict[str, Any] = {"mapped": mapped, "knock": self._secret, **streams.told()}
        allocation = ways.allocation
        if allocation is not None and not allocation.ended:
            facts.update(relay_ip=allocation.relayed[0], relay_port=allocation.relayed[1])
        elif self._cause is not None:
            facts["cause"] = str(self._cause)[:MAX_CAUSE]
            facts["no_servers"] = isinstance(self._cause, NoServers)
        beside = allocation or streams.allocation
        if beside is not None and not beside.ended and self._factory is not None:
            facts["stun_ip"], facts["stun_port"] = self._factory.stun_beside(beside)
        has_way = ways.works.is_set() or streams.joined or beside is not None
        facts["no_udp"] = ways.blocked
        facts["coming"] = coming
        facts["unreachable"] = (
            streams if self.wanted_transport == "tcp" else ways
        ).unreachable is not None
        facts["wants_relay"] = not (coming or has_way)
        facts["wants"] = self.wanted_transport or ""
        if facts == self._told:
            return
        self._told = facts
        kind = TurnOffer if self.initiator else TurnAnswer
        await self.send_signal_msg(kind(payload=facts))

    def _check_hopeless(self) -> None:
        """Fail with the cause as soon as nothing can come any more."""
        if self.result.done() or not self.initiator:
            return
        own, peer = self._cause, self._peer
        ways: Datagrams | Streams = self._datagrams
        if self.wanted_transport == "tcp":
            ways = self._streams
        why = no_relay(ways, own, peer) or no_way(ways, own, peer)
        why = why or no_permission(ways, self._policy, peer)
        if why is not None:
            self.result.set_exception(why)
        elif self.wanted_transport == "udp" and not self._doubting:
            self._doubting = only_a_stream(self._datagrams, own, peer) is not None
            if self._doubting:
                self._spawn(self._give_up_on_datagrams())

    async def _give_up_on_datagrams(self) -> None:
        # What came too early for a permission comes again: as long as they knock, UDP may do.
        await asyncio.sleep(sum(PAUSES_S))
        why = only_a_stream(self._datagrams, self._cause, self._peer)
        if why is not None and not self.result.done():
            self.result.set_exception(why)

    def _out_of_time(self) -> None:
        if not self.result.done():
            stream = self.wanted_transport == "tcp"
            ways = self._streams if stream else self._datagrams
            refused: list[Exception] = [*ways.refused.values()]
            others = (self._streams.why_not, self._streams.unreachable, ways.unreachable)
            for error in others:
                if error is not None and error not in refused:
                    refused.append(error)
            story = how_far(ways.allocation, self._cause, self._peer, refused, stream=stream)
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

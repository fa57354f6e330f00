"""``tcp_punch``: both sides dial each other at once, from ports that both know."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final

from warpgate import EXT_BIND, ConMsg, Plugin, TraversalError, register
from warpgate.nat.pair import NatPair
from warpgate.net.addresses import Address
from warpgate.net.constants import IP6
from warpgate.protocol.ip import is_private, is_public, parse_ip
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.sockets import crosses_nat, own_facts, peer_facts
from warpgate_plugin_punch.tcp_punch import guessing, schedule
from warpgate_plugin_punch.tcp_punch.candidates import Candidates
from warpgate_plugin_punch.tcp_punch.clock import Factory, NtpClock
from warpgate_plugin_punch.tcp_punch.dialler import Dialler
from warpgate_plugin_punch.tcp_punch.messages import MAX_MS, Round, TcpAnswer, TcpOffer
from warpgate_plugin_punch.tcp_punch.outside import Outside, external, look_outside

if TYPE_CHECKING:
    from warpgate import Node

MESSAGE_TTL_S: Final = 20
READY_S: Final = 1.5
"""How long a node that has just started waits for what it does not know of its NAT."""
FAR_END_S: Final = 4.0
NEAR_END_S: Final = 0.7
"""How long the responder waits for another round: longer than the initiator lets one last."""
NEAR_PAUSE_S: Final = 0.35
"""How long a round lasts where no NAT is in the way."""
PROOF_S: Final = 0.05
"""How often the initiator looks whether the last connection still has its time to be proven."""


@register(phase="punch")
class TcpPunch(Plugin):
    """Connects over TCP through NATs that let in what was dialled out to (RFC 9293, section 3.5).

    The initiator's offer says where its SYNs come from; the responder's ports follow from the
    attempt's id where its NAT keeps them, and stand in its answer. A round takes some pairs of ports;
    the initiator's SYNs leave one after the other, so that some cross the responder's on their way.
    """

    name: ClassVar[str] = "tcp_punch"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 10, "set_bind": False}
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = (
        (TcpOffer, 1, MESSAGE_TTL_S),
        (TcpAnswer, 2, MESSAGE_TTL_S),
    )

    def __init__(self) -> None:
        super().__init__()
        self._dialler: Dialler | None = None
        self._candidates: Candidates | None = None
        self._volley: guessing.Volley | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._local_ip = ""
        self._mine = SideFacts()
        self._theirs = SideFacts()
        self._preparing = asyncio.Lock()
        self._unknown = False
        self._round = 0
        self._answered = 0
        self._own: list[int] = []
        self._aimed: set[int] = set()
        self._sent_at = 0.0
        self._one_way_s: float | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._notes: list[str] = []
        self.clock = NtpClock(())

    @classmethod
    async def setup(cls, node: Node) -> Any:
        """Share a clock among a node's attempts; None where punching is switched off."""
        if not node.conf["enable_punching"]:
            return None
        wanted = node.conf["init_clock_skew"]
        clock = NtpClock([str(each) for each in node.conf["ntp_servers"]] if wanted else [])
        clock.refresh()
        return Factory(cls, clock)

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """Ports that can only be guessed would take hundreds of SYNs."""
        if pair.needs_guesses:
            return "a port would have to be guessed, which takes too many SYNs over TCP"
        return None

    async def run(self, reply: ConMsg | None = None) -> None:
        """Begin the rounds, or take the peer's part in one."""
        async with self._preparing:
            if self._dialler is None:
                await self._prepare()
                self.clock.refresh()
        if reply is None:
            self._spawn(self._rounds())
        elif isinstance(reply, TcpOffer) and not self.initiator:
            await self._answer(reply.payload)
        elif isinstance(reply, TcpAnswer) and self.initiator:
            self._take_answer(reply.payload)
        elif not self.initiator and not self._round:
            raise TraversalError("the peer's signal holds no offer")

    async def _prepare(self) -> None:
        ip = self.dest_info["ip"]
        self._unknown = is_private(ip) and not (self.same_machine or self.nic.on_link(ip))
        if self._unknown and self.route_type != EXT_BIND:
            raise TraversalError(
                f"{ip} is on another private network, whose nodes would not answer"
            )
        if self.node.net_report is None and crosses_nat(self):
            await self.node.network.ready(READY_S)
        route = await self.bind()
        self._local_ip = route.source_for(self.dest_info["ip"]) or (
            "::" if self.af == IP6 else "0.0.0.0"
        )
        self._mine, self._theirs = own_facts(self, self.transport), peer_facts(self)
        self._dialler = Dialler(self.af, self.budget, self._connected, self._broke)
        self._candidates = Candidates(self.initiator, self.result.set_result, self._broke)
        self._dialler.expect(self.dest_info["ip"])

    @property
    def _sockets(self) -> Dialler:
        assert self._dialler is not None
        return self._dialler

    @property
    def _made(self) -> Candidates:
        assert self._candidates is not None
        return self._candidates

    # The initiator.

    async def _rounds(self) -> None:
        for number in range(1, schedule.ROUNDS + 1):
            await self._offer(number)
            far = crosses_nat(self)
            await asyncio.sleep(schedule.pause(self._one_way_s) if far else NEAR_PAUSE_S)
            if self._volley is not None:
                return  # it says how it ends
        while self._made.handed:  # noqa: ASYNC110  # a timer of the candidates ends it
            await asyncio.sleep(PROOF_S)
        silent = not self._answered and crosses_nat(self)
        heard = "the peer never answered the signal; " if silent else ""
        notes = "; ".join([*dict.fromkeys(self._notes), ""])
        raise TraversalError(f"{heard}{notes}{self._sockets.summary()} in {schedule.ROUNDS} rounds")

    async def _offer(self, number: int) -> None:
        mine, theirs = self._mine, self._theirs
        count = schedule.port_count(mine, theirs, initiator=True)
        own = [self._sockets.open(self._local_ip) for _ in range(count)]
        outside = await self._look(own)
        self._round, self._own, self._aimed = number, own, set()
        offer = TcpOffer(payload=self._part(number, outside))
        offer.payload.opener = number == 3
        self._sent_at = asyncio.get_running_loop().time()
        ip = self.dest_info["ip"]
        if self._unknown:
            pass  # the answer will say where the peer is
        elif _can_derive(theirs):
            count = schedule.port_count(theirs, mine, initiator=False)
            derived = schedule.derived_ports(self.plugin_id, number, count)
            ports = [theirs.outer_port(port) or port for port in derived]
            self._aim(
                ip,
                ports,
                theirs,
                schedule.stagger(number, self._one_way_s, mine.counting),
                number == 4,
            )
        elif mine.filtering in ("", "ad") and not mine.counting:
            # It opens the own filter for the peer's address, whatever its port will be.
            for port in own:
                self._sockets.dial(port, (ip, schedule.derived_ports(self.plugin_id, number, 1)[0]))
        await self.send_signal_msg(offer)

    def _take_answer(self, part: Round) -> None:
        """Take the responder's part: measure S, and dial where it really is."""
        if part.round != self._round or self._answered == part.round:
            return
        self._answered = part.round
        trip_s = asyncio.get_running_loop().time() - self._sent_at
        by_clock_s = part.way_ms / 1000 if part.way_ms else None
        one_way_s = schedule.one_way(trip_s, part.hold_ms / 1000, by_clock_s)
        self._one_way_s = min(one_way_s, self._one_way_s or one_way_s)
        self._theirs = part.facts
        if self._mine.hard and part.facts.hard:
            raise TraversalError("both NATs choose ports at random: only a relay is left")
        if guessing.applies(self, self._mine, part.facts):
            self._guess(part)
            return
        if self._made.handed or set(part.ports) <= self._aimed:
            return
        self._sockets.stop_dialling()
        self._aim(self._address(part.ip), part.ports, part.facts, [], part.round == 4)

    # The responder.

    async def _answer(self, part: Round) -> None:
        if part.round <= self._round:
            return
        received = asyncio.get_running_loop().time()
        way_ms = self.clock.now_ms() - part.clock_ms if part.clock_ms else 0
        self._last_until(FAR_END_S if crosses_nat(self) else NEAR_END_S)
        self._round, self._theirs = part.round, part.facts
        mine, theirs, ip = self._mine, part.facts, self._address(part.ip)
        guesses = guessing.applies(self, mine, theirs)
        count = schedule.port_count(mine, theirs, initiator=False)
        derived = schedule.derived_ports(self.plugin_id, part.round, count)
        self._own, self._aimed = [self._open(port) for port in derived], set()
        if guesses:
            outside = await self._look(self._own)
        elif mine.keeps_port or mine.hard:
            self._aim(ip, part.ports, theirs, [], part.opener)
            outside = await self._look(self._own)
        else:
            if theirs.filtering in ("ei", "ad"):  # it lets us in, wherever we come from
                extra = self._sockets.open(self._local_ip)
                for port in part.ports[: schedule.INITIATOR_PORTS]:
                    self._sockets.dial(extra, (ip, port))
            outside = await self._look(self._own)
            late = 3 if part.round == 4 else 1
            self._aim(
                ip, part.ports, theirs, schedule.stagger(late, None, mine.counting), part.opener
            )
        if self._own == derived and not crosses_nat(self):
            return  # the initiator knows all of that
        answer = TcpAnswer(payload=self._part(part.round, outside))
        held_s = asyncio.get_running_loop().time() - received
        answer.payload.hold_ms = min(round(held_s * 1000), MAX_MS)
        if 0 < way_ms < MAX_MS:
            answer.payload.way_ms = way_ms
        if guesses:
            self._guess(part)
        await self.send_signal_msg(answer)

    def _last_until(self, seconds: float) -> None:
        """Give up when no other offer comes by then: the initiator has given up, or is done."""
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._end_timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._made.handed:
            self.result.set_result(None)  # a proof may be under way
        else:
            self._broke(TraversalError(f"no connection: {self._sockets.summary()}"))

    def _open(self, port: int) -> int:
        try:
            return self._sockets.open(self._local_ip, port)
        except OSError:  # it is in use: the answer tells of another one
            return self._sockets.open(self._local_ip)

    # Both.

    def _guess(self, part: Round) -> None:
        """Dial what can only be guessed, or let the peer guess."""
        if self._volley is not None or not (part.ports or self._theirs.hard):
            return
        self._sockets.stop_dialling()
        self._volley = guessing.Volley(self.af, self._connected, lambda: self._made.fresh)
        target = (self._address(part.ip), part.ports[0] if part.ports else 0)
        self._sockets.expect(target[0])
        self._spawn(self._guesses((self._local_ip, self._own[0]), target, self._volley))

    async def _guesses(self, local: Address, target: Address, volley: guessing.Volley) -> None:
        note = await guessing.guess(self, self._mine, self._theirs, local, target, volley)
        if self.initiator and not self._made.handed:
            raise TraversalError(note)

    async def _look(self, own: list[int]) -> Outside:
        outside = await look_outside(self, self._mine, self._local_ip, own, self._sockets)
        if outside.note:
            self._notes.append(outside.note)
        return outside

    def _part(self, number: int, outside: Outside) -> Round:
        ext = external(self)
        return Round(
            round=number,
            ip=outside.ip or (ext if is_public(ext) and crosses_nat(self) else ""),
            ports=outside.ports,
            facts=self._mine,
            clock_ms=self.clock.now_ms(),
        )

    def _aim(
        self, ip: str, ports: list[int], theirs: SideFacts, times_s: list[float], opener: bool
    ) -> None:
        """Dial the peer's ports from the own ones.

        Args:
            ip: the peer's address.
            ports: its ports, as it or its id says.
            theirs: the peer's NAT.
            times_s: when, in seconds from now, for one pair of ports after the other; none: at once.
            opener: SYNs are to open the own NAT and get no further.

        """
        mine = self._mine
        own = self._own[:1] if theirs.counting and not mine.counting else self._own
        aimed = schedule.targets(mine, theirs, ports)
        self._aimed |= set(ports)
        self._sockets.expect(ip)
        for number, (port, other) in enumerate(schedule.pairs(own, aimed)):
            delay_s = times_s[min(number, len(times_s) - 1)] if times_s else 0.0
            hops = schedule.OPENER_TTLS[number % len(schedule.OPENER_TTLS)] if opener else None
            self._sockets.dial_at(delay_s, port, (ip, other), hops)

    def _address(self, named: str) -> str:
        """Return where the peer is: where it says, if we may write there."""
        address = parse_ip(named) if named else None
        if address is None or (address.version == 6) != (self.af == IP6) or not crosses_nat(self):
            return str(self.dest_info["ip"])
        return str(self.dest_info["ip"]) if self.refuses(named) else str(address)

    def _connected(self, sock: socket.socket) -> None:
        if self.initiator:
            self._sockets.stop_dialling()
        self._made.add(sock)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)

    def _broke(self, error: BaseException) -> None:
        if not self.result.done():
            self.result.set_exception(error)

    async def close(self) -> None:
        """End every socket, task and timer."""
        if self._end_timer is not None:
            self._end_timer.cancel()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._candidates is not None:
            await self._candidates.close()
        if self._dialler is not None:
            await self._dialler.close()


def _can_derive(theirs: SideFacts) -> bool:
    """Whether the peer's external ports follow from the attempt's id."""
    return theirs.keeps_port and (theirs.kind != "shifted" or theirs.step != 0)

"""``random_probe``: many sockets and many guesses, where ports can't be foretold."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any, ClassVar, Final

from warpgate import AttemptSkipped, ConMsg, Plugin, SkipReason, TraversalError, register
from warpgate.net.constants import IP6, NATType
from warpgate.protocol.ip import is_link_local, parse_ip
from warpgate_plugin_punch.common.probes import KEY_SIZE
from warpgate_plugin_punch.common.sockets import crosses_nat, open_udp, own_facts
from warpgate_plugin_punch.random_probe import odds
from warpgate_plugin_punch.random_probe.descriptors import sockets_left
from warpgate_plugin_punch.random_probe.hunt import Hunt
from warpgate_plugin_punch.random_probe.machine import SprayPlan, decide, guessed_ports
from warpgate_plugin_punch.random_probe.messages import (
    MAX_REASON,
    MAX_SOCKETS,
    SideNumbers,
    SprayAnswer,
    SprayOffer,
)
from warpgate_plugin_punch.random_probe.side import gateway, numbers

if TYPE_CHECKING:
    from warpgate.nat.pair import NatPair
    from warpgate.node.node import Node
    from warpgate_plugin_punch.common.sockets import PunchSocket

MESSAGE_TTL_S: Final = 20
GIVE_UP_EARLIER_S: Final = 0.1
"""Before the attempt's own time-out, whose text would say less."""


@register(phase="spray")
class RandomProbe(Plugin):
    """Connects over UDP where a port must be guessed: the birthday paradox finds one of many.

    The initiator's offer holds the facts of its NAT, and the responder, knowing both, decides what
    is sent by how many sockets to how many ports. Whoever's NAT gives out random ports opens many
    sockets, the other one guesses; where both do, and have few ports, each fills its own.
    """

    name: ClassVar[str] = "random_probe"
    transport: ClassVar[Any] = "udp"
    conf: ClassVar[dict[str, Any]] = {
        "timeout": 10,
        "set_bind": False,
        "after_punching": True,
        "sockets": 512,
        "guesses": 900,
    }
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = (
        (SprayOffer, 1, MESSAGE_TTL_S),
        (SprayAnswer, 2, MESSAGE_TTL_S),
    )

    def __init__(self) -> None:
        super().__init__()
        self._link: PunchSocket | None = None
        self._hunt: Hunt | None = None
        self._note = ""
        self._responding = False
        self._answers: asyncio.Queue[SprayAnswer.Payload] = asyncio.Queue(maxsize=1)

    @classmethod
    async def setup(cls, node: Node) -> Any:
        """Return the class; None where punching is switched off."""
        return cls if node.conf["enable_punching"] else None

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """Say that nothing has to be guessed, or that nothing gets through."""
        if pair.udp_blocked:
            return f"{pair.udp_blocked} UDP is blocked"
        known = NATType.BLOCKED not in (pair.local, pair.remote) and pair.local and pair.remote
        if known and not pair.symmetric_sides:
            return "no port needs guessing"
        return None

    async def run(self, reply: ConMsg | None = None) -> None:
        """Offer a spray, answer an offer, or take the answer.

        Raises:
            TraversalError: it came to nothing; the text says what was tried, and the odds.

        """
        payload = None if reply is None else reply.payload
        if reply is None:
            await self._call()
        elif self.initiator:
            if isinstance(payload, SprayAnswer.Payload) and self._answers.empty():
                self._answers.put_nowait(payload)
        elif isinstance(payload, SprayOffer.Payload):
            if not self._responding:
                self._responding = True
                await self._respond(payload)
        elif not self._responding:
            raise TraversalError("the peer's signal is no offer of a spray")

    async def close(self) -> None:
        """Close all sockets; the winner's closes with its pipe."""
        if self._hunt is not None:
            self._hunt.close()
        elif self._link is not None:
            self._link.close()

    # The initiator.

    async def _call(self) -> None:
        begun = asyncio.get_running_loop().time()
        ip = str(self.dest_info["ip"])
        if not (crosses_nat(self) or self.same_machine or self.nic.on_link(ip)):
            raise TraversalError(f"{ip} is a private address on no network of this machine")
        key = os.urandom(KEY_SIZE)
        peer_ip = str(self.dest_info["ext"])
        mine = await self._prepare(peer_ip)
        assert self._link is not None
        self._hunt = Hunt(self, self._link, key)
        await self.send_signal_msg(SprayOffer(payload={"side": mine, "key": key}))
        try:
            async with asyncio.timeout_at(begun + self.timeout - GIVE_UP_EARLIER_S):
                answer = await self._answers.get()
        except TimeoutError:
            raise TraversalError(
                f"the peer did not answer the offer within {self.timeout:g} s"
            ) from None
        if answer.mode == "none":
            raise self._none(mine, peer_ip, answer.reason)
        theirs = self._checked(answer.side)
        plan = SprayPlan(answer.mode, answer.first, answer.second, answer.odds)
        await self._carry_out(plan, mine, theirs, self._target(theirs))

    def _none(self, mine: SideNumbers, peer_ip: str, reason: str) -> TraversalError:
        """Return why nothing is sent: an address that had its spray lately is no failure."""
        gate, soon = self.manager.sprays, SkipReason.TOO_SOON
        reason = "".join(char for char in reason if char.isprintable())  # it is the peer's text
        own = None if mine.packets else gate.refusal(peer_ip, gateway(self), 1)
        if own is not None:
            return gate.too_soon(peer_ip) or TraversalError(own)
        if reason.startswith(soon.value):
            return AttemptSkipped(f"the peer: {reason.removeprefix(soon.value).strip(' ()')}", soon)
        return TraversalError(f"the peer: {reason or 'no spray'}")

    # The responder.

    async def _respond(self, offer: SprayOffer.Payload) -> None:
        if len(offer.key) != KEY_SIZE:
            raise TraversalError(f"the offer's key has {len(offer.key)} bytes, not {KEY_SIZE}")
        try:
            theirs = self._checked(offer.side)
            mine = await self._prepare(theirs.ip)
            plan = self._plan(theirs, mine)
            target = self._target(theirs)
        except TraversalError as error:
            await self.send_signal_msg(SprayAnswer(payload={"reason": str(error)[:MAX_REASON]}))
            raise
        assert self._link is not None
        self._hunt = Hunt(self, self._link, offer.key)
        answer = SprayAnswer(
            payload={
                "side": mine,
                "mode": plan.mode,
                "first": plan.first,
                "second": plan.second,
                "odds": plan.odds,
            }
        )
        telling = asyncio.ensure_future(self.send_signal_msg(answer))
        try:
            await self._carry_out(plan, mine, theirs, target)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    def _plan(self, theirs: SideNumbers, mine: SideNumbers) -> SprayPlan:
        """Decide what both sides do.

        Raises:
            TraversalError: nothing, and why.

        """
        sockets, guesses = self._setting("sockets"), self._setting("guesses")
        plan = decide(theirs, mine, sockets=sockets, guesses=guesses)
        if plan.mode == "none":
            refused = self.manager.sprays.refusal(theirs.ip, gateway(self), 1)
            too_soon = self.manager.sprays.too_soon(theirs.ip)
            raise too_soon or TraversalError(refused or self._too_bad(plan, theirs, mine))
        if plan.mode != "few" and self._own_call_goes_first():
            raise TraversalError("both call each other, and the other call's spray goes first")
        return plan

    def _own_call_goes_first(self) -> bool:
        """Whether this node calls the peer as well, and its call is the one to be sprayed for.

        Only one may be, by either side; so both must choose the same one.
        """
        peer_id = self.dest_info["node_id"]
        calls = any(
            other.name == self.name and other.initiator
            for (peer, _), other in self.manager.plugins.items()
            if peer == peer_id
        )
        return calls and self.node.node_id < peer_id

    def _too_bad(self, plan: SprayPlan, theirs: SideNumbers, mine: SideNumbers) -> str:
        sides = " and ".join(
            f"{side.facts.kind or 'random'} ports {side.low}-{side.high}"
            for side in (theirs, mine)
            if not side.facts.easy
        )
        text = (
            f"what may be sent would meet with {odds.text(plan.odds)} ({sides}): a relay is needed"
        )
        return f"{text}; {self._note}" if self._note else text

    # Both.

    async def _prepare(self, peer_ip: str) -> SideNumbers:
        """Open the one socket, and find out how this side is seen."""
        facts = own_facts(self, self.transport)
        if facts.blocked:
            raise TraversalError("UDP does not get through on this side's network")
        self._link = await open_udp(self)
        wanted = min(self._setting("sockets"), MAX_SOCKETS)
        sockets, self._note = sockets_left(wanted)
        room = self.manager.sprays.room(peer_ip, gateway(self))
        return await numbers(self, self._link, facts, sockets, room)

    async def _carry_out(
        self, plan: SprayPlan, mine: SideNumbers, theirs: SideNumbers, target: tuple[str, int]
    ) -> None:
        hunt = self._hunt
        assert hunt is not None
        if plan.mode == "few":
            await hunt.few(target)
        else:
            await hunt.spray(plan, mine, theirs, target[0])
        if not self.result.done():
            raise hunt.missed(plan, self._note)

    def _checked(self, theirs: SideNumbers) -> SideNumbers:
        """Return the peer's side, its address in the one spelling that all tables know.

        Raises:
            TraversalError: nothing may be sent to what the peer has named.

        """
        address = parse_ip(theirs.ip)
        scoped = "%" in theirs.ip
        if address is None or scoped or (address.version == 6) != (self.af == IP6):
            raise TraversalError(
                f"the peer named {theirs.ip!r}, which is no address of this family"
            )
        refused = self.refuses(str(address))
        if refused is not None:
            raise TraversalError(f"{refused} ({address})")
        return theirs.model_copy(update={"ip": str(address)})

    def _target(self, theirs: SideNumbers) -> tuple[str, int]:
        """Return where the peer is, or one of the ports where it may be.

        Raises:
            TraversalError: the peer has named no port.

        """
        ip = f"{theirs.ip}%{self.nic.name}" if is_link_local(theirs.ip) else theirs.ip
        guess = [theirs.port] if theirs.facts.easy else guessed_ports(theirs, 1, random.Random())
        port = guess[0] if guess else 0  # the peer's range may be none
        if not port:
            raise TraversalError("the peer named no port")
        return ip, port

    def _setting(self, name: str) -> int:
        """Return a number of ``plugin_conf["random_probe"]``, or else the class's."""
        given = (self.node.conf["plugin_conf"].get(self.name) or {}).get(name)
        default = int(self.conf[name])
        return default if not isinstance(given, int) else max(1, min(given, odds.MAX_PACKETS))

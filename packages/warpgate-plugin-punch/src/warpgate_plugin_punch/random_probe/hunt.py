"""The sockets of one attempt, what leaves by them, what comes in, and what is handed over."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import RemoteProtocolError, TraversalError
from warpgate.hello.messages import M1, parse_datagram, unpack_m1
from warpgate.net.addresses import system_address
from warpgate.net.udp import UdpPipe
from warpgate_plugin_punch.common.probes import INITIATOR, PROBE_SIZE, RESPONDER, check, probe
from warpgate_plugin_punch.common.sockets import crosses_nat
from warpgate_plugin_punch.random_probe.fan import Fan
from warpgate_plugin_punch.random_probe.machine import (
    FEW_AT_S,
    NEAR_AT_S,
    PACKETS_PER_S,
    Pacer,
    guessed_ports,
)
from warpgate_plugin_punch.random_probe.odds import MAX_PACKETS
from warpgate_plugin_punch.random_probe.side import gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from warpgate.net.addresses import Address
    from warpgate.net.datagram import DatagramSocket
    from warpgate.plugin import Plugin
    from warpgate.traversal.sprays import Spray
    from warpgate_plugin_punch.common.sockets import PunchSocket
    from warpgate_plugin_punch.random_probe.machine import SprayPlan
    from warpgate_plugin_punch.random_probe.messages import SideNumbers

MAX_HITS: Final = 4
"""Pairs of endpoints that are handed over."""
TICK_S: Final = 0.008
QUIET_S: Final = 0.6
"""After a hit nothing is sent for so long: its hello decides."""
ANSWER_AGAIN_S: Final = (0.05, 0.15, 0.35, 0.75)
HELLO_REPEATS_S: Final = (0.03, 0.06, 0.12, 0.24)
NEAR_LINGER_S: Final = 0.35
LINGER_S: Final = 0.8
RESPONDER_LINGER_S: Final = 2.5  # the initiator begins later, and may wait for its turn
HELLO_S: Final = 2.0


class Hunt:
    """One side's search for a pair of endpoints that lets packets through.

    Attributes:
        sent: probes that have left.
        heard: authenticated ones that have come.

    """

    def __init__(self, plugin: Plugin, link: PunchSocket, key: bytes) -> None:
        """Listen on ``link``, which is this hunt's from now on.

        Args:
            plugin: the attempt.
            link: the one socket that the peer is told of.
            key: of both sides' probes.

        """
        self.sent = 0
        self.heard = 0
        self._plugin = plugin
        self._link = link
        self._key = key
        self._loop = asyncio.get_running_loop()
        role = INITIATOR if plugin.initiator else RESPONDER
        self._peer_role = RESPONDER if plugin.initiator else INITIATOR
        self._probe = probe(key, role, plugin.plugin_id, 0)
        self._answer = probe(key, role, plugin.plugin_id, 1)
        self._far = crosses_nat(plugin)
        self._fan: Fan | None = None
        self._pairs: set[tuple[Any, Address]] = set()
        self._on_link: list[UdpPipe] = []
        self._quiet_until = 0.0
        self._ip = ""
        self._poor = False
        self._pacer = Pacer(self._loop.time())
        self._timers: list[asyncio.TimerHandle] = []
        self._adopting: set[asyncio.Task[None]] = set()
        self._closed = False
        link.default = self._on_main

    @property
    def over(self) -> bool:
        """Whether there is a result, or nobody wants one any more."""
        return self._closed or self._plugin.result.done()

    @property
    def complaint(self) -> str:
        """Why less was sent than planned; empty when it was not."""
        fan = self._fan
        if fan is not None and fan.short is not None:
            return f"only {fan.opened} sockets could be opened: {fan.short.strerror}"
        if self._poor:
            return "strangers have used up what they may make this node send in a minute"
        return ""

    # What leaves.

    async def few(self, target: Address) -> None:
        """Write to one place a few times, within the attempt's ordinary budget; then wait."""
        begun = self._loop.time()
        for at in FEW_AT_S if self._far else NEAR_AT_S:
            await self._sleep_until(begun + at)
            if self.over:
                return
            self._link.send_to(self._probe, target)
            self.sent += 1
        await self._linger(self._loop.time())

    async def spray(self, plan: SprayPlan, mine: SideNumbers, peer: SideNumbers, ip: str) -> None:
        """Do this side's part of a plan; returns when there is a result, or no hope.

        Args:
            plan: the plan.
            mine, peer: both sides.
            ip: the peer's address, with a scope where it needs one.

        Raises:
            TraversalError: the gate lets no spray through now.

        """
        plugin = self._plugin
        self._ip = ip
        hard = not mine.facts.easy
        # The plan may be the peer's word; what this side can and may do is its own.
        count = min(plan.packets(plugin.initiator), mine.sockets if hard else mine.packets)
        total = max(1, min(2 * count if hard else count, MAX_PACKETS, mine.packets))
        begun = self._loop.time()
        async with plugin.manager.sprays.spray(ip, gateway(plugin), total) as spray:
            if hard:
                await self._from_many(spray, count, (ip, peer.port))
            else:
                await self._from_one(spray, ip, guessed_ports(peer, count, random.Random()))
        passes = 2 if hard or not peer.facts.easy else 1
        await self._linger(begun + passes * max(plan.first, plan.second) / PACKETS_PER_S)

    async def _from_many(self, spray: Spray, count: int, target: Address) -> None:
        fan = self._fan = Fan(self._link.af, self._link.local[0], target, self._hear)

        async def first(_: int) -> bool:
            return await fan.send(self._probe)

        await self._pace(spray, count, first)
        # What was lost on the way is worth another try; the mappings are there already.
        members = fan.members

        async def second(place: int) -> bool:
            fan.again(members[place], self._probe)
            return True

        await self._pace(spray, len(members), second, new_flows=False)

    async def _from_one(self, spray: Spray, ip: str, ports: list[int]) -> None:
        self._link.meter = None  # the gate counts these
        form = system_address(self._link.af, (ip, 0))

        async def guess(place: int) -> bool:
            self._link.send_prepared(self._probe, (form[0], ports[place], *form[2:]))
            return True

        await self._pace(spray, len(ports), guess)

    async def _pace(
        self,
        spray: Spray,
        count: int,
        send: Callable[[int], Awaitable[bool]],
        new_flows: bool = True,
    ) -> None:
        """Call ``send`` with 0 … ``count`` - 1, as quickly as a spray may."""
        place = 0
        while place < count and not self.over:
            now = self._loop.time()
            if now < self._quiet_until:
                await asyncio.sleep(self._quiet_until - now)
                continue
            for _ in range(self._pacer.take(now)):
                if place >= count or not self._may_send(spray, new_flows):
                    return
                if not await send(place):
                    return
                self.sent += 1
                place += 1
            await asyncio.sleep(TICK_S)

    def _may_send(self, spray: Spray, new_flow: bool) -> bool:
        """Count one packet: for the gate, and for the bytes that all strangers share."""
        if not self._plugin.budget.charge(self._ip, PROBE_SIZE):
            self._poor = True
            return False
        return spray.take(new_flow)

    async def _linger(self, since: float) -> None:
        """Wait for what is still on its way, and for hellos that have begun."""
        linger = NEAR_LINGER_S
        if self._far:
            linger = LINGER_S if self._plugin.initiator else RESPONDER_LINGER_S
        await self._sleep_until(max(since, self._loop.time()) + linger)
        if self._pairs and self._far:
            await self._sleep_until(self._loop.time() + HELLO_S)

    async def _sleep_until(self, when: float) -> None:
        left = when - self._loop.time()
        if left > 0 and not self.over:
            await asyncio.wait([self._plugin.result], timeout=left)

    # What comes in.

    def _on_main(self, data: bytes, addr: Address) -> None:
        self._hear(data, addr, None)

    def _hear(self, data: bytes, addr: Address, member: Any) -> None:
        if self.over:
            return
        plugin = self._plugin
        number = check(data, self._key, self._peer_role, plugin.plugin_id)
        if number is None and not self._is_hello(data):
            plugin.node.stats.count("random_probe_strays")
            return
        if number is not None:  # anyone may have written an M1, and any address on it
            plugin.budget.answered(addr[0])
        self.heard += 1
        if number == 0:
            self._reply(member, addr)
        pair = (member, addr)
        if pair in self._pairs or len(self._pairs) >= MAX_HITS:
            return
        self._pairs.add(pair)
        self._quiet_until = self._loop.time() + QUIET_S
        if member is None:
            pipe = UdpPipe(self._link, remote=addr, owner=False)
            self._on_link.append(pipe)
            self._hand_over(pipe, self._link)
        else:
            task = self._loop.create_task(self._adopt(member, addr))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def _is_hello(self, data: bytes) -> bool:
        """Whether a datagram is this attempt's M1: the answer before it may be lost."""
        if self._plugin.initiator:
            return False
        try:
            kind, body = parse_datagram(data)
            return kind == M1 and unpack_m1(body).plugin_id == self._plugin.plugin_id
        except RemoteProtocolError:
            return False

    def _reply(self, member: Any, addr: Address) -> None:
        if member is None:
            self._link.send_to(self._answer, addr)
        elif self._fan is not None:
            self._fan.answer(member, self._answer, addr)

    async def _adopt(self, member: Any, addr: Address) -> None:
        assert self._fan is not None
        try:
            link = await self._fan.take(member)
        except OSError:
            return
        self._hand_over(UdpPipe(link, remote=addr, owner=True), link)

    def _hand_over(self, pipe: UdpPipe, link: DatagramSocket) -> None:
        pipe.hello_repeats_s = HELLO_REPEATS_S
        self._plugin.result.set_result(pipe)
        if not self._plugin.initiator:  # whose M1 is its answer, and is repeated
            self._timers += [
                self._loop.call_later(after, link.send_to, self._answer, pipe.remote)
                for after in ANSWER_AGAIN_S
            ]

    # The end.

    def missed(self, plan: SprayPlan, note: str = "") -> TraversalError:
        """Return the error that says what was tried, and what was seen of it."""
        seen = f"{self.sent} sent, {self.heard} heard"
        came = "no hello came through" if self._pairs else "none came through"
        text = f"{plan}, {came} ({seen})"
        return TraversalError("; ".join(filter(None, (text, note, self.complaint))))

    def close(self) -> None:
        """Close every socket but the winner's; idempotent."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for task in self._adopting:
            task.cancel()
        if self._fan is not None:
            self._fan.close()
        result = self._plugin.result
        winner = result.result() if result.done() and not result.cancelled() else None
        kept = next((pipe for pipe in self._on_link if pipe is winner and not pipe.closed), None)
        if kept is None:
            self._link.close()
        else:
            self._link.meter = self._link.default = None
            kept.add_close_callback(lambda _pipe: self._link.close())

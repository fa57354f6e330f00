"""The responder's side of a UDP punch: opens its NAT by M0 and waits for the hello."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from warpgate.errors import SignallingError, TraversalError
from warpgate.net.driver import Driver
from warpgate.net.udp import UdpPipe
from warpgate.protocol.ip import is_public
from warpgate_plugin_punch.common.counting import advance, made_between
from warpgate_plugin_punch.common.facts import DIRECT, SideFacts
from warpgate_plugin_punch.common.probes import INITIATOR, M0_SIZE, attempt_key, check, is_m1, m0
from warpgate_plugin_punch.common.sockets import (
    PunchSocket,
    crosses_nat,
    foretold,
    mapped,
    open_udp,
    own_facts,
)
from warpgate_plugin_punch.udp_punch.aims import both_count, must_measure, next_ports
from warpgate_plugin_punch.udp_punch.messages import MAX_ENDPOINTS, Punch
from warpgate_plugin_punch.udp_punch.opener import LOW_HOPS, Address, Opener, Packet
from warpgate_plugin_punch.udp_punch.places import permitted

if TYPE_CHECKING:
    from warpgate import Pipe
    from warpgate.net.datagram import DatagramSocket
    from warpgate_plugin_punch.udp_punch.strategy import UdpPunch

M0_S: Final = (0.02, 0.06, 0.15, 0.35)
MANY_M0_S: Final = (0.12, 0.4)
"""For the many ports of a NAT that counts."""
MAX_PIPES: Final = 4
MAX_OFFERS: Final = 6
"""That one attempt reacts to: each may cost a socket, and packets to servers."""
MAX_M0: Final = 34
"""To one IP in an attempt: the rest of 50 packets (WIRE.md section 5) is for the hello's answers."""
REPORT_S: Final = 1.0
QUIET_S: Final = 4.5
"""After the last offer: the initiator's last round is over then."""


class Callee:
    """One responder's attempt."""

    def __init__(self, plugin: UdpPunch) -> None:
        self.links: list[DatagramSocket] = []
        self.pipes: list[UdpPipe] = []
        self._plugin = plugin
        self._own = own_facts(plugin, plugin.transport)
        self._loop = asyncio.get_running_loop()
        self._offers = 0
        self._last_s = self._loop.time()
        self._link: DatagramSocket | None = None
        self._m0: Counter[str] = Counter()
        self._drivers: list[Driver] = []
        self._hole: Driver

    def _opener(
        self, link: DatagramSocket, repeats_s: tuple[float, ...], hops: int | None = None
    ) -> Driver:
        allowed = self._allowed if link.meter is None else self._room
        opener = Opener(m0(self._plugin.plugin_id), repeats_s, allowed)

        def send(packet: Packet) -> None:
            if hops is not None and isinstance(link, PunchSocket):
                link.send_low(*packet, hops)
            else:
                link.send_to(*packet)

        driver = Driver(opener, send, lambda _event: None)
        self._drivers.append(driver)
        return driver

    def _room(self, ip: str) -> bool:
        """Whether one more M0 may go to an address; a socket with a meter counts it as well."""
        if self._m0[ip] >= MAX_M0:
            return False
        self._m0[ip] += 1
        return True

    def _allowed(self, ip: str) -> bool:
        """As :meth:`_room`, for the listening socket, which has no meter."""
        return self._room(ip) and self._plugin.budget.take(ip, 1, M0_SIZE)

    async def run(self, payload: Punch.Payload) -> None:
        """Take the first offer, and wait for the hello on the listening socket.

        Raises:
            TraversalError: there is no such socket, or no hello came.

        """
        plugin = self._plugin
        local = (await plugin.bind()).source_for(plugin.dest_info["ip"])
        self._link = plugin.node.listening_socket(plugin.af, local)
        if self._link is None:
            raise TraversalError(f"this node does not listen on {local}: nothing can be punched")
        plugin.register_inbound()
        self._hole = self._opener(self._link, M0_S)
        inbound = self._loop.create_task(plugin.wait_for_inbound())
        inbound.add_done_callback(self._came)
        try:
            await self.offered(payload)
            while not (inbound.done() or plugin.result.done()):
                left_s = self._last_s + QUIET_S - self._loop.time()
                if left_s <= 0:
                    raise TraversalError(self._story())
                await asyncio.wait(
                    [inbound, plugin.result],
                    timeout=left_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            inbound.cancel()
            self.stop()

    def _came(self, inbound: asyncio.Task[Pipe | None]) -> None:
        """Hand over what the listening socket got, whatever an answer is still waiting for."""
        if not inbound.cancelled() and inbound.exception() is None:
            self._plugin.result.set_result(inbound.result())

    def stop(self) -> None:
        """Write nothing more."""
        for driver in self._drivers:
            driver.close()

    async def offered(self, payload: Punch.Payload) -> None:
        """Open this side's NAT for the initiator's socket, and say where from."""
        plugin = self._plugin
        if self._offers >= MAX_OFFERS:
            plugin.node.stats.count("punch_offers_limit")
            return
        self._offers += 1
        self._last_s = self._loop.time()
        if payload.number and crosses_nat(plugin) and not self._own.mapping:
            await plugin.node.network.ready(REPORT_S)  # at first, a guess was as good
        self._own = own = own_facts(plugin, plugin.transport)
        peer = payload.facts if crosses_nat(plugin) else DIRECT
        targets = permitted(plugin, payload.endpoints, MAX_ENDPOINTS) or self._fallback()
        if both_count(own, peer) and payload.counter and targets:
            await self._meet(payload, targets[0][0], peer)
        elif payload.number and not own.hard and not must_measure(peer, own):
            await self._fresh_hole(payload, targets)
        elif must_measure(own, peer):
            await self._write_and_measure(payload, targets)
        else:
            self._write(self._hole, targets)
            await self._answer(payload, [await self._listening_endpoint()] if own.easy else [])

    async def _listening_endpoint(self) -> Address:
        """Return where the listening socket is reached; asks where the address does not say it yet."""
        plugin = self._plugin
        endpoint = (plugin.src_info["ip"], plugin.src_info["port"])
        if self._link is None or not crosses_nat(plugin) or is_public(endpoint[0]):
            return endpoint
        found = await mapped(plugin, self._link)
        return endpoint if found is None else found.endpoint

    def _fallback(self) -> list[Address]:
        """Any port of the initiator's address lets in what comes from there, in many a NAT."""
        where = (self._plugin.dest_info["ip"], self._plugin.dest_info["port"])
        return permitted(self._plugin, [where], 1)

    def _write(self, driver: Driver, targets: list[Address]) -> None:
        opener = driver.machine
        assert isinstance(opener, Opener)
        driver.call(lambda now: opener.add(targets, now))

    async def _write_and_measure(self, payload: Punch.Payload, targets: list[Address]) -> None:
        """This side's NAT counts: tell which ports it gave to what was written just now."""
        link = await open_udp(self._plugin)
        try:
            found = await mapped(
                self._plugin, link, between=lambda: self._write(self._hole, targets), every=True
            )
        finally:
            link.close()
        if found is None:
            await self._answer(payload, [])
            return
        ports = made_between(found.seen, 1, self._own.step, max(1, len(targets)))
        await self._answer(payload, [(found.endpoint[0], port) for port in ports])

    async def _fresh_hole(self, payload: Punch.Payload, targets: list[Address]) -> None:
        """Later on: try a socket that nothing has gone wrong with, and that only servers know.

        Where strays hurt (a NAT that remembers them), the initiator has been one for the listening
        socket. Now it writes when it is told where to, and the first M0 die on the way to its NAT.
        """
        plugin, own = self._plugin, self._own
        link = await self._fresh_socket()
        driver = self._opener(link, M0_S, LOW_HOPS if payload.number == 1 else None)
        if crosses_nat(plugin):
            found = await mapped(
                plugin, link, between=lambda: self._write(driver, targets), every=own.counting
            )
        else:
            found = None
            self._write(driver, targets)
        if own.counting:
            ports = () if found is None else made_between(found.seen, 1, own.step, len(targets))
            endpoints = [] if found is None else [(found.endpoint[0], port) for port in ports]
        else:
            endpoint = foretold(plugin, own, link.local) if found is None else found.endpoint
            endpoints = [] if endpoint is None else [endpoint]
        await self._answer(payload, endpoints)

    async def _fresh_socket(self) -> PunchSocket:
        link = await open_udp(self._plugin)
        link.default = lambda data, addr: self._met(link, data, addr)
        self.links.append(link)
        return link

    async def _meet(self, payload: Punch.Payload, ip: str, peer: SideFacts) -> None:
        """Both NATs count: write to the initiator's next ports, and tell from where.

        From a fresh socket: what the listening one wrote to in an earlier attempt has its mapping.
        """
        plugin, step = self._plugin, self._own.step
        targets = next_ports(ip, payload.counter, peer.step)
        link = await self._fresh_socket()
        driver = self._opener(link, MANY_M0_S)
        found = await mapped(plugin, link, between=lambda: self._write(driver, targets), every=True)
        ports = () if found is None else made_between(found.seen, 1, step, len(targets))
        if found is None or not ports:
            await self._answer(payload, [])
            return
        first = (found.endpoint[0], ports[0])
        await self._answer(payload, [first], advance(ports[0], -step))

    def _met(self, link: PunchSocket, data: bytes, addr: Address) -> None:
        """Take what comes to a socket of :meth:`_meet`: a probe shows the way, M1 begins the hello."""
        plugin = self._plugin
        if plugin.result.done() or not permitted(plugin, [addr], 1):
            plugin.node.stats.count("punch_strays")
        elif check(data, attempt_key(plugin.plugin_id), INITIATOR, plugin.plugin_id) is not None:
            if self._room(addr[0]):
                link.send_to(m0(plugin.plugin_id), addr)
        elif is_m1(data, plugin.plugin_id) and len(self.pipes) < MAX_PIPES:
            pipe = UdpPipe(link, addr, owner=False)
            self.pipes.append(pipe)
            plugin.result.set_result(pipe)
            link.received(data, addr)  # the pipe has the address now

    async def _answer(
        self, payload: Punch.Payload, endpoints: list[Address], counter: int = 0
    ) -> None:
        answer = Punch.Payload(
            number=payload.number,
            endpoints=endpoints[:MAX_ENDPOINTS],
            counter=counter,
            facts=self._own,
        )
        try:
            await self._plugin.send_signal_msg(Punch(payload=answer))
        except SignallingError:  # the hello may come all the same
            self._plugin.node.stats.count("punch_answers_unsent")

    def _story(self) -> str:
        ip = self._plugin.dest_info["ip"]
        sent = self._plugin.budget.sent(ip)
        return (
            f"no hello came within {QUIET_S:g} s after the last of {self._offers} offers; "
            f"{sent} packets went to {ip}"
        )

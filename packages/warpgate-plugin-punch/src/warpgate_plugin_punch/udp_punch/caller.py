"""The initiator's side of a UDP punch: rounds of a fresh socket, an offer, and hellos as probes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from warpgate.errors import TraversalError, WarpgateError
from warpgate.net.driver import Driver
from warpgate.net.udp import UdpPipe
from warpgate.protocol.ip import is_public
from warpgate_plugin_punch.common.counting import made_between
from warpgate_plugin_punch.common.facts import DIRECT
from warpgate_plugin_punch.common.probes import INITIATOR, attempt_key, is_m0, probe
from warpgate_plugin_punch.common.sockets import (
    Mapped,
    PunchSocket,
    crosses_nat,
    foretold,
    mapped,
    open_udp,
    own_facts,
    peer_facts,
    stun_servers,
)
from warpgate_plugin_punch.udp_punch.aims import (
    both_count,
    meeting_points,
    must_guess,
    must_measure,
)
from warpgate_plugin_punch.udp_punch.messages import MAX_ENDPOINTS, Punch
from warpgate_plugin_punch.udp_punch.opener import LOW_HOPS, Address, Opener, Packet
from warpgate_plugin_punch.udp_punch.places import permitted

if TYPE_CHECKING:
    from warpgate_plugin_punch.udp_punch.strategy import UdpPunch

ROUNDS_S: Final = (1.0, 1.6, 2.0)
"""How long each round lasts before the next one begins, or all is over."""
UNSIGNALLED_S: Final = 1.0
"""How much longer a peer that may let anyone in is tried when no signal can be sent."""
REPORT_S: Final = 1.5
NEAR_S: Final = 0.1
"""How long a peer on this machine or link is called before it is asked to open its firewall."""
MAX_DIALS: Final = 6
"""Addresses with which a hello is begun in one attempt; the core proves 8 pipes at most."""
DENSE_S: Final = (*(0.015,) * 13, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45)
"""The peer opens its NAT when the signal comes, whenever that is: mostly within 0.2 s."""
SPARSE_S: Final = (0.03, 0.06, 0.12, 0.25, 0.4, 0.6)
OPENER_S: Final = (0.1, 0.25, 0.6)
ANSWERED_S: Final = 0.55
"""A round in which the peer has answered and no hello came is over after so long."""


class Round:
    """One socket, and what was done with it.

    Attributes:
        link: the socket.
        opener: writes small probes from it.
        low: addresses that those probes must not reach.
        opened: addresses that were written to before the offer.
        dialled: addresses with which a hello was begun.

    """

    def __init__(self, link: PunchSocket, opener: Opener) -> None:
        self.link = link
        self.opener = opener
        self.low: set[Address] = set()
        self.opened: list[Address] = []
        self.dialled: set[Address] = set()
        self.driver = Driver(opener, self._send, lambda _event: None)

    def open(self, addresses: Sequence[Address]) -> None:
        """Write small probes to these addresses, and repeat them."""
        self.driver.call(lambda now: self.opener.add(addresses, now))

    def _send(self, packet: Packet) -> None:
        data, addr = packet
        if addr in self.low:
            self.link.send_low(data, addr, LOW_HOPS)
        else:
            self.link.send_to(data, addr)


class Caller:
    """One initiator's attempt."""

    def __init__(self, plugin: UdpPunch) -> None:
        self.rounds: list[Round] = []
        self.pipes: list[UdpPipe] = []
        self._plugin = plugin
        self._own = own_facts(plugin, plugin.transport)
        self._peer = peer_facts(plugin)
        self._told: list[Address] = [(plugin.dest_info["ip"], plugin.dest_info["port"])]
        self._offers = 0
        self._answers = 0
        self._unmeasured = 0
        self._unsent = ""
        self._signals: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Try until the attempt has its result, or nothing can come any more.

        Raises:
            TraversalError: what was done and what was seen.

        """
        plugin = self._plugin
        try:
            await self._know_thyself()
            for length_s in ROUNDS_S:
                answers = self._answers
                await self._begin()
                await self._wait(min(ANSWERED_S, length_s))
                if self._answers == answers or len(self.rounds) == len(ROUNDS_S):
                    await self._wait(length_s - ANSWERED_S)
                if plugin.result.done():
                    return
                if self._unsent:
                    await self._wait(UNSIGNALLED_S if self._peer.lets_anyone_in else 0)
                    break
            while any(p.handshake and p.handshake.state == "proven" for p in self.pipes):
                await self._wait(0.1)  # who arbitrates has it
            if not plugin.result.done():
                raise TraversalError(self._story())
        finally:
            for task in self._signals:
                task.cancel()
            self.stop()

    @property
    def links(self) -> list[PunchSocket]:
        """The sockets of all rounds."""
        return [each.link for each in self.rounds]

    def stop(self) -> None:
        """Write nothing more."""
        for each in self.rounds:
            each.driver.close()

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.wait([self._plugin.result], timeout=seconds)

    async def _know_thyself(self) -> None:
        """Wait for a node's first report: without it, the peer may not write to its address."""
        plugin = self._plugin
        if crosses_nat(plugin) and not self._own.mapping and stun_servers(plugin.node, plugin.af):
            await plugin.node.network.ready(REPORT_S)
            self._own = own_facts(plugin, plugin.transport)

    # A round.

    async def _begin(self) -> None:
        """Take a socket, open the NATs for it, offer it."""
        plugin, own = self._plugin, self._own
        spares = None if self.rounds else plugin.spares
        spare = None if spares is None else spares.take(plugin, own)
        link = await open_udp(plugin) if spare is None else spare.link
        data = probe(attempt_key(plugin.plugin_id), INITIATOR, plugin.plugin_id)
        # The socket's own meter counts what it sends.
        here = Round(link, Opener(data, OPENER_S, lambda _ip: True))
        self.rounds.append(here)
        link.default = lambda data, addr: self._stranger(here, data, addr)
        endpoint = foretold(plugin, own, link.local) if own.easy else None
        if spare is not None:
            endpoint = spare.endpoint
        elif endpoint is not None and crosses_nat(plugin) and not is_public(endpoint[0]):
            endpoint = None  # what is known is older than the report
        if not crosses_nat(plugin):
            await self._near_offer(here, endpoint)
        elif must_measure(own, self._peer):
            await self._measured_offer(here)
        elif own.easy and (endpoint is None or len(self.rounds) > 1):
            await self._asked_offer(here, endpoint)
        else:
            self._offer([] if endpoint is None else [endpoint])
            await asyncio.sleep(0)  # the signal has the longest way: it leaves first
            self._open(here)

    async def _near_offer(self, here: Round, endpoint: Address | None) -> None:
        """On one machine or link mostly nothing is closed, so that no signal is needed."""
        if len(self.rounds) == 1:
            self._open(here)
            await self._wait(NEAR_S)
        if not self._plugin.result.done():
            self._offer([] if endpoint is None else [endpoint])

    async def _asked_offer(self, here: Round, endpoint: Address | None) -> None:
        """One port outside for all, and it can't be foretold, or was wrong: ask servers, then tell."""
        if not self._peer.by_port:
            self._offer([])  # the peer needs no port, only this side's address
        found = await self._mapped(here, lambda: self._open(here))
        if found is None:
            self._offer([] if endpoint is None else [endpoint])
            return
        self._offer([found.endpoint])
        self._own = found.corrects(self._own)
        if endpoint is None and self._plugin.spares is not None:
            self._plugin.spares.stock(self._plugin, here.link.local[0])

    async def _measured_offer(self, here: Round) -> None:
        """The NAT counts: learn which ports it gives to what goes to the peer, or will give next."""
        step = self._own.step
        if both_count(self._own, self._peer):
            found = await self._mapped(here, every=True)
            self._offer([], 0) if found is None else self._offer(
                [found.endpoint], found.counter(step)
            )
            return
        found = await self._mapped(here, lambda: self._open(here), every=True)
        count = max(1, len(here.opened))
        ports = () if found is None else made_between(found.seen, 1, step, count)
        self._offer([] if found is None else [(found.endpoint[0], port) for port in ports])

    async def _mapped(
        self, here: Round, between: Callable[[], None] | None = None, *, every: bool = False
    ) -> Mapped | None:
        found = await mapped(self._plugin, here.link, between=between, every=every)
        self._unmeasured += found is None
        return found

    def _open(self, here: Round) -> None:
        """Write to the peer, so that its packets come in."""
        targets = permitted(self._plugin, self._told, MAX_ENDPOINTS)
        if not self._peer.easy:
            if not self._own.by_port:  # any port of the peer's address lets its packets in
                here.opened = targets[:1]
                here.open(here.opened)
        elif len(self.rounds) == 1:
            here.opened = targets
            for number, target in enumerate(targets):
                self._dial(here, target, SPARSE_S if number else DENSE_S)
        elif self._own.counting:
            # The peer must be told the port. A hello might be a stray that its NAT remembers.
            here.opened = targets
            here.low.update(targets)
            here.open(targets)
        # Else the peer is written to when it has said where: it has opened its NAT by then.

    def _dial(self, here: Round, addr: Address, repeats_s: Sequence[float]) -> None:
        """Begin a hello with an address."""
        if addr in here.dialled or len(self.pipes) >= MAX_DIALS or here.link.closed:
            return
        here.dialled.add(addr)
        here.opener.stop(addr)
        pipe = UdpPipe(here.link, addr, owner=False)
        pipe.hello_repeats_s = tuple(repeats_s)
        self.pipes.append(pipe)
        self._plugin.result.set_result(pipe)

    def _stranger(self, here: Round, data: bytes, addr: Address) -> None:
        """Take what comes from an address without a hello: M0 shows where the peer is."""
        plugin = self._plugin
        if plugin.result.done() or not is_m0(data, plugin.plugin_id):
            plugin.node.stats.count("punch_strays")
            return
        for target in permitted(plugin, [addr], 1):
            self._dial(here, target, SPARSE_S)

    # Signals.

    def _offer(self, endpoints: Sequence[Address], counter: int = 0) -> None:
        self._offers += 1
        payload = Punch.Payload(
            number=len(self.rounds) - 1,
            endpoints=list(endpoints)[:MAX_ENDPOINTS],
            counter=counter,
            facts=self._own,
        )
        task = asyncio.get_running_loop().create_task(self._send(Punch(payload=payload)))
        self._signals.add(task)
        task.add_done_callback(self._signals.discard)

    async def _send(self, msg: Punch) -> None:
        try:
            await self._plugin.send_signal_msg(msg)
            self._unsent = ""
        except WarpgateError as error:
            self._unsent = str(error)

    def answered(self, payload: Punch.Payload) -> None:
        """Take the peer's answer: where it writes from, and what its NAT does.

        Raises:
            TraversalError: what it says of its NAT leaves no way.

        """
        plugin = self._plugin
        if payload.number >= len(self.rounds):
            plugin.node.stats.count("punch_strays")
            return
        here = self.rounds[payload.number]
        self._answers += 1
        self._peer = payload.facts if crosses_nat(plugin) else DIRECT
        # A router may forward the listening port, whatever it does with others: then M1 has arrived.
        forwarded = payload.number == 0 and peer_facts(plugin).lets_anyone_in
        if (must_guess(self._own, self._peer) or self._peer.blocked) and not forwarded:
            cause = "its UDP is blocked" if self._peer.blocked else "a port must be guessed"
            raise TraversalError(f"the peer answered, and its NAT leaves no way: {cause}")
        named = permitted(plugin, payload.endpoints, MAX_ENDPOINTS)
        if both_count(self._own, self._peer) and payload.counter and named:
            here.open(meeting_points(named[0][0], payload.counter, self._peer.step))
        elif self._peer.easy:
            self._told = named or self._told
            for target in self._told:
                self._dial(here, target, SPARSE_S)
        elif self._peer.counting:
            for target in named[:1]:
                self._dial(here, target, SPARSE_S)
            here.open(named[1:])

    def _story(self) -> str:
        ip = self._plugin.dest_info["ip"]
        parts = [f"no hello came through in {len(self.rounds)} rounds"]
        if self._unsent:
            parts.append(f"no signal could be sent ({self._unsent})")
        elif self._answers:
            parts.append(f"the peer answered {self._answers} of {self._offers} signals")
        else:
            parts.append(f"the peer never answered {self._offers} signals")
        if self._unmeasured:
            parts.append("no answer from STUN servers")
        parts.append(f"{self._plugin.budget.sent(ip)} packets went to {ip}")
        if self._plugin.budget.refused:
            parts.append(f"{self._plugin.budget.refused} more were over the limit")
        return "; ".join(parts)

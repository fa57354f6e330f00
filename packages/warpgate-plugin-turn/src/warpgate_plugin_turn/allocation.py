"""An allocation in use: its connection to the server, its permissions, the pipes that go over it."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, Final

from warpgate.errors import RelayError
from warpgate.events import Counters
from warpgate.net.addresses import Address
from warpgate.net.constants import IP4
from warpgate.net.driver import Driver
from warpgate.net.pipe import Pipe
from warpgate.net.udp import UdpPipe
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.errors import ServerSilent
from warpgate_plugin_turn.machine import State, TurnMachine
from warpgate_plugin_turn.machine_events import (
    Allocated,
    Closed,
    Event,
    Failed,
    Incoming,
    PeerData,
    Permitted,
    Refused,
)
from warpgate_plugin_turn.peer_link import PeerLink
from warpgate_plugin_turn.requests import Requests
from warpgate_plugin_turn.server_links import ServerLink, open_stream, open_udp
from warpgate_plugin_turn.wire import is_channel_data

log = logging.getLogger("warpgate.turn")

MAX_LINKS: Final = 8
SILENT_S: Final = 0.5
"""A relay that was kept is doubted when its server says nothing for so long, and two round trips."""

Stranger = Callable[[bytes, Address], None]


class Allocation:
    """An allocation on a server; make it with :meth:`open`.

    Attributes:
        server: where it is.
        address, dialled: the server's ``(ip, port)``, and by which it is reached (NAT64 may be between).
        knock: what opens a way here, for :attr:`stranger`; dropped from those who are in already.
        family: of the relayed address.
        relayed: where peers reach us.
        mapped: where the server sees us.
        rtt_s: one round trip to the server.
        failure: why it ended by itself; None while it lives, or when it was closed.
        stranger: called with what comes from peers without a link of their own.
        on_permitted: called with an IP whose packets come through from here on.
        on_refused: called with ``(ip, error)`` when packets from an IP can't come through.
        on_incoming: called with ``(connection id, peer)`` of a peer that connected (RFC 6062).
        on_lost: each called once with the error when it dies in use, or leaves :meth:`check` unanswered.
        on_end: called once, when nothing is left of it.
        notes: what went wrong with other servers before it was made.

    """

    def __init__(
        self, server: TurnServer, address: Address, family: int, counters: Counters
    ) -> None:
        self.server = server
        self.address = self.dialled = address
        self.knock = b""
        self.name = f"{server.host} port {server.port}"
        self.family = family
        self.relayed: Address = ("", 0)
        self.mapped: Address = ("", 0)
        self.rtt_s = 0.0
        self.failure: RelayError | None = None
        self.ended = False
        self.stranger: Stranger | None = None
        self.on_permitted: Callable[[str], None] | None = None
        self.on_refused: Callable[[str, RelayError], None] | None = None
        self.on_incoming: Callable[[int, Address], None] | None = None
        self.on_lost: list[Callable[[RelayError], None]] = []
        self.on_end: Callable[[Allocation], None] | None = None
        self.notes: tuple[str, ...] = ()
        self.counters = counters
        self._loop = asyncio.get_running_loop()
        self._machine: TurnMachine
        self._driver: Driver
        self._link: ServerLink | None = None
        self._links: dict[Address, PeerLink] = {}
        self._pipes: dict[Address, UdpPipe] = {}
        self._streams: set[Pipe] = set()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._retired = self._closing = False
        self._checking: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        server: TurnServer,
        address: Address,
        *,
        family: int = IP4,
        tls: ssl.SSLContext | None = None,
        counters: Counters | None = None,
        on_answer: Callable[[], None] | None = None,
        register: Callable[[Allocation], None] | None = None,
        dialled: Address | None = None,
        **options: Any,
    ) -> Allocation:
        """Allocate.

        Args:
            server: how the server is reached, and the credentials.
            address: its ``(ip, port)``.
            family: of the relayed address, ``IP4`` or ``IP6``.
            tls: checks the server's certificate; only for ``transport`` ``tls``.
            counters: counts what was ignored.
            on_answer: called when the server has sent its first TURN message.
            register: called with the allocation before anything is sent.
            dialled: by which it is reached, where that is another.
            **options: for :class:`TurnMachine`.

        Raises:
            RelayError: it did not work; the class says why (see ``errors``).

        """
        self = cls(server, address, family, Counters() if counters is None else counters)
        started = self._loop.time()
        if register is not None:
            register(self)
        try:
            self.dialled = dialled or address
            if server.transport == "udp":
                self._link = await open_udp(self.dialled, self._received)
            else:
                self._link = await open_stream(
                    self.dialled, self.name, tls, server.host, self._received, self._lost
                )
                self.rtt_s = self._loop.time() - started
            if not self.ended:
                self._start(self._link, options)
                await self._first_answer(on_answer, started)
            await self._ready
            if self.ended:
                raise self.failure or RelayError("the allocation was closed while it was made")
        except BaseException:
            self.close()  # what the server gives all the same is given back
            if self.relayed[1]:
                self.counters.count("turn_allocations_returned")
            if self.ended and self._link is not None:
                self._link.close()
            raise
        return self

    def _start(self, link: ServerLink, options: dict[str, Any]) -> None:
        self._machine = TurnMachine(
            username=self.server.user, password=self.server.password, entropy=os.urandom,
            server=self.name, reliable=link.reliable, family=self.family,
            counters=self.counters, **options,
        )  # fmt: skip
        self._driver = Driver(self._machine, self._send, self._event, on_error=self._broken)
        self._answer: asyncio.Future[None] = self._loop.create_future()
        self._driver.start()

    async def _first_answer(self, on_answer: Callable[[], None] | None, started: float) -> None:
        await asyncio.wait([self._answer, self._ready], return_when=asyncio.FIRST_COMPLETED)
        if self._machine.requests.answered:
            if not self.rtt_s:
                self.rtt_s = self._loop.time() - started
            if on_answer is not None:
                on_answer()

    def check(self) -> None:
        """Ask the server whether the allocation lives; ``on_lost`` is called when it does not."""
        if self._alive() and self._checking is None:
            asked = self._loop.time()
            patience_s = SILENT_S + 2 * self.rtt_s
            self._checking = self._loop.call_later(patience_s, self._doubt, asked, patience_s)
            self._driver.call(self._machine.probe)

    def _doubt(self, asked: float, waited_s: float) -> None:
        self._checking = None
        if self._alive() and self._machine.heard < asked:
            waited = f"said nothing for {waited_s:.1f} s about the relay kept there"
            self._lose(ServerSilent(f"TURN server {self.name} {waited}"))

    def _lose(self, error: RelayError) -> None:
        callbacks, self.on_lost = self.on_lost, []
        for callback in callbacks:
            callback(error)

    # Peers.

    def permit(self, ip: str) -> None:
        """Let packets from an IP address through; ``on_refused`` tells when that fails."""
        if self._alive():
            self._driver.call(lambda now: self._machine.permit(ip, now))

    def probe_every(self, seconds: float | None) -> None:
        """Ask a silent server so often whether it lives; None: as it was set at first."""
        if self._alive():
            self._driver.call(lambda _now: self._machine.probe_every(seconds))

    def pipe(self, peer: Address) -> UdpPipe:
        """Return a pipe to a peer; there is at most one for each.

        Raises:
            RelayError: there are ``MAX_LINKS`` already, one for this peer, or no allocation.

        """
        if not self._alive():
            raise self.failure or RelayError("the allocation is closed")
        if peer in self._links or len(self._links) >= MAX_LINKS:
            raise RelayError(f"no further pipe to {peer[0]} port {peer[1]} over this relay")
        link = self._links[peer] = PeerLink(self, peer)
        pipe = self._pipes[peer] = UdpPipe(link, peer)
        pipe.path = "relay"
        self._driver.call(lambda now: self._machine.permit(peer[0], now))
        self._driver.call(lambda now: self._machine.bind(peer, now))
        return pipe

    def has(self, peer: Address) -> bool:
        """Return whether a peer has its pipe."""
        return peer in self._links

    def send(self, data: bytes, peer: Address) -> bool:
        """Send a datagram to a peer without waiting; False when there is no room."""
        link = self._link
        if link is None or self._machine.state is not State.ALLOCATED:
            return True
        return link.send(self._machine.message_for(data, peer))

    async def writable(self) -> None:
        """Wait for room, or for the end."""
        if self._link is not None:
            await self._link.writable()

    def unlink(self, link: PeerLink) -> None:
        """Forget a link that has closed."""
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._pipes.pop(link.peer, None)
        self._settle()

    # The end.

    def retire(self) -> None:
        """Close as soon as no pipe goes over it any more."""
        self._retired = True
        self._settle()

    def close(self) -> None:
        """Close the pipes and delete the allocation; :meth:`wait_gone` waits for the server's word."""
        if self._closing or self.ended:
            return
        self._closing = True
        for link in list(self._links.values()):
            link.close()
        if self._link is None or not hasattr(self, "_driver"):
            self._over()
        else:
            self._driver.call(self._machine.close)

    async def wait_gone(self) -> None:
        """Wait until the allocation is deleted, or the server does not answer any more.

        Then the connection to the server is closed, too.
        """
        await asyncio.wait([self._gone])
        if self._link is not None:
            await self._link.wait_closed()

    def _alive(self) -> bool:
        return not (self.ended or self._closing) and self.failure is None

    def requests_beside(self) -> Requests:
        """Return what a further connection to the server asks by, as this allocation's user."""
        return self._machine.requests.beside()

    def connect(self, peer: Address, done: Callable[[int | RelayError], None]) -> None:
        """Let the relay connect to a peer over TCP; see :meth:`TurnMachine.connect`."""
        if self._alive():
            self._driver.call(lambda now: self._machine.connect(peer, done, now))
        else:
            done(self.failure or RelayError("the allocation is closed"))

    def attach(self, pipe: Pipe) -> None:
        """Live until a stream through the relay has closed (RFC 6062), and close it with this."""
        self._streams.add(pipe)
        pipe.add_close_callback(self._detach)

    def _detach(self, pipe: Pipe) -> None:
        self._streams.discard(pipe)
        self._settle()

    def _settle(self) -> None:
        if self._retired and not self._links and not self._streams:
            self.close()

    def _over(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._checking is not None:
            self._checking.cancel()
        if hasattr(self, "_driver"):
            self._driver.close()
        if self._link is not None:
            self._link.close()
        for future in (self._ready, self._gone):
            if not future.done():
                future.set_result(None)  # failure and ended say what it means
        for pipe in [*self._pipes.values(), *self._streams]:
            pipe.abort(self.failure)
        for link in list(self._links.values()):
            link.close()
        if self.on_end is not None:
            self.on_end(self)

    # What comes in.

    def _received(self, data: bytes) -> None:
        if self.ended or not hasattr(self, "_driver"):
            return
        if is_channel_data(data):
            found = self._machine.receive_channel(data, self._loop.time())
            if found is not None:
                self._deliver(*found)
            return
        self._driver.feed(data)
        if not self._answer.done() and self._machine.requests.answered:
            self._answer.set_result(None)

    def _deliver(self, peer: Address, data: bytes) -> None:
        link = self._links.get(peer)
        if link is None:
            if self.stranger is not None:
                self.stranger(data, peer)
            else:
                self.counters.count("turn_stranger")
        elif link.default is not None and data != self.knock:
            link.default(data, peer)

    def _event(self, event: Event) -> None:
        if isinstance(event, PeerData):
            self._deliver(event.peer, event.data)
        elif isinstance(event, Allocated):
            self.relayed, self.mapped = event.relayed, event.mapped
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(event, Refused):
            self._refused(event)
        elif isinstance(event, Permitted) and self.on_permitted is not None:
            self.on_permitted(event.ip)
        elif isinstance(event, Incoming) and self.on_incoming is not None:
            self.on_incoming(event.connection_id, event.peer)
        elif isinstance(event, Failed):
            self._failed(event.error)
        elif isinstance(event, Closed):
            self._over()

    def _refused(self, event: Refused) -> None:
        if self.on_refused is not None:
            self.on_refused(event.ip, event.error)
        for peer, pipe in list(self._pipes.items()):
            if peer[0] == event.ip:
                pipe.abort(event.error)

    def _failed(self, error: RelayError) -> None:
        self.failure = error
        in_use = self._ready.done()
        if in_use:
            self.counters.count("turn_allocations_lost")
            log.warning("%s", error)
        self._over()
        if in_use:
            self._lose(error)

    def _lost(self, error: RelayError) -> None:
        if not self.ended and hasattr(self, "_driver"):
            self._driver.call(lambda _now: self._machine.lost(error))
        else:
            self.failure = error
            self._over()

    def _broken(self, error: Exception) -> None:
        self._failed(RelayError(f"TURN server {self.name}: {error!r}"))

    def _send(self, message: bytes) -> None:
        if self._link is not None:
            self._link.send(message)

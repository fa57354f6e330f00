"""Signals straight to the peer's listening TCP port (WIRE section 2, "Direct").

The connection is kept for 30 s: answers return on it, and further signals reuse it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from warpgate.errors import RemoteProtocolError, SignallingError
from warpgate.hello.messages import SIGNAL, Deframer, frame
from warpgate.net.constants import TCP
from warpgate.net.pipe import Pipe
from warpgate.protocol.ip import is_loopback, is_public
from warpgate.signalling.transport import Deliver, SignalOrigin

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.net.nic import Interface
    from warpgate.protocol.peer_address import PeerAddress

log = logging.getLogger("warpgate")

KEEP_S = 30.0
MAX_CONNECTIONS = 256
"""Signal connections, in and out; the longest idle goes first."""
STAGGER_S = 0.030
MAX_DIALS = 6
CONNECT_TIMEOUT_S = 3.0
DOUBT_S = 0.05
"""A new connection to a public address is doubted for this and two round trips: a network that wants
a login answers everybody's dials with a page of its own."""
MAX_DOUBT_S = 0.5


Target = tuple["Interface", int, str, int]
"""From which interface, by which family, to which ip and port."""


class _Dial:
    """A dial under way, and how many signals wait for it."""

    def __init__(self, task: asyncio.Task[Pipe]) -> None:
        self.task = task
        self.waiting = 0


class DirectTransport:
    """The signal transport that needs no server.

    Args:
        targets: lists the ways to a peer's listening port, best first.
        counters: where drops are counted.

    """

    name = "direct"

    def __init__(
        self,
        targets: Callable[[PeerAddress], Sequence[Target]],
        counters: Counters,
    ) -> None:
        self._targets = targets
        self._counters = counters
        self._deliver: Deliver | None = None
        self._connections: OrderedDict[Pipe, asyncio.TimerHandle] = OrderedDict()
        self._by_peer: dict[bytes, Pipe] = {}
        self._dials: dict[bytes, _Dial] = {}
        self._doubts: dict[Pipe, asyncio.Future[str]] = {}

    async def start(self, deliver: Deliver) -> None:
        """Begin to accept envelopes; the node's listeners bring the connections."""
        self._deliver = deliver

    def brokers(self) -> tuple[str, ...]:
        """Return nothing: this transport uses no broker."""
        return ()

    async def close(self) -> None:
        """Close every signal connection."""
        self._deliver = None
        for pipe in list(self._connections):
            pipe.abort()
        tasks = [dial.task for dial in self._dials.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def send(self, dest: PeerAddress, envelope: bytes) -> None:
        """Carry an envelope to a peer's listening port.

        Raises:
            SignallingError: none of the peer's addresses that can be reached from here answers, or
                it is not the peer who does.

        """
        pipe = self._by_peer.get(dest.key)
        if pipe is None or pipe.closed:
            pipe = await self._connect(dest)
        await self._write(pipe, envelope)
        doubt = self._doubts.get(pipe)
        if doubt is not None:
            await asyncio.wait([doubt])
            if doubt.result():
                raise SignallingError(f"{pipe.remote[0]} port {pipe.remote[1]}: {doubt.result()}")

    async def _connect(self, dest: PeerAddress) -> Pipe:
        """Wait for the one dial to a peer, which ends when nobody waits for it any more."""
        dial = self._dials.get(dest.key)
        if dial is None:
            if self._deliver is None:
                raise SignallingError("this node takes no signals")
            task = asyncio.get_running_loop().create_task(self._open(dest))
            dial = self._dials[dest.key] = _Dial(task)
        dial.waiting += 1
        try:
            await asyncio.wait([dial.task])
        finally:
            dial.waiting -= 1
            if not dial.waiting:
                if self._dials.get(dest.key) is dial:
                    del self._dials[dest.key]
                if not dial.task.cancel() and not dial.task.cancelled():
                    dial.task.exception()  # so that nobody has to look
        if dial.task.cancelled():
            raise SignallingError("the dial was given up")
        return dial.task.result()

    async def _open(self, dest: PeerAddress) -> Pipe:
        loop = asyncio.get_running_loop()
        began = loop.time()
        pipe = await self._dial(dest)
        if self._adopt(pipe, Deframer()):
            self._by_peer[dest.key] = pipe
            if is_public(pipe.remote[0]):
                self._doubts[pipe] = loop.create_future()
                doubt_s = min(DOUBT_S + 2 * (loop.time() - began), MAX_DOUBT_S)
                loop.call_later(doubt_s, self._settle, pipe, "")
        return pipe

    def _settle(self, pipe: Pipe, cause: str) -> None:
        """Say who is at the other end of a new connection: the peer, or why it is not."""
        doubt = self._doubts.pop(pipe, None)
        if doubt is not None:
            doubt.set_result(cause)

    def accept(self, pipe: Pipe, deframer: Deframer, body: bytes) -> None:
        """Take over a connection that began with a signal; ``body`` is its first envelope."""
        if self._adopt(pipe, deframer):
            try:
                self._received(pipe, body)
            except RemoteProtocolError as error:
                self._garbage(pipe, error)
            else:
                self._drain(pipe, deframer)

    # Connections.

    def _adopt(self, pipe: Pipe, deframer: Deframer) -> bool:
        """Keep a connection; False when it, or this transport, is closed already."""
        if self._deliver is None or pipe.closed:
            pipe.abort()
            return False
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest, timer = self._connections.popitem(last=False)
            timer.cancel()
            self._counters.count("signal_connections_evicted")
            oldest.abort()
        self._touch(pipe)
        pipe.add_close_callback(self._gone)

        def more(data: bytes, _addr: tuple[str, int]) -> None:
            deframer.feed(data)
            self._drain(pipe, deframer)

        pipe.take_over(more)
        return True

    def _drain(self, pipe: Pipe, deframer: Deframer) -> None:
        try:
            while (message := deframer.next()) is not None:
                kind, body = message
                if kind != SIGNAL:
                    raise RemoteProtocolError(f"message {kind} on a signal connection")
                self._received(pipe, body)
        except RemoteProtocolError as error:
            self._garbage(pipe, error)

    def _garbage(self, pipe: Pipe, error: RemoteProtocolError) -> None:
        self._counters.count("signal_garbage")
        log.debug("signal connection with %s: %s", pipe.remote, error)
        self._settle(pipe, str(error))
        pipe.abort()

    def _received(self, pipe: Pipe, envelope: bytes) -> None:
        if self._deliver is None:
            return
        ip, port = pipe.remote

        async def reply(answer: bytes, _dest: PeerAddress) -> None:
            await self._write(pipe, answer)

        origin = SignalOrigin(self.name, is_loopback(ip), reply, f"{ip} port {port}")
        if self._deliver(envelope, origin) is False:
            raise RemoteProtocolError("an envelope that is not for this node")
        self._settle(pipe, "")
        self._touch(pipe)

    async def _write(self, pipe: Pipe, envelope: bytes) -> None:
        if pipe.closed:
            raise SignallingError("the signal connection has ended")
        self._touch(pipe)
        pipe.write_raw(frame(SIGNAL, envelope))

    def _touch(self, pipe: Pipe) -> None:
        timer = self._connections.pop(pipe, None)
        if timer is not None:
            timer.cancel()
        if not pipe.closed:
            loop = asyncio.get_running_loop()
            self._connections[pipe] = loop.call_later(KEEP_S, pipe.abort)

    def _gone(self, pipe: Pipe) -> None:
        timer = self._connections.pop(pipe, None)
        if timer is not None:
            timer.cancel()
        self._settle(pipe, "the connection ended at once")
        for key in [key for key, other in self._by_peer.items() if other is pipe]:
            del self._by_peer[key]

    # Dialling.

    async def _dial(self, dest: PeerAddress) -> Pipe:
        """Connect to the first of the peer's addresses that answers."""
        targets = self._targets(dest)
        if not targets:
            raise SignallingError("none of the peer's addresses can be reached from here")
        loop = asyncio.get_running_loop()
        dials = [
            loop.create_task(self._dial_one(target, number * STAGGER_S))
            for number, target in enumerate(targets[:MAX_DIALS])
        ]
        errors: list[str] = []
        pending = set(dials)
        winner: asyncio.Task[Pipe] | None = None
        try:
            while pending and winner is None:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        winner = task
                    else:
                        errors.append(str(task.exception()))
        finally:
            for task in dials:
                if task is not winner:
                    task.cancel()
                    task.add_done_callback(_close_late)
        if winner is None:
            raise SignallingError("; ".join(errors))
        return winner.result()

    async def _dial_one(self, target: Target, delay_s: float) -> Pipe:
        await asyncio.sleep(delay_s)
        nic, af, ip, port = target
        route = await nic.route(af).bind()
        try:
            return await route.connect((ip, port), TCP, timeout=CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise SignallingError(f"{ip} port {port}: {error}") from error


def _close_late(task: asyncio.Task[Pipe]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()

"""``Pipe``: what every strategy produces and every user holds, over TCP and UDP alike."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from warpgate.errors import PipeClosed, RemoteProtocolError
from warpgate.events import Counters
from warpgate.net.addresses import Address
from warpgate.net.inbox import Receiver, no_callbacks
from warpgate.net.reading import Reader
from warpgate.net.subscription import MsgCallback

log = logging.getLogger("warpgate.pipe")

NO_ADDRESS: Address = ("", 0)


class PipeFilter(Protocol):
    """What stands between a pipe's user and the wire, such as the sealing of its bytes."""

    overhead: int

    def farewell(self) -> bytes:
        """Return what is sent when the pipe is closed on this side; empty: nothing."""

    def encode(self, data: bytes) -> bytes:
        """Return what goes on the wire for bytes of the user."""

    def decode(self, data: bytes, addr: Address) -> Iterable[bytes]:
        """Return the user's messages in what came from the wire; none is fine.

        Raises:
            RemoteProtocolError: it can't be right; a stream is closed, a datagram dropped.

        """


@runtime_checkable
class StreamFilter(PipeFilter, Protocol):
    """A stream's filter that is read into directly, and knows whether the peer has ended the stream.

    Attributes:
        ended: whether the peer has said so; a stream that ends without it was cut off.

    """

    ended: bool

    def buffer(self) -> memoryview:
        """Return where the next bytes from the wire go."""

    def filled(self, count: int) -> Iterable[bytes]:
        """Return the user's messages now that ``count`` bytes more are in the buffer.

        Raises:
            RemoteProtocolError: it can't be right; the stream is closed.

        """


class Pipe(Reader, ABC):
    """A connection to a peer: messages in both directions, whatever carries them.

    A message is what one read returned on a stream (at most 64 KiB, borders mean nothing), or one
    datagram. Incoming messages go to every matching subscription and to the node's callbacks.

    Attributes:
        transport: ``"tcp"`` or ``"udp"``. A UDP pipe is unordered and lossy.
        reliable: whether what was sent arrives, once and in order, while the pipe lives.
        local: this end's ``(ip, port)``.
        remote: the other end's ``(ip, port)``.
        max_message: the largest ``send`` in bytes; None on a stream, where there is no limit.
        unmatched: how many messages no subscription wanted.
        dropped: how many unread datagrams gave way to newer ones.
        plugin_name: the strategy that made the pipe.
        path: how it goes, ``"direct"`` or ``"relay"`` or what the strategy set.
        report: what was tried to get it.
        peer_id: the proven node id of the other end; None on a plain connection.
        sealed: whether its bytes are encrypted and authenticated.
        inbound: whether the peer asked for it.
        handshake: the hello that runs or ran on it.
        counters: where what goes wrong is counted; a node's, once it has the pipe.
        over_loopback: whether it never leaves this machine.

    """

    transport: ClassVar[str] = ""
    reliable: ClassVar[bool] = True
    remote: Address

    def __init__(self) -> None:
        super().__init__()
        self.local: Address = NO_ADDRESS
        self.max_message: int | None = None
        self.plugin_name: str | None = None
        self.path: str | None = None
        self.report: Any = None
        self.peer_id: str | None = None
        self.sealed = False
        self.inbound = False
        self.handshake: Any = None
        self.over_loopback = False
        self._filter: PipeFilter | None = None
        self._gated = False
        self._ready = False  # send() may write at once
        self._closing = False  # on the way to the end: nothing can be sent any more
        self._deaf = False  # close() or abort() was called: what still comes is thrown away
        self._lost = False  # the socket is gone
        self._cause: BaseException | None = None
        self._broken = False  # the end was not the peer's nor ours
        self._senders: deque[asyncio.Future[None]] = deque()
        self._closers: set[asyncio.Future[None]] = set()
        self._close_callbacks: list[Callable[[Pipe], None]] = []

    def __repr__(self) -> str:
        kind = self.transport if self.reliable else f"{self.transport}, unordered and lossy"
        state = "closed" if self.closed else "open"
        ends = f"{self.local[0]} port {self.local[1]} to {self.remote[0]} port {self.remote[1]}"
        return f"<{type(self).__name__} ({kind}) {ends}, {state}>"

    # Sending and closing

    @abstractmethod
    async def send(self, data: Any, dest_tup: Address | None = None) -> int:
        """Send bytes.

        Args:
            data: bytes, bytearray or memoryview.
            dest_tup: where a datagram goes, the pipe's ``remote`` when None; a stream ignores it.

        Returns:
            How many bytes were accepted: all of them. It waits while too much is on its way.

        Raises:
            PipeClosed: the pipe is closed, or closed while this waited.
            TypeError: the data is no bytes.
            ValueError: a datagram is over ``max_message``, or has no destination.

        """

    async def close(self) -> None:
        """Close the pipe and wait for it; what was sent before still goes out.

        Calling it again, or from several tasks, or from a handler of the pipe, is fine. When it is
        cancelled the pipe closes nevertheless.
        """
        self._begin_close()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the pipe is closed, by whichever side, and its socket is gone."""
        if self._lost:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closers.add(waiter)
        try:
            await waiter
        finally:
            self._closers.discard(waiter)

    @property
    def cause(self) -> BaseException | None:
        """Why the pipe ended, when it was not closed by one of its ends; None otherwise."""
        return self._cause

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more. What came before can still be received."""
        return self._closing or self._lost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # The core's seam

    def take_over(self, receiver: Receiver) -> None:
        """Give everything incoming to ``receiver`` alone, what nobody has read yet first.

        All subscriptions end. Filters don't see what the receiver sees.
        """
        unread = self._unread()
        self._receiver = receiver
        self._settle_sole()
        for data, addr in unread:
            self._incoming(data, addr)  # which asks anew who gets it: a receiver may hand back
        if self._ended:
            self._drained()

    def hand_back(self, messages: Iterable[bytes] = ()) -> None:
        """End :meth:`take_over`; ``messages``, as they came from the wire, go to the filter first."""
        self._receiver = None
        self._settle_sole()
        for data in messages:
            self._incoming(data, self.remote)
        if not self._deaf:
            self._flush_backlog()
        if self._ended:
            self._drained()

    @abstractmethod
    def write_raw(self, data: bytes, addr: Address | None = None) -> None:
        """Write past gate and filter, without waiting; nothing happens when the pipe is closed."""

    def gate(self) -> None:
        """Let ``send`` wait until :meth:`open_gate`."""
        self._gated = True
        self._settle_ready()

    def open_gate(self) -> None:
        """Let ``send`` go on."""
        self._gated = False
        self._settle_ready()

    def set_filter(self, pipe_filter: PipeFilter | None) -> None:
        """Send what comes and goes from here on through a filter; None takes it away."""
        self._filter = pipe_filter
        self._settle_sole()

    def abort(self, cause: BaseException | None = None) -> None:
        """Close at once, without sending what still waits.

        Args:
            cause: why; it is the cause of every ``PipeClosed`` from here on.

        """
        if self._cause is None:
            self._cause = cause
        self._stop()
        self._abort_transport()

    def fail(self, cause: BaseException) -> None:
        """Close at once, since what stands behind the pipe is not what it was.

        Readers get what came before, then ``PipeClosed`` where they can't do without the rest.
        """
        self._broken = not self._deaf
        self.abort(cause)

    def peer_ended(self) -> None:
        """Close because the peer has: what came before still goes to readers and handlers."""
        self._end()
        self._drained()

    def add_close_callback(self, callback: Callable[[Pipe], None]) -> None:
        """Call ``callback(pipe)`` once the pipe is closed; at once when it is already."""
        if self._lost:
            self._run_close_callback(callback)
        else:
            self._close_callbacks.append(callback)

    def set_callbacks(
        self,
        source: Callable[[], Sequence[MsgCallback]] = no_callbacks,
        counters: Counters | None = None,
    ) -> None:
        """Say where a node's message callbacks come from; :meth:`kick` after each change of them."""
        self._callback_source = source
        if counters is not None:
            self.counters = counters
        self.kick()

    def kick(self) -> None:
        """Read the callbacks anew, and give them what waited for the first one."""
        self._callbacks = tuple(self._callback_source())
        self._settle_sole()
        self._flush_backlog()

    # For the transports

    @abstractmethod
    def _begin_close(self) -> None:
        """Start closing gracefully, unless that has happened."""

    @abstractmethod
    def _abort_transport(self) -> None:
        """Close the socket at once."""

    def _incoming(self, data: bytes, addr: Address) -> None:
        """Take what the socket gave."""
        if self._deaf:
            return
        try:
            if self._receiver is not None:
                self._receiver(data, addr)
            elif self._filter is not None:
                for message in self._filter.decode(data, addr):
                    self._deliver(message, addr)
            else:
                self._deliver(data, addr)
        except RemoteProtocolError as error:
            self._protocol_error(error)

    def _protocol_error(self, error: RemoteProtocolError) -> None:
        self.counters.count("pipe_protocol_errors")
        if not self.datagram:  # nothing after it can be trusted; a datagram may be anyone's
            self.fail(error)

    def _takes_directly(self) -> bool:
        return self._receiver is None and self._filter is None and not self._deaf

    def _end_cause(self) -> BaseException | None:
        return self._cause if self._broken else None

    def _can_write(self) -> bool:
        """Return whether the transport takes more; the transports extend it."""
        return not (self._gated or self._closing or self._lost)

    def _settle_ready(self) -> None:
        """Find out whether ``send`` may write at once; wake those who wait if so, or if never."""
        self._ready = self._can_write()
        if self._ready or self._closing or self._lost:
            for waiter in self._senders:
                if not waiter.done():
                    waiter.set_result(None)

    async def _writable(self) -> None:
        """Wait until the transport takes more.

        Raises:
            PipeClosed: the pipe is closed.

        """
        while not self._can_write():
            if self._closing or self._lost:
                raise PipeClosed from self._cause
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._senders.append(waiter)
            try:
                await waiter
            finally:
                self._senders.remove(waiter)

    def _stop(self) -> None:
        """End the user's side: no more is sent or delivered; what was queued can be read."""
        self._closing = self._deaf = True
        self._receiver = None
        self._drain(self._work)
        self._settle_sole()
        self._settle_ready()
        self._end()

    def _gone(self, cause: BaseException | None = None) -> None:
        """Take note that the socket is gone."""
        if self._lost:
            return
        self._lost = True
        if self._cause is None:
            self._cause = cause
        self._end()
        self._settle_ready()
        for waiter in self._closers:
            if not waiter.done():
                waiter.set_result(None)
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            self._run_close_callback(callback)

    def _run_close_callback(self, callback: Callable[[Pipe], None]) -> None:
        try:
            callback(self)
        except Exception:
            self.counters.count("handler_errors")
            log.exception("a close callback of %r failed", self)


def as_bytes(data: Any) -> bytes:
    """Return the data of a ``send`` as bytes that nobody can change any more.

    Raises:
        TypeError: it is neither bytes, bytearray nor memoryview; the text names what it is.

    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"send takes bytes, bytearray or memoryview, not {type(data).__name__}")

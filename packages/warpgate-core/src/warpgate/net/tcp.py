"""``TcpPipe``: a pipe that is its own transport protocol, with a buffer of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

from warpgate.errors import PipeClosed, RemoteProtocolError
from warpgate.net.addresses import Address, user_address
from warpgate.net.inbox import HIGH_WATER, LOW_WATER, READ_SIZE
from warpgate.net.pipe import NO_ADDRESS, Pipe, PipeFilter, StreamFilter, as_bytes
from warpgate.net.subscription import MESSAGE_OVERHEAD
from warpgate.protocol.ip import is_loopback

LINGER_S = 1.0  # close() waits this long for the peer's end once everything has been sent
FLUSH_STALL_S = 10.0  # close() gives up when the peer takes nothing for so long
# After the peer has sent its last, we wait this long for a reader to take something, so that it can
# still answer; a handler that runs is always waited for.
END_GRACE_S = 0.2

NO_BUFFER = memoryview(b"")


class TcpPipe(Pipe, asyncio.BufferedProtocol):
    """A pipe over TCP: a reliable, ordered stream of bytes.

    Attributes:
        half_closes: what is still on its way arrives although one end has sent its last. Set it to
            False, at both ends, where something on the way closes both connections at once, as TURN
            servers do (RFC 6062): who closes a sealed pipe then says so in its last record, and the
            other end closes the connection when it has read that.

    """

    transport: ClassVar[str] = "tcp"

    def __init__(self, on_connected: Callable[[TcpPipe], None] | None = None) -> None:
        """Prepare; ``on_connected`` is called before the first byte is read."""
        super().__init__()
        self.remote = NO_ADDRESS
        self.half_closes = True
        self._on_connected = on_connected
        self._stream: asyncio.Transport | None = None
        self._buffer = NO_BUFFER
        self._records: StreamFilter | None = None  # the filter, when it is read into directly
        self._full = False  # the transport holds as much as it may
        self._slow_senders = 0
        self._turn = asyncio.Lock()  # of those who can't write at once
        self._timer: asyncio.TimerHandle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connected transport."""
        self._stream = cast("asyncio.Transport", transport)
        _send_at_once(transport.get_extra_info("socket"))
        self.local = _address(transport, "sockname")
        self.remote = _address(transport, "peername")
        self.over_loopback = is_loopback(self.remote[0])
        self._stream.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._settle_ready()
        if self._on_connected is not None:
            on_connected, self._on_connected = self._on_connected, None
            on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next read goes; idle connections have no buffer."""
        if not self._buffer:
            if self._records is not None:
                return self._records.buffer()
            self._buffer = memoryview(bytearray(READ_SIZE))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Deliver what was read."""
        data = bytes(self._buffer[:nbytes])
        sole = self._sole
        if sole is None:
            if self._records is None:
                self._incoming(data, self.remote)
            elif not self._deaf or not self.half_closes:
                self._read_records(self._records, nbytes)
            return
        # The same as _deliver does, for the case that there is one queue, which takes everything.
        cost = nbytes + MESSAGE_OVERHEAD
        sole.queue.append((data, self.remote))
        sole.held += cost
        self._held += cost
        if self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._pause_reading()
        waiters = sole.waiters
        if waiters and not waiters[0].done():
            waiters[0].resume()

    def _read_records(self, records: StreamFilter, nbytes: int) -> None:
        try:
            for message in records.filled(nbytes):
                if not self._deaf:
                    self._deliver(message, self.remote)
        except RemoteProtocolError as error:
            self._protocol_error(error)
        else:
            self._note_last()

    def _note_last(self) -> None:
        """Take the peer's last record for its end, where the end itself would come too early."""
        if self.half_closes or self._records is None or not self._records.ended:
            return
        if not self._deaf:
            if not self._ended:
                self.peer_ended()
        elif self._stream is not None and not self._stream.is_closing():
            self._stream.close()  # both ends have closed it

    def hand_back(self, messages: Iterable[bytes] = ()) -> None:  # noqa: D102
        super().hand_back(messages)
        self._note_last()

    def set_filter(self, pipe_filter: PipeFilter | None) -> None:  # noqa: D102
        super().set_filter(pipe_filter)
        self._records = pipe_filter if isinstance(pipe_filter, StreamFilter) else None
        self._buffer = NO_BUFFER

    def eof_received(self) -> bool:
        """Note that the peer has sent its last; answers may still go out."""
        if self._closing or self._stream is None:
            return False  # nothing to wait for: the transport closes
        self._note_cut(None)
        self.peer_ended()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is gone."""
        self._stream = None
        self._buffer = NO_BUFFER
        self._stop_timer()
        self._note_cut(exc)
        self._gone(exc)

    def _note_cut(self, exc: Exception | None) -> None:
        """Tell an end that anybody on the path can bring about from the peer's own."""
        if self._records is None or self._records.ended or self._closing or self._lost:
            return
        self._broken = True
        if self._cause is None:
            self._cause = RemoteProtocolError("the stream was cut off before the peer closed it")
            self._cause.__cause__ = exc

    def pause_writing(self) -> None:
        """Let ``send`` wait."""
        self._full = True
        self._settle_ready()

    def resume_writing(self) -> None:
        """Let ``send`` go on."""
        self._full = False
        self._settle_ready()

    # Sending

    async def send(self, data: Any, dest_tup: Address | None = None) -> int:  # noqa: D102
        stream = self._stream
        if (
            self._ready
            and stream is not None
            and type(data) is bytes
            and len(data) <= HIGH_WATER
            and not stream.is_closing()
        ):
            stream.write(data if self._filter is None else self._filter.encode(data))
            return len(data)
        return await self._send_in_turn(as_bytes(data))

    async def _send_in_turn(self, data: bytes) -> int:
        """Send in pieces, one sender after the other, each when the transport takes more."""
        self._slow_senders += 1
        self._ready = False
        try:
            async with self._turn:
                for start in range(0, len(data) or 1, HIGH_WATER):
                    await self._writable()
                    self._write(data[start : start + HIGH_WATER])
        finally:
            self._slow_senders -= 1
            self._settle_ready()
        return len(data)

    def _write(self, data: bytes) -> None:
        stream, pipe_filter = self._stream, self._filter
        if stream is None or stream.is_closing():
            raise PipeClosed from self._cause
        stream.write(data if pipe_filter is None else pipe_filter.encode(data))

    def write_raw(self, data: bytes, addr: Address | None = None) -> None:  # noqa: D102
        stream = self._stream
        if stream is not None and not self._closing and not stream.is_closing():
            stream.write(data)

    def _can_write(self) -> bool:
        return super()._can_write() and not self._full and self._stream is not None

    def _settle_ready(self) -> None:
        super()._settle_ready()
        self._ready = self._ready and not self._slow_senders

    # Reading

    def _pause_reading(self) -> None:
        if self._stream is not None:
            self._stream.pause_reading()

    def _resume_reading(self) -> None:
        if self._stream is not None:
            self._stream.resume_reading()

    # The end

    def _drained(self) -> None:
        """Close after the peer's end, once what it sent has been handed on."""
        if self._stream is None or self._closing or self._dispatcher is not None:
            return
        if self._held == 0 or self._receiver is not None:
            self._finish()
        elif self._timer is None:
            self._timer = self._loop().call_later(END_GRACE_S, self._watch_reader, self._held)

    def _watch_reader(self, held_before: int) -> None:
        self._timer = None
        if self._stream is None or self._closing or self._dispatcher is not None:
            return  # _drained is called again when the handlers are done
        if self._held == held_before:
            self._finish()
        else:
            self._timer = self._loop().call_later(END_GRACE_S, self._watch_reader, self._held)

    def _finish(self) -> None:
        """Send what waits, and close; the peer has nothing more to say."""
        stream = cast("asyncio.Transport", self._stream)
        self._closing = True
        self._settle_sole()
        self._settle_ready()
        if not stream.is_closing():  # asyncio's TLS can't be asked anything after a second close
            stream.close()
        self._linger()

    def _begin_close(self) -> None:
        if self._deaf or self._lost:
            self._closing = self._deaf = True
            return
        heard_all = self._ended
        farewell = b"" if self._filter is None or heard_all else self._filter.farewell()
        self._stop()
        stream = self._stream
        if stream is None:
            self._gone()
            return
        if stream.is_closing():
            return
        half_closes = self.half_closes and stream.can_write_eof()
        if heard_all or not (half_closes or farewell):
            stream.close()
        elif not half_closes:
            stream.resume_reading()
            stream.write(farewell)
        else:
            # Closing a socket with unread bytes resets the connection, and the peer would lose
            # what it has not read yet. So: say that this was the last, then read to the peer's end.
            stream.resume_reading()
            try:
                stream.write(farewell)
                stream.write_eof()
            except OSError:  # the peer is gone already
                stream.abort()
                return
        self._linger()

    def _abort_transport(self) -> None:
        if self._stream is None:
            self._gone()
        else:
            self._stream.abort()

    def _linger(self) -> None:
        self._stop_timer()
        self._timer = self._loop().call_later(LINGER_S, self._check_progress, self._unsent(), 0.0)

    def _check_progress(self, before: int, stalled_s: float) -> None:
        """Abort when nothing has moved for too long."""
        stream = self._stream
        if stream is None:
            return
        unsent = self._unsent()
        stalled_s = 0.0 if unsent < before else stalled_s + LINGER_S
        # Beyond a relay nobody sees what moves; only its end tells that the peer has read everything.
        blind = not (self.half_closes or stream.is_closing())
        patient = blind or stream.get_write_buffer_size()
        if stalled_s >= (FLUSH_STALL_S if patient else LINGER_S):
            stream.abort()
            return
        self._timer = self._loop().call_later(LINGER_S, self._check_progress, unsent, stalled_s)

    def _unsent(self) -> int:
        """Return how many bytes the peer has not acknowledged, as far as the system tells."""
        stream = self._stream
        if stream is None:
            return 0
        return stream.get_write_buffer_size() + _unacknowledged(stream.get_extra_info("socket"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()


def _address(transport: asyncio.BaseTransport, which: str) -> Address:
    address = transport.get_extra_info(which)
    return user_address(address) if address else NO_ADDRESS


def _send_at_once(sock: socket.socket | None) -> None:
    # asyncio does it only for sockets made with an explicit protocol number; without it a small
    # message waits for the peer's delayed acknowledgement (RFC 9293, section 3.7.4).
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _unacknowledged(sock: socket.socket | None) -> int:
    if sys.platform != "linux" or sock is None or sock.fileno() < 0:
        return 0
    import fcntl
    import termios

    try:  # SIOCOUTQ, tcp(7)
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)

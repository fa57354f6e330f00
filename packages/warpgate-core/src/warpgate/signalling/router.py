"""Seals and opens signals, chooses transports, and drops what can't be accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from ..errors import InvalidAddressError, RemoteProtocolError, SignallingError, StaleMessage
from ..identity import node_id_text
from ..protocol.codec import MessageTable, decode_body, encode_body
from ..protocol.envelope import ReplayGuard, Signal, open_signal, seal_signal
from ..protocol.peer_address import PeerAddress, unpack_address
from .transport import SignalOrigin, SignalTransport

if TYPE_CHECKING:
    from ..events import Counters
    from ..identity import Identity
    from ..protocol.proto_msg import ConMsg

log = logging.getLogger("warpgate")

TIME_WIRE_NAME = "Time"
"""The answer to a signal with a stale stamp: [msg_id, the receiver's Unix time in ms]."""
DEFAULT_TTL_S = 20
MAX_PENDING = 256
"""Sent signals that are remembered, so that one can be repeated with a corrected time."""
MAX_OFFSETS = 1024
TIME_ANSWERS_PER_S = 20
SEND_TIMEOUT_S = 10.0

OnSignal = Callable[[PeerAddress, "ConMsg", SignalOrigin], None]


@dataclass(slots=True)
class _Sent:
    dest: PeerAddress
    wire_name: str
    body: bytes
    ttl_s: int
    origin: SignalOrigin | None
    expires: float
    repeated: bool = False


class SignalRouter:
    """One node's signalling.

    Args:
        identity: the node's keys.
        table: message classes by wire name.
        counters: where drops are counted.
        on_signal: called with the sender's verified address, the message and its origin.
        clock: Unix time in seconds; tests inject one that is wrong.

    """

    def __init__(
        self,
        identity: Identity,
        table: MessageTable,
        counters: Counters,
        on_signal: OnSignal,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._table = table
        self._counters = counters
        self._on_signal = on_signal
        self._clock = clock
        self._transports: list[SignalTransport] = []
        self._guard = ReplayGuard()
        self._sent: OrderedDict[bytes, _Sent] = OrderedDict()
        self._offsets_ms: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = 0
        self._answers_since = 0.0

    async def start(self, transports: Sequence[SignalTransport]) -> None:
        """Start the transports, all at once."""
        self._transports = list(transports)
        await asyncio.gather(*(transport.start(self.deliver) for transport in self._transports))

    def brokers(self) -> tuple[str, ...]:
        """Return the brokers that belong into the node's address."""
        return tuple(broker for transport in self._transports for broker in transport.brokers())

    async def close(self) -> None:
        """Stop everything; what is being sent is given up."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for transport in reversed(self._transports):
            await transport.close()

    # Sending.

    async def send(
        self, dest: PeerAddress, msg: ConMsg, ttl_s: int, origin: SignalOrigin | None = None
    ) -> None:
        """Send a message to a peer over every transport that reaches it.

        Args:
            dest: the peer.
            msg: the message, complete.
            ttl_s: how many seconds it is good for.
            origin: the signal that this answers; its way is taken too.

        Raises:
            SignallingError: no transport took it; the text has each one's cause.
            MessageTooLarge: it does not fit into 8 KiB.

        """
        sent = _Sent(dest, type(msg).WIRE_NAME, encode_body(msg), ttl_s, origin, 0.0)
        await self._send(sent)

    async def _send(self, sent: _Sent) -> None:
        msg_id, envelope = self._seal(sent)
        sent.expires = asyncio.get_running_loop().time() + sent.ttl_s
        self._sent[msg_id] = sent
        if len(self._sent) > MAX_PENDING:
            self._sent.popitem(last=False)
        await self._carry(sent.dest, envelope, sent.origin)

    def _seal(self, sent: _Sent) -> tuple[bytes, bytes]:
        msg_id = os.urandom(16)
        offset = self._offsets_ms.get(sent.dest.node_id, 0)
        envelope = seal_signal(
            self._identity,
            sent.dest.key,
            sent.dest.exchange_key,
            wire_name=sent.wire_name,
            body=sent.body,
            sent_ms=int(self._clock() * 1000) + offset,
            ttl_s=sent.ttl_s,
            msg_id=msg_id,
        )
        return msg_id, envelope

    async def _carry(
        self, dest: PeerAddress, envelope: bytes, origin: SignalOrigin | None
    ) -> None:
        """Hand an envelope to every way to the peer; return when the first has taken it."""
        errors: list[str] = []
        loop = asyncio.get_running_loop()
        first: asyncio.Future[None] = loop.create_future()
        ways: list[asyncio.Task[None]] = []

        async def back() -> None:
            assert origin is not None
            assert origin.reply is not None
            try:
                await origin.reply(envelope)
            except SignallingError as error:
                errors.append(f"back over {origin.transport}: {error}")
            else:
                _resolve(first)

        async def over(transport: SignalTransport) -> None:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await transport.send(dest, envelope)
            except (SignallingError, TimeoutError) as error:
                errors.append(f"{transport.name}: {error or 'timed out'}")
            else:
                _resolve(first)

        if origin is not None and origin.reply is not None:
            ways.append(loop.create_task(back()))
        for transport in self._transports:
            if origin is None or origin.reply is None or transport.name != origin.transport:
                ways.append(loop.create_task(over(transport)))
        left = len(ways)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                errors.append(repr(task.exception()))
            if left == 0:
                _resolve(first)

        for task in ways:
            self._tasks.add(task)
            task.add_done_callback(ended)
        if not ways:
            raise SignallingError("no signal transport is in use on this node")
        await first
        if errors and len(errors) >= len(ways):
            raise SignallingError("; ".join(errors))

    # Receiving.

    def deliver(self, envelope: bytes, origin: SignalOrigin) -> None:
        """Take an envelope from a transport; never raises."""
        try:
            signal = open_signal(self._identity, envelope)
            if signal.wire_name == TIME_WIRE_NAME:
                self._time_answer(signal)
                return
            self._accept(signal, origin)
        except StaleMessage as error:
            self._counters.count("signals_duplicate" if error.duplicate else "signals_stale")
        except (RemoteProtocolError, InvalidAddressError) as error:
            self._counters.count(f"signals_{type(error).__name__}")
            log.debug("signal from %s dropped: %s", origin.remote, error)

    def _accept(self, signal: Signal, origin: SignalOrigin) -> None:
        now_ms = int(self._clock() * 1000)
        try:
            self._guard.accept(signal, now_ms)
        except StaleMessage as error:
            if not error.duplicate:
                self._answer_with_time(signal, now_ms, origin)
            raise
        msg = decode_body(self._table.get(signal.wire_name), signal.body)
        peer = unpack_address(msg.meta.src_buf)
        if peer.key != signal.sender:
            raise RemoteProtocolError("the address in a signal is not its signer's")
        self._counters.count("signals_received")
        self._on_signal(peer, msg, origin)

    # Wrong clocks.

    def _answer_with_time(self, signal: Signal, now_ms: int, origin: SignalOrigin) -> None:
        if origin.reply is None:
            return
        try:
            peer = unpack_address(decode_body(self._table.get(signal.wire_name), signal.body).meta.src_buf)
        except (RemoteProtocolError, InvalidAddressError):
            return
        if peer.key != signal.sender:
            return
        now = asyncio.get_running_loop().time()
        if now - self._answers_since >= 1:
            self._answers_since, self._answers = now, 0
        if self._answers >= TIME_ANSWERS_PER_S:
            self._counters.count("time_answers_limited")
            return
        self._answers += 1
        envelope = seal_signal(
            self._identity,
            peer.key,
            peer.exchange_key,
            wire_name=TIME_WIRE_NAME,
            body=msgpack.packb([signal.msg_id, now_ms]),
            sent_ms=now_ms,
            ttl_s=DEFAULT_TTL_S,
            msg_id=os.urandom(16),
        )
        self._spawn(origin.reply(envelope))

    def _time_answer(self, signal: Signal) -> None:
        try:
            msg_id, their_ms = msgpack.unpackb(signal.body, max_buffer_size=256)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"a time answer that can't be read: {error}") from None
        sent = self._sent.pop(msg_id, None) if isinstance(msg_id, bytes) else None
        if sent is None or sent.dest.key != signal.sender or not isinstance(their_ms, int):
            self._counters.count("time_answers_unasked")
            return
        self._offsets_ms[node_id_text(signal.sender)] = their_ms - int(self._clock() * 1000)
        if len(self._offsets_ms) > MAX_OFFSETS:
            self._offsets_ms.popitem(last=False)
        self._counters.count("clock_corrections")
        if not sent.repeated and sent.expires > asyncio.get_running_loop().time():
            sent.repeated = True
            self._spawn(self._send(sent))

    def _spawn(self, coroutine: object) -> None:
        async def quietly() -> None:
            try:
                await coroutine  # type: ignore[misc]
            except SignallingError as error:
                self._counters.count("signals_unsent")
                log.debug("signal not sent: %s", error)

        task = asyncio.get_running_loop().create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

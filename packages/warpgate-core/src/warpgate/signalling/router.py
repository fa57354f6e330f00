"""Seals and opens signals, chooses transports, and drops what can't be accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from warpgate.errors import (
    InvalidAddressError,
    RemoteProtocolError,
    SignallingError,
    StaleMessage,
    WarpgateError,
)
from warpgate.identity import node_id_text
from warpgate.protocol import strict
from warpgate.protocol.codec import MessageTable, decode_body, encode_body
from warpgate.protocol.envelope import (
    MAX_SENT_MS,
    MSG_ID_LENGTH,
    ReplayGuard,
    Signal,
    open_signal,
    seal_signal,
)
from warpgate.protocol.peer_address import PeerAddress, unpack_address
from warpgate.signalling.transport import Reply, SignalOrigin, SignalTransport

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.identity import Identity
    from warpgate.protocol.proto_msg import ConMsg

log = logging.getLogger("warpgate")

TIME_WIRE_NAME = "Time"
"""The answer to a signal with a stale stamp: [msg_id, the receiver's Unix time in ms]."""
DEFAULT_TTL_S = 20
MAX_PENDING = 256
"""Sent signals that are remembered, so that one can be repeated with a corrected time."""
MAX_OFFSETS = 1024
TIME_ANSWERS_PER_S = 20
SEND_TIMEOUT_S = 10.0
MAX_COPIES = 5
"""Repetitions of a signal whose receiver may have had to drop it."""
COPY_AFTER_S = 0.5
"""The pause before the first copy; later ones come after this to twice this."""
MAX_REPEAT_DELAY_MS = 2**40
"""How far the clock may run on after a time answer until its offset leaves the field's range."""

OnSignal = Callable[[PeerAddress, "ConMsg", SignalOrigin], None]


@dataclass(slots=True)
class _Sent:
    dest: PeerAddress
    wire_name: str
    body: bytes
    ttl_s: int
    origin: SignalOrigin | None
    unheard: Callable[[], bool]
    expires: float = 0.0
    envelope: bytes = b""
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
        """Start the transports, all at once; one that can't start is left out."""
        found = list(transports)
        results = await asyncio.gather(
            *(transport.start(self.deliver) for transport in found), return_exceptions=True
        )
        for transport, result in zip(found, results, strict=True):
            if not isinstance(result, BaseException):
                self._transports.append(transport)
            elif isinstance(result, Exception):
                log.error("signal transport %s can't start", transport.name, exc_info=result)
                self._counters.count("transport_errors")
            else:
                raise result

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
        self,
        dest: PeerAddress,
        msg: ConMsg,
        ttl_s: int,
        origin: SignalOrigin | None = None,
        tasks: set[asyncio.Task[None]] | None = None,
        unheard: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send a message to a peer over every transport that reaches it.

        It returns when the first transport has taken it; when this call is cancelled all give up.
        Floods lose signals, so up to five copies of the envelope follow, 0.5 to 1 s apart.

        Args:
            dest: the peer.
            msg: the message, complete.
            ttl_s: how many seconds it is good for.
            origin: the signal that this answers; it goes back by the way that came.
            tasks: holds what is still under way after that, for the caller to cancel.
            unheard: whether the peer has yet to answer; asked before each copy.

        Raises:
            SignallingError: no transport took it; the text has each one's cause.
            MessageTooLarge: it does not fit into 8 KiB.

        """
        sent = _Sent(dest, type(msg).WIRE_NAME, encode_body(msg), ttl_s, origin, unheard)
        await self._send(sent, set() if tasks is None else tasks)

    async def _send(self, sent: _Sent, tasks: set[asyncio.Task[None]]) -> None:
        msg_id, envelope = self._seal(sent)
        sent.expires = asyncio.get_running_loop().time() + sent.ttl_s
        self._sent[msg_id] = sent
        if len(self._sent) > MAX_PENDING:
            self._sent.popitem(last=False)
        sent.envelope = envelope
        await self._carry(sent.dest, envelope, sent.origin, tasks)
        if sent.unheard():
            self._spawn(lambda: self._repeat(sent, envelope, tasks), tasks)

    async def _repeat(self, sent: _Sent, envelope: bytes, tasks: set[asyncio.Task[None]]) -> None:
        pause_s = COPY_AFTER_S
        for _ in range(MAX_COPIES):
            await asyncio.sleep(pause_s)
            pause_s = random.uniform(COPY_AFTER_S, 2 * COPY_AFTER_S)
            # With a corrected time the signal is another one, which has copies of its own.
            expired = asyncio.get_running_loop().time() >= sent.expires
            if expired or sent.envelope is not envelope or not sent.unheard():
                return
            self._counters.count("signals_repeated")
            with contextlib.suppress(SignallingError):
                await self._carry(sent.dest, envelope, sent.origin, tasks)

    def _seal(self, sent: _Sent) -> tuple[bytes, bytes]:
        msg_id = os.urandom(16)
        offset = self._offsets_ms.get(sent.dest.node_id, 0)
        envelope = seal_signal(
            self._identity,
            sent.dest.key,
            sent.dest.exchange_key,
            wire_name=sent.wire_name,
            body=sent.body,
            sent_ms=max(0, int(self._clock() * 1000) + offset),
            ttl_s=sent.ttl_s,
            msg_id=msg_id,
        )
        return msg_id, envelope

    async def _carry(
        self,
        dest: PeerAddress,
        envelope: bytes,
        origin: SignalOrigin | None,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        """Hand an envelope to every way to the peer; return when the first has taken it."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[bool] = loop.create_future()
        errors: list[str] = []

        async def go(name: str, way: Callable[[], Awaitable[None]]) -> None:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await way()  # made here: a task that is cancelled before it runs leaves nothing
            except TimeoutError:
                errors.append(f"{name}: timed out")
            except SignallingError as error:
                errors.append(f"{name}: {error}")
            except Exception as error:  # a plugin's transport may raise anything
                log.debug("%s failed", name, exc_info=True)
                errors.append(f"{name}: {error!r}")
            else:
                _resolve(taken, True)

        ways = {loop.create_task(go(name, way)) for name, way in self._ways(dest, envelope, origin)}
        if not ways:
            raise SignallingError("no signal transport is in use on this node")
        left = set(ways)

        def ended(task: asyncio.Task[None]) -> None:
            left.discard(task)
            self._tasks.discard(task)
            tasks.discard(task)
            if not left:
                _resolve(taken, False)

        self._tasks |= ways
        tasks |= ways
        for task in ways:
            task.add_done_callback(ended)
        try:
            served = await taken
        except asyncio.CancelledError:
            for task in ways:
                task.cancel()
            raise
        if not served:
            raise SignallingError("; ".join(errors) or "given up")

    def _ways(
        self, dest: PeerAddress, envelope: bytes, origin: SignalOrigin | None
    ) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """Yield every way to the peer: back where its own signal came from, and the transports."""
        reply = origin.reply if origin is not None else None
        for transport in self._transports:
            if reply is not None and origin is not None and transport.name == origin.transport:
                yield transport.name, partial(_back_or_anew, transport, reply, dest, envelope)
            else:
                yield transport.name, partial(transport.send, dest, envelope)

    # Receiving.

    def deliver(self, envelope: bytes, origin: SignalOrigin) -> bool:
        """Take an envelope from a transport; never raises.

        Returns:
            False when nobody can have meant it for this node: it is not sealed to it, or unsigned.

        """
        try:
            signal = open_signal(self._identity, envelope)
        except RemoteProtocolError as error:
            self._drop(error, origin)
            return False
        try:
            if signal.wire_name == TIME_WIRE_NAME:
                self._time_answer(signal)
            else:
                self._accept(signal, origin)
        except StaleMessage as error:
            self._counters.count("signals_duplicate" if error.duplicate else "signals_stale")
        except (RemoteProtocolError, InvalidAddressError) as error:
            self._drop(error, origin)
        except Exception:
            log.exception("a signal from %s could not be handled", origin.remote)
            self._counters.count("signal_errors")
        return True

    def _drop(self, error: Exception, origin: SignalOrigin) -> None:
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
        peer, msg = self._read(signal)
        self._counters.count("signals_received")
        self._counters.count(f"signals_by_{origin.transport}")
        self._on_signal(peer, msg, origin)

    def _read(self, signal: Signal) -> tuple[PeerAddress, ConMsg]:
        """Return a signal's message and the address in it, which must be its signer's."""
        # Whatever class a plugin derives its messages from: all have what a ConMsg has.
        msg = cast("ConMsg", decode_body(self._table.get(signal.wire_name), signal.body))
        peer = unpack_address(msg.meta.src_buf)
        if peer.key != signal.sender:
            raise RemoteProtocolError("the address in a signal is not its signer's")
        return peer, msg

    # Wrong clocks.

    def _answer_with_time(self, signal: Signal, now_ms: int, origin: SignalOrigin) -> None:
        if origin.reply is None:
            return
        peer = self._read(signal)[0]
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
            body=strict.pack([signal.msg_id, now_ms]),
            sent_ms=now_ms,
            ttl_s=DEFAULT_TTL_S,
            msg_id=os.urandom(16),
        )
        reply = origin.reply
        self._spawn(lambda: reply(envelope, peer))

    def _time_answer(self, signal: Signal) -> None:
        try:
            fields = strict.take_list(strict.unpack(signal.body), "time answer", 2)
            msg_id = strict.take_bytes(fields[0], "msg_id", MSG_ID_LENGTH)
            their_ms = strict.take_int(fields[1], "time", MAX_SENT_MS - MAX_REPEAT_DELAY_MS)
        except ValueError as error:
            raise RemoteProtocolError(f"a time answer that can't be read: {error}") from None
        sent = self._sent.get(msg_id)
        if sent is None or sent.dest.key != signal.sender:
            self._counters.count("time_answers_unasked")
            return
        del self._sent[msg_id]
        peer_id = node_id_text(signal.sender)
        self._offsets_ms[peer_id] = their_ms - int(self._clock() * 1000)
        self._offsets_ms.move_to_end(peer_id)
        if len(self._offsets_ms) > MAX_OFFSETS:
            self._offsets_ms.popitem(last=False)
        self._counters.count("clock_corrections")
        if not sent.repeated and sent.expires > asyncio.get_running_loop().time():
            sent.repeated = True
            self._spawn(lambda: self._send(sent, set()))

    def _spawn(
        self, sending: Callable[[], Awaitable[None]], tasks: set[asyncio.Task[None]] | None = None
    ) -> None:
        async def quietly() -> None:
            try:
                await sending()
            except WarpgateError as error:
                self._counters.count("signals_unsent")
                log.debug("signal not sent: %s", error)

        task = asyncio.get_running_loop().create_task(quietly())
        for holder in (self._tasks, *([] if tasks is None else [tasks])):
            holder.add(task)
            task.add_done_callback(holder.discard)


async def _back_or_anew(
    transport: SignalTransport, reply: Reply, dest: PeerAddress, envelope: bytes
) -> None:
    """Answer by the way that a signal came, or by the same transport when that way is gone."""
    try:
        await reply(envelope, dest)
    except SignallingError:
        await transport.send(dest, envelope)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)

"""Connections and datagrams that come in: whose they are, and who waits for them.

An accepted connection says with its first bytes what it is: a hello, a signal, or neither (a
plain connection). Until its peer is proven it counts against a cap and a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from warpgate.errors import LocalProtocolError, RemoteProtocolError
from warpgate.hello.messages import (
    M0,
    M1,
    SIGNAL,
    Deframer,
    frame,
    looks_like_magic,
    parse_datagram,
    unpack_m0,
    unpack_m1,
)
from warpgate.hello.shell import Handshake
from warpgate.identity import node_id_text
from warpgate.net.udp import UdpPipe

if TYPE_CHECKING:
    from warpgate.net.budget import PacketBudget
    from warpgate.net.datagram import DatagramSocket
    from warpgate.net.pipe import Pipe
    from warpgate.net.tcp import TcpPipe
    from warpgate.traversal.attempt import Attempt
    from warpgate.traversal.history import Key
    from warpgate.traversal.manager import TraversalManager

log = logging.getLogger("warpgate")

MAX_UNPROVEN = 256  # of streams and of datagram sources each: neither can crowd the other out
"""Accepted connections whose peer is not proven yet; the oldest goes first."""
UNPROVEN_S = 5.0
MAX_PLAIN_UDP = 256
PLAIN_UDP_KEEP_BYTES = 64 * 1024
"""Unread bytes of one plain datagram pipe: 256 of them stay within 16 MiB."""
PLAIN_UDP_IDLE_S = 60.0
MAX_ENDED_UDP = 1024
"""Sources of ended UDP pipes between nodes, whose last datagrams are no plain ones."""
ENDED_UDP_S = 60.0

Source = tuple[tuple[str, int], tuple[str, int]]
"""This end's and the other end's address."""
StreamSignalHandler = Callable[["TcpPipe", Deframer, bytes], None]


class Waiter:
    """A place that ``register_inbound`` has claimed."""

    def __init__(self, attempt: Attempt, loop: asyncio.AbstractEventLoop) -> None:
        self.attempt = attempt
        self.pipe: asyncio.Future[Pipe] = loop.create_future()


class Inbound:
    """The door: listeners hand it what they accept.

    Args:
        manager: the traversal manager, which makes hello machines and delivers pipes.
        accept_plain: whether connections that are no hello reach the user.
        on_signal_stream: takes over a connection that carries signals.

    """

    def __init__(
        self,
        manager: TraversalManager,
        accept_plain: bool,
        on_signal_stream: StreamSignalHandler,
    ) -> None:
        self._manager = manager
        self._accept_plain = accept_plain
        self._on_signal_stream = on_signal_stream
        self._waiters: dict[Key, Waiter] = {}
        self._announced: dict[str, Waiter] = {}  # by plugin_id, which M0 has alone
        self._unproven: OrderedDict[Pipe, asyncio.TimerHandle] = OrderedDict()
        self._plain_udp: OrderedDict[Source, UdpPipe] = OrderedDict()
        self._plain_timers: dict[UdpPipe, asyncio.TimerHandle] = {}
        self._ended_udp: OrderedDict[Source, float] = OrderedDict()

    # Waiters.

    def register(self, attempt: Attempt) -> None:
        """Claim the pipes that carry an attempt's id."""
        if attempt.key not in self._waiters:
            waiter = self._waiters[attempt.key] = Waiter(attempt, attempt.loop)
            if attempt.plugin.initiator:
                self._announced[attempt.plugin.plugin_id] = waiter

    async def wait(self, attempt: Attempt) -> Pipe | None:
        """Wait for a claimed pipe; None when the attempt's time is up or it has ended."""
        waiter = self._waiters.get(attempt.key)
        if waiter is None:
            raise LocalProtocolError(
                "wait_for_inbound() without register_inbound(); call it before signalling the peer"
            )
        remaining = attempt.started + attempt.plugin.timeout - attempt.loop.time()
        await asyncio.wait([waiter.pipe], timeout=max(remaining, 0))
        if waiter.pipe.done() and not waiter.pipe.cancelled():
            return waiter.pipe.result()
        return None

    def forget(self, attempt: Attempt) -> None:
        """Give an ended attempt's place back; a pipe nobody took is closed with the attempt."""
        waiter = self._waiters.get(attempt.key)
        if waiter is not None and waiter.attempt is attempt:
            del self._waiters[attempt.key]
            if self._announced.get(attempt.plugin.plugin_id) is waiter:
                del self._announced[attempt.plugin.plugin_id]
            if waiter.pipe.done():
                pipe = waiter.pipe.result()
                if pipe is not attempt.winner:
                    pipe.abort()
            else:
                waiter.pipe.cancel()

    # Streams.

    def accept_stream(self, pipe: TcpPipe) -> None:
        """Take a connection that a listener has just accepted, before its first byte."""
        self._hold(pipe)
        head: bytearray | None = bytearray()
        deframer = Deframer()

        def received(data: bytes, _addr: tuple[str, int]) -> None:
            nonlocal head
            if head is not None:
                head += data
                magic = looks_like_magic(bytes(head))
                if magic is None:
                    return
                data, head = bytes(head), None
                if not magic:
                    self._plain_stream(pipe, data)
                    return
            try:
                deframer.feed(data)
                message = deframer.next()
            except RemoteProtocolError as error:
                self._refuse(pipe, "hello_garbage", str(error))
                return
            if message is not None:
                self._first_message(pipe, *message, deframer)

        pipe.take_over(received)

    def _first_message(self, pipe: TcpPipe, kind: int, body: bytes, deframer: Deframer) -> None:
        if kind == SIGNAL:
            self._release(pipe)
            self._on_signal_stream(pipe, deframer, body)
            return
        self._hello(pipe, kind, body, frame(kind, body) + deframer.leftover())

    def _plain_stream(self, pipe: TcpPipe, first: bytes) -> None:
        self._release(pipe)
        if not self._accept_plain:
            self._refuse(pipe, "plain_refused", "accept_plain is off")
            return
        pipe.hand_back([first])
        self._manager.deliver_inbound(pipe, None)

    # Datagrams.

    def accept_datagram(self, sock: DatagramSocket, data: bytes, addr: tuple[str, int]) -> None:
        """Take a datagram from a source that has no pipe yet."""
        if looks_like_magic(data):
            try:
                kind, body = parse_datagram(data)
            except RemoteProtocolError:
                self._manager.stats.count("hello_garbage")
                return
            refusal = self._refuse_datagram(kind, body)
            if refusal is not None:
                self._manager.stats.count(refusal)
                return
            pipe = UdpPipe(sock, remote=addr, owner=False)
            pipe.inbound = True
            self._hold(pipe)
            self._hello(pipe, kind, body, data)
        elif self._has_ended((sock.local, addr)):
            self._manager.stats.count("udp_late")
        elif self._accept_plain:
            self._plain_datagram(sock, data, addr)
        else:
            self._manager.stats.count("plain_refused")

    def _refuse_datagram(self, kind: int, body: bytes) -> str | None:
        """Return the counter of why a hello from nowhere gets no place, None when it does."""
        try:
            if kind == M0:
                known = self._announced.get(unpack_m0(body)) is not None
                return None if known else "hello_no_waiter"
            if kind == M1:
                here = unpack_m1(body).receiver == self._manager.node.identity.public_key
                return None if here else "hello_misdirected"
        except RemoteProtocolError:
            return "hello_garbage"
        return "hello_unexpected"

    def _has_ended(self, source: Source) -> bool:
        until = self._ended_udp.get(source, 0.0)
        return until > asyncio.get_running_loop().time()

    def _remember_end(self, source: Source) -> None:
        self._ended_udp[source] = asyncio.get_running_loop().time() + ENDED_UDP_S
        self._ended_udp.move_to_end(source)
        if len(self._ended_udp) > MAX_ENDED_UDP:
            self._ended_udp.popitem(last=False)

    def _plain_datagram(self, sock: DatagramSocket, data: bytes, addr: tuple[str, int]) -> None:
        pipe = UdpPipe(sock, remote=addr, owner=False)
        pipe.inbound = True
        pipe.keep_bytes = PLAIN_UDP_KEEP_BYTES
        if len(self._plain_udp) >= MAX_PLAIN_UDP:
            self._manager.stats.count("plain_udp_evicted")
            min(self._plain_udp.values(), key=lambda other: other.last_heard).abort()
        key = (sock.local, addr)
        self._plain_udp[key] = pipe
        loop = asyncio.get_running_loop()

        def idle() -> None:
            quiet = loop.time() - pipe.last_heard
            if quiet >= PLAIN_UDP_IDLE_S:
                pipe.abort()
            else:
                self._plain_timers[pipe] = loop.call_later(PLAIN_UDP_IDLE_S - quiet, idle)

        def gone(_pipe: Pipe) -> None:
            self._plain_udp.pop(key, None)
            timer = self._plain_timers.pop(pipe, None)
            if timer is not None:
                timer.cancel()

        self._plain_timers[pipe] = loop.call_later(PLAIN_UDP_IDLE_S, idle)
        pipe.add_close_callback(gone)
        pipe.hand_back([data])
        self._manager.deliver_inbound(pipe, None)

    # Hellos.

    def _hello(self, pipe: Pipe, kind: int, body: bytes, first: bytes) -> None:
        if kind == M0:
            try:
                waiter = self._announced.get(unpack_m0(body))
            except RemoteProtocolError as error:
                self._refuse(pipe, "hello_garbage", str(error))
                return
            if waiter is None:
                self._refuse(pipe, "hello_no_waiter", "M0 for an attempt that is not waiting here")
                return
            attempt = waiter.attempt
            owner = _WaiterOwner(self, waiter)
            handshake = self._manager.proofs.make_initiator(attempt, pipe, owner)
            attempt.watch(handshake)
        elif kind == M1:
            handshake = self._manager.proofs.make_responder(None, pipe, self, self._budget(body))
        else:
            self._refuse(pipe, "hello_unexpected", f"M{kind} from nowhere")
            return
        handshake.start(first)

    def _budget(self, m1: bytes) -> PacketBudget | None:
        """Return the budget of the attempt that an M1 says to belong to."""
        try:
            fields = unpack_m1(m1)
        except RemoteProtocolError:
            return None
        attempt = self._manager.find(node_id_text(fields.sender), fields.plugin_id)
        return None if attempt is None else attempt.plugin.budget

    def handshake_proven(self, handshake: Handshake) -> None:
        """Never called: a responder's proof and nomination are one."""

    def handshake_failed(self, handshake: Handshake) -> None:
        """Count a hello that came to nothing."""
        self._release(handshake.pipe)
        self._manager.stats.count("hello_failed")
        log.debug("inbound hello from %s failed: %s", handshake.pipe.remote, handshake.cause)

    def handshake_nominated(self, handshake: Handshake) -> None:
        """Hand an inbound pipe to its waiter, or to the user."""
        pipe = handshake.pipe
        self._release(pipe)
        assert handshake.peer is not None
        assert handshake.plugin_id is not None
        key = (node_id_text(handshake.peer), handshake.plugin_id)
        attempt = self._manager.find(*key)
        waiter = self._waiters.get(key)
        if isinstance(pipe, UdpPipe):
            source = (pipe.local, pipe.remote)
            pipe.add_close_callback(lambda _pipe: self._remember_end(source))
        if not self._manager.history.first_delivery(key):
            self._refuse(pipe, "hello_second_pipe", "this attempt has its pipe already")
        elif waiter is not None and not waiter.pipe.done():
            waiter.pipe.set_result(pipe)
        else:
            if attempt is not None:
                attempt.lose("another pipe of this attempt was nominated")
            self._manager.deliver_inbound(pipe, attempt.plugin.name if attempt else None)

    # The cap on unproven connections.

    def release_unproven(self, pipe: Pipe) -> None:
        """Take a connection off the cap, because its peer is proven."""
        self._release(pipe)

    def _hold(self, pipe: Pipe) -> None:
        """Count a connection as unproven until it is released."""
        same_kind = [other for other in self._unproven if other.transport == pipe.transport]
        if len(same_kind) >= MAX_UNPROVEN:
            oldest = same_kind[0]
            timer = self._unproven.pop(oldest)
            timer.cancel()
            self._refuse(oldest, "unproven_evicted", "too many unproven connections")
        loop = asyncio.get_running_loop()
        self._unproven[pipe] = loop.call_later(UNPROVEN_S, self._expired, pipe)
        pipe.add_close_callback(self._release)

    def _expired(self, pipe: Pipe) -> None:
        self._refuse(pipe, "unproven_expired", f"nothing proven within {UNPROVEN_S:g} s")

    def _release(self, pipe: Pipe) -> None:
        timer = self._unproven.pop(pipe, None)
        if timer is not None:
            timer.cancel()

    def _refuse(self, pipe: Pipe, counter: str, detail: str) -> None:
        self._release(pipe)
        self._manager.stats.count(counter)
        log.debug("inbound connection from %s refused: %s", pipe.remote, detail)
        pipe.abort()

    def close(self) -> None:
        """Drop everything that is not proven, and every plain datagram pipe."""
        self._ended_udp.clear()
        for pipe in [*self._unproven, *self._plain_udp.values()]:
            pipe.abort()


class _WaiterOwner:
    """Gives a proven pipe of an initiator's waiter to ``wait_for_inbound``."""

    def __init__(self, inbound: Inbound, waiter: Waiter) -> None:
        self._inbound = inbound
        self._waiter = waiter

    def handshake_proven(self, handshake: Handshake) -> None:
        self._inbound.release_unproven(handshake.pipe)
        if self._waiter.pipe.done():
            handshake.cancel()
        else:
            self._waiter.pipe.set_result(handshake.pipe)

    def handshake_nominated(self, handshake: Handshake) -> None:
        self._waiter.attempt.handshake_nominated(handshake)

    def handshake_failed(self, handshake: Handshake) -> None:
        self._inbound.release_unproven(handshake.pipe)
        self._waiter.attempt.handshake_failed(handshake)

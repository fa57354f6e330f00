"""Runs the hello on one pipe: bytes and time in, a proven pipe out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from warpgate.errors import RemoteProtocolError
from warpgate.hello.datagrams import DatagramFraming, SealedFraming
from warpgate.hello.machine import Failed, Initiator, Nominated, Proven, Responder
from warpgate.hello.messages import looks_like_magic
from warpgate.hello.records import DatagramSeal, StreamSeal
from warpgate.identity import node_id_text
from warpgate.net.driver import Driver
from warpgate.net.pipe import NO_ADDRESS
from warpgate.net.udp import UdpPipe

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe

MAX_PROVEN_DATAGRAM = 1200
"""Bytes of user data in a datagram of a proven pipe: what crosses every path unfragmented (RFC 9000, 14)."""


class HandshakeOwner(Protocol):
    """Who is told how a handshake goes; each method is called at most once and from the loop."""

    def handshake_proven(self, handshake: Handshake) -> None:
        """The responder is who it should be; ``handshake.nominate()`` or ``cancel()`` comes next."""

    def handshake_nominated(self, handshake: Handshake) -> None:
        """The pipe is its user's from here on."""

    def handshake_failed(self, handshake: Handshake) -> None:
        """The pipe is closed; ``handshake.cause`` says why."""


class Handshake:
    """One hello on one pipe.

    Attributes:
        pipe: the pipe; nobody else reads or writes it until the hello is over.
        initiator: whether this side is the initiator.
        state: ``running``, ``proven`` (an initiator that has not nominated yet), ``nominating``,
            ``nominated`` or ``failed``.
        peer: the peer's public key once proven.
        plugin_id: the attempt's id once known.
        cause: why it failed.

    """

    def __init__(
        self,
        pipe: Pipe,
        machine: Initiator | Responder,
        owner: HandshakeOwner,
        send: Callable[[bytes], None] | None = None,
    ) -> None:
        """Prepare; ``send`` stands in for the pipe's own way of writing."""
        self.pipe = pipe
        self.machine = machine
        self.owner = owner
        self.initiator = isinstance(machine, Initiator)
        self.state = "running"
        self.peer: bytes | None = None
        self.plugin_id: str | None = None
        self.cause: BaseException | None = None
        self._driver = Driver(machine, send or pipe.write_raw, self._event)

    def start(self, first: bytes = b"") -> None:
        """Begin; ``first`` is what the pipe's listener has read already."""
        pipe = self.pipe
        pipe.gate()
        pipe.handshake = self
        pipe.add_close_callback(self._pipe_closed)
        self._driver.start()
        if first and self.state == "running":
            self._driver.feed(first, pipe.remote)
        if self.state in ("running", "proven"):
            pipe.take_over(self._received)

    def _received(self, data: bytes, addr: tuple[str, int]) -> None:
        pipe = self.pipe
        if isinstance(pipe, UdpPipe):
            # A punched hole may be known to the peer alone: then the first hello shows it.
            if pipe.remote == NO_ADDRESS and looks_like_magic(data):
                pipe.remote = addr
            if addr != pipe.remote:
                pipe.unmatched += 1
                return
        self._driver.feed(data, addr)

    def nominate(self) -> None:
        """Make this pipe the one of its attempt set: send M3 (initiator, once proven)."""
        if self.state == "proven" and isinstance(self.machine, Initiator):
            # Within the driver's own event M3 leaves only afterwards: nobody may choose another pipe.
            self.state = "nominating"
            self._driver.call(self.machine.nominate)

    def cancel(self) -> None:
        """Give the pipe up without a word to the owner."""
        if self.state in ("running", "proven", "nominating"):
            self.state = "failed"
            self._driver.close()
            self.pipe.abort()

    def _event(self, event: object) -> None:
        if self.state in ("failed", "nominated"):
            return
        if isinstance(event, Proven):
            self.peer, self.plugin_id = event.peer, event.plugin_id
            self.state = "proven"
            if self.initiator:
                self.owner.handshake_proven(self)
        elif isinstance(event, Nominated):
            self._finish()
        elif isinstance(event, Failed):
            self._fail(event.cause)

    def _finish(self) -> None:
        assert self.peer is not None
        assert self.plugin_id is not None
        self.state = "nominated"
        pipe = self.pipe
        pipe.peer_id = node_id_text(self.peer)
        secrets = self._secrets()
        pipe.sealed = secrets is not None
        leftover = self.machine.leftover()
        if isinstance(pipe, UdpPipe):
            # The machine goes on: an initiator answers a repeated M2 until its own time is over.
            pipe.only_remote = True
            pipe.max_message = MAX_PROVEN_DATAGRAM
            late = self._driver.feed
            if secrets:
                seal = DatagramSeal(*secrets)
                framing: DatagramFraming = SealedFraming(self.plugin_id, pipe, late, seal)
            else:
                framing = DatagramFraming(self.plugin_id, pipe, late)
            pipe.set_filter(framing)
            framing.start()
        else:
            self._driver.close()
            if secrets:
                pipe.set_filter(StreamSeal(*secrets))
        pipe.hand_back(leftover)
        pipe.open_gate()
        self.owner.handshake_nominated(self)

    def _secrets(self) -> tuple[str, bytes, bytes] | None:
        """Return cipher, outgoing and incoming key, None for a pipe that is not sealed."""
        cipher, keys = self.machine.cipher, self.machine.keys
        self.machine.forget_keys()
        if cipher is None:
            return None
        if self.initiator:
            return cipher, keys.initiator_to_responder, keys.responder_to_initiator
        return cipher, keys.responder_to_initiator, keys.initiator_to_responder

    def _fail(self, cause: BaseException) -> None:
        if self.state in ("failed", "nominated"):
            return
        self.state = "failed"
        self.cause = cause
        self._driver.close()
        self.pipe.abort()
        self.owner.handshake_failed(self)

    def _pipe_closed(self, _pipe: Pipe) -> None:
        if self.state == "nominated":
            self._driver.close()
        elif self.state != "failed":
            ended = RemoteProtocolError("the connection ended during the hello")
            self._fail(self.machine.mismatch or ended)

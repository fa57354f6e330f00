"""What both roles of the hello share: clock, queues, framing, repeats and how it ends."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from warpgate.errors import LocalProtocolError, RemoteProtocolError, UnknownMessage
from warpgate.hello import seal
from warpgate.hello.messages import (
    Deframer,
    frame,
    kind_name,
    looks_like_magic,
    message,
    parse_datagram,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from warpgate.hello.keys import SealKeys

HELLO_TIMEOUT_S = 5.0
FIRST_REPEAT_S = 0.06
MAX_REPEAT_S = 1.0
MAX_NONCES = 4096
MAX_KEPT_DATAGRAMS = 64
MAX_KEPT_BYTES = 65536
MAX_STREAM_LEFTOVER = 1 << 20


class Signer(Protocol):
    """What a machine needs of a node's identity."""

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data``, 64 bytes."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The peer holds the private key of ``peer`` (32 bytes) and takes part in this very hello."""

    peer: bytes
    plugin_id: str
    capabilities: tuple[str, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Nominated:
    """M3 was sent (initiator) or has come (responder): the pipe is its user's from here on."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The hello is over without a proof, or was not nominated; close the pipe."""

    cause: RemoteProtocolError


Event = Proven | Nominated | Failed


class State(enum.Enum):
    """Where a machine is; the value says what it waits for."""

    IDLE = "start"
    WAIT_M1 = "M1"
    WAIT_M2 = "M2"
    WAIT_M3 = "M3"
    PROVEN = "the nomination"
    NOMINATED = "nothing more"
    FAILED = "nothing"


_OPEN = frozenset({State.WAIT_M1, State.WAIT_M2, State.WAIT_M3, State.PROVEN})


class NonceCache:
    """The peers' nonces that a node has seen: the newest ``cap``, the oldest go first.

    A replay older than that is still harmless, since it can't sign this side's fresh nonce.
    """

    def __init__(self, cap: int = MAX_NONCES) -> None:
        self._cap = cap
        self._nonces: dict[bytes, None] = {}

    def use(self, nonce: bytes) -> bool:
        """Remember ``nonce``; return whether it was new."""
        if nonce in self._nonces:
            return False
        if len(self._nonces) >= self._cap:
            del self._nonces[next(iter(self._nonces))]
        self._nonces[nonce] = None
        return True

    def __len__(self) -> int:
        return len(self._nonces)


class Hello(ABC):
    """One side of one hello (WIRE.md section 1): no socket, no clock, no entropy of its own.

    Call ``start``, then ``receive`` with what arrives and ``handle_timeout`` when ``next_timeout``
    has passed; after each call send ``outgoing`` and take every ``next_event``. Exactly one of
    ``Nominated`` and ``Failed`` ends a hello that was started.

    On a stream whatever breaks the rules fails the hello. On datagrams it is dropped and counted in
    ``dropped``, since anybody may send us a datagram; the deadline ends what stays unproven.

    Args:
        identity: this node's keys.
        peer: the Ed25519 key the other side must have, 32 bytes; None (responder): any.
        plugin_id: the attempt; None (responder): any.
        datagram: whether the pipe carries datagrams; else it is a stream.
        entropy: returns that many random bytes; called for 32 bytes for the nonce, then 32 for the
            ephemeral key.
        nonces: the nonces this node has seen, shared by all its hellos.
        capabilities: what this side can do, ≤ 16 texts of ≤ 16 bytes (datagrams: ≤ 73 bytes, one
            more for each, in all).
        announce: responder: send M0 first, since this side dialled a listening socket.
        allow: responder: whether a peer (key, plugin_id) may connect; asked before it gets M2.
        timeout_s: seconds from ``start`` until an unnominated hello fails.

    Attributes:
        dropped: how many datagrams were dropped.
        last_drop: why the last of those that were refused was.
        mismatch: why this side and who claims to be the peer can't have a pipe, as far as is known.

    Raises:
        LocalProtocolError: an argument can't be used.

    """

    def __init__(
        self,
        *,
        identity: Signer,
        peer: bytes | None,
        plugin_id: str | None,
        datagram: bool,
        entropy: Callable[[int], bytes],
        nonces: NonceCache,
        capabilities: tuple[str, ...] = (),
        announce: bool = False,
        allow: Callable[[bytes, str], bool],
        timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        self.dropped = 0
        self.mismatch: RemoteProtocolError | None = None
        self._identity = identity
        self._peer = peer
        self._plugin_id = plugin_id
        self._datagram = datagram
        self._entropy = entropy
        self._nonces = nonces
        self._capabilities = tuple(capabilities)
        self._announce = announce
        self._allow = allow
        self._timeout_s = timeout_s

        self._state = State.IDLE
        self._keys: SealKeys | None = None
        self._cipher: str | None = None
        self._outgoing: list[bytes] = []
        self._events: deque[Event] = deque()
        self._deframer = Deframer()
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.last_drop: RemoteProtocolError | None = None
        self._deadline: float | None = None
        self._repeat_at: float | None = None
        self._repeat_interval = FIRST_REPEAT_S
        self._schedule: deque[float] = deque()

    @property
    def state(self) -> State:
        """Where the machine is."""
        return self._state

    @property
    def cipher(self) -> str | None:
        """The cipher that seals the pipe, once proven; None: the pipe is not sealed."""
        return self._cipher

    @property
    def keys(self) -> SealKeys:
        """The keys for sealing, once proven.

        Raises:
            LocalProtocolError: nothing is proven yet, or never will be.

        """
        if self._keys is None or self._state not in (State.PROVEN, State.NOMINATED):
            raise LocalProtocolError("there are no keys before the peer is proven")
        return self._keys

    def forget_keys(self) -> None:
        """Let go of the keys: who finds them later could read the pipe's beginning."""
        self._keys = None

    def start(self, now: float) -> None:
        """Begin: queue the first message if this side speaks first, and set the deadline.

        Args:
            now: seconds on a monotonic clock, as in every other call.

        Raises:
            LocalProtocolError: it was started before.

        """
        if self._state is not State.IDLE:
            raise LocalProtocolError("this hello was started before")
        self._deadline = now + self._timeout_s
        self._begin(now)

    def receive(self, data: bytes, addr: object, now: float) -> None:
        """Take one datagram, or the stream's next bytes; never raises for what the peer sent.

        Args:
            data: the bytes, on a stream cut anywhere.
            addr: ignored; whoever feeds the machine filters by source.
            now: seconds.

        Raises:
            LocalProtocolError: the hello was not started, or a stream's bytes are still fed long
                after the nomination instead of being taken by ``leftover``.

        """
        if self._state is State.IDLE:
            raise LocalProtocolError("start the hello before feeding it")
        if self._expired(now):
            self.handle_timeout(now)
        if self._state is State.FAILED:
            self.dropped += 1
        elif self._datagram:
            self._receive_datagram(data, now)
        else:
            self._receive_stream(data, now)

    def outgoing(self, now: float) -> list[bytes]:
        """Return what is to be sent now, each item one datagram or a stream's next bytes."""
        sent, self._outgoing = self._outgoing, []
        return sent

    def next_timeout(self) -> float | None:
        """Return when ``handle_timeout`` is to be called, None for never."""
        times = [at for at in (self._deadline, self._repeat_at) if at is not None]
        return min(times, default=None)

    def handle_timeout(self, now: float) -> None:
        """Repeat what may be lost, or fail at the deadline; too early a call does nothing."""
        if self._expired(now):
            self._fail(self.mismatch or RemoteProtocolError(self._timeout_text()))
        elif self._repeat_at is not None and now >= self._repeat_at:
            if self._schedule:
                self._repeat_interval = self._schedule.popleft()
            else:
                self._repeat_interval = min(self._repeat_interval * 2, MAX_REPEAT_S)
            # From now on, not from when it was due: a late timer must not cause a burst.
            self._repeat_at = now + self._repeat_interval if self._repeat() else None

    def next_event(self) -> Event | None:
        """Return the oldest event that was not taken yet, None when there is none."""
        return self._events.popleft() if self._events else None

    def leftover(self) -> list[bytes]:
        """Return what came for the pipe's user, and forget it; empty before the nomination.

        On a stream at most one item: the bytes after the last hello message. On datagrams those
        that are no hello messages and came before M3 did, at most ``MAX_KEPT_DATAGRAMS``.
        """
        if self._state is not State.NOMINATED:
            return []
        if not self._datagram:
            rest = self._deframer.leftover()
            return [rest] if rest else []
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        return kept

    @abstractmethod
    def _begin(self, now: float) -> None:
        """Enter the first state and queue what is said first."""

    @abstractmethod
    def _on_message(self, kind: int, body: bytes, now: float) -> None:
        """Act on a message; RemoteProtocolError when it is wrong or out of order."""

    @abstractmethod
    def _repeat(self) -> bool:
        """Queue what may have been lost; return whether to do so again later."""

    def _receive_stream(self, data: bytes, now: float) -> None:
        if self._state is State.NOMINATED:
            if len(self._deframer) + len(data) > MAX_STREAM_LEFTOVER:
                raise LocalProtocolError("the hello is over: take leftover() and stop feeding it")
            self._deframer.feed(data)
            return
        self._deframer.feed(data)
        try:
            if self._state is State.PROVEN and self._deframer:
                raise self._out_of_order_bytes()
            while self._state in (State.WAIT_M1, State.WAIT_M2, State.WAIT_M3):
                found = self._deframer.next()
                if found is None:
                    break
                self._on_message(*found, now)
        except RemoteProtocolError as cause:
            self._fail(cause)

    def _receive_datagram(self, data: bytes, now: float) -> None:
        if not looks_like_magic(data):
            self._keep(data)
            return
        try:
            kind, body = parse_datagram(data)
            self._on_message(kind, body, now)
        except RemoteProtocolError as cause:
            self.dropped += 1
            self.last_drop = cause

    def _keep(self, data: bytes) -> None:
        """Keep a datagram for the user where one can be due: M3 may be late or lost."""
        due = self._state in (State.WAIT_M3, State.NOMINATED) and data
        full = (
            len(self._kept) >= MAX_KEPT_DATAGRAMS or self._kept_bytes + len(data) > MAX_KEPT_BYTES
        )
        if not due or full:
            self.dropped += 1
            return
        self._kept.append(bytes(data))
        self._kept_bytes += len(data)

    def _send(self, kind: int, body: bytes) -> None:
        data = message(kind, body) if self._datagram else frame(kind, body)
        # Two equal datagrams in one go would say nothing more, and the queue stays bounded.
        if data not in self._outgoing:
            self._outgoing.append(data)

    def _repeat_after(self, interval_s: float, now: float) -> None:
        if self._datagram:
            self._repeat_interval = interval_s
            self._repeat_at = now + interval_s

    def _out_of_order(self, kind: int) -> UnknownMessage:
        return UnknownMessage(f"{kind_name(kind)} while waiting for {self._state.value}")

    def _out_of_order_bytes(self) -> UnknownMessage:
        return UnknownMessage("the responder spoke before the nomination")

    def _match(self, capabilities: tuple[str, ...]) -> RemoteProtocolError | None:
        """Return why a peer with these capabilities can't have a pipe, None when it can."""
        text = seal.mismatch(self._capabilities, capabilities)
        return RemoteProtocolError(text) if text else None

    def _prove(self, keys: SealKeys, event: Proven) -> None:
        self._keys = keys
        self._cipher = seal.agreed_cipher(self._capabilities, event.capabilities)
        self._repeat_at = None
        self._state = State.PROVEN
        self._events.append(event)

    def _finish(self) -> None:
        self._state = State.NOMINATED
        self._deadline = None
        self._repeat_at = None
        self._events.append(Nominated())

    def _fail(self, cause: RemoteProtocolError) -> None:
        self._state = State.FAILED
        self._keys = None
        self._deadline = None
        self._repeat_at = None
        self._outgoing.clear()
        self._kept.clear()
        self._kept_bytes = 0
        self._deframer.leftover()
        self._events.append(Failed(cause))

    def _expired(self, now: float) -> bool:
        return self._state in _OPEN and self._deadline is not None and now >= self._deadline

    def _timeout_text(self) -> str:
        text = f"timed out waiting for {self._state.value}"
        if self.last_drop is not None:
            text += f" ({self.dropped} datagrams dropped, the last refused one: {self.last_drop})"
        return text

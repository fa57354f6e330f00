"""The envelope of every hello message and of a direct signal: magic, and on streams a length.

``magic`` is 8 bytes: a fixed 7-byte prefix and one byte that numbers the message. A datagram is
``magic ‖ body``; on a stream a 2-byte big-endian length of the body stands between the two.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from warpgate.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError, UnknownMessage
from warpgate.protocol.web_page import what_speaks

if TYPE_CHECKING:
    from collections.abc import Mapping

# No text in ASCII or UTF-8, TLS, STUN, DTLS or MQTT begins like this, and the line end in it shows a
# transport that translates line ends.
PREFIX: bytes = b"\xd7WG\r\n\x1a\xf1"
MAGIC_SIZE = len(PREFIX) + 1
LENGTH_SIZE = 2

M0 = 0
M1 = 1
M2 = 2
M3 = 3
PROBE = 8  # a strategy's own small probe; the hello and the listeners drop it
SIGNAL = 16

MAX_HELLO_BODY = 1024
MAX_PROBE_BODY = 56  # a probe has at most 64 bytes (WIRE.md section 5)
MAX_SIGNAL_BODY = 8192

_MAX_BODY: Mapping[int, int] = MappingProxyType(
    {
        M0: MAX_HELLO_BODY,
        M1: MAX_HELLO_BODY,
        M2: MAX_HELLO_BODY,
        M3: MAX_HELLO_BODY,
        PROBE: MAX_PROBE_BODY,
        SIGNAL: MAX_SIGNAL_BODY,
    }
)


class NotAHello(RemoteProtocolError):
    """A stream on which nobody speaks this protocol."""


def kind_name(kind: int) -> str:
    """Return ``M0`` … ``M3``, ``probe`` or ``signal`` for a message's number, for texts that people read."""
    if kind in (M0, M1, M2, M3):
        return f"M{kind}"
    return {SIGNAL: "signal", PROBE: "probe"}.get(kind, f"message {kind}")


def message(kind: int, body: bytes) -> bytes:
    """Return ``magic ‖ body``: the datagram, and on both transports the bytes that are hashed.

    Raises:
        LocalProtocolError: the kind is unknown or the body exceeds its cap.

    """
    _check_own(kind, body)
    return PREFIX + bytes((kind,)) + body


def frame(kind: int, body: bytes) -> bytes:
    """Return the message as a stream carries it: ``magic ‖ 2-byte length ‖ body``.

    Raises:
        LocalProtocolError: the kind is unknown or the body exceeds its cap.

    """
    _check_own(kind, body)
    return PREFIX + bytes((kind,)) + len(body).to_bytes(LENGTH_SIZE, "big") + body


def _check_own(kind: int, body: bytes) -> None:
    cap = _MAX_BODY.get(kind)
    if cap is None:
        raise LocalProtocolError(f"there is no message of kind {kind}")
    if len(body) > cap:
        raise LocalProtocolError(f"a body of {len(body)} bytes; {kind_name(kind)} may have {cap}")


def _cap(kind: int) -> int:
    cap = _MAX_BODY.get(kind)
    if cap is None:
        raise UnknownMessage(f"there is no message of kind {kind}")
    return cap


def looks_like_magic(data: bytes) -> bool | None:
    """Say whether a stream or datagram that begins with ``data`` speaks this protocol.

    Returns:
        True when the 7-byte prefix is there (whatever number follows it), False when it can't come
        any more, None when ``data`` is a strict prefix of it and too short to say.

    """
    head = bytes(data[: len(PREFIX)])
    if not PREFIX.startswith(head):
        return False
    return True if len(head) == len(PREFIX) else None


def parse_datagram(data: bytes) -> tuple[int, bytes]:
    """Return kind and body of a datagram.

    Raises:
        RemoteProtocolError: it does not begin with the magic, or (as ``UnknownMessage``) has an
            unknown number, or (as ``MessageTooLarge``) exceeds the cap of its kind.

    """
    if len(data) < MAGIC_SIZE or not looks_like_magic(data):
        raise RemoteProtocolError("a datagram without the magic")
    kind = data[len(PREFIX)]
    cap = _cap(kind)
    if len(data) - MAGIC_SIZE > cap:
        raise MessageTooLarge(f"{kind_name(kind)} of {len(data)} bytes")
    return kind, bytes(data[MAGIC_SIZE:])


class Deframer:
    """Cuts a stream into messages, however the stream was cut.

    Call ``next()`` until it returns None after every ``feed``; then what is buffered stays below one
    frame, since the caps are enforced on the header. After an error it keeps raising that error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the stream's next bytes."""
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """Return kind and body of the next complete message, None when more bytes are needed.

        Raises:
            RemoteProtocolError: what comes next is no message, as soon as that is certain:
                ``NotAHello`` (without the magic), ``UnknownMessage`` or ``MessageTooLarge``.

        """
        buffer = self._buffer
        if looks_like_magic(bytes(buffer[: len(PREFIX)])) is False:
            raise NotAHello(what_speaks(bytes(buffer)))
        if len(buffer) < MAGIC_SIZE:
            return None
        kind = buffer[len(PREFIX)]
        cap = _cap(kind)
        start = MAGIC_SIZE + LENGTH_SIZE
        if len(buffer) < start:
            return None
        size = int.from_bytes(buffer[MAGIC_SIZE:start], "big")
        if size > cap:
            raise MessageTooLarge(f"{kind_name(kind)} announces {size} bytes; at most {cap}")
        if len(buffer) < start + size:
            return None
        body = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return kind, body

    def leftover(self) -> bytes:
        """Return what was fed and not consumed, and forget it."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def __len__(self) -> int:
        return len(self._buffer)

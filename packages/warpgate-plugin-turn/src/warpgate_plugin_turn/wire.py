"""TURN on the wire: methods, attributes, ChannelData and its framing on streams; PURE.

RFC 8656 sections 12, 17 and 18; RFC 6062 section 6. Requests and indications are STUN messages, for
which :mod:`warpgate.stun.message` is the codec.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from warpgate.errors import RemoteProtocolError
from warpgate.net.constants import IP4, IP6
from warpgate.stun.attributes import (
    ATTRIBUTES,
    Attribute,
    decode_xor_address,
    encode_xor_address,
    table,
)
from warpgate.stun.message import HEADER_BYTES, MAX_MESSAGE_BYTES

ALLOCATE: Final = 0x003
REFRESH: Final = 0x004
SEND: Final = 0x006
DATA: Final = 0x007
CREATE_PERMISSION: Final = 0x008
CHANNEL_BIND: Final = 0x009
CONNECT: Final = 0x00A
CONNECTION_BIND: Final = 0x00B
CONNECTION_ATTEMPT: Final = 0x00C

CHANNEL_NUMBER: Final = 0x000C
LIFETIME: Final = 0x000D
XOR_PEER_ADDRESS: Final = 0x0012
DATA_ATTRIBUTE: Final = 0x0013
XOR_RELAYED_ADDRESS: Final = 0x0016
REQUESTED_ADDRESS_FAMILY: Final = 0x0017
REQUESTED_TRANSPORT: Final = 0x0019
CONNECTION_ID: Final = 0x002A

UDP_PROTOCOL: Final = 17  # IP protocol numbers, as REQUESTED-TRANSPORT has them
TCP_PROTOCOL: Final = 6
FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x4FFF
CHANNEL_HEADER: Final = 4
MAX_DATA: Final = 65535 - CHANNEL_HEADER


def _number(before: int, size: int, after: int) -> tuple[Any, Any]:
    """Return the codec of a number of ``size`` bytes between reserved ones."""

    def encode(value: int, _transaction_id: bytes) -> bytes:
        return bytes(before) + int(value).to_bytes(size, "big") + bytes(after)

    def decode(data: bytes, _transaction_id: bytes) -> int:
        if len(data) != before + size + after:
            raise RemoteProtocolError(f"a TURN number has {len(data)} bytes")
        return int.from_bytes(data[before : before + size], "big")

    return encode, decode


def _encode_family(value: int, _transaction_id: bytes) -> bytes:
    return bytes((2 if value == IP6 else 1, 0, 0, 0))


def _decode_family(data: bytes, _transaction_id: bytes) -> int:
    if len(data) != 4 or data[0] not in (1, 2):
        raise RemoteProtocolError("a TURN address family is neither IPv4 nor IPv6")
    return IP4 if data[0] == 1 else IP6


def _as_is(data: bytes, _transaction_id: bytes) -> bytes:
    return bytes(data)


_XOR_ADDRESS = (encode_xor_address, decode_xor_address)
_FAMILY = (_encode_family, _decode_family)

TURN_ATTRIBUTES: Final = table(
    Attribute(CHANNEL_NUMBER, "CHANNEL-NUMBER", *_number(0, 2, 2)),
    Attribute(LIFETIME, "LIFETIME", *_number(0, 4, 0)),
    Attribute(XOR_PEER_ADDRESS, "XOR-PEER-ADDRESS", *_XOR_ADDRESS),
    Attribute(DATA_ATTRIBUTE, "DATA", _as_is, _as_is),
    Attribute(XOR_RELAYED_ADDRESS, "XOR-RELAYED-ADDRESS", *_XOR_ADDRESS),
    Attribute(REQUESTED_ADDRESS_FAMILY, "REQUESTED-ADDRESS-FAMILY", *_FAMILY),
    Attribute(REQUESTED_TRANSPORT, "REQUESTED-TRANSPORT", *_number(0, 1, 3)),
    Attribute(CONNECTION_ID, "CONNECTION-ID", *_number(0, 4, 0)),
    base=ATTRIBUTES,
)


def channel_data(channel: int, data: bytes, *, padded: bool) -> bytes:
    """Write a ChannelData message.

    Args:
        channel: from ``FIRST_CHANNEL`` to ``LAST_CHANNEL``.
        data: at most ``MAX_DATA`` bytes.
        padded: on a stream: to a multiple of four bytes (RFC 8656 section 12.5).

    """
    message = struct.pack("!HH", channel, len(data)) + data
    return message + bytes(-len(message) % 4) if padded else message


def is_channel_data(data: bytes) -> bool:
    """Return whether a message from the server is ChannelData (RFC 8656 section 12)."""
    return len(data) >= CHANNEL_HEADER and 0x40 <= data[0] <= 0x4F


def read_channel_data(data: bytes) -> tuple[int, bytes]:
    """Read what :func:`is_channel_data`; bytes after the data are padding.

    Raises:
        RemoteProtocolError: it is truncated.

    """
    channel, length = struct.unpack_from("!HH", data)
    if CHANNEL_HEADER + length > len(data):
        raise RemoteProtocolError("a TURN ChannelData message is truncated")
    return channel, data[CHANNEL_HEADER : CHANNEL_HEADER + length]


class StreamSplitter:
    """Cuts a stream into STUN messages and ChannelData messages (RFC 8656 section 12.5)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes, most: int = 0) -> list[bytes]:
        """Take the stream's next bytes; return the messages that are complete.

        Args:
            data: the bytes, cut anywhere.
            most: return so many messages at the most and leave the rest; 0: all.

        Raises:
            RemoteProtocolError: something else stands there; nothing after it can be read.

        """
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        start = 0
        while len(buffer) - start >= CHANNEL_HEADER:
            kind, length = struct.unpack_from("!HH", buffer, start)
            if kind < FIRST_CHANNEL:
                size = HEADER_BYTES + length
                if length % 4 or size > MAX_MESSAGE_BYTES:
                    raise RemoteProtocolError(f"a STUN message of {size} bytes in a TURN stream")
            elif kind <= LAST_CHANNEL:
                size = CHANNEL_HEADER + length + (-length % 4)
            else:
                raise RemoteProtocolError(f"0x{kind:04x} begins no message of a TURN stream")
            if len(buffer) - start < size:
                break
            messages.append(bytes(buffer[start : start + size]))
            start += size
            if len(messages) == most:
                break
        del buffer[:start]
        return messages

    def leftover(self) -> bytes:
        """Return the bytes that make no message yet, and forget them."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

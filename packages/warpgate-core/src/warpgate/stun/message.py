"""STUN messages, written and read (RFC 8489 sections 5 to 7 and 14); PURE.

What a server sends can be anything: :func:`decode` returns a message that follows the RFC, or
raises :class:`~warpgate.errors.RemoteProtocolError` and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from ..errors import BadSignature, MessageTooLarge, RemoteProtocolError
from .attributes import (
    ATTRIBUTES,
    FINGERPRINT,
    MAGIC_COOKIE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    Attribute,
)

HEADER_BYTES: Final = 20
TRANSACTION_ID_BYTES: Final = 12
MAX_MESSAGE_BYTES: Final = 2048  # more than any path carries in one piece
MAX_ATTRIBUTES: Final = 64
BINDING: Final = 0x001
FINGERPRINT_XOR: Final = 0x5354554E

_COOKIE = struct.pack("!I", MAGIC_COOKIE)


class MessageClass(IntEnum):
    """The class of a message (RFC 8489 section 5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Message:
    """A STUN message that was read.

    Attributes:
        method: ``BINDING``, or another one.
        message_class: request, indication, success or error response.
        transaction_id: 12 bytes.
        attributes: number to value; of several of one kind the first.
        unknown_required: numbers below 0x8000 that the table had not: it must not be processed.
        fingerprint: whether it had a FINGERPRINT (which was right).

    """

    method: int
    message_class: MessageClass
    transaction_id: bytes
    attributes: Mapping[int, Any] = field(default_factory=dict)
    unknown_required: tuple[int, ...] = ()
    fingerprint: bool = False
    _raw: bytes = field(default=b"", repr=False)
    _integrity: Mapping[int, int] = field(default_factory=dict, repr=False)  # number to offset

    def get(self, number: int) -> Any:
        """Return an attribute's value, or None."""
        return self.attributes.get(number)

    def authenticated(self, key: bytes) -> bool:
        """Return whether a MESSAGE-INTEGRITY is there and every one there is right for the key."""
        for number, offset in self._integrity.items():
            value = self.attributes[number]
            made = _integrity(number, key, self._raw[:offset], len(value))
            if not hmac.compare_digest(made, value):
                return False
        return bool(self._integrity)


def looks_like_stun(data: bytes) -> bool:
    """Return whether a datagram has STUN's header; user data may have it by chance."""
    return len(data) >= HEADER_BYTES and data[0] < 0x40 and data[4:8] == _COOKIE


def transaction_id_of(data: bytes) -> bytes:
    """Return the transaction id of what :func:`looks_like_stun`."""
    return data[8:HEADER_BYTES]


def encode(
    method: int,
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[tuple[int, Any]] = (),
    *,
    key: bytes | None = None,
    sha256: bool = False,
    fingerprint: bool = True,
    table: Mapping[int, Attribute] = ATTRIBUTES,
) -> bytes:
    """Write a message.

    Args:
        method: for example ``BINDING``.
        message_class: what it is.
        transaction_id: 12 bytes, random for a request.
        attributes: pairs of number and value, in this order.
        key: adds MESSAGE-INTEGRITY; see :func:`short_term_key` and :func:`long_term_key`.
        sha256: with a key, MESSAGE-INTEGRITY-SHA256 instead.
        fingerprint: adds FINGERPRINT.
        table: the attributes there are.

    Raises:
        ValueError: the transaction id, the method or a value can't be written.

    """
    if len(transaction_id) != TRANSACTION_ID_BYTES:
        raise ValueError(f"a transaction id has 12 bytes, not {len(transaction_id)}")
    if not 0 <= method < 0x1000:
        raise ValueError(f"method {method} is not between 0 and 4095")
    kind = (method & 0xF) | (method & 0x70) << 1 | (method & 0xF80) << 2
    kind |= (message_class & 1) << 4 | (message_class & 2) << 7
    body = b"".join(
        _attribute(number, table[number].encode(value, transaction_id))
        for number, value in attributes
    )
    message = struct.pack("!HHI", kind, len(body), MAGIC_COOKIE) + transaction_id + body
    if key is not None:
        number = MESSAGE_INTEGRITY_SHA256 if sha256 else MESSAGE_INTEGRITY
        size = 32 if sha256 else 20
        value = _integrity(number, key, message, size)
        message = _with_length(message + _attribute(number, value))
    if fingerprint:
        message = _with_length(message + _attribute(FINGERPRINT, _fingerprint(message)))
    return message


def decode(data: bytes, table: Mapping[int, Attribute] = ATTRIBUTES) -> Message:
    """Read a message.

    Args:
        data: all of it, and nothing more.
        table: the attributes that are understood.

    Raises:
        RemoteProtocolError: it is no STUN message (MessageTooLarge: of more than
            ``MAX_MESSAGE_BYTES``; BadSignature: its FINGERPRINT is wrong).

    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"a STUN message of {len(data)} bytes")
    if not looks_like_stun(data):
        raise RemoteProtocolError("not a STUN message")
    kind, length = struct.unpack_from("!HH", data)
    if length % 4 or HEADER_BYTES + length != len(data):
        raise RemoteProtocolError(f"a STUN message says {length} bytes of {len(data)}")
    transaction_id = transaction_id_of(data)
    values: dict[int, Any] = {}
    integrity: dict[int, int] = {}
    unknown: list[int] = []
    offset, count, fingerprint = HEADER_BYTES, 0, False
    while offset < len(data):
        count += 1
        if count > MAX_ATTRIBUTES:
            raise MessageTooLarge(f"a STUN message of more than {MAX_ATTRIBUTES} attributes")
        number, size = struct.unpack_from("!HH", data, offset)
        value = data[offset + 4 : offset + 4 + size]
        after = offset + 4 + size + (-size % 4)
        if after > len(data):
            raise RemoteProtocolError("a STUN attribute is truncated")
        if number == FINGERPRINT:
            if after != len(data) or value != _fingerprint(data[:offset]):
                raise BadSignature("a STUN message's FINGERPRINT is wrong")
            fingerprint = True
        elif integrity and (number != MESSAGE_INTEGRITY_SHA256 or number in integrity):
            offset = after  # RFC 8489 section 14.5: nothing that follows integrity counts
            continue
        if number not in table:
            if number < 0x8000:
                unknown.append(number)
        elif number not in values:
            values[number] = table[number].decode(value, transaction_id)
            if number in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256):
                integrity[number] = offset
        offset = after
    return Message(
        method=(kind & 0xF) | (kind & 0xE0) >> 1 | (kind & 0x3E00) >> 2,
        message_class=MessageClass((kind & 0x10) >> 4 | (kind & 0x100) >> 7),
        transaction_id=transaction_id,
        attributes=values,
        unknown_required=tuple(unknown),
        fingerprint=fingerprint,
        _raw=data,
        _integrity=integrity,
    )


def short_term_key(password: str) -> bytes:
    """Return the key of short-term credentials (RFC 8489 section 9.1.1); prepared by the caller."""
    return password.encode()


def long_term_key(username: str, realm: str, password: str) -> bytes:
    """Return the MD5 key of long-term credentials (RFC 8489 section 9.2.2); texts as prepared."""
    text = f"{username}:{realm}:{password}"
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)


def _with_length(message: bytes, length: int | None = None) -> bytes:
    size = len(message) - HEADER_BYTES if length is None else length
    return message[:2] + struct.pack("!H", size) + message[4:]


def _integrity(number: int, key: bytes, before: bytes, size: int) -> bytes:
    covered = _with_length(before, len(before) - HEADER_BYTES + 4 + size)
    name = "sha256" if number == MESSAGE_INTEGRITY_SHA256 else "sha1"
    return hmac.digest(key, covered, name)[:size]


def _fingerprint(before: bytes) -> bytes:
    covered = _with_length(before, len(before) - HEADER_BYTES + 8)
    return struct.pack("!I", zlib.crc32(covered) ^ FINGERPRINT_XOR)

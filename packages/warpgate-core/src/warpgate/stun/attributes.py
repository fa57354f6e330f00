"""STUN attributes: their numbers, and how each value is written and read; PURE."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import Any, Final

from ..errors import MessageTooLarge, RemoteProtocolError

Address = tuple[str, int]

MAGIC_COOKIE: Final = 0x2112A442
MAX_TEXT_BYTES: Final = 763  # RFC 8489 sections 14.9, 14.10, 14.14: 127 characters
MAX_USERNAME_BYTES: Final = 513  # RFC 8489 section 14.3
MAX_UNKNOWN: Final = 64  # entries of UNKNOWN-ATTRIBUTES

MAPPED_ADDRESS: Final = 0x0001
CHANGE_REQUEST: Final = 0x0003
USERNAME: Final = 0x0006
MESSAGE_INTEGRITY: Final = 0x0008
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
REALM: Final = 0x0014
NONCE: Final = 0x0015
MESSAGE_INTEGRITY_SHA256: Final = 0x001C
XOR_MAPPED_ADDRESS: Final = 0x0020
PADDING: Final = 0x0026
RESPONSE_PORT: Final = 0x0027
SOFTWARE: Final = 0x8022
ALTERNATE_SERVER: Final = 0x8023
FINGERPRINT: Final = 0x8028
RESPONSE_ORIGIN: Final = 0x802B
OTHER_ADDRESS: Final = 0x802C

CHANGE_IP: Final = 0x04  # flags of CHANGE-REQUEST: RFC 5780 section 7.2
CHANGE_PORT: Final = 0x02


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """The value of ERROR-CODE: the number (300 to 699) and its reason phrase."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


@dataclass(frozen=True, slots=True)
class Attribute:
    """One kind of attribute.

    Attributes:
        number: its type on the wire; below 0x8000 a receiver must understand it.
        name: as in the RFC.
        encode: ``encode(value, transaction_id)`` returns the bytes.
        decode: ``decode(data, transaction_id)`` returns the value, or raises
            :class:`~warpgate.errors.RemoteProtocolError`.

    """

    number: int
    name: str
    encode: Callable[[Any, bytes], bytes]
    decode: Callable[[bytes, bytes], Any]


def encode_address(value: Address, _transaction_id: bytes = b"") -> bytes:
    """Write MAPPED-ADDRESS: family, port, address (RFC 8489 section 14.1)."""
    ip = ip_address(value[0])
    return struct.pack("!xBH", 1 if ip.version == 4 else 2, value[1]) + ip.packed


def decode_address(data: bytes, _transaction_id: bytes = b"") -> Address:
    """Read what :func:`encode_address` wrote."""
    if len(data) < 4:
        raise RemoteProtocolError("a STUN address attribute is truncated")
    family, port = struct.unpack_from("!xBH", data)
    packed = data[4:]
    if family == 1 and len(packed) == 4:
        return str(IPv4Address(packed)), port
    if family == 2 and len(packed) == 16:
        return str(IPv6Address(packed)), port
    raise RemoteProtocolError(f"a STUN address of family {family} has {len(packed)} bytes")


def _xor(data: bytes, transaction_id: bytes) -> bytes:
    mask = struct.pack("!xxHI", MAGIC_COOKIE >> 16, MAGIC_COOKIE) + transaction_id
    return bytes(a ^ b for a, b in zip(data, mask, strict=False))


def encode_xor_address(value: Address, transaction_id: bytes) -> bytes:
    """Write XOR-MAPPED-ADDRESS (RFC 8489 section 14.2)."""
    return _xor(encode_address(value), transaction_id)


def decode_xor_address(data: bytes, transaction_id: bytes) -> Address:
    """Read what :func:`encode_xor_address` wrote."""
    if len(data) not in (8, 20):
        raise RemoteProtocolError(f"a STUN address attribute has {len(data)} bytes")
    return decode_address(_xor(data, transaction_id))


def _text(limit: int) -> tuple[Callable[[Any, bytes], bytes], Callable[[bytes, bytes], str]]:
    def encode(value: str, _transaction_id: bytes) -> bytes:
        data = value.encode()
        if len(data) > limit:
            raise ValueError(f"a STUN text of {len(data)} bytes exceeds {limit}")
        return data

    def decode(data: bytes, _transaction_id: bytes) -> str:
        if len(data) > limit:
            raise MessageTooLarge(f"a STUN text of {len(data)} bytes exceeds {limit}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("a STUN text is not UTF-8") from None

    return encode, decode


def _encode_error(value: ErrorCode, _transaction_id: bytes) -> bytes:
    return struct.pack("!xxBB", value.code // 100, value.code % 100) + value.reason.encode()


def _decode_error(data: bytes, _transaction_id: bytes) -> ErrorCode:
    if len(data) < 4:
        raise RemoteProtocolError("a STUN ERROR-CODE is truncated")
    hundreds, rest = data[2] & 7, data[3]
    if not 3 <= hundreds <= 6 or rest > 99:
        raise RemoteProtocolError(f"a STUN ERROR-CODE has class {hundreds} and number {rest}")
    if len(data) > 4 + MAX_TEXT_BYTES:
        raise MessageTooLarge("a STUN reason phrase is too long")
    return ErrorCode(hundreds * 100 + rest, data[4:].decode("utf-8", "replace"))


def _encode_numbers(value: Iterable[int], _transaction_id: bytes) -> bytes:
    return b"".join(struct.pack("!H", number) for number in value)


def _decode_numbers(data: bytes, _transaction_id: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise RemoteProtocolError("a STUN UNKNOWN-ATTRIBUTES has an odd length")
    if len(data) > 2 * MAX_UNKNOWN:
        raise MessageTooLarge("a STUN UNKNOWN-ATTRIBUTES is too long")
    return struct.unpack(f"!{len(data) // 2}H", data)


def _integer(size: int) -> tuple[Callable[[Any, bytes], bytes], Callable[[bytes, bytes], int]]:
    def encode(value: int, _transaction_id: bytes) -> bytes:
        return int(value).to_bytes(size, "big")

    def decode(data: bytes, _transaction_id: bytes) -> int:
        if len(data) != size:
            raise RemoteProtocolError(f"a STUN number has {len(data)} bytes, not {size}")
        return int.from_bytes(data, "big")

    return encode, decode


def _fixed(
    *sizes: int,
) -> tuple[Callable[[Any, bytes], bytes], Callable[[bytes, bytes], bytes]]:
    def encode(value: bytes, _transaction_id: bytes) -> bytes:
        return bytes(value)

    def decode(data: bytes, _transaction_id: bytes) -> bytes:
        if sizes and len(data) not in sizes:
            raise RemoteProtocolError(f"a STUN attribute has {len(data)} bytes")
        return data

    return encode, decode


_RESPONSE_PORT = (
    lambda value, _transaction_id: struct.pack("!Hxx", value),
    lambda data, _transaction_id: int.from_bytes(data[:2], "big"),
)
_ADDRESS = (encode_address, decode_address)
_XOR_ADDRESS = (encode_xor_address, decode_xor_address)


def table(*attributes: Attribute, base: Mapping[int, Attribute] = {}) -> Mapping[int, Attribute]:
    """Return a table of attributes, by their numbers; those of ``base`` and some more."""
    return MappingProxyType({**base, **{each.number: each for each in attributes}})


ATTRIBUTES: Final = table(
    Attribute(MAPPED_ADDRESS, "MAPPED-ADDRESS", *_ADDRESS),
    Attribute(CHANGE_REQUEST, "CHANGE-REQUEST", *_integer(4)),
    Attribute(USERNAME, "USERNAME", *_text(MAX_USERNAME_BYTES)),
    Attribute(MESSAGE_INTEGRITY, "MESSAGE-INTEGRITY", *_fixed(20)),
    Attribute(ERROR_CODE, "ERROR-CODE", _encode_error, _decode_error),
    Attribute(UNKNOWN_ATTRIBUTES, "UNKNOWN-ATTRIBUTES", _encode_numbers, _decode_numbers),
    Attribute(REALM, "REALM", *_text(MAX_TEXT_BYTES)),
    Attribute(NONCE, "NONCE", *_text(MAX_TEXT_BYTES)),
    Attribute(MESSAGE_INTEGRITY_SHA256, "MESSAGE-INTEGRITY-SHA256", *_fixed(16, 20, 24, 28, 32)),
    Attribute(XOR_MAPPED_ADDRESS, "XOR-MAPPED-ADDRESS", *_XOR_ADDRESS),
    Attribute(PADDING, "PADDING", *_fixed()),
    Attribute(RESPONSE_PORT, "RESPONSE-PORT", *_RESPONSE_PORT),
    Attribute(SOFTWARE, "SOFTWARE", *_text(MAX_TEXT_BYTES)),
    Attribute(ALTERNATE_SERVER, "ALTERNATE-SERVER", *_ADDRESS),
    Attribute(FINGERPRINT, "FINGERPRINT", *_integer(4)),
    Attribute(RESPONSE_ORIGIN, "RESPONSE-ORIGIN", *_ADDRESS),
    Attribute(OTHER_ADDRESS, "OTHER-ADDRESS", *_ADDRESS),
    # RFC 3489 had these, and servers still send them along: understood, and not used.
    Attribute(0x0004, "SOURCE-ADDRESS", *_fixed()),
    Attribute(0x0005, "CHANGED-ADDRESS", *_fixed()),
)
"""The attributes of RFC 8489 and RFC 5780; :func:`table` makes a larger one (for TURN, for ICE)."""

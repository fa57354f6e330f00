"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

Sums are taken modulo 0xFFFF on Python's big integers: that *is* one's complement addition of 16-bit
words, but for the two zeros, and it is one call instead of a loop.
"""

from __future__ import annotations

import struct

__all__ = ["checksum", "pseudo_checksum", "update"]


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The checksum of ``data`` (padded with a zero byte when odd), as to be stored.

    Source: RFC 1071.
    """
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    folded = total % 0xFFFF
    if folded == 0 and total:
        folded = 0xFFFF
    return folded ^ 0xFFFF


def pseudo_checksum(
    src: bytes, dst: bytes, proto: int, segment: bytes | bytearray | memoryview
) -> int:
    """The checksum of a TCP, UDP or ICMPv6 segment with its pseudo-header.

    The segment's own checksum field must be zero. For UDP, store 0xFFFF where this says 0.
    Source: RFC 768, 9293, 8200 section 8.1.
    """
    return checksum(b"".join((src, dst, struct.pack("!II", len(segment), proto), segment)))


def update(old: int, delta: int) -> int:
    """The checksum after the summed words grew by ``delta`` (new minus old; may be negative).

    ``delta`` is the difference of the changed fields as big-endian integers at 16-bit boundaries:
    equation 3 of RFC 1624, for any number of words at once.
    """
    return ((((old ^ 0xFFFF) + delta) % 0xFFFF) or 0xFFFF) ^ 0xFFFF

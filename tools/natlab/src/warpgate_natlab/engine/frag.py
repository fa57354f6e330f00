"""Fragments: cutting, and putting together again (RFC 791, RFC 8200 section 4.5)."""

from __future__ import annotations

import struct

from warpgate_natlab.engine.checksum import checksum
from warpgate_natlab.engine.packet import Packet

__all__ = ["Reassembler", "fragment"]

_TIMEOUT_S = 30.0  # RFC 4787 REQ-14: out of order too; RFC 1122 gives 60 to 120 s, labs are hasty
_MAX_PENDING = 256  # packets under reassembly
_MAX_SIZE = 65000  # of a payload; leaves room for headers of either family


def fragment(packet: Packet, mtu: int, ident: int) -> list[Packet]:
    """Cut ``packet`` for ``mtu``; the caller has seen that it may be cut.

    Args:
        packet: IPv4, whole or itself a fragment; or whole IPv6 without extension headers.
        mtu: bytes a piece may have.
        ident: the identification of an IPv6 packet's pieces, and of IPv4 ones that have none.
    """
    return _cut6(packet, mtu, ident) if packet.v6 else _cut4(packet, mtu, ident)


def _cut4(packet: Packet, mtu: int, ident: int) -> list[Packet]:
    buf = packet.buf
    head_len = (buf[0] & 15) * 4
    body = bytes(buf[head_len:])
    step = (mtu - head_len) // 8 * 8
    if step <= 0:
        return []
    flags = struct.unpack_from("!H", buf, 6)[0]
    more, base = flags & 0x2000, flags & 0x1FFF
    pieces = []
    for at in range(0, len(body), step):
        part = body[at : at + step]
        head = bytearray(buf[:head_len])
        last = at + step >= len(body)
        field = (base + at // 8) | (more if last else 0x2000)
        if not (head[4] or head[5]):
            struct.pack_into("!H", head, 4, (ident & 0xFFFF) or 1)
        struct.pack_into("!H", head, 2, head_len + len(part))
        struct.pack_into("!HBBH", head, 6, field, head[8], head[9], 0)
        struct.pack_into("!H", head, 10, checksum(head))
        pieces.append(Packet(head + part))
    return pieces


def _cut6(packet: Packet, mtu: int, ident: int) -> list[Packet]:
    buf = packet.buf
    body = bytes(buf[40:])
    step = (mtu - 48) // 8 * 8
    if step <= 0:
        return []
    pieces = []
    for at in range(0, len(body), step):
        part = body[at : at + step]
        more = at + step < len(body)
        head = bytearray(buf[:40])
        struct.pack_into("!HB", head, 4, 8 + len(part), 44)
        head += struct.pack("!BBHI", buf[6], 0, at | more, ident & 0xFFFFFFFF) + part
        pieces.append(Packet(head))
    return pieces


class _Pending:
    __slots__ = ("deadline", "head", "largest", "parts", "total")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.parts: dict[int, bytes] = {}
        self.head: bytes | None = None
        self.total: int | None = None
        self.largest = 0


class Reassembler:
    """Puts fragments together, in whatever order they come. Bounded in number and time."""

    def __init__(self) -> None:
        self._pending: dict[tuple[bytes, bytes, int, int], _Pending] = {}

    def add(self, packet: Packet, now: float) -> Packet | None:
        """Take in a fragment; the whole packet once it is complete.

        The result's ``whole`` is the size of the largest fragment. An overlap starts the packet
        over (RFC 5722). Raises MalformedPacket when the pieces make no packet.
        """
        buf = packet.buf
        if packet.v6:
            field, ident = struct.unpack_from("!HI", buf, packet.fragment + 2)
            offset, more, body_at = field & 0xFFF8, field & 1, packet.fragment + 8
        else:
            ident, field = struct.unpack_from("!HH", buf, 4)
            offset, more, body_at = (field & 0x1FFF) * 8, field & 0x2000, packet.l4
        body = bytes(buf[body_at:])
        key = (packet.src, packet.dst, ident, packet.proto)
        pending = self._pending.get(key)
        if pending is None or pending.deadline <= now:
            self._make_room(now)
            pending = self._pending[key] = _Pending(now + _TIMEOUT_S)
        bad = offset + len(body) > _MAX_SIZE or (more and len(body) % 8) or not body
        if bad or self._overlaps(pending, offset, body):
            del self._pending[key]
            return None
        pending.parts[offset] = body
        pending.largest = max(pending.largest, len(buf))
        if offset == 0:
            pending.head = self._head(packet)
        if not more:
            pending.total = offset + len(body)
        have = sum(map(len, pending.parts.values()))
        if pending.head is None or pending.total is None or have < pending.total:
            return None
        del self._pending[key]
        return self._join(pending, v6=packet.v6)

    def _make_room(self, now: float) -> None:
        self._pending = {k: p for k, p in self._pending.items() if p.deadline > now}
        while len(self._pending) >= _MAX_PENDING:
            del self._pending[next(iter(self._pending))]

    @staticmethod
    def _overlaps(pending: _Pending, offset: int, body: bytes) -> bool:
        end = offset + len(body)
        return any(
            at < end and offset < at + len(part) and not (at == offset and part == body)
            for at, part in pending.parts.items()
        )

    @staticmethod
    def _head(packet: Packet) -> bytes:
        """The header of the whole packet, its length still missing."""
        if not packet.v6:
            head = bytearray(packet.buf[: packet.l4])
            head[6:8] = b"\0\0"
            return bytes(head)
        # The header before the fragment header names what followed it.
        head = bytearray(packet.buf[: packet.fragment])
        at, following = 6, 40
        while following < packet.fragment:
            at, following = following, following + 8 * (head[following + 1] + 1)
        head[at] = packet.buf[packet.fragment]
        return bytes(head)

    @staticmethod
    def _join(pending: _Pending, *, v6: bool) -> Packet:
        body = b"".join(part for _, part in sorted(pending.parts.items()))
        assert pending.head is not None
        head = bytearray(pending.head)
        if v6:
            struct.pack_into("!H", head, 4, len(head) - 40 + len(body))
        else:
            struct.pack_into("!H", head, 2, len(head) + len(body))
            head[10:12] = b"\0\0"
            struct.pack_into("!H", head, 10, checksum(head))
        packet = Packet(head + body)
        packet.whole = pending.largest
        return packet

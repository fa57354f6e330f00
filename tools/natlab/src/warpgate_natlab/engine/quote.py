"""The packet inside an ICMP error, read and rewritten where it lies (RFC 5508 section 4)."""

from __future__ import annotations

import struct

from warpgate_natlab.engine.checksum import checksum, pseudo_checksum, update
from warpgate_natlab.engine.packet import ICMP, ICMP6, TCP, UDP, Packet

__all__ = ["Quote", "seal"]

_ECHOES = (0, 8, 128, 129)


class Quote:
    """The headers an ICMP error quotes; they may be cut off after eight bytes of transport.

    Attributes: ``src``, ``dst``, ``proto`` (ICMP for ICMPv6 too), ``sport``, ``dport``, ``start``
    (offset in the outer packet), ``l4``.
    """

    __slots__ = ("buf", "dport", "dst", "l4", "proto", "sport", "src", "start", "v6")

    def __init__(self, outer: Packet, start: int) -> None:
        self.buf = buf = outer.buf
        self.start = start
        self.v6 = outer.v6
        if outer.v6:
            self.src, self.dst = (
                bytes(buf[start + 8 : start + 24]),
                bytes(buf[start + 24 : start + 40]),
            )
            self.proto, self.l4 = buf[start + 6], start + 40
        else:
            self.src, self.dst = (
                bytes(buf[start + 12 : start + 16]),
                bytes(buf[start + 16 : start + 20]),
            )
            self.proto, self.l4 = buf[start + 9], start + (buf[start] & 15) * 4
        if self.proto in (TCP, UDP):
            self.sport, self.dport = struct.unpack_from("!HH", buf, self.l4)
        else:
            self.sport = self.dport = struct.unpack_from("!H", buf, self.l4 + 4)[0]
            self.proto = ICMP

    @classmethod
    def read(cls, outer: Packet) -> Quote | None:
        """The quote of an ICMP error, or None when nothing can be made of it."""
        buf, start = outer.buf, outer.l4 + 8
        need = 48 if outer.v6 else 28
        if len(buf) < start + need or buf[start] >> 4 != (6 if outer.v6 else 4):
            return None
        if outer.v6:
            proto, l4, later = buf[start + 6], start + 40, 0
        else:
            proto, l4 = buf[start + 9], start + (buf[start] & 15) * 4
            later = (buf[start + 6] & 0x1F) | buf[start + 7]
        if later or len(buf) < l4 + 8 or l4 < start + 20:
            return None
        if proto in (ICMP, ICMP6):
            if buf[l4] not in _ECHOES:
                return None
        elif proto not in (TCP, UDP):
            return None
        return cls(outer, start)

    def rewrite_src(self, addr: bytes, port: int) -> None:
        """Put in another source address and port; call :func:`seal` on the outer packet after."""
        self._rewrite(8 if self.v6 else 12, 0, self.src, addr, self.sport, port)

    def rewrite_dst(self, addr: bytes, port: int) -> None:
        """Put in another destination; call :func:`seal` on the outer packet after."""
        self._rewrite(24 if self.v6 else 16, 2, self.dst, addr, self.dport, port)

    def _rewrite(
        self, addr_at: int, port_at: int, old: bytes, addr: bytes, old_port: int, port: int
    ) -> None:
        buf, start, l4 = self.buf, self.start, self.l4
        buf[start + addr_at : start + addr_at + len(addr)] = addr
        addr_delta = int.from_bytes(addr, "big") - int.from_bytes(old, "big")
        if not self.v6:
            self._update(start + 10, addr_delta)
        if self.proto == ICMP:
            struct.pack_into("!H", buf, l4 + 4, port)
            self._update(l4 + 2, port - old_port + (addr_delta if self.v6 else 0))
            return
        struct.pack_into("!H", buf, l4 + port_at, port)
        at = l4 + (6 if self.proto == UDP else 16)
        if len(buf) >= at + 2 and (self.proto == TCP or buf[at] or buf[at + 1]):
            self._update(at, addr_delta + port - old_port)

    def _update(self, at: int, delta: int) -> None:
        buf = self.buf
        struct.pack_into("!H", buf, at, update((buf[at] << 8) | buf[at + 1], delta))


def seal(packet: Packet) -> None:
    """Compute an ICMP or ICMPv6 packet's checksum anew."""
    buf, l4 = packet.buf, packet.l4
    buf[l4 + 2 : l4 + 4] = b"\0\0"
    body = memoryview(buf)[l4:]
    total = pseudo_checksum(packet.src, packet.dst, ICMP6, body) if packet.v6 else checksum(body)
    body.release()
    struct.pack_into("!H", buf, l4 + 2, total)

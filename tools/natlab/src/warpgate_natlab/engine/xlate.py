"""IPv4 to IPv6 and back: headers, transport checksums, ICMP (RFC 7915)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from warpgate_natlab.engine.build import ip_header
from warpgate_natlab.engine.checksum import pseudo_checksum, update
from warpgate_natlab.engine.packet import ICMP, ICMP6, TCP, UDP, Packet
from warpgate_natlab.engine.quote import Quote, seal
from warpgate_natlab.engine.table import Endpoint

__all__ = ["error_to_v4", "error_to_v6", "translate"]

_GROWTH = 20  # an IPv6 header is this much longer
_DF_ABOVE = 1260  # RFC 7915 section 5.1: smaller ones may be cut
_MIN_MTU6 = 1280
_MAX_SEGMENT = 65515
_ECHO_TYPES = {8: 128, 0: 129, 128: 8, 129: 0}

# (type, code) to (type, code); None as code: any
_TO_V4 = {
    (1, 0): (3, 1), (1, 1): (3, 10), (1, 2): (3, 1), (1, 3): (3, 1), (1, 4): (3, 3),
    (2, None): (3, 4), (3, 0): (11, 0), (3, 1): (11, 1), (4, 1): (3, 2),
}  # fmt: skip
_TO_V6 = {
    (3, 0): (1, 0), (3, 1): (1, 0), (3, 2): (4, 1), (3, 3): (1, 4), (3, 4): (2, 0), (3, 5): (1, 0),
    (3, 6): (1, 0), (3, 7): (1, 0), (3, 8): (1, 0), (3, 9): (1, 1), (3, 10): (1, 1), (3, 11): (1, 0),
    (3, 12): (1, 0), (3, 13): (1, 1), (3, 15): (1, 1), (11, 0): (3, 0), (11, 1): (3, 1),
}  # fmt: skip
_NEXT_HEADER_POINTER = 6  # where IPv6 names the protocol, for "protocol unreachable"


@dataclass(frozen=True, slots=True)
class _Header:
    """Addresses and ports of one side of a translation; ``size`` of the segment with payload."""

    src: Endpoint
    dst: Endpoint
    size: int

    @property
    def v6(self) -> bool:
        return len(self.src[0]) == 16

    @property
    def addresses(self) -> int:
        return int.from_bytes(self.src[0], "big") + int.from_bytes(self.dst[0], "big")

    def icmp_pseudo(self) -> int:
        """What the pseudo-header adds to an ICMP checksum."""
        return self.addresses + self.size + ICMP6 if self.v6 else 0


def _transport(segment: bytearray, proto: int, old: _Header, new: _Header) -> None:
    """Rewrite ports and checksum of a transport segment that may be cut off after 8 bytes."""
    if proto == ICMP:
        before = int.from_bytes(segment[0:2], "big") + int.from_bytes(segment[4:6], "big")
        segment[0] = _ECHO_TYPES[segment[0]]
        struct.pack_into("!H", segment, 4, new.src[1])
        after = int.from_bytes(segment[0:2], "big") + int.from_bytes(segment[4:6], "big")
        delta, at = after - before + new.icmp_pseudo() - old.icmp_pseudo(), 2
    else:
        struct.pack_into("!HH", segment, 0, new.src[1], new.dst[1])
        delta = new.addresses - old.addresses
        delta += new.src[1] + new.dst[1] - old.src[1] - old.dst[1]
        at = 6 if proto == UDP else 16
    if len(segment) < at + 2:
        return
    total = int.from_bytes(segment[at : at + 2], "big")
    if proto == UDP and total == 0:
        if new.v6 and len(segment) == new.size:  # IPv6 wants one (RFC 7915 section 4.5)
            total = pseudo_checksum(new.src[0], new.dst[0], UDP, segment) or 0xFFFF
    else:
        total = update(total, delta)
        if proto == UDP:
            total = total or 0xFFFF
    struct.pack_into("!H", segment, at, total)


def translate(packet: Packet, src: Endpoint, dst: Endpoint, ident: int) -> Packet:
    """``packet`` (TCP, UDP or ICMP echo) in the other family, from ``src`` to ``dst``.

    Args:
        packet: IPv4 or IPv6; the other one comes back.
        src: new address and port (identifier of an echo).
        dst: likewise.
        ident: identification of an IPv4 packet that may be cut.
    """
    proto = packet.proto if packet.proto in (TCP, UDP) else ICMP
    segment = bytearray(packet.buf[packet.l4 :])
    old = _Header((packet.src, packet.sport), (packet.dst, packet.dport), len(segment))
    _transport(segment, proto, old, _Header(src, dst, len(segment)))
    v6 = len(src[0]) == 16
    wire_proto = ICMP6 if v6 and proto == ICMP else proto
    df = len(segment) + 20 > _DF_ABOVE and not packet.whole
    head = bytearray(ip_header(src[0], dst[0], wire_proto, len(segment), ttl=packet.ttl, df=df))
    if not v6 and not df:
        struct.pack_into("!H", head, 4, ident & 0xFFFF)
        total = int.from_bytes(head[10:12], "big")
        struct.pack_into("!H", head, 10, update(total, ident & 0xFFFF))
    made = Packet(head + segment)
    if v6:
        made.whole = packet.whole or (0 if packet.dont_fragment else _MIN_MTU6)
    else:
        made.whole = packet.whole
    return made


def _error(
    packet: Packet,
    quote: Quote,
    outer: tuple[bytes, bytes],
    inner: tuple[Endpoint, Endpoint],
    what: tuple[int, int],
    value: int,
) -> Packet:
    v6 = len(outer[0]) == 16
    buf = packet.buf
    if quote.v6:
        size, ttl = (
            int.from_bytes(buf[quote.start + 4 : quote.start + 6], "big"),
            buf[quote.start + 7],
        )
    else:
        total = int.from_bytes(buf[quote.start + 2 : quote.start + 4], "big")
        size, ttl = total - (quote.l4 - quote.start), buf[quote.start + 8]
    size = max(8, min(size, _MAX_SEGMENT))  # what is quoted may lie
    segment = bytearray(buf[quote.l4 :])
    old = _Header((quote.src, quote.sport), (quote.dst, quote.dport), size)
    _transport(segment, quote.proto, old, _Header(*inner, size))
    proto = ICMP6 if v6 and quote.proto == ICMP else quote.proto
    quoted = ip_header(inner[0][0], inner[1][0], proto, size, ttl=ttl) + segment
    body = struct.pack("!BBHI", *what, 0, value) + quoted[: _MIN_MTU6 - 48 if v6 else 548]
    head = ip_header(*outer, ICMP6 if v6 else ICMP, len(body), ttl=packet.ttl)
    made = Packet(bytearray(head + body))
    seal(made)
    return made


def error_to_v4(
    packet: Packet, quote: Quote, outer: tuple[bytes, bytes], inner: tuple[Endpoint, Endpoint]
) -> Packet | None:
    """An ICMPv6 error as ICMP, or None when it has no counterpart (RFC 7915 section 5.2)."""
    kind, code = packet.buf[packet.l4], packet.buf[packet.l4 + 1]
    what = _TO_V4.get((kind, None if kind == 2 else code))
    if what is None:
        return None
    value = 0
    if kind == 2:
        mtu = int.from_bytes(packet.buf[packet.l4 + 4 : packet.l4 + 8], "big")
        value = max(68, min(mtu - _GROWTH, 0xFFFF))
    return _error(packet, quote, outer, inner, what, value)


def error_to_v6(
    packet: Packet, quote: Quote, outer: tuple[bytes, bytes], inner: tuple[Endpoint, Endpoint]
) -> Packet | None:
    """An ICMP error as ICMPv6, or None when it has no counterpart (RFC 7915 section 4.2)."""
    kind, code = packet.buf[packet.l4], packet.buf[packet.l4 + 1]
    what = _TO_V6.get((kind, code))
    if what is None:
        return None
    value = 0
    if (kind, code) == (3, 4):
        mtu = int.from_bytes(packet.buf[packet.l4 + 6 : packet.l4 + 8], "big")
        value = max(_MIN_MTU6, mtu + _GROWTH)
    elif what == (4, 1):
        value = _NEXT_HEADER_POINTER
    return _error(packet, quote, outer, inner, what, value)

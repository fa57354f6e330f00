"""Packets made from nothing: what the boxes answer, and what tests send."""

from __future__ import annotations

import struct

from warpgate_natlab.engine.checksum import checksum, pseudo_checksum
from warpgate_natlab.engine.packet import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP, Packet

__all__ = [
    "echo",
    "echo_reply",
    "icmp_error",
    "ip_header",
    "ip_packet",
    "rst_for",
    "tcp",
    "udp",
    "valid_checksums",
]

_TTL = 64
_QUOTED4 = 548  # RFC 1812 section 4.3.2.3: as much as fits into 576 bytes
_QUOTED6 = 1232  # RFC 4443: into 1280


def ip_header(
    src: bytes, dst: bytes, proto: int, payload_len: int, *, ttl: int = _TTL, df: bool = True
) -> bytes:
    """An IPv4 or IPv6 header (by the addresses' length) without options."""
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28, payload_len, proto, ttl) + src + dst
    head = struct.pack(
        "!BBHHHBBH", 0x45, 0, 20 + payload_len, 0, 0x4000 if df else 0, ttl, proto, 0
    )
    total = checksum(head + src + dst)
    return head[:10] + struct.pack("!H", total) + src + dst


def ip_packet(
    src: bytes, dst: bytes, proto: int, payload: bytes, *, ttl: int = _TTL, df: bool = True
) -> Packet:
    """A whole packet around a finished payload."""
    header = ip_header(src, dst, proto, len(payload), ttl=ttl, df=df)
    return Packet(bytearray(header + payload))


def udp(
    src: bytes,
    sport: int,
    dst: bytes,
    dport: int,
    data: bytes = b"",
    *,
    ttl: int = _TTL,
    df: bool = True,
) -> Packet:
    """A UDP datagram with its checksum."""
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    total = pseudo_checksum(src, dst, UDP, segment) or 0xFFFF
    segment = segment[:6] + struct.pack("!H", total) + data
    return ip_packet(src, dst, UDP, segment, ttl=ttl, df=df)


def tcp(
    src: bytes,
    sport: int,
    dst: bytes,
    dport: int,
    flags: int,
    *,
    seq: int = 0,
    ack: int = 0,
    data: bytes = b"",
    ttl: int = _TTL,
) -> Packet:
    """A TCP segment without options."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, 65535, 0, 0)
    total = pseudo_checksum(src, dst, TCP, head + data)
    segment = head[:16] + struct.pack("!HH", total, 0) + data
    return ip_packet(src, dst, TCP, segment, ttl=ttl)


def echo(
    src: bytes, dst: bytes, ident: int, seq: int = 1, data: bytes = b"", *, reply: bool = False
) -> Packet:
    """An ICMP or ICMPv6 echo request or reply."""
    v6 = len(src) == 16
    kind = (129 if reply else 128) if v6 else (0 if reply else 8)
    return _icmp(src, dst, kind, 0, struct.pack("!HH", ident, seq), data)


def _icmp(src: bytes, dst: bytes, kind: int, code: int, rest: bytes, data: bytes) -> Packet:
    body = struct.pack("!BBH", kind, code, 0) + rest + data
    v6 = len(src) == 16
    total = pseudo_checksum(src, dst, ICMP6, body) if v6 else checksum(body)
    body = body[:2] + struct.pack("!H", total) + body[4:]
    return ip_packet(src, dst, ICMP6 if v6 else ICMP, body)


def echo_reply(request: Packet) -> Packet:
    """The answer to an echo request, from the address it was sent to."""
    l4 = request.l4
    ident, seq = struct.unpack_from("!HH", request.buf, l4 + 4)
    data = bytes(request.buf[l4 + 8 :])
    return echo(request.dst, request.src, ident, seq, data, reply=True)


def icmp_error(src: bytes, about: Packet, kind: int, code: int, value: int = 0) -> Packet:
    """An ICMP error from ``src`` to the sender of ``about``, quoting it.

    Args:
        src: of the same family as ``about``.
        about: the packet that could not go on.
        kind: type, in the family's own numbers.
        code: code, likewise.
        value: second word of the header: the next hop's MTU.

    Source: RFC 792, 1191, 1812 section 4.3.2, 4443.
    """
    quoted = bytes(about.buf[: _QUOTED6 if about.v6 else _QUOTED4])
    return _icmp(src, about.src, kind, code, struct.pack("!I", value), quoted)


def rst_for(about: Packet) -> Packet:
    """The reset a closed port answers ``about`` with (RFC 9293 section 3.10.7.1)."""
    buf, l4 = about.buf, about.l4
    seq, ack = struct.unpack_from("!II", buf, l4 + 4)
    if about.flags & ACK:
        return tcp(about.dst, about.dport, about.src, about.sport, RST, seq=ack)
    length = len(buf) - l4 - (buf[l4 + 12] >> 4) * 4
    length += bool(about.flags & SYN) + (about.flags & 1)
    end = (seq + length) & 0xFFFFFFFF
    return tcp(about.dst, about.dport, about.src, about.sport, RST | ACK, ack=end)


def valid_checksums(packet: Packet) -> bool:
    """All checksums of a whole packet are right, computed in full; UDP's 0 counts in IPv4."""
    buf, l4 = packet.buf, packet.l4
    if not packet.v6 and checksum(buf[:l4]):
        return False
    segment = bytes(buf[l4:])
    if packet.proto == UDP and segment[6:8] == b"\0\0":
        return not packet.v6
    if packet.proto in (TCP, UDP, ICMP6):
        return pseudo_checksum(packet.src, packet.dst, packet.proto, segment) == 0
    return packet.proto != ICMP or checksum(segment) == 0

"""IP packets, parsed in place and rewritten in place (IPv4 and IPv6)."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from warpgate_natlab.engine.checksum import update

__all__ = [
    "ACK",
    "FIN",
    "ICMP",
    "ICMP6",
    "PROTO_NAMES",
    "RST",
    "SYN",
    "TCP",
    "UDP",
    "MalformedPacket",
    "Packet",
    "addr_bytes",
    "addr_text",
]

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
PROTO_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMP6: "icmp"}

# ICMP messages: what Packet.icmp says about one.
ECHO_REQUEST, ECHO_REPLY, ERROR, OTHER = 1, 2, 3, 4
_ICMP4 = {8: ECHO_REQUEST, 0: ECHO_REPLY, 3: ERROR, 11: ERROR, 12: ERROR}
_ICMP6 = {128: ECHO_REQUEST, 129: ECHO_REPLY, 1: ERROR, 2: ERROR, 3: ERROR, 4: ERROR}
_EXTENSIONS = frozenset({0, 43, 60})
_FRAGMENT = 44
_MAX_EXTENSIONS = 8

_HH = struct.Struct("!HH")
_H = struct.Struct("!H")


class MalformedPacket(ValueError):
    """Bytes that are no whole IP packet."""


def addr_bytes(text: str) -> bytes:
    """An address in network order. Raises ValueError when ``text`` is none."""
    return ip_address(text).packed


def addr_text(raw: bytes) -> str:
    """An address as text."""
    return str(ip_address(raw))


class Packet:
    """One IP packet: its bytes, and what a middlebox asks about it.

    Args:
        buf: the packet; owned by this object from now on.

    Attributes: ``v6``; ``src``, ``dst`` (bytes); ``proto``; ``l4`` (offset of the transport header);
    ``sport``, ``dport`` (ports; the identifier, in both, of an ICMP echo); ``flags`` (of TCP);
    ``icmp`` (0, or one of ECHO_REQUEST, ECHO_REPLY, ERROR, OTHER); ``fragment`` (0, or 1 for IPv4 and
    the offset of the fragment header for IPv6; then nothing above the IP layer was read); ``whole`` (of a
    reassembled packet: the size of its largest fragment; else 0).

    Raises:
        MalformedPacket: too short, wrong version, or lengths that disagree.
    """

    __slots__ = (
        "buf", "dport", "dst", "flags", "fragment", "icmp", "l4", "proto", "sport", "src", "v6",
        "whole",
    )  # fmt: skip

    def __init__(self, buf: bytes | bytearray) -> None:
        if not isinstance(buf, bytearray):
            buf = bytearray(buf)
        self.buf = buf
        size = len(buf)
        if size < 20:
            raise MalformedPacket("shorter than an IP header")
        self.sport = self.dport = self.flags = self.icmp = self.fragment = self.whole = 0
        first = buf[0]
        if first >> 4 == 4:
            self.v6 = False
            self.src = bytes(buf[12:16])
            self.dst = bytes(buf[16:20])
            self.proto = buf[9]
            self.l4 = l4 = (first & 15) * 4
            length = (buf[2] << 8) | buf[3]
            if l4 < 20 or not l4 <= length <= size:
                raise MalformedPacket("IPv4 lengths disagree")
            if buf[6] & 0x3F or buf[7]:
                self.fragment = 1
        elif first >> 4 == 6 and size >= 40:
            self.v6 = True
            self.src = bytes(buf[8:24])
            self.dst = bytes(buf[24:40])
            length = 40 + ((buf[4] << 8) | buf[5])
            if length > size:
                raise MalformedPacket("IPv6 payload is cut off")
            self._walk_extensions(length)
            l4 = self.l4
        else:
            raise MalformedPacket("neither IPv4 nor IPv6")
        if length < size:
            del buf[length:]
        if not self.fragment:
            self._parse_transport(l4, length)

    def _walk_extensions(self, length: int) -> None:
        buf = self.buf
        proto, offset = buf[6], 40
        for _ in range(_MAX_EXTENSIONS):
            if proto in _EXTENSIONS:
                if offset + 8 > length:
                    raise MalformedPacket("extension header is cut off")
                proto, offset = buf[offset], offset + 8 * (buf[offset + 1] + 1)
                continue
            if proto == _FRAGMENT:
                if offset + 8 > length:
                    raise MalformedPacket("fragment header is cut off")
                self.fragment = offset
                proto, offset = buf[offset], offset + 8
            break
        if offset > length:
            raise MalformedPacket("extension header is cut off")
        self.proto, self.l4 = proto, offset

    def _parse_transport(self, l4: int, length: int) -> None:
        buf, proto = self.buf, self.proto
        room = length - l4
        if proto == UDP:
            if room < 8:
                raise MalformedPacket("UDP header is cut off")
            self.sport, self.dport = _HH.unpack_from(buf, l4)
        elif proto == TCP:
            if room < 20 or not 20 <= (buf[l4 + 12] >> 4) * 4 <= room:
                raise MalformedPacket("TCP header is cut off")
            self.sport, self.dport = _HH.unpack_from(buf, l4)
            self.flags = buf[l4 + 13]
        elif proto == (ICMP6 if self.v6 else ICMP):
            if room < 8:
                raise MalformedPacket("ICMP header is cut off")
            self.icmp = (_ICMP6 if self.v6 else _ICMP4).get(buf[l4], OTHER)
            if self.icmp <= ECHO_REPLY:
                self.sport = self.dport = (buf[l4 + 4] << 8) | buf[l4 + 5]

    @property
    def ttl(self) -> int:
        """The hops left."""
        return self.buf[7 if self.v6 else 8]

    @property
    def dont_fragment(self) -> bool:
        """No router may cut this (always so in IPv6)."""
        return self.v6 or bool(self.buf[6] & 0x40)

    def copy(self) -> Packet:
        """The same packet in bytes of its own."""
        twin: Packet = Packet.__new__(Packet)
        for name in Packet.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.buf = bytearray(self.buf)
        return twin

    def hop(self) -> bool:
        """Take one hop off; False when none is left (then nothing was changed)."""
        buf = self.buf
        if self.v6:
            if buf[7] <= 1:
                return False
            buf[7] -= 1
            return True
        if buf[8] <= 1:
            return False
        buf[8] -= 1
        _H.pack_into(buf, 10, update((buf[10] << 8) | buf[11], -0x100))
        return True

    def rewrite_src(self, addr: bytes, port: int) -> None:
        """Put in another source; checksums follow (RFC 1624)."""
        delta = int.from_bytes(addr, "big") - int.from_bytes(self.src, "big")
        at = 8 if self.v6 else 12
        self.buf[at : at + len(addr)] = addr
        self.src = addr
        self._fix(delta, port - self.sport)
        if self.proto in (TCP, UDP):
            _H.pack_into(self.buf, self.l4, port)
            self.sport = port
        elif self.icmp in (ECHO_REQUEST, ECHO_REPLY):
            self._set_echo_id(port)

    def rewrite_dst(self, addr: bytes, port: int) -> None:
        """Put in another destination; checksums follow (RFC 1624)."""
        delta = int.from_bytes(addr, "big") - int.from_bytes(self.dst, "big")
        at = 24 if self.v6 else 16
        self.buf[at : at + len(addr)] = addr
        self.dst = addr
        self._fix(delta, port - self.dport)
        if self.proto in (TCP, UDP):
            _H.pack_into(self.buf, self.l4 + 2, port)
            self.dport = port
        elif self.icmp in (ECHO_REQUEST, ECHO_REPLY):
            self._set_echo_id(port)

    def _set_echo_id(self, ident: int) -> None:
        _H.pack_into(self.buf, self.l4 + 4, ident)
        self.sport = self.dport = ident

    def _fix(self, addr_delta: int, port_delta: int) -> None:
        buf, proto = self.buf, self.proto
        if not self.v6:
            _H.pack_into(buf, 10, update((buf[10] << 8) | buf[11], addr_delta))
        if proto == UDP:
            at = self.l4 + 6
            old = (buf[at] << 8) | buf[at + 1]
            if old:  # 0: the sender made none (RFC 768)
                _H.pack_into(buf, at, update(old, addr_delta + port_delta) or 0xFFFF)
        elif proto == TCP:
            at = self.l4 + 16
            old = (buf[at] << 8) | buf[at + 1]
            _H.pack_into(buf, at, update(old, addr_delta + port_delta))
        elif self.icmp:
            delta = addr_delta if self.v6 else 0  # ICMPv4 has no pseudo-header
            if self.icmp <= ECHO_REPLY:
                delta += port_delta
            at = self.l4 + 2
            _H.pack_into(buf, at, update((buf[at] << 8) | buf[at + 1], delta))

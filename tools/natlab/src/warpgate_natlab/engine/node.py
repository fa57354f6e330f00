"""What every node of the graph has: ports, counters, its own addresses, ICMP of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from warpgate_natlab.engine.build import echo_reply, icmp_error
from warpgate_natlab.engine.packet import (
    ECHO_REPLY,
    ECHO_REQUEST,
    ERROR,
    ICMP,
    ICMP6,
    Packet,
    addr_text,
)

__all__ = ["DUMMY4", "Host", "Node", "errors_allowed"]

DUMMY4 = bytes((192, 0, 0, 8))  # source of ICMP from a router without an address (RFC 7600)
_DST_CAP = 65536  # destinations counted one by one

# (IPv4 type, code), (IPv6 type, code)
TIME_EXCEEDED = ((11, 0), (3, 0))
NO_ROUTE = ((3, 0), (1, 0))
PORT_UNREACHABLE = ((3, 3), (1, 4))
PROHIBITED = ((3, 13), (1, 1))
TOO_BIG = ((3, 4), (2, 0))


class Host(Protocol):
    """What a node may ask of the graph it is in."""

    def emit(self, node: Node, port: str, packet: Packet, now: float) -> None:
        """Send ``packet`` out of ``port``."""

    def later(self, at: float, call: Callable[[float], None]) -> None:
        """Call ``call(now)`` at the time ``at``."""


def errors_allowed(packet: Packet) -> bool:
    """An ICMP error about ``packet`` may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4)."""
    if packet.icmp == ERROR:
        return False
    if packet.fragment:
        buf, at = packet.buf, packet.fragment
        first = (
            not (buf[at + 2] or buf[at + 3] & 0xF8) if packet.v6 else not (buf[6] & 0x1F or buf[7])
        )
        if not first:
            return False
    first_byte = packet.dst[0]
    if packet.v6:
        return first_byte != 0xFF and packet.src[0] != 0xFF and any(packet.src)
    return first_byte < 224 and packet.src[0] < 224 and packet.src[0] != 0


class Node:
    """A box with named ports.

    Args:
        name: for messages.
        host: the graph.
    """

    kind = "node"

    def __init__(self, name: str, host: Host) -> None:
        self.name = name
        self.host = host
        self.addresses: list[bytes] = []
        self.packets = 0
        self.icmp_sent = 0
        self.drops: dict[str, int] = {}
        self.dst: dict[bytes, list[int]] = {}

    def ports(self) -> set[str] | None:
        """The names its ports may have; None: any."""
        return None

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """A packet has arrived at ``port``."""
        raise NotImplementedError

    def too_big(self, port: str, packet: Packet, mtu: int, now: float) -> None:
        """``packet``, sent out of ``port``, did not fit: the error comes back by that port."""
        if not errors_allowed(packet):
            return
        error = self.error(packet, TOO_BIG, mtu)
        if error is not None:
            self.icmp_sent += 1
            self.receive(port, error, now)

    def drop(self, cause: str) -> None:
        """Count a packet that goes no further."""
        self.drops[cause] = self.drops.get(cause, 0) + 1

    def count_dst(self, packet: Packet) -> None:
        """Count a packet sent on, by destination."""
        entry = self.dst.get(packet.dst)
        if entry is None:
            if len(self.dst) >= _DST_CAP:
                return
            entry = self.dst[packet.dst] = [0, 0]
        entry[0] += 1
        entry[1] += len(packet.buf)

    def own_address(self, *, v6: bool) -> bytes | None:
        """The source of this node's ICMP."""
        size = 16 if v6 else 4
        for addr in self.addresses:
            if len(addr) == size:
                return addr
        return None if v6 else DUMMY4

    def error(
        self,
        about: Packet,
        what: tuple[tuple[int, int], tuple[int, int]],
        value: int = 0,
        src: bytes | None = None,
    ) -> Packet | None:
        """An ICMP error from this node, or None when it has no address to send it from."""
        src = src or self.own_address(v6=about.v6)
        if src is None:
            return None
        kind, code = what[about.v6]
        return icmp_error(src, about, kind, code, value)

    def ping(self, packet: Packet) -> Packet | None:
        """The reply when ``packet`` is an echo request to one of its addresses."""
        if packet.icmp == ECHO_REQUEST and packet.dst in self.addresses:
            self.icmp_sent += 1
            return echo_reply(packet)
        return None

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        return {"type": self.kind, "addresses": [addr_text(a) for a in self.addresses]}

    def stats(self, now: float) -> dict[str, Any]:
        """Its counters."""
        del now
        return {
            "packets": self.packets,
            "drops": dict(self.drops),
            "icmp_sent": self.icmp_sent,
            "dst": {addr_text(addr): list(n) for addr, n in self.dst.items()},
        }

    def reset_stats(self) -> None:
        """All counters to zero."""
        self.packets = self.icmp_sent = 0
        self.drops = {}
        self.dst = {}


def table_proto(packet: Packet) -> int:
    """The protocol a mapping is kept under: ICMP for ICMPv6 echo too; 0: not one we follow."""
    if packet.icmp in (ECHO_REQUEST, ECHO_REPLY):
        return ICMP
    return 0 if packet.proto in (ICMP, ICMP6) else packet.proto

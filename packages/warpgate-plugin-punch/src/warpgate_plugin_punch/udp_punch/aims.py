"""Who writes where: from both sides' facts to addresses; PURE.

What one side must know of the other's ports, by NAT (RFC 4787):

- a side with one port for all destinations is told its port, or asks a server for it;
- a side that counts learns which port the other one sees from servers that it asks just before and
  just after it writes there; only when both count, ports that are yet to be made are told;
- a side whose ports are random need not know them where the other one lets in whoever comes from an
  IP it has written to: its first packet shows the port.
"""

from __future__ import annotations

from collections.abc import Sequence

from warpgate_plugin_punch.common.counting import advance, following
from warpgate_plugin_punch.common.facts import SideFacts

Address = tuple[str, int]

FORETOLD = 10
"""Ports that the responder of two counting NATs writes to."""
TRIED = 5
"""Packets by which the initiator then tries to meet one of them."""


def must_measure(own: SideFacts, peer: SideFacts) -> bool:
    """Return whether the peer must be told which ports a counting NAT gives."""
    return own.counting and peer.by_port


def must_guess(own: SideFacts, peer: SideFacts) -> bool:
    """Return whether one side's ports are known to be random, and the other to want the very port."""
    return (own.hard and peer.filtering == "apd") or (peer.hard and own.filtering == "apd")


def both_count(own: SideFacts, peer: SideFacts) -> bool:
    """Return whether ports must be foretold on both sides."""
    return own.counting and peer.counting and own.by_port and peer.by_port


def next_ports(ip: str, counter: int, step: int, count: int = FORETOLD) -> list[Address]:
    """Return the endpoints that a counting NAT will give next."""
    return [(ip, port) for port in following(counter, step, count)]


def meeting_points(ip: str, counter: int, step: int, count: int = TRIED) -> list[Address]:
    """Return where the initiator writes to, in this order, when both NATs count.

    The responder's j-th packet went from ``counter + j * step`` to the initiator's j-th next port. The
    initiator's k-th packet goes to number 2k - 1 of those: it meets the other where k - 1 mappings
    of others came in between. So every number of them up to ``count`` - 1 is provided for.
    """
    return [(ip, advance(counter, step * (2 * k - 1))) for k in range(1, count + 1)]


def usable(endpoints: Sequence[Address], ipv6: bool, limit: int) -> list[Address]:
    """Return the different endpoints of a family, in order, at most so many."""
    found = [(ip, port) for ip, port in endpoints if (":" in ip) == ipv6]
    return list(dict.fromkeys(found))[:limit]

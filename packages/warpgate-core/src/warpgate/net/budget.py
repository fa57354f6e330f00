"""How many packets an attempt may send to an address that has not answered (WIRE section 5); PURE."""

from __future__ import annotations

MAX_UNANSWERED_PACKETS = 50
MAX_ADDRESSES = 64
"""Different addresses that one attempt may write to at all."""


class PacketBudget:
    """One attempt's packets, by IP address, over all its sockets and pipes.

    An address that a peer has named may be a victim's. Until it has answered with something
    authenticated it gets few packets; whoever sends asks :meth:`take` first.

    Attributes:
        refused: packets that were not sent for it.

    """

    def __init__(self, limit: int = MAX_UNANSWERED_PACKETS) -> None:
        self.limit = limit
        self.refused = 0
        self._sent: dict[str, int] = {}
        self._answered: set[str] = set()

    def take(self, ip: str, packets: int = 1) -> bool:
        """Return whether so many more packets may go to an address, and count them if so."""
        if ip in self._answered:
            return True
        sent = self._sent.get(ip, 0)
        crowded = ip not in self._sent and len(self._sent) >= MAX_ADDRESSES
        if crowded or sent + packets > self.limit:
            self.refused += packets
            return False
        self._sent[ip] = sent + packets
        return True

    def answered(self, ip: str) -> None:
        """Lift the limit for an address: a configured server's, or one whose peer is proven."""
        self._answered.add(ip)

    def left(self, ip: str) -> int:
        """Return how many packets may still go to an address that has not answered."""
        return self.limit - self._sent.get(ip, 0)

    def sent(self, ip: str) -> int:
        """Return how many packets were counted for an address before it answered."""
        return self._sent.get(ip, 0)

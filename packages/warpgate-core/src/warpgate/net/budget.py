"""What an attempt may send to an address that has not answered (WIRE section 5); PURE."""

from __future__ import annotations

from typing import Protocol

MAX_UNANSWERED_PACKETS = 50
MAX_PACKET_BYTES = 300
"""UDP payload of each; what a packet counts as unless its sender says less."""
MAX_ADDRESSES = 64
"""Different addresses that one attempt may write to at all."""
SYN_BYTES = 60
"""A SYN with its headers and options."""
MAX_SYNS = 8
"""That systems send within the 10 s of one attempt to connect which nothing answers."""


class Purse(Protocol):
    """Bytes that several attempts share."""

    def take(self, size: int) -> bool:
        """Take so many bytes; False, and none are taken, when there are fewer."""

    def give_back(self, size: int) -> None:
        """Put bytes back."""


class PacketBudget:
    """One attempt's packets, by IP address, over all its sockets and pipes.

    An address that a peer has named may be a victim's. Until it has answered with something
    authenticated it gets few packets; whoever sends asks :meth:`take` first.

    Attributes:
        refused: packets that were not sent for it.
        purse: what all strangers' attempts share; None where the attempt is not a stranger's.

    """

    def __init__(self, limit: int = MAX_UNANSWERED_PACKETS, purse: Purse | None = None) -> None:
        self.limit = limit
        self.refused = 0
        self.purse = purse
        self._sent: dict[str, int] = {}
        self._charged: dict[str, int] = {}
        self._answered: set[str] = set()

    def take(self, ip: str, packets: int = 1, size: int = MAX_PACKET_BYTES) -> bool:
        """Return whether so many more packets may go to an address, and count them if so.

        Args:
            ip: the address.
            packets: how many.
            size: bytes of each: UDP payload, ``SYN_BYTES`` of a SYN; 0 for what goes to a server of
                this node's own choice.

        """
        if ip in self._answered:
            return True
        sent = self._sent.get(ip, 0)
        crowded = ip not in self._sent and len(self._sent) >= MAX_ADDRESSES
        if crowded or sent + packets > self.limit or not self.charge(ip, packets * size):
            self.refused += packets
            return False
        self._sent[ip] = sent + packets
        return True

    def charge(self, ip: str, size: int) -> bool:
        """Return whether the purse has so many bytes; for what a :class:`SprayGate` counts otherwise."""
        if self.purse is None or ip in self._answered:
            return True
        if not self.purse.take(size):
            return False
        self._charged[ip] = self._charged.get(ip, 0) + size
        return True

    def answered(self, ip: str) -> None:
        """Lift the limit for an address from which something authenticated came."""
        self._answered.add(ip)

    def proven(self, ip: str) -> None:
        """As :meth:`answered`, for a peer that is there beyond doubt: what it got was no stranger's."""
        self._answered.add(ip)
        charged = self._charged.pop(ip, 0)
        if self.purse is not None and charged:
            self.purse.give_back(charged)

    def left(self, ip: str) -> int:
        """Return how many packets may still go to an address that has not answered."""
        return self.limit - self._sent.get(ip, 0)

    def sent(self, ip: str) -> int:
        """Return how many packets were counted for an address before it answered."""
        return self._sent.get(ip, 0)

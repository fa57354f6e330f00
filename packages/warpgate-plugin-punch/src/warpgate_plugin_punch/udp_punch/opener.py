"""Sends small datagrams that open the own NAT, a few times each; PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Address = tuple[str, int]
Packet = tuple[bytes, Address]

LOW_HOPS = 2
"""Routers that a packet crosses which shall open the own NAT and not reach the peer's."""


class Opener:
    """A few repeats of one datagram to several addresses.

    Each address gets it at once, and again after ``repeats_s`` in turn. ``allowed`` is asked before
    each packet; what it refuses is not sent, now or later.

    Args:
        data: the datagram.
        repeats_s: the pauses between the repeats, in seconds.
        allowed: whether one more packet may go to an IP; it counts them.

    Attributes:
        sent: how many packets there were.

    """

    def __init__(
        self, data: bytes, repeats_s: Sequence[float], allowed: Callable[[str], bool]
    ) -> None:
        self.sent = 0
        self._data = data
        self._repeats_s = tuple(repeats_s)
        self._allowed = allowed
        self._due: dict[Address, tuple[float, int]] = {}

    def start(self, now: float) -> None:
        """Begin: nothing is due before :meth:`add`."""

    def add(self, addresses: Iterable[Address], now: float) -> None:
        """Write to these addresses from now on; one that is written to already begins anew."""
        for address in addresses:
            self._due.pop(address, None)
            self._due[address] = now, 0

    def stop(self, address: Address) -> None:
        """Write to an address no more."""
        self._due.pop(address, None)

    def receive(self, data: bytes, addr: Address, now: float) -> None:
        """Take note that something came from an address: it needs no more packets."""
        self.stop(addr)

    def outgoing(self, now: float) -> list[Packet]:
        """Return what is due now, in the order of :meth:`add`."""
        packets: list[Packet] = []
        for address, (at, done) in list(self._due.items()):
            if at > now:
                continue
            if not self._allowed(address[0]):
                del self._due[address]
                continue
            self.sent += 1
            packets.append((self._data, address))
            if done < len(self._repeats_s):
                self._due[address] = now + self._repeats_s[done], done + 1
            else:
                del self._due[address]
        return packets

    def next_timeout(self) -> float | None:
        """Return when something is due next."""
        return min((at for at, _ in self._due.values()), default=None)

    def handle_timeout(self, now: float) -> None:
        """Do nothing: :meth:`outgoing` looks at the time itself."""

    def next_event(self) -> None:
        """Return None: nothing ever happens here."""
        return

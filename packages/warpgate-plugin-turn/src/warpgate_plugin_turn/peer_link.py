"""The way to one peer over an allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from warpgate.net.addresses import Address
from warpgate.net.datagram import Receiver


class Carrier(Protocol):
    """What a link needs of its allocation."""

    relayed: Address

    def send(self, data: bytes, peer: Address) -> bool:
        """Send a datagram to a peer without waiting; False when there is no room."""

    async def writable(self) -> None:
        """Wait for room, or for the end."""

    def unlink(self, link: PeerLink) -> None:
        """Forget a link that has closed."""


class PeerLink:
    """What a relayed :class:`~warpgate.net.udp.UdpPipe` stands on (a ``DatagramLink``)."""

    def __init__(self, carrier: Carrier, peer: Address) -> None:
        self.default: Receiver | None = None
        self.peer = peer
        self.closed = False
        self._carrier = carrier
        self._on_close: list[Callable[[], None]] = []

    @property
    def local(self) -> Address:
        """The relayed address: where the peer sees this end."""
        return self._carrier.relayed

    def send_to(self, data: bytes, addr: Address) -> bool:
        """Send without waiting; False when there is no room."""
        return self.closed or self._carrier.send(data, addr)

    async def writable(self) -> None:
        """Wait for room, or for the end."""
        await self._carrier.writable()

    def route(self, addr: Address, receiver: Receiver) -> None:
        """Give what comes from the peer to a receiver; a link has one peer only."""
        self.default = receiver

    def unroute(self, addr: Address) -> None:
        """End :meth:`route`."""
        self.default = None

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back when the link is closed."""
        self._on_close.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """End :meth:`on_close`."""
        if callback in self._on_close:
            self._on_close.remove(callback)

    def close(self) -> None:
        """Close the link; with an allocation's last link the allocation goes. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.default = None
        callbacks, self._on_close = self._on_close, []
        for callback in callbacks:
            callback()
        self._carrier.unlink(self)

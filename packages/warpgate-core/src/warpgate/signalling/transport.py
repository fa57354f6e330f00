"""What carries sealed signal envelopes between nodes.

A transport moves opaque bytes; it can delay, drop, repeat or reorder them and lie about nothing
else, since envelopes are sealed to the receiver and signed by the sender (``protocol.envelope``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from warpgate.protocol.peer_address import PeerAddress


Reply = Callable[[bytes, "PeerAddress"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SignalOrigin:
    """By which way an envelope came, so that the answer can take the same.

    Attributes:
        transport: the transport's ``name``.
        loopback: it came over the loopback interface or from within this process.
        reply: sends an envelope back by the same way, to the peer whose verified address is given (the
            signal itself told it); raises ``SignallingError`` when that way is gone.
        remote: what the transport calls the other end, for logs.

    """

    transport: str
    loopback: bool
    reply: Reply | None
    remote: str


Deliver = Callable[[bytes, SignalOrigin], object]


@runtime_checkable
class SignalTransport(Protocol):
    """One way of carrying envelopes; ``warpgate_signal_transport`` returns an object of this kind."""

    name: str

    async def start(self, deliver: Deliver) -> None:
        """Begin to receive; must not wait for servers.

        Args:
            deliver: called from the event loop with every envelope (bytes, at most 8 KiB) that
                arrives; returns False when it can't have been meant for this node.

        """

    async def send(self, dest: PeerAddress, envelope: bytes) -> None:
        """Carry an envelope to a peer; return when it is on its way.

        Raises:
            SignallingError: this transport can't reach the peer.

        """

    def brokers(self) -> tuple[str, ...]:
        """Return the brokers at which this node can be reached; they stand in its address."""

    async def close(self) -> None:
        """Stop receiving and free everything; idempotent."""

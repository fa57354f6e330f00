"""Signals within one process, for tests: no socket, no server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from warpgate.errors import SignallingError
from warpgate.signalling.transport import Deliver, SignalOrigin

if TYPE_CHECKING:
    from warpgate.protocol.peer_address import PeerAddress


class MemoryHub:
    """Where the memory transports of several nodes find one another."""

    def __init__(self) -> None:
        self.members: dict[bytes, MemoryTransport] = {}


class MemoryTransport:
    """A member of a :class:`MemoryHub`, known by its node's public key."""

    name = "memory"

    def __init__(self, hub: MemoryHub, key: bytes) -> None:
        self._hub = hub
        self._key = key
        self._deliver: Deliver | None = None

    async def start(self, deliver: Deliver) -> None:
        """Join the hub."""
        self._deliver = deliver
        self._hub.members[self._key] = self

    async def send(self, dest: PeerAddress, envelope: bytes) -> None:
        """Carry an envelope to another member.

        Raises:
            SignallingError: the peer is no member.

        """
        self._carry(dest.key, envelope)

    def _carry(self, key: bytes, envelope: bytes) -> None:
        member = self._hub.members.get(key)
        if member is None:
            raise SignallingError("the peer is not a member of this memory hub")
        asyncio.get_running_loop().call_soon(member.take, envelope, self)

    def take(self, envelope: bytes, sender: MemoryTransport) -> None:
        """Receive an envelope from another member."""

        async def reply(answer: bytes, _dest: PeerAddress) -> None:
            if sender._deliver is None:
                raise SignallingError("the sender has left the memory hub")
            asyncio.get_running_loop().call_soon(sender.take, answer, self)

        if self._deliver is not None:
            self._deliver(envelope, SignalOrigin(self.name, True, reply, "memory"))

    def brokers(self) -> tuple[str, ...]:
        """Return nothing: this transport uses no broker."""
        return ()

    async def close(self) -> None:
        """Leave the hub."""
        self._deliver = None
        if self._hub.members.get(self._key) is self:
            del self._hub.members[self._key]

"""Signals within one process, for tests: no socket, no server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import SignallingError
from .transport import Deliver, SignalOrigin

if TYPE_CHECKING:
    from ..protocol.peer_address import PeerAddress


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
        if member is None or member._deliver is None:
            raise SignallingError("the peer is not a member of this memory hub")

        async def reply(answer: bytes) -> None:
            self._carry_back(answer)

        origin = SignalOrigin(self.name, True, reply, "memory")
        asyncio.get_running_loop().call_soon(member._deliver, envelope, origin)

    def _carry_back(self, answer: bytes) -> None:
        if self._deliver is None:
            raise SignallingError("the sender has left the memory hub")
        asyncio.get_running_loop().call_soon(
            self._deliver, answer, SignalOrigin(self.name, True, None, "memory")
        )

    def brokers(self) -> tuple[str, ...]:
        """Return nothing: this transport uses no broker."""
        return ()

    async def close(self) -> None:
        """Leave the hub."""
        self._deliver = None
        if self._hub.members.get(self._key) is self:
            del self._hub.members[self._key]

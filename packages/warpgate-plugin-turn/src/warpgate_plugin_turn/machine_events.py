"""What an allocation's machine tells its owner; PURE."""

from __future__ import annotations

from dataclasses import dataclass

from warpgate.errors import RelayError
from warpgate.stun.attributes import Address


@dataclass(frozen=True, slots=True)
class Allocated:
    """The server relays for us: what comes to ``relayed`` is ours; it sees us as ``mapped``."""

    relayed: Address
    mapped: Address
    lifetime_s: float


@dataclass(frozen=True, slots=True)
class Permitted:
    """Packets from this IP address come through."""

    ip: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Packets from this IP address can't, or can no longer, come through."""

    ip: str
    error: RelayError


@dataclass(frozen=True, slots=True)
class PeerData:
    """A datagram from a peer that has no channel yet."""

    peer: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Incoming:
    """RFC 6062: a peer has connected to the relayed address."""

    connection_id: int
    peer: Address


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no allocation, or no longer one."""

    error: RelayError


@dataclass(frozen=True, slots=True)
class Closed:
    """The allocation is deleted, or the server does not answer any more."""


Event = Allocated | Permitted | Refused | PeerData | Incoming | Failed | Closed

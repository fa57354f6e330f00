"""What two nodes tell each other about their relays."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from warpgate import ConMsg
from warpgate.net.addresses import Address, is_ip

KNOCK_BYTES: Final = 16
MAX_MAPPED: Final = 8
MAX_CAUSE: Final = 300
FIRST_RELAY_PORT: Final = 1024

Ip = Annotated[str, Field(max_length=45)]
Port = Annotated[int, Field(ge=0, le=65535)]


class RelayFacts(BaseModel):
    """One side's facts.

    ``relay`` is where it can be reached through its relay, with the ``knock`` that opens the way
    there; ``coming``: it is getting one and tells soon; ``stun`` a STUN server next to that relay;
    ``stream`` a relay that takes TCP connections, from the IP addresses in ``lets``; ``mapped`` the IP
    addresses that its own packets come from; ``wants_relay``: it can do nothing without the other side's;
    ``no_udp``: its UDP does not get through; ``cause`` why it has no relay; ``no_servers``: because no server
    is configured; ``unreachable``: it can't write to the other's, or connect to it; ``wants`` the transport
    that the call asked for.
    """

    relay_ip: Ip = ""
    relay_port: Port = 0
    stun_ip: Ip = ""
    stun_port: Port = 0
    stream_ip: Ip = ""
    stream_port: Port = 0
    mapped: Annotated[list[Ip], Field(max_length=MAX_MAPPED)] = []
    knock: Annotated[bytes, Field(max_length=KNOCK_BYTES)] = b""
    coming: bool = False
    wants_relay: bool = False
    no_udp: bool = False
    cause: Annotated[str, Field(max_length=MAX_CAUSE)] = ""
    no_servers: bool = False
    unreachable: bool = False
    wants: Literal["", "tcp", "udp"] = ""
    lets: Annotated[list[Ip], Field(max_length=MAX_MAPPED)] = []

    @property
    def relay(self) -> Address | None:
        """Where the relay is reached; None: there is none."""
        return (self.relay_ip, self.relay_port) if _usable(self.relay_ip, self.relay_port) else None

    @property
    def stun(self) -> Address | None:
        """The STUN server; None: there is none."""
        return (self.stun_ip, self.stun_port) if _usable(self.stun_ip, self.stun_port) else None

    @property
    def stream(self) -> Address | None:
        """Where a TCP connection reaches its relay; None: there is none.

        Relays have no well-known ports (RFC 8656 section 7.2), behind which services stand.
        """
        usable = _usable(self.stream_ip, self.stream_port) and self.stream_port >= FIRST_RELAY_PORT
        return (self.stream_ip, self.stream_port) if usable else None


class TurnOffer(ConMsg):
    """The initiator's facts; comes again when they change."""

    class Payload(RelayFacts):
        """See :class:`RelayFacts`."""


class TurnAnswer(ConMsg):
    """The responder's facts; comes again when they change."""

    class Payload(RelayFacts):
        """See :class:`RelayFacts`."""


def _usable(ip: str, port: int) -> bool:
    return bool(port) and is_ip(ip) and "%" not in ip

"""Port Control Protocol: MAP and ANNOUNCE as bytes (RFC 6887); PURE."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from warpgate.net.constants import TCP
from warpgate_plugin_direct.port_mapping.model import MappingError

PORT: Final = 5351
CLIENT_PORT: Final = 5350
"""Where routers announce that they have restarted (section 14.1.1)."""
VERSION: Final = 2
ANNOUNCE: Final = 0
MAP: Final = 1
HEADER_BYTES: Final = 24
MAP_BYTES: Final = 60
NONCE_BYTES: Final = 12
RESPONSE: Final = 0x80
SUCCESS: Final = 0
UNSUPP_VERSION: Final = 1
NOT_AUTHORIZED: Final = 2
UNSUPP_OPCODE: Final = 4

RESULTS: Final = {
    UNSUPP_VERSION: "does not speak this version",
    NOT_AUTHORIZED: "not authorized",
    3: "malformed request",
    UNSUPP_OPCODE: "does not support this operation",
    5: "unsupported option",
    6: "malformed option",
    7: "its own network is down",
    8: "no resources left",
    9: "unsupported transport",
    10: "this host's quota is used up",
    11: "can't give that external port or address",
    12: "the request's address is not where it came from: a NAT is between",
    13: "too many remote peers",
}
_CONFLICT: Final = 11
_PROTOCOL: Final = {True: 6, False: 17}  # IANA protocol numbers


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """A mapping that the router granted; ``external_ip`` is None when it has none to give."""

    epoch: int
    lease_s: int
    external_ip: str | None
    external_port: int


@dataclass(frozen=True, slots=True)
class EpochAnswer:
    """The router's seconds since it lost its state."""

    epoch: int


def pack_map(
    client_ip: str,
    nonce: bytes,
    transport: int,
    internal_port: int,
    external_port: int = 0,
    lease_s: int = 0,
) -> bytes:
    """Return a MAP request (sections 7.1, 11.1); a lease of 0 removes the mapping.

    Args:
        client_ip: the local address that the datagram comes from.
        nonce: 12 bytes, the same for all that concerns one mapping.
        transport: ``TCP`` or ``UDP``.
        internal_port, external_port: the external one is a wish; 0 for any.
        lease_s: whole seconds.

    """
    wish = "::" if ":" in client_ip else "::ffff:0.0.0.0"
    return _header(MAP, client_ip, lease_s) + struct.pack(
        "!12sB3xHH16s",
        nonce,
        _PROTOCOL[transport == TCP],
        internal_port,
        external_port,
        ipaddress.IPv6Address(wish).packed,
    )


def pack_announce(client_ip: str) -> bytes:
    """Return an ANNOUNCE request: is a PCP server there? (section 14.1)."""
    return _header(ANNOUNCE, client_ip, 0)


def parse_map(data: bytes, nonce: bytes, transport: int, internal_port: int) -> MapAnswer | None:
    """Return what an answer to that MAP request says; None when it is not one.

    Raises:
        MappingError: the router refused.

    """
    head = _response(data, MAP)
    if head is None:
        return None
    result, lease_s, epoch = head
    if result and len(data) < MAP_BYTES:
        raise _refusal(result)
    if len(data) < MAP_BYTES:
        return None
    echoed, protocol, internal, external, address = struct.unpack_from(
        "!12sB3xHH16s", data, HEADER_BYTES
    )
    if (echoed, protocol, internal) != (nonce, _PROTOCOL[transport == TCP], internal_port):
        return None
    if result:
        raise _refusal(result)
    return MapAnswer(epoch, lease_s, _unmapped(address), external)


def parse_announce(data: bytes) -> EpochAnswer | None:
    """Return what an answer to ANNOUNCE, or an unsolicited one, says; None when it is not one.

    A server that knows no ANNOUNCE but answers as PCP does is one all the same.

    Raises:
        MappingError: the router speaks no PCP.

    """
    head = _response(data, ANNOUNCE)
    if head is None:
        return None
    if head[0] not in (SUCCESS, UNSUPP_OPCODE):
        raise _refusal(head[0])
    return EpochAnswer(head[2])


def _header(opcode: int, client_ip: str, lease_s: int) -> bytes:
    return struct.pack("!BBHI16s", VERSION, opcode, 0, lease_s, _packed(client_ip))


def _response(data: bytes, opcode: int) -> tuple[int, int, int] | None:
    """Return (result, lifetime, epoch) of a response (section 7.2)."""
    if len(data) >= 4 and data[0] != VERSION and data[1] & RESPONSE:
        # Section 9: an old server answers in its own version, NAT-PMP's is 0.
        raise MappingError(
            "speaks NAT-PMP only" if data[0] == 0 else f"speaks PCP version {data[0]} only",
            UNSUPP_VERSION,
        )
    if len(data) < HEADER_BYTES or len(data) % 4 or data[1] != RESPONSE | opcode:
        return None
    result, lease_s, epoch = struct.unpack_from("!xxxBII", data)
    return result, lease_s, epoch


def _refusal(result: int) -> MappingError:
    words = RESULTS.get(result, "unknown result")
    return MappingError(f"{words} ({result})", result, conflict=result == _CONFLICT)


def _packed(ip: str) -> bytes:
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _unmapped(packed: bytes) -> str | None:
    address = ipaddress.IPv6Address(packed)
    plain: ipaddress.IPv4Address | ipaddress.IPv6Address = address.ipv4_mapped or address
    return None if plain.is_unspecified else str(plain)

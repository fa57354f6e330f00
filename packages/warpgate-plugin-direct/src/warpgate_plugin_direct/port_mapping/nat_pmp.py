"""NAT Port Mapping Protocol as bytes (RFC 6886); PURE."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from warpgate.net.constants import TCP
from warpgate_plugin_direct.port_mapping.model import MappingError

PORT: Final = 5351
VERSION: Final = 0
EXTERNAL_ADDRESS: Final = 0
MAP_UDP: Final = 1
MAP_TCP: Final = 2
RESPONSE: Final = 0x80
ADDRESS_BYTES: Final = 12
MAP_BYTES: Final = 16
UNSUPPORTED_VERSION: Final = 1

RESULTS: Final = {
    UNSUPPORTED_VERSION: "does not speak NAT-PMP",
    2: "not authorized",
    3: "its own network is down",
    4: "no resources left",
    5: "does not support this operation",
}


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The router's external address, None when it has none, and its seconds since boot."""

    epoch: int
    external_ip: str | None


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """A mapping that the router granted."""

    epoch: int
    external_port: int
    lease_s: int


def pack_address_request() -> bytes:
    """Return a request for the external address (section 3.2)."""
    return bytes((VERSION, EXTERNAL_ADDRESS))


def pack_map(transport: int, internal_port: int, external_port: int = 0, lease_s: int = 0) -> bytes:
    """Return a request for a mapping (section 3.3); a lease of 0 removes it (3.4).

    Args:
        transport: ``TCP`` or ``UDP``.
        internal_port, external_port: the external one is a wish; 0 for any.
        lease_s: whole seconds.

    """
    return struct.pack(
        "!BBHHHI", VERSION, _opcode(transport), 0, internal_port, external_port, lease_s
    )


def parse_address(data: bytes) -> AddressAnswer | None:
    """Return the answer to :func:`pack_address_request`, or an announcement; None: it is neither.

    Raises:
        MappingError: the router refused.

    """
    epoch = _response(data, EXTERNAL_ADDRESS, ADDRESS_BYTES)
    if epoch is None:
        return None
    address = ipaddress.IPv4Address(data[8:12])
    return AddressAnswer(epoch, None if address.is_unspecified else str(address))


def parse_map(data: bytes, transport: int, internal_port: int) -> MapAnswer | None:
    """Return the answer to that :func:`pack_map`; None when it is not one.

    Raises:
        MappingError: the router refused.

    """
    # A refusal names the port too, where it is long enough to do so.
    if len(data) >= 10 and data[1] != RESPONSE and data[8:10] != internal_port.to_bytes(2, "big"):
        return None
    epoch = _response(data, _opcode(transport), MAP_BYTES)
    if epoch is None:
        return None
    external, lease_s = struct.unpack_from("!HI", data, 10)
    return MapAnswer(epoch, external, lease_s)


def _opcode(transport: int) -> int:
    return MAP_TCP if transport == TCP else MAP_UDP


def _response(data: bytes, opcode: int, size: int) -> int | None:
    """Return the epoch of a response of success."""
    if len(data) < 4 or not data[1] & RESPONSE:
        return None
    if data[0] != VERSION:
        raise MappingError(RESULTS[UNSUPPORTED_VERSION], UNSUPPORTED_VERSION)
    result = int.from_bytes(data[2:4], "big")
    if data[1] != RESPONSE | opcode:
        return None
    if result:
        raise MappingError(f"{RESULTS.get(result, 'unknown result')} ({result})", result)
    return int.from_bytes(data[4:8], "big") if len(data) >= size else None

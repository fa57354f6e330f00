"""Constants of the public contract; their values equal aionetiface's, and they compare by value."""

from __future__ import annotations

import socket
from enum import IntEnum
from typing import Any

IP4: int = int(socket.AF_INET)
IP6: int = int(socket.AF_INET6)

NIC_BIND: int = 1
EXT_BIND: int = 2
LOOPBACK_BIND: int = 5

TCP: int = int(socket.SOCK_STREAM)
UDP: int = int(socket.SOCK_DGRAM)

SUB_ALL: list[Any] = [None, None]

ROUTE_TYPES: tuple[int, ...] = (NIC_BIND, EXT_BIND, LOOPBACK_BIND)
PHASES: tuple[str, ...] = ("direct", "punch", "spray", "relay")


class NATType(IntEnum):
    """The seven classic NAT types, by which older systems name a NAT's behaviour."""

    OPEN = 1
    SYMMETRIC_UDP_FIREWALL = 2
    FULL_CONE = 3
    RESTRICTED = 4
    PORT_RESTRICTED = 5
    SYMMETRIC = 6
    BLOCKED = 7


class DeltaType(IntEnum):
    """How a NAT picks the external port from the internal one."""

    NOT_APPLICABLE = 1
    EQUAL = 2
    PRESERVING = 3
    INDEPENDENT = 4
    DEPENDENT = 5
    RANDOM = 6


def af_name(af: int) -> str:
    """Return ``IPv4`` or ``IPv6`` for an address family."""
    return {IP4: "IPv4", IP6: "IPv6"}.get(int(af), f"family {int(af)}")


def route_type_name(route_type: int) -> str:
    """Return the constant's name for a route type."""
    names = {NIC_BIND: "NIC_BIND", EXT_BIND: "EXT_BIND", LOOPBACK_BIND: "LOOPBACK_BIND"}
    return names.get(int(route_type), f"route type {int(route_type)}")


def transport_name(transport: object) -> str:
    """Return ``"tcp"`` or ``"udp"`` for a transport given by name or by constant.

    Raises:
        ValueError: the value is neither.

    """
    if isinstance(transport, str):
        if transport.lower() in ("tcp", "udp"):
            return transport.lower()
    elif transport == TCP:
        return "tcp"
    elif transport == UDP:
        return "udp"
    raise ValueError(f'transport {transport!r} is neither "tcp" nor "udp"; name one of the two')

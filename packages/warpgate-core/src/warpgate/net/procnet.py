"""Parsers for what Linux tells about addresses and routes under ``/proc/net``; no I/O.

Lines that don't have the documented form are skipped: a kernel may add columns and kinds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

# include/uapi/linux/if_addr.h
IFA_F_TEMPORARY = 0x01
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40

# include/uapi/linux/route.h
RTF_UP = 0x0001
RTF_GATEWAY = 0x0002
RTF_REJECT = 0x0200


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route: its interface, its gateway (None: on link) and its metric (less is better)."""

    interface: str
    gateway: str | None
    metric: int


def parse_if_inet6(text: str) -> dict[tuple[str, str], int]:
    """Parse ``if_inet6``.

    Returns:
        The flags (``IFA_F_…``) of each (interface, address without scope).

    """
    flags: dict[tuple[str, str], int] = {}
    for line in text.splitlines():
        fields = line.split()
        try:
            address = str(IPv6Address(bytes.fromhex(fields[0])))
            flags[(fields[5], address)] = int(fields[4], 16)
        except (IndexError, ValueError):
            continue
    return flags


def parse_route(text: str, byteorder: str = sys.byteorder) -> list[DefaultRoute]:
    """Parse ``route``: the default routes of IPv4, the best first.

    Args:
        text: the file's text.
        byteorder: of the machine that wrote it, ``"little"`` or ``"big"``.

    """
    found: list[DefaultRoute] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        try:
            flags, metric = int(fields[3], 16), int(fields[6])
            raw = bytes.fromhex(fields[2])
            default = int(fields[1], 16) == 0 and int(fields[7], 16) == 0
            gateway = str(IPv4Address(raw[::-1] if byteorder == "little" else raw))
        except (IndexError, ValueError):
            continue
        if default and flags & RTF_UP and not flags & RTF_REJECT:
            found.append(DefaultRoute(fields[0], gateway if flags & RTF_GATEWAY else None, metric))
    return sorted(found, key=lambda route: route.metric)


def parse_ipv6_route(text: str) -> list[DefaultRoute]:
    """Parse ``ipv6_route``: the default routes of IPv6, the best first."""
    found: list[DefaultRoute] = []
    for line in text.splitlines():
        fields = line.split()
        try:
            default = int(fields[0], 16) == 0 and int(fields[1], 16) == 0
            gateway = str(IPv6Address(bytes.fromhex(fields[4])))
            metric, flags = int(fields[5], 16), int(fields[8], 16)
            name = fields[9]
        except (IndexError, ValueError):
            continue
        if default and flags & RTF_UP and not flags & RTF_REJECT:
            found.append(DefaultRoute(name, gateway if flags & RTF_GATEWAY else None, metric))
    return sorted(found, key=lambda route: route.metric)

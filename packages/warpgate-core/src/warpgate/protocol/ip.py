"""Scope and class of IP addresses, as text; decides what a peer's word may make us dial.

Other libraries' notions of "private" change between versions, so the networks stand here.
Anything that is no IP address is of no class: every predicate says False.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

IPAddress = IPv4Address | IPv6Address

# RFC 6890 and its registry. Addresses of documentation (RFC 5737, RFC 3849) count as public: they
# belong to nobody, and test networks use them as their internet.
_PRIVATE: Final = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",  # RFC 1918
            "172.16.0.0/12",
            "192.168.0.0/16",
            "192.0.0.0/24",  # RFC 6890: a host's own end of DS-Lite and 464XLAT
            "100.64.0.0/10",  # RFC 6598: behind a carrier's NAT
            "169.254.0.0/16",  # RFC 3927: link-local
            "198.18.0.0/15",  # RFC 2544: benchmarks, and some VPN clients' inside
            "fc00::/7",  # RFC 4193: unique local
            "fe80::/10",  # RFC 4291: link-local
            "fec0::/10",  # RFC 3879: site-local, deprecated
        ),
    )
)
_NOT_UNICAST: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # RFC 791: this network
            "127.0.0.0/8",  # loopback
            "192.88.99.0/24",  # RFC 7526: 6to4 relays, deprecated
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # RFC 2928: protocol assignments, Teredo among them
        ),
    )
)
_GLOBAL6: Final = IPv6Network("2000::/3")  # RFC 4291: global unicast
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")  # RFC 3056


def split_scope(ip: str) -> tuple[str, str | None]:
    """Split ``fe80::1%eth0`` into ``("fe80::1", "eth0")``; the scope is None when there is none."""
    bare, percent, scope = ip.partition("%")
    return bare, scope if percent and scope else None


def parse_ip(ip: str) -> IPAddress | None:
    """Return the address without its scope, or None when the text is no IP address."""
    try:
        return ip_address(split_scope(ip)[0])
    except ValueError:
        return None


def is_loopback(ip: str) -> bool:
    """Return whether the address is this host itself (127.0.0.0/8, ::1)."""
    address = _effective(ip)
    return address is not None and address.is_loopback


def is_link_local(ip: str) -> bool:
    """Return whether the address is valid on its link only (169.254.0.0/16, fe80::/10)."""
    address = _effective(ip)
    return address is not None and address.is_link_local


def is_private(ip: str) -> bool:
    """Return whether the address is valid in its site only: RFC 1918, 6598, 4193 and link-local.

    Loopback is not private, and neither is multicast: see the other predicates.
    """
    address = _effective(ip)
    return address is not None and any(address in network for network in _PRIVATE)


def is_public(ip: str) -> bool:
    """Return whether the address is a unicast one that is routed everywhere.

    An IPv6 address that carries an IPv4 one (6to4, NAT64, IPv4-mapped) is what the latter is.
    """
    address = _effective(ip)
    if address is None or any(address in network for network in (*_PRIVATE, *_NOT_UNICAST)):
        return False
    return isinstance(address, IPv4Address) or address in _GLOBAL6


def _effective(ip: str) -> IPAddress | None:
    """Return the address that packets end up at: an embedded IPv4 address where there is one."""
    address = parse_ip(ip)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(address.packed[12:])
        if address in _SIX_TO_FOUR:
            return IPv4Address(address.packed[2:6])
    return address

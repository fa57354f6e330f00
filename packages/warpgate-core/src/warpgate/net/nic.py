"""The network interfaces of this machine, ranked by how likely they lead somewhere."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import psutil

from warpgate.net.addresses import canonical_ip
from warpgate.net.constants import IP4, IP6, af_name
from warpgate.net.procnet import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    DefaultRoute,
    parse_if_inet6,
    parse_ipv6_route,
    parse_route,
)
from warpgate.net.route import Route
from warpgate.protocol.ip import is_link_local, is_loopback, is_public, split_scope

# Names that container, VM and VPN software gives its interfaces. The name only ranks: in a
# container the one real way out may well be a veth.
_VIRTUAL_NAME = re.compile(
    r"(docker|br-|veth|virbr|vnet|vmnet|vboxnet|lxc|lxd|cni|flannel|cali|podman|tun|tap|utun|wg|ppp|"
    r"tailscale|zt|ham|nebula|ipsec|gif|stf|awdl|llw|dummy|vEthernet|VMware|VirtualBox|Hyper-V|"
    r"Tailscale|ZeroTier|WireGuard|OpenVPN|TAP-)"
)

_LINUX = platform.system() == "Linux"

# Documentation addresses (RFC 5737, RFC 3849): routed like any other, and nothing is sent there.
_ELSEWHERE = {IP4: "192.0.2.1", IP6: "2001:db8::1"}


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of an interface.

    Attributes:
        af: the family, ``IP4`` or ``IP6``.
        ip: the address; a link-local IPv6 one carries its scope (``fe80::1%eth0``).
        prefix: the length of its network's prefix in bits.
        scope: ``"loopback"``, ``"link"``, ``"private"`` or ``"global"``.
        temporary: a privacy address (RFC 8981).
        deprecated: still valid, but not for new connections (RFC 4862).

    """

    af: int
    ip: str
    prefix: int
    scope: str
    temporary: bool = False
    deprecated: bool = False

    def holds(self, ip: str) -> bool:
        """Return whether ``ip`` (no scope is looked at) is in this address's network."""
        network = ip_network(f"{split_scope(self.ip)[0]}/{self.prefix}", strict=False)
        return ip_address(split_scope(ip)[0]) in network


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        name: the system's name for it.
        index: the system's number for it.
        addresses: its usable addresses, the preferred ones first.
        virtual: it looks like one of a container, a virtual machine or a VPN.
        loopback: it leads to this machine only.
        gateways: the families that have a default route here, each with the gateway's address
            (None: on link, or not known).
        metric: of the best default route; less is better.

    """

    name: str
    index: int = 0
    addresses: tuple[InterfaceAddress, ...] = ()
    virtual: bool = False
    loopback: bool = False
    gateways: dict[int, str | None] = field(default_factory=dict, hash=False)
    metric: int = 0

    def supported(self) -> list[int]:
        """Return the families that this interface has a usable address of."""
        return [af for af in (IP4, IP6) if any(address.af == af for address in self.addresses)]

    def local_ip(self, af: int) -> str | None:
        """Return the address by which the LAN knows this machine, or None.

        For IPv6 a unique local address comes first, then the link-local one (with its scope).
        """
        if af == IP6:
            return self._first(af, ["private", "link", "global", "loopback"])
        own = self._of(af)
        primary = [address for address in own if address.scope != "link"] or own
        return primary[0].ip if primary else None

    def global_ip(self, af: int) -> str | None:
        """Return a globally routable address that this interface bears itself, or None."""
        return self._first(af, ["global"])

    def on_link(self, ip: str) -> bool:
        """Return whether the address is on a network that this interface is directly on."""
        bare, scope = split_scope(ip)
        try:
            af = IP6 if ip_address(bare).version == 6 else IP4
        except ValueError:
            return False
        if scope is not None and scope not in (self.name, str(self.index)):
            return False
        return any(address.holds(bare) for address in self._of(af))

    def has_default(self, af: int) -> bool:
        """Return whether the family's packets to the internet can leave by this interface."""
        return af in self.gateways

    def route(self, af: int, ip: str | None = None) -> Route:
        """Return a route of the family by this interface; ``bind()`` ties it to a local address.

        Args:
            af: ``IP4`` or ``IP6``.
            ip: the local address to use; None picks one that suits the destination.

        Raises:
            ValueError: the interface has no address of the family.

        """
        if af not in self.supported():
            raise ValueError(f"{self.name} has no {af_name(af)} address")
        return Route(self, af, ip=ip)

    def _of(self, af: int) -> list[InterfaceAddress]:
        return [address for address in self.addresses if address.af == af]

    def _first(self, af: int, scopes: list[str]) -> str | None:
        ranked = sorted(
            (a for a in self._of(af) if a.scope in scopes),
            key=lambda a: (scopes.index(a.scope), a.deprecated, a.temporary),
        )
        return ranked[0].ip if ranked else None


def scope_of(ip: str) -> str:
    """Return ``"loopback"``, ``"link"``, ``"private"`` or ``"global"``."""
    if is_loopback(ip):
        return "loopback"
    if is_link_local(ip):
        return "link"
    return "global" if is_public(ip) else "private"


def list_interfaces() -> list[Interface]:
    """Return the interfaces that are up and have an address, the most promising first.

    Those with a default route come first, physical before virtual ones, those with nothing but
    link-local addresses last. The loopback interface is in the list only when there is no other.
    """
    found = _read_interfaces()
    others = [interface for interface in found if not interface.loopback]
    return sorted(others, key=_rank) if others else [i for i in found if i.loopback]


def loopback_interface() -> Interface:
    """Return the loopback interface."""
    for interface in _read_interfaces():
        if interface.loopback:
            return interface
    ips = [(IP4, "127.0.0.1", 8)] + ([(IP6, "::1", 128)] if socket.has_ipv6 else [])
    addresses = tuple(InterfaceAddress(af, ip, prefix, "loopback") for af, ip, prefix in ips)
    return Interface("loopback", 0, addresses, loopback=True)


def own_ips() -> set[str]:
    """Return every address of this machine; a link-local one both with its scope and without."""
    ips = {address.ip for interface in _read_interfaces() for address in interface.addresses}
    return ips | {split_scope(ip)[0] for ip in ips} | {"127.0.0.1", "::1"}


def _rank(interface: Interface) -> tuple[bool, bool, bool, int, int]:
    only_link_local = all(address.scope == "link" for address in interface.addresses)
    no_default = not interface.gateways
    return no_default, interface.virtual, only_link_local, interface.metric, interface.index


def _read_interfaces() -> list[Interface]:
    stats = psutil.net_if_stats()
    flags = parse_if_inet6(_proc("if_inet6"))
    routes = _default_routes()
    found: list[Interface] = []
    for name, entries in psutil.net_if_addrs().items():
        if name in stats and not stats[name].isup:
            continue
        addresses = [a for entry in entries if (a := _address(name, entry, flags)) is not None]
        if not addresses:
            continue
        addresses.sort(key=lambda a: (a.af, a.deprecated, a.temporary))
        defaults = {af: routes(af, name, addresses) for af in (IP4, IP6)}
        best = {af: route for af, route in defaults.items() if route is not None}
        found.append(
            Interface(
                name=name,
                index=_index(name, addresses),
                addresses=tuple(addresses),
                virtual=_looks_virtual(name),
                loopback=all(address.scope == "loopback" for address in addresses),
                gateways={af: route.gateway for af, route in best.items()},
                metric=min((route.metric for route in best.values()), default=0),
            )
        )
    return found


def _address(name: str, entry: Any, flags: dict[tuple[str, str], int]) -> InterfaceAddress | None:
    if entry.family not in (IP4, IP6):
        return None
    af = int(entry.family)
    bare, scope = split_scope(entry.address)
    try:
        bare = str(ip_address(bare))
        prefix = _prefix(af, entry.netmask)
    except ValueError:
        return None
    bits = flags.get((name, bare), 0)
    if bits & (IFA_F_TENTATIVE | IFA_F_DADFAILED):
        return None  # it can't be bound yet, or never
    ip = canonical_ip(f"{bare}%{scope or name}") if af == IP6 and is_link_local(bare) else bare
    return InterfaceAddress(
        af=af,
        ip=ip,
        prefix=prefix,
        scope=scope_of(bare),
        temporary=bool(bits & IFA_F_TEMPORARY),
        deprecated=bool(bits & IFA_F_DEPRECATED),
    )


def _prefix(af: int, netmask: str | None) -> int:
    width = 128 if af == IP6 else 32
    if not netmask:
        return width
    if netmask.isdecimal():
        return int(netmask)
    return int(ip_address(split_scope(netmask)[0])).bit_count()


def _index(name: str, addresses: list[InterfaceAddress]) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # Windows: psutil's names are not the system's; the scopes have the number
        scopes = [split_scope(address.ip)[1] for address in addresses]
        return next((int(scope) for scope in scopes if scope and scope.isdecimal()), 0)


def _looks_virtual(name: str) -> bool:
    if _VIRTUAL_NAME.match(name) is not None:
        return True
    return _LINUX and Path(f"/sys/class/net/{name}/tun_flags").exists()


def _default_routes() -> Callable[[int, str, list[InterfaceAddress]], DefaultRoute | None]:
    """Return a function of (family, interface, its addresses) that finds the default route."""
    if _LINUX:
        tables = {IP4: parse_route(_proc("route")), IP6: parse_ipv6_route(_proc("ipv6_route"))}

        def by_table(af: int, name: str, addresses: list[InterfaceAddress]) -> DefaultRoute | None:
            own = [route for route in tables[af] if route.interface == name]
            has_address = any(a.af == af and a.scope != "loopback" for a in addresses)
            return own[0] if own and has_address else None

        return by_table
    sources = {af: _default_source(af) for af in (IP4, IP6)}

    def by_source(af: int, name: str, addresses: list[InterfaceAddress]) -> DefaultRoute | None:
        mine = any(split_scope(a.ip)[0] == sources[af] for a in addresses if a.af == af)
        return DefaultRoute(name, None, 0) if mine else None

    return by_source


def _default_source(af: int) -> str | None:
    """Return the address that packets to the internet would bear; sends nothing."""
    try:
        with socket.socket(af, socket.SOCK_DGRAM) as sock:
            sock.connect((_ELSEWHERE[af], 9))
            return split_scope(str(sock.getsockname()[0]))[0]
    except OSError:
        return None


def _proc(name: str) -> str:
    """Return the text of a /proc/net file of this thread's network namespace; "" without one."""
    for folder in ("/proc/thread-self/net", "/proc/net"):
        try:
            return Path(folder, name).read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
    return ""

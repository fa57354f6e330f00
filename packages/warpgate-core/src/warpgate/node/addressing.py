"""A node's listening sockets and the signed address that tells peers of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from warpgate.errors import ConfigError
from warpgate.net.constants import IP4, IP6
from warpgate.net.nic import Interface, list_interfaces, loopback_interface
from warpgate.protocol.ip import is_loopback
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord

if TYPE_CHECKING:
    from warpgate.node.node import Node
    from warpgate.protocol.peer_address import PeerAddress

LOOPBACK_HOSTS = ((IP4, "127.0.0.1"), (IP6, "::1"))


def check_place(
    ifs: object, ip: object, port: object
) -> tuple[Sequence[Interface | str] | None, str | None, int | None]:
    """Check the kinds of what a node is to listen on.

    Raises:
        ConfigError: names the argument, what is expected and how to mend it.

    """
    if isinstance(ifs, str):
        raise ConfigError(f"ifs={ifs!r} is one string; write ifs=[{ifs!r}]")
    if ifs is not None and (
        not isinstance(ifs, Sequence) or not all(isinstance(nic, Interface | str) for nic in ifs)
    ):
        raise ConfigError(f"ifs={ifs!r}; expected a list of interfaces or their names, or None")
    if ip is not None and not isinstance(ip, str):
        raise ConfigError(f"ip={ip!r}; expected an address as text, such as {str(ip)!r}, or None")
    if port is not None and (
        not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535
    ):
        raise ConfigError(f"port={port!r}; expected a whole number from 0 to 65535, or None")
    return ifs, ip, port


def choose_interfaces(
    ifs: Sequence[Interface | str] | None, ip: str | None
) -> tuple[list[Interface], str | None]:
    """Return the interfaces that a node uses, best first, and the one address it is bound to.

    Args:
        ifs: interfaces or their names, None for all.
        ip: the one address to listen on, None for all; unspecified addresses mean all.

    Raises:
        ConfigError: an interface or the address does not exist on this machine.

    """
    if ip is not None:
        try:
            if ipaddress.ip_address(ip.split("%")[0]).is_unspecified:
                ip = None
        except ValueError:
            raise ConfigError(f"ip={ip!r} is not an IP address") from None
    found = [*list_interfaces()]
    loopback = loopback_interface()
    if all(nic.name != loopback.name for nic in found):
        found.append(loopback)
    if ifs is not None:
        chosen = [_find(entry, found) for entry in ifs]
        if not chosen:
            raise ConfigError("ifs is empty; name at least one interface, or None for all")
    elif ip is not None:
        chosen = [nic for nic in found if ip in {address.ip for address in nic.addresses}]
        if not chosen and is_loopback(ip):
            chosen = [loopback]
        if not chosen:
            have = ", ".join(address.ip for nic in found for address in nic.addresses)
            raise ConfigError(f"ip={ip!r} is no address of this machine; it has {have}")
    else:
        chosen = [nic for nic in found if nic is not loopback] or [loopback]
    return chosen, ip


def _find(entry: Interface | str, found: Sequence[Interface]) -> Interface:
    if isinstance(entry, Interface):
        return entry
    for nic in found:
        if nic.name == entry:
            return nic
    known = ", ".join(nic.name for nic in found)
    raise ConfigError(f"interface {entry!r} does not exist or is down; this machine has {known}")


def listening_hosts(nics: Sequence[Interface], ip: str | None) -> list[tuple[int, str]]:
    """Return (family, ip) of every address to listen on, loopback included unless ``ip`` is given."""
    if ip is not None:
        return [(IP6 if ":" in ip else IP4, ip)]
    hosts = [(address.af, address.ip) for nic in nics for address in nic.addresses]
    own = {address.ip for address in loopback_interface().addresses}
    hosts += [host for host in LOOPBACK_HOSTS if host[1] in own]
    return list(dict.fromkeys(hosts))


Facts = Callable[[Interface, Endpoint], Endpoint]
"""Adds to an endpoint of an interface what is known of its NAT."""


def interface_records(
    nics: Sequence[Interface],
    ip: str | None,
    port: int,
    facts: Facts = lambda _nic, endpoint: endpoint,
) -> tuple[list[Interface], list[InterfaceRecord]]:
    """Return the interfaces that stand in the address, in its order, with their records."""
    used: list[Interface] = []
    records: list[InterfaceRecord] = []
    for nic in nics:
        endpoints = []
        for af in nic.supported():
            local = ip if ip is not None else nic.local_ip(af)
            if local is None or (":" in local) != (af == IP6):
                continue
            public = None if ip is not None else nic.global_ip(af)
            bare = local.split("%")[0]
            ext_ip = public if public != bare else None
            endpoints.append(facts(nic, Endpoint(af, bare, port, ext_ip, None, 0, 0)))
        if endpoints:
            used.append(nic)
            records.append(InterfaceRecord(nic.index, tuple(endpoints)))
    return used, records


def direct_targets(
    local: PeerAddress, peer: PeerAddress, nics: Sequence[Interface], loopback: Interface
) -> list[tuple[Interface, int, str, int]]:
    """Return the ways to a peer's listening port for direct signals, best first."""
    from warpgate.traversal.combine import scoped
    from warpgate.traversal.paths import find_paths

    targets: dict[tuple[str, int], tuple[Interface, int, str, int]] = {}
    for path in find_paths(local, peer, nics)[0]:
        nic = loopback if is_loopback(path.ip) else nics[path.src_index]
        ip = scoped(path.ip, nic)
        targets.setdefault((ip, path.port), (nic, path.af, ip, path.port))
    return list(targets.values())


def signal_targets(node: Node, peer: PeerAddress) -> list[tuple[Interface, int, str, int]]:
    """Return the ways by which a node may send a peer direct signals, best first."""
    from warpgate.traversal.policy import refuse_dial

    targets = direct_targets(node.peer_address, peer, node.ifs, node.loopback)
    if node.traversal.has_called(peer.node_id):
        return targets
    # We only answer this peer: its address is its word alone (WIRE section 5).
    own, near = node.own_ips(), node.traversal.is_called_over_loopback(peer.node_id)
    allowed = [t for t in targets if refuse_dial(t[2], node.ifs, own, near) is None]
    if len(allowed) < len(targets):
        node.stats.count("dials_refused", len(targets) - len(allowed))
    traversal = node.traversal
    if not traversal.limits.is_stranger(peer.node_id):
        return allowed
    paid = [t for t in allowed if is_loopback(t[2]) or traversal.stranger_bytes.pay_dial()]
    if len(paid) < len(allowed):
        node.stats.count("signal_dials_limited", len(allowed) - len(paid))
    return paid

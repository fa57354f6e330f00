"""From what is known of a NAT to what a node's address says of it; PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from warpgate.nat.behaviour import Mapping
from warpgate.net.constants import IP4, IP6, NATType
from warpgate.protocol.ip import is_link_local, is_loopback, parse_ip, split_scope

if TYPE_CHECKING:
    from warpgate.nat.report import PathReport
    from warpgate.protocol.peer_address import Endpoint

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """How servers see one listening socket.

    Attributes:
        external: its external address.
        agreed: most of several servers saw that one; None: only one server was asked.

    """

    external: Address
    agreed: bool | None = None


def usable_external(af: int, address: Address | None) -> bool:
    """Return whether an address that a server names can be some host's in the internet."""
    if address is None or not 0 < address[1] < 65536:
        return False
    ip = parse_ip(address[0])
    if ip is None or (IP6 if ip.version == 6 else IP4) != af or ip.is_multicast:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return False
    text = str(ip)
    return not (ip.is_unspecified or text == "255.255.255.255" or is_loopback(text)
                or is_link_local(text))  # fmt: skip


def agree(answers: Iterable[tuple[Address, Address]]) -> Seen | None:
    """Return what most servers see: one of several that lies, or is mistaken, is outvoted.

    Args:
        answers: (server, mapped address), the quickest first; one answer of each server's ip counts.

    """
    by_server: dict[str, Address] = {}
    for server, mapped in answers:
        by_server.setdefault(server[0], mapped)
    if not by_server:
        return None
    external, times = Counter(by_server.values()).most_common(1)[0]
    if len(by_server) == 1:
        return Seen(external)
    return Seen(external, times * 2 > len(by_server))


def keeps_mapping(path: PathReport | None, seen: Seen | None) -> bool:
    """Return whether the socket has one external port for all destinations."""
    if seen is not None and seen.agreed is False:
        return False
    if path is None or path.mapping is None:
        return seen is not None and seen.agreed is True
    return path.mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT)


def needs_keeping(path: PathReport | None, seen: Seen | None) -> bool:
    """Return whether a NAT or a firewall holds a mapping that would end."""
    if not keeps_mapping(path, seen):
        return False
    is_open = path is not None and path.nat_type == NATType.OPEN
    return not is_open


def with_facts(
    endpoint: Endpoint,
    path: PathReport | None,
    seen: Seen | None,
    forwarded: Address | None,
) -> Endpoint:
    """Add to an endpoint what is known of its NAT.

    Args:
        endpoint: of a family of an interface; its ``ext_ip`` is what the interface itself bears.
        path: the NAT's behaviour.
        seen: the listening socket, as servers see it.
        forwarded: the external address that a router forwards to it.

    """
    nat = 0 if path is None else int(path.nat_type or 0)
    delta = 0 if path is None else int(path.delta_type or 0)
    if forwarded is not None:
        return replace(endpoint, ext_ip=forwarded[0], ext_port=forwarded[1],
                       nat=int(NATType.FULL_CONE), delta=delta)  # fmt: skip
    ext_ip, ext_port = endpoint.ext_ip, None
    if seen is not None:
        ext_ip = seen.external[0]
        ext_port = seen.external[1] if keeps_mapping(path, seen) else None
    elif path is not None and path.external:
        ext_ip = next((ip for ip in path.external if usable_external(endpoint.af, (ip, 1))), ext_ip)
    if ext_ip is not None:
        ext_ip = split_scope(ext_ip)[0]
    return replace(endpoint, ext_ip=ext_ip, ext_port=ext_port, nat=nat, delta=delta)

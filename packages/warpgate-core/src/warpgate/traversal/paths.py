"""The paths between two signed addresses: family, route type and interface on either side.

PURE. What a path may carry is the strategies' business; this module says which addresses can
lead from here to there, in which order of promise, and why the others can't.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from warpgate.nat.classify import synthesize
from warpgate.net.constants import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND
from warpgate.protocol.ip import is_link_local, is_loopback, is_private, is_public
from warpgate.protocol.peer_address import Endpoint, PeerAddress
from warpgate.traversal.report import SkipReason

LOOPBACK_IPS = {IP4: "127.0.0.1", IP6: "::1"}


class LinkFacts(Protocol):
    """What a plan must know of a local interface; ``net.nic.Interface`` has it."""

    @property
    def name(self) -> str:
        """The system's name for it."""

    @property
    def index(self) -> int:
        """The system's number for it."""

    @property
    def virtual(self) -> bool:
        """Whether it is one of a container, a virtual machine or a VPN."""

    def on_link(self, ip: str) -> bool:
        """Return whether it is directly on the address's network."""

    def has_default(self, af: int) -> bool:
        """Return whether the default route of a family leads over it."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way from a local interface to an address of the peer.

    Attributes:
        af, route_type: address family and route type.
        src_index, dest_index: positions of the interfaces in the two addresses.
        ip, port: where the peer listens.
        tier: promise, 0 is best: loopback, same link, public, private elsewhere.
        private: the destination is no public address.
        virtual: the local interface is a virtual one (container bridge, VPN).
        peer_af: the peer's family where it is another than ``af``; 0: the same.

    """

    af: int
    route_type: int
    src_index: int
    dest_index: int
    ip: str
    port: int
    tier: int
    private: bool
    virtual: bool
    peer_af: int = 0

    @property
    def remote_af(self) -> int:
        """The family of the peer's endpoint."""
        return self.peer_af or self.af

    @property
    def likely(self) -> bool:
        """Whether a connection along this path is to be expected."""
        return self.tier < TIER_ELSEWHERE


TIER_LOOPBACK, TIER_LINK, TIER_PUBLIC, TIER_ELSEWHERE = range(4)


@dataclass(frozen=True, slots=True)
class DeadEnd:
    """A family and route type that lead nowhere."""

    af: int
    route_type: int
    reason: SkipReason
    detail: str = ""


def find_paths(
    local: PeerAddress,
    remote: PeerAddress,
    links: Sequence[LinkFacts],
    afs: Sequence[int] = (IP6, IP4),
    route_types: Sequence[int] = (LOOPBACK_BIND, NIC_BIND, EXT_BIND),
) -> tuple[list[Path], list[DeadEnd]]:
    """List the paths to a peer, best first, and the dead ends.

    Args:
        local: this node's address; its interfaces stand in the order of ``links``.
        remote: the peer's address.
        links: facts of the local interfaces; those beyond the address's are not looked at.
        afs, route_types: what to look at.

    """
    paths: list[Path] = []
    dead: list[DeadEnd] = []
    same_machine = local.machine == remote.machine
    for af in afs:
        if af not in local.families() or af not in remote.families():
            dead += [DeadEnd(af, route, SkipReason.FAMILY_NOT_SHARED) for route in route_types]
            continue
        for route_type in route_types:
            if route_type == LOOPBACK_BIND:
                found = list(_loopback(local, remote, af, same_machine))
            else:
                found = list(_routed(local, remote, links, af, route_type, same_machine))
            paths += [item for item in found if isinstance(item, Path)]
            if not any(isinstance(item, Path) for item in found):
                dead += [item for item in found if isinstance(item, DeadEnd)][:1] or [
                    DeadEnd(af, route_type, SkipReason.NO_PEER_ADDRESS)
                ]
    # Of two routes to one distant address the external one: behind a NAT only it leads back to us.
    paths.sort(
        key=lambda p: (
            (p.tier, p.virtual, p.src_index + p.dest_index, p.af == IP4),
            p.tier >= TIER_PUBLIC and p.route_type != EXT_BIND,
        )
    )
    return paths, dead


def outer_families(address: PeerAddress) -> set[int]:
    """Return the families in which a node may have a way to the internet.

    Every machine has link-local IPv6 addresses, and many a home has unique local ones: they say nothing.
    """
    return {
        endpoint.af for nic in address.interfaces for endpoint in nic.endpoints if _outer(endpoint)
    }


def crossed(local: PeerAddress, remote: PeerAddress) -> bool:
    """Return whether two nodes have no family in common that leads further than one link or site."""
    ours, theirs = outer_families(local), outer_families(remote)
    return not (ours or local.families()) & (theirs or remote.families())


def _outer(endpoint: Endpoint) -> bool:
    ip, _ = endpoint_target(endpoint, EXT_BIND)
    return is_public(ip) or (endpoint.af == IP4 and is_private(ip) and not is_link_local(ip))


def cross_paths(
    local: PeerAddress, remote: PeerAddress, links: Sequence[LinkFacts], nat64: str | None
) -> list[Path]:
    """List the paths between peers that have no family in common.

    Through NAT64 an IPv6 host reaches public IPv4 addresses by synthesised ones (RFC 6052). The other
    paths, whose ``port`` is 0, lead nowhere themselves: a relay can join the two, and needs no public
    address of the peer, which a host that reaches no STUN server does not know.

    Args:
        local, remote, links: as for :func:`find_paths`.
        nat64: the prefix of this network's NAT64, for example ``64:ff9b::/96``; None: none is known.

    """
    if not crossed(local, remote):
        return []
    found: list[Path] = []
    for dest_index, record in enumerate(remote.interfaces):
        for endpoint in filter(_outer, record.endpoints):
            ip, port = endpoint_target(endpoint, EXT_BIND)
            for src_index, (link, own) in enumerate(zip(links, local.interfaces, strict=False)):
                leading = (e.af for e in own.endpoints if e.af != endpoint.af)
                for af in (af for af in leading if link.has_default(af)):
                    target = ip
                    if reached := af == IP6 and nat64 is not None and is_public(ip):
                        target = synthesize(nat64, ip)
                    tier = TIER_PUBLIC if reached else TIER_ELSEWHERE
                    found.append(
                        Path(
                            af, EXT_BIND, src_index, dest_index, target, port if reached else 0,
                            tier, is_private(ip), link.virtual, endpoint.af,
                        )
                    )  # fmt: skip
    return [path for path in found if not path.private] or found


def _loopback(
    local: PeerAddress, remote: PeerAddress, af: int, same_machine: bool
) -> Iterator[Path | DeadEnd]:
    if not same_machine:
        yield DeadEnd(af, LOOPBACK_BIND, SkipReason.OTHER_MACHINE)
        return
    src = next(i for i, nic in enumerate(local.interfaces) if nic.endpoint(af))
    dest = next(i for i, nic in enumerate(remote.interfaces) if nic.endpoint(af))
    endpoint = remote.interfaces[dest].endpoint(af)
    if endpoint is not None:
        ip = LOOPBACK_IPS[af]
        yield Path(af, LOOPBACK_BIND, src, dest, ip, endpoint.port, TIER_LOOPBACK, True, False)


def _routed(
    local: PeerAddress,
    remote: PeerAddress,
    links: Sequence[LinkFacts],
    af: int,
    route_type: int,
    same_machine: bool,
) -> Iterator[Path | DeadEnd]:
    own = own_ips(local)
    for dest_index, record in enumerate(remote.interfaces):
        endpoint = record.endpoint(af)
        if endpoint is None:
            continue
        ip, port = endpoint_target(endpoint, route_type)
        if ip in own and not same_machine:
            yield DeadEnd(af, route_type, SkipReason.OWN_ADDRESS, ip)
            continue
        if is_loopback(ip) and not same_machine:
            yield DeadEnd(af, route_type, SkipReason.OTHER_MACHINE, ip)
            continue
        # An address has room for so many interfaces; a machine may have more.
        for src_index, (link, own_record) in enumerate(zip(links, local.interfaces, strict=False)):
            if own_record.endpoint(af) is None:
                continue
            tier = _tier(link, ip, af, same_machine, same_interface=link.index == record.index)
            if tier is None:
                reason = SkipReason.LINK_LOCAL if is_link_local(ip) else SkipReason.NO_ROUTE
                yield DeadEnd(af, route_type, reason, f"{ip} from {link.name}")
                continue
            private = is_private(ip) or is_loopback(ip)
            yield Path(af, route_type, src_index, dest_index, ip, port, tier, private, link.virtual)


def _tier(
    link: LinkFacts, ip: str, af: int, same_machine: bool, same_interface: bool
) -> int | None:
    """Return the promise of reaching ``ip`` from ``link``, None when it can't be reached."""
    if same_machine:
        # Every address of the machine answers locally; the interface that bears it needs no
        # second candidate from another one.
        return TIER_LINK if same_interface else None
    if is_link_local(ip):
        # Whether the peer's link is ours can't be told from the address alone.
        return TIER_ELSEWHERE
    if link.on_link(ip):
        return TIER_LINK
    if not link.has_default(af):
        return None
    return TIER_ELSEWHERE if is_private(ip) else TIER_PUBLIC


def endpoint_target(endpoint: Endpoint, route_type: int) -> tuple[str, int]:
    """Return where an endpoint is reached by a route type.

    An external address that is not known counts as equal to the local one.
    """
    if route_type == EXT_BIND:
        return endpoint.ext_ip or endpoint.ip, endpoint.ext_port or endpoint.port
    if route_type == LOOPBACK_BIND:
        return LOOPBACK_IPS[endpoint.af], endpoint.port
    return endpoint.ip, endpoint.port


def own_ips(address: PeerAddress) -> set[str]:
    """Return every local address that stands in a node's address."""
    return {endpoint.ip for nic in address.interfaces for endpoint in nic.endpoints}


def named_ips(address: PeerAddress) -> set[str]:
    """Return every address, local and external, that a node's signed address names."""
    endpoints = [endpoint for nic in address.interfaces for endpoint in nic.endpoints]
    return {e.ip for e in endpoints} | {e.ext_ip for e in endpoints if e.ext_ip is not None}

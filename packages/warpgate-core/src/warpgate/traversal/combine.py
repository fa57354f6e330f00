"""From signed addresses to what a strategy's ``run`` finds in ``src_info`` and ``dest_info``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from warpgate.net.constants import EXT_BIND, LOOPBACK_BIND, ROUTE_TYPES
from warpgate.protocol.ip import is_link_local, is_loopback, is_private, split_scope
from warpgate.protocol.peer_address import PeerAddress
from warpgate.traversal.paths import (
    LOOPBACK_IPS,
    TIER_ELSEWHERE,
    TIER_LOOPBACK,
    TIER_PUBLIC,
    Path,
    crossed,
    endpoint_target,
    outer_families,
)
from warpgate.traversal.report import SkipReason

if TYPE_CHECKING:
    from warpgate.net.nic import Interface
    from warpgate.protocol.proto_msg import ConMsg


def info(address: PeerAddress, index: int, af: int, route_type: int) -> dict[str, Any]:
    """Return one side's facts for a strategy.

    Args:
        address: whose facts.
        index: position of the interface in the address.
        af, route_type: the combination's.

    """
    record = address.interfaces[index]
    endpoint = record.endpoint(af)
    assert endpoint is not None
    ip, port = endpoint_target(endpoint, route_type)
    return {
        "ip": ip,
        "port": port,
        "nic": LOOPBACK_IPS[af] if route_type == LOOPBACK_BIND else endpoint.ip,
        "ext": endpoint.ext_ip or endpoint.ip,
        "nat": {"type": endpoint.nat, "delta": endpoint.delta},
        "if_index": record.index,
        "af": af,
        "machine_id": address.machine.hex(),
        "node_id": address.node_id,
    }


def refresh(known: dict[str, Any], address: PeerAddress) -> None:
    """Take over what a newer address says of a side's NAT; where the attempt goes stays.

    Args:
        known: what :func:`info` returned.
        address: the side's newer address.

    """
    for record in address.interfaces:
        endpoint = record.endpoint(known["af"])
        if endpoint is not None and record.index == known["if_index"]:
            known["ext"] = endpoint.ext_ip or endpoint.ip
            known["nat"] = {"type": endpoint.nat, "delta": endpoint.delta}
            return


def scoped(ip: str, nic: Interface) -> str:
    """Give a link-local address the scope of the interface it is dialled from."""
    if is_link_local(ip) and ":" in ip:
        return f"{split_scope(ip)[0]}%{nic.name}"
    return ip


def responder_path(
    local: PeerAddress,
    peer: PeerAddress,
    nics: Sequence[Interface],
    msg: ConMsg,
    route_types: Sequence[int],
    relay: bool = False,
) -> Path | SkipReason:
    """Work out a responder's path to the initiator from the two signed addresses.

    What the message says of family, route type and interfaces only selects among what stands in
    the addresses; nothing else in it is believed (WIRE section 2). A relay can join peers that have
    no family in common.
    """
    shared = local.families() & peer.families()
    if not (local.families() and peer.families()):
        return SkipReason.FAMILY_NOT_SHARED  # an address without any interface
    if relay and crossed(local, peer):
        own = min(outer_families(local) or local.families())
        other = min(outer_families(peer) or peer.families())
        ours, theirs = _pick(local, own, msg.routing.dest_index), _pick(peer, other, -1)
        endpoint = peer.interfaces[theirs].endpoint(other)
        assert endpoint is not None
        ip, _ = endpoint_target(endpoint, EXT_BIND)
        private = is_private(ip) or is_loopback(ip)
        return Path(own, EXT_BIND, ours, theirs, ip, 0, TIER_ELSEWHERE, private, False, other)
    af = msg.meta.af if msg.meta.af in shared else next(iter(sorted(shared)), None)
    if af is None:
        return SkipReason.FAMILY_NOT_SHARED
    route_type = msg.meta.route_type
    if route_type not in ROUTE_TYPES or route_type not in route_types:
        return SkipReason.ROUTE_UNSUPPORTED
    if route_type == LOOPBACK_BIND and local.machine != peer.machine:
        return SkipReason.OTHER_MACHINE
    theirs = _pick(peer, af, msg.meta.src_index)
    endpoint = peer.interfaces[theirs].endpoint(af)
    assert endpoint is not None
    ip, port = endpoint_target(endpoint, route_type)
    hint = _pick(local, af, msg.routing.dest_index)
    ours = _leading_to(local, nics, af, ip, hint)
    tier = TIER_LOOPBACK if route_type == LOOPBACK_BIND else TIER_PUBLIC
    private = is_private(ip) or is_loopback(ip)
    return Path(af, route_type, ours, theirs, ip, port, tier, private, False)


def _pick(address: PeerAddress, af: int, hint: int) -> int:
    """Return the hinted interface when it has the family, else the first that has it."""
    if 0 <= hint < len(address.interfaces) and address.interfaces[hint].endpoint(af):
        return hint
    return next(i for i, record in enumerate(address.interfaces) if record.endpoint(af))


def _leading_to(local: PeerAddress, nics: Sequence[Interface], af: int, ip: str, hint: int) -> int:
    """Return the interface from which an address is reached, the hinted one when it will do."""
    if nics[hint].on_link(ip):
        return hint
    usable = [i for i, record in enumerate(local.interfaces) if record.endpoint(af)]
    for i in usable:
        if nics[i].on_link(ip):
            return i
    if nics[hint].has_default(af):
        return hint
    return next((i for i in usable if nics[i].has_default(af)), hint)

"""From what servers saw to what the NAT does; PURE.

The tests are those of RFC 5780 sections 4.3 and 4.4, and statistics of ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import pairwise
from typing import Final

from ..protocol.ip import is_public, parse_ip, split_scope
from .behaviour import Allocation, Filtering, Mapping, PortAllocation

Address = tuple[str, int]

LOWEST_PORT: Final = 1024
HIGHEST_PORT: Final = 65535
EPHEMERAL: Final = (32768, 60999)  # Linux's own range, which many a NAT uses
MAX_BLOCK: Final = 4096  # carriers' blocks; eight ports of the whole range meet in one by 16**-7
MIN_SAMPLES: Final = 4
MIN_BLOCK_SAMPLES: Final = 6
MIN_RANGE_SAMPLES: Final = 12
MAX_STEP: Final = 16  # of a NAT that counts
MAX_BUSY_STEP: Final = 128  # of one that counts for other hosts as well
SHARED_SPACE: Final = IPv4Network("100.64.0.0/10")  # RFC 6598: between a carrier's NAT and homes
# RFC 6052 section 2.2: where the IPv4 address stands, by the prefix's length.
_EMBEDDED: Final = {
    96: (12, 13, 14, 15), 64: (9, 10, 11, 12), 56: (7, 9, 10, 11), 48: (6, 7, 9, 10),
    40: (5, 6, 7, 9), 32: (4, 5, 6, 7),
}  # fmt: skip
_WELL_KNOWN: Final = (bytes((192, 0, 0, 170)), bytes((192, 0, 0, 171)))  # RFC 7050 section 2.2


@dataclass(frozen=True, slots=True)
class Observation:
    """What one server saw of one local endpoint.

    Attributes:
        local: the endpoint's own ``(ip, port)``.
        server: to which the request went.
        mapped: from which it arrived.
        sent_s: when the request was sent first, in seconds of any clock.

    """

    local: Address
    server: Address
    mapped: Address
    sent_s: float = 0.0


def same_ip(one: str, other: str) -> bool:
    """Return whether two texts are one address; scopes do not count."""
    return parse_ip(one) is not None and parse_ip(one) == parse_ip(other)


def classify_mapping(seen: Iterable[Observation]) -> Mapping | None:
    """Return the mapping behaviour.

    Where the destinations' ports were all the same, a mapping that differs is taken for the
    stricter behaviour.

    Args:
        seen: the observations, of any number of local endpoints.

    Returns:
        None where no endpoint was seen from two addresses (and is translated).

    """
    by_local: dict[Address, dict[Address, Address]] = {}
    translated = False
    for each in seen:
        by_local.setdefault(each.local, {})[each.server] = each.mapped
        if not same_ip(each.local[0], each.mapped[0]) or each.local[1] != each.mapped[1]:
            translated = True
    if not by_local:
        return None
    if not translated:
        return Mapping.NONE
    found: list[Mapping] = []
    for servers in by_local.values():
        if len({server[0] for server in servers}) < 2:
            continue
        if len(set(servers.values())) == 1:
            found.append(Mapping.ENDPOINT_INDEPENDENT)
            continue
        by_ip: dict[str, set[Address]] = {}
        ports: Counter[str] = Counter()
        for server, mapped in servers.items():
            by_ip.setdefault(server[0], set()).add(mapped)
            ports[server[0]] += 1
        several = [ip for ip, count in ports.items() if count > 1]
        strict = not several or any(len(by_ip[ip]) > 1 for ip in several)
        found.append(Mapping.ADDRESS_AND_PORT_DEPENDENT if strict else Mapping.ADDRESS_DEPENDENT)
    if not found:
        return _by_port_alone(by_local)
    # The endpoint that was seen from most places knows best.
    most = max(len(servers) for servers in by_local.values())
    best = [
        kind
        for kind, servers in zip(
            found,
            (s for s in by_local.values() if len({server[0] for server in s}) > 1),
            strict=True,
        )
        if len(servers) == most
    ]
    return Counter(best or found).most_common(1)[0][0]


def _by_port_alone(by_local: dict[Address, dict[Address, Address]]) -> Mapping | None:
    """Two ports of one server tell only when they differ."""
    if any(len(set(servers.values())) > 1 for servers in by_local.values()):
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    return None


def classify_filtering(other_address: bool | None, other_port: bool | None) -> Filtering | None:
    """Return the filtering behaviour (RFC 5780 section 4.4).

    Args:
        other_address: whether an answer came from an address and port not written to; None: not tested.
        other_port: the same for another port of the address written to.

    """
    if other_address:
        return Filtering.ENDPOINT_INDEPENDENT
    if other_address is None or other_port is None:
        return None
    return Filtering.ADDRESS_DEPENDENT if other_port else Filtering.ADDRESS_AND_PORT_DEPENDENT


def classify_allocation(seen: Iterable[Observation]) -> PortAllocation | None:
    """Return how the NAT chooses external ports.

    Args:
        seen: the observations; one mapping that several servers saw counts once.

    Returns:
        None with too few mappings.

    """
    first: dict[tuple[Address, Address], Observation] = {}
    for each in sorted(seen, key=lambda each: each.sent_s):
        first.setdefault((each.local, each.mapped), each)
    mappings = list(first.values())
    count = len(mappings)
    if not count:
        return None
    if all(same_ip(m.local[0], m.mapped[0]) and m.local[1] == m.mapped[1] for m in mappings):
        return PortAllocation(Allocation.NONE, samples=count)
    if count < MIN_SAMPLES:
        return None
    kept = sum(m.local[1] == m.mapped[1] for m in mappings)
    if kept * 2 > count:  # the odd one out met another host's port
        return PortAllocation(Allocation.PRESERVING, samples=count)
    shift, times = Counter(m.mapped[1] - m.local[1] for m in mappings).most_common(1)[0]
    if times * 2 > count:
        return PortAllocation(Allocation.SHIFTED, step=shift, samples=count)
    ports = [m.mapped[1] for m in mappings]
    step = counting_step(ports)
    if step:
        return PortAllocation(Allocation.SEQUENTIAL, step=step, samples=count)
    if count < MIN_BLOCK_SAMPLES:
        return PortAllocation(Allocation.RANDOM, low=LOWEST_PORT, high=HIGHEST_PORT, samples=count)
    low, high = port_bounds(ports)
    kind = Allocation.BLOCK if high - low < MAX_BLOCK else Allocation.RANDOM
    return PortAllocation(kind, low=low, high=high, samples=count)


def counting_step(ports: Sequence[int]) -> int:
    """Return the step of a NAT that counts, from ports in the order of their making; 0: it does not.

    Mappings that were made in between and not seen, by us or by other hosts, are allowed for.
    """
    steps = [_wrapped(after - before) for before, after in pairwise(ports)]
    if not steps:
        return 0
    step, times = Counter(steps).most_common(1)[0]
    if 0 < abs(step) <= MAX_STEP and times * 5 >= len(steps) * 3:
        return step
    busy = len(steps) >= MIN_BLOCK_SAMPLES and all(0 < abs(s) <= MAX_BUSY_STEP for s in steps)
    if busy and len({s > 0 for s in steps}) == 1:
        return min(steps, key=abs)
    return 0


def _wrapped(step: int) -> int:
    """Return a difference of ports; a jump over almost the whole range is a counter's wrap-around."""
    span = HIGHEST_PORT + 1 - LOWEST_PORT
    if abs(step) > span - MAX_BUSY_STEP:
        return step + span if step < 0 else step - span
    return step


def port_bounds(ports: Sequence[int]) -> tuple[int, int]:
    """Return the bounds within which a NAT chooses ports at random.

    A block is the smallest aligned power of two that holds all: of eight ports that is right with
    probability 1 - 2**-7, of sixteen with 1 - 2**-15. Where the ports lie much closer together than
    that (so the block is not aligned), it is what they span, and a margin.

    Args:
        ports: at least one port.

    """
    least, most = min(ports), max(ports)
    size = 1 << (least ^ most).bit_length()
    low = least & ~(size - 1)
    span = most - least + 1
    if span * 8 < size * 3 and len(ports) >= MIN_BLOCK_SAMPLES:
        margin = max(span * 4 // len(ports), 1)
        low, size = max(least - margin, 0), span + 2 * margin
    if size <= MAX_BLOCK:
        return low, min(low + size - 1, HIGHEST_PORT)
    if len(ports) >= MIN_RANGE_SAMPLES:
        if EPHEMERAL[0] <= least and most <= EPHEMERAL[1]:
            return EPHEMERAL
        if size <= 32768:
            return max(low, LOWEST_PORT), min(low + size - 1, HIGHEST_PORT)
    return LOWEST_PORT, HIGHEST_PORT


def behind_several_nats(
    local_ip: str,
    external_ips: Iterable[str],
    gateway_external_ip: str | None = None,
    hops: Sequence[str | None] = (),
) -> bool | None:
    """Return whether there is more than one NAT in the way; None: nothing here can tell.

    What the router says is certain. The addresses of the first routers are a heuristic: one of the
    space between homes and a carrier's NAT says yes, a public one right behind the home's router says
    no, another private one says nothing, since providers number their own routers so.

    Args:
        local_ip: this machine's own address.
        external_ips: what servers see.
        gateway_external_ip: what the router says its external address is (UPnP, NAT-PMP or PCP).
        hops: the addresses of the first routers on the way, the nearest first.

    """
    seen = {parse_ip(ip) for ip in external_ips}
    local = parse_ip(local_ip)
    if not seen or local is None:
        return None
    if local in seen:
        return False
    if gateway_external_ip is not None:
        return parse_ip(gateway_external_ip) not in seen
    if local.version != 4 or local in SHARED_SPACE:
        return None  # on the carrier's own side, the space says nothing
    routers = [None if hop is None else parse_ip(hop) for hop in hops]
    if any(router is not None and router in SHARED_SPACE for router in routers):
        return True
    if len(hops) > 1 and hops[0] is not None and hops[1] is not None:
        return False if not is_public(hops[0]) and is_public(hops[1]) else None
    return None


def nat64_prefix(addresses: Iterable[str]) -> str | None:
    """Return the NAT64 prefix, from the IPv6 addresses of ``ipv4only.arpa`` (RFC 7050 section 3).

    Returns:
        For example ``64:ff9b::/96``; None where there is no NAT64.

    """
    for text in addresses:
        address = parse_ip(text)
        if address is None or address.version != 6:
            continue
        packed = address.packed
        for length, places in _EMBEDDED.items():
            if bytes(packed[place] for place in places) in _WELL_KNOWN:
                zeroed = packed[: length // 8] + bytes(16 - length // 8)
                return str(ip_network(f"{ip_address(zeroed)}/{length}"))
    return None


def synthesize(prefix: str, ip: str) -> str:
    """Return the IPv6 address by which NAT64 reaches an IPv4 address (RFC 6052 section 2.2).

    Raises:
        ValueError: one of the two is not what it should be.

    """
    network = ip_network(prefix)
    bare = ip_address(split_scope(ip)[0])
    if network.version != 6 or bare.version != 4 or network.prefixlen not in _EMBEDDED:
        raise ValueError(f"{prefix!r} and {ip!r} are no NAT64 prefix and IPv4 address")
    packed = bytearray(network.network_address.packed)
    for place, byte in zip(_EMBEDDED[network.prefixlen], bare.packed, strict=True):
        packed[place] = byte
    return str(ip_address(bytes(packed)))


def embedded(prefix: str, ip: str) -> str | None:
    """Return the IPv4 address that a synthesised one leads to; None: it is no such address.

    Raises:
        ValueError: the prefix is not one of RFC 6052 section 2.2.

    """
    network, bare = ip_network(prefix), parse_ip(ip)
    if network.version != 6 or network.prefixlen not in _EMBEDDED:
        raise ValueError(f"{prefix!r} is no NAT64 prefix")
    if bare is None or bare.version != 6 or bare not in network:
        return None
    return str(ip_address(bytes(bare.packed[place] for place in _EMBEDDED[network.prefixlen])))

"""Mappings, their permissions and timers, and what each inside host has opened."""

from __future__ import annotations

import heapq
from itertools import count

from warpgate_natlab.engine.packet import TCP, UDP
from warpgate_natlab.engine.policy import (
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    ENDPOINT_INDEPENDENT,
    Timers,
)
from warpgate_natlab.engine.tcpstate import TcpSession

__all__ = ["Endpoint", "HostStats", "Mapping", "MappingTable"]

Endpoint = tuple[bytes, int]
_FLOW_CAP = 1_000_000  # distinct flows remembered per host; more are counted no further


class HostStats:
    """What one inside host has done since the last reset."""

    __slots__ = ("flows", "live", "mappings", "peak", "remotes")

    def __init__(self) -> None:
        self.live = self.peak = self.mappings = 0
        self.flows: set[tuple[int, int, bytes, int]] = set()
        self.remotes: set[bytes] = set()

    def describe(self) -> dict[str, int]:
        """The counters as numbers."""
        return {
            "live": self.live,
            "peak": self.peak,
            "mappings": self.mappings,
            "flows": len(self.flows),
            "remotes": len(self.remotes),
        }

    def flow(self, proto: int, port: int, remote: Endpoint) -> None:
        """A packet goes from inside ``port`` to ``remote``."""
        if len(self.flows) < _FLOW_CAP:
            self.flows.add((proto, port, *remote))
            self.remotes.add(remote[0])


class Mapping:
    """An inside endpoint, its outside one, and the remotes that may answer.

    ``sessions`` (TCP) and ``permissions`` (else: expiry by remote) hold the remotes it has sent to;
    ``addresses`` is the latter by remote address. ``static``: a port forward; it never expires.
    """

    __slots__ = (
        "addresses", "expires", "inside", "key", "outside", "packets", "permissions", "proto",
        "sessions", "static",
    )  # fmt: skip

    def __init__(self, proto: int, key: tuple[object, ...], inside: Endpoint, outside: Endpoint):
        self.proto = proto
        self.key = key
        self.inside = inside
        self.outside = outside
        self.expires = 0.0
        self.packets = 0
        self.static = False
        self.permissions: dict[Endpoint, float] = {}
        self.addresses: dict[bytes, float] = {}
        self.sessions: dict[Endpoint, TcpSession] = {}

    def touch(self, remote: Endpoint, now: float, timers: Timers, *, outward: bool) -> None:
        """A packet that is no TCP passes: outward ones open the filter, both prolong."""
        self.packets += 1
        if self.proto == UDP:
            life = timers.udp_s
            if self.packets == 1 and timers.udp_first_packet_s is not None:
                life = timers.udp_first_packet_s
        else:
            life = timers.icmp_s
        expires = now + life
        self.expires = max(self.expires, expires)
        if outward or remote in self.permissions:
            self.permissions[remote] = expires
            self.addresses[remote[0]] = max(self.addresses.get(remote[0], 0.0), expires)

    def permits(self, remote: Endpoint, now: float, filtering: int) -> bool:
        """The filter's answer to a packet from ``remote`` (RFC 4787 section 5)."""
        if self.static or filtering == ENDPOINT_INDEPENDENT:
            return True
        if self.proto == TCP:
            if filtering == ADDRESS_DEPENDENT:
                return any(
                    key[0] == remote[0] and session.expires > now
                    for key, session in self.sessions.items()
                )
            session = self.sessions.get(remote)
            return session is not None and session.expires > now
        if filtering == ADDRESS_DEPENDENT:
            return self.addresses.get(remote[0], 0.0) > now
        return self.permissions.get(remote, 0.0) > now

    def prune(self, now: float) -> None:
        """Drop remotes whose time is over, and set ``expires`` by those that are left (TCP)."""
        if self.proto == TCP:
            self.sessions = {k: s for k, s in self.sessions.items() if s.expires > now}
            self.expires = max((s.expires for s in self.sessions.values()), default=0.0)
        else:
            self.permissions = {k: t for k, t in self.permissions.items() if t > now}
            self.addresses = {k: t for k, t in self.addresses.items() if t > now}


class MappingTable:
    """All mappings of a box, found from the inside and from the outside."""

    def __init__(self) -> None:
        self._out: dict[tuple[object, ...], Mapping] = {}
        self.inward: dict[tuple[int, bytes, int], Mapping] = {}
        self.hosts: dict[bytes, HostStats] = {}
        self._heap: list[tuple[float, int, Mapping]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self.inward)

    def host(self, addr: bytes) -> HostStats:
        """The counters of an inside host."""
        stats = self.hosts.get(addr)
        if stats is None:
            stats = self.hosts[addr] = HostStats()
        return stats

    @staticmethod
    def _key(
        proto: int, inside: Endpoint, remote: Endpoint | None, behaviour: int
    ) -> tuple[object, ...]:
        if behaviour == ENDPOINT_INDEPENDENT or remote is None:
            return (proto, *inside)
        if behaviour == ADDRESS_AND_PORT_DEPENDENT:
            return (proto, *inside, *remote)
        return (proto, *inside, remote[0])

    def outward(
        self, proto: int, inside: Endpoint, remote: Endpoint, behaviour: int
    ) -> Mapping | None:
        """The mapping for a packet from ``inside`` to ``remote``, if there is one."""
        found = self._out.get(self._key(proto, inside, remote, behaviour))
        if found is None and behaviour != ENDPOINT_INDEPENDENT:
            found = self._out.get(self._key(proto, inside, None, 0))  # a forward
            if found is not None and not found.static:
                return None
        return found

    def create(
        self,
        proto: int,
        inside: Endpoint,
        remote: Endpoint | None,
        behaviour: int,
        outside: Endpoint,
    ) -> Mapping:
        """A new mapping; ``outside`` must be free. Without ``remote``: a forward."""
        made = Mapping(proto, self._key(proto, inside, remote, behaviour), inside, outside)
        made.static = remote is None
        self._out[made.key] = made
        self.inward[(proto, *outside)] = made
        if not made.static:
            stats = self.host(inside[0])
            stats.live += 1
            stats.mappings += 1
            stats.peak = max(stats.peak, stats.live)
        return made

    def watch(self, mapping: Mapping) -> None:
        """Have ``mapping`` removed at its ``expires``: after creation, and when it came nearer."""
        if not mapping.static:
            heapq.heappush(self._heap, (mapping.expires, next(self._order), mapping))

    def remove(self, mapping: Mapping) -> None:
        """Forget one mapping."""
        if self._out.get(mapping.key) is mapping:
            del self._out[mapping.key]
        outside = (mapping.proto, *mapping.outside)
        if self.inward.get(outside) is mapping:
            del self.inward[outside]
            if not mapping.static:
                self.host(mapping.inside[0]).live -= 1

    def expire(self, now: float) -> None:
        """Remove what is over at ``now``."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, mapping = heapq.heappop(heap)
            if self.inward.get((mapping.proto, *mapping.outside)) is not mapping:
                continue  # removed, or watched twice
            mapping.prune(now)
            if mapping.expires <= now:
                self.remove(mapping)
            else:
                self.watch(mapping)

    def clear(self) -> int:
        """Forget all but forwards; how many that were."""
        gone = [m for m in self.inward.values() if not m.static]
        for mapping in gone:
            self.remove(mapping)
        self._heap.clear()
        for mapping in self.inward.values():
            mapping.permissions.clear()
            mapping.addresses.clear()
            mapping.sessions.clear()
        return len(gone)

    def reset_stats(self) -> None:
        """All counters to zero; live mappings count on."""
        live: dict[bytes, int] = {}
        for mapping in self.inward.values():
            if not mapping.static:
                live[mapping.inside[0]] = live.get(mapping.inside[0], 0) + 1
        self.hosts = {}
        for addr, number in live.items():
            stats = self.host(addr)
            stats.live = stats.peak = number

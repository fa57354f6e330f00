"""The stateful machine that nat, firewall and nat64 share (RFC 4787, 5382, 5508, 7857)."""

from __future__ import annotations

import random
from collections.abc import Mapping as AnyMapping
from functools import partial
from typing import Any

from warpgate_natlab.engine.build import rst_for
from warpgate_natlab.engine.frag import Reassembler
from warpgate_natlab.engine.node import (
    PORT_UNREACHABLE,
    PROHIBITED,
    TIME_EXCEEDED,
    Host,
    Node,
    errors_allowed,
    table_proto,
)
from warpgate_natlab.engine.packet import (
    ACK,
    ERROR,
    ICMP,
    PROTO_NAMES,
    RST,
    SYN,
    TCP,
    UDP,
    MalformedPacket,
    Packet,
    addr_text,
)
from warpgate_natlab.engine.policy import ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT, Forward, Policy
from warpgate_natlab.engine.table import Endpoint, Mapping, MappingTable
from warpgate_natlab.engine.tcpstate import TcpSession

__all__ = ["Middlebox"]


class Middlebox(Node):
    """Mappings, filters, timers; a subclass says how packets are translated.

    Args:
        name: for messages.
        host: the graph.
        given: the configuration without the subclass's own keys.
        rng: ports come from it.
    """

    def __init__(
        self, name: str, host: Host, given: AnyMapping[str, Any], rng: random.Random
    ) -> None:
        super().__init__(name, host)
        self.rng = rng
        self.policy = Policy()
        self.table = MappingTable()
        self.forwards: list[Forward] = []
        self._down_until = 0.0
        self._reassembler = Reassembler()
        self.policy.apply(given)

    # What a subclass does.

    def remote_of(self, packet: Packet) -> Endpoint:
        """The remote of an outward packet, in the terms of the outside."""
        return packet.dst, packet.dport

    def outside_for(self, proto: int, inside: Endpoint) -> Endpoint | None:
        """A free outside endpoint for a new mapping, or None (all taken)."""
        raise NotImplementedError

    def send_out(self, packet: Packet, mapping: Mapping, remote: Endpoint, now: float) -> None:
        """Translate an outward packet and send it."""
        raise NotImplementedError

    def send_in(self, packet: Packet, mapping: Mapping, now: float) -> None:
        """Translate an inward packet and send it."""
        raise NotImplementedError

    def error_out(self, packet: Packet, now: float) -> None:
        """Translate an ICMP error from the inside."""
        raise NotImplementedError

    def error_in(self, packet: Packet, now: float) -> None:
        """Translate an ICMP error from the outside."""
        raise NotImplementedError

    def answer_in(self, packet: Packet, now: float) -> None:
        """Send a packet of the box itself to the inside."""
        raise NotImplementedError

    def install(self, forward: Forward) -> None:
        """Make a forward's mapping."""
        raise NotImplementedError

    # Both ways.

    def admit(self, packet: Packet, now: float) -> Packet | None:
        """What every packet meets first: reboot, timers, fragments, hop count; None: gone."""
        self.packets += 1
        if now < self._down_until:
            self.drop("rebooting")
            return None
        self.table.expire(now)
        if not packet.fragment:
            return packet
        if self.policy.fragments == "drop":
            self.drop("fragment")
            return None
        try:
            return self._reassembler.add(packet, now)
        except MalformedPacket:
            self.drop("malformed")
            return None

    def outward(self, packet: Packet, now: float) -> None:
        """A packet from the inside."""
        if packet.icmp == ERROR:
            if packet.hop():
                self.error_out(packet, now)
            else:
                self.drop("ttl")
            return
        proto = table_proto(packet)
        policy = self.policy
        if proto == UDP:
            blocked = policy.udp_ports is not None and packet.dport not in policy.udp_ports
        elif proto == TCP:
            blocked = policy.tcp_ports is not None and packet.dport not in policy.tcp_ports
        elif proto == ICMP:
            blocked = not policy.icmp_echo
        else:
            self.drop("protocol")
            return
        remote = self.remote_of(packet)
        inside = (packet.src, packet.sport)
        behaviour = policy.mapping.get(proto, ENDPOINT_INDEPENDENT)
        if blocked and not self._is_forward(proto, inside):
            self.drop("blocked")
            self._refuse_out(packet, now)
            return
        if not packet.hop():
            self.drop("ttl")
            self._error_to_inside(packet, TIME_EXCEEDED, now)
            return
        self._track_out(packet, proto, inside, remote, behaviour, now)

    def _is_forward(self, proto: int, inside: Endpoint) -> bool:
        found = self.table.outward(proto, inside, inside, ENDPOINT_INDEPENDENT)
        return found is not None and found.static

    def _track_out(
        self,
        packet: Packet,
        proto: int,
        inside: Endpoint,
        remote: Endpoint,
        behaviour: int,
        now: float,
    ) -> None:
        table, timers = self.table, self.policy.timers
        mapping = table.outward(proto, inside, remote, behaviour)
        session = mapping.sessions.get(remote) if mapping else None
        midstream = False
        if proto == TCP and session is None:
            midstream = packet.flags & (SYN | RST) != SYN
            if midstream and not self._midstream_allowed(packet, now):
                return
        if mapping is None:
            mapping = self._open(proto, inside, remote, behaviour)
            if mapping is None:
                return
            if proto == TCP:
                session = TcpSession(outward=True, established=midstream, now=now, timers=timers)
                mapping.sessions[remote] = session
                mapping.expires = session.expires
            else:
                mapping.touch(remote, now, timers, outward=True)
            table.watch(mapping)
        elif proto != TCP:
            mapping.touch(remote, now, timers, outward=True)
        elif session is None:
            session = TcpSession(outward=True, established=midstream, now=now, timers=timers)
            mapping.sessions[remote] = session
            mapping.expires = max(mapping.expires, session.expires)
        else:
            self._segment(mapping, session, packet.flags, outward=True, now=now)
        table.host(inside[0]).flow(proto, inside[1], remote)
        self.send_out(packet, mapping, remote, now)

    def _open(
        self, proto: int, inside: Endpoint, remote: Endpoint, behaviour: int
    ) -> Mapping | None:
        limit = self.policy.max_per_host
        if limit and self.table.host(inside[0]).live >= limit:
            self.drop("host-limit")
            return None
        outside = self.outside_for(proto, inside)
        if outside is None:
            self.drop("ports-exhausted")
            return None
        return self.table.create(proto, inside, remote, behaviour, outside)

    def _segment(
        self, mapping: Mapping, session: TcpSession, flags: int, *, outward: bool, now: float
    ) -> None:
        before = session.expires
        session.segment(flags, outward=outward, now=now, timers=self.policy.timers)
        if session.expires < before:
            mapping.prune(now)
            self.table.watch(mapping)
        else:
            mapping.expires = max(mapping.expires, session.expires)

    def _midstream_allowed(self, packet: Packet, now: float) -> bool:
        if self.policy.tcp_midstream == "accept" and not packet.flags & RST:
            return True
        self.drop("no-session")
        if self.policy.tcp_midstream == "rst" and not packet.flags & RST:
            self.icmp_sent += 1
            self.answer_in(rst_for(packet), now)
        return False

    def inward(self, packet: Packet, now: float, *, hop: bool = True) -> None:
        """A packet from the outside (or hairpinned: translated already, and no second ``hop``)."""
        if packet.icmp == ERROR:
            if hop and not packet.hop():
                self.drop("ttl")
            else:
                self.error_in(packet, now)
            return
        proto = table_proto(packet)
        mapping = self.table.inward.get((proto, packet.dst, packet.dport))
        remote = (packet.src, packet.sport)
        if mapping is None:
            self._stray(packet, "no-mapping", now)
            return
        filtering = self.policy.filtering.get(proto, ADDRESS_DEPENDENT)
        if not mapping.permits(remote, now, filtering):
            self._stray(packet, "filtered", now)
            return
        timers = self.policy.timers
        if proto == TCP:
            session = mapping.sessions.get(remote)
            if session is not None:
                self._segment(mapping, session, packet.flags, outward=False, now=now)
            elif packet.flags & (SYN | ACK | RST) == SYN:
                session = TcpSession(outward=False, established=False, now=now, timers=timers)
                mapping.sessions[remote] = session
                mapping.expires = max(mapping.expires, session.expires)
            else:
                self._stray(packet, "no-session", now)
                return
        elif self.policy.inbound_refresh:
            mapping.touch(remote, now, timers, outward=False)
        else:
            mapping.packets += 1
        if hop and not packet.hop():  # as a router would: after the lookup, before forwarding
            self.drop("ttl")
            self._error_to_outside(packet, TIME_EXCEEDED, now)
        else:
            self.send_in(packet, mapping, now)

    # What is not let through.

    def _stray(self, packet: Packet, cause: str, now: float) -> None:
        self.drop(cause)
        policy = self.policy
        if packet.proto == TCP:
            if policy.stray_syn == "rst" and not packet.flags & RST:
                self.icmp_sent += 1
                self.answer_out(rst_for(packet), now)
            elif policy.stray_syn == "icmp" and packet.flags & (SYN | ACK | RST) == SYN:
                late = partial(self._late_icmp, packet, now)
                self.host.later(now + policy.stray_icmp_s, late)
        elif packet.proto == UDP and policy.stray_udp == "icmp":
            self._error_to_outside(packet, PORT_UNREACHABLE, now)

    def _late_icmp(self, packet: Packet, arrived: float, now: float) -> None:
        """RFC 5382 REQ-4: tell, unless the inside has called that peer in the meantime."""
        mapping = self.table.inward.get((TCP, packet.dst, packet.dport))
        session = mapping.sessions.get((packet.src, packet.sport)) if mapping else None
        called = session.syn_out_at if session else None
        if called is None or called < arrived:
            self._error_to_outside(packet, PORT_UNREACHABLE, now)

    def _error_to_outside(
        self, packet: Packet, what: tuple[tuple[int, int], tuple[int, int]], now: float
    ) -> None:
        if errors_allowed(packet):
            error = self.error(packet, what, src=packet.dst)
            if error is not None:
                self.icmp_sent += 1
                self.answer_out(error, now)

    def answer_out(self, packet: Packet, now: float) -> None:
        """Send a packet of the box itself to the outside."""
        self.host.emit(self, "out", packet, now)

    def _refuse_out(self, packet: Packet, now: float) -> None:
        if self.policy.on_blocked != "reject":
            return
        if packet.proto == TCP:
            if not packet.flags & RST:
                self.icmp_sent += 1
                self.answer_in(rst_for(packet), now)
        else:
            self._error_to_inside(packet, PROHIBITED, now)

    def _error_to_inside(
        self, packet: Packet, what: tuple[tuple[int, int], tuple[int, int]], now: float
    ) -> None:
        if errors_allowed(packet):
            error = self.error(packet, what)
            if error is not None:
                self.icmp_sent += 1
                self.answer_in(error, now)

    # Control.

    def reboot(self, now: float, down_s: float = 0.0) -> int:
        """Forget all mappings but forwards, and drop everything for ``down_s`` seconds."""
        self._down_until = now + down_s
        self._reassembler = Reassembler()
        return self.table.clear()

    def configure(self, given: AnyMapping[str, Any]) -> None:
        """Change parts of the policy; mappings stay. Raises ConfigError."""
        self.policy.apply(given)

    def forward_add(self, forward: Forward) -> None:
        """Open a static mapping."""
        self.install(forward)
        self.forwards.append(forward)

    def mappings(self, now: float, host: str | None = None) -> list[dict[str, Any]]:
        """The live mappings as the control socket tells them."""
        self.table.expire(now)
        result = []
        for mapping in list(self.table.inward.values()):
            inside = addr_text(mapping.inside[0])
            if host is not None and inside != host:
                continue
            mapping.prune(now)
            remotes = mapping.sessions if mapping.proto == TCP else mapping.permissions
            result.append(
                {
                    "proto": PROTO_NAMES[mapping.proto],
                    "inside": [inside, mapping.inside[1]],
                    "outside": [addr_text(mapping.outside[0]), mapping.outside[1]],
                    "remotes": [[addr_text(addr), port] for addr, port in remotes],
                    "expires_in_s": None if mapping.static else mapping.expires - now,
                }
            )
        return result

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        forwards = [
            {
                "proto": PROTO_NAMES[f.proto],
                "external_port": f.external_port,
                "to": addr_text(f.to),
                "port": f.port,
            }
            for f in self.forwards
        ]
        return super().describe() | self.policy.describe() | {"forwards": forwards}

    def stats(self, now: float) -> dict[str, Any]:
        """Its counters."""
        self.table.expire(now)
        hosts = {addr_text(a): s.describe() for a, s in self.table.hosts.items()}
        return super().stats(now) | {"mappings": len(self.table), "hosts": hosts}

    def reset_stats(self) -> None:
        """All counters to zero."""
        super().reset_stats()
        self.table.reset_stats()

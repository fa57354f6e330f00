"""nat64: stateful translation between IPv6 inside and IPv4 outside (RFC 6146, 7915)."""

from __future__ import annotations

import random
from collections.abc import Mapping as AnyMapping
from ipaddress import IPv6Network
from typing import Any

from warpgate_natlab.engine.build import echo_reply
from warpgate_natlab.engine.nat import Translator
from warpgate_natlab.engine.node import Host
from warpgate_natlab.engine.packet import ECHO_REQUEST, ERROR, ICMP, Packet, addr_bytes, addr_text
from warpgate_natlab.engine.policy import ENDPOINT_INDEPENDENT, ConfigError
from warpgate_natlab.engine.quote import Quote
from warpgate_natlab.engine.table import Endpoint, Mapping
from warpgate_natlab.engine.xlate import error_to_v4, error_to_v6, translate

__all__ = ["Nat64"]


_MAX_SIZE = 65400  # what is longer might not fit under the other family's header


class Nat64(Translator):
    """IPv6 at ``in``, IPv4 at ``out``."""

    kind = "nat64"
    inside_size = 16

    def __init__(
        self, name: str, host: Host, given: AnyMapping[str, Any], rng: random.Random
    ) -> None:
        try:
            self.prefix = IPv6Network(given.get("prefix", "64:ff9b::/96"))
        except ValueError as error:
            raise ConfigError(f"{name}: prefix: {error}") from error
        if self.prefix.prefixlen != 96:
            raise ConfigError(f"{name}: prefix: a /96")
        self._head = self.prefix.network_address.packed[:12]
        self._ident = 0
        super().__init__(name, host, given, rng, {"address", "prefix"})
        if "address" in given:
            self.addresses = [addr_bytes(given["address"])]

    def ports(self) -> set[str]:
        """``in`` and ``out``."""
        return {"in", "out"}

    def own_address(self, *, v6: bool) -> bytes | None:
        """The source of its ICMP: its external address in IPv4."""
        return super().own_address(v6=True) if v6 else self.pool.addresses[0]

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """Translate, answer or refuse one packet."""
        inside = port != "out"
        if packet.v6 is not inside:
            self.packets += 1
            self.drop("family")
            return
        if len(packet.buf) > _MAX_SIZE:
            self.drop("too-long")
            return
        whole = self.admit(packet, now)
        if whole is None:
            return
        own = self.addresses if inside else self.pool.addresses
        if whole.icmp == ECHO_REQUEST and whole.dst in own and self.policy.answer_ping:
            self.icmp_sent += 1
            self.host.emit(self, port, echo_reply(whole), now)
        elif not inside:
            self.inward(whole, now)
        elif whole.dst[:12] != self._head:
            self.drop("no-prefix")
        elif whole.dst[12:] in self.pool.addresses and not self.policy.hairpin:
            self.drop("hairpin")
        else:
            self.outward(whole, now)

    def remote_of(self, packet: Packet) -> Endpoint:
        """The IPv4 address in the destination."""
        return packet.dst[12:], packet.dport

    def _next_ident(self) -> int:
        self._ident = self._ident % 0xFFFF + 1
        return self._ident

    def send_out(self, packet: Packet, mapping: Mapping, remote: Endpoint, now: float) -> None:
        """To IPv4; a packet to ourselves turns round."""
        self._leave(translate(packet, mapping.outside, remote, self._next_ident()), now)

    def _leave(self, packet: Packet, now: float) -> None:
        self.count_dst(packet)
        if packet.dst in self.pool.addresses:
            self.inward(packet, now, hop=False)
        else:
            self.host.emit(self, "out", packet, now)

    def send_in(self, packet: Packet, mapping: Mapping, now: float) -> None:
        """To IPv6."""
        # An echo has one identifier, the inside one, at both ends.
        port = mapping.inside[1] if packet.icmp else packet.sport
        src = (self._head + packet.src, port)
        self.answer_in(translate(packet, src, mapping.inside, 0), now)

    def answer_in(self, packet: Packet, now: float) -> None:
        """Send to the inside."""
        self.host.emit(self, "in", packet, now)

    def answer_out(self, packet: Packet, now: float) -> None:
        """Send an answer of the box; to a hairpinned packet it comes from the inside again."""
        if packet.dst not in self.pool.addresses:
            self.host.emit(self, "out", packet, now)
        elif packet.icmp == ERROR:
            self.error_in(packet, now)
        else:
            self.inward(packet, now, hop=False)

    def error_out(self, packet: Packet, now: float) -> None:
        """An ICMPv6 error about a packet that came from the IPv4 side."""
        quote = Quote.read(packet)
        if quote is None or packet.dst[:12] != self._head or quote.src[:12] != self._head:
            self.drop("icmp-unknown")
            return
        remote = (quote.src[12:], quote.sport)
        behaviour = self.policy.mapping.get(quote.proto, ENDPOINT_INDEPENDENT)
        mapping = self.table.outward(quote.proto, (quote.dst, quote.dport), remote, behaviour)
        made = None
        if mapping is not None:
            if quote.proto == ICMP:  # an echo has one identifier, here the outside one
                remote = (remote[0], mapping.outside[1])
            outer = (mapping.outside[0], packet.dst[12:])
            made = error_to_v4(packet, quote, outer, (remote, mapping.outside))
        if made:
            self._leave(made, now)
        else:
            self.drop("icmp-unknown")

    def error_in(self, packet: Packet, now: float) -> None:
        """An ICMP error about a packet that went to the IPv4 side."""
        quote = Quote.read(packet)
        mapping = quote and self.table.inward.get((quote.proto, quote.src, quote.sport))
        made = None
        if quote and mapping:
            remote = (self._head + quote.dst, quote.dport)
            outer = (self._head + packet.src, mapping.inside[0])
            made = error_to_v6(packet, quote, outer, (mapping.inside, remote))
        if made:
            self.answer_in(made, now)
        else:
            self.drop("icmp-unknown")

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        result = super().describe()
        addresses = result.pop("addresses")
        result["address"] = addr_text(self.addresses[0]) if addresses else None
        return result | {"prefix": str(self.prefix)}

"""nat (NAPT44) and firewall: the machine of middlebox.py with and without translation."""

from __future__ import annotations

import random
from collections.abc import Mapping as AnyMapping
from typing import Any

from warpgate_natlab.engine.build import echo_reply
from warpgate_natlab.engine.middlebox import Middlebox
from warpgate_natlab.engine.node import Host
from warpgate_natlab.engine.packet import ECHO_REQUEST, ERROR, Packet, addr_bytes, addr_text
from warpgate_natlab.engine.policy import ENDPOINT_INDEPENDENT, ConfigError, Forward
from warpgate_natlab.engine.policy import one_of as _one_of
from warpgate_natlab.engine.ports import AddressPool, PortAllocator
from warpgate_natlab.engine.quote import Quote, seal
from warpgate_natlab.engine.router import RouteTable
from warpgate_natlab.engine.table import Endpoint, Mapping

__all__ = ["Firewall", "Nat", "Translator"]


class Translator(Middlebox):
    """A middlebox that has external addresses and gives out their ports: nat and nat64."""

    inside_size = 4  # bytes of an inside address

    def __init__(
        self,
        name: str,
        host: Host,
        given: AnyMapping[str, Any],
        rng: random.Random,
        own: set[str],
    ) -> None:
        known = own | {"type", "external", "forwards"}
        super().__init__(name, host, {k: v for k, v in given.items() if k not in known}, rng)
        external = self.check_external(given.get("external"))
        self.pool = AddressPool(external, self.policy.pooling, rng)
        self.allocator = PortAllocator(self.policy.allocation, rng)
        for forward in given.get("forwards", []):
            self.forward_add(Forward.load(forward))

    def check_external(self, given: object) -> list[bytes]:
        """External addresses from a configuration value. Raises ConfigError."""
        if not isinstance(given, list) or not given:
            raise ConfigError(f"{self.name}: external: a list of IPv4 addresses")
        addresses = [addr_bytes(text) for text in given]
        if any(len(a) != 4 for a in addresses):
            raise ConfigError(f"{self.name}: external: IPv4 addresses only")
        return addresses

    def configure(self, given: AnyMapping[str, Any]) -> None:
        """Change parts of the policy; mappings stay, counters of ports only if untouched."""
        super().configure(given)
        self.pool.pooling = self.policy.pooling
        if "allocation" in given:
            self.allocator = PortAllocator(self.policy.allocation, self.rng)

    def outside_for(self, proto: int, inside: Endpoint) -> Endpoint | None:
        """A free external address and port."""
        addr = self.pool.choose(inside[0])
        taken = self.table.inward
        port = self.allocator.allocate(
            proto, addr, inside[0], inside[1], lambda p: (proto, addr, p) in taken
        )
        return None if port is None else (addr, port)

    def install(self, forward: Forward) -> None:
        """Make a forward's mapping, in place of what stood in its way."""
        if len(forward.to) != self.inside_size:
            raise ConfigError(f"{self.name}: forward: {addr_text(forward.to)} is of another family")
        inside = (forward.to, forward.port)
        outside = (self.pool.addresses[0], forward.external_port)
        old = [
            self.table.inward.get((forward.proto, *outside)),
            self.table.outward(forward.proto, inside, inside, ENDPOINT_INDEPENDENT),
        ]
        for mapping in old:
            if mapping is not None:
                self.table.remove(mapping)
        self.table.create(forward.proto, inside, None, ENDPOINT_INDEPENDENT, outside)

    def forward_del(self, proto: int, external_port: int) -> None:
        """Close a static mapping. Raises ConfigError when there is none."""
        mapping = self.table.inward.get((proto, self.pool.addresses[0], external_port))
        if mapping is None or not mapping.static:
            raise ConfigError(f"{self.name}: no forward on external port {external_port}")
        self.table.remove(mapping)
        self.forwards = [
            f for f in self.forwards if (f.proto, f.external_port) != (proto, external_port)
        ]

    def reboot(self, now: float, down_s: float = 0.0) -> int:
        """Forget mappings, counters and blocks."""
        self.allocator.reset()
        self.pool.reset()
        return super().reboot(now, down_s)

    def readdress(self, external: list[bytes], now: float) -> int:
        """Take other external addresses; all mappings go, forwards move along."""
        for mapping in [m for m in self.table.inward.values() if m.static]:
            self.table.remove(mapping)
        gone = self.reboot(now)
        self.pool.addresses = external
        for forward in self.forwards:
            self.install(forward)
        return gone

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        return super().describe() | {"external": [addr_text(a) for a in self.pool.addresses]}


class Nat(Translator):
    """NAPT44 with inside ports, an outside port, and hairpinning."""

    kind = "nat"

    def __init__(
        self, name: str, host: Host, given: AnyMapping[str, Any], rng: random.Random
    ) -> None:
        super().__init__(name, host, given, rng, {"address", "inside", "v6"})
        if "address" in given:
            self.addresses = [addr_bytes(given["address"])]
        self.inside = RouteTable.load(given.get("inside", {"in": ["0.0.0.0/0"]}))
        self.v6 = _one_of("v6", given.get("v6", "drop"), ("drop", "pass"))

    def ports(self) -> set[str]:
        """``out`` and the inside ports."""
        return {"out", *self.inside.describe()} | ({"in"} if self.v6 == "pass" else set())

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """Translate, forward, answer or refuse one packet."""
        if packet.v6:
            self._pass(port, packet, now)
            return
        whole = self.admit(packet, now)
        if whole is None:
            return
        if port == "out":
            if not self._pinged(whole, self.pool.addresses, now, inside=False):
                self.inward(whole, now)
        elif whole.dst in self.pool.addresses:
            if self._pinged(whole, self.pool.addresses, now, inside=True):
                return
            if self.policy.hairpin:
                self.outward(whole, now)
            else:
                self.drop("hairpin")
        elif not self._pinged(whole, self.addresses, now, inside=True):
            if whole.dst in self.addresses:
                self.drop("for-router")
            else:
                self.outward(whole, now)

    def _pass(self, port: str, packet: Packet, now: float) -> None:
        self.packets += 1
        if self.v6 == "drop":
            self.drop("ipv6")
        elif not packet.hop():
            self.drop("ttl")
        else:
            self.host.emit(self, "in" if port == "out" else "out", packet, now)

    def _pinged(self, packet: Packet, own: list[bytes], now: float, *, inside: bool) -> bool:
        if packet.icmp != ECHO_REQUEST or packet.dst not in own or not self.policy.answer_ping:
            return False
        self.icmp_sent += 1
        (self.answer_in if inside else self.answer_out)(echo_reply(packet), now)
        return True

    def send_out(self, packet: Packet, mapping: Mapping, remote: Endpoint, now: float) -> None:
        """Put the outside endpoint in as source; a packet to ourselves turns round."""
        packet.rewrite_src(*mapping.outside)
        self._leave(packet, now)

    def _leave(self, packet: Packet, now: float) -> None:
        self.count_dst(packet)
        if packet.dst in self.pool.addresses:
            self.inward(packet, now, hop=False)
        else:
            self.host.emit(self, "out", packet, now)

    def send_in(self, packet: Packet, mapping: Mapping, now: float) -> None:
        """Put the inside endpoint in as destination."""
        packet.rewrite_dst(*mapping.inside)
        self.answer_in(packet, now)

    def answer_in(self, packet: Packet, now: float) -> None:
        """Send to the inside port of the destination."""
        port = self.inside.lookup(packet.dst)
        if port is None:
            self.drop("no-route")
        else:
            self.host.emit(self, port, packet, now)

    def answer_out(self, packet: Packet, now: float) -> None:
        """Send an answer of the box; to a hairpinned packet it comes from the inside again."""
        if packet.dst not in self.pool.addresses:
            self.host.emit(self, "out", packet, now)
        elif packet.icmp == ERROR:
            self.error_in(packet, now)
        else:
            self.inward(packet, now, hop=False)

    def error_out(self, packet: Packet, now: float) -> None:
        """RFC 5508 REQ-5: the quote's destination and the source become the outside ones."""
        quote = Quote.read(packet)
        behaviour = self.policy.mapping.get(quote.proto, ENDPOINT_INDEPENDENT) if quote else 0
        mapping = quote and self.table.outward(
            quote.proto, (quote.dst, quote.dport), (quote.src, quote.sport), behaviour
        )
        if not quote or not mapping:
            self.drop("icmp-unknown")
            return
        quote.rewrite_dst(*mapping.outside)
        packet.rewrite_src(mapping.outside[0], 0)
        seal(packet)
        self._leave(packet, now)

    def error_in(self, packet: Packet, now: float) -> None:
        """RFC 5508 REQ-4: the quote's source and the destination become the inside ones."""
        quote = Quote.read(packet)
        mapping = quote and self.table.inward.get((quote.proto, quote.src, quote.sport))
        if not quote or not mapping:
            self.drop("icmp-unknown")
            return
        quote.rewrite_src(*mapping.inside)
        packet.rewrite_dst(mapping.inside[0], 0)
        seal(packet)
        self.answer_in(packet, now)

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        result = super().describe()
        addresses = result.pop("addresses")
        result["address"] = addresses[0] if addresses else None
        return result | {"inside": self.inside.describe(), "v6": self.v6}


class Firewall(Middlebox):
    """Stateful filtering without translation, IPv4 and IPv6 (RFC 6092 for the latter)."""

    kind = "firewall"

    def __init__(
        self, name: str, host: Host, given: AnyMapping[str, Any], rng: random.Random
    ) -> None:
        own = {"type", "addresses", "families", "forwards"}
        super().__init__(name, host, {k: v for k, v in given.items() if k not in own}, rng)
        self.addresses = [addr_bytes(text) for text in given.get("addresses", [])]
        self.families: list[int] = list(given.get("families", [4, 6]))
        if not set(self.families) <= {4, 6}:
            raise ConfigError(f"{name}: families: 4 and 6")
        self._fix_mapping()
        for forward in given.get("forwards", []):
            self.forward_add(Forward.load(forward))

    def _fix_mapping(self) -> None:
        """Nothing is translated: the "mapping" of an endpoint is itself, whoever it talks to."""
        self.policy.mapping = dict.fromkeys(self.policy.mapping, ENDPOINT_INDEPENDENT)

    def configure(self, given: AnyMapping[str, Any]) -> None:
        """Change parts of the policy; state stays."""
        super().configure(given)
        self._fix_mapping()

    def ports(self) -> set[str]:
        """``in`` and ``out``."""
        return {"in", "out"}

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """Let through or refuse one packet."""
        if (6 if packet.v6 else 4) not in self.families:
            self.packets += 1
            if packet.hop():
                self.host.emit(self, "in" if port == "out" else "out", packet, now)
            else:
                self.drop("ttl")
            return
        whole = self.admit(packet, now)
        if whole is None:
            return
        reply = self.ping(whole)
        if reply is not None:
            self.host.emit(self, port, reply, now)
        elif port == "out":
            self.inward(whole, now)
        else:
            self.outward(whole, now)

    def outside_for(self, proto: int, inside: Endpoint) -> Endpoint | None:
        """The inside endpoint itself."""
        del proto
        return inside

    def install(self, forward: Forward) -> None:
        """Make a pinhole."""
        inside = (forward.to, forward.port)
        old = self.table.outward(forward.proto, inside, inside, ENDPOINT_INDEPENDENT)
        if old is not None:
            self.table.remove(old)
        self.table.create(forward.proto, inside, None, ENDPOINT_INDEPENDENT, inside)

    def forward_del(self, proto: int, to: bytes, port: int) -> None:
        """Close a pinhole. Raises ConfigError when there is none."""
        mapping = self.table.inward.get((proto, to, port))
        if mapping is None or not mapping.static:
            raise ConfigError(f"{self.name}: no pinhole for port {port}")
        self.table.remove(mapping)
        self.forwards = [f for f in self.forwards if (f.proto, f.to, f.port) != (proto, to, port)]

    def send_out(self, packet: Packet, mapping: Mapping, remote: Endpoint, now: float) -> None:
        """Let it out."""
        self.count_dst(packet)
        self.host.emit(self, "out", packet, now)

    def send_in(self, packet: Packet, mapping: Mapping, now: float) -> None:
        """Let it in."""
        self.host.emit(self, "in", packet, now)

    def answer_in(self, packet: Packet, now: float) -> None:
        """Send to the inside."""
        self.host.emit(self, "in", packet, now)

    def error_out(self, packet: Packet, now: float) -> None:
        """About a packet that had been let in, or dropped."""
        quote = Quote.read(packet)
        if quote and (quote.proto, quote.dst, quote.dport) in self.table.inward:
            self.count_dst(packet)
            self.host.emit(self, "out", packet, now)
        else:
            self.drop("icmp-unknown")

    def error_in(self, packet: Packet, now: float) -> None:
        """About a packet that had been let out, or dropped."""
        quote = Quote.read(packet)
        if quote and (quote.proto, quote.src, quote.sport) in self.table.inward:
            self.host.emit(self, "in", packet, now)
        else:
            self.drop("icmp-unknown")

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        return super().describe() | {"families": self.families}

"""Routers and LANs: forwarding by the longest prefix."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from warpgate_natlab.engine.node import NO_ROUTE, TIME_EXCEEDED, Host, Node, errors_allowed
from warpgate_natlab.engine.packet import Packet, addr_bytes
from warpgate_natlab.engine.policy import ConfigError, check_keys

__all__ = ["Lan", "RouteTable", "Router"]

_CACHE = 65536


class RouteTable:
    """Prefixes to port names, longest first, with a cache by address."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[int, int], dict[int, str]] = {}
        self._order: dict[int, list[int]] = {4: [], 16: []}
        self._cache: dict[bytes, str | None] = {}

    @staticmethod
    def _parse(prefix: str) -> tuple[int, int, int]:
        try:
            net = ip_network(prefix, strict=False)
        except ValueError as error:
            raise ConfigError(f"{prefix!r} is no prefix") from error
        size = net.network_address.packed
        shift = len(size) * 8 - net.prefixlen
        return len(size), net.prefixlen, int.from_bytes(size, "big") >> shift

    def add(self, prefix: str, port: str) -> None:
        """Send ``prefix`` to ``port`` (in place of where it went)."""
        size, length, value = self._parse(prefix)
        self._by_length.setdefault((size, length), {})[value] = port
        self._reorder()

    def remove(self, prefix: str) -> None:
        """Forget ``prefix``. Raises ConfigError when it is not there."""
        size, length, value = self._parse(prefix)
        if self._by_length.get((size, length), {}).pop(value, None) is None:
            raise ConfigError(f"no route for {prefix}")
        self._reorder()

    def _reorder(self) -> None:
        self._cache.clear()
        for size in self._order:
            lengths = [n for (s, n), routes in self._by_length.items() if s == size and routes]
            self._order[size] = sorted(lengths, reverse=True)

    def lookup(self, addr: bytes) -> str | None:
        """The port for ``addr``, or None."""
        try:
            return self._cache[addr]
        except KeyError:
            pass
        size, number = len(addr), int.from_bytes(addr, "big")
        found = None
        for length in self._order[size]:
            found = self._by_length[size, length].get(number >> (size * 8 - length))
            if found is not None:
                break
        if len(self._cache) >= _CACHE:
            self._cache.clear()
        self._cache[addr] = found
        return found

    def describe(self) -> dict[str, list[str]]:
        """The routes by port."""
        result: dict[str, list[str]] = {}
        for (size, length), routes in self._by_length.items():
            for value, port in routes.items():
                raw = (value << (size * 8 - length)).to_bytes(size, "big")
                result.setdefault(port, []).append(str(ip_network((raw, length))))
        return result

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> RouteTable:
        """From ``{port: [prefixes]}``."""
        table = cls()
        for port, prefixes in given.items():
            if not isinstance(prefixes, list):
                raise ConfigError(f"routes of {port}: a list of prefixes")
            for prefix in prefixes:
                table.add(prefix, port)
        return table


class Router(Node):
    """A router (see the engine's docstring)."""

    kind = "router"

    def __init__(self, name: str, host: Host, given: Mapping[str, Any]) -> None:
        super().__init__(name, host)
        check_keys(name, given, {"type", "addresses", "routes", "ttl"})
        self.addresses = [addr_bytes(text) for text in given.get("addresses", [])]
        self.routes = RouteTable.load(given.get("routes", {}))
        self.ttl = bool(given.get("ttl", True))

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """Forward, answer or refuse one packet."""
        self.packets += 1
        if packet.dst in self.addresses:
            reply = self.ping(packet)
            if reply is None:
                self.drop("for-router")
            else:
                self._forward(None, reply, now)
            return
        if self.ttl and not packet.hop():
            self.drop("ttl")
            self._refuse(packet, TIME_EXCEEDED, now)
            return
        self._forward(port, packet, now)

    def _forward(self, port: str | None, packet: Packet, now: float) -> None:
        out = self.routes.lookup(packet.dst)
        if out is None:
            self.drop("no-route")
            self._refuse(packet, NO_ROUTE, now)
        elif out == port and not self.ttl:
            self.drop("same-port")
        else:
            self.count_dst(packet)
            self.host.emit(self, out, packet, now)

    def _refuse(
        self, packet: Packet, what: tuple[tuple[int, int], tuple[int, int]], now: float
    ) -> None:
        if not errors_allowed(packet) or packet.src in self.addresses:
            return
        error = self.error(packet, what)
        if error is not None:
            self.icmp_sent += 1
            self._forward(None, error, now)

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        return super().describe() | {"routes": self.routes.describe(), "ttl": self.ttl}


class Lan(Router):
    """One subnet: no hop is counted, multicast reaches every other port."""

    kind = "lan"

    def __init__(self, name: str, host: Host, given: Mapping[str, Any]) -> None:
        super().__init__(name, host, {"ttl": False} | dict(given))
        self.linked: set[str] = set()  # the graph adds ports as links come

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """Forward or flood one packet."""
        first = packet.dst[0]
        flood = first == 0xFF if packet.v6 else 224 <= first < 240 or packet.dst == b"\xff" * 4
        if not flood:
            super().receive(port, packet, now)
            return
        self.packets += 1
        self.count_dst(packet)
        for other in sorted(self.linked - {port}):
            self.host.emit(self, other, packet.copy(), now)

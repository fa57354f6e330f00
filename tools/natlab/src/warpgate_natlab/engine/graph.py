"""The whole network as one discrete-event machine: packets and times in, packets out. Pure."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from warpgate_natlab.engine.device import Device, DeviceSpec
from warpgate_natlab.engine.frag import fragment
from warpgate_natlab.engine.link import Direction
from warpgate_natlab.engine.nat import Firewall, Nat, Translator
from warpgate_natlab.engine.nat64 import Nat64
from warpgate_natlab.engine.node import Node
from warpgate_natlab.engine.packet import MalformedPacket, Packet, addr_text
from warpgate_natlab.engine.policy import ConfigError, check_keys
from warpgate_natlab.engine.router import Lan, Router

__all__ = ["Graph", "Link"]

_STATEFUL: dict[str, type[Nat | Firewall | Nat64]] = {
    "nat": Nat,
    "firewall": Firewall,
    "nat64": Nat64,
}
_STATELESS: dict[str, type[Router]] = {"router": Router, "lan": Lan}
_Call = Callable[[float], None]


class _Way:
    """One direction of a link as its sender sees it."""

    __slots__ = ("direction", "link", "node", "port")

    def __init__(self, link: Link, direction: Direction, node: Node, port: str) -> None:
        self.link = link
        self.direction = direction
        self.node = node
        self.port = port


class Link:
    """Two ends and the impairments of both directions."""

    def __init__(self, name: str, seed: str, given: Mapping[str, Any]) -> None:
        check_keys(name, given, {"a", "b", "both", "ab", "ba"})
        both = given.get("both", {})
        self.name = name
        self.ends: tuple[str, str] = (given["a"], given["b"])
        self.ab = Direction(f"{seed}/link/{name}/ab", {**both, **given.get("ab", {})})
        self.ba = Direction(f"{seed}/link/{name}/ba", {**both, **given.get("ba", {})})
        self.tap: Callable[[float, bytearray], None] | None = None

    def directions(self, which: str) -> list[Direction]:
        """The directions "ab", "ba" or "both" name."""
        try:
            return {"ab": [self.ab], "ba": [self.ba], "both": [self.ab, self.ba]}[which]
        except KeyError:
            raise ConfigError(f"dir: {which!r} is none of ab, ba, both") from None

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        a, b = self.ends
        return {"a": a, "b": b, "ab": self.ab.describe(), "ba": self.ba.describe()}

    def stats(self) -> dict[str, Any]:
        """The counters of both directions."""
        return {"ab": self.ab.stats(), "ba": self.ba.stats()}


class Graph:
    """Nodes, devices and links, and the packets under way.

    Args:
        config: as the engine's docstring has it.

    Raises:
        ConfigError: naming what is wrong.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        check_keys("configuration", config, {"seed", "devices", "nodes", "links"})
        self.seed = str(config.get("seed", 0))
        self.nodes: dict[str, Node] = {}
        self.devices: dict[str, Device] = {}
        self.links: dict[str, Link] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        self._heap: list[tuple[float, int, _Way | None, Packet | _Call]] = []
        self._order = count()
        self._work: deque[tuple[_Way, Packet, float]] = deque()
        self._out: list[tuple[str, bytearray]] = []
        self._ident = 0
        self.add({k: v for k, v in config.items() if k != "seed"})

    # Building.

    def add(self, config: Mapping[str, Any]) -> list[Device]:
        """Add devices, nodes and links; all or nothing. The new devices come back."""
        check_keys("add", config, {"devices", "nodes", "links"})
        nodes: dict[str, Node] = {}
        devices: dict[str, Device] = {}
        for name, given in config.get("devices", {}).items():
            self._check_name(name, nodes)
            nodes[name] = devices[name] = Device(name, self, DeviceSpec.load(name, given))
        for name, given in config.get("nodes", {}).items():
            self._check_name(name, nodes)
            nodes[name] = self._make(name, given)
        everything = {**self.nodes, **nodes}
        links: dict[str, Link] = {}
        ways: dict[tuple[str, str], _Way] = {}
        for name, given in config.get("links", {}).items():
            if name in self.links or name in everything:
                raise ConfigError(f"{name!r} exists already")
            if not {"a", "b"} <= set(given):
                raise ConfigError(f"link {name}: a and b are needed")
            links[name] = self._connect(Link(name, self.seed, given), everything, ways)
        self.nodes = everything
        self.devices.update(devices)
        self.links.update(links)
        self._ways.update(ways)
        for owner, port in ways:
            node = everything[owner]
            if isinstance(node, Lan):
                node.linked.add(port)
        return list(devices.values())

    def _check_name(self, name: str, new: Mapping[str, Node]) -> None:
        if ":" in name or not name:
            raise ConfigError(f"{name!r} is no good name")
        if name in self.nodes or name in new or name in self.links:
            raise ConfigError(f"{name!r} exists already")

    def _make(self, name: str, given: Mapping[str, Any]) -> Node:
        kind = given.get("type")
        try:
            if kind in _STATELESS:
                return _STATELESS[kind](name, self, given)
            if kind in _STATEFUL:
                rng = random.Random(f"{self.seed}/node/{name}")
                return _STATEFUL[kind](name, self, given, rng)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"node {name}: {error}") from error
        raise ConfigError(
            f"node {name}: type {kind!r} is none of router, lan, nat, firewall, nat64"
        )

    def _connect(
        self, link: Link, nodes: Mapping[str, Node], ways: dict[tuple[str, str], _Way]
    ) -> Link:
        ends = []
        for text in link.ends:
            owner, _, port = text.partition(":")
            node = nodes.get(owner)
            if node is None:
                raise ConfigError(f"link {link.name}: there is no {owner!r}")
            allowed = node.ports()
            if (allowed is not None and port not in allowed) or (allowed is None and not port):
                known = ", ".join(sorted(allowed or ())) or "any name"
                raise ConfigError(f"link {link.name}: {owner} has no port {port!r} ({known})")
            if (owner, port) in self._ways or (owner, port) in ways:
                raise ConfigError(f"link {link.name}: {text} is linked already")
            ends.append((node, port))
        (node_a, port_a), (node_b, port_b) = ends
        if isinstance(node_a, Lan) and isinstance(node_b, Lan):
            raise ConfigError(f"link {link.name}: two lans cannot be linked")
        ways[node_a.name, port_a] = _Way(link, link.ab, node_b, port_b)
        ways[node_b.name, port_b] = _Way(link, link.ba, node_a, port_a)
        return link

    def remove_link(self, name: str) -> None:
        """Take a link away. Raises ConfigError when there is none."""
        if name not in self.links:
            raise ConfigError(f"there is no link {name!r}")
        link = self.links.pop(name)
        for text in link.ends:
            owner, _, port = text.partition(":")
            del self._ways[owner, port]
            node = self.nodes[owner]
            if isinstance(node, Lan):
                node.linked.discard(port)

    def remove_device(self, name: str) -> None:
        """Take a device and its link away. Raises ConfigError when there is none."""
        if name not in self.devices:
            raise ConfigError(f"there is no device {name!r}")
        way = self._ways.get((name, ""))
        if way is not None:
            self.remove_link(way.link.name)
        del self.devices[name], self.nodes[name]

    def peer(self, node: Node, port: str) -> tuple[Node, str] | None:
        """What is at the other end of the link at ``port``."""
        way = self._ways.get((node.name, port))
        return (way.node, way.port) if way else None

    # Running.

    def inject(self, device: str, data: bytes | bytearray, now: float) -> None:
        """A host sends a packet; call :meth:`advance` first when time has passed."""
        source = self.devices.get(device)
        if source is None:
            return
        try:
            packet = Packet(data)
        except MalformedPacket:
            source.drop("malformed")
            return
        if source.take(packet):
            self.emit(source, "", packet, now)
            self._drain()

    def deliver(self, device: str, packet: bytearray) -> None:
        """A device hands ``packet`` to its host: part of what :meth:`advance` returns."""
        self._out.append((device, packet))

    def advance(self, now: float) -> list[tuple[str, bytearray]]:
        """Let time pass to ``now``; what reaches hosts comes back, in order.

        Every event happens at its own time, not at ``now``: delays add up exactly.
        """
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, way, what = heapq.heappop(heap)
            if way is None:
                assert callable(what)
                what(at)
            else:
                assert isinstance(what, Packet)
                way.direction.queued -= 1
                self._work.append((way, what, at))
            self._drain()
        out, self._out = self._out, []
        return out

    def next_time(self) -> float | None:
        """When something happens next, if anything is under way."""
        return self._heap[0][0] if self._heap else None

    def later(self, at: float, call: _Call) -> None:
        """Call ``call(now)`` at the time ``at``."""
        heapq.heappush(self._heap, (at, next(self._order), None, call))

    def emit(self, node: Node, port: str, packet: Packet, now: float) -> None:
        """A node sends a packet out of a port."""
        way = self._ways.get((node.name, port))
        if way is None:
            node.drop("unlinked")
            return
        how = way.direction.how
        if how.mtu and len(packet.buf) > how.mtu:
            self._oversize(node, port, way, packet, now)
        else:
            self._transmit(way, packet, now)

    def _oversize(self, node: Node, port: str, way: _Way, packet: Packet, now: float) -> None:
        how = way.direction.how
        if not how.mtu_icmp or (packet.dont_fragment and not packet.whole):
            way.direction.drop("mtu")
            if how.mtu_icmp:
                node.too_big(port, packet, how.mtu, now)
            return
        self._ident += 1
        for piece in fragment(packet, how.mtu, self._ident):
            self._transmit(way, piece, now)

    def _transmit(self, way: _Way, packet: Packet, now: float) -> None:
        if way.link.tap is not None:
            way.link.tap(now, packet.buf)
        times = way.direction.schedule(len(packet.buf), now)
        for number, at in enumerate(times):
            copy = packet.copy() if number else packet
            if at <= now:
                self._work.append((way, copy, now))
            else:
                way.direction.queued += 1
                heapq.heappush(self._heap, (at, next(self._order), way, copy))

    def _drain(self) -> None:
        work = self._work
        while work:
            way, packet, now = work.popleft()
            way.direction.delivered += 1
            way.node.receive(way.port, packet, now)

    # What the control socket asks for.

    def node(self, name: object) -> Node:
        """A node that is no device. Raises ConfigError."""
        found = self.nodes.get(name) if isinstance(name, str) else None
        if found is None or isinstance(found, Device):
            raise ConfigError(f"there is no node {name!r}")
        return found

    def link(self, name: object) -> Link:
        """A link. Raises ConfigError."""
        if not isinstance(name, str) or name not in self.links:
            raise ConfigError(f"there is no link {name!r}")
        return self.links[name]

    def readdress(self, name: object, external: object, now: float) -> int:
        """Give a nat other external addresses; the router outside follows. Raises ConfigError."""
        node = self.node(name)
        if not isinstance(node, Translator):
            raise ConfigError(f"{name!r} has no external address")
        new = node.check_external(external)
        old = list(node.pool.addresses)
        gone = node.readdress(new, now)
        router, port = self.peer(node, "out") or (None, "")
        if isinstance(router, Router):
            routes = router.routes
            for addr in old:
                if f"{addr_text(addr)}/32" in routes.describe().get(port, []):
                    routes.remove(f"{addr_text(addr)}/32")
            for addr in new:
                routes.add(f"{addr_text(addr)}/32", port)
        return gone

    def describe(self) -> dict[str, Any]:
        """The configuration with all defaults."""
        return {
            "seed": self.seed,
            "devices": {name: device.describe() for name, device in self.devices.items()},
            "nodes": {
                name: node.describe()
                for name, node in self.nodes.items()
                if not isinstance(node, Device)
            },
            "links": {name: link.describe() for name, link in self.links.items()},
        }

    def stats(self, now: float, name: str | None = None) -> dict[str, Any]:
        """The counters of everything, or of the device, node or link ``name``."""
        if name is not None:
            if name in self.nodes:
                return self.nodes[name].stats(now)
            return self.link(name).stats()
        result: dict[str, Any] = {"devices": {}, "nodes": {}}
        for key, node in self.nodes.items():
            group = "devices" if isinstance(node, Device) else "nodes"
            result[group][key] = node.stats(now)
        return result | {"links": {key: link.stats() for key, link in self.links.items()}}

    def reset_stats(self) -> None:
        """All counters to zero."""
        for node in self.nodes.values():
            node.reset_stats()
        for link in self.links.values():
            link.ab.reset_stats()
            link.ba.reset_stats()

"""A graph with a clock of its own: whole topologies in microseconds, without privileges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from warpgate_natlab.engine.build import valid_checksums
from warpgate_natlab.engine.graph import Graph
from warpgate_natlab.engine.node import Node
from warpgate_natlab.engine.packet import Packet

__all__ = ["World", "two_nats"]

N = TypeVar("N", bound=Node)


class World:
    """Sends and receives packets at a graph's devices.

    Args:
        config: as for the engine; devices may be given by name alone (a list), since nothing is
            opened here.
        check: assert that every packet delivered has right checksums.
    """

    def __init__(self, config: Mapping[str, Any], *, check: bool = True) -> None:
        devices = config.get("devices", {})
        if not isinstance(devices, Mapping):
            devices = {name: {"netns": name, "name": "eth0"} for name in devices}
        self.graph = Graph({**config, "devices": devices})
        self.now = 1000.0
        self.arrived: dict[str, list[tuple[float, Packet]]] = {name: [] for name in devices}
        self._check = check

    def send(self, device: str, packet: Packet) -> None:
        """Hand a copy of ``packet`` to the network; what is under way without delay arrives."""
        self.graph.inject(device, bytes(packet.buf), self.now)
        self._collect()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, event by event."""
        end = self.now + seconds
        while (at := self.graph.next_time()) is not None and at <= end:
            self.now = max(self.now, at)
            self._collect()
        self.now = end
        self._collect()

    def _collect(self) -> None:
        for device, data in self.graph.advance(self.now):
            packet = Packet(bytearray(data))
            if self._check and not packet.fragment:
                assert valid_checksums(packet), f"wrong checksum at {device}: {data.hex()}"
            self.arrived[device].append((self.now, packet))

    def node(self, name: str, kind: type[N]) -> N:
        """A node of the graph, as what it is."""
        found = self.graph.node(name)
        assert isinstance(found, kind)
        return found

    def take(self, device: str) -> list[Packet]:
        """What has arrived at a device since the last call."""
        packets = [packet for _, packet in self.arrived[device]]
        self.arrived[device].clear()
        return packets


def two_nats(
    nat: Mapping[str, Any] | None = None,
    nat_b: Mapping[str, Any] | None = None,
    seed: int = 1,
    **access: Any,
) -> World:
    """Hosts on both sides of an internet: the topology of most tests.

    a (192.168.1.2) and a2 (.3) share a LAN behind nat_a (inside 192.168.1.1, 203.0.113.10); b
    (10.0.0.2) is behind nat_b (203.0.113.20); s has all of 198.51.100.0/24; the router in the
    middle is 203.0.113.1.

    Args:
        nat: more for nat_a.
        nat_b: more for nat_b.
        seed: of the graph.
        access: ``both``, ``ab``, ``ba`` of the link between nat_a and the router.
    """
    return World(
        {
            "seed": seed,
            "devices": ["a", "a2", "b", "s"],
            "nodes": {
                "lan": {
                    "type": "lan",
                    "routes": {
                        "a": ["192.168.1.2/32"], "a2": ["192.168.1.3/32"], "up": ["0.0.0.0/0"],
                    },
                },
                "nat_a": {"type": "nat", "external": ["203.0.113.10"], "address": "192.168.1.1"}
                | dict(nat or {}),
                "nat_b": {"type": "nat", "external": ["203.0.113.20"]} | dict(nat_b or {}),
                "inet": {
                    "type": "router",
                    "addresses": ["203.0.113.1"],
                    "routes": {
                        "na": ["203.0.113.8/29"], "nb": ["203.0.113.20/32"],
                        "s": ["198.51.100.0/24"],
                    },
                },
            },
            "links": {
                "la": {"a": "a", "b": "lan:a"},
                "la2": {"a": "a2", "b": "lan:a2"},
                "lan_a": {"a": "lan:up", "b": "nat_a:in"},
                "lb": {"a": "b", "b": "nat_b:in"},
                "acc_a": {"a": "nat_a:out", "b": "inet:na", **access},
                "acc_b": {"a": "nat_b:out", "b": "inet:nb"},
                "srv": {"a": "s", "b": "inet:s"},
            },
        }
    )  # fmt: skip

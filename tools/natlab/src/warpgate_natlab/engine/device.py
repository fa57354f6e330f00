"""A device: the end of the network where a host's kernel takes over. Pure; tun.py does the I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_interface
from typing import Any, Protocol

from warpgate_natlab.engine.build import icmp_error
from warpgate_natlab.engine.node import TOO_BIG, Host, Node, errors_allowed
from warpgate_natlab.engine.packet import Packet, addr_text
from warpgate_natlab.engine.policy import ConfigError, check_keys

__all__ = ["Device", "DeviceSpec"]

_IGMP = 2
_IFNAMSIZ = 15


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """How a TUN device is to be made."""

    netns: str
    name: str
    addresses: tuple[str, ...] = ()
    mtu: int = 1500
    txqueuelen: int = 5000
    routes: tuple[str, ...] = ()

    @classmethod
    def load(cls, name: str, given: Mapping[str, Any]) -> DeviceSpec:
        """From a configuration object. Raises ConfigError."""
        known = {"netns", "name", "addresses", "mtu", "txqueuelen", "routes"}
        check_keys(f"device {name}", given, known)
        if not isinstance(given.get("netns"), str) or not given["netns"]:
            raise ConfigError(f"device {name}: netns: the name of a network namespace")
        ifname = given.get("name", name)
        if not ifname or len(ifname) > _IFNAMSIZ or "/" in ifname or any(map(str.isspace, ifname)):
            raise ConfigError(f"device {name}: {ifname!r} is no interface name")
        try:
            addresses = tuple(str(ip_interface(text)) for text in given.get("addresses", ()))
        except ValueError as error:
            raise ConfigError(f"device {name}: {error}") from error
        return cls(
            netns=given["netns"],
            name=ifname,
            addresses=addresses,
            mtu=int(given.get("mtu", 1500)),
            txqueuelen=int(given.get("txqueuelen", 5000)),
            routes=tuple(given.get("routes", ())),
        )


class _Outlet(Host, Protocol):
    """What a device asks of its graph besides."""

    def deliver(self, device: str, packet: bytearray) -> None: ...

    def peer(self, node: Node, port: str) -> tuple[Node, str] | None: ...


def _noise(packet: Packet) -> bool:
    """The kernel's own link-local chatter, which no network here carries."""
    if not packet.v6:
        return packet.proto == _IGMP
    src, dst = packet.src, packet.dst
    local = src[0] == 0xFE and src[1] & 0xC0 == 0x80
    return local or not any(src) or (dst[0] == 0xFF and dst[1] & 0x0F <= 2)


class Device(Node):
    """One TUN device as a node with the single port ``""``."""

    kind = "device"

    def __init__(self, name: str, outlet: _Outlet, spec: DeviceSpec) -> None:
        super().__init__(name, outlet)
        self._outlet = outlet
        self.spec = spec
        self.reset_stats()

    def ports(self) -> set[str]:
        """The nameless one."""
        return {""}

    def take(self, packet: Packet) -> bool:
        """Count a packet from the host; False: it goes no further."""
        self.rx_packets += 1
        self.rx_bytes += len(packet.buf)
        if _noise(packet):
            self.drop("link-local")
            return False
        return True

    def receive(self, port: str, packet: Packet, now: float) -> None:
        """A packet for the host."""
        self.tx_packets += 1
        self.tx_bytes += len(packet.buf)
        self.tx_src[packet.src] = self.tx_src.get(packet.src, 0) + 1
        self._outlet.deliver(self.name, packet.buf)

    def too_big(self, port: str, packet: Packet, mtu: int, now: float) -> None:
        """Tell the host, as the first router on its way."""
        if not errors_allowed(packet):
            return
        peer = self._outlet.peer(self, port)
        src = peer[0].own_address(v6=packet.v6) if peer else None
        kind, code = TOO_BIG[packet.v6]
        self.icmp_sent += 1
        self.receive(port, icmp_error(src or packet.dst, packet, kind, code, mtu), now)

    def describe(self) -> dict[str, Any]:
        """Its configuration, with all defaults."""
        return asdict(self.spec)

    def stats(self, now: float) -> dict[str, Any]:
        """Its counters."""
        return {
            "rx_packets": self.rx_packets,
            "rx_bytes": self.rx_bytes,
            "tx_packets": self.tx_packets,
            "tx_bytes": self.tx_bytes,
            "drops": dict(self.drops),
            "tx_src": {addr_text(addr): n for addr, n in self.tx_src.items()},
        }

    def reset_stats(self) -> None:
        """All counters to zero."""
        super().reset_stats()
        self.rx_packets = self.rx_bytes = self.tx_packets = self.tx_bytes = 0
        self.tx_src: dict[bytes, int] = {}

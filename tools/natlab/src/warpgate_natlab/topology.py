"""From a pair of profiles to namespaces, addresses and the engine's description; pure.

::

    a eth0 ── NATs, firewalls ── access link ──┐
                                             inet ── servers' link ── net eth0 (all servers)
    b eth0 ── NATs, firewalls ── access link ──┘

Every public address is one of documentation (RFC 5737, RFC 3849). Only ``linux-upnp`` has others,
since miniupnpd refuses to map ports on those: 44.128.0.0/16, the radio amateurs' test network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final

from .profiles import ACCESS_DELAY_MS, NAT64_PREFIX, SERVER_DELAY_MS, Pair, Profile

NET_ROLE: Final = "net"
INET_V4: Final = "192.0.2.1"
INET_V6: Final = "2001:db8:100::1"
BROKERS: Final = ("192.0.2.10", "192.0.2.11")
STUN: Final = ("192.0.2.20", "192.0.2.21")
NTP: Final = "192.0.2.30"
DNS: Final = "192.0.2.53"
PROBES: Final = ("192.0.2.100", "192.0.2.101")
SERVERS: Final = (*BROKERS, *STUN, NTP, DNS, *PROBES)
_PUBLIC: Final = ("198.51.100.10", "203.0.113.10", "198.51.100.30")
_PUBLIC_UPNP: Final = ("44.128.1.10", "44.128.2.10", "44.128.3.10")


def server_v6(address: str) -> str:
    """Return a server's IPv6 address, given its IPv4 address."""
    return f"2001:db8:100::{address.rpartition('.')[2]}"


def nat64(address: str, prefix: str = NAT64_PREFIX) -> str:
    """Return the IPv6 address under which NAT64 reaches an IPv4 address (RFC 6052)."""
    return str(ip_network(prefix)[int(ip_address(address))])


@dataclass
class Nic:
    """One interface of a host.

    Attributes:
        name: ``eth0``, ``eth1``.
        profile: what it is behind.
        local: own address, by IP version.
        public: the address that others see, by IP version; 64 stands for IPv4 through NAT64.
        access: the name of its access link; ``ab`` is outward.
        nodes: the engine's NATs and firewalls, from the host outward.
        router: the role of its kernel NAT's namespace, or None.
        outermost: the node that bears the public IPv4 address, or None.

    """

    name: str
    profile: Profile
    local: dict[int, str]
    public: dict[int, str]
    access: str
    nodes: list[str] = field(default_factory=list)
    router: str | None = None
    outermost: str | None = None


@dataclass
class Router:
    """A kernel NAT in a namespace of its own, and the hosts on its LAN side."""

    role: str
    kind: str
    upnp: bool
    address: str
    hosts: list[tuple[str, str]]


@dataclass
class Topology:
    """All of a laboratory, before it exists.

    Attributes:
        roles: the namespaces.
        engine: the engine's description; ``netns`` of a device holds a role.
        hosts: the interfaces of ``a`` and ``b``.
        routers: the kernel NATs.

    """

    roles: list[str]
    engine: dict[str, Any]
    hosts: dict[str, list[Nic]]
    routers: list[Router]

    @property
    def nat64_prefix(self) -> str:
        """What the one DNS64 server puts before IPv4 addresses; ValueError where hosts have two."""
        behind = [nic.profile for nics in self.hosts.values() for nic in nics if nic.profile.nat64]
        prefixes = {profile.nat64_prefix for profile in behind} or {NAT64_PREFIX}
        if len(prefixes) > 1:
            several = " and ".join(sorted(prefixes))
            raise ValueError(f"there is one DNS64 server, and NAT64 by {several}")
        return prefixes.pop()


class _Builder:
    def __init__(self, seed: int | str, link: dict[str, Any]) -> None:
        self.link = link
        self.devices: dict[str, Any] = {}
        self.nodes: dict[str, Any] = {}
        self.links: dict[str, Any] = {}
        self.inet: dict[str, list[str]] = {}
        self.routers: list[Router] = []
        self.roles = [NET_ROLE]
        self.seed = seed
        self._servers()

    def _servers(self) -> None:
        four = [f"{address}/24" for address in SERVERS]
        six = [f"{server_v6(address)}/64" for address in SERVERS]
        self.device(NET_ROLE, NET_ROLE, "eth0", four + six)
        self.connect("servers", NET_ROLE, "inet:net", delay_ms=SERVER_DELAY_MS)
        self.inet["net"] = ["192.0.2.0/24", "2001:db8:100::/64"]

    def device(
        self, name: str, role: str, interface: str, addresses: list[str], route: str = "default"
    ) -> None:
        self.devices[name] = {
            "netns": role,
            "name": interface,
            "addresses": addresses,
            "routes": [route],
        }

    def connect(self, name: str, a: str, b: str, **both: Any) -> None:
        self.links[name] = {"a": a, "b": b, **({"both": both} if both else {})}

    def access(self, nic: Nic, inner: str, key: str, prefixes: list[str]) -> None:
        self.connect(nic.access, inner, f"inet:{key}", delay_ms=ACCESS_DELAY_MS)
        self.links[nic.access]["both"].update(self.link)
        self.inet[key] = prefixes

    def uplink(self, key: str, number: int, profile: Profile, name: str, hosts: list[str]) -> Nic:
        """Add what stands between a host's interface and the internet.

        Args:
            key: names the elements, such as ``a`` or ``a2``.
            number: 0, 1, 2 …: chooses the addresses.
            profile: what to build.
            name: the interface's name.
            hosts: the device names of the hosts on the LAN, as many as share it.

        """
        public = (_PUBLIC_UPNP if profile.upnp else _PUBLIC)[number]
        net = number + 1
        local = {6: f"2001:db8:{net}:1::2"} if 6 in profile.families else {}
        seen = dict(local)
        if 4 in profile.families:
            local[4] = f"192.168.{net}.2" if profile.translated else public
            seen[4] = public
        nic = Nic(name, profile, local, seen, f"access_{key}")
        if profile.kernel is not None:
            self._kernel(key, nic, public, hosts)
            return nic
        addresses = [
            f"{ip}/{24 if version == 4 else 64}" for version, ip in sorted(nic.local.items())
        ]
        route = "default" if name == "eth0" else "default metric 200"
        for offset, device in enumerate(hosts):
            shifted = [_shift(address, offset) for address in addresses]
            self.device(device, device.rstrip("2"), name, shifted, route)
        inner = self._lan(key, nic, hosts) if len(hosts) > 1 else hosts[0]
        inner = self._chain(key, nic, inner, public)
        prefixes = [f"{public}/32"] if 4 in profile.families or profile.nat64 else []
        if 6 in profile.families:
            prefixes.append(f"2001:db8:{net}:1::/64")
        self.access(nic, inner, key, prefixes)
        return nic

    def _lan(self, key: str, nic: Nic, hosts: list[str]) -> str:
        routes = {
            device: [_shift(f"{ip}/{32 if version == 4 else 128}", offset)
                     for version, ip in nic.local.items()]
            for offset, device in enumerate(hosts)
        }  # fmt: skip
        routes["up"] = ["0.0.0.0/0", "::/0"]
        self.nodes[f"lan_{key}"] = {"type": "lan", "routes": routes}
        for device in hosts:
            self.connect(f"port_{device}", device, f"lan_{key}:{device}")
        return f"lan_{key}:up"

    def _chain(self, key: str, nic: Nic, inner: str, public: str) -> str:
        """Add a profile's firewall and NATs; return the outermost port."""
        profile = nic.profile
        parts: list[tuple[str, dict[str, Any]]] = []
        if profile.firewall is not None and not profile.nat64:
            families = [f for f in profile.firewall_families if f in profile.families]
            parts.append(
                (f"fw_{key}", {"type": "firewall", "families": families, **profile.firewall})
            )
        inside = nic.local[4].rpartition(".")[0] + ".1" if 4 in nic.local else ""
        if profile.nat is not None:
            external = public if profile.carrier is None else "100.64.1.2"
            conf = {"type": "nat", "external": [external], "address": inside, **profile.nat}
            parts.append((f"nat_{key}", {**conf, "v6": "pass"}))
        if profile.carrier is not None:
            conf = {"type": "nat", "external": [public], "address": "100.64.1.1"}
            parts.append((f"cgn_{key}", {**conf, **profile.carrier}))
        if profile.nat64:
            return self._nat64(key, nic, inner, public)
        for name, node in parts:
            self.nodes[name] = node
            nic.nodes.append(name)
            self.connect(f"link_{name}", inner, f"{name}:in")
            inner = f"{name}:out"
            if node["type"] == "nat":
                nic.outermost = name
        return inner

    def _nat64(self, key: str, nic: Nic, inner: str, public: str) -> str:
        """Split a host's traffic over a firewall and a NAT64, and join it again."""
        own = nic.local[6]
        nic.public[64] = public
        gateway = own[:-1] + "1"
        self.nodes[f"cpe_{key}"] = {
            "type": "router",
            "addresses": [gateway],
            "routes": {"in": [f"{own}/128"], "six": ["::/0"], "four": [nic.profile.nat64_prefix]},
        }
        assert nic.profile.firewall is not None
        self.nodes[f"fw_{key}"] = {"type": "firewall", "families": [6], **nic.profile.firewall}
        self.nodes[f"nat64_{key}"] = {
            "type": "nat64",
            "external": [public],
            "prefix": nic.profile.nat64_prefix,
            "mapping": "endpoint-independent",
            "filtering": "address-and-port-dependent",
            "allocation": "random",
            "hairpin": False,
        }
        self.nodes[f"edge_{key}"] = {
            "type": "router",
            "addresses": [],
            "routes": {
                "six": [f"{own}/128"],
                "four": [f"{public}/32"],
                "out": ["0.0.0.0/0", "::/0"],
            },
        }
        self.connect(f"port_{key}", inner, f"cpe_{key}:in")
        self.connect(f"link_fw_{key}", f"cpe_{key}:six", f"fw_{key}:in")
        self.connect(f"link_nat64_{key}", f"cpe_{key}:four", f"nat64_{key}:in")
        self.connect(f"edge_fw_{key}", f"fw_{key}:out", f"edge_{key}:six")
        self.connect(f"edge_nat64_{key}", f"nat64_{key}:out", f"edge_{key}:four")
        nic.nodes += [f"fw_{key}", f"nat64_{key}"]
        nic.outermost = f"nat64_{key}"
        return f"edge_{key}:out"

    def _kernel(self, key: str, nic: Nic, public: str, hosts: list[str]) -> None:
        role = f"{key}-nat"
        self.roles.append(role)
        gateway = nic.local[4].rpartition(".")[0] + ".1"
        ends = [(device, _shift(nic.local[4], offset)) for offset, device in enumerate(hosts)]
        assert nic.profile.kernel is not None
        self.routers.append(Router(role, nic.profile.kernel, nic.profile.upnp, gateway, ends))
        self.device(f"wan_{key}", role, "wan0", [f"{public}/24"])
        self.access(nic, f"wan_{key}", key, [f"{public}/32"])
        nic.router = role

    def finish(self, hosts: dict[str, list[Nic]]) -> Topology:
        self.nodes["inet"] = {
            "type": "router",
            "addresses": [INET_V4, INET_V6],
            "routes": self.inet,
        }
        engine = {
            "seed": self.seed,
            "devices": self.devices,
            "nodes": self.nodes,
            "links": self.links,
        }
        return Topology([*self.roles, *hosts], engine, hosts, self.routers)


def _shift(address: str, offset: int) -> str:
    """Add to the last number of an address, keeping its prefix length."""
    ip, slash, length = address.partition("/")
    separator = ":" if ":" in ip else "."
    head, _, tail = ip.rpartition(separator)
    number = int(tail, 16 if separator == ":" else 10) + offset
    return f"{head}{separator}{number:x}{slash}{length}" if separator == ":" else (
        f"{head}.{number}{slash}{length}"
    )  # fmt: skip


def plan(pair: Pair, *, seed: int | str = 0, link: dict[str, Any] | None = None) -> Topology:
    """Return the topology of a pair.

    Args:
        pair: the networks of both hosts.
        seed: of every random choice in NATs and links.
        link: parameters of all access links, both ways, in the engine's words; ``delay_ms`` 20.

    Raises:
        ValueError: a host with two interfaces has a kernel NAT on its second, or shares its LAN.

    """
    builder = _Builder(seed, link or {})
    if pair.same_lan:
        if len(pair.a) > 1:
            raise ValueError("two hosts on one LAN have one interface each")
        nic = builder.uplink("a", 0, pair.a[0], "eth0", ["a", "b"])
        other = Nic(
            nic.name,
            nic.profile,
            {version: _shift(ip, 1) for version, ip in nic.local.items()},
            nic.public,
            nic.access,
            nic.nodes,
            nic.router,
            nic.outermost,
        )
        return builder.finish({"a": [nic], "b": [other]})
    hosts: dict[str, list[Nic]] = {}
    for number, (role, behind) in enumerate((("a", pair.a), ("b", pair.b))):
        hosts[role] = [builder.uplink(role, number, behind[0], "eth0", [role])]
        for extra in behind[1:]:
            if extra.kernel is not None or role != "a" or len(behind) > 2:
                raise ValueError("only a's second interface may differ, with a user-space NAT")
            hosts[role].append(builder.uplink(f"{role}2", 2, extra, "eth1", [f"{role}2"]))
    return builder.finish(hosts)

"""A laboratory: two hosts, their networks, an internet between them, and servers on it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from . import kernel_nat
from .control import Engine
from .namespaces import LabError, Namespace, ip_batch, make, why_not
from .portal import Portal
from .profiles import Pair, Profile, pair, pair_of
from .runs import Run
from .servers import KINDS, Servers, broker_addresses
from .topology import DNS, NET_ROLE, Nic, Router, plan, server_v6

if TYPE_CHECKING:
    from .topology import Topology

Direction = Literal["out", "in", "both"]
_DIRECTIONS: Final = {"out": "ab", "in": "ba", "both": "both"}


class Host(Namespace):
    """One of the two hosts; everything of :class:`Namespace` works in it.

    Attributes:
        nics: its interfaces, the one with the better default route first.

    """

    def __init__(self, run: Run, role: str, nics: list[Nic]) -> None:
        super().__init__(run, role)
        self.nics = nics

    @property
    def families(self) -> tuple[int, ...]:
        """The IP versions of the host's own addresses."""
        return tuple(sorted({version for nic in self.nics for version in nic.local}))

    @property
    def ip(self) -> str:
        """The first interface's own address; IPv4 where it has one."""
        return self.nics[0].local[min(self.nics[0].local)]

    @property
    def public_ip(self) -> str:
        """The address that others see, of the same family as :attr:`ip`."""
        return self.nics[0].public[min(self.nics[0].local)]


class Lab:
    """Build a laboratory; a context manager that takes it down again.

    Make it in a thread that lives as long as the laboratory: the engine dies with that thread.

    Args:
        a, b: what each host is behind: names of profiles, or profiles of your own.
        pair: a named pair instead.
        seed: of the random choices in user-space NATs and links. The kernel's are its own.
        servers: the kinds to start: ``mqtt``, ``stun``, ``ntp``, ``dns``; ``"all"``. A host behind
            NAT64 brings ``dns``.
        relays: the IP versions of the TURN server's relays.
        link: parameters of both access links, both ways (``delay_ms``, ``loss``, ``rate_bps`` …).

    Attributes:
        a, b: the hosts.
        net: the namespace of the servers; ``topology.PROBES`` are two addresses free for tests.
        servers: what runs there, and by which URLs.
        engine: the user-space network; ``engine.ask`` takes all its operations.

    Raises:
        LabError: there are no privileges, or something is missing here.
        ValueError: a name is unknown, or the hosts are behind NAT64 with two prefixes.

    """

    def __init__(
        self,
        a: str | Profile = "open",
        b: str | Profile = "open",
        *,
        pair: str | Pair | None = None,
        seed: int | str = 0,
        servers: str | Iterable[str] = (),
        relays: Iterable[int] = (4, 6),
        **link: Any,
    ) -> None:
        self.pair = _pair(a, b, pair)
        self.topology: Topology = plan(self.pair, seed=seed, link=link)
        reason = why_not()
        if reason:
            raise LabError(reason)
        self._relays = tuple(relays)
        self.run = Run()
        self._closed = False
        self._engine: Engine | None = None
        self._servers: Servers | None = None
        self._portals: dict[str, Portal] = {}
        try:
            self._build(_kinds(servers, self.topology))
        except BaseException:
            self.close()
            raise

    def _build(self, kinds: list[str]) -> None:
        made = make(self.run, self.topology.roles)
        self.net = made[NET_ROLE]
        self.a = Host(self.run, "a", self.topology.hosts["a"])
        self.b = Host(self.run, "b", self.topology.hosts["b"])
        self._routers = {router.role: made[router.role] for router in self.topology.routers}
        for router in self.topology.routers:
            self._make_router(router)
        config = self.topology.engine
        for device in config["devices"].values():
            device["netns"] = self.run.namespace(device["netns"])
        self._engine = Engine(self.run, config)
        self._servers = Servers(self.run, self.net, self.topology.nat64_prefix, self._relays)
        for host in (self.a, self.b):
            self._set_up(host)
        self._servers.start(kinds)
        for router in self.topology.routers:
            if router.upnp:
                self._servers.start_upnp(made[router.role], router)

    def _make_router(self, router: Router) -> None:
        """Join hosts and router by a bridge of veth pairs, and make the router a NAT."""
        inside = self.run.namespace(router.role)
        lan = kernel_nat.LAN
        ip_batch([f"link add {lan} type bridge", f"addr add {router.address}/24 dev {lan}",
                  f"link set {lan} up"], inside)  # fmt: skip
        ip_batch(
            f"link add eth0 netns {self.run.namespace(role)} type veth "
            f"peer name port-{role} netns {inside}"
            for role, _ in router.hosts
        )
        ip_batch((f"link set port-{role} master {lan} up" for role, _ in router.hosts), inside)
        for role, address in router.hosts:
            ip_batch(
                [
                    # As on TUN: no link-local address, which would differ from run to run.
                    "link set eth0 addrgenmode none",
                    f"addr add {address}/24 dev eth0",
                    "link set eth0 up",
                    f"route add default via {router.address}",
                ],
                self.run.namespace(role),
            )
        kernel_nat.configure(self._routers[router.role], router.kind)

    def _set_up(self, host: Host) -> None:
        if any(nic.profile.nat64 for nic in host.nics):
            host.resolver(server_v6(DNS))
        if self._apart:
            host.names(broker_addresses(host.families))
        if len(host.nics) < 2:
            return
        for number, nic in enumerate(host.nics):
            table = 100 + number
            for version, address in nic.local.items():
                everything = "0.0.0.0/0" if version == 4 else "::/0"
                host.configure(
                    f"route add {everything} dev {nic.name} src {address} table {table}",
                    f"rule add from {address} lookup {table}",
                )

    # What it consists of.

    @property
    def engine(self) -> Engine:
        """The user-space network."""
        assert self._engine is not None
        return self._engine

    @property
    def servers(self) -> Servers:
        """The servers on the internet side."""
        assert self._servers is not None
        return self._servers

    def host(self, which: str) -> Host:
        """Return host ``a`` or ``b``."""
        return {"a": self.a, "b": self.b}[which]

    def nic(self, which: str) -> Nic:
        """Return a host's interface: ``a``, ``b``, or ``a2`` for a's second."""
        for nic in [*self.a.nics, *self.b.nics]:
            if nic.access == f"access_{which}" or (which == "b" and nic is self.b.nics[0]):
                return nic
        raise ValueError(f"no interface {which!r}")

    @property
    def _apart(self) -> bool:
        """Whether the hosts have no IP version in common: then a broker's name is, not its address."""
        return not set(self.a.families) & set(self.b.families)

    def environ(self, which: str) -> dict[str, str]:
        """Return the environment that tells a node on a host of the servers here."""
        host = self.host(which)
        families = host.families
        # Peers need a broker in common: one that gets out on 443 only decides for both.
        everyone = (self.a, self.b)
        https = any(all(nic.profile.https_only for nic in each.nics) for each in everyone)
        servers = self.servers
        urls = {
            "WARPGATE_BROKERS": servers.brokers(families, https, self._apart),
            "WARPGATE_STUN": servers.stun(families),
            "WARPGATE_TURN": servers.turn(families),
            "WARPGATE_NTP": servers.ntp(families),
        }
        environ = {name: ",".join(values) for name, values in urls.items()}
        if servers.ca_file is not None:
            environ["SSL_CERT_FILE"] = str(servers.ca_file)
        return environ

    # What can happen to it.

    def set_link(self, which: str, direction: Direction = "both", **params: Any) -> Any:
        """Change a link's impairments while it runs.

        Args:
            which: ``a``, ``b``, ``a2``: that access link; ``servers``; or the engine's name of a link.
            direction: ``out``: from the host (the servers) to the internet; ``in``; ``both``.
            params: the engine's names: ``delay_ms``, ``jitter_ms``, ``loss``, ``burst_p``, ``burst_r``,
                ``reorder``, ``duplicate``, ``rate_bps``, ``mtu``, ``mtu_icmp`` …

        """
        return self.engine.ask(
            "set_link", link=self._link(which), dir=_DIRECTIONS[direction], params=params
        )

    def cut(self, which: str, direction: Direction = "both") -> None:
        """Cut a link: what is sent over it is lost."""
        self.engine.ask("cut", link=self._link(which), dir=_DIRECTIONS[direction])

    def restore(self, which: str, direction: Direction = "both") -> None:
        """Mend a link that was cut."""
        self.engine.ask("restore", link=self._link(which), dir=_DIRECTIONS[direction])

    def captive(self, which: str) -> None:
        """Put an interface into a captive network: a portal answers for the whole internet.

        Every TCP connection out is made with the portal, which sends a login page (in TLS by a
        certificate of its own); UDP is lost, but for DNS, where every name is the portal's. What the
        profile's own NATs and firewalls do stays as it is, so :meth:`login` leaves that profile.

        Args:
            which: ``a``, ``b`` or ``a2``.

        Raises:
            LabError: nftables is missing.

        """
        link = self.nic(which).access
        if link not in self._portals:
            self._portals[link] = Portal(self, link)
        self._portals[link].capture()

    def login(self, which: str) -> None:
        """Log in at an interface's captive portal: the internet is there again."""
        portal = self._portals.get(self.nic(which).access)
        if portal is not None:
            portal.login()

    def _link(self, which: str) -> str:
        if which in self.topology.engine["links"]:
            return which
        return self.nic(which).access

    def set_nat(self, which: str, **params: Any) -> None:
        """Change the behaviour of all user-space NATs and firewalls of an interface."""
        for node in self.nic(which).nodes:
            self.engine.ask("set_node", node=node, params=params)

    def reboot_nat(self, which: str, down_s: float = 0.0) -> int:
        """Let an interface's NATs and firewalls forget every mapping.

        Args:
            which: ``a``, ``b`` or ``a2``.
            down_s: seconds for which they forward nothing; user space only.

        Returns:
            How many mappings were forgotten; -1 where the kernel doesn't say.

        """
        nic = self.nic(which)
        if nic.router is None:
            answers = [self.engine.ask("reboot", node=node, down_s=down_s) for node in nic.nodes]
            return sum(answer["forgotten"] for answer in answers)
        if down_s:
            raise ValueError("a kernel NAT reboots at once; cut the link for longer")
        router = self._routers[nic.router]
        kernel_nat.forget(router)
        return -1

    def change_address(self, which: str) -> str:
        """Give an interface's outermost NAT another public IPv4 address, as a provider may.

        Returns:
            The new address.

        Raises:
            ValueError: the interface is not behind an IPv4 NAT.

        """
        nic = self.nic(which)
        if nic.router is None and nic.outermost is None:
            raise ValueError(f"{nic.profile.name} translates no IPv4")
        version = 64 if nic.profile.nat64 else 4
        old = nic.public[version]
        new = str(ipaddress.ip_address(old) + 1)
        if nic.outermost is not None:
            self.engine.ask("readdress", node=nic.outermost, external=[new])
        if nic.outermost is None or nic.profile.nat64:
            # The engine moves the route of the router next to the NAT only.
            port = nic.access.removeprefix("access_")
            self.engine.ask("route_add", node="inet", prefix=f"{new}/32", port=port)
            self.engine.ask("route_del", node="inet", prefix=f"{old}/32")
        if nic.router is not None:
            router = self._routers[nic.router]
            wan = kernel_nat.WAN
            # The old one first: with the first address of a subnet the kernel drops the others.
            router.configure(
                f"addr del {old}/24 dev {wan}",
                f"addr add {new}/24 dev {wan}",
                f"route replace default dev {wan} src {new}",
            )
            kernel_nat.forget(router)
        nic.public[version] = new
        return new

    def router(self, which: str) -> Namespace:
        """Return the namespace of an interface's kernel NAT.

        Raises:
            ValueError: its NAT is not the kernel's.

        """
        role = self.nic(which).router
        if role is None:
            raise ValueError(f"interface {which} is not behind a kernel NAT")
        return self._routers[role]

    def stats(self, name: str | None = None) -> Any:
        """Return the engine's counters, of everything or of one device, node or link."""
        return self.engine.ask("stats", **({} if name is None else {"name": name}))

    def mappings(self, which: str) -> list[dict[str, Any]]:
        """Return the live mappings of an interface's user-space NATs and firewalls, inner first."""
        found: list[dict[str, Any]] = []
        for node in self.nic(which).nodes:
            found += self.engine.ask("mappings", node=node)
        return found

    # Its end.

    def close(self) -> None:
        """Take everything down; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._servers is not None:
                self._servers.close()
            if self._engine is not None:
                self._engine.close()
        finally:
            self.run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pair(a: str | Profile, b: str | Profile, named: str | Pair | None) -> Pair:
    if isinstance(named, Pair):
        return named
    return pair_of(a, b) if named is None else pair(named)


def _kinds(servers: str | Iterable[str], topology: Topology) -> list[str]:
    if servers == "all":
        return list(KINDS)
    wanted: Sequence[str] = servers.split(",") if isinstance(servers, str) else list(servers)
    kinds = [kind for kind in wanted if kind]
    if any(nic.profile.nat64 for nics in topology.hosts.values() for nic in nics):
        kinds.append("dns")
    return kinds

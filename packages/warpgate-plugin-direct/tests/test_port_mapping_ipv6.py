"""IPv6 pinholes in the firewall of a real router with miniupnpd."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("warpgate_natlab", reason="needs the NAT laboratory")

from warpgate import IP4, IP6
from warpgate.protocol.peer_address import Endpoint, parse_address
from warpgate_natlab import kernel_nat
from warpgate_natlab.namespaces import Namespace, command, ip_batch, make, why_not
from warpgate_natlab.runs import Run
from warpgate_natlab.session import Peer

pytestmark = [pytest.mark.netns]

WAIT_S = 15.0
HOST = "2001:db8:1::2"
OUTSIDE = "2001:db8:9::2"
needs_upnp = pytest.mark.skipif(
    importlib.util.find_spec("async_upnp_client") is None, reason="needs async-upnp-client"
)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class World:
    """A host, its router with a stateful firewall, and a host outside."""

    def __init__(self) -> None:
        self.run = Run()
        self.processes: list[Any] = []
        try:
            self.spaces = make(self.run, ["a", "router", "b"])
            self._wire()
            self._miniupnpd()
        except BaseException:
            self.close()
            raise

    def _wire(self) -> None:
        a, router, b = (self.spaces[role] for role in ("a", "router", "b"))
        for space, ours in ((a, "lan0"), (b, "wan0")):
            ip_batch([f"link add {ours} type veth peer name eth0 netns {space.name}"], router.name)
        router.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        router.configure(
            "link set lan0 addrgenmode none",  # one link-local address, as routers have
            "addr add fe80::1/64 dev lan0 nodad",
            "addr add 2001:db8:1::1/64 dev lan0 nodad",
            "addr add 192.168.1.1/24 dev lan0",
            "addr add 2001:db8:9::1/64 dev wan0 nodad",
            "addr add 44.128.1.10/24 dev wan0",
            "link set lan0 up",
            "link set wan0 up",
        )
        a.configure(
            f"addr add {HOST}/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via fe80::1 dev eth0",
        )
        b.configure(
            f"addr add {OUTSIDE}/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 2001:db8:9::1",
        )
        kernel_nat.configure(router, "upnp")
        nft = command("nft") or "nft"
        # Neighbour discovery is no connection; and nothing of IPv6 is translated here.
        rules = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept"
        router.run([nft, "add", "rule", "inet", "filter", "input", *rules.split()])
        router.run([nft, "flush", "chain", "inet", "filter", "postrouting"])

    def _miniupnpd(self) -> None:
        folder = self.run.folder
        lines = [
            "ext_ifname=wan0", "listening_ip=lan0", "http_port=5000", "ipv6_disable=no",
            "enable_upnp=yes", "enable_natpmp=yes", "min_lifetime=10", "max_lifetime=86400",
            "secure_mode=yes", "uuid=00000000-0000-4000-8000-000000000006", "serial=1",
            f"lease_file={folder}/leases", f"lease_file6={folder}/leases6",
            "upnp_table_name=filter", "upnp_nat_table_name=filter",
            "upnp_forward_chain=miniupnpd", "upnp_nat_chain=prerouting_miniupnpd",
            "upnp_nat_postrouting_chain=postrouting_miniupnpd",
            "allow 1024-65535 192.168.1.0/24 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535",
        ]  # fmt: skip
        config = folder / "miniupnpd.conf"
        config.write_text("\n".join(lines) + "\n", "ascii")
        argv = [command("miniupnpd") or "", "-d", "-f", str(config), "-P", str(folder / "pid")]
        with (folder / "miniupnpd.log").open("wb") as log:
            process = self.spaces["router"].popen(argv, stdout=log, stderr=log)
        self.processes.append(process)
        until(lambda: "HTTP listening" in self.log())

    def reboot(self) -> None:
        """Let miniupnpd and the firewall forget everything, and start anew."""
        process = self.processes.pop()
        process.kill()
        process.wait()
        for name in ("leases", "leases6", "pid"):
            (self.run.folder / name).unlink(missing_ok=True)
        nft = command("nft") or "nft"
        self.spaces["router"].run([nft, "flush", "chain", "inet", "filter", "miniupnpd"])
        assert self.pinholes() == 0
        self._miniupnpd()

    def log(self) -> str:
        return (self.run.folder / "miniupnpd.log").read_text("utf-8", "replace")

    def end(self) -> int:
        """Return when the pinhole for TCP ends: miniupnpd writes it down (that of UDP only once)."""
        text = (self.run.folder / "leases6").read_text("ascii")
        rows = [line.split(";") for line in text.splitlines()]
        return next((int(row[6]) for row in rows if row[0] == "TCP"), 0)

    def forwards(self) -> int:
        """Return how many ports are translated."""
        return sum(
            "dnat" in line for line in kernel_nat.ruleset(self.spaces["router"]).splitlines()
        )

    def pinholes(self) -> int:
        """Return how many ports the firewall lets in."""
        nft = command("nft") or "nft"
        listed = self.spaces["router"].run([nft, "list", "chain", "inet", "filter", "miniupnpd"])
        return listed.stdout.count(" accept")

    # What a Peer needs of a laboratory.

    def host(self, which: str) -> Namespace:
        return self.spaces[which]

    def environ(self, which: str) -> dict[str, str]:
        names = ("BROKERS", "STUN", "TURN", "NTP")
        return {f"WARPGATE_{name}": "" for name in names}

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.run.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if why_not():
        pytest.skip(why_not())
    if command("miniupnpd") is None or command("nft") is None:
        pytest.skip("needs miniupnpd and nftables")
    built = World()
    yield built
    built.close()


def peer(world: World, which: str, **settings: Any) -> Peer:
    lab: Any = SimpleNamespace(run=world.run, host=world.host, environ=world.environ)
    conf = {"enable_upnp": bool(settings), "plugin_conf": {"port_mapping": settings}}
    return Peer(lab, which, {**conf, "install_path": ":memory:"})


def address(node: Peer) -> str:
    return str(node.ask({"do": "address"})["address"])


def endpoint(node: Peer) -> Endpoint:
    (record,) = parse_address(address(node)).interfaces
    found = record.endpoint(IP6)
    assert found is not None
    return found


def endpoints(node: Peer) -> dict[int, Endpoint]:
    (record,) = parse_address(address(node)).interfaces
    return {each.af: each for each in record.endpoints}


def dial(outside: Peer, inside: Peer) -> dict[str, Any]:
    options = {"plugins": ["direct_connect"]}
    request = {"do": "connect", "address": address(inside), "timeout": 3, "options": options}
    return outside.ask(request, 15)


def test_the_firewall_is_closed(world: World) -> None:
    with peer(world, "b") as outside, peer(world, "a") as inside:
        outside.answer(WAIT_S)
        inside.answer(WAIT_S)
        assert not dial(outside, inside)["ok"]
        assert world.pinholes() == 0


@pytest.mark.parametrize("protocol", ["pcp", pytest.param("upnp", marks=needs_upnp)])
def test_a_pinhole_lets_others_in(world: World, protocol: str) -> None:
    with peer(world, "b") as outside:
        outside.answer(WAIT_S)
        with peer(world, "a", protocols=[protocol], check_s=1) as inside:
            inside.answer(WAIT_S)
            until(lambda: endpoint(inside).ext_port is not None)
            found = endpoint(inside)
            assert (found.ext_ip, found.ext_port, found.nat) == (HOST, found.port, 3)
            until(lambda: world.pinholes() == 2)
            result = dial(outside, inside)
            assert result["ok"], result
            time.sleep(2.5)  # looks whether the pinholes are there leave them as they are
            assert world.pinholes() == 2
        assert world.pinholes() == 0


@pytest.mark.parametrize("protocol", ["pcp", pytest.param("upnp", marks=needs_upnp)])
def test_pinholes_are_renewed_at_half_life(world: World, protocol: str) -> None:
    with peer(world, "a", protocols=[protocol], lease_s=10, check_s=3600) as inside:
        inside.answer(WAIT_S)
        until(lambda: endpoint(inside).ext_port is not None)
        found = endpoint(inside)
        until(lambda: world.end() > 0)
        first = world.end()
        until(lambda: world.end() >= first + 4)
        until(lambda: world.pinholes() == 2)
        assert endpoint(inside) == found
    if (
        protocol == "pcp"
    ):  # miniupnpd 2.3 forgets in a renewal whose it is, and lets no one remove it
        world.reboot()
    assert world.pinholes() == 0


@pytest.mark.parametrize("protocol", ["pcp", pytest.param("upnp", marks=needs_upnp)])
def test_pinholes_are_made_again_after_a_reboot(world: World, protocol: str) -> None:
    with peer(world, "a", protocols=[protocol], check_s=1) as inside:
        inside.answer(WAIT_S)
        until(lambda: endpoint(inside).ext_port is not None)
        found = endpoint(inside)
        until(lambda: world.pinholes() == 2)
        world.reboot()
        until(lambda: world.pinholes() == 2)
        assert endpoint(inside) == found
    assert world.pinholes() == 0


@pytest.mark.parametrize(
    "protocols",
    [["pcp"], pytest.param(["pcp", "nat-pmp", "upnp"], marks=needs_upnp)],
    ids="+".join,
)
def test_both_families_at_once(world: World, protocols: list[str]) -> None:
    a = world.spaces["a"]
    a.configure("addr add 192.168.1.2/24 dev eth0", "route add default via 192.168.1.1 dev eth0")
    try:
        with peer(world, "a", protocols=protocols) as inside:
            inside.answer(WAIT_S)
            until(lambda: all(each.ext_port is not None for each in endpoints(inside).values()))
            found = endpoints(inside)
            assert (found[IP4].ext_ip, found[IP4].ext_port) == ("44.128.1.10", found[IP4].port)
            assert (found[IP6].ext_ip, found[IP6].ext_port) == (HOST, found[IP6].port)
            until(lambda: (world.forwards(), world.pinholes()) == (2, 4))
        assert (world.forwards(), world.pinholes()) == (0, 0)
    finally:
        a.configure("addr del 192.168.1.2/24 dev eth0")

"""The node's side: the hook, which addresses are mapped, changes of the network, the end."""

from __future__ import annotations

import asyncio
import socket
from importlib.metadata import entry_points
from typing import Any

import pytest

from warpgate import IP4, IP6, ConfigError, Node
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.nat.report import NetReport, PathReport
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, PeerAddress, pack_address
from warpgate.resources import Resources
from warpgate_plugin_direct import port_mapping
from warpgate_plugin_direct.port_mapping import mapper_of
from warpgate_plugin_direct.port_mapping.mapper import MAX_SPOTS, Mapper, spots_of
from warpgate_plugin_direct.port_mapping.model import Spot
from warpgate_plugin_direct.port_mapping.settings import Settings

pytest_plugins = ["warpgate.testing.pytest_plugin"]

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
GLOBAL6 = "2001:db8:1::5"


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


def nic(name: str = "eth0", **fields: Any) -> Interface:
    addresses = (
        InterfaceAddress(IP4, "192.168.1.2", 24, "private"),
        InterfaceAddress(IP6, "fe80::2%eth0", 64, "link"),
        InterfaceAddress(IP6, GLOBAL6, 64, "global"),
    )
    values: dict[str, Any] = {
        "addresses": addresses,
        "gateways": {IP4: "192.168.1.1", IP6: "fe80::1"},
        **fields,
    }
    return Interface(name, 7, **values)


def address(*endpoints: Endpoint, records: int = 1) -> PeerAddress:
    return pack_address(
        Identity.generate(),
        machine=bytes(16),
        sequence=1,
        brokers=(),
        interfaces=[InterfaceRecord(7 + number, endpoints) for number in range(records)],
    )


def v4(ip: str = "192.168.1.2") -> Endpoint:
    return Endpoint(IP4, ip, 12345, None, None, 0, 0)


def v6(ip: str = "fe80::2", ext: str | None = GLOBAL6) -> Endpoint:
    return Endpoint(IP6, ip, 12345, ext, None, 0, 0)


def test_what_is_mapped() -> None:
    assert spots_of([nic()], address(v4(), v6())) == [
        Spot("eth0", 7, IP4, "192.168.1.2", 12345, "192.168.1.1"),
        Spot("eth0", 7, IP6, GLOBAL6, 12345, "fe80::1%eth0"),
    ]


def test_a_gateway_that_is_not_known_is_found_out_later() -> None:
    (spot,) = spots_of([nic(gateways={IP4: None})], address(v4()))
    assert spot.gateway is None


@pytest.mark.parametrize(
    ("interface", "endpoint"),
    [
        (nic(), v4("203.0.113.7")),  # it bears a public address itself
        (nic(), v4("169.254.1.2")),
        (nic(gateways={}), v4()),  # it leads nowhere
        (nic(loopback=True), v4()),
        (nic(), v6(ext=None)),  # bound to the link-local address alone
        (nic(), v6("fd00::2", ext=None)),
        (nic(addresses=(InterfaceAddress(IP6, "fd00::2", 64, "private"),)), v6("fd00::2")),
    ],
)
def test_what_is_not(interface: Interface, endpoint: Endpoint) -> None:
    assert spots_of([interface], address(endpoint)) == []


def test_a_node_that_is_bound_to_a_public_ipv6_address() -> None:
    (spot,) = spots_of([nic()], address(v6(GLOBAL6, None)))
    assert spot.local_ip == GLOBAL6


def test_there_is_an_end_to_it() -> None:
    nics = [nic(f"eth{number}") for number in range(6)]
    assert len(spots_of(nics, address(v4(), v6(), records=6))) == MAX_SPOTS


class FakeNetwork:
    """Stands in for ``node.network``."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.callbacks: list[Any] = []
        self.refuse = False
        self.news = asyncio.Event()

    def set_port_mapping(self, af: int, interface: str, external: Any) -> None:
        if self.refuse:
            raise ValueError("no external address")
        self.published.append((af, interface, external))
        self.news.set()
        self.change()  # the core tells everybody, us too

    def on_change(self, callback: Any) -> Any:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def change(self) -> None:
        for callback in list(self.callbacks):
            callback()


class FakeNode:
    """Stands in for a node whose one interface is the loopback, called otherwise."""

    def __init__(self, **conf: Any) -> None:
        self.conf: dict[str, Any] = {"enable_upnp": True, "plugin_conf": {}, **conf}
        self.stats = Counters()
        self.resources = Resources(self.stats)
        self.identity = Identity.generate()
        self.network = FakeNetwork()
        self.net_report: NetReport | None = None
        self.ifs = [
            Interface(
                "fake0", 1, (InterfaceAddress(IP4, LOCAL, 8, "private"),), gateways={IP4: LOCAL}
            )
        ]
        self.peer_address = address(v4(LOCAL))
        self.running = asyncio.Event()
        self.failure: Exception | None = None

    async def start(self) -> None:
        await self.running.wait()
        if self.failure is not None:
            raise self.failure

    async def mapped(self) -> Any:
        async with asyncio.timeout(10):
            while not self.network.published:
                self.network.news.clear()
                await self.network.news.wait()
        return self.network.published[-1]


@pytest.fixture(autouse=True)
def _loopback_is_private(monkeypatch: Any) -> None:
    from warpgate_plugin_direct.port_mapping import mapper

    original = mapper.is_private
    monkeypatch.setattr(mapper, "is_private", lambda ip: ip.startswith("127.") or original(ip))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCAL, 0))
        return int(sock.getsockname()[1])


def settings(router: Any, **others: Any) -> dict[str, Any]:
    return {
        "protocols": ["pcp"],
        "pcp_port": router.port,
        "ssdp_port": 1,
        "announce_port": free_port(),
        **others,
    }


async def test_the_hook_begins_in_the_background(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router)})
    await port_mapping.warpgate_node_starting(node)
    mapper = mapper_of(node)
    assert mapper is not None
    assert str(mapper) == "port mapping: the node is starting"
    await asyncio.sleep(0.02)
    assert router.log == []  # there is no port yet
    node.running.set()
    assert await node.mapped() == (IP4, "fake0", (PUBLIC, 12345))
    assert router.mappings == {("tcp", 12345): 12345, ("udp", 12345): 12345}
    assert "fake0, IPv4 127.0.0.1 port 12345: 203.0.113.7 port 12345 leads here" in str(mapper)
    await node.resources.close(2)
    assert router.mappings == {}
    assert node.network.published == [(IP4, "fake0", (PUBLIC, 12345))]
    assert node.network.callbacks == []
    assert node.stats["resource_errors"] == node.stats["resource_timeouts"] == 0


async def test_nothing_without_enable_upnp(router: Any) -> None:
    node = FakeNode(enable_upnp=False, plugin_conf={"port_mapping": settings(router)})
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    assert mapper_of(node) is None
    assert len(asyncio.all_tasks()) == 1


async def test_a_bad_setting_is_told() -> None:
    node = FakeNode(plugin_conf={"port_mapping": {"lease": 5}})
    with pytest.raises(ConfigError, match="no setting 'lease'; known: announce_port"):
        await port_mapping.warpgate_node_starting(node)


async def test_a_node_that_does_not_start(router: Any) -> None:
    node = FakeNode()
    node.failure = OSError("no address to listen on")
    mapper = Mapper(node, Settings(**settings(router)))
    node.running.set()
    async with asyncio.timeout(5):
        while str(mapper) != "port mapping: the node did not start":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await mapper.close()


async def test_a_node_that_is_closed_while_it_starts(router: Any) -> None:
    mapper = Mapper(FakeNode(), Settings(**settings(router)))
    await mapper.close()
    await mapper.close()
    assert router.log == []


async def test_the_report_of_stun_servers_counts(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router)})
    path = PathReport("fake0", IP4, LOCAL, external=("198.51.100.1",), several_nats=False)
    node.net_report = NetReport((path,))
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    assert await node.mapped() == (IP4, "fake0", ("198.51.100.1", 12345))
    await node.resources.close(2)


async def test_another_network_is_mapped_anew(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router)})
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    await node.mapped()
    node.ifs, node.peer_address = [], address(v4("203.0.113.50"))
    node.network.change()
    assert node.network.published[-1] == (IP4, "fake0", None)
    assert str(mapper_of(node)) == (
        "port mapping: no interface is behind a router that could map a port"
    )
    await router.until(lambda: router.mappings == {})
    node.ifs, node.peer_address = (
        FakeNode().ifs,
        address(Endpoint(IP4, LOCAL, 12346, None, None, 0, 0)),
    )
    node.network.published.clear()
    node.network.change()
    assert await node.mapped() == (IP4, "fake0", (PUBLIC, 12346))
    await node.resources.close(2)


async def test_a_change_of_the_network_looks_at_the_router_at_once(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router, check_s=3600)})
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    await node.mapped()
    router.reboot()
    node.network.change()
    await router.until(lambda: len(router.mappings) == 2)
    await node.resources.close(2)


async def test_its_own_news_are_no_change(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router)})
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    await node.mapped()
    asked = len(router.log)
    await asyncio.sleep(0.1)
    assert len(router.log) == asked  # a look would be an ANNOUNCE
    await node.resources.close(2)


async def test_an_address_that_the_core_refuses(router: Any) -> None:
    node = FakeNode(plugin_conf={"port_mapping": settings(router)})
    node.network.refuse = True
    node.running.set()
    await port_mapping.warpgate_node_starting(node)
    await router.until(lambda: len(router.mappings) == 2)
    async with asyncio.timeout(5):
        while not node.stats["port_mapping_refused"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await node.resources.close(2)


# Real nodes.


def test_the_distribution_offers_it() -> None:
    (point,) = entry_points(group="warpgate.strategies", name="port_mapping")
    assert point.load() is port_mapping
    assert point.dist is not None
    assert point.dist.name == "warpgate-plugin-direct"


async def test_a_node_on_the_loopback_asks_nobody(make_node: Any) -> None:
    node = await make_node(ip=LOCAL, conf={"enable_upnp": True})
    await asyncio.sleep(0)
    mapper = mapper_of(node)
    assert mapper is not None
    async with asyncio.timeout(5):
        while "starting" in str(mapper):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert str(mapper) == "port mapping: no interface is behind a router that could map a port"
    assert node.stats["hook_errors"] == 0


async def test_the_node_starts_in_spite_of_a_bad_setting() -> None:
    conf = {**NODE_TEST_CONF, "enable_upnp": True, "plugin_conf": {"port_mapping": {"x": 1}}}
    async with Node(ip=LOCAL, conf=conf) as node:
        assert node.stats["hook_errors"] == 1
        assert mapper_of(node) is None


@pytest.mark.parametrize(
    "conf",
    [
        {"enable_upnp": False},
        {"enable_upnp": True, "block_plugins": ["port_mapping"]},
        {"enable_upnp": True, "plugins": ["direct_connect"]},
    ],
)
async def test_nodes_without_it(make_node: Any, conf: dict[str, Any]) -> None:
    node = await make_node(ip=LOCAL, conf=conf)
    assert mapper_of(node) is None
    assert node.traversal.rejected == []
    assert "direct_connect" in node.traversal.plugin_loaders


async def test_a_node_with_it_alone(make_node: Any) -> None:
    node = await make_node(ip=LOCAL, conf={"enable_upnp": True, "plugins": ["port_mapping"]})
    assert mapper_of(node) is not None
    assert "direct_connect" not in node.traversal.plugin_loaders

"""What a node knows of its network: STUN servers on loopback, interfaces as the test wants them."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import replace

import pytest

from warpgate import NODE_TEST_CONF, Node
from warpgate.events import NetworkChanged
from warpgate.net.constants import IP4, DeltaType, NATType
from warpgate.net.datagram import DatagramSocket
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node import addressing, network, place
from warpgate.node.auto_connect import auto_connect
from warpgate.node.network_cache import FILE_NAME
from warpgate.protocol.peer_address import unpack_address
from warpgate.stun import attributes as att
from warpgate.stun.message import BINDING, MessageClass, decode, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")

OUTSIDE = "198.51.100.1"
LO = Interface("lo", 9, (InterfaceAddress(IP4, "127.0.0.1", 8, "loopback"),), loopback=True)


def nic(name="eth0", index=1, ip="127.0.1.1"):
    return Interface(
        name, index, (InterfaceAddress(IP4, ip, 24, "private"),), gateways={IP4: "127.0.1.254"}
    )


class Server:
    """A STUN server that says what a NAT would make it see; silent when ``sees`` returns None."""

    def __init__(self, link):
        self.link = link
        self.asked = []
        self.sees = lambda source: (OUTSIDE, source[1])
        link.default = self.received

    @property
    def text(self):
        return "{}:{}".format(*self.link.local)

    def received(self, data, source):
        self.asked.append(source)
        mapped = self.sees(source)
        if mapped is not None:
            answer = [(att.XOR_MAPPED_ADDRESS, mapped)]
            transaction = decode(data).transaction_id
            self.link.send_to(encode(BINDING, MessageClass.SUCCESS, transaction, answer), source)


@pytest.fixture
async def servers():
    made = []
    for ip in ("127.0.2.1", "127.0.3.1"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((ip, 0))
        made.append(Server(await DatagramSocket.open(sock)))
    yield made
    for server in made:
        server.link.close()


@pytest.fixture
def machine(monkeypatch):
    now = [nic()]
    for module in (addressing, place):
        monkeypatch.setattr(module, "list_interfaces", lambda: list(now))
        monkeypatch.setattr(module, "loopback_interface", lambda: LO)
    return now


@pytest.fixture
def launch(start, servers, machine):
    """Return an async function that starts a node which asks the two servers."""

    async def made(**conf):
        return await start(
            ip=None,
            conf={
                "enable_stun_clients": True,
                "stun_servers": [server.text for server in servers],
                **conf,
            },
        )

    return made


def endpoint(node, number=0):
    address = unpack_address(node.address())
    found = address.interfaces[number].endpoint(IP4)
    assert found is not None
    return found


async def until(condition, seconds=5):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


async def test_a_node_without_stun_only_watches(start, machine) -> None:
    before = asyncio.all_tasks()
    node = await start(ip=None)
    assert not {t for t in asyncio.all_tasks() - before if "network" in repr(t)}
    assert not node.network.pending
    assert await node.network.ready(0) is None
    assert node.net_report is None
    assert node.network.path(IP4) is None
    assert node.network.age_s is None
    assert not node.network.stale
    machine.append(nic("eth1", 2, "127.0.4.1"))
    node.network._noticed(slept=False)
    await until(lambda: len(node.peer_address.interfaces) == 2)
    assert [each.name for each in node.ifs] == ["eth0", "eth1"]
    with socket.create_connection(("127.0.4.1", node.port)):
        pass


async def test_the_address_says_what_servers_see(launch, servers) -> None:
    node = await launch()
    assert endpoint(node).nat == 0  # nothing was waited for
    assert node.network.pending
    report = await node.network.ready()
    assert not node.network.pending
    found = endpoint(node)
    assert (found.ip, found.ext_ip, found.ext_port) == ("127.0.1.1", OUTSIDE, node.port)
    assert (found.nat, found.delta) == (NATType.PORT_RESTRICTED, DeltaType.EQUAL)
    assert node.net_report == report
    assert report.path(IP4, "eth0") == node.network.path(IP4, "eth0")
    assert node.network.age_s < 5
    assert not node.network.stale
    link = node.listening_socket(IP4, "127.0.1.1")
    assert link.local in servers[0].asked
    assert link.local in servers[1].asked
    assert node.network.servers(IP4) == [server.link.local for server in servers]


async def test_a_symmetric_nat_s_port_is_not_told(launch, servers) -> None:
    ports = iter(range(20_000, 60_000, 17))
    for server in servers:
        server.sees = lambda _: (OUTSIDE, next(ports))
    node = await launch()
    await node.network.ready()
    found = endpoint(node)
    assert (found.ext_ip, found.ext_port, found.nat) == (OUTSIDE, None, NATType.SYMMETRIC)


async def test_equal_facts_are_not_signed_again(launch, servers) -> None:
    node = await launch()
    await node.network.ready()
    address, called = node.address(), []
    node.network.on_change(lambda: called.append(1))
    before = sum(len(server.asked) for server in servers)
    node.network._keepers.check(everything=True)
    await until(lambda: sum(len(server.asked) for server in servers) > before)
    await asyncio.sleep(0.05)
    node.network._noticed(slept=False)
    await node.network._refreshing
    assert node.address() == address
    assert called == []


async def test_another_external_address_is_signed_told_and_surveyed(
    launch, servers, monkeypatch
) -> None:
    monkeypatch.setattr(network, "SURVEY_GAP_S", 0.05)
    node = await launch()
    events, called = [], []
    monkeypatch.setattr(node, "notify", events.append)
    node.network.on_change(lambda: called.append(node.peer_address.sequence))
    await node.network.ready()
    called.clear()
    before = node.peer_address.sequence
    for server in servers:
        server.sees = lambda source: ("203.0.113.5", source[1] + 1)
    node.network._keepers.check(everything=True)
    await until(lambda: endpoint(node).ext_ip == "203.0.113.5")
    assert endpoint(node).ext_port == node.port + 1
    assert called == [node.peer_address.sequence]
    assert called[0] > before
    assert events == [NetworkChanged("external address", ("eth0",), ("203.0.113.5",))]
    await until(lambda: node.network.path(IP4).external == ("203.0.113.5",))
    await until(lambda: endpoint(node).delta == DeltaType.PRESERVING)


async def test_a_port_mapping_goes_before_what_the_nat_does(launch) -> None:
    node = await launch()
    await node.network.ready()
    before = endpoint(node)
    node.network.set_port_mapping(IP4, "eth0", ("203.0.113.7", 9))
    found = endpoint(node)
    assert (found.ext_ip, found.ext_port, found.nat) == ("203.0.113.7", 9, NATType.FULL_CONE)
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        node.network.set_port_mapping(IP4, "eth0", ("0.0.0.0", 9))
    node.network.set_port_mapping(IP4, "eth0", None)
    assert endpoint(node) == before


async def test_a_port_mapping_needs_no_stun(start, machine) -> None:
    node = await start(ip=None)
    node.network.set_port_mapping(IP4, "eth0", ("203.0.113.7", 9))
    assert endpoint(node).ext_port == 9


async def test_a_changed_network_is_surveyed_and_brings_known_facts_back(
    launch, machine, servers, monkeypatch
) -> None:
    monkeypatch.setattr(network, "SURVEY_GAP_S", 0.05)
    node = await launch()
    events = []
    monkeypatch.setattr(node, "notify", events.append)
    await node.network.ready()
    home, said = endpoint(node), []
    node.network.on_change(lambda: said.append(endpoint(node)))

    away = replace(nic(ip="127.0.5.1"), gateways={IP4: "127.0.5.254"})
    ports = iter(range(20_000, 60_000, 17))
    for server in servers:
        server.sees = lambda source: (
            (OUTSIDE, source[1]) if source[0] == "127.0.1.1" else ("203.0.113.5", next(ports))
        )
    machine[:] = [away]
    node.network._noticed(slept=False)
    await until(lambda: endpoint(node).nat == NATType.SYMMETRIC)
    # Nothing of home is said of the other network, not for a moment.
    assert (said[0].ip, said[0].nat, said[0].ext_ip) == ("127.0.5.1", 0, None)
    assert {each.ip for each in said} == {"127.0.5.1"}
    assert events == [NetworkChanged("interfaces", ("eth0",), ())]

    for server in servers:
        server.sees = lambda source: None
    machine[:] = [nic()]
    node.network._noticed(slept=False)
    await until(lambda: endpoint(node).ip == "127.0.1.1")
    # What the NAT does is known at once; which address is ours is not.
    assert said[-1] == replace(home, ext_ip=None, ext_port=None)
    for server in servers:
        server.sees = lambda source: (OUTSIDE, source[1])
    await until(lambda: endpoint(node) == home)


async def test_an_interface_that_leads_nowhere_is_told_and_not_surveyed(
    launch, machine, servers, monkeypatch
) -> None:
    monkeypatch.setattr(network, "SURVEY_GAP_S", 0.05)
    node = await launch()
    events = []
    monkeypatch.setattr(node, "notify", events.append)
    await node.network.ready()
    before, home = sum(len(server.asked) for server in servers), endpoint(node)
    machine.append(replace(nic("docker0", 7, "127.0.6.1"), gateways={}))
    node.network._noticed(slept=False)
    await until(lambda: events)
    assert events == [NetworkChanged("interfaces", ("eth0", "docker0"), (OUTSIDE,))]
    await asyncio.sleep(0.2)
    assert sum(len(server.asked) for server in servers) <= before + 1  # the mapping was checked
    assert endpoint(node) == home
    assert endpoint(node, 1).nat == 0


async def test_a_known_network_is_known_at_the_next_start(launch, servers, tmp_path) -> None:
    node = await launch(install_path=str(tmp_path))
    await node.network.ready()
    nat = endpoint(node).nat
    await node.close()
    assert json.loads((tmp_path / FILE_NAME).read_text("utf-8"))["networks"][0]["network"] == (
        "127.0.1.0/24"
    )
    for server in servers:
        server.sees = lambda source: None
    node = await launch(install_path=str(tmp_path))
    await until(lambda: endpoint(node).nat != 0, 0.5)
    assert (endpoint(node).nat, endpoint(node).ext_ip) == (nat, None)
    assert node.net_report.path(IP4).local_ip == "127.0.1.1"
    assert await node.network.ready() is not None
    assert endpoint(node).nat == nat
    assert node.network.stale


async def test_silent_servers_are_asked_again(launch, servers, monkeypatch) -> None:
    monkeypatch.setattr(network, "RETRY_S", 0.05)
    for server in servers:
        server.sees = lambda source: None
    node = await launch()
    await node.network.ready()
    assert node.network.stale
    assert node.network.age_s is None
    assert endpoint(node).nat == 0
    for server in servers:
        server.sees = lambda source: (OUTSIDE, source[1])
    await until(lambda: endpoint(node).nat == NATType.PORT_RESTRICTED, 10)
    await until(lambda: not node.network.stale)


async def no_path(node):
    """Stand in for a call: it finds nobody to dial, and asks the network again."""
    async with Node(conf=NODE_TEST_CONF) as other:
        pass
    pipe, _ = await auto_connect(node, other.address(), 5)
    assert pipe is None


async def back_online(node):
    node.network.back_online()


@pytest.mark.parametrize("what", [no_path, back_online])
async def test_the_survey_is_repeated_at_once(launch, servers, monkeypatch, what) -> None:
    monkeypatch.setattr(network, "RETRY_S", 600.0)
    for server in servers:
        server.sees = lambda source: None
    node = await launch()
    arrived = []
    node.network.on_arrival(lambda: arrived.append(node.network.stale))
    await node.network.ready()
    assert node.network.stale
    for server in servers:
        server.sees = lambda source: (OUTSIDE, source[1])
    node.network.nat64._prefix = "64:ff9b::/96"
    await what(node)
    await until(lambda: endpoint(node).nat == NATType.PORT_RESTRICTED, 10)
    assert arrived == ([True] if what is back_online else [])
    assert (node.network.nat64.prefix is None) == (what is back_online)


async def test_another_network_is_an_arrival(launch, machine) -> None:
    node = await launch()
    await node.network.ready()
    arrived = asyncio.Event()
    node.network.on_arrival(arrived.set)
    machine[:] = [nic("wlan0", 3, "127.0.5.1")]
    node.network._noticed(slept=False)
    async with asyncio.timeout(10):
        await arrived.wait()


async def test_an_address_that_leads_nowhere_is_no_arrival(launch, machine) -> None:
    """What is known of servers, relays and NAT64 outlives a container that starts."""
    node = await launch()
    await node.network.ready()
    arrived = []
    node.network.on_arrival(lambda: arrived.append(True))
    machine.append(replace(nic("docker0", 2, "127.0.5.1"), gateways={}))
    node.network._noticed(slept=False)
    await until(lambda: len(node.peer_address.interfaces) == 2)
    await node.network._refreshing
    assert not arrived


async def test_without_stun_any_change_may_be_an_arrival(start, machine) -> None:
    node = await start(ip=None)
    arrived = []
    node.network.on_arrival(lambda: arrived.append(True))
    machine[:] = [nic("eth1", 2, "127.0.4.1")]
    node.network._noticed(slept=False)
    await until(lambda: arrived)


async def test_a_machine_that_slept_asks_anew(launch, servers, monkeypatch) -> None:
    node = await launch()
    events, nudged = [], []
    monkeypatch.setattr(node, "notify", events.append)
    monkeypatch.setattr(node.rendezvous, "nudge", nudged.append)
    await node.network.ready()
    await asyncio.sleep(0)
    before = len(servers[0].asked)
    node.network._noticed(slept=True)
    await until(lambda: len(servers[0].asked) > before)
    assert [event.cause for event in events] == ["woke up"]
    assert nudged == [node.own_ips()]


async def test_a_callback_s_failure_is_counted_and_another_s_end_is_heard(launch, caplog) -> None:
    node = await launch()
    called = []

    def fail():
        raise RuntimeError("mine")

    node.network.on_change(fail)
    forget = node.network.on_change(lambda: called.append(1))
    node.network.set_port_mapping(IP4, "eth0", ("203.0.113.7", 9))
    forget()
    forget()
    node.network.set_port_mapping(IP4, "eth0", None)
    assert called == [1]
    assert node.stats["network_callbacks_failed"] == 2
    assert "mine" in caplog.text


async def test_closing_in_the_middle_of_everything_leaves_nothing(launch, servers) -> None:
    for server in servers:
        server.sees = lambda source: None
    node = await launch()
    await until(lambda: servers[0].asked)
    node.network._noticed(slept=True)
    await node.close()
    assert not node.network._tasks
    address = node.address()
    node.network.set_port_mapping(IP4, "eth0", ("203.0.113.7", 9))  # a farewell that comes late
    assert node.address() == address


async def test_a_change_during_a_survey_does_not_mix_networks(
    launch, machine, servers, monkeypatch
) -> None:
    monkeypatch.setattr(network, "SURVEY_GAP_S", 0.05)
    for server in servers:
        server.sees = lambda source: None if source[0] == "127.0.1.1" else (OUTSIDE, source[1])
    node = await launch()
    await until(lambda: servers[0].asked)
    machine[:] = [replace(nic(ip="127.0.5.1"), gateways={IP4: "127.0.5.254"})]
    node.network._noticed(slept=False)
    await until(lambda: endpoint(node).nat == NATType.PORT_RESTRICTED)
    assert node.network.path(IP4).local_ip == "127.0.5.1"
    assert not node.network.stale

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from typing import Any

import pytest

import warpgate_plugin_direct
from warpgate import EXT_BIND, LOOPBACK_BIND, NIC_BIND, ConMsg, Node, auto_connect
from warpgate.nat.pair import NatPair
from warpgate.net.constants import NATType
from warpgate_plugin_direct.direct_connect import DirectConnect
from warpgate_plugin_direct.reverse_connect import ReverseConnect

pytest_plugins = ["warpgate.testing.pytest_plugin"]

pytestmark = pytest.mark.usefixtures("leak_check")

STRATEGIES = (DirectConnect, ReverseConnect)
STRATEGY_NAMES = [cls.name for cls in STRATEGIES]
GUARD_S = 20


@pytest.mark.parametrize("cls", STRATEGIES)
def test_the_distribution_offers_it(cls: type) -> None:
    (point,) = entry_points(group="warpgate.strategies", name=cls.name)
    assert point.load() is cls
    assert point.dist.name == "warpgate-plugin-direct"
    assert point.dist.version == warpgate_plugin_direct.__version__


@pytest.mark.parametrize("cls", STRATEGIES)
def test_its_class(cls: type) -> None:
    assert (cls.phase, cls.transport) == ("direct", "tcp")
    assert set(cls.route_types) == {NIC_BIND, EXT_BIND, LOOPBACK_BIND}


async def test_nodes_find_both(node_pair: tuple[Node, Node]) -> None:
    for node in node_pair:
        found = [name for name in node.traversal.plugin_loaders if name in STRATEGY_NAMES]
        assert found == STRATEGY_NAMES
        assert node.traversal.rejected == []


@pytest.mark.parametrize("cls", STRATEGIES)
async def test_the_pipe_says_how_it_came(cls: type, node_pair: tuple[Node, Node]) -> None:
    alice, bob = node_pair
    pipe, plugin = await auto_connect(alice, bob.address(), plugins=[cls.name])
    assert isinstance(plugin, cls)
    assert (pipe.plugin_name, pipe.path, pipe.transport) == (cls.name, "direct", "tcp")
    assert pipe.peer_id == bob.node_id
    inbound = await asyncio.wait_for(bob.accept(), GUARD_S)
    assert inbound.peer_id == alice.node_id
    dialler = pipe if cls is DirectConnect else inbound
    listener = inbound if cls is DirectConnect else pipe
    assert dialler.local[1] not in (alice.port, bob.port)
    assert listener.local[1] == (bob.port if cls is DirectConnect else alice.port)
    assert dialler.remote == listener.local


async def test_direct_connect_needs_no_signal(node_pair: tuple[Node, Node]) -> None:
    alice, bob = node_pair
    pipe, _ = await auto_connect(alice, bob.address(), plugins=["direct_connect"])
    assert pipe is not None
    assert bob.stats["signals_received"] == 0


@pytest.mark.parametrize("name", ["direct_connect", "reverse_connect"])
async def test_an_absent_peer_fails_with_its_cause(name: str, node_pair: tuple[Node, Node]) -> None:
    alice, bob = node_pair
    address = bob.address()
    await bob.close()
    # The calls fail by themselves, long before their time is up.
    async with asyncio.timeout(GUARD_S):
        assert await auto_connect(alice, address, 60, plugins=[name]) == (None, None)
    outcomes = alice.last_report.outcomes
    assert outcomes
    assert all(outcome.status == "failed" for outcome in outcomes)
    assert any(
        "ConnectionRefusedError" in outcome.cause or "memory hub" in outcome.cause
        for outcome in outcomes
    ), outcomes


async def test_both_call_at_once(node_pair: tuple[Node, Node]) -> None:
    alice, bob = node_pair
    (one, _), (two, _) = await asyncio.gather(
        auto_connect(alice, bob.address()), auto_connect(bob, alice.address())
    )
    assert (one.peer_id, two.peer_id) == (bob.node_id, alice.node_id)
    at_bob = await asyncio.wait_for(bob.accept(), GUARD_S)
    at_alice = await asyncio.wait_for(alice.accept(), GUARD_S)
    await one.send(b"from alice")
    await two.send(b"from bob")
    assert await at_bob.recv(timeout=GUARD_S) == b"from alice"
    assert await at_alice.recv(timeout=GUARD_S) == b"from bob"


def watch(node: Node) -> list[Any]:
    """Return the list that the node's events go to from here on."""
    events: list[Any] = []
    node.notify = events.append
    return events


async def test_reverse_connect_refuses_to_be_started_by_a_peer(
    node_pair: tuple[Node, Node],
) -> None:
    alice, bob = node_pair
    events = watch(bob)
    # Any attempt of alice's can carry the signal; this one's own run() has not begun.
    attempt = await alice.connect(pnp_addr=bob.address(), plugin_name="direct_connect")
    message = ConMsg()
    message.meta.plugin_name = "reverse_connect"
    await attempt.send_signal_msg(message)
    attempt.result.cancel()
    ends: list[Any] = []
    async with asyncio.timeout(GUARD_S):
        while not ends:  # events come from the node, not from us
            await asyncio.sleep(0.005)
            ends = [event for event in events if type(event).__name__ == "AttemptFinished"]
    assert [(end.strategy, end.initiator, end.status) for end in ends] == [
        ("reverse_connect", False, "failed")
    ]
    assert alice.stats["signals_received"] == 0  # it asked for nothing in return


class Recorder:
    """Stands in for a manager."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.pipe = object()

    def register_inbound(self, plugin: Any) -> None:
        self.calls.append("register")

    async def send_signal(self, plugin: Any, msg: ConMsg) -> None:
        self.calls.append(msg.meta.plugin_name)

    async def wait_for_inbound(self, plugin: Any) -> Any:
        self.calls.append("wait")
        return self.pipe


def make(cls: Any, initiator: bool) -> tuple[Any, Recorder]:
    plugin, recorder = cls(), Recorder()
    plugin.manager, plugin.initiator = recorder, initiator
    return plugin, recorder


async def test_reverse_connect_claims_before_it_asks() -> None:
    plugin, recorder = make(ReverseConnect, initiator=True)
    await plugin.run()
    assert recorder.calls == ["register", "direct_connect", "wait"]
    assert plugin.result.result() is recorder.pipe


async def test_reverse_connect_ignores_answers() -> None:
    plugin, recorder = make(ReverseConnect, initiator=True)
    await plugin.run(ConMsg())
    assert recorder.calls == []
    assert not plugin.result.done()


async def test_reverse_connect_as_responder_gives_up() -> None:
    plugin, recorder = make(ReverseConnect, initiator=False)
    await plugin.run(ConMsg())
    assert recorder.calls == []
    assert plugin.result.result() is None


class FakeNic:
    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.bound: list[Any] = []
        self.dialled: list[Any] = []

    def route(self, af: int) -> FakeNic:
        return self

    async def bind(self, port: int = 0, ip: str | None = None) -> FakeNic:
        self.bound.append((port, ip))
        return self

    async def connect(self, dest: Any, transport: Any) -> str:
        self.dialled.append((dest, transport))
        return "a pipe"


async def test_direct_connect_dials_once_from_the_chosen_address() -> None:
    plugin, _ = make(DirectConnect, initiator=True)
    plugin.nic = nic = FakeNic()
    plugin.src_info = {"ip": "203.0.113.7", "nic": "192.168.1.5"}
    plugin.dest_info = {"ip": "192.168.1.9", "port": 12345}
    await plugin.run()
    assert nic.bound == [(0, "192.168.1.5")]  # the external address is the NAT's, not ours
    assert [dest for dest, _ in nic.dialled] == [("192.168.1.9", 12345)]
    assert plugin.result.result() == "a pipe"


def test_who_is_behind_a_nat_is_not_dialled() -> None:
    closed, opened = NATType.PORT_RESTRICTED, NATType.OPEN
    assert DirectConnect.impossible(NatPair(local=opened, remote=closed))
    assert ReverseConnect.impossible(NatPair(local=closed, remote=opened))
    for pair in (NatPair(), NatPair(closed, 0, opened, 0)):
        assert DirectConnect.impossible(pair) is None
    for pair in (NatPair(), NatPair(opened, 0, closed, 0)):
        assert ReverseConnect.impossible(pair) is None


async def test_a_dial_that_somebody_else_takes_ends_at_once(node_pair: tuple[Node, Node]) -> None:
    alice, bob = node_pair
    address, port = bob.address(), bob.port
    await bob.close()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n")
        await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        plugin = await alice.connect(
            route_type=LOOPBACK_BIND, pnp_addr=address, plugin_name="direct_connect"
        )
        outcome = alice.traversal.attempt_of(plugin).outcome
        assert await asyncio.wait_for(plugin.result, GUARD_S) is None
        assert outcome.status == "failed"  # not by its time-out
        assert "a web page came, and not the peer" in outcome.cause
    finally:
        over.set()
        server.close()

"""A node: its life, its settings, its address, ``connect``, and what its user sees of inbound pipes."""

from __future__ import annotations

import asyncio
import socket
import types

import pytest

from warpgate.errors import (
    ConfigError,
    InvalidAddressError,
    NoSharedFamilyError,
    PipeClosed,
    PluginError,
    SignallingError,
    TraversalError,
    UnknownPeerError,
)
from warpgate.hookspecs import hookimpl
from warpgate.identity import Identity
from warpgate.loading import LoadedObject, LoadedStrategy, LoadReport
from warpgate.names import finder
from warpgate.net.constants import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND, TCP
from warpgate.node import install as install_module
from warpgate.node import node as node_module
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_CONF, NODE_TEST_CONF
from warpgate.node.resolve import resolve
from warpgate.plugin import Plugin
from warpgate.protocol.peer_address import PeerAddress, unpack_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.testing import LeakCheck, Stage

pytestmark = pytest.mark.usefixtures("leaks")


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


def loopback_node(**conf):
    return Node(ip="127.0.0.1", conf={**NODE_TEST_CONF, **conf})


# Life.


async def test_a_node_listens_where_its_address_says(start):
    node = await start()
    address = unpack_address(node.address())
    assert address.node_id == node.node_id
    ((endpoint,),) = [record.endpoints for record in address.interfaces]
    assert (endpoint.ip, endpoint.port) == ("127.0.0.1", node.port)
    with socket.create_connection(("127.0.0.1", node.port)):
        pass
    assert node.supported() == [IP4]


async def test_start_and_close_are_idempotent():
    with Stage():
        node = loopback_node()
        assert await node.start() is node
        assert await asyncio.gather(node.start(), node.start()) == [node, node]
        await asyncio.gather(node.close(), node.close())
        await node.close()
        assert not node.running
        with pytest.raises(TraversalError, match="make a new one"):
            await node.start()


async def test_a_node_that_never_started_can_be_closed():
    await loopback_node().close()


async def test_async_with_starts_and_closes():
    with Stage():
        async with loopback_node() as node:
            assert node.running
            port = node.port
        assert not node.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


class Gate:
    """Holds every node back while it starts."""

    def __init__(self):
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    @hookimpl
    async def warpgate_node_starting(self, node):
        self.reached.set()
        await self.open.wait()


@pytest.fixture
def loaded(monkeypatch):
    """Let nodes load what the test puts here."""
    report = LoadReport([], [], [], frozenset())
    monkeypatch.setattr(node_module, "load", lambda conf, environ: report)

    def add(*things):
        for thing in things:
            if isinstance(thing, type):
                loaded = LoadedStrategy(thing.name, thing, "a-dist", "1.0", thing.__qualname__)
                report.strategies.append(loaded)
            else:
                report.objects.append(LoadedObject(thing, "a-dist", "1.0", str(id(thing))))
        return report

    return add


async def test_closing_while_starting(loaded):
    loaded(gate := Gate())
    node = loopback_node()
    starting = asyncio.create_task(node.start())
    await gate.reached.wait()
    await node.close()
    with pytest.raises(TraversalError, match="closed while it was starting"):
        await starting
    assert not node.running


async def test_a_start_whose_caller_gives_up_can_be_closed(loaded):
    loaded(gate := Gate())
    node = loopback_node()
    starting = asyncio.create_task(node.start())
    await gate.reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await node.close()


async def test_async_with_that_is_cancelled_while_starting_leaves_nothing(loaded):
    loaded(gate := Gate())

    async def use():
        async with loopback_node():
            raise AssertionError("not reached")

    async with LeakCheck():
        using = asyncio.create_task(use())
        await gate.reached.wait()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using


async def test_cancelled_at_every_turn_start_leaves_nothing():
    with Stage():
        for turns in range(12):
            async with LeakCheck():
                node = loopback_node()
                starting = asyncio.create_task(node.start())
                for _ in range(turns):
                    await asyncio.sleep(0)
                starting.cancel()
                await asyncio.wait([starting])
                await node.close()


async def test_a_start_that_fails_leaves_nothing_and_fails_again(monkeypatch):
    async def broken(node, report):
        raise ConfigError("no such thing")

    monkeypatch.setattr(node_module, "install_strategies", broken)
    with Stage():
        async with LeakCheck():
            node = loopback_node()
            for _ in range(2):
                with pytest.raises(ConfigError, match="no such thing"):
                    await node.start()
            await node.close()


async def test_two_nodes_share_a_machine_whatever_port_is_taken(start):
    alice = await start(port=0)
    bob = await start(port=alice.port)
    assert bob.port != alice.port
    assert bob.node_id != alice.node_id


async def test_a_node_keeps_its_key_on_its_install_path(tmp_path):
    with Stage():
        ids = []
        for _ in range(2):
            async with loopback_node(install_path=str(tmp_path)) as node:
                ids.append(node.node_id)
        assert ids[0] == ids[1]
        first = loopback_node(install_path=str(tmp_path))
        second = loopback_node(install_path=str(tmp_path))
        async with first, second:
            assert first.node_id == ids[0]
            assert second.node_id != ids[0]


async def test_the_sequence_number_grows(start):
    node = await start()
    before = node.peer_address.sequence
    node.sign_address()
    assert node.peer_address.sequence > before


async def test_resources_are_closed_in_reverse_order(start):
    log = []

    class Resource:
        def __init__(self, name):
            self.name = name

        def close(self):
            log.append(self.name)

    node = await start()
    node.resources.register(Resource("first"))
    node.resources.register(Resource("second"))
    await node.close()
    assert log == ["second", "first"]


# Settings.


async def test_a_conf_may_be_the_first_argument_and_is_merged_over_the_usual_one():
    node = Node({"relay_after": 9})
    assert node.conf["relay_after"] == 9
    assert node.conf.get("relay") == NODE_CONF["relay"]
    with pytest.raises(TypeError):
        node.conf["relay_after"] = 1
    await node.close()


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match="'relay_after'"):
        Node({"relay_aftr": 9})


async def test_allow_takes_node_ids_and_names():
    with Stage(), pytest.raises(ConfigError, match="al!ce"):
        async with loopback_node(allow=["al!ce"]):
            pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        *[({"port": v}, "port=.*0 to 65535") for v in (-1, 65536, "80", 1.0, True)],
        ({"ifs": "eth0"}, r"write ifs=\['eth0'\]"),
        *[({"ifs": v}, "expected a list of interfaces") for v in (5, [5], {"eth0"})],
        *[({"ip": v}, "expected an address as text") for v in (5, b"::1", ["::1"])],
    ],
)
def test_where_to_listen_is_checked_when_the_node_is_made(arguments, text):
    with pytest.raises(ConfigError, match=text):
        Node(**arguments, conf=NODE_TEST_CONF)


@pytest.mark.parametrize("ask", [Node.address, Node.supported, lambda node: node.node_id])
async def test_a_node_that_was_not_started_says_so(ask):
    node = loopback_node()
    with pytest.raises(ConfigError, match=r"not running; await node.start\(\) first"):
        ask(node)
    await node.close()


NODE_ID = Identity.generate().node_id


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        ({}, "no broker is configured"),
        ({"brokers": ["mqtt://127.0.0.1:1"], "sig_pipe_no": 0}, "no broker is configured"),
        ({"brokers": ["mqtt://127.0.0.1:1"], "sig_pipe_no": 1}, "switched off"),
    ],
)
async def test_a_node_id_that_cannot_be_looked_up(conf, why):
    with Stage():
        async with loopback_node(**conf) as node:
            with pytest.raises(UnknownPeerError, match=f"nobody here knows .*{why}"):
                await resolve(node, NODE_ID)


@pytest.mark.parametrize(
    ("answer", "why"),
    [(SignallingError("all are down"), "all are down"), (None, "brokers know no such node")],
)
async def test_a_node_id_that_the_brokers_do_not_give(start, monkeypatch, answer, why):
    class Names:
        async def lookup_node(self, node_id, timeout_s):
            if answer is not None:
                raise answer

        async def close(self):
            pass

    node = await start()
    node.rendezvous.names = Names()
    monkeypatch.setattr(finder, "FIND_S", 0.01)
    with pytest.raises(UnknownPeerError, match=f"nobody here knows .*{why}"):
        await resolve(node, NODE_ID.upper())


# Strategies.


class Factory(Dial):
    name = "made"
    builds: type = Dial

    @classmethod
    async def setup(cls, node):
        return types.SimpleNamespace(build_plugin=cls.builds)


class Absent(Dial):
    name = "absent"

    @classmethod
    async def setup(cls, node):
        return None


def failing(setup_name, setup):
    return type(setup_name, (Dial,), {"name": setup_name, "setup": classmethod(setup)})


async def raises(cls, node):
    raise OSError("no device")


async def exits(cls, node):
    raise SystemExit(1)


async def cancels(cls, node):
    raise asyncio.CancelledError


async def hangs(cls, node):
    await asyncio.Event().wait()


async def clings(cls, node):
    for _ in range(2):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


async def wrong_type(cls, node):
    return types.SimpleNamespace(build_plugin=lambda: 7)


async def wrong_name(cls, node):
    return types.SimpleNamespace(build_plugin=Dial)


async def wrong_phase(cls, node):
    return type("Sprayed", (Dial,), {"name": cls.name, "phase": "spray"})


async def no_factory(cls, node):
    return object()


async def test_a_strategy_that_setup_returns_none_for_is_not_installed(loaded):
    loaded(Absent, Dial)
    async with loopback_node() as node:
        assert "absent" not in node.traversal.plugin_loaders
        assert "dial" in node.traversal.plugin_loaders
        assert node.traversal.rejected == []


async def test_a_factory_builds_the_attempts(loaded):
    class Made(Factory):
        builds = type("MadeDial", (Dial,), {"name": "made"})

    loaded(Made)
    async with loopback_node() as alice, loopback_node() as bob:
        plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "made")
        assert type(plugin) is Made.builds
        assert (await plugin.result).plugin_name == "made"


@pytest.mark.parametrize(
    ("setup", "cause"),
    [
        (raises, "no device"),
        (exits, "1"),
        (cancels, "cancelled from within"),
        (hangs, "took more than 0.05 s"),
        (clings, "took more than 0.05 s"),
        (wrong_type, "expected a Plugin instance"),
        (wrong_name, "expected 'wrong_name'"),
        (wrong_phase, "phase 'spray'"),
        (no_factory, "build_plugin"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_bad_setup_is_rejected_and_takes_nothing_down(loaded, monkeypatch, setup, cause):
    monkeypatch.setattr(install_module, "SETUP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(install_module, "CANCEL_GRACE_S", 0.01)
    loaded(failing(setup.__name__, setup), Dial)
    async with loopback_node() as node:
        (failure,) = node.traversal.rejected
        assert failure.stage == "setup"
        assert cause in str(failure)
        assert "a-dist" in str(failure)
        assert setup.__name__ not in node.traversal.plugin_loaders
        assert "dial" in node.traversal.plugin_loaders
    await asyncio.sleep(0.06 if setup is clings else 0)


async def test_the_order_of_the_strategies_is_kept_however_long_their_setups_take(loaded):
    async def slow(cls, node):
        await asyncio.sleep(0.01)
        return cls

    loaded(failing("slow", slow), Dial)
    async with loopback_node() as node:
        assert [*node.traversal.plugin_loaders][-2:] == ["slow", "dial"]


@pytest.mark.parametrize("phase", ["punch", "spray"])
async def test_enable_punching_off_leaves_punches_out(loaded, phase):
    loaded(type("Punch", (Dial,), {"name": "a_punch", "phase": phase}), Dial)
    async with loopback_node(enable_punching=False) as node:
        assert "a_punch" not in node.traversal.plugin_loaders
        assert "dial" in node.traversal.plugin_loaders


async def test_a_core_alone_starts_and_says_that_no_strategy_is_installed(start, caplog):
    node = await start()
    assert "no strategy is installed" in caplog.text
    assert sorted(node.traversal.plugin_loaders) == ["fan_out", "get_addr", "return_addr"]


class BrokenTransport:
    name = "broken"

    async def start(self, deliver):
        raise OSError("no carrier")

    def brokers(self):
        return ()

    async def close(self):
        raise AssertionError("never started")


async def test_a_plugins_transport_that_cannot_start_is_left_out(loaded, caplog):
    class Hook:
        @hookimpl
        def warpgate_signal_transport(self, node):
            return BrokenTransport()

    loaded(Hook())
    async with loopback_node() as node:
        assert node.running
        assert node.stats["transport_errors"] == 1


# connect().


async def test_connect_starts_one_strategy(start):
    alice, bob = await start(Dial), await start(Dial)
    plugin = await alice.connect(
        af=IP4, route_type=NIC_BIND, pnp_addr=bob.address(), plugin_name="dial"
    )
    assert plugin.name == "dial"
    pipe = await asyncio.wait_for(plugin.result, timeout=10)
    assert pipe.peer_id == bob.node_id


@pytest.mark.parametrize("route_type", [NIC_BIND, EXT_BIND, LOOPBACK_BIND])
async def test_every_route_type_and_af_none(start, route_type):
    alice, bob = await start(Dial), await start(Dial)
    plugin = await alice.connect(None, route_type, bob.address(), "dial")
    assert (plugin.af, plugin.route_type) == (IP4, route_type)
    assert (await plugin.result).peer_id == bob.node_id


async def test_over_ipv6_too(start):
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    alice, bob = await start(Dial, ip="::1"), await start(ip="::1")
    seen = []
    bob.add_msg_cb(lambda msg, tup, pipe: seen.append(tup))
    plugin = await alice.connect(None, NIC_BIND, bob.address(), "dial")
    pipe = await plugin.result
    assert plugin.af == IP6
    await pipe.send(b"hello")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"plain", ("::1", bob.port))
        await until(lambda: len(seen) == 2)
        assert set(seen) == {pipe.local, ("::1", sock.getsockname()[1])}


async def test_without_a_name_all_strategies_race(start):
    class Refuse(Dial):
        name = "refuse"

        async def run(self, reply=None):
            self.result.set_result(None)

    alice, bob = await start(Refuse, Dial), await start(Dial)
    plugin = await alice.connect(pnp_addr=bob.address())
    assert plugin.name == "fan_out"
    pipe = await plugin.result
    assert (pipe.peer_id, pipe.plugin_name) == (bob.node_id, "dial")
    assert (await bob.accept()).peer_id == alice.node_id


async def test_that_works_without_the_auxiliary_too(start):
    alice, bob = await start(Dial), await start(Dial)
    del alice.traversal.plugin_loaders["fan_out"]
    assert (await (await alice.connect(pnp_addr=bob.address())).result).plugin_name == "dial"


async def test_when_none_of_them_gets_through_the_cause_has_a_line_for_each(start):
    class Refuse(Dial):
        name = "refuse"

        async def run(self, reply=None):
            raise OSError("no way")

    alice, bob = await start(Refuse), await start()
    plugin = await alice.connect(pnp_addr=bob.address())
    attempt = alice.traversal.attempt_of(plugin)
    assert await plugin.result is None
    assert "refuse IPv4 NIC_BIND" in attempt.outcome.cause
    assert "no way" in attempt.outcome.cause


async def test_a_cancelled_fan_out_leaves_nothing(start):
    class Hang(Dial):
        name = "hang"

        async def run(self, reply=None):
            self.result.set_result(await asyncio.Event().wait())

    alice, bob = await start(Hang), await start()
    async with LeakCheck():
        plugin = await alice.connect(pnp_addr=bob.address())
        await until(lambda: len(alice.traversal.plugins) >= 2)
        plugin.result.cancel()
    assert alice.traversal.plugins == {}


async def test_a_peer_cannot_start_a_fan_out_here(start):
    class Ask(Dial):
        name = "ask"

        async def run(self, reply=None):
            msg = ConMsg()
            msg.meta.plugin_name = "fan_out"
            await self.send_signal_msg(msg)

    alice, bob = await start(Ask), await start(Dial)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "ask")
    await until(lambda: bob.stats["signals_received"])
    for _ in range(10):
        await asyncio.sleep(0)
    assert bob.traversal.plugins == {}
    plugin.result.cancel()


async def test_unknown_names_raise_with_those_installed(start):
    alice, bob = await start(Dial), await start()
    with pytest.raises(ConfigError, match=r"'dail'.*dial, fan_out, get_addr, return_addr"):
        await alice.connect(IP4, NIC_BIND, bob.address(), "dail")


async def test_what_cannot_be_connected_to_raises(start, make_address):
    alice, bob = await start(Dial), await start()
    six = make_address(["::1"], machine=alice.peer_address.machine)
    far = make_address(["10.0.0.1"], machine=b"far away")
    for error, arguments in (
        (InvalidAddressError, (IP4, NIC_BIND, b"", "dial")),
        (UnknownPeerError, (IP4, NIC_BIND, "nobody", "dial")),
        (NoSharedFamilyError, (IP6, NIC_BIND, bob.address(), "dial")),
        (NoSharedFamilyError, (None, NIC_BIND, six, "dial")),
        (NoSharedFamilyError, (99, NIC_BIND, bob.address(), "dial")),
        (TraversalError, (IP4, 77, bob.address(), "dial")),
        (TraversalError, (IP4, LOOPBACK_BIND, far, "dial")),
        (TraversalError, (IP4, NIC_BIND, alice.address(), "dial")),
    ):
        with pytest.raises(error):
            await alice.connect(*arguments)
    assert alice.traversal.plugins == {}


async def test_a_route_type_that_is_not_the_strategys_is_refused(start):
    class Near(Dial):
        name, route_types = "near", (LOOPBACK_BIND,)

    alice, bob = await start(Near), await start()
    with pytest.raises(TraversalError, match="near does not support the route type NIC_BIND"):
        await alice.connect(IP4, NIC_BIND, bob.address(), "near")


async def test_a_factory_that_cannot_build_raises_here(start):
    class Moody:
        built = 0

        def build_plugin(self):
            self.built += 1
            if self.built > 1:
                raise RuntimeError("not today")
            return Dial()

    alice, bob = await start(), await start()
    alice.traversal.install_plugin("moody", {"class": Moody()})
    with pytest.raises(PluginError, match="not today"):
        await alice.connect(IP4, NIC_BIND, bob.address(), "moody")


async def test_a_node_that_does_not_run_connects_to_nobody(start):
    bob = await start()
    node = loopback_node()
    with pytest.raises(ConfigError, match="not running"):
        await node.connect(IP4, NIC_BIND, bob.address(), "dial")
    await node.close()


async def test_get_addr_asks_the_peer_for_its_fresh_address(start):
    alice, bob = await start(), await start()
    old = bob.address()
    bob.sign_address()
    plugin = await alice.connect(IP4, NIC_BIND, old, "get_addr")
    fresh = await plugin.result
    assert isinstance(fresh, PeerAddress)
    assert fresh.raw == bob.address() != old


async def test_a_peer_cannot_make_us_ask_for_its_address(start):
    class Ask(Dial):
        name = "ask"

        async def run(self, reply=None):
            msg = ConMsg()
            msg.meta.plugin_name = "get_addr"
            await self.send_signal_msg(msg)

    alice, bob = await start(Ask), await start()
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "ask")
    await until(lambda: bob.stats["signals_received"])
    await asyncio.sleep(0)
    assert alice.stats["signals_received"] == 0
    plugin.result.cancel()


# Inbound.


async def test_callbacks_and_accept_both_see_the_pipes_that_peers_bring_about(start):
    alice, bob = await start(Dial), await start()
    seen = []
    bob.add_msg_cb(lambda msg, tup, pipe: seen.append((msg, tup, pipe)))
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    await pipe.send(b"hello")
    there = await bob.accept()
    await until(lambda: seen)
    assert seen == [(b"hello", there.remote, there)]
    assert there.remote == pipe.local
    assert (there.inbound, there.peer_id, there.path) == (True, alice.node_id, "direct")


async def test_del_msg_cb(start):
    alice, bob = await start(Dial), await start()
    seen, kept = [], []

    def callback(msg, tup, pipe):
        seen.append(msg)

    async def other(msg, tup, pipe):
        kept.append(msg)

    bob.add_msg_cb(callback)
    bob.add_msg_cb(other)
    bob.del_msg_cb(callback)
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    await pipe.send(b"hello")
    await until(lambda: kept)
    assert (seen, kept) == ([], [b"hello"])


async def test_the_seeds_way_to_a_pipe_by_an_id(start):
    alice, bob = await start(Dial), await start()
    future = bob.pipe_future("my-session-id")

    async def on_msg(msg, client_tup, pipe):
        if msg.startswith(b"CONNECT:"):
            bob.pipe_ready(msg[8:].decode(), pipe)

    bob.add_msg_cb(on_msg)
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    await pipe.send(b"CONNECT:my-session-id")
    inbound = await asyncio.wait_for(future, timeout=10)
    assert inbound.peer_id == alice.node_id


async def test_closing_ends_accept_attempts_and_pipes(start):
    class Hang(Dial):
        name = "hang"

        async def run(self, reply=None):
            await asyncio.Event().wait()

    alice, bob = await start(Dial, Hang), await start()
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    there = await bob.accept()
    hanging = await alice.connect(IP4, NIC_BIND, bob.address(), "hang")
    accepting = asyncio.create_task(alice.accept())
    await asyncio.sleep(0)
    await alice.close()
    with pytest.raises(PipeClosed):
        await accepting
    assert await hanging.result is None
    assert pipe.closed
    assert await there.recv() is None
    with pytest.raises(PipeClosed):
        await alice.accept()


async def test_closing_from_a_callback(start):
    alice, bob = await start(Dial), await start()
    closed = asyncio.Event()

    async def on_msg(msg, tup, pipe):
        await bob.close()
        closed.set()

    bob.add_msg_cb(on_msg)
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    await pipe.send(b"shut down")
    await closed.wait()
    assert not bob.running


async def test_a_pipe_that_will_not_flush_is_aborted(start, monkeypatch):
    monkeypatch.setattr(node_module, "CLOSE_S", 0.05)
    alice, bob = await start(Dial), await start()
    pipe = await (await alice.connect(IP4, NIC_BIND, bob.address(), "dial")).result
    sending = asyncio.create_task(pipe.send(bytes(1 << 25)))  # nobody reads at the other end
    await until(lambda: pipe._full)
    async with asyncio.timeout(0.9):  # a stalled pipe closes by itself after 1 s
        await alice.close()
    assert alice.stats["pipes_aborted"] == 1
    with pytest.raises(PipeClosed):
        await sending


async def test_close_waits_for_the_reaper(start):
    closed = asyncio.Event()

    class Slow(Dial):
        name = "slow"

        async def close(self):
            await asyncio.sleep(0.05)
            closed.set()

    alice, bob = await start(Slow), await start()
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "slow")
    plugin.result.cancel()
    await alice.close()
    assert closed.is_set()

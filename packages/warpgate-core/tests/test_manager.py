"""The manager: installed strategies, messages, re-entry, tombstones, and what peers may start."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from dataclasses import replace

import pytest
from pydantic import BaseModel

from warpgate.errors import LocalProtocolError, PluginDefinitionError
from warpgate.identity import Identity
from warpgate.net.constants import IP4, LOOPBACK_BIND, NIC_BIND, TCP, NATType
from warpgate.plugin import Plugin, new_plugin_id
from warpgate.protocol.envelope import CLOCK_TOLERANCE_S
from warpgate.protocol.proto_msg import ConMsg
from warpgate.signalling.router import DEFAULT_TTL_S
from warpgate.signalling.transport import SignalOrigin
from warpgate.traversal import history as history_module
from warpgate.traversal import responder as responder_module
from warpgate.traversal.history import History

pytestmark = pytest.mark.usefixtures("leaks")
LOOPBACK = SignalOrigin("test", True, None, "a test")
REMOTE = SignalOrigin("test", False, None, "a test")


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


class Wait(Plugin):
    """Pends; as a responder it notes that it ran."""

    name, transport, phase = "wait", "tcp", "direct"
    ran: list[tuple[Plugin, ConMsg | None]]

    async def run(self, reply=None):
        self.ran.append((self, reply))
        await asyncio.Event().wait()


@pytest.fixture
def wait_class():
    return type("WaitHere", (Wait,), {"ran": []})


@pytest.fixture
def idle_class():
    async def run(self, reply=None):
        self.ran.append((self, reply))

    return type("IdleHere", (Wait,), {"ran": [], "run": run})


def request(peer, plugin_id=None, name="wait", af=IP4, route_type=LOOPBACK_BIND, src=0, dest=0):
    msg = ConMsg()
    msg.meta.plugin_name, msg.meta.pipe_id = name, plugin_id or new_plugin_id()
    msg.meta.af, msg.meta.route_type, msg.meta.src_index = af, route_type, src
    msg.meta.src_buf, msg.routing.dest_index = peer.raw, dest
    return msg


@pytest.fixture
def stranger(make_address):
    """Return a function that makes another node on this machine; the same one by default."""
    known = []

    def make(node, fresh=False):
        if fresh or not known:
            known.append(make_address(["127.0.0.1"], machine=node.peer_address.machine))
        return known[-1]

    return make


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


# Installing.


class Hello(ConMsg):
    class Payload(BaseModel):
        text: str = "hello"


async def test_installing_names_the_messages_on_the_wire(start, wait_class):
    wait_class.proto_messages = ((Hello, 99, 7.4),)
    node = await start()
    node.traversal.install_plugin("greeter", {"class": wait_class})
    assert Hello.WIRE_NAME == "greeter.Hello"
    assert node.traversal.messages.get("greeter.Hello") is Hello
    msg = Hello.unpack(Hello(payload={"text": "hi"}).pack())
    assert msg.payload.text == "hi"


async def test_a_message_lives_as_long_as_its_plugin_says(start, wait_class, stranger):
    sent = []

    async def send(dest, msg, ttl_s, origin, tasks, unheard):
        sent.append((ttl_s, msg.meta.ttl - node.unix_time()))

    wait_class.proto_messages = ((Hello, 99, 7.4),)
    node = await start(wait_class)
    node.router.send = send
    plugin = await node.connect(IP4, NIC_BIND, stranger(node), "wait")
    await plugin.send_signal_msg(Hello())
    await plugin.send_signal_msg(ConMsg())
    assert [ttl_s for ttl_s, _ in sent] == [7, DEFAULT_TTL_S]
    assert all(abs(ttl_s - left) <= 1 for ttl_s, left in sent)


async def test_what_is_left_unset_in_a_message_is_filled_in(start, wait_class, stranger):
    sent = []

    async def send(dest, msg, ttl_s, origin, tasks, unheard):
        sent.append(msg)

    node = await start(wait_class)
    node.router.send = send
    peer = stranger(node)
    plugin = await node.connect(IP4, NIC_BIND, peer, "wait")
    await plugin.send_signal_msg(ConMsg())
    meta, routing = sent[0].meta, sent[0].routing
    assert (meta.plugin_name, meta.pipe_id) == ("wait", plugin.plugin_id)
    assert (meta.af, meta.route_type, meta.same_machine) == (IP4, NIC_BIND, True)
    assert (meta.src_buf, meta.src_index) == (node.address(), 0)
    assert (routing.af, routing.dest_buf, routing.dest_index) == (IP4, peer.raw, 0)


async def test_a_factorys_messages_are_known_too(start, wait_class):
    wait_class.proto_messages = ((Hello, 99, 7),)
    node = await start()
    factory = types.SimpleNamespace(build_plugin=wait_class)
    node.traversal.install_plugin("greeter", {"class": factory})
    assert "greeter.Hello" in node.traversal.messages


async def test_installing_again_replaces_class_and_messages(start, wait_class):
    node = await start()
    for _ in range(2):
        message = type("Hello", (ConMsg,), {})
        cls = type("Other", (wait_class,), {"proto_messages": ((message, 1, 5),)})
        node.traversal.install_plugin("greeter", {"class": cls})
        assert node.traversal.plugin_loaders["greeter"].cls is cls
        assert node.traversal.messages.get("greeter.Hello") is message


async def test_a_name_that_cannot_be_on_the_wire_is_refused(start, wait_class):
    node = await start()
    cls = type("Other", (wait_class,), {"proto_messages": ((Hello, 1, 5),)})
    with pytest.raises(LocalProtocolError):
        node.traversal.install_plugin("two words", {"class": cls})
    assert "two words" not in node.traversal.plugin_loaders


async def test_what_is_no_strategy_is_refused(start):
    node = await start()
    with pytest.raises(PluginDefinitionError):
        node.traversal.install_plugin("bad", {"class": dict})


async def test_plugin_loaders_is_a_plain_dict_and_clear_works(start, wait_class):
    node = await start(wait_class)
    assert type(node.traversal.plugin_loaders) is dict
    node.traversal.plugin_loaders.clear()
    assert node.traversal.plugin_loaders == {}
    node.traversal.install_plugin("wait", {"class": wait_class})
    assert list(node.traversal.plugin_loaders) == ["wait"]


async def test_an_installed_class_need_not_be_registered_and_its_key_is_its_name(start, stranger):
    class Plain(Plugin):
        name, transport = "plain", "tcp"

        async def run(self, reply=None):
            self.result.set_result(self.name)

    node = await start()
    node.traversal.install_plugin("key", {"class": Plain, "timeout": 3})
    plugin = await node.connect(IP4, NIC_BIND, stranger(node), "key")
    assert plugin.timeout == 3
    assert await plugin.result == "key"


async def test_sent_signals_that_are_remembered_keep_no_attempt_alive(start):
    class Ask(Plugin):
        name, transport, phase = "ask", "tcp", "direct"

        async def run(self, reply=None):
            await self.send_signal_msg(ConMsg())
            self.result.set_result(None)

    async def ask_once():
        plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "ask")
        attempt = alice.traversal.attempt_of(plugin)
        await plugin.result
        await attempt.cleanup
        return weakref.ref(attempt), weakref.ref(plugin)

    alice, bob = await start(Ask), await start()
    left = await ask_once()
    await turns()
    gc.collect()
    assert alice.router._sent
    assert [ref() for ref in left] == [None, None]


# Signals of peers.


async def test_an_unknown_id_creates_the_responder_by_its_plugin_name(start, wait_class, stranger):
    node = await start(wait_class)
    peer = stranger(node)
    msg = request(peer)
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    await turns()
    ((plugin, reply),) = wait_class.ran
    assert reply is msg
    assert plugin.initiator is False
    assert plugin.plugin_id == msg.meta.pipe_id
    assert (plugin.dest_info["ip"], plugin.dest_info["port"]) == ("127.0.0.1", 4000)
    assert node.traversal.plugins == {(peer.node_id, plugin.plugin_id): plugin}


async def test_a_known_id_is_the_peers_own(start, wait_class, stranger):
    node = await start(wait_class)
    first, second = stranger(node), stranger(node, fresh=True)
    plugin_id = new_plugin_id()
    node.traversal.signals.on_signal(first, request(first, plugin_id), LOOPBACK)
    node.traversal.signals.on_signal(second, request(second, plugin_id), LOOPBACK)
    node.traversal.signals.on_signal(first, request(first, plugin_id), LOOPBACK)
    await turns()
    assert len(node.traversal.plugins) == 2
    assert [plugin.dest_info["node_id"] for plugin, _ in wait_class.ran] == [
        first.node_id,
        second.node_id,
        first.node_id,
    ]


async def test_a_newer_address_is_remembered_and_an_older_one_is_not(
    start, wait_class, make_address
):
    from warpgate.identity import Identity

    node = await start(wait_class)
    identity, machine = Identity.generate(), node.peer_address.machine
    old, new = (
        make_address(["127.0.0.1"], identity=identity, machine=machine, sequence=n) for n in (1, 2)
    )
    plugin_id = new_plugin_id()
    for peer in (new, old):
        node.traversal.signals.on_signal(peer, request(peer, plugin_id), LOOPBACK)
    attempt = node.traversal.find(old.node_id, plugin_id)
    assert attempt.peer is new
    told = []
    attempt.on_news = lambda: told.append(attempt.peer)
    newest = make_address(["127.0.0.1"], identity=identity, machine=machine, sequence=3)
    for peer in (newest, newest, old):
        node.traversal.signals.on_signal(peer, request(peer, plugin_id), LOOPBACK)
    assert told == [newest]


async def test_an_ended_attempt_leaves_a_tombstone_until_the_ttl(start, wait_class, stranger):
    wait_class.proto_messages = ((Hello, 99, 60),)
    node = await start(wait_class)
    peer, loop = stranger(node), asyncio.get_running_loop()
    msg = request(peer)
    key = (peer.node_id, msg.meta.pipe_id)
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    node.traversal.find(*key).lose()
    node.traversal.signals.on_signal(peer, request(peer, msg.meta.pipe_id), LOOPBACK)
    assert node.stats["signals_late"] == 1
    assert node.traversal.plugins == {}
    until = loop.time() + 60 + CLOCK_TOLERANCE_S
    assert node.traversal.history.is_buried(key, until - 1)
    assert not node.traversal.history.is_buried(key, until + 1)


def test_history_is_capped(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_TOMBSTONES", 2)
    monkeypatch.setattr(history_module, "MAX_DELIVERED", 2)
    history = History()
    for name in "abac":
        history.bury((name, "id"), 10.0)
    assert [history.is_buried((name, "id"), 0.0) for name in "abc"] == [True, False, True]
    assert [history.first_delivery((name, "id")) for name in "aab"] == [True, False, True]
    history.first_delivery(("c", "id"))
    assert len(history._delivered) == 2


@pytest.mark.parametrize(
    "plugin_id", ["", "A" * 14, "A" * 14 + "-", "Ä" * 15, "../../etc/pass", None]
)
async def test_a_bad_plugin_id_is_dropped_and_counted(start, wait_class, stranger, plugin_id):
    node = await start(wait_class)
    peer = stranger(node)
    msg = request(peer)
    msg.meta.pipe_id = plugin_id
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    assert node.stats["signals_bad_id"] == 1
    assert node.traversal.plugins == {}


async def test_an_unknown_strategy_is_dropped_and_counted(start, stranger):
    node = await start()
    peer = stranger(node)
    node.traversal.signals.on_signal(peer, request(peer, name="no such"), LOOPBACK)
    assert node.stats["signals_unknown_strategy"] == 1


async def test_our_own_signals_come_back_to_nothing(start, wait_class):
    node = await start(wait_class)
    node.traversal.signals.on_signal(node.peer_address, request(node.peer_address), LOOPBACK)
    assert node.stats["signals_refused"] == 1
    assert node.traversal.plugins == {}


async def test_allow_keeps_others_out(start, wait_class, stranger, make_address):
    friend = make_address(["127.0.0.1"])
    node = await start(wait_class, conf={"allow": [friend.node_id]})
    peer = stranger(node)
    node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert (node.stats["signals_refused"], node.stats["peers_refused"]) == (1, 1)
    node.traversal.signals.on_signal(friend, request(friend, route_type=NIC_BIND), LOOPBACK)
    assert len(node.traversal.plugins) == 1


async def test_whom_we_ask_may_answer_though_allow_does_not_name_him(start, wait_class, stranger):
    node = await start(wait_class, conf={"allow": []})
    peer = stranger(node)
    plugin = await node.connect(IP4, NIC_BIND, peer, "wait")
    node.traversal.signals.on_signal(peer, request(peer, plugin.plugin_id), LOOPBACK)
    await turns()
    assert [reply is None for _, reply in wait_class.ran] == [True, False]


@pytest.mark.parametrize("af", [0, 99])
@pytest.mark.parametrize("index", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("route_type", [0, 1, 2, 3, 5, 255])
async def test_hostile_values_cannot_raise(start, wait_class, stranger, af, index, route_type):
    node = await start(wait_class)
    peer = stranger(node)
    msg = request(peer, af=af, route_type=route_type, src=index, dest=index)
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    refused = node.stats["dials_refused"]
    assert refused == (route_type not in (1, 2, 5))
    assert len(node.traversal.plugins) == 1 - refused


async def test_a_peer_may_name_loopback_only_over_loopback(start, wait_class, stranger):
    node = await start(wait_class)
    peer = stranger(node)
    for route_type in (LOOPBACK_BIND, NIC_BIND):  # its address has 127.0.0.1 for both
        node.traversal.signals.on_signal(peer, request(peer, route_type=route_type), REMOTE)
    assert node.stats["dials_refused"] == 2
    assert node.traversal.plugins == {}
    node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert len(node.traversal.plugins) == 1


async def test_a_peer_may_not_name_private_networks_that_are_not_ours(
    start, wait_class, make_address
):
    node = await start(wait_class)
    peer = make_address(["10.123.45.67"], machine=b"far away")
    node.traversal.signals.on_signal(peer, request(peer, route_type=NIC_BIND), LOOPBACK)
    assert node.stats["dials_refused"] == 1


async def test_nor_by_what_nat64_makes_of_an_address(start, wait_class, make_address, monkeypatch):
    node = await start(wait_class)
    peer = make_address(["203.0.113.5"], machine=b"far away")
    monkeypatch.setattr(node.network.nat64, "native", lambda ip: "10.123.45.67")
    node.traversal.signals.on_signal(peer, request(peer, route_type=NIC_BIND), LOOPBACK)
    assert node.stats["dials_refused"] == 1


async def test_the_cores_auxiliaries_answer_them_all_the_same(start, make_address):
    node = await start()
    sent = []

    async def send(dest, msg, ttl_s, origin, tasks, unheard):
        sent.append((dest, msg.meta.plugin_name))

    node.router.send = send
    peer = make_address(["10.123.45.67"], machine=b"far away")
    msg = request(peer, name="return_addr", route_type=NIC_BIND)
    node.traversal.signals.on_signal(peer, msg, REMOTE)
    await turns()
    assert sent == [(peer, "get_addr")]


async def test_a_strategy_that_cannot_be_built_is_counted(start, stranger, caplog):
    class Moody:
        built = 0

        def build_plugin(self):
            self.built += 1
            if self.built > 1:
                raise KeyError("not today")
            return Wait()

    node = await start()
    node.traversal.install_plugin("wait", {"class": Moody()})
    peer = stranger(node)
    node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert node.stats["build_errors"] == 1


async def test_signals_for_a_closing_node_are_dropped(start, wait_class, stranger):
    node = await start(wait_class)
    peer = stranger(node)
    await node.close()
    node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert node.stats["signals_not_running"] == 1
    assert node.traversal.plugins == {}


# Limits.


async def test_a_stranger_may_start_five_a_second(start, wait_class, stranger):
    node = await start(wait_class)
    peer = stranger(node)
    for _ in range(7):
        node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert len(node.traversal.plugins) == 5
    assert node.stats["stranger_rate_limit"] == 2


@pytest.fixture
def unhurried(monkeypatch):
    """Let only the number of attempts at once count, not their rate."""
    from warpgate.traversal import limits

    monkeypatch.setattr(limits.TokenBucket, "take", lambda self, now: True)


async def test_and_have_eight_at_once(start, wait_class, stranger, unhurried):
    node = await start(wait_class)
    peer = stranger(node)
    for _ in range(10):
        node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
        await turns(1)
    assert len(node.traversal.plugins) == 8
    assert node.stats["stranger_attempts_limit"] == 2


async def test_his_idle_attempts_make_room(start, idle_class, stranger, unhurried):
    node = await start(idle_class)
    peer = stranger(node)
    for _ in range(10):
        node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
        await turns(2)
    assert len(node.traversal.plugins) == 8
    assert node.stats["stranger_attempts_limit"] == 0
    assert len(idle_class.ran) == 10


async def test_all_strangers_together_have_64(start, wait_class, stranger, unhurried):
    node = await start(wait_class)
    for number in range(70):
        peer = stranger(node, fresh=number % 8 == 0)
        node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert len(node.traversal.plugins) == 64
    assert node.stats["strangers_attempts_limit"] == 6


async def test_who_has_completed_a_hello_is_not_limited_so(start, wait_class, stranger):
    node = await start(wait_class)
    peer = stranger(node)
    node.traversal.limits.befriend(peer.node_id)
    for _ in range(30):
        node.traversal.signals.on_signal(peer, request(peer), LOOPBACK)
    assert len(node.traversal.plugins) == 30


async def test_but_who_has_the_most_makes_room_for_others(start, wait_class, stranger, monkeypatch):
    monkeypatch.setattr(responder_module, "MAX_RESPONDER_ATTEMPTS", 6)
    node = await start(wait_class)
    greedy, modest = stranger(node), stranger(node, fresh=True)
    node.traversal.limits.befriend(greedy.node_id)
    for _ in range(8):
        node.traversal.signals.on_signal(greedy, request(greedy), LOOPBACK)
    await turns()
    assert node.stats["responder_attempts_limit"] == 2
    for _ in range(4):
        node.traversal.signals.on_signal(modest, request(modest), LOOPBACK)
    holders = [peer_id for peer_id, _ in node.traversal.plugins]
    assert (holders.count(greedy.node_id), holders.count(modest.node_id)) == (3, 3)


# Inbound pipes that are claimed.


async def test_a_signals_pipe_is_claimed_by_peer_and_id(start, stranger):
    """Another peer's attempt of the same id neither takes nor disturbs a claim."""

    class Claim(Plugin):
        name, transport, phase = "claim", "tcp", "direct"

        async def run(self, reply=None):
            self.register_inbound()
            self.result.set_result(await self.wait_for_inbound())

    class Dial(Plugin):
        name, transport, phase = "dial", "tcp", "direct"

        async def run(self, reply=None):
            route = await self.bind()
            dest = (self.dest_info["ip"], self.dest_info["port"])
            self.result.set_result(await route.connect(dest, TCP))

    alice, bob = await start(Dial), await start(Claim)
    dialling = await alice.connect(IP4, NIC_BIND, bob.address(), "dial")
    mallory = stranger(bob)
    for peer in (mallory, alice.peer_address):
        bob.traversal.signals.on_signal(
            peer, request(peer, dialling.plugin_id, name="claim"), LOOPBACK
        )
    claims = dict(bob.traversal.plugins)
    pipe = await dialling.result
    there = await claims[alice.node_id, dialling.plugin_id].result
    assert there.peer_id == alice.node_id
    assert there.plugin_name == "claim"
    assert await bob.accept() is there
    assert not claims[mallory.node_id, dialling.plugin_id].result.done()
    await pipe.close()


async def test_only_the_first_pipe_of_an_attempt_set_is_delivered(start):
    pipes = []

    class Twice(Plugin):
        name, transport, phase = "twice", "tcp", "direct"

        async def run(self, reply=None):
            for _ in range(2):
                route = await self.bind()
                dest = (self.dest_info["ip"], self.dest_info["port"])
                pipes.append(await route.connect(dest, TCP))
            attempt = self.manager.attempt_of(self)
            for pipe in pipes:  # a hostile initiator nominates both
                handshake = self.manager.proofs.make_initiator(attempt, pipe, NominateAll())
                handshake.start()

    class NominateAll:
        def handshake_proven(self, handshake):
            handshake.nominate()

        def handshake_nominated(self, handshake):
            pass

        def handshake_failed(self, handshake):
            pass

    alice, bob = await start(Twice), await start()
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "twice")
    delivered = await bob.accept()
    await until(lambda: bob.stats["hello_second_pipe"])
    assert not bob._mailbox._unaccepted
    assert not delivered.closed
    plugin.result.cancel()
    for pipe in pipes:
        await pipe.close()


async def test_a_running_attempt_learns_of_both_nats(start, wait_class, make_address, monkeypatch):
    node = await start(wait_class)
    identity = Identity.generate()
    at = {"machine": node.peer_address.machine, "identity": identity}
    peer = make_address(["127.0.0.1"], **at)
    newer = make_address(["127.0.0.1"], sequence=2, nat=NATType.SYMMETRIC, **at)
    msg = request(peer)
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    (plugin,) = node.traversal.plugins.values()
    assert plugin.dest_info["nat"]["type"] == 0
    plugin.dest_info["if_index"] = newer.interfaces[0].index
    node.traversal.signals.on_signal(newer, msg, LOOPBACK)
    assert plugin.dest_info["nat"]["type"] == NATType.SYMMETRIC

    def facts(nic, endpoint):
        return replace(endpoint, nat=NATType.BLOCKED)

    monkeypatch.setattr(node.network, "_facts", facts)
    assert plugin.src_info["nat"]["type"] == 0
    assert node.network._apply()
    assert plugin.src_info["nat"]["type"] == NATType.BLOCKED

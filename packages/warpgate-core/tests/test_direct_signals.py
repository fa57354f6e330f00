"""Signals straight to the peer's listening port."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest

from warpgate.errors import SignallingError
from warpgate.hello.messages import M1, PREFIX, SIGNAL, frame
from warpgate.identity import Identity
from warpgate.net.constants import IP4, NIC_BIND
from warpgate.plugin import Plugin, new_plugin_id
from warpgate.protocol.codec import encode_body
from warpgate.protocol.envelope import seal_signal
from warpgate.protocol.proto_msg import ConMsg
from warpgate.signalling import direct as direct_module
from warpgate.signalling.transport import SignalOrigin
from warpgate.testing import LeakCheck

pytestmark = pytest.mark.usefixtures("leaks")


class Quiet(Plugin):
    """Pends on both sides and notes what came."""

    name, transport, phase = "quiet", "tcp", "direct"
    got: asyncio.Queue

    async def run(self, reply=None):
        if reply is not None:
            self.got.put_nowait((self, reply))


@pytest.fixture
def quiet():
    return type("QuietHere", (Quiet,), {"got": asyncio.Queue()})


async def signal(plugin):
    msg = ConMsg()
    msg.meta.plugin_name = plugin.name
    await plugin.send_signal_msg(msg)


def connections(node):
    return list(node._direct._connections)


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


async def test_a_connection_is_kept_and_reused_and_answers_return_on_it(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    first = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    second = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    await signal(first)
    responder, _ = await quiet.got.get()
    await signal(second)
    await quiet.got.get()
    await signal(responder)
    answered, _ = await quiet.got.get()
    assert answered is first
    assert len(connections(alice)) == len(connections(bob)) == 1


async def test_signals_at_the_same_time_share_one_dial(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugins = [await alice.connect(IP4, NIC_BIND, bob.address(), "quiet") for _ in range(5)]
    await asyncio.gather(*(signal(plugin) for plugin in plugins))
    assert len(connections(alice)) == 1
    assert not alice._direct._dials


async def test_it_ends_after_its_idle_time_and_is_made_anew(start, quiet, monkeypatch):
    monkeypatch.setattr(direct_module, "KEEP_S", 0.05)
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    await signal(plugin)
    (pipe,) = connections(alice)
    responder, _ = await quiet.got.get()
    await pipe.wait_closed()
    await until(lambda: not connections(alice) and not connections(bob))
    assert not alice._direct._by_peer
    await signal(plugin)
    assert (await quiet.got.get())[0] is responder


async def test_every_signal_sent_and_received_keeps_it(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")

    def ends_at():
        return [
            timer.when() for node in (alice, bob) for timer in node._direct._connections.values()
        ]

    await signal(plugin)
    await quiet.got.get()
    before = ends_at()
    await signal(plugin)
    await quiet.got.get()
    assert [now > then for now, then in zip(ends_at(), before, strict=True)] == [True, True]


async def test_an_answer_dials_when_the_connection_has_ended(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    await signal(plugin)
    responder, _ = await quiet.got.get()
    for pipe in [*connections(alice), *connections(bob)]:
        pipe.abort()
    await until(lambda: not connections(bob))
    await signal(responder)
    assert (await quiet.got.get())[0] is plugin


async def test_many_connections_are_capped_and_the_longest_idle_goes(start, quiet, monkeypatch):
    monkeypatch.setattr(direct_module, "MAX_CONNECTIONS", 3)
    bob = await start(quiet)
    nodes = [await start(quiet) for _ in range(4)]
    plugins = []
    for node in nodes[:3]:
        plugins.append(await node.connect(IP4, NIC_BIND, bob.address(), "quiet"))
        await signal(plugins[-1])
        await quiet.got.get()
    await signal(plugins[0])  # not the longest idle any more
    await quiet.got.get()
    plugins.append(await nodes[3].connect(IP4, NIC_BIND, bob.address(), "quiet"))
    await signal(plugins[3])
    await quiet.got.get()
    assert len(connections(bob)) == 3
    assert bob.stats["signal_connections_evicted"] == 1
    await until(lambda: not connections(nodes[1]))
    assert connections(nodes[0])


def envelope(node, identity=None, **changes):
    """Return an envelope of a stranger for a node."""
    identity = identity or Identity.generate()
    fields = {
        "wire_name": "ConMsg",
        "body": b"",
        "sent_ms": int(time.time() * 1000),
        "ttl_s": 20,
        "msg_id": os.urandom(16),
    }
    address = node.peer_address
    return seal_signal(identity, address.key, address.exchange_key, **{**fields, **changes})


@pytest.mark.parametrize(
    "data",
    [
        frame(SIGNAL, b"no envelope"),
        frame(SIGNAL, bytes(8000)),
        PREFIX + bytes([SIGNAL]) + b"\xff\xff",
        frame(SIGNAL, b"x") * 3,
    ],
    ids=range(4),
)
async def test_a_connection_with_garbage_is_closed(start, data):
    node = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(data)
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    assert not connections(node)
    assert node.stats["signal_garbage"] + node.stats["hello_garbage"] == 1
    writer.close()


async def test_so_is_one_that_turns_to_garbage_or_to_a_hello(start):
    node = await start()
    for more in (b"what?" * 10, frame(M1, b"x")):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(frame(SIGNAL, envelope(node)))
        await until(lambda: connections(node))
        writer.write(more)
        assert await reader.read() == b""
        writer.close()
    assert not connections(node)


async def test_several_envelopes_in_one_segment_cut_anywhere(start, quiet, make_address):
    node = await start(quiet)
    identity = Identity.generate()
    address = make_address(
        ["127.0.0.1"], identity=identity, machine=node.peer_address.machine, port=1
    )
    stream = b""
    for _ in range(3):
        msg = ConMsg()
        msg.meta.plugin_name, msg.meta.pipe_id = "quiet", new_plugin_id()
        msg.meta.src_buf, msg.meta.af = address.raw, IP4
        stream += frame(SIGNAL, envelope(node, identity, body=encode_body(msg)))
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    for start_at in range(0, len(stream), 100):
        writer.write(stream[start_at : start_at + 100])
        await writer.drain()
        await asyncio.sleep(0)
    for _ in range(3):
        responder, _ = await quiet.got.get()
        assert responder.dest_info["node_id"] == address.node_id
    writer.close()
    await writer.wait_closed()


async def test_a_peer_that_is_gone_is_a_signalling_error(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    await bob.close()
    with pytest.raises(
        SignallingError, match=str(bob.peer_address.interfaces[0].endpoints[0].port)
    ):
        await signal(plugin)


async def test_a_peer_that_cannot_be_reached_from_here(start, quiet, make_address):
    alice = await start(quiet)
    with pytest.raises(SignallingError, match="can be reached from here"):
        await alice._direct.send(make_address(["10.0.0.1"], machine=b"far away"), b"envelope")


class Hole:
    """A listening socket that accepts nothing: its backlog is full, and connecting hangs."""

    def __enter__(self):
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(0)
        self.port = self.sock.getsockname()[1]
        self.fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.sock.getsockname())
            self.fillers.append(filler)
        return self

    def __exit__(self, *_):
        for sock in (self.sock, *self.fillers):
            sock.close()


async def test_a_dial_that_nobody_waits_for_ends(start, make_address, quiet):
    alice = await start(quiet)
    alice.traversal.has_called = lambda _peer_id: True
    with Hole() as hole:
        machine = alice.peer_address.machine
        dest = make_address(["127.0.0.1"], machine=machine, port=hole.port)
        async with LeakCheck():
            sends = [asyncio.create_task(alice._direct.send(dest, b"x")) for _ in range(2)]
            await until(lambda: alice._direct._dials)
            sends[0].cancel()
            await turns()
            (dial,) = alice._direct._dials.values()
            assert not dial.task.done()  # one still waits
            sends[1].cancel()
            await asyncio.wait(sends)


async def test_closing_ends_dials_and_connections(start, make_address, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    await signal(plugin)
    alice.traversal.has_called = lambda _peer_id: True
    with Hole() as hole:
        machine = alice.peer_address.machine
        dest = make_address(["127.0.0.1"], machine=machine, port=hole.port)
        sending = asyncio.create_task(alice._direct.send(dest, b"x"))
        await until(lambda: alice._direct._dials)
        await alice._direct.close()
        with pytest.raises(SignallingError, match="given up"):
            await sending
    assert not connections(alice)
    with pytest.raises(SignallingError, match="takes no signals"):
        await alice._direct.send(dest, b"x")


class Targets:
    """Dials that end when they are told to."""

    def __init__(self, monkeypatch, transport):
        self.gates = []
        monkeypatch.setattr(transport, "_targets", lambda dest: [None] * 3)
        monkeypatch.setattr(transport, "_dial_one", self.dial)

    async def dial(self, target, delay_s):
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        return await gate


class FakePipe:
    aborted = False

    def abort(self):
        self.aborted = True


async def test_of_two_that_connect_at_once_one_is_used_and_the_other_closed(
    start, quiet, monkeypatch, make_address
):
    node = await start(quiet)
    targets = Targets(monkeypatch, node._direct)
    dialling = asyncio.create_task(node._direct._dial(make_address(["127.0.0.1"])))
    await until(lambda: len(targets.gates) == 3)
    pipes = [FakePipe(), FakePipe()]
    for gate, pipe in zip(targets.gates, pipes, strict=False):
        gate.set_result(pipe)
    used = await dialling
    await turns()
    assert [pipe.aborted for pipe in pipes] == [pipe is not used for pipe in pipes]
    assert targets.gates[2].cancelled()


async def test_what_connects_while_the_dial_is_cancelled_is_closed(
    start, quiet, monkeypatch, make_address
):
    node = await start(quiet)
    targets = Targets(monkeypatch, node._direct)
    dialling = asyncio.create_task(node._direct._dial(make_address(["127.0.0.1"])))
    await until(lambda: len(targets.gates) == 3)
    pipe = FakePipe()
    targets.gates[1].set_result(pipe)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await turns()
    assert pipe.aborted


async def test_an_answer_dials_nothing_that_only_a_strangers_address_names(start, make_address):
    """WIRE section 5: a stranger names this machine's loopback, and a private address elsewhere."""
    node = await start()
    seen = []
    victim = await asyncio.start_server(lambda *_: seen.append(1), "127.0.0.1", 0)
    port = victim.sockets[0].getsockname()[1]
    identity = Identity.generate()
    stranger = make_address(
        ["127.0.0.1", "10.77.1.1"],
        identity=identity,
        machine=node.peer_address.machine,
        port=port,
    )
    msg = ConMsg()
    msg.meta.pipe_id, msg.meta.plugin_name = new_plugin_id(), "return_addr"
    msg.meta.src_buf = stranger.raw
    envelope = seal_signal(
        identity,
        node.peer_address.key,
        node.peer_address.exchange_key,
        wire_name=ConMsg.WIRE_NAME,
        body=encode_body(msg),
        sent_ms=int(time.time() * 1000),
        ttl_s=20,
        msg_id=os.urandom(16),
    )
    answers = []

    async def reply(answer, _dest):
        answers.append(answer)

    node.router.deliver(envelope, SignalOrigin("broker", False, reply, "a broker"))
    await until(lambda: node.stats["dials_refused"] > 0)
    await until(lambda: not node.traversal.plugins)
    victim.close()
    await victim.wait_closed()
    assert seen == []
    assert node._direct_targets(stranger) == []


async def test_who_calls_a_peer_may_dial_what_its_address_names(start, quiet):
    alice, bob = await start(quiet), await start(quiet)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "quiet")
    assert [target[2:] for target in alice._direct_targets(bob.peer_address)]
    plugin.result.cancel()

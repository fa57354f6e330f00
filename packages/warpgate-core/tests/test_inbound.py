"""Connections and datagrams that come in: plain, hello, signal or garbage."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from warpgate.hello.machine import Initiator, Nominated, NonceCache, Proven
from warpgate.hello.messages import (
    M0,
    M1,
    M2,
    M3,
    PREFIX,
    SIGNAL,
    HelloFields,
    frame,
    message,
    pack_m0,
    pack_m1,
)
from warpgate.identity import Identity
from warpgate.net.constants import IP4, NIC_BIND, TCP
from warpgate.plugin import Plugin, new_plugin_id
from warpgate.traversal import inbound as inbound_module
from warpgate.traversal import proofs as proofs_module

pytestmark = pytest.mark.usefixtures("leaks")


@pytest.fixture
async def tcp():
    """Return a function that connects a plain TCP client to a node."""
    clients = []

    async def connect(node):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        clients.append(writer)
        return reader, writer

    yield connect
    for writer in clients:
        writer.close()
    for writer in clients:
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


class UdpClient:
    def __init__(self, node):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        self.node = ("127.0.0.1", node.port)
        self.address = self.sock.getsockname()

    def send(self, data):
        self.sock.sendto(data, self.node)

    async def recv(self):
        return await asyncio.get_running_loop().sock_recv(self.sock, 65535)


@pytest.fixture
def udp():
    clients = []

    def connect(node):
        clients.append(UdpClient(node))
        return clients[-1]

    yield connect
    for client in clients:
        client.sock.close()


@pytest.fixture
def messages():
    """Collect what a node's callbacks get."""
    seen = []

    def collect(node):
        node.add_msg_cb(lambda msg, tup, pipe: seen.append((msg, tup, pipe)))
        return seen

    return collect


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


def initiator(node, identity=None, plugin_id=None, receiver=None, datagram=False):
    machine = Initiator(
        identity=identity or Identity.generate(),
        peer=receiver or node.identity.public_key,
        plugin_id=plugin_id or new_plugin_id(),
        datagram=datagram,
        entropy=os.urandom,
        nonces=NonceCache(),
    )
    machine.start(0.0)
    return machine


async def shake(machine, reader, writer):
    """Drive an initiator over a stream to its nomination."""
    while True:
        for data in machine.outgoing(0.0):
            writer.write(data)
        event = machine.next_event()
        if isinstance(event, Proven):
            machine.nominate(0.0)
        elif isinstance(event, Nominated):
            return
        elif event is None:
            machine.receive(await reader.read(4096), ("127.0.0.1", 1), 0.0)


# Plain TCP.


async def test_a_plain_connection_reaches_callbacks_and_accept_untouched(start, tcp, messages):
    node = await start()
    seen = messages(node)
    _, writer = await tcp(node)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    pipe = await node.accept()
    await until(lambda: seen)
    assert seen == [(b"GET / HTTP/1.1\r\n\r\n", writer.get_extra_info("sockname"), pipe)]
    assert (pipe.sealed, pipe.peer_id, pipe.inbound, pipe.plugin_name) == (False, None, True, None)


async def test_it_can_be_answered(start, tcp):
    node = await start()

    async def answer(msg, tup, pipe):
        await pipe.send(b"you said " + msg, tup)

    node.add_msg_cb(answer)
    reader, writer = await tcp(node)
    writer.write(b"hi")
    assert await reader.read(100) == b"you said hi"


@pytest.mark.parametrize("first", [b"h", PREFIX[:1] + b"ello", PREFIX[:6] + b"?", b"\x00" * 64])
async def test_what_does_not_begin_with_the_magic_is_plain(start, tcp, messages, first):
    node = await start()
    seen = messages(node)
    _, writer = await tcp(node)
    for byte in first:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    await until(lambda: b"".join(msg for msg, _, _ in seen) == first)


async def test_its_messages_are_kept_until_a_callback_is_added(start, tcp, messages):
    node = await start()
    _, writer = await tcp(node)
    writer.write(b"early")
    pipe = await node.accept()
    await until(lambda: pipe.has_unread)
    seen = messages(node)
    await until(lambda: seen)
    assert seen[0][0] == b"early"


async def test_a_client_that_sends_and_leaves_is_heard(start, tcp, messages):
    node = await start()
    seen = messages(node)
    _, writer = await tcp(node)
    writer.write(b"and bye")
    writer.close()
    await until(lambda: seen)
    assert seen[0][0] == b"and bye"


async def test_accept_plain_off_refuses_it(start, tcp, udp, messages):
    node = await start(conf={"accept_plain": False})
    seen = messages(node)
    reader, writer = await tcp(node)
    writer.write(b"hello?")
    assert await reader.read() == b""
    udp(node).send(b"hello?")
    await until(lambda: node.stats["plain_refused"] == 2)
    assert seen == []


# Garbage and scanners.


@pytest.mark.parametrize(
    "data",
    [
        PREFIX + bytes([M1]) + b"\x00\x05hello",
        PREFIX + bytes([M1]) + b"\xff\xff" + bytes(100),
        PREFIX + bytes([M2]) + b"\x00\x01x",
        PREFIX + bytes([M3]) + b"\x00\x40" + bytes(64),
        PREFIX + bytes([M0]) + b"\x00\x05hello",
        PREFIX + bytes([99]) + b"\x00\x01x",
        PREFIX + bytes([SIGNAL]) + b"\x00\x04oops",
        PREFIX + bytes([SIGNAL]) + b"\xff\xff",
        frame(M0, pack_m0("A" * 15)),
        frame(M0, pack_m0("A" * 15)) + b"and more",
        frame(M1, b"bad") + frame(M1, b"bad") + bytes(70000),
    ],
    ids=range(11),
)
async def test_garbage_behind_the_magic_closes_the_connection(start, tcp, messages, data):
    node = await start()
    seen = messages(node)
    reader, writer = await tcp(node)
    writer.write(data)
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    assert seen == []
    assert not node.traversal.inbound._unproven
    assert sum(node.stats.values()) >= 1


async def test_every_cut_of_a_hello_is_taken(start, tcp):
    node = await start(conf={"seal": "prefer"})
    machine = initiator(node, identity=(identity := Identity.generate()))
    (m1,) = machine.outgoing(0.0)
    reader, writer = await tcp(node)
    for byte in m1:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    machine.receive(await reader.read(4096), None, 0.0)
    assert isinstance(machine.next_event(), Proven)
    machine.nominate(0.0)
    writer.write(b"".join(machine.outgoing(0.0)) + b"data at once")
    pipe = await node.accept()
    assert pipe.peer_id == identity.node_id
    assert await pipe.recv() == b"data at once"


async def test_an_m1_for_another_node_closes_the_connection(start, tcp):
    node = await start()
    machine = initiator(node, receiver=Identity.generate().public_key)
    reader, writer = await tcp(node)
    writer.write(b"".join(machine.outgoing(0.0)))
    assert await reader.read() == b""
    assert node.stats["hello_failed"] == 1


async def test_bytes_behind_m1_are_the_peers_mistake(start, tcp):
    node = await start()
    machine = initiator(node)
    reader, writer = await tcp(node)
    writer.write(b"".join(machine.outgoing(0.0)) + b"too early")
    async with asyncio.timeout(2):  # long before the hello's own time is over
        await reader.read()
    assert node.stats["hello_failed"] == 1


async def test_a_replayed_m1_is_refused(start, tcp):
    node = await start()
    machine = initiator(node)
    (m1,) = machine.outgoing(0.0)
    reader, writer = await tcp(node)
    writer.write(m1)
    assert len(await reader.readexactly(10)) == 10
    reader2, writer2 = await tcp(node)
    writer2.write(m1)
    assert await reader2.read() == b""


async def test_whom_allow_does_not_name_gets_no_m2(start, tcp):
    node = await start(conf={"allow": []})
    reader, writer = await tcp(node)
    writer.write(b"".join(initiator(node).outgoing(0.0)))
    assert await reader.read() == b""
    assert node.stats["peers_refused"] == 1


async def test_a_second_pipe_for_the_same_attempt_is_closed(start, tcp):
    node = await start(conf={"seal": "prefer"})
    identity, plugin_id = Identity.generate(), new_plugin_id()
    first, second = await tcp(node), await tcp(node)
    for reader, writer in (first, second):
        await shake(initiator(node, identity, plugin_id), reader, writer)
    pipe = await node.accept()
    assert await second[0].read() == b""
    assert node.stats["hello_second_pipe"] == 1
    assert not pipe.closed


async def test_unproven_connections_end_after_their_time(start, tcp, monkeypatch):
    monkeypatch.setattr(inbound_module, "UNPROVEN_S", 0.05)
    node = await start()
    silent, _ = await tcp(node)
    halfway, writer = await tcp(node)
    writer.write(PREFIX)
    assert await silent.read() == b""
    assert await halfway.read() == b""
    assert node.stats["unproven_expired"] == 2


async def test_a_plain_connection_does_not_end_so(start, tcp, monkeypatch):
    monkeypatch.setattr(inbound_module, "UNPROVEN_S", 0.02)
    node = await start()
    _, writer = await tcp(node)
    writer.write(b"here I am")
    pipe = await node.accept()
    await asyncio.sleep(0.04)
    assert not pipe.closed


async def test_the_oldest_unproven_connection_goes_when_there_are_too_many(start, tcp, monkeypatch):
    monkeypatch.setattr(inbound_module, "MAX_UNPROVEN", 3)
    node = await start()
    readers = [(await tcp(node))[0] for _ in range(3)]
    await until(lambda: len(node.traversal.inbound._unproven) == 3)
    await tcp(node)
    assert await readers[0].read() == b""
    assert node.stats["unproven_evicted"] == 1
    assert not readers[1].at_eof()


async def test_the_cap_is_256():
    assert inbound_module.MAX_UNPROVEN == 256
    assert inbound_module.MAX_PLAIN_UDP == 256


async def test_many_scanners_leave_nothing(start, tcp, monkeypatch):
    monkeypatch.setattr(inbound_module, "MAX_UNPROVEN", 20)
    node = await start()
    openings = [b"", b"\x16\x03\x01", PREFIX, PREFIX + bytes([M1]), os.urandom(300), b"SSH-2.0-x"]
    writers = []
    for number in range(120):
        writers.append((await tcp(node))[1])
        writers[-1].write(openings[number % len(openings)])
        if number % 3 == 0:
            writers[-1].transport.abort()
    await until(lambda: len(node.traversal.inbound._unproven) <= 20)
    for writer in writers:
        writer.transport.abort()
    await node.close()
    assert not node.traversal.inbound._unproven


# Waiters.


async def test_an_m0_for_no_waiter_closes_the_connection(start, tcp):
    node = await start()
    reader, writer = await tcp(node)
    writer.write(frame(M0, pack_m0(new_plugin_id())))
    assert await reader.read() == b""
    assert node.stats["hello_no_waiter"] == 1


class Claim(Plugin):
    name, transport, phase = "claim", "tcp", "direct"

    async def run(self, reply=None):
        self.register_inbound()
        if self.initiator:
            self.result.set_result(await self.wait_for_inbound())


async def test_an_m0_finds_its_waiter_and_the_true_peer_wins_over_impostors(start, tcp):
    alice, bob = await start(Claim), await start()
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "claim")
    await until(lambda: alice.traversal.inbound._announced)
    impostor, impostors_writer = await tcp(alice)
    impostors_writer.write(frame(M0, pack_m0(plugin.plugin_id)))
    assert (await impostor.readexactly(8))[:7] == PREFIX
    impostors_writer.write(frame(M2, b"nonsense"))
    assert await impostor.read()  # the rest of M1, and then the end
    route = await bob.loopback.route(IP4).bind(ip="127.0.0.1")
    pipe = await route.connect(("127.0.0.1", alice.port), TCP)
    path = alice.traversal.attempt_of(plugin).path
    from warpgate.traversal.plan import Combination

    bob.traversal.install_plugin("claim", {"class": Claim})
    combination = Combination("claim", "direct", "direct", path)
    attempt = bob.traversal.create_attempt(combination, alice.peer_address, plugin.plugin_id)
    attempt.start()
    attempt.plugin.result.set_result(pipe)
    assert (await plugin.result).peer_id == bob.node_id
    assert (await bob.accept()).peer_id == alice.node_id


async def test_an_m1_for_an_attempt_of_our_own_making_is_refused(start, tcp):
    """Roles come from the attempt: who created the id is the initiator, whoever dials."""
    alice, bob = await start(Claim), await start()
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "claim")
    await until(lambda: alice.traversal.inbound._announced)
    machine = initiator(alice, bob.identity, plugin.plugin_id)
    reader, writer = await tcp(alice)
    writer.write(b"".join(machine.outgoing(0.0)))
    assert await reader.read() == b""
    assert alice.stats["hello_wrong_role"] == 1
    plugin.result.cancel()


# Datagrams.


async def test_plain_datagrams_form_a_pipe_per_source(start, udp, messages):
    node = await start()
    seen = messages(node)
    first, second = udp(node), udp(node)
    for client, data in ((first, b"one"), (second, b"two"), (first, b"three")):
        client.send(data)
    await until(lambda: len(seen) == 3)
    from_first = [(msg, pipe) for msg, tup, pipe in seen if tup == first.address]
    ((from_second, other),) = [(msg, pipe) for msg, tup, pipe in seen if tup == second.address]
    pipe = from_first[0][1]
    assert from_first == [(b"one", pipe), (b"three", pipe)]
    assert from_second == b"two"
    assert other is not pipe
    assert (pipe.transport, pipe.peer_id, pipe.sealed, pipe.inbound) == ("udp", None, False, True)
    await pipe.send(b"back", first.address)
    assert await first.recv() == b"back"


async def test_plain_datagrams_are_kept_until_somebody_asks(start, udp):
    node = await start()
    udp(node).send(b"early")
    pipe = await node.accept()
    assert await pipe.recv() == b"early"


async def test_what_a_plain_datagram_client_sends_unread_is_bounded(start, udp):
    node = await start()
    client = udp(node)
    client.send(b"first")
    pipe = await node.accept()
    size = 8 * 1024
    for _ in range(inbound_module.PLAIN_UDP_KEEP_BYTES // size + 4):
        client.send(bytes(size))
    client.send(b"last")
    await until(lambda: pipe.dropped >= 4)
    kept = [await pipe.recv() for _ in range(3)]
    assert b"first" not in kept
    while (message := await pipe.recv(timeout=0)) is not None:
        kept.append(message)
    assert kept[-1] == b"last"
    assert sum(map(len, kept)) <= inbound_module.PLAIN_UDP_KEEP_BYTES


async def test_plain_udp_pipes_are_capped_and_the_longest_silent_goes(start, udp, monkeypatch):
    monkeypatch.setattr(inbound_module, "MAX_PLAIN_UDP", 2)
    node = await start()
    clients = [udp(node) for _ in range(3)]
    pipes = []
    for client in clients[:2]:
        client.send(b"hello")
        pipes.append(await node.accept())
        await asyncio.sleep(0.002)
    clients[0].send(b"again")
    await until(lambda: pipes[0].last_heard > pipes[1].last_heard)
    clients[2].send(b"hello")
    pipes.append(await node.accept())
    assert [pipe.closed for pipe in pipes] == [False, True, False]
    assert node.stats["plain_udp_evicted"] == 1


async def test_a_plain_udp_pipe_ends_when_it_has_been_idle(start, udp, monkeypatch):
    monkeypatch.setattr(inbound_module, "PLAIN_UDP_IDLE_S", 0.05)
    node = await start()
    client = udp(node)
    client.send(b"hello")
    pipe = await node.accept()
    await asyncio.sleep(0.03)
    client.send(b"still there")
    await pipe.wait_closed()
    assert await pipe.recv() == b"hello"
    assert await pipe.recv() == b"still there"
    assert not node.traversal.inbound._plain_udp
    assert not node.traversal.inbound._plain_timers


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (PREFIX + bytes([M2]) + b"x", "hello_unexpected"),
        (PREFIX + bytes([M3]) + b"x", "hello_unexpected"),
        (PREFIX + bytes([SIGNAL]) + b"x", "hello_unexpected"),
        (PREFIX + bytes([77]) + b"x", "hello_garbage"),
        (PREFIX, "hello_garbage"),
        (PREFIX + bytes([M1]) + bytes(5000), "hello_garbage"),
        (PREFIX + bytes([M0]) + b"x", "hello_garbage"),
        (message(M0, pack_m0("A" * 15)), "hello_no_waiter"),
    ],
    ids=range(8),
)
async def test_magic_datagrams_that_make_no_sense_are_counted(start, udp, messages, data, counter):
    node = await start()
    seen = messages(node)
    udp(node).send(data)
    await until(lambda: node.stats[counter])
    assert seen == []
    assert not node.traversal.inbound._unproven


async def test_an_inbound_hello_by_datagrams(start, udp):
    node = await start(conf={"seal": "prefer"})
    client, identity = udp(node), Identity.generate()
    machine = initiator(node, identity, datagram=True)
    (m1,) = machine.outgoing(0.0)
    client.send(m1)
    m2 = await client.recv()
    assert len(m2) <= len(m1)
    machine.receive(m2, None, 0.0)
    machine.nominate(0.0)
    client.send(b"\x00before M3")
    client.send(b"".join(machine.outgoing(0.0)))
    client.send(b"\x00after it")
    pipe = await node.accept()
    assert (pipe.peer_id, pipe.transport, pipe.inbound) == (identity.node_id, "udp", True)
    assert await pipe.recv() == b"before M3"
    assert await pipe.recv() == b"after it"
    await pipe.send(b"answer")
    assert await client.recv() == b"\x00answer"
    # What still comes when it is closed is no plain datagram.
    await pipe.close()
    assert (await client.recv())[:1] == b"\x01"
    client.send(b"\x00late")
    await until(lambda: node.stats["udp_late"])
    assert not node._mailbox._unaccepted


async def test_ended_udp_sources_are_forgotten_at_last(monkeypatch, start):
    monkeypatch.setattr(inbound_module, "MAX_ENDED_UDP", 2)
    node = await start()
    inbound, here = node.traversal.inbound, ("127.0.0.1", 1)
    for port in range(3):
        inbound._remember_end((here, ("127.0.0.1", port)))
    assert [inbound._has_ended((here, ("127.0.0.1", port))) for port in range(3)] == [
        False,
        True,
        True,
    ]
    monkeypatch.setattr(inbound_module, "ENDED_UDP_S", 0.0)
    inbound._remember_end((here, ("127.0.0.1", 9)))
    assert not inbound._has_ended((here, ("127.0.0.1", 9)))


async def test_junk_datagrams_cost_no_connection_its_place(start, tcp, udp, monkeypatch):
    monkeypatch.setattr(inbound_module, "MAX_UNPROVEN", 3)
    node = await start()
    await tcp(node)
    await until(lambda: len(node.traversal.inbound._unproven) == 1)
    client = udp(node)
    stranger = Identity.generate()
    for number in range(20):
        fields = HelloFields(
            plugin_id="a" * 15,
            sender=stranger.public_key,
            receiver=bytes(31) + bytes([number]),
            nonce=bytes(32),
            share=bytes(32),
        )
        client.send(message(M1, b"junk"))
        client.send(message(M1, pack_m1(fields, datagram=True)))
        client.send(message(M0, pack_m0("b" * 15)))
    await until(lambda: node.stats["hello_no_waiter"] == 20)
    assert node.stats["hello_garbage"] == 20
    assert node.stats["hello_misdirected"] == 20
    assert len(node.traversal.inbound._unproven) == 1
    assert node.stats["unproven_evicted"] == 0


async def test_what_strangers_datagrams_make_a_node_send_is_bounded(start, udp, monkeypatch):
    monkeypatch.setattr(proofs_module, "KEPT_FOR_ATTEMPTS", 100_000 - 700)
    node = await start()
    clients = [udp(node) for _ in range(10)]
    for client in clients:
        fields = HelloFields(
            plugin_id="a" * 15,
            sender=Identity.generate().public_key,
            receiver=node.identity.public_key,
            nonce=os.urandom(32),
            share=X25519PrivateKey.generate().public_key().public_bytes_raw(),
        )
        client.send(message(M1, pack_m1(fields, datagram=True)))
    await until(lambda: node.stats["hello_answers_limited"] >= 10)
    answered = 0
    for client in clients:
        while True:
            try:
                answered += len(client.sock.recv(65535))
            except BlockingIOError:
                break
    assert 0 < answered <= 700

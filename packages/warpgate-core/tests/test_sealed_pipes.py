"""Sealed pipes between real nodes, with somebody on the path who reads, changes, repeats and cuts."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress

import pytest

from warpgate.errors import BadSignature, PipeClosed, RemoteProtocolError
from warpgate.hello.messages import PREFIX
from warpgate.net.constants import IP4, NIC_BIND, TCP, UDP
from warpgate.plugin import Plugin

SECRET = b"nobody else may read this line"
HELLO_S = 0.5  # how long a hello may take here; the nodes' own limit is longer


class ThroughTcp(Plugin):
    """Dials whom the test says: the attacker has the path."""

    name, transport, phase, conf = "through_tcp", "tcp", "direct", {"timeout": HELLO_S}
    over = TCP

    async def run(self, reply=None):
        if self.initiator:
            route = await self.bind()
            self.result.set_result(await route.connect(self.node.middle.address, self.over))


class ThroughUdp(ThroughTcp):
    name, transport, phase = "through_udp", "udp", "spray"
    over = UDP


STRATEGIES = {TCP: ThroughTcp, UDP: ThroughUdp}


@pytest.fixture
async def path(start, middle):
    """Return an async function: nodes with somebody between them."""

    async def make(transport, conf=None, far_conf=None):
        alice = await start(STRATEGIES[transport], conf=conf)
        bob = await start(conf=far_conf if far_conf is not None else conf)
        alice.middle = await middle(transport, ("127.0.0.1", bob.port))
        return alice, bob, alice.middle

    return make


async def dial(alice, bob):
    transport = alice.middle.transport
    name = STRATEGIES[transport].name
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), name)
    return await plugin.result


async def join(alice, bob):
    pipe = await dial(alice, bob)
    assert pipe is not None
    async with asyncio.timeout(5):
        return pipe, await bob.accept()


async def rest(pipe):
    """Return all that still comes until the pipe ends."""
    return b"".join([data async for data in pipe])


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.001)


async def close(*pipes):
    for pipe in pipes:
        await pipe.close()


both = pytest.mark.parametrize("transport", [TCP, UDP], ids=["tcp", "udp"])


@both
async def test_pipes_are_sealed_without_a_line_in_the_strategy(path, transport):
    alice, bob, middle = await path(transport)
    here, there = await join(alice, bob)
    assert (here.sealed, there.sealed) == (True, True)
    assert (here.peer_id, there.peer_id) == (bob.node_id, alice.node_id)
    assert here.max_message is None or here.max_message >= 1200
    size = here.max_message or 200_000
    for a, b in ((here, there), (there, here)):
        b.subscribe()
        await a.send(SECRET)
        assert await b.recv() == SECRET
        await a.send(b"U" * size)
        got = await b.recv()
        while len(got) < size:
            got += await b.recv()
        assert got == b"U" * size
    await close(here, there)
    wire = b"".join(middle.seen)
    assert SECRET not in wire
    assert b"UUUUUUUU" not in wire
    assert here.plugin_name == STRATEGIES[transport].name


@both
async def test_prefer_and_off_make_a_plain_pipe(path, transport):
    alice, bob, middle = await path(transport, {"seal": "prefer"}, {"seal": "off"})
    here, there = await join(alice, bob)
    assert (here.sealed, there.sealed) == (False, False)
    await here.send(SECRET)
    assert await there.recv() == SECRET
    await close(here, there)
    assert SECRET in b"".join(middle.seen)


@both
@pytest.mark.parametrize("settings", [("require", "off"), ("off", "require")])
async def test_require_and_off_don_t_connect_and_say_why(path, transport, settings):
    alice, bob, _ = await path(transport, *({"seal": setting} for setting in settings))
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), STRATEGIES[transport].name)
    attempt = alice.traversal.find(bob.node_id, plugin.plugin_id)
    assert await plugin.result is None
    assert 'conf["seal"]' in attempt.outcome.cause
    assert len(bob._mailbox._unaccepted) == 0


@both
@pytest.mark.parametrize("setting", ["require", "prefer"])
async def test_no_downgrade_on_the_path(path, transport, setting):
    """Capabilities that are renamed on the way make no pipe, neither sealed nor plain."""
    alice, bob, middle = await path(transport, {"seal": setting})

    def rename(data, to_bob):
        data = data.replace(b"\xa4seal", b"\xa4none")
        return data if transport == TCP else [data]

    middle.change = rename
    assert await dial(alice, bob) is None
    assert not bob._mailbox._unaccepted


@both
async def test_somebody_else_in_the_middle_is_not_the_peer(path, start, transport):
    """Mallory answers in bob's place, with a node and a key of her own."""
    alice, bob, middle = await path(transport)
    mallory = await start()
    middle.target = ("127.0.0.1", mallory.port)
    assert await dial(alice, bob) is None
    assert not mallory._mailbox._unaccepted
    assert not bob._mailbox._unaccepted


@both
async def test_flipped_bits_never_lead_to_a_wrong_peer_or_wrong_bytes(path, transport):
    alice, bob, middle = await path(transport)
    rng = random.Random(7)
    connected = 0
    for _ in range(30):
        at = rng.randrange(12)
        count = 0

        def flip(data, to_bob, at=at):
            nonlocal count
            count += 1
            if count == at:
                altered = bytearray(data)
                altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
                data = bytes(altered)
            return data if transport == TCP else [data]

        middle.change = flip
        pipe = await dial(alice, bob)
        if pipe is None:
            continue
        connected += 1
        assert (pipe.sealed, pipe.peer_id) == (True, bob.node_id)
        sent = [b"message %d;" % number for number in range(10)]
        with suppress(PipeClosed):
            for data in sent:
                await pipe.send(data)
                await asyncio.sleep(0)
        pipe.abort()
    assert connected > 5  # the hello of some was let through
    # What reached bob's side came from alice, whole and unaltered.
    for _ in list(bob._mailbox._unaccepted):
        there = await bob.accept()
        assert there.peer_id == alice.node_id
        got = []
        while (data := await there.recv(timeout=0)) is not None:
            got.append(data)
        if transport == UDP:
            assert set(got) <= set(sent)
        else:
            assert b"".join(sent).startswith(b"".join(got))
        there.abort()


# Streams.


async def test_an_altered_byte_ends_a_stream(path):
    alice, bob, middle = await path(TCP)
    here, there = await join(alice, bob)
    there.subscribe()
    await here.send(b"before")
    assert await there.recv() == b"before"
    middle.change = lambda data, to_bob: bytes([*data[:-1], data[-1] ^ 1])
    await here.send(b"altered")
    with pytest.raises(PipeClosed) as caught:
        await rest(there)
    assert isinstance(caught.value.__cause__, BadSignature)
    assert isinstance(there.cause, BadSignature)
    assert await there.recv() is None
    with pytest.raises(PipeClosed):
        await there.send(b"x")
    assert bob.stats["pipe_protocol_errors"] == 1
    await close(here, there)


async def test_a_closed_stream_ends_cleanly(path):
    alice, bob, _ = await path(TCP)
    here, there = await join(alice, bob)
    await here.send(b"all of it")
    await here.close()
    assert [data async for data in there] == [b"all of it"]
    assert there.cause is None
    assert here.cause is None
    await close(there)


async def test_a_stream_that_is_cut_off_is_no_clean_end(path):
    alice, bob, middle = await path(TCP)
    here, there = await join(alice, bob)
    await here.send(b"first part")
    assert await there.recv() == b"first part"
    middle.cut()
    with pytest.raises(PipeClosed) as caught:
        await there.recv_n(5)
    assert "cut off before the peer closed it" in str(caught.value.__cause__)
    assert isinstance(there.cause, RemoteProtocolError)
    with pytest.raises(PipeClosed) as caught:
        await rest(here)
    assert "cut off" in str(caught.value.__cause__)
    await close(here, there)


async def test_a_reset_is_a_cut(path):
    alice, bob, middle = await path(TCP)
    here, there = await join(alice, bob)
    for writer in middle.writers:
        sock = writer.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    middle.cut()
    with pytest.raises(PipeClosed) as caught:
        await rest(there)
    assert "cut off" in str(caught.value.__cause__)
    assert isinstance(there.cause.__cause__, ConnectionResetError)
    await close(here, there)


async def test_what_came_before_the_cut_can_be_read(path):
    alice, bob, middle = await path(TCP)
    here, there = await join(alice, bob)
    heard = []
    there.subscribe(handler=lambda data, tup, pipe: heard.append(data))
    await here.send(b"first part")
    await until(lambda: heard)
    middle.cut()
    await there.wait_closed()
    assert heard == [b"first part"]
    await close(here, there)


async def test_the_closing_record_can_not_be_left_out(path):
    """The attacker passes the end on, but not the record that says that it is the end."""
    alice, bob, middle = await path(TCP)
    here, there = await join(alice, bob)
    await here.send(b"transfer 1000 to carol")
    assert await there.recv() == b"transfer 1000 to carol"
    middle.change = lambda data, to_bob: b""
    await here.send(b", and 10 to dave")
    await here.close()
    with pytest.raises(PipeClosed):
        await rest(there)
    await close(there)


async def test_a_peer_that_aborts_is_a_cut(path):
    alice, bob, _ = await path(TCP)
    here, there = await join(alice, bob)
    here.abort()
    with pytest.raises(PipeClosed):
        await rest(there)
    await close(there)


async def test_a_slow_reader_slows_the_sender_down(path):
    alice, bob, _ = await path(TCP)
    here, there = await join(alice, bob)
    data = random.Random(3).randbytes(24 << 20)
    sending = asyncio.create_task(here.send(data))
    there.subscribe()
    await until(lambda: there._paused)
    assert not sending.done()
    assert there._held < 2 << 20
    assert await there.recv_n(len(data)) == data
    assert await sending == len(data)
    await close(here, there)


async def test_data_may_follow_m3_at_once(path):
    alice, bob, middle = await path(TCP)
    held = []

    def hold(data, to_bob):
        """Let everything from M3 on arrive in one piece."""
        if to_bob and (held or (data[:8] == PREFIX + b"\x03")):
            held.append(data)
            return b"".join(held) if len(b"".join(held)) > 5000 else b""
        return data

    middle.change = hold
    pipe = await dial(alice, bob)
    await pipe.send(b"x" * 6000)
    there = await bob.accept()
    assert await there.recv_n(6000) == b"x" * 6000
    middle.change = lambda data, to_bob: data
    await close(pipe, there)


# Datagrams.


async def test_altered_and_repeated_datagrams_are_dropped_and_counted(path):
    alice, bob, middle = await path(UDP)
    here, there = await join(alice, bob)
    there.subscribe()
    await here.send(b"one")
    assert await there.recv() == b"one"
    middle.change = (
        lambda data, to_bob: [
            bytes([*data[:-1], data[-1] ^ 1]),  # altered
            data,
            data,  # repeated
            bytes([1]) + data[1:],  # data made control
            data[:20],  # cut
        ]
    )
    await here.send(b"two")
    assert await there.recv() == b"two"
    middle.change = middle.unchanged
    await here.send(b"three")
    assert await there.recv() == b"three"
    assert bob.stats["datagrams_refused"] == 4
    assert not there.closed
    await close(here, there)


async def test_nobody_can_forge_a_close(path):
    alice, bob, middle = await path(UDP)
    here, there = await join(alice, bob)
    there.subscribe()
    plain_close = b"\x01\x00" + here.handshake.plugin_id.encode()
    middle.inject(plain_close, True)
    middle.inject(plain_close, False)
    await here.send(b"still here")
    assert await there.recv() == b"still here"
    assert not here.closed
    assert bob.stats["datagrams_refused"] == 1
    await here.close()
    await there.wait_closed()
    assert there.cause is None


async def test_datagrams_of_an_earlier_pipe_are_nothing(path):
    alice, bob, middle = await path(UDP)
    here, there = await join(alice, bob)
    await here.send(b"old")
    assert await there.recv() == b"old"
    old = [data for data in middle.seen if data[:1] == b"\0"]
    await close(here, there)
    here, there = await join(alice, bob)
    there.subscribe()
    for data in old:
        middle.inject(data, True)
    await here.send(b"new")
    assert await there.recv() == b"new"
    assert bob.stats["datagrams_refused"] == len(old) == 1
    await close(here, there)

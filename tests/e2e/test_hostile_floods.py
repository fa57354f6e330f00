"""Floods of signals, of hellos under false addresses, of half-open connections; and messages that swell."""

# ruff: noqa: ASYNC110  # counters have no event to wait for

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable

import msgpack
import pytest

from warpgate import NIC_BIND, NODE_TEST_CONF, ConMsg, Node, WarpgateError, auto_connect
from warpgate.hello.machine import Initiator, NonceCache
from warpgate.hello.messages import M0, M1, PREFIX, frame, message, pack_m0, unpack_m1
from warpgate.identity import Identity
from warpgate.names.record import unpack_record
from warpgate.net.constants import IP4
from warpgate.plugin import new_plugin_id
from warpgate.protocol.codec import decode_body, encode_body
from warpgate.protocol.envelope import MAX_SIGNAL_BYTES, seal_signal
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address, parse_address
from warpgate.signalling.transport import SignalOrigin
from warpgate.stun import message as stun
from warpgate.testing import LeakCheck, echo
from warpgate.traversal.inbound import MAX_UNPROVEN
from warpgate.traversal.limits import ATTEMPTS_ALL_STRANGERS, ATTEMPTS_PER_STRANGER

FLOOD_S = 2.5
CALL_S = 3.0
"""Within which a call must succeed while a flood goes on, on a busy machine."""
ORIGIN = SignalOrigin("test", True, None, "a stranger")


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    async with LeakCheck(grace_s=3.0), contextlib.AsyncExitStack() as stack:
        pair = [Node(conf=NODE_TEST_CONF, ip="127.0.0.1") for _ in range(2)]
        for node in pair:
            await stack.enter_async_context(node)
            node.add_msg_cb(echo)
        yield pair[0], pair[1]


async def call(alice: Node, bob: Node, **wish: object) -> None:
    async with asyncio.timeout(CALL_S):
        pipe, _ = await auto_connect(alice, bob.address(), CALL_S, **wish)
        assert pipe is not None, alice.last_report
        async with pipe:
            assert pipe.peer_id == bob.node_id
            await pipe.send(b"hello")
            assert await pipe.recv(timeout=CALL_S) == b"hello"


async def pour(drops: Callable[[], None], until: float) -> int:
    """Call something as often as the loop's other work lets it, a few at a time; return how often."""
    poured = 0
    while time.monotonic() < until:
        for _ in range(20):
            drops()
        poured += 20
        await asyncio.sleep(0)
    return poured


def signal(signer: Identity, node: Node, port: int) -> bytes:
    """Return a signal that asks the node to dial a port of loopback."""
    nic = InterfaceRecord(1, (Endpoint(IP4, "127.0.0.1", port, None, None, 0, 0),))
    machine = node.peer_address.machine
    address = pack_address(signer, machine=machine, sequence=1, brokers=(), interfaces=[nic])
    msg = ConMsg()
    msg.meta.plugin_name, msg.meta.pipe_id = "direct_connect", new_plugin_id()
    msg.meta.af, msg.meta.src_buf, msg.meta.route_type = IP4, address.raw, NIC_BIND
    return seal_signal(
        signer, node.identity.public_key, node.identity.exchange_key,
        wire_name="ConMsg", body=encode_body(msg),
        sent_ms=node.unix_time() * 1000, ttl_s=20, msg_id=os.urandom(16),
    )  # fmt: skip


@pytest.mark.parametrize("strangers", [1, 40])
async def test_signals_of_strangers(nodes: tuple[Node, Node], strangers: int) -> None:
    alice, bob = nodes
    signers = [Identity.generate() for _ in range(strangers)]
    most = 0
    silent = socket.create_server(
        ("127.0.0.1", 0), backlog=4096
    )  # what is dialled, and says nothing

    def drop() -> None:
        nonlocal most
        signer = signers[os.urandom(1)[0] % strangers]
        bob.router.deliver(signal(signer, bob, silent.getsockname()[1]), ORIGIN)
        most = max(most, len(bob.traversal.responders()))

    await call(alice, bob)  # from now on she is no stranger
    with silent:
        flood = asyncio.ensure_future(pour(drop, time.monotonic() + FLOOD_S))
        for plugins in (["reverse_connect"], ["direct_connect"], None):
            await call(alice, bob, plugins=plugins)
        poured = await flood
    alone = strangers == 1
    limit = ATTEMPTS_PER_STRANGER if alone else ATTEMPTS_ALL_STRANGERS
    assert limit / 2 < most <= limit + 2  # and alice's
    names = ("stranger_rate_limit", "stranger_attempts_limit", "strangers_attempts_limit",
             "strangers_rate_limit")  # fmt: skip
    assert sum(bob.stats[name] for name in names) > poured / 2, dict(bob.stats)


async def test_hellos_under_false_addresses(nodes: tuple[Node, Node]) -> None:
    """M1 from ever new addresses, each in order as far as one can see without its answer's arriving."""
    alice, bob = nodes
    link = bob.listening_socket(IP4, "127.0.0.1")
    assert link is not None
    sent: list[int] = []
    send_to = link.send_to

    def counted(data: bytes, addr: tuple[str, int]) -> bool:
        if addr[0].startswith("127.99."):
            sent.append(len(data))
        return send_to(data, addr)

    link.send_to = counted  # type: ignore[method-assign]
    number = 0

    def drop() -> None:
        nonlocal number
        number += 1
        machine = Initiator(
            identity=mallory, peer=bob.identity.public_key, plugin_id=new_plugin_id(),
            datagram=True, entropy=os.urandom, nonces=NonceCache(),
        )  # fmt: skip
        machine.start(0.0)
        for data in machine.outgoing(0.0):
            link.received(data, (f"127.99.{number >> 8 & 255}.{number & 255}", 4000))

    mallory = Identity.generate()
    flood = asyncio.ensure_future(pour(drop, time.monotonic() + FLOOD_S))
    for plugins in (["direct_connect"], ["udp_punch"], None):
        await call(alice, bob, plugins=plugins)
    await flood
    assert len(bob.traversal.inbound._unproven) <= MAX_UNPROVEN
    assert number > 2 * MAX_UNPROVEN
    assert bob.stats["unproven_evicted"] > 0
    assert bob.stats["hello_answers_limited"] > 0
    assert 10_000 < sum(sent) <= 50_000  # half of a minute's bytes (WIRE.md section 5)
    assert max(sent) <= 300


async def test_connections_that_say_nothing_or_half_of_it(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    writers: list[asyncio.StreamWriter] = []
    halves = [
        b"",
        PREFIX[:3],
        PREFIX,
        frame(M0, pack_m0("a" * 15))[:-1],
        frame(M1, bytes(300))[:99],
    ]
    for number in range(3 * MAX_UNPROVEN):
        _, writer = await asyncio.open_connection("127.0.0.1", bob.port)
        writers.append(writer)
        writer.write(halves[number % len(halves)])
        if number % 100 == 99:
            await call(alice, bob, plugins=["direct_connect"])
    assert len(bob.traversal.inbound._unproven) <= MAX_UNPROVEN
    assert bob.stats["unproven_evicted"] > MAX_UNPROVEN
    for writer in writers:
        writer.transport.abort()


@pytest.mark.parametrize(
    "half", [b"", PREFIX[:3], PREFIX, frame(M0, pack_m0("a" * 15))[:-1], frame(M1, bytes(300))[:99]]
)
async def test_what_can_become_nothing_any_more_has_no_place(
    nodes: tuple[Node, Node], half: bytes
) -> None:
    """Half a hello and the end of the stream: the place is free at once, not after its 5 s."""
    _, bob = nodes
    reader, writer = await asyncio.open_connection("127.0.0.1", bob.port)
    writer.write(half)
    await writer.drain()
    while not bob.traversal.inbound._unproven:
        await asyncio.sleep(0)
    writer.write_eof()
    async with asyncio.timeout(1):
        assert await reader.read() == b""
    assert not bob.traversal.inbound._unproven
    writer.close()


# Messages that swell.


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


SWELLING = {
    "an array of 4 G": b"\xdd\xff\xff\xff\xff",
    "a map of 4 G": b"\xdf\xff\xff\xff\xff",
    "a text of 4 G": b"\xdb\xff\xff\xff\xff" + b"x" * 100,
    "bytes of 4 G": b"\xc6\xff\xff\xff\xff" + b"x" * 100,
    "an extension of 4 G": b"\xc9\xff\xff\xff\xff\x01",
    "7,000 levels": deep(7000),
    "1,000 levels of maps": b"\x81\xc0" * 1000 + b"\xc0",
    "arrays in arrays": (b"\xdc\xff\xff" * 2000)[:6000],
    "7,000 empty arrays": b"\xdc\x1b\x50" + b"\x90" * 7000,
    "7,000 empty maps": b"\xdc\x1b\x50" + b"\x80" * 7000,
    "a number of 64 bits": b"\x97" + b"\xcf" + b"\xff" * 8 + b"\xc0" * 6,
    "a time stamp": msgpack.packb([msgpack.Timestamp(2**33)] * 7),
}


@contextlib.contextmanager
def light(limit_bytes: int = 4 << 20, limit_s: float = 1.0) -> object:
    """Check that something takes little memory and little time of the processor."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        took_s = time.process_time() - begun
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak >> 10} KiB"
    assert took_s < limit_s, f"{took_s:.2f} s"


@pytest.mark.parametrize("body", SWELLING.values(), ids=SWELLING)
def test_parsers_refuse_what_swells(body: bytes) -> None:
    parsers: list[Callable[[bytes], object]] = [
        unpack_m1,
        lambda data: decode_body(ConMsg, data),
        parse_address,
        unpack_record,
        lambda data: unpack_record(data[:3000]),
        stun.decode,
    ]
    for parse in parsers:
        with light(), pytest.raises((WarpgateError, ValueError)):
            parse(body)


def test_texts_that_swell() -> None:
    for text in ("wg1_" + "A" * 20_000_000, " " * 20_000_000 + "wg1_A", "wg1_" + "=" * 5_000_000):
        for form in (text, text.encode()):
            with light(limit_bytes=64 << 20), pytest.raises(WarpgateError) as caught:
                parse_address(form)
            assert len(str(caught.value)) < 500


@pytest.mark.parametrize("body", SWELLING.values(), ids=SWELLING)
async def test_a_node_drops_what_swells(nodes: tuple[Node, Node], body: bytes) -> None:
    """Signed by a stranger, sealed to the node, and in a hello, by TCP and UDP."""
    _, bob = nodes
    link = bob.listening_socket(IP4, "127.0.0.1")
    assert link is not None
    envelope = seal_signal(
        Identity.generate(), bob.identity.public_key, bob.identity.exchange_key,
        wire_name="ConMsg", body=body, sent_ms=bob.unix_time() * 1000, ttl_s=20,
        msg_id=os.urandom(16),
    )  # fmt: skip
    assert len(envelope) <= MAX_SIGNAL_BYTES
    with light():
        assert bob.router.deliver(envelope, ORIGIN)
        link.received(message(M1, body[:1000]), ("127.0.0.1", 4000))
    assert sum(n for name, n in bob.stats.items() if name.startswith("signals_")) >= 1
    assert bob.stats["hello_garbage"] == 1
    assert bob.stats["signal_errors"] == 0
    assert not bob.traversal.plugins

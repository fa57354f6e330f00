from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from warpgate.errors import PipeClosed
from warpgate.net.constants import IP4, IP6, SUB_ALL, UDP
from warpgate.net.datagram import DatagramSocket
from warpgate.net.inbox import UDP_KEEP_BYTES, UDP_KEEP_DATAGRAMS
from warpgate.net.nic import loopback_interface
from warpgate.net.udp import MAX_PAYLOAD, UdpPipe

Pair = tuple[UdpPipe, UdpPipe]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    before = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    yield
    gc.collect()
    after = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    assert after <= before


@pytest.fixture(params=[IP4, IP6])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    route = (
        await loopback_interface()
        .route(request.param)
        .bind(ip="127.0.0.1" if request.param == IP4 else "::1")
    )
    a = await route.datagram()
    b = await route.datagram(a.local)
    yield a, b
    await a.close()
    await b.close()
    assert not asyncio.all_tasks() - {asyncio.current_task()}


async def until(condition: object) -> None:
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


def test_a_message_is_a_datagram() -> None:
    assert (UdpPipe.transport, UdpPipe.reliable) == ("udp", False)


async def test_ping_pong(pair: Pair) -> None:
    a, b = pair
    assert await b.send(b"ping") == 4
    assert await a.recv(full=True) == [b.local, b"ping"]
    assert await a.send(b"pong", b.local) == 4
    assert await b.recv() == b"pong"
    assert await b.send(b"") == 0
    assert await a.recv() == b""
    assert len(a.local) == 2
    assert "unordered and lossy" in repr(a)
    assert a.over_loopback is False  # it has no remote yet
    assert b.over_loopback


async def test_without_remote_send_needs_a_destination(pair: Pair) -> None:
    a, b = pair
    with pytest.raises(ValueError, match="no remote address"):
        await a.send(b"x")
    with pytest.raises(ValueError, match="nonsense"):
        await a.send(b"x", ("nonsense", 9))
    with pytest.raises(TypeError, match="str"):
        await a.send("text", b.local)
    a.remote = b.local
    await a.send(b"x")
    assert await b.recv() == b"x"


async def test_the_limit_is_named(pair: Pair) -> None:
    a, b = pair
    assert b.max_message == MAX_PAYLOAD
    with pytest.raises(ValueError, match=f"max_message, {MAX_PAYLOAD} bytes"):
        await b.send(bytes(MAX_PAYLOAD + 1))
    assert await b.send(bytes(MAX_PAYLOAD)) == MAX_PAYLOAD
    assert await a.recv() == bytes(MAX_PAYLOAD)
    b.max_message = 3
    with pytest.raises(ValueError, match="4 bytes"):
        await b.send(b"abcd")


async def test_recv_n_is_refused(pair: Pair) -> None:
    with pytest.raises(TypeError, match='transport="tcp"'):
        await pair[0].recv_n(5)


async def test_by_sender(pair: Pair) -> None:
    a, b = pair
    route = loopback_interface().route(a._link.af)  # type: ignore[attr-defined]
    async with await (await route.bind(ip=a.local[0])).datagram(a.local) as c:
        a.subscribe((None, c.local))
        await b.send(b"from b")
        await c.send(b"from c")
        assert await a.recv((None, c.local)) == b"from c"
        assert a.unmatched == 1


async def test_only_remote(pair: Pair) -> None:
    a, b = pair
    a.only_remote = True
    a.remote = ("127.0.0.1", 9)
    a.subscribe(SUB_ALL)
    await b.send(b"stranger")
    await until(lambda: a.unmatched == 1)
    a.remote = b.local
    await b.send(b"friend")
    assert await a.recv() == b"friend"


@pytest.mark.parametrize("subscribed", [False, True])
async def test_the_newest_are_kept(pair: Pair, subscribed: bool) -> None:
    a, b = pair
    if subscribed:
        a.subscribe(SUB_ALL)
    for number in range(UDP_KEEP_DATAGRAMS + 10):
        a._incoming(b"%d" % number, b.local)
    assert a.dropped == 10
    assert await a.recv() == b"10"
    big = bytes(60_000)
    for _ in range(100):
        a._incoming(big, b.local)
    queue = a._queues[(None, None)]
    assert queue.held <= UDP_KEEP_BYTES
    assert len(queue.queue) * len(big) > UDP_KEEP_BYTES - 2 * len(big)


async def test_a_slow_handler_keeps_the_newest(pair: Pair) -> None:
    a, b = pair
    go = asyncio.Event()
    seen: list[bytes] = []

    async def slow(msg: bytes, *_: object) -> None:
        await go.wait()
        seen.append(msg)

    a.subscribe(SUB_ALL, handler=slow)
    a._incoming(b"first", b.local)
    await asyncio.sleep(0)
    for number in range(UDP_KEEP_DATAGRAMS + 5):
        a._incoming(b"%d" % number, b.local)
    go.set()
    await until(lambda: len(seen) == UDP_KEEP_DATAGRAMS + 1)
    assert seen[:2] == [b"first", b"5"]
    assert a.dropped == 5


async def test_a_burst_arrives(pair: Pair) -> None:
    a, b = pair
    a.subscribe(SUB_ALL)
    got = 0

    async def read() -> None:
        nonlocal got
        while await a.recv(timeout=0.5) is not None:
            got += 1

    reading = asyncio.create_task(read())
    for _ in range(5000):
        await b.send(bytes(64))
    await reading
    assert got == 5000


async def test_a_dead_destination_is_harmless(pair: Pair) -> None:
    a, b = pair
    gone = b.local
    await b.close()
    for _ in range(5):
        await a.send(b"x", gone)
        await asyncio.sleep(0)
    assert not a.closed
    assert await a.recv(timeout=0.01) is None


async def test_close(pair: Pair) -> None:
    a, b = pair
    reading = asyncio.create_task(a.recv(timeout=None))
    iterating = asyncio.create_task(anext(aiter(a), None))
    await asyncio.sleep(0)
    await asyncio.gather(a.close(), a.close())
    assert await reading is None
    assert await iterating is None
    assert a.closed
    await a.wait_closed()
    with pytest.raises(PipeClosed):
        await a.send(b"x", b.local)
    a.write_raw(b"x", b.local)


async def test_what_came_before_close_can_be_read(pair: Pair) -> None:
    a, b = pair
    a.subscribe(SUB_ALL)
    await b.send(b"x")
    await until(lambda: a.has_unread)
    await a.close()
    assert await a.recv() == b"x"
    assert await a.recv() is None


async def shared_socket() -> DatagramSocket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return await DatagramSocket.open(sock)


async def test_pipes_on_a_shared_socket() -> None:
    link = await shared_socket()
    strays: list[bytes] = []
    link.default = lambda data, addr: strays.append(data)
    route = await loopback_interface().route(IP4).bind()
    one, two, three = [await route.datagram(link.local) for _ in range(3)]
    first = UdpPipe(link, one.local, owner=False)
    second = UdpPipe(link, two.local, owner=False)
    for pipe in (one, two, three):
        await pipe.send(b"from %d" % pipe.local[1])
    assert await first.recv() == b"from %d" % one.local[1]
    assert await second.recv() == b"from %d" % two.local[1]
    await until(lambda: strays == [b"from %d" % three.local[1]])
    await first.send(b"re")
    assert await one.recv() == b"re"

    second.remote = three.local  # the peer turned up elsewhere
    await three.send(b"moved")
    assert await second.recv() == b"moved"
    await two.send(b"old")
    await until(lambda: strays[-1] == b"old")

    await first.close()
    assert not link.closed
    await one.send(b"again")
    await until(lambda: strays[-1] == b"again")
    link.close()
    await second.wait_closed()
    assert second.closed
    assert await second.recv() is None
    for pipe in (one, two, three):
        await pipe.close()
    with pytest.raises(ValueError, match="remote"):
        UdpPipe(link, owner=False)


async def test_connect_with_udp_is_a_datagram_pipe(pair: Pair) -> None:
    a, _ = pair
    route = await loopback_interface().route(a._link.af).bind()  # type: ignore[attr-defined]
    async with await route.connect(a.local, transport=UDP) as pipe:
        assert isinstance(pipe, UdpPipe)
        await pipe.send(b"x")
        assert await a.recv(full=True) == [pipe.local, b"x"]

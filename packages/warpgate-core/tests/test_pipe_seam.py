"""What the core does with pipes behind the user's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from warpgate.errors import PipeClosed, RemoteProtocolError
from warpgate.events import Counters
from warpgate.net.constants import IP4, SUB_ALL
from warpgate.net.inbox import HIGH_WATER
from warpgate.net.nic import loopback_interface
from warpgate.net.pipe import Pipe
from warpgate.net.tcp import TcpPipe
from warpgate.net.udp import UdpPipe

Pair = tuple[Pipe, Pipe]
Address = tuple[str, int]


async def make_pair(transport: str) -> Pair:
    route = await loopback_interface().route(IP4).bind()
    if transport == "udp":
        a, b = await route.datagram(), await route.datagram()
        a.remote, b.remote = b.local, a.local
        return a, b
    accepted: asyncio.Queue[TcpPipe] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TcpPipe(accepted.put_nowait), "127.0.0.1", 0)
    c = await route.connect(server.sockets[0].getsockname())
    d = await accepted.get()
    server.close()
    return c, d


@pytest.fixture(params=["tcp", "udp"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    a, b = await make_pair(request.param)
    yield a, b
    await asyncio.gather(a.close(), b.close())
    assert not asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture
async def stream() -> AsyncIterator[Pair]:
    a, b = await make_pair("tcp")
    yield a, b
    await asyncio.gather(a.close(), b.close())


async def sent(pipe: Pipe, *messages: bytes) -> None:
    for message in messages:
        await pipe.send(message)
        await asyncio.sleep(0.002)


async def until(condition: object) -> None:
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


class Flip:
    """A filter that inverts bytes and refuses what begins with FF."""

    overhead = 1

    def encode(self, data: bytes) -> bytes:
        return b"\1" + bytes(255 - byte for byte in data)

    def decode(self, data: bytes, addr: Address) -> list[bytes]:
        if data[0] == 255:
            raise RemoteProtocolError("no")
        return [bytes(255 - byte for byte in data[1:])] if len(data) > 1 else []

    def farewell(self) -> bytes:
        return b"\1"


async def test_take_over_gets_what_nobody_has_read(pair: Pair) -> None:
    a, b = pair
    got: list[bytes] = []
    b.subscribe((b"x", None))
    b.subscribe(SUB_ALL)
    await sent(a, b"x1", b"2", b"3")
    await until(lambda: len(b._queues[(None, None)].queue) == 3)
    assert await b.recv() == b"x1"
    b.take_over(lambda data, addr: got.append(data))
    assert got == [b"2", b"3"]
    assert not b._subs
    assert not b.has_unread
    await sent(a, b"4")
    await until(lambda: got == [b"2", b"3", b"4"])
    assert b.unmatched == 0


async def test_take_over_gets_the_backlog(pair: Pair) -> None:
    a, b = pair
    got: list[tuple[bytes, Address]] = []
    await sent(a, b"1", b"2")
    await until(lambda: len(b._backlog.queue) == 2)
    b.take_over(lambda data, addr: got.append((data, addr)))
    assert got == [(b"1", a.local), (b"2", a.local)]


async def test_take_over_gets_what_waits_for_handlers(pair: Pair) -> None:
    a, b = pair
    go = asyncio.Event()
    handled: list[bytes] = []
    got: list[bytes] = []

    async def slow(msg: bytes, *_: object) -> None:
        await go.wait()
        handled.append(msg)

    b.subscribe(SUB_ALL, handler=slow)
    await sent(a, b"1", b"2", b"3")
    await until(lambda: len(b._work.queue) == 2)
    b.take_over(lambda data, addr: got.append(data))
    go.set()
    await until(lambda: b._dispatcher is None)
    assert (handled, got) == ([b"1"], [b"2", b"3"])


async def test_take_over_ends_waiting_readers(pair: Pair) -> None:
    _, b = pair
    reading = asyncio.create_task(b.recv(timeout=None))
    await asyncio.sleep(0)
    b.take_over(lambda data, addr: None)
    assert await reading is None


async def test_take_over_lets_a_paused_stream_read_on(stream: Pair) -> None:
    a, b = stream
    size = 24 * HIGH_WATER
    count = 0

    def receiver(data: bytes, addr: Address) -> None:
        nonlocal count
        count += len(data)

    sending = asyncio.create_task(a.send(bytes(size)))
    await until(lambda: b._paused)
    b.take_over(receiver)
    assert await sending == size
    await until(lambda: count == size)


async def test_hand_back_delivers_its_messages_first(pair: Pair) -> None:
    a, b = pair
    got: list[bytes] = []
    b.take_over(lambda data, addr: got.append(data))
    await sent(a, b"hello")
    await until(lambda: bool(got))
    b.hand_back([b"left", b"over"])
    await sent(a, b"after")
    assert [await b.recv(), await b.recv(), await b.recv()] == [b"left", b"over", b"after"]


async def test_a_receiver_may_hand_back_in_the_middle(pair: Pair) -> None:
    a, b = pair
    await sent(a, b"hello", b"user 1", b"user 2")
    await until(lambda: len(b._backlog.queue) == 3)

    def receiver(data: bytes, addr: Address) -> None:
        b.hand_back()

    b.take_over(receiver)
    assert [await b.recv(), await b.recv()] == [b"user 1", b"user 2"]


async def test_what_is_handed_back_after_the_end_can_be_read(stream: Pair) -> None:
    a, b = stream
    seen: list[bytes] = []
    b.take_over(lambda data, addr: seen.append(data))
    await a.send(b"bye")
    await a.close()
    await b.wait_closed()
    b.hand_back(seen)
    assert await b.recv() == b"bye"
    assert await b.recv() is None


async def test_the_end_during_a_take_over_closes_at_once(stream: Pair) -> None:
    a, b = stream
    ended: list[Pipe] = []
    b.take_over(lambda data, addr: None)
    b.add_close_callback(ended.append)
    await a.close()
    await b.wait_closed()
    assert ended == [b]


async def test_gate(pair: Pair) -> None:
    a, b = pair
    a.gate()
    waiting = asyncio.create_task(a.send(b"user"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    a.write_raw(b"core")
    assert await b.recv() == b"core"
    a.open_gate()
    assert await waiting == 4
    assert await b.recv() == b"user"


async def test_closing_ends_a_gated_send(pair: Pair) -> None:
    a, _ = pair
    a.gate()
    waiting = asyncio.create_task(a.send(b"user"))
    await asyncio.sleep(0)
    await a.close()
    with pytest.raises(PipeClosed):
        await waiting
    a.write_raw(b"nothing happens")


async def test_a_filter_sees_all_but_raw_writes(pair: Pair) -> None:
    a, b = pair
    a.set_filter(Flip())
    assert await a.send(b"abc") == 3
    assert await b.recv() == b"\1" + bytes(255 - byte for byte in b"abc")
    b.set_filter(Flip())
    await a.send(b"abc")
    assert await b.recv() == b"abc"
    a.write_raw(b"\1")  # decodes to nothing
    await asyncio.sleep(0.01)
    await sent(a, b"def")
    assert await b.recv() == b"def"
    b.set_filter(None)
    a.set_filter(None)
    await a.send(b"plain")
    assert await b.recv() == b"plain"


async def test_the_receiver_is_before_the_filter(pair: Pair) -> None:
    a, b = pair
    got: list[bytes] = []
    b.set_filter(Flip())
    b.take_over(lambda data, addr: got.append(data))
    await sent(a, b"raw")
    await until(lambda: got == [b"raw"])


async def test_a_broken_rule_aborts_a_stream_and_costs_a_datagram(pair: Pair) -> None:
    a, b = pair
    b.counters = Counters()
    b.set_filter(Flip())
    b.subscribe(SUB_ALL)
    await sent(a, b"\xff")
    if b.transport == "tcp":
        await b.wait_closed()
        with pytest.raises(PipeClosed) as caught:
            await b.send(b"x")
        assert isinstance(caught.value.__cause__, RemoteProtocolError)
    else:
        await sent(a, b"\1\x9e")
        assert await b.recv() == b"a"
    assert b.counters["pipe_protocol_errors"] == 1


async def test_abort_is_at_once(pair: Pair) -> None:
    a, _ = pair
    seen: list[Pipe] = []
    a.add_close_callback(seen.append)
    a.abort(ValueError("why"))
    assert a.closed
    await a.wait_closed()
    assert seen == [a]
    with pytest.raises(PipeClosed) as caught:
        await a.send(b"x")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_close_callbacks(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    a, _ = pair
    seen: list[str] = []

    def bad(pipe: Pipe) -> None:
        raise ValueError("boom")

    a.add_close_callback(bad)
    a.add_close_callback(lambda pipe: seen.append("first"))
    a.add_close_callback(lambda pipe: seen.append("second"))
    assert not seen
    await a.close()
    a.add_close_callback(lambda pipe: seen.append("late"))
    await a.close()
    assert seen == ["first", "second", "late"]
    assert "boom" in caplog.text


async def test_node_callbacks_get_the_backlog_and_everything_after(pair: Pair) -> None:
    a, b = pair
    seen: list[tuple[bytes, Address, Pipe]] = []
    callbacks: list[object] = []
    counters = Counters()
    b.set_callbacks(lambda: callbacks, counters)  # type: ignore[arg-type,return-value]
    await sent(a, b"1")
    await until(lambda: b.has_unread)
    callbacks.append(lambda *args: seen.append(args))
    b.kick()
    await sent(a, b"2")
    await until(lambda: len(seen) == 2)
    assert seen == [(b"1", a.local, b), (b"2", a.local, b)]
    assert b.counters is counters
    callbacks.clear()
    b.kick()
    await sent(a, b"3")
    assert await b.recv() == b"3"
    assert b.unmatched == 0


async def test_callbacks_and_subscriptions_both_get_a_message(pair: Pair) -> None:
    a, b = pair
    seen: list[bytes] = []
    b.set_callbacks(lambda: [lambda msg, *_: seen.append(msg)])
    b.subscribe((b"x", None))
    await sent(a, b"x", b"y")
    assert await b.recv((b"x", None)) == b"x"
    await until(lambda: seen == [b"x", b"y"])
    assert b.unmatched == 0


async def test_the_peers_end_lets_handlers_finish(pair: Pair) -> None:
    a, b = pair
    seen: list[bytes] = []

    async def slow(msg: bytes, *_: object) -> None:
        await asyncio.sleep(0.01)
        seen.append(msg)

    b.subscribe(SUB_ALL, handler=slow)
    await sent(a, b"1", b"2")
    b.peer_ended()
    assert not b.closed
    await b.wait_closed()
    assert seen == [b"1", b"2"]


async def test_a_datagram_filter_says_goodbye() -> None:
    a, b = await make_pair("udp")
    a.set_filter(Flip())
    await a.close()
    assert await b.recv() == b"\1"
    await b.close()
    assert isinstance(a, UdpPipe)

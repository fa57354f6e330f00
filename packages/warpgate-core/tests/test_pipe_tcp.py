from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
import warnings
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from warpgate.errors import PipeClosed
from warpgate.net import tcp
from warpgate.net.constants import IP4, IP6, SUB_ALL
from warpgate.net.inbox import HIGH_WATER, READ_SIZE
from warpgate.net.nic import loopback_interface
from warpgate.net.pipe import Pipe
from warpgate.net.tcp import TcpPipe

Pair = tuple[Pipe, Pipe]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail when a test leaves a file descriptor; tasks are checked by `pair`."""
    gc.collect()
    before = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    yield
    gc.collect()
    after = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    assert after <= before


async def connected(af: int = IP4) -> Pair:
    accepted: asyncio.Queue[TcpPipe] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    host = "127.0.0.1" if af == IP4 else "::1"
    server = await loop.create_server(lambda: TcpPipe(accepted.put_nowait), host, 0)
    address = server.sockets[0].getsockname()[:2]
    route = await loopback_interface().route(af).bind()
    a = await route.connect(address)
    b = await accepted.get()
    server.close()
    return a, b


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    a, b = await connected()
    yield a, b
    await asyncio.gather(a.close(), b.close())
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others


@pytest.fixture
async def raw() -> AsyncIterator[tuple[socket.socket, Pipe]]:
    """A plain non-blocking socket and the pipe at its other end."""
    accepted: asyncio.Queue[TcpPipe] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TcpPipe(accepted.put_nowait), "127.0.0.1", 0)
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, server.sockets[0].getsockname())
    pipe = await accepted.get()
    server.close()
    yield sock, pipe
    sock.close()
    await pipe.close()


async def sent(pipe: Pipe, *messages: bytes) -> None:
    """Send messages so that each is read on its own."""
    for message in messages:
        await pipe.send(message)
        await asyncio.sleep(0.002)


async def until(condition: object, *, tries: int = 2000) -> None:
    for _ in range(tries):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


@pytest.mark.parametrize("af", [IP4, IP6])
async def test_the_two_ends_know_each_other(af: int) -> None:
    a, b = await connected(af)
    async with a, b:
        assert (a.local, a.remote) == (b.remote, b.local)
        assert a.local[0] == ("127.0.0.1" if af == IP4 else "::1")
        assert len(a.remote) == 2
        assert a.transport == "tcp"
        assert a.reliable
        assert a.max_message is None
        assert a.over_loopback
        states = [a.closed]
        assert await a.send(b"hello", b.local) == 5
        assert await b.recv() == b"hello"
    assert [*states, a.closed, b.closed] == [False, True, True]


async def test_recv_subscribes_and_gives_none_on_timeout(pair: Pair) -> None:
    a, b = pair
    assert await b.recv(timeout=0.01) is None
    assert await b.recv(timeout=0) is None
    await a.send(b"x")
    assert await b.recv(SUB_ALL, timeout=5, full=True) == [a.local, b"x"]


async def test_any_equal_wildcard_is_the_wildcard(pair: Pair) -> None:
    a, b = pair
    assert b.subscribe([None, None]) == b.subscribe(SUB_ALL) == b.subscribe((None, None))
    await a.send(b"x")
    assert await b.recv([None, None]) == b"x"


async def test_what_comes_before_the_first_subscription_is_kept(pair: Pair) -> None:
    a, b = pair
    await sent(a, b"HELLO 1", b"other", b"HELLO 2")
    await until(lambda: b._backlog.queue and len(b._backlog.queue) == 3)
    assert b._held > 0
    b.subscribe((b"^HELLO", None))
    assert b.unmatched == 1
    assert await b.recv((b"^HELLO", None)) == b"HELLO 1"
    assert await b.recv((b"^HELLO", None)) == b"HELLO 2"
    assert not b.has_unread


async def test_a_message_goes_to_every_match(pair: Pair) -> None:
    a, b = pair
    seen: list[bytes] = []
    b.subscribe(SUB_ALL)
    b.subscribe((b"two", None))
    b.subscribe((None, a.local))
    b.subscribe((None, ("192.0.2.1", 9)))
    b.subscribe((b"t", a.local), handler=lambda msg, addr, pipe: seen.append(msg))
    await sent(a, b"one", b"two")
    assert [await b.recv(), await b.recv()] == [b"one", b"two"]
    assert await b.recv((b"two", None)) == b"two"
    assert await b.recv((None, a.local)) == b"one"
    assert await b.recv((None, ("192.0.2.1", 9)), timeout=0) is None
    await until(lambda: seen == [b"two"])
    assert b.unmatched == 0


async def test_the_pattern_is_searched_not_matched(pair: Pair) -> None:
    a, b = pair
    b.subscribe((b"needle", None))
    await a.send(b"hay needle hay")
    assert await b.recv((b"needle", None)) == b"hay needle hay"


async def test_what_matches_none_is_counted(pair: Pair) -> None:
    a, b = pair
    b.subscribe((b"^A", None))
    await sent(a, b"B", b"A")
    assert await b.recv((b"^A", None)) == b"A"
    assert b.unmatched == 1


@pytest.mark.parametrize(
    ("sub", "error", "text"),
    [
        ((b"(", None), ValueError, r"b'\('"),
        (("text", None), TypeError, "bytes regular expression, not str"),
        (b"ab", TypeError, "is no subscription"),
        (5.0, TypeError, "is no subscription"),
        ((None, "192.0.2.1"), TypeError, "is no subscription"),
        ((None, ("nonsense", 5)), ValueError, "nonsense"),
    ],
)
async def test_bad_subscriptions(pair: Pair, sub: object, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        pair[0].subscribe(sub)
    with pytest.raises(TypeError, match="can't be called"):
        pair[0].subscribe(SUB_ALL, handler=5)  # type: ignore[arg-type]


async def test_unsubscribe_by_offset_and_by_subscription(pair: Pair) -> None:
    a, b = pair
    seen: list[bytes] = []
    first = b.subscribe((b"x", None))
    second = b.subscribe((b"x", None), handler=lambda msg, *_: seen.append(msg))
    third = b.subscribe(SUB_ALL)
    assert len({first, second, third}) == 3
    b.unsubscribe(first)
    await a.send(b"x1")
    assert await b.recv() == b"x1"
    await until(lambda: seen == [b"x1"])
    b.unsubscribe((b"x", None))
    b.unsubscribe(99)
    await a.send(b"x2")
    assert await b.recv() == b"x2"
    assert seen == [b"x1"]


async def test_unsubscribing_frees_what_was_queued_and_wakes_readers(pair: Pair) -> None:
    a, b = pair
    waiting = asyncio.create_task(b.recv(timeout=None))
    counting = asyncio.create_task(b.recv_n(5))
    await asyncio.sleep(0)
    b.unsubscribe(SUB_ALL)
    assert await waiting is None
    with pytest.raises(PipeClosed):
        await counting
    b.subscribe(SUB_ALL)
    await a.send(b"abc")
    await until(lambda: b.has_unread)
    b.unsubscribe(SUB_ALL)
    assert not b.has_unread


async def test_handlers_run_in_order_one_at_a_time(pair: Pair) -> None:
    a, b = pair
    log: list[str] = []

    async def slow(msg: bytes, addr: tuple[str, int], pipe: Pipe) -> None:
        assert addr == a.local
        assert pipe is b
        log.append(f"begin {msg.decode()}")
        await asyncio.sleep(0.005)
        log.append(f"end {msg.decode()}")

    b.subscribe(SUB_ALL, handler=slow)
    b.subscribe(SUB_ALL, handler=lambda msg, *_: log.append(f"then {msg.decode()}"))
    await sent(a, b"1", b"2", b"3")
    await until(lambda: len(log) == 9)
    assert log == [f"{what} {n}" for n in "123" for what in ("begin", "end", "then")]
    assert b._dispatcher is None


async def test_a_failing_handler_is_logged_and_counted(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = pair
    seen: list[bytes] = []

    async def bad(msg: bytes, *_: object) -> None:
        seen.append(msg)
        raise ValueError("boom")

    def worse(*_: object) -> None:
        raise asyncio.CancelledError

    b.subscribe(SUB_ALL, handler=bad)
    b.subscribe((b"2", None), handler=worse)
    await sent(a, b"1", b"2", b"3")
    await until(lambda: len(seen) == 3)
    assert b.counters["handler_errors"] == 4
    assert "boom" in caplog.text
    assert not b.closed


async def test_a_handler_may_close_the_pipe(pair: Pair) -> None:
    a, b = pair
    done = asyncio.Event()

    async def goodbye(msg: bytes, *_: object) -> None:
        await b.send(b"bye")
        await b.close()
        done.set()

    b.subscribe(SUB_ALL, handler=goodbye)
    await a.send(b"x")
    async with asyncio.timeout(5):
        await done.wait()
        assert await a.recv() == b"bye"
        assert await a.recv() is None


async def test_a_handler_may_read_the_pipe(pair: Pair) -> None:
    a, b = pair
    got: list[bytes] = []

    async def conversation(msg: bytes, _: object, pipe: Pipe) -> None:
        if not got:
            got.append(msg)
            await asyncio.sleep(0.02)  # the next messages come now, before anyone subscribes
            got.append(await pipe.recv_n(6))

    b.subscribe(SUB_ALL, handler=conversation)
    await sent(a, b"first", b"abc", b"def")
    await until(lambda: len(got) == 2)
    assert got == [b"first", b"abcdef"]


async def test_a_handler_that_lags_holds_the_stream_back(pair: Pair) -> None:
    a, b = pair
    go = asyncio.Event()
    total = 0

    async def slow(msg: bytes, *_: object) -> None:
        nonlocal total
        await go.wait()
        total += len(msg)

    b.subscribe(SUB_ALL, handler=slow)
    size = 24 * HIGH_WATER
    sending = asyncio.create_task(a.send(bytes(size)))
    await until(lambda: b._paused)
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert b._held <= HIGH_WATER + 2 * READ_SIZE
    go.set()
    assert await sending == size
    await until(lambda: total == size)


async def test_an_unread_stream_stops_and_loses_nothing(pair: Pair) -> None:
    a, b = pair
    b.subscribe(SUB_ALL)
    data = os.urandom(1 << 16) * 384  # 24 MiB
    sending = asyncio.create_task(a.send(data))
    await until(lambda: b._paused)
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert b._held <= HIGH_WATER + 2 * READ_SIZE
    digest, count = hashlib.sha256(), 0
    while count < len(data):
        message = await b.recv()
        assert 0 < len(message) <= READ_SIZE
        digest.update(message)
        count += len(message)
    assert await sending == len(data)
    assert digest.digest() == hashlib.sha256(data).digest()


async def test_single_bytes_can_not_grow_the_queue(pair: Pair) -> None:
    _, b = pair
    b.subscribe(SUB_ALL)
    for _ in range(HIGH_WATER):
        if b._paused:
            break
        b._incoming(b"x", b.remote)
    assert len(b._queues[(None, None)].queue) < HIGH_WATER // 100
    while await b.recv(timeout=0):
        pass
    assert not b._paused
    assert b._held == 0


@pytest.mark.slow
async def test_a_gibibyte_to_a_reader_that_pauses(pair: Pair) -> None:
    a, b = pair
    b.subscribe(SUB_ALL)
    block = os.urandom(1 << 20)
    process = psutil.Process()
    baseline = process.memory_info().rss
    peak = baseline
    expected, got = hashlib.sha256(), hashlib.sha256()

    async def send() -> None:
        for number in range(1024):
            piece = number.to_bytes(8, "big") + block[8:]
            expected.update(piece)
            await a.send(piece)

    sending = asyncio.create_task(send())
    count = reads = 0
    while count < 1 << 30:
        message = await b.recv(timeout=None)
        got.update(message)
        count += len(message)
        reads += 1
        if reads % 2000 == 0:
            await until(lambda: b._paused or sending.done())
            peak = max(peak, process.memory_info().rss)
    await sending
    assert got.digest() == expected.digest()
    assert peak - baseline < 64 << 20


async def test_recv_n_is_exact_and_leaves_the_rest(pair: Pair) -> None:
    a, b = pair
    await a.send(b"abcdefghij")
    assert await b.recv_n(3) == b"abc"
    assert await b.recv_n(0) == b""
    assert await b.recv_n(4, SUB_ALL) == b"defg"
    assert await b.recv() == b"hij"
    await sent(a, b"12", b"34", b"56")
    assert await b.recv_n(2) == b"12"
    assert await b.recv_n(3) == b"345"
    assert await b.recv_n(1) == b"6"
    with pytest.raises(ValueError, match="-1"):
        await b.recv_n(-1)


async def test_recv_n_of_more_than_the_high_water_mark(pair: Pair) -> None:
    a, b = pair
    data = os.urandom(3 * HIGH_WATER + 17)
    got, count = await asyncio.gather(b.recv_n(len(data)), a.send(data))
    assert got == data
    assert count == len(data)


async def test_recv_n_keeps_what_came_on_timeout_and_cancel(pair: Pair) -> None:
    a, b = pair
    await a.send(b"abc")
    with pytest.raises(TimeoutError, match="3 of 9"):
        await b.recv_n(9, timeout=0.02)
    reading = asyncio.create_task(b.recv_n(9))
    await sent(a, b"def")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await a.send(b"ghi!")
    assert await b.recv_n(9, timeout=5) == b"abcdefghi"
    assert await b.recv() == b"!"


async def test_recv_n_on_a_pipe_that_ends(pair: Pair) -> None:
    a, b = pair
    reading = asyncio.create_task(b.recv_n(10))
    await sent(a, b"abc")
    await a.close()
    with pytest.raises(PipeClosed) as caught:
        await reading
    assert caught.value.partial == b"abc"
    with pytest.raises(PipeClosed):
        await b.recv_n(1)


async def test_readers_of_one_subscription_are_served_in_order(pair: Pair) -> None:
    a, b = pair
    served: list[tuple[str, bytes]] = []

    async def read(name: str, n: int | None) -> None:
        served.append((name, await b.recv(timeout=None) if n is None else await b.recv_n(n)))

    readers = [
        asyncio.create_task(read(name, n))
        for name, n in (("first", None), ("second", 4), ("third", None), ("fourth", 2))
    ]
    await asyncio.sleep(0)
    await sent(a, b"1", b"22", b"22", b"3", b"44")
    await asyncio.gather(*readers)
    assert served == [("first", b"1"), ("second", b"2222"), ("third", b"3"), ("fourth", b"44")]


async def test_a_new_reader_does_not_overtake_one_that_waits(pair: Pair) -> None:
    _, b = pair
    waiting = asyncio.create_task(b.recv(timeout=None))
    await asyncio.sleep(0)
    b._deliver(b"1", b.remote)  # wakes the waiting reader, who has not run yet
    b._deliver(b"2", b.remote)
    assert await b.recv() == b"2"
    assert await waiting == b"1"


@pytest.mark.parametrize("woken", [False, True])
async def test_a_cancelled_reader_takes_nothing_with_it(pair: Pair, woken: bool) -> None:
    _, b = pair
    first = asyncio.create_task(b.recv(timeout=None))
    second = asyncio.create_task(b.recv(timeout=None))
    await asyncio.sleep(0)
    if woken:
        b._deliver(b"1", b.remote)
    first.cancel()
    if not woken:
        b._deliver(b"1", b.remote)
    assert await second == b"1"
    assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))
    assert b._held == 0
    assert not b._deadlines


async def test_timeouts_of_many_readers(pair: Pair) -> None:
    a, b = pair
    loop = asyncio.get_running_loop()
    began = loop.time()
    ended: dict[float, float] = {}

    async def read(timeout: float) -> None:
        assert await b.recv((str(timeout).encode(), None), timeout=timeout) is None
        ended[timeout] = loop.time() - began

    await asyncio.gather(*(read(t) for t in (0.08, 0.02, 0.05)))
    assert sorted(ended) == sorted(ended, key=lambda t: ended[t])
    assert all(after >= timeout - 0.001 for timeout, after in ended.items())
    assert not b._deadlines
    await a.send(b"x")
    assert await b.recv() == b"x"


async def test_async_for_ends_with_the_pipe(pair: Pair) -> None:
    a, b = pair

    async def read() -> bytes:
        return b"".join([message async for message in b])

    reading = asyncio.create_task(read())
    await sent(a, b"1", b"2")
    await a.send(b"3" * 200_000)
    await a.close()
    assert await reading == b"12" + b"3" * 200_000
    await b.wait_closed()
    assert b.closed


async def test_what_came_before_the_end_is_delivered_first(pair: Pair) -> None:
    a, b = pair
    await a.send(b"last words")
    await a.close()
    await b.wait_closed()
    assert b.closed
    assert await b.recv() == b"last words"
    assert await b.recv() is None
    assert await b.recv(timeout=None) is None


async def test_handlers_get_everything_before_the_end(pair: Pair) -> None:
    a, b = pair
    seen: list[bytes] = []
    states: list[bool] = []

    async def slow(msg: bytes, *_: object) -> None:
        await asyncio.sleep(0.02)
        seen.append(msg)
        states.append(b.closed)

    b.subscribe(SUB_ALL, handler=slow)
    await sent(a, b"1", b"2", b"3")
    closing = asyncio.create_task(a.close())
    await b.wait_closed()
    await closing
    assert seen == [b"1", b"2", b"3"]
    assert states == [False, False, False]


async def test_a_half_closed_peer_still_gets_its_answer(
    raw: tuple[socket.socket, Pipe],
) -> None:
    sock, pipe = raw
    loop = asyncio.get_running_loop()

    async def answer(msg: bytes, addr: tuple[str, int], pipe: Pipe) -> None:
        await asyncio.sleep(0.02)
        await pipe.send(b"re: " + msg, addr)

    pipe.subscribe(SUB_ALL, handler=answer)
    await loop.sock_sendall(sock, b"question")
    sock.shutdown(socket.SHUT_WR)
    assert await loop.sock_recv(sock, 100) == b"re: question"
    assert await loop.sock_recv(sock, 100) == b""
    await pipe.wait_closed()


async def test_a_reader_can_answer_a_half_closed_peer(raw: tuple[socket.socket, Pipe]) -> None:
    sock, pipe = raw
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"question")
    sock.shutdown(socket.SHUT_WR)
    await until(lambda: pipe._ended)
    assert await pipe.recv() == b"question"
    await pipe.send(b"answer")
    assert await loop.sock_recv(sock, 100) == b"answer"
    assert await pipe.recv() is None
    assert pipe.closed
    with pytest.raises(PipeClosed):
        await pipe.send(b"more")


async def test_a_reset_ends_the_pipe(raw: tuple[socket.socket, Pipe]) -> None:
    sock, pipe = raw
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"x")
    assert await pipe.recv() == b"x"
    reading = asyncio.create_task(pipe.recv(timeout=None))
    await asyncio.sleep(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    assert await reading is None
    await pipe.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await pipe.send(b"x")
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_a_sender_that_never_waits_notices_the_end(
    raw: tuple[socket.socket, Pipe],
) -> None:
    sock, pipe = raw
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()

    async def send_on() -> None:
        for _ in range(100_000):
            await pipe.send(b"x")

    with pytest.raises(PipeClosed):
        await send_on()


async def test_send_takes_bytes_and_says_what_it_got(pair: Pair) -> None:
    a, b = pair
    assert await a.send(b"") == 0
    assert await a.send(bytearray(b"ab")) == 2
    assert await a.send(memoryview(b"cd")) == 2
    assert await b.recv_n(4) == b"abcd"
    for wrong in ("text", 5, None, [1]):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            await a.send(wrong)


async def test_a_bytearray_may_change_after_send(pair: Pair) -> None:
    a, b = pair
    data = bytearray(b"x" * (8 * HIGH_WATER))
    sending = asyncio.create_task(a.send(data))
    await asyncio.sleep(0.01)
    data[:] = b"y" * len(data)
    assert set(await b.recv_n(len(data))) == {ord("x")}
    await sending


async def test_sends_wait_above_the_high_water_mark_and_keep_their_order(pair: Pair) -> None:
    a, b = pair
    b.subscribe(SUB_ALL)
    big, small = b"A" * (16 * HIGH_WATER), b"B" * 1000
    first = asyncio.create_task(a.send(big))
    await until(lambda: b._paused)
    second = asyncio.create_task(a.send(small))
    third = asyncio.create_task(a.send(b"C"))
    await asyncio.sleep(0.02)
    assert [task.done() for task in (first, second, third)] == [False] * 3
    assert await b.recv_n(len(big) + 1001) == big + small + b"C"
    await asyncio.gather(first, second, third)
    assert a._ready


async def test_a_cancelled_send_lets_the_next_one_go(pair: Pair) -> None:
    a, b = pair
    b.subscribe(SUB_ALL)
    filler = asyncio.create_task(a.send(bytes(16 * HIGH_WATER)))
    await until(lambda: b._paused)
    waiting = asyncio.create_task(a.send(b"never"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await b.recv_n(16 * HIGH_WATER)
    await filler
    await a.send(b"next")
    assert await b.recv() == b"next"


async def test_close_flushes_what_was_sent(pair: Pair) -> None:
    a, b = pair
    data = os.urandom(HIGH_WATER)
    await a.send(data)
    await a.send(data)
    closing = asyncio.create_task(a.close())
    await asyncio.sleep(0.05)
    assert await b.recv_n(2 * len(data)) == data * 2
    await closing


async def test_close_does_not_reset_what_the_peer_has_not_read(
    raw: tuple[socket.socket, Pipe],
) -> None:
    sock, pipe = raw
    loop = asyncio.get_running_loop()
    await pipe.send(b"important")
    await loop.sock_sendall(sock, b"unread" * 1000)
    closing = asyncio.create_task(pipe.close())
    await asyncio.sleep(0.02)
    await loop.sock_sendall(sock, b"late" * 1000)
    await asyncio.sleep(0.02)
    assert await loop.sock_recv(sock, 100) == b"important"
    assert await loop.sock_recv(sock, 100) == b""
    sock.close()
    await closing


async def test_close_gives_up_on_a_silent_peer(
    raw: tuple[socket.socket, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "LINGER_S", 0.05)
    _, pipe = raw
    async with asyncio.timeout(5):
        await pipe.close()
    assert pipe.closed


async def test_close_waits_for_a_slow_peer_but_not_for_a_dead_one(
    raw: tuple[socket.socket, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "LINGER_S", 0.05)
    monkeypatch.setattr(tcp, "FLUSH_STALL_S", 0.2)
    sock, pipe = raw
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(pipe.send(bytes(32 * HIGH_WATER)))
    await asyncio.sleep(0.02)
    sending.cancel()
    closing = asyncio.create_task(pipe.close())
    for _ in range(6):  # slow, yet alive for longer than LINGER_S
        await asyncio.sleep(0.03)
        assert await loop.sock_recv(sock, 1 << 19)
    assert not closing.done()
    async with asyncio.timeout(5):
        await closing


async def test_close_is_idempotent_and_concurrent(pair: Pair) -> None:
    a, b = pair
    await asyncio.gather(a.close(), a.close(), b.close(), a.wait_closed())
    await a.close()
    a.abort()
    with pytest.raises(PipeClosed):
        await a.send(b"x")
    assert await a.recv() is None


async def test_a_cancelled_close_still_closes(pair: Pair) -> None:
    a, b = pair
    closing = asyncio.create_task(a.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert a.closed
    assert await b.recv() is None
    await a.wait_closed()


async def test_close_wakes_readers_and_senders(pair: Pair) -> None:
    a, b = pair
    reading = asyncio.create_task(a.recv(timeout=None))
    counting = asyncio.create_task(a.recv_n(3))
    b.subscribe(SUB_ALL)
    first = asyncio.create_task(a.send(bytes(32 * HIGH_WATER)))
    second = asyncio.create_task(a.send(b"x"))
    await until(lambda: b._paused)
    a.abort(ConnectionError("enough"))
    assert await reading is None
    for task in (counting, first, second):
        with pytest.raises(PipeClosed):
            await task
    with pytest.raises(PipeClosed) as caught:
        await a.send(b"x")
    assert "enough" in str(caught.value.__cause__)


async def test_cancelling_a_connect_leaves_no_socket() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    route = await loopback_interface().route(IP4).bind()
    for turns in range(8):
        task = asyncio.create_task(route.connect(listener.getsockname()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, Pipe):
            result.abort()
            await result.wait_closed()
    await asyncio.sleep(0)
    listener.close()


async def test_an_unclosed_pipe_is_reported() -> None:
    loop = asyncio.new_event_loop()

    async def leave_open() -> None:
        a, b = await connected()
        b.abort()
        await b.wait_closed()
        a._stream.pause_reading()  # type: ignore[attr-defined]

    await asyncio.to_thread(loop.run_until_complete, leave_open())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        del loop
        gc.collect()
    assert any(issubclass(warning.category, ResourceWarning) for warning in caught)


async def test_a_closed_pipe_is_freed_without_the_collector(pair: Pair) -> None:
    import weakref

    a, b = await connected()
    await asyncio.gather(a.close(), b.close())
    ref = weakref.ref(a)
    gc.disable()
    try:
        del a, b
        await asyncio.sleep(0.01)
        assert ref() is None
    finally:
        gc.enable()


async def test_repr_says_what_it_is(pair: Pair) -> None:
    a, _ = pair
    assert repr(a).startswith("<TcpPipe (tcp) 127.0.0.1 port")
    assert repr(a).endswith("open>")

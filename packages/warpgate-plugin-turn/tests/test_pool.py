"""Getting allocations from servers that are slow, dead, lying or far away; without a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from warpgate.errors import AllocationExpired, RelayError
from warpgate.events import Counters
from warpgate.server_urls import TurnServer
from warpgate.testing import LeakCheck
from warpgate_plugin_turn import pool as pool_module
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import (
    NoServers,
    Redirected,
    ServerUnreachable,
    WrongCredentials,
)
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.search import MAX_REDIRECTS
from warpgate_plugin_turn.servers import ServerList

Behaviour = Callable[[TurnServer, Any, Any], Any]
GUARD_S = 5.0


class Stub:
    """Stands in for an allocation."""

    def __init__(self, server: TurnServer) -> None:
        self.server = server
        self.rtt_s = 0.01
        self.ended = False
        self.on_end: Any = None
        self.on_lost: list[Any] = []
        self.notes: tuple[str, ...] = ()
        self.checked = 0

    def check(self) -> None:
        self.checked += 1

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_end(self)

    async def wait_gone(self) -> None:
        assert self.ended


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a pool whose servers behave as they are told, and its log."""

    def make(*hosts: str, stagger_s: float = 0.03, **behaviours: Behaviour) -> tuple[Pool, list]:
        asked: list[tuple[str, Any]] = []

        async def open_(server: TurnServer, address: Any, **options: Any) -> Any:
            asked.append((server.host, address))
            stub = Stub(server)
            options["register"](stub)
            try:
                await behaviours[NAMES[server.host]](server, address, options["on_answer"])
            except BaseException:
                stub.close()
                raise
            return stub

        monkeypatch.setattr(pool_module.Allocation, "open", open_)
        servers = [TurnServer(NAMED[host], 3478, "user", "password") for host in hosts]
        made = Pool(ServerList(servers), Counters(), stagger_s=stagger_s)
        return made, asked

    return make


NAMED = {"first": "192.0.2.1", "second": "192.0.2.2", "third": "192.0.2.3"}
NAMES = {ip: name for name, ip in NAMED.items()}


async def good(_server: Any, _address: Any, on_answer: Any) -> None:
    on_answer()


async def dead(server: Any, _address: Any, _on_answer: Any) -> None:
    await asyncio.sleep(0.5)
    raise ServerUnreachable(f"{server.host} is dead")


async def wrong(server: Any, _address: Any, on_answer: Any) -> None:
    on_answer()
    raise WrongCredentials(f"{server.host} refused")


async def slow(_server: Any, _address: Any, on_answer: Any) -> None:
    on_answer()
    await asyncio.sleep(0.06)


async def test_no_servers(world: Any) -> None:
    pool, _ = world()
    with pytest.raises(NoServers, match="WARPGATE_TURN"):
        await pool.take()


async def test_a_dead_server_costs_a_head_start_only(world: Any) -> None:
    pool, asked = world("first", "second", first=dead, second=good)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    allocation = await pool.take()
    assert allocation.server.host == NAMED["second"]
    assert loop.time() - begin < 0.3
    assert [NAMES[host] for host, _ in asked] == ["first", "second"]
    await asyncio.sleep(0.01)  # the other try's end
    assert pool.live == 1
    allocation.close()


async def test_one_that_has_answered_is_waited_for(world: Any) -> None:
    pool, asked = world("first", "second", first=slow, second=good)
    allocation = await pool.take()
    assert [NAMES[host] for host, _ in asked] == ["first"]
    allocation.close()


async def test_a_refusal_brings_the_next_at_once(world: Any) -> None:
    pool, asked = world("first", "second", stagger_s=60.0, first=wrong, second=good)
    async with asyncio.timeout(GUARD_S):
        allocation = await pool.take()
    assert len(asked) == 2
    allocation.close()
    allocation = await pool.take()  # and the first one comes last from here on
    assert len(asked) == 3
    assert pool.counters["turn_server_failures"] == 1
    allocation.close()


async def test_all_causes_are_told(world: Any) -> None:
    pool, _ = world("first", "second", first=wrong, second=dead)
    with pytest.raises(RelayError) as caught:
        await pool.take()
    assert "192.0.2.1 refused" in str(caught.value)
    assert "192.0.2.2 is dead" in str(caught.value)
    pool, _ = world("first", "second", first=wrong, second=wrong)
    with pytest.raises(WrongCredentials):
        await pool.take()


async def test_cancelled_it_leaves_nothing(world: Any) -> None:
    async with LeakCheck():
        pool, asked = world("first", "second", first=dead, second=dead)
        task = asyncio.create_task(pool.take())
        while len(asked) < 2:  # noqa: ASYNC110  # the stub has no event
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert pool.live == 0


async def test_one_that_is_too_late_is_closed(world: Any) -> None:
    pool, _ = world("first", "second", first=slow_and_mute, second=slow)
    allocation = await pool.take()
    assert allocation.server.host == NAMED["second"]
    await asyncio.sleep(0.05)
    assert pool.live == 1
    allocation.close()


async def slow_and_mute(_server: Any, _address: Any, _on_answer: Any) -> None:
    await asyncio.sleep(0.15)


def redirecting(*targets: Any) -> Behaviour:
    left = list(targets)

    async def behave(_server: Any, _address: Any, on_answer: Any) -> None:
        on_answer()
        if left:
            raise Redirected("TURN server x sends its clients elsewhere", left.pop(0))

    return behave


async def test_it_goes_where_it_is_sent(world: Any) -> None:
    pool, asked = world("first", first=redirecting(("192.0.2.77", 5000)))
    allocation = await pool.take()
    assert asked == [("192.0.2.1", ("192.0.2.1", 3478)), ("192.0.2.1", ("192.0.2.77", 5000))]
    allocation.close()


async def test_it_does_not_run_in_circles(world: Any) -> None:
    pool, asked = world("first", first=redirecting(*[("192.0.2.77", 5000)] * 9))
    with pytest.raises(Redirected):
        await pool.take()
    assert len(asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("inside", ["127.0.0.1", "192.168.1.1", "169.254.169.254", "::1"])
async def test_it_is_not_sent_inside(world: Any, inside: str) -> None:
    pool, asked = world("first", first=redirecting((inside, 80)))
    with pytest.raises(RelayError, match="no public address"):
        await pool.take()
    assert len(asked) == 1


async def test_nothing_warm_outlives_the_pool(world: Any) -> None:
    async with LeakCheck():
        pool, _ = world("first", first=good)
        pool.prepare()
        await asyncio.sleep(0.01)
        assert pool.live == 1
        await pool.close()
        assert pool.live == 0
        with pytest.raises(RelayError):
            await pool.take()


async def test_closing_waits_for_what_was_cancelled(world: Any) -> None:
    ended = []

    async def slow_to_end(_server: Any, _address: Any, _on_answer: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.append(True)

    pool, asked = world("first", first=slow_to_end)
    task = asyncio.create_task(pool.take())
    while not asked:  # noqa: ASYNC110  # the stub has no event
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert not ended
    await pool.close()
    assert ended


async def test_a_warm_one_is_asked_whether_it_lives(world: Any) -> None:
    pool, _ = world("first", first=good)
    pool.prepare()
    await asyncio.sleep(0.01)
    allocation: Any = await pool.take()
    assert allocation.checked == 1
    allocation.close()
    allocation = await pool.take()
    assert allocation.checked == 0  # just made
    allocation.close()


async def test_a_warm_one_that_died_is_not_handed_out(world: Any) -> None:
    pool, asked = world("first", first=good)
    pool.prepare()
    await asyncio.sleep(0.01)
    (first,) = pool._open
    first.close()
    second = await pool.take()
    assert second is not first
    assert len(asked) == 2
    second.close()


# Servers of a few lines, on real sockets.


@asynccontextmanager
async def stream_server(says: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("says", "words"),
    [(b"", "closed the connection"), (b"\xff" * 40, "broke the protocol")],
)
async def test_a_stream_of_something_else(says: bytes, words: str) -> None:
    async with LeakCheck(), stream_server(says) as port:
        server = TurnServer("127.0.0.1", port, "user", "password", "tcp")
        with pytest.raises(AllocationExpired, match=words):
            await Allocation.open(server, ("127.0.0.1", port))

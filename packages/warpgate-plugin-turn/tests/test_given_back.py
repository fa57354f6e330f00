"""Allocations that nobody wants any more, and the ends of connections to servers; with real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warpgate.errors import RelayError
from warpgate.events import Counters
from warpgate.server_urls import TurnServer, parse_turn
from warpgate.testing import LeakCheck
from warpgate.testing.coturn import Coturn
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.machine import State
from warpgate_plugin_turn.pool import FAREWELL_S, Pool, tls_context
from warpgate_plugin_turn.server_links import open_stream
from warpgate_plugin_turn.servers import ServerList

pytestmark = pytest.mark.coturn

GUARD_S = 10.0
Start = Callable[..., Coturn]


def make_pool(urls: list[str], certificates: Any, **options: Any) -> Pool:
    servers = ServerList([parse_turn(url) for url in urls])
    return Pool(servers, Counters(), tls=tls_context(str(certificates[0])), **options)


class Sessions:
    """What a server says of its sessions; it must be started with ``verbose``."""

    def __init__(self, folder: Path, server: Coturn) -> None:
        self._log = folder / f"turn-{server.port}.log"

    def _lines(self, *words: str) -> int:
        lines = self._log.read_text("utf-8").splitlines()
        return sum(all(word in line for word in words) for line in lines)

    @property
    def made(self) -> int:
        return self._lines("session ", ": new, ", "lifetime=600")

    @property
    def deleted(self) -> int:
        return self._lines("session ", ": refreshed, ", "lifetime=0")


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_what_is_cancelled_while_it_is_asked_for_is_deleted(
    coturn: Start,
    certificates: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:
    server = coturn("verbose")
    sessions = Sessions(tmp_path, server)
    pool = make_pool([server.url(transport)], certificates)
    plain = Allocation._send
    tasks: list[asyncio.Task[Any]] = []

    def send(self: Allocation, message: bytes) -> None:
        plain(self, message)
        if self._machine.state is State.ALLOCATING and self._machine.requests.committed:
            tasks[0].cancel()  # the server allocates while nobody waits for it any more

    monkeypatch.setattr(Allocation, "_send", send)
    async with LeakCheck(), asyncio.timeout(GUARD_S):
        tasks.append(asyncio.create_task(pool.allocate()))
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert pool.live == 1
        await pool.close()
    assert pool.live == 0
    assert pool.counters["turn_allocations_returned"] == 1
    assert pool.counters["turn_farewells_unanswered"] == 0
    async with asyncio.timeout(GUARD_S):
        while not sessions.deleted:  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.01)
    assert (sessions.made, sessions.deleted) == (1, 1)


async def test_the_slower_server_gets_its_allocation_back(
    coturn: Start, certificates: Any, tmp_path: Path
) -> None:
    slow, quick = coturn("verbose"), coturn()
    sessions = Sessions(tmp_path, slow)
    pool = make_pool([slow.url(), quick.url()], certificates, stagger_s=0.05)
    slow.pause()
    async with LeakCheck(), asyncio.timeout(GUARD_S):
        winner = await pool.allocate()
        assert winner.server.port == quick.port
        slow.resume()
        await pool.close()
    assert pool.live == 0
    # It was asked without credentials only, so there is nothing to give back.
    assert sessions.made == sessions.deleted


def socket_of(allocation: Allocation) -> Any:
    """Return the socket of a connection to a server."""
    return allocation._link._stream.get_extra_info("socket")  # type: ignore[union-attr]


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_close_leaves_nothing_to_the_loop(
    coturn: Start, certificates: Any, transport: str
) -> None:
    pool = make_pool([coturn().url(transport)], certificates)
    async with asyncio.timeout(GUARD_S):
        allocations = [await pool.allocate() for _ in range(4)]
        sockets = [socket_of(each) for each in allocations]
        allocations[0].close()  # by its owner, a moment before
        await pool.close()
    # At this very moment, before the loop turns once more: it may be the last turn.
    assert [sock.fileno() for sock in sockets] == [-1] * 4


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_connection_that_is_just_being_closed_is_waited_for(
    coturn: Start, certificates: Any, transport: str
) -> None:
    pool = make_pool([coturn().url(transport)], certificates)
    async with asyncio.timeout(GUARD_S):
        allocation = await pool.allocate()
        sock = socket_of(allocation)
        ended = asyncio.Event()
        plain = allocation.on_end

        def on_end(which: Allocation) -> None:
            assert plain is not None
            plain(which)
            ended.set()

        allocation.on_end = on_end
        allocation.close()
        await ended.wait()
        assert pool.live == 0
        await pool.close()
    assert sock.fileno() == -1


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_close_does_not_wait_for_a_server_that_hangs(
    coturn: Start, certificates: Any, transport: str
) -> None:
    server = coturn()
    pool = make_pool([server.url(transport)], certificates)
    loop = asyncio.get_running_loop()
    async with LeakCheck(), asyncio.timeout(GUARD_S):
        allocation = await pool.allocate()
        sock = None if transport == "udp" else socket_of(allocation)
        server.pause()
        begun = loop.time()
        await pool.close()
        assert loop.time() - begun < FAREWELL_S + 1.0
        assert sock is None or sock.fileno() == -1
    assert pool.counters["turn_farewells_unanswered"] == 1


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_cancelled_while_it_connects_it_leaves_no_socket(
    certificates: Any, transport: str
) -> None:
    context = tls_context(str(certificates[0])) if transport == "tls" else None
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = mute.getsockname()
        async with LeakCheck():
            if context is None:
                pool = Pool(ServerList([TurnServer(*address, "u", "p", "tcp")]), Counters())
                task: asyncio.Task[Any] = asyncio.create_task(pool.allocate())
            else:
                task = asyncio.create_task(
                    open_stream(address, "mute", context, "127.0.0.1", print, print)
                )
            mute.settimeout(GUARD_S)
            accepted, _ = await asyncio.to_thread(mute.accept)
            with accepted:
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                accepted.settimeout(GUARD_S)

                def drained() -> bool:
                    try:
                        while accepted.recv(4096):
                            pass
                    except ConnectionResetError:
                        pass
                    return True

                assert await asyncio.to_thread(drained)  # the other end is closed


async def test_a_search_that_is_under_way_when_the_pool_closes(
    coturn: Start, certificates: Any
) -> None:
    server = coturn()
    server.pause()
    pool = make_pool([server.url("tls")], certificates)
    async with LeakCheck(), asyncio.timeout(GUARD_S):
        task = asyncio.create_task(pool.allocate())
        while not pool.live:  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.001)
        await pool.close()
        task.cancel()
        await asyncio.wait([task])
        server.resume()
        with pytest.raises(RelayError):
            await pool.allocate()

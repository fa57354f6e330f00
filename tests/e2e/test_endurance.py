"""What many connects, and cancelled ones, leave behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from warpgate import NODE_TEST_CONF, Node, auto_connect
from warpgate.hello.messages import M0, M1, M3, PREFIX, SIGNAL, frame
from warpgate.testing import LeakCheck, echo, started_nodes

STRATEGIES = ["direct_connect", "reverse_connect"]
SEQUENTIAL = 1000
WARM_UP = 300
KEPT_BYTES_PER_CONNECT = 4096
"""Bounded tables (ids of ended attempts, nonces) may still be filling: 4,096 entries each."""
CALLERS = 200
SCANS = 10_000
MAX_TURNS = 3000


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_connects_leave_nothing() -> None:
    async with LeakCheck(), started_nodes(2, memory=False) as (alice, bob):
        bob.add_msg_cb(echo)
        await once(alice, bob)
        async with LeakCheck(grace_s=5):
            for number in range(SEQUENTIAL):
                if number == WARM_UP:
                    gc.collect()
                    tracemalloc.start()
                    begin = tracemalloc.get_traced_memory()[0]
                await once(alice, bob)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - begin
        tracemalloc.stop()
        assert grown / (SEQUENTIAL - WARM_UP) < KEPT_BYTES_PER_CONNECT
        assert not alice.traversal.plugins
        assert not bob.traversal.plugins


async def once(alice: Node, bob: Node) -> None:
    pipe, _ = await auto_connect(alice, bob.address())
    assert pipe is not None, str(alice.last_report)
    async with pipe:
        await pipe.send(b"ping")
        assert await pipe.recv(timeout=10) == b"ping"
        async with asyncio.timeout(10):
            await (await bob.accept()).close()


@contextlib.contextmanager
def many_files(wanted: int) -> Any:
    """Allow so many open files, where the system does."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_two_hundred_nodes_connect_to_one_at_once() -> None:
    with many_files(4096):
        async with LeakCheck(grace_s=5), contextlib.AsyncExitStack() as stack:
            bob = await stack.enter_async_context(Node(conf=NODE_TEST_CONF))
            bob.add_msg_cb(echo)
            callers = []
            for _ in range(CALLERS):
                node = Node(conf=NODE_TEST_CONF, ip="127.0.0.1")
                callers.append(await stack.enter_async_context(node))

            async def call(number: int) -> None:
                pipe, _ = await auto_connect(callers[number], bob.address())
                assert pipe is not None, str(callers[number].last_report)
                async with pipe:
                    await pipe.send(b"%d" % number)
                    assert await pipe.recv(timeout=30) == b"%d" % number

            accepting = asyncio.gather(*(bob.accept() for _ in range(CALLERS)))
            await asyncio.gather(*(call(number) for number in range(CALLERS)))
            async with asyncio.timeout(30):
                accepted = await accepting
            seen = {pipe.peer_id for pipe in accepted}
            ways = Counter((pipe.peer_id, pipe.transport) for pipe in accepted)
            assert seen == {node.node_id for node in callers}, ways.most_common(10)
            assert bob.stats["unproven_evicted"] == 0


def scans() -> list[bytes]:
    """Return what scanners send: nothing, other protocols, halves of ours, rubbish behind a magic."""
    return [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        PREFIX[:4],
        PREFIX + bytes([M1]),
        frame(M1, os.urandom(200)),
        frame(M0, b"\x91\xaf" + b"a" * 15),
        frame(M3, os.urandom(64)),
        frame(SIGNAL, os.urandom(300)),
        PREFIX + b"\xee\x00\x01x",
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_scanners_and_silent_connections() -> None:
    kinds = scans()
    with many_files(4096):
        async with (
            LeakCheck(grace_s=10),
            started_nodes(2, conf={"accept_plain": False}, memory=False) as (alice, bob),
        ):
            bob.add_msg_cb(echo)
            silent = []

            async def scan(number: int) -> None:
                _, writer = await asyncio.open_connection("127.0.0.1", bob.port)
                writer.write(kinds[number % len(kinds)])
                if number % 40 == 0:
                    silent.append(writer)  # stays, and says nothing more
                else:
                    writer.close()

            for start in range(0, SCANS, 200):
                await asyncio.gather(*(scan(number) for number in range(start, start + 200)))
                if start % 1000 == 0:
                    await once(alice, bob)
            await once(alice, bob)
            assert len(silent) == SCANS / 40
            assert bob.stats["hello_garbage"] > SCANS / 20
            assert bob.stats["plain_refused"] > SCANS / 20
            for writer in silent:
                writer.close()


@pytest.mark.parametrize("names", [STRATEGIES, *([name] for name in STRATEGIES)], ids="+".join)
async def test_cancelled_at_every_turn_of_the_loop(names: list[str]) -> None:
    async with LeakCheck(), started_nodes(2, memory=False) as (alice, bob):
        # The signal connection that reverse_connect makes is kept for the next one.
        pipe, _ = await auto_connect(alice, bob.address(), plugins=["reverse_connect"])
        await pipe.close()
        won = 0
        for turns in range(MAX_TURNS):
            async with LeakCheck(grace_s=1.0):
                task = asyncio.create_task(auto_connect(alice, bob.address(), plugins=names))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task], timeout=10)
                if not task.cancelled():
                    pipe, _ = task.result()
                    assert pipe is not None
                    await pipe.close()
                    won += 1
            if won:
                break
        assert won, f"it took more than {MAX_TURNS} turns"
        assert not alice.traversal.plugins


async def test_closing_a_node_while_it_accepts_leaves_nothing() -> None:
    for turns in range(12):
        async with LeakCheck(grace_s=1.0):
            async with Node(conf=NODE_TEST_CONF, ip="127.0.0.1") as node:
                dialling = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", node.port))
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.wait([dialling], timeout=10)
            if dialling.exception() is None:
                dialling.result()[1].transport.abort()


async def test_closing_a_node_in_the_middle_of_connects_leaves_nothing() -> None:
    for turns in range(0, 60, 3):
        async with LeakCheck(grace_s=1.0), started_nodes(2) as (alice, bob):
            task = asyncio.create_task(auto_connect(alice, bob.address(), 5))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.gather(alice.close(), bob.close())
            async with asyncio.timeout(10):
                await task

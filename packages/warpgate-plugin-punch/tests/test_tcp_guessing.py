"""Guesses over TCP: when, how many, and that they meet."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import TraversalError
from warpgate.net.budget import PacketBudget
from warpgate.net.constants import IP4, NATType
from warpgate.testing import LeakCheck
from warpgate.traversal.sprays import Spray, SprayGate
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.tcp_punch import guessing

HERE = "127.0.0.1"
GUARD_S = 10
EASY = SideFacts(mapping="ei", kind="preserving")
LENIENT = SideFacts(mapping="ei", filtering="ad", kind="preserving")
COUNTING = SideFacts(mapping="apd", kind="sequential", step=1)
HARD = SideFacts(mapping="apd", filtering="apd", kind="random", low=1024, high=65535)
BLOCK = SideFacts(mapping="apd", filtering="apd", kind="block", low=4096, high=4607)


def attempt(mine: int = 0, theirs: int = 0) -> Any:
    nic = SimpleNamespace(name="eth0")
    return SimpleNamespace(
        af=IP4, nic=nic, src_info={"nat": {"type": mine}}, dest_info={"nat": {"type": theirs}}
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "wanted"),
    [
        (EASY, HARD, True),
        (HARD, EASY, True),
        (BLOCK, EASY, True),
        (EASY, EASY, False),
        (HARD, HARD, False),
        (HARD, LENIENT, False),
        (HARD, COUNTING, False),
    ],
)
def test_when_to_guess(mine: SideFacts, theirs: SideFacts, wanted: bool) -> None:
    blocked = NATType.BLOCKED
    assert guessing.applies(attempt(mine=blocked), mine, theirs) is wanted
    assert guessing.applies(attempt(theirs=blocked), mine, theirs) is wanted
    assert not guessing.applies(attempt(), mine, theirs)


def test_how_many() -> None:
    for facts, most in ((HARD, guessing.MAX_SIDE), (BLOCK, 60), (SideFacts(mapping="apd"), 640)):
        sockets, guesses = guessing.sizes(facts)
        assert 0 < sockets <= most
        assert 0 < guesses <= most
        assert guessing.odds(facts) >= ".9950"
    tiny = SideFacts(mapping="apd", kind="block", low=5000, high=5003)
    assert max(guessing.sizes(tiny)) <= 4


async def test_syns_that_find_a_listener_connect_and_the_others_end() -> None:
    async with LeakCheck():
        made: asyncio.Queue[socket.socket] = asyncio.Queue()
        volley = guessing.Volley(IP4, made.put_nowait)
        with socket.socket() as listener, socket.socket() as closed:
            listener.bind((HERE, 0))
            listener.listen()
            closed.bind((HERE, 0))
            dests = [closed.getsockname()] * 10 + [listener.getsockname()]
            async with asyncio.timeout(GUARD_S):
                await volley.run(Spray(20), [((HERE, 0), dest) for dest in dests])
            with made.get_nowait() as sock:
                assert sock.getpeername() == listener.getsockname()
        assert made.empty()
        assert volley.sent == 11


async def test_no_more_than_the_gate_allows() -> None:
    async with LeakCheck():
        volley = guessing.Volley(IP4, pytest.fail)
        spray = Spray(3)
        await volley.run(spray, [((HERE, 0), (HERE, 1))] * 5)
        assert volley.sent == spray.sent == 3


async def test_it_waits_while_a_connection_is_under_proof() -> None:
    async with LeakCheck():
        proving = True
        volley = guessing.Volley(IP4, pytest.fail, lambda: proving)
        aims = [((HERE, 0), (HERE, 1))] * (guessing.BATCH + 1)
        task = asyncio.create_task(volley.run(Spray(99), aims))
        await asyncio.sleep(10 * guessing.BATCH_S)  # the time that is being tested
        assert volley.sent == guessing.BATCH
        proving = False
        async with asyncio.timeout(GUARD_S):
            await task
        assert volley.sent == guessing.BATCH + 1


async def test_a_stopped_volley_leaves_nothing() -> None:
    async with LeakCheck():
        volley = guessing.Volley(IP4, pytest.fail)
        with socket.socket() as full:  # whose queue is full: SYNs go unanswered
            full.bind((HERE, 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(2)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            aims = [((HERE, 0), full.getsockname())] * 4
            task = asyncio.create_task(volley.run(Spray(9), aims))
            while volley.sent < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
            volley.stop()
            async with asyncio.timeout(GUARD_S):
                await task
            for filler in fillers:
                filler.close()


async def test_a_second_spray_to_an_address_is_refused() -> None:
    plugin = attempt(mine=NATType.BLOCKED)
    plugin.manager, plugin.budget = SimpleNamespace(sprays=SprayGate()), PacketBudget()
    small = SideFacts(mapping="apd", kind="block", low=1, high=3)
    volley = guessing.Volley(IP4, pytest.fail)
    note = await guessing.guess(plugin, EASY, small, (HERE, 0), (HERE, 0), volley)
    assert "met none" in note
    with pytest.raises(TraversalError, match="a spray went to this address"):
        await guessing.guess(plugin, EASY, small, (HERE, 0), (HERE, 0), volley)

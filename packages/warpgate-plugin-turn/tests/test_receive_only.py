"""As many lifetimes as an hour has, in seconds: who only receives loses nothing and keeps its relay."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from warpgate.events import Counters
from warpgate.server_urls import parse_turn
from warpgate.testing import LeakCheck
from warpgate.testing.coturn import Coturn
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.sockets import open_towards

TOOL = Path(__file__).resolve().parents[3] / "tools" / "soak" / "receive_only.py"
SECONDS = 24  # an hour has 6 lifetimes of allocations, 12 of permissions, 6 of channels
ALLOCATION_S, PERMISSION_S, CHANNEL_S = 4, 2, 4
GUARD_S = 20.0

pytestmark = pytest.mark.coturn


@pytest.fixture
def tool() -> Iterator[Any]:
    """Return the module that runs for an hour."""
    if not TOOL.exists():
        pytest.skip("the repository's tools are not here")
    spec = importlib.util.spec_from_file_location("receive_only", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["receive_only"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["receive_only"]


async def test_nothing_is_lost_over_an_hours_lifetimes(
    coturn: Callable[..., Coturn], certificates: Any, tool: Any
) -> None:
    lifetimes = tool.Lifetimes(ALLOCATION_S, PERMISSION_S, CHANNEL_S)
    server = coturn("verbose", *lifetimes.lines())
    async with LeakCheck():
        tallies = await tool.soak(server, certificates[0], SECONDS, lifetimes=lifetimes)
    assert [tally.transport for tally in tallies] == ["udp", "tcp", "tls"]
    for tally in tallies:
        assert tally.sound, tally.line(tally.under_way)
        assert (tally.duplicated, tally.disordered) == (0, 0), tally.line(0)
        assert (
            tally.received > SECONDS / tool.EVERY_S / 2
        )  # it was a stream, not a word now and then
    # What coturn delivers all the same, as the function says, shows here.
    renewed = tool.renewals(server.log())
    for kind, lifetime in zip(renewed, (ALLOCATION_S, PERMISSION_S, CHANNEL_S), strict=True):
        assert len(renewed[kind]) == len(tallies)
        assert min(renewed[kind]) >= SECONDS // lifetime, (kind, renewed)


async def test_a_permission_without_a_channel_lasts_as_well(coturn: Callable[..., Coturn]) -> None:
    server = coturn(f"permission-lifetime={PERMISSION_S}")
    options = {"permission_lifetime_s": PERMISSION_S}
    pool = Pool(ServerList([parse_turn(server.url())]), Counters(), options=options)
    allocation = await pool.take()
    came: asyncio.Queue[bytes] = asyncio.Queue()
    allocation.stranger = lambda data, _peer: came.put_nowait(data)
    permitted = asyncio.Event()
    allocation.on_permitted = lambda _ip: permitted.set()
    allocation.permit("127.0.0.1")
    sender = await open_towards(allocation.relayed)
    try:
        async with asyncio.timeout(GUARD_S):
            await permitted.wait()
            loop = asyncio.get_running_loop()
            begin, number = loop.time(), 0
            while loop.time() - begin < 3 * PERMISSION_S:
                sender.send_to(b"%d" % number, allocation.relayed)
                assert await came.get() == b"%d" % number
                number += 1
                await asyncio.sleep(0.05)
    finally:
        sender.close()
        await pool.close()

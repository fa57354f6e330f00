"""When a relay for streams is told to the peer: after its permission; without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from warpgate.errors import RelayError
from warpgate.net.constants import IP4
from warpgate_plugin_turn import streams as streams_module
from warpgate_plugin_turn.streams import Streams

RELAYED = ("192.0.2.20", 50000)
FIRST, SECOND = "203.0.113.10", "203.0.113.11"


class Relay:
    """Stands in for an allocation; a test grants and refuses."""

    def __init__(self) -> None:
        self.name = "192.0.2.20 port 3478"
        self.relayed = RELAYED
        self.asked: list[str] = []
        self.on_permitted: Any = None
        self.on_refused: Any = None
        self.on_incoming: Any = None
        self.both_asked = asyncio.Event()

    def permit(self, ip: str) -> None:
        self.asked.append(ip)
        if len(self.asked) == 2:
            self.both_asked.set()

    def retire(self) -> None:
        pass


def make() -> tuple[Streams, Relay]:
    relay = Relay()

    async def allocate(_af: int, **_options: Any) -> Any:
        return relay

    plugin: Any = SimpleNamespace(dest_info={"af": IP4}, af=IP4)
    pool: Any = SimpleNamespace(allocate=allocate)
    return Streams(plugin, pool, lambda _pipe: None, lambda _coroutine: None), relay


async def test_the_stream_is_told_only_when_all_have_their_permission() -> None:
    streams, relay = make()
    offering = asyncio.create_task(streams.offer({FIRST, SECOND}))
    async with asyncio.timeout(5):
        await relay.both_asked.wait()
        await asyncio.sleep(0)
        assert (streams.relayed, offering.done()) == (None, False)
        relay.on_permitted(FIRST)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (streams.relayed, offering.done()) == (None, False)
        relay.on_permitted(SECOND)
        await offering
    assert streams.relayed == RELAYED


async def test_a_refusal_settles_it_as_well() -> None:
    streams, relay = make()
    offering = asyncio.create_task(streams.offer({FIRST, SECOND}))
    async with asyncio.timeout(5):
        await relay.both_asked.wait()
        relay.on_permitted(FIRST)
        relay.on_refused(SECOND, RelayError("forbidden"))
        await offering
    assert streams.relayed == RELAYED
    assert str(streams.why_not) == "forbidden"


async def test_without_a_permission_in_time_it_is_never_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams_module, "PERMIT_S", 0.01)
    streams, relay = make()
    async with asyncio.timeout(5):
        await streams.offer({FIRST})
    assert relay.asked == [FIRST]
    assert streams.relayed is None
    assert "gave no permission in time" in str(streams.why_not)

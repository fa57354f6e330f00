"""Spare sockets: made, kept, taken, replaced, closed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import EXT_BIND, IP4
from warpgate.testing import LeakCheck
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.sockets import Mapped, PunchSocket
from warpgate_plugin_punch.udp_punch import spares
from warpgate_plugin_punch.udp_punch.spares import Spare, Spares
from warpgate_plugin_punch.udp_punch.strategy import UdpPunch

CARRIER = SideFacts(mapping="ei", filtering="apd", kind="random")
HOME = SideFacts(mapping="ei", filtering="apd", kind="preserving")
LIMIT_S = 5.0


def attempt(place: str = "127.0.0.1") -> UdpPunch:
    plugin = UdpPunch()
    plugin.af, plugin.route_type = IP4, EXT_BIND
    plugin.src_info, plugin.dest_info = {"nic": place}, {"ip": "203.0.113.10"}
    plugin.node = SimpleNamespace(own_ips=set)  # type: ignore[assignment]
    return plugin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PunchSocket]:
    """The sockets that servers were asked about; each has its own external port."""
    seen: list[PunchSocket] = []

    async def answer(_node: Any, _af: int, link: PunchSocket) -> Mapped:
        seen.append(link)
        await asyncio.sleep(0)
        return Mapped(("198.51.100.10", link.local[1]), ((0, link.local[1]),), 1, None, 0.05)

    monkeypatch.setattr(spares, "mapped_for", answer)
    monkeypatch.setattr(spares, "REPLENISH_S", 0.0)
    return seen


async def next_spare(stock: Spares, plugin: UdpPunch) -> Spare:
    async with asyncio.timeout(LIMIT_S):
        while (found := stock.take(plugin, CARRIER)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return found


async def test_a_spare_is_taken_once_and_replaced(asked: list[PunchSocket]) -> None:
    async with LeakCheck():
        stock, plugin = Spares(SimpleNamespace()), attempt()  # type: ignore[arg-type]
        assert stock.take(plugin, CARRIER) is None
        stock.stock(plugin, "127.0.0.1")
        first = await next_spare(stock, plugin)
        assert first.endpoint == ("198.51.100.10", first.link.local[1])
        assert stock.take(plugin, CARRIER) is None
        second = await next_spare(stock, plugin)
        assert second.link is not first.link
        await stock.close()
        assert not any(each.link.closed for each in (first, second))  # they are the attempt's
        assert all(link.closed for link in asked if link not in (first.link, second.link))
        for spare in (first, second):
            spare.link.send_to(b"x", ("127.0.0.1", 9))
            spare.link.close()
        assert plugin.budget.sent("127.0.0.1") == 2


async def test_nobody_else_gets_one(asked: list[PunchSocket]) -> None:
    async with LeakCheck():
        stock, plugin = Spares(SimpleNamespace()), attempt()  # type: ignore[arg-type]
        stock.stock(plugin, "127.0.0.1")
        while not asked:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stock.take(attempt("127.0.0.9"), CARRIER) is None
        assert stock.take(plugin, HOME) is None
        near = attempt()
        near.dest_info = {"ip": "192.168.1.9"}
        near.route_type = 1
        assert stock.take(near, CARRIER) is None
        await stock.close()
        assert asked[0].closed


async def test_spares_end_when_nobody_calls(
    asked: list[PunchSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares, "LIFE_S", 0.05)
    monkeypatch.setattr(spares, "CONFIRM_S", 0.01)
    async with LeakCheck():
        stock, plugin = Spares(SimpleNamespace()), attempt()  # type: ignore[arg-type]
        stock.stock(plugin, "127.0.0.1")
        async with asyncio.timeout(LIMIT_S):
            while not asked or not asked[0].closed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert len(asked) > 1  # looked at again
        assert len(set(asked)) == 1
        await stock.close()


async def test_an_address_that_is_gone_ends_it(asked: list[PunchSocket]) -> None:
    async with LeakCheck():
        stock = Spares(SimpleNamespace())  # type: ignore[arg-type]
        stock.stock(attempt(), "192.0.2.77")
        async with asyncio.timeout(LIMIT_S):
            while stock._shelves:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert asked == []

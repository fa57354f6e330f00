"""The gate of sprays: once a minute to an address, one at a time, so many flows a gateway."""

from __future__ import annotations

import asyncio

import pytest

from warpgate.errors import TraversalError
from warpgate.traversal import sprays
from warpgate.traversal.sprays import MAX_SPRAY_PACKETS, SprayGate

A, B, C = "198.51.100.1", "198.51.100.2", "198.51.100.3"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return SprayGate(clock)


async def spray(gate, ip, sent, gateway="eth0 IPv4", packets=None):
    async with gate.spray(ip, gateway, sent if packets is None else packets) as one:
        for _ in range(sent):
            assert one.take()


async def test_an_address_is_sprayed_once_a_minute(gate, clock):
    async with gate.spray(A, "eth0 IPv4", 100) as one:
        assert [one.take() for _ in range(101)] == [True] * 100 + [False]
        clock.now += 1.5
    clock.now += 59.0
    assert gate.room(A, "eth0 IPv4") == 0
    with pytest.raises(TraversalError, match=r"less than a minute ago.*198\.51\.100\.1, 59 s ago"):
        await spray(gate, A, 1)
    clock.now += 1.0
    assert gate.room(A, "eth0 IPv4") == MAX_SPRAY_PACKETS
    await spray(gate, A, 1)


async def test_it_counts_from_the_end(gate, clock):
    async with gate.spray(A, "eth0 IPv4", 10):
        clock.now += 30.0
    clock.now += 45.0
    assert gate.refusal(A, "eth0 IPv4", 1) is not None


async def test_a_spray_that_failed_counts_as_well(gate):
    with pytest.raises(ValueError, match="some defect"):
        async with gate.spray(A, "eth0 IPv4", 10):
            raise ValueError("some defect")
    assert gate.room(A, "eth0 IPv4") == 0
    await spray(gate, B, 1)


async def test_one_at_a_time(gate):
    order = []
    first_in, go = asyncio.Event(), asyncio.Event()

    async def first():
        async with gate.spray(A, "eth0 IPv4", 10):
            first_in.set()
            await go.wait()
            order.append("first ends")

    async def second():
        async with gate.spray(B, "eth0 IPv4", 10):
            order.append("second begins")

    one = asyncio.create_task(first())
    await first_in.wait()
    two = asyncio.create_task(second())
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == []
    go.set()
    await asyncio.gather(one, two)
    assert order == ["first ends", "second begins"]


async def test_the_turn_is_waited_for_only_so_long(gate, monkeypatch):
    monkeypatch.setattr(sprays, "TURN_S", 0.01)
    async with gate.spray(A, "eth0 IPv4", 10):
        with pytest.raises(TraversalError, match="another spray"):
            await spray(gate, B, 1)
    await spray(gate, B, 1)


async def test_who_waits_and_is_cancelled_holds_up_nobody(gate):
    async with gate.spray(A, "eth0 IPv4", 10):
        waiting = asyncio.create_task(spray(gate, B, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    await spray(gate, C, 1)


async def test_a_gateway_holds_1400_flows_a_minute(gate, clock):
    await spray(gate, A, 900)
    assert gate.room(B, "eth0 IPv4") == 500
    assert gate.room(B, "eth1 IPv4") == MAX_SPRAY_PACKETS
    with pytest.raises(TraversalError, match="room for 500 of 1400"):
        await spray(gate, B, 0, packets=501)
    clock.now += 30.0
    await spray(gate, B, 500)
    assert gate.room(C, "eth0 IPv4") == 0
    clock.now += 30.0
    assert gate.room(C, "eth0 IPv4") == 900


async def test_only_what_was_sent_counts(gate):
    await spray(gate, A, 20, packets=1400)
    assert gate.room(B, "eth0 IPv4") == MAX_SPRAY_PACKETS - 20


async def test_a_second_packet_of_a_flow_is_no_new_one(gate):
    async with gate.spray(A, "eth0 IPv4", 15) as one:
        assert [one.take() for _ in range(10)] == [True] * 10
        assert [one.take(new_flow=False) for _ in range(6)] == [True] * 5 + [False]
        assert (one.sent, one.flows) == (15, 10)
    assert gate.room(B, "eth0 IPv4") == MAX_SPRAY_PACKETS - 10


async def test_both_tables_are_capped(gate, clock, monkeypatch):
    monkeypatch.setattr(sprays, "MAX_TARGETS", 2)
    monkeypatch.setattr(sprays, "MAX_GATEWAYS", 1)
    await spray(gate, A, 1)
    assert gate.room(B, "eth1 IPv4") == 0
    await spray(gate, B, 1)
    assert gate.room(C, "eth0 IPv4") == 0
    with pytest.raises(TraversalError, match="room for 0"):
        await spray(gate, C, 1)
    clock.now += 60.0
    await spray(gate, C, 1)

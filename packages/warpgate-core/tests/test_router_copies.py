"""Copies of a signal: sent while nothing is heard, stopped by whatever is heard, accepted once."""

# ruff: noqa: ASYNC110  # an attempt's first signal has no event to wait for

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from warpgate import ConMsg, Plugin
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.protocol.codec import MessageTable
from warpgate.protocol.peer_address import unpack_address
from warpgate.signalling import router as router_module
from warpgate.signalling.router import MAX_COPIES, SignalRouter
from warpgate.signalling.transport import SignalOrigin

pytestmark = pytest.mark.usefixtures("leaks")
YEAR_S = 365 * 86400


class Wire:
    """A transport that hands every envelope to the other router, or loses it."""

    name = "wire"

    def __init__(self, lose=0):
        self.lose = lose
        self.carried = []
        self.other = None

    async def start(self, deliver):
        self.deliver = deliver

    async def send(self, dest, envelope):
        self.carried.append(envelope)
        if len(self.carried) > self.lose:
            self.other.deliver(envelope, SignalOrigin(self.name, False, self.other.reply, "x"))

    async def reply(self, envelope, dest):
        await self.send(dest, envelope)

    def brokers(self):
        return ()

    async def close(self):
        pass


class Side:
    def __init__(self, make_address, lose=0, clock=time.time):
        self.identity = Identity.generate()
        self.address = make_address(["127.0.0.1"], identity=self.identity)
        self.stats, self.received = Counters(), []
        table = MessageTable()
        table.add(ConMsg)
        self.wire = Wire(lose)
        self.router = SignalRouter(
            self.identity, table, self.stats, lambda *what: self.received.append(what), clock
        )

    async def send(self, dest, unheard):
        msg = ConMsg()
        msg.meta.src_buf = self.address.raw
        await self.router.send(dest.address, msg, 20, None, None, unheard)


@pytest.fixture
async def sides(make_address, monkeypatch):
    monkeypatch.setattr(router_module, "COPY_AFTER_S", 0.01)
    made = []

    async def make(lose=0, clock=time.time):
        pair = Side(make_address, lose), Side(make_address, 0, clock)
        for side, other in (pair, pair[::-1]):
            made.append(side)
            await side.router.start([side.wire])
            side.wire.other = other.wire
        return pair

    yield make
    for side in made:
        await side.router.close()


async def settle(side):
    async with asyncio.timeout(10):
        while side.router._tasks:
            await asyncio.wait(list(side.router._tasks))


async def test_a_lost_signal_arrives_by_a_copy_and_once(sides):
    alice, bob = await sides(lose=2)
    await alice.send(bob, lambda: True)
    assert bob.received == []
    await settle(alice)
    assert len(bob.received) == 1
    assert len(alice.wire.carried) == 1 + MAX_COPIES
    assert len(set(alice.wire.carried)) == 1
    assert alice.stats["signals_repeated"] == MAX_COPIES
    assert bob.stats["signals_duplicate"] == MAX_COPIES - 2


async def test_copies_end_once_something_is_heard(sides):
    alice, bob = await sides(lose=2)
    await alice.send(bob, lambda: not bob.received)
    await settle(alice)
    assert len(alice.wire.carried) == 3


async def test_there_are_none_unless_asked_for(sides):
    alice, bob = await sides()
    await alice.send(bob, lambda: False)
    await asyncio.sleep(0)
    assert not alice.router._tasks
    assert len(bob.received) == 1


async def test_a_corrected_time_has_copies_of_its_own(sides):
    alice, bob = await sides(clock=lambda: time.time() + YEAR_S)
    alice.wire.lose = 1
    bob.wire.lose = 0
    await alice.send(bob, lambda: True)
    await settle(alice)
    stale, right = dict.fromkeys(alice.wire.carried)
    # The first copy was answered with bob's time, so the stale envelope has no second one.
    assert alice.wire.carried.count(stale) == 2
    assert alice.wire.carried.count(right) == 1 + MAX_COPIES
    assert len(bob.received) == 1
    assert alice.stats["clock_corrections"] == 1


async def test_a_copy_that_no_transport_takes_does_not_end_them(sides):
    alice, bob = await sides()
    sending = alice.wire.send
    failed = []

    async def send(dest, envelope):
        if len(alice.wire.carried) == 2 and not failed:
            failed.append(envelope)
            raise router_module.SignallingError("not now")
        await sending(dest, envelope)

    alice.wire.send = send
    await alice.send(bob, lambda: True)
    await settle(alice)
    assert failed
    assert len(alice.wire.carried) == MAX_COPIES


@pytest.mark.parametrize("ending", ["a signal", "the end", "a proof"])
async def test_an_attempt_asks_for_copies_until_it_hears_of_its_peer(start, make_address, ending):
    class Asks(Plugin):
        name = "asks"
        phase = "direct"
        transport = "tcp"

        async def run(self, reply=None):
            if reply is None:
                await self.send_signal_msg(ConMsg())
            await asyncio.sleep(60)

    node = await start(Asks)
    asked = []

    async def send(dest, msg, ttl_s, origin, tasks, unheard):
        asked.append(unheard)

    node.router.send = send
    identity = Identity.generate()
    peer = make_address(["127.0.0.1"], identity=identity, machine=node.peer_address.machine)
    plugin = await node.connect(pnp_addr=peer.raw, plugin_name="asks")
    while not asked:
        await asyncio.sleep(0)
    (unheard,) = asked
    assert unheard()
    attempt = node.traversal.find(peer.node_id, plugin.plugin_id)
    if ending == "a signal":
        msg = ConMsg()
        msg.meta.pipe_id, msg.meta.plugin_name = plugin.plugin_id, "asks"
        origin = SignalOrigin("test", True, None, "test")
        node.traversal.signals.on_signal(unpack_address(peer.raw), msg, origin)
    elif ending == "the end":
        plugin.result.cancel()
    else:

        class Proof:
            machine = SimpleNamespace(last_drop=None)

            def cancel(self):
                attempt._proofs.discard(self)

        attempt.watch(Proof())
    assert not unheard()

"""Signals between routers: once, in time, from whom they say, by every way there is."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from warpgate.errors import MessageTooLarge, SignallingError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.protocol import strict
from warpgate.protocol.codec import MessageTable, encode_body
from warpgate.protocol.envelope import seal_signal
from warpgate.protocol.proto_msg import ConMsg
from warpgate.signalling import router as router_module
from warpgate.signalling.memory import MemoryHub, MemoryTransport
from warpgate.signalling.router import TIME_WIRE_NAME, SignalRouter
from warpgate.signalling.transport import SignalOrigin, SignalTransport
from warpgate.testing import LeakCheck

pytestmark = pytest.mark.usefixtures("leaks")
YEAR_S = 365 * 86400


class Peer:
    """A router with an identity and an address, on a memory hub."""

    def __init__(self, hub, make_address, clock=time.time):
        self.identity = Identity.generate()
        self.address = make_address(["127.0.0.1"], identity=self.identity)
        self.stats, self.received = Counters(), asyncio.Queue()
        table = MessageTable()
        table.add(ConMsg)
        self.transport = MemoryTransport(hub, self.identity.public_key)
        self.router = SignalRouter(self.identity, table, self.stats, self.on_signal, clock)

    def on_signal(self, peer, msg, origin):
        self.received.put_nowait((peer, msg, origin))

    def message(self):
        msg = ConMsg()
        msg.meta.plugin_name, msg.meta.src_buf = "any", self.address.raw
        return msg

    def seal(self, dest, msg=None, sent_s=None, wire_name="ConMsg", body=None, msg_id=None):
        return seal_signal(
            self.identity,
            dest.address.key,
            dest.address.exchange_key,
            wire_name=wire_name,
            body=body if body is not None else encode_body(msg or self.message()),
            sent_ms=int((time.time() if sent_s is None else sent_s) * 1000),
            ttl_s=20,
            msg_id=msg_id or os.urandom(16),
        )

    async def send(self, dest, origin=None):
        await self.router.send(dest.address, self.message(), 20, origin)


@pytest.fixture
async def peers(make_address):
    hub, made = MemoryHub(), []

    async def make(clock=time.time):
        peer = Peer(hub, make_address, clock)
        made.append(peer)
        await peer.router.start([peer.transport])
        return peer

    yield make
    for peer in made:
        await peer.router.close()


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


def origin_of(answers):
    """Return an origin whose answers are collected."""

    async def reply(envelope, dest):
        answers.append((envelope, dest))

    return SignalOrigin("test", False, reply, "a test")


async def test_a_message_arrives_with_its_signers_verified_address(peers):
    alice, bob = await peers(), await peers()
    await alice.send(bob)
    peer, msg, origin = await bob.received.get()
    assert peer.raw == alice.address.raw
    assert msg.meta.plugin_name == "any"
    assert (origin.transport, origin.loopback) == ("memory", True)


async def test_an_answer_goes_back_by_the_way_that_the_signal_came(peers):
    alice, bob = await peers(), await peers()
    await alice.send(bob)
    _, _, origin = await bob.received.get()
    await bob.send(alice, origin)
    peer, _, _ = await alice.received.get()
    assert peer.raw == bob.address.raw


async def test_the_same_envelope_is_accepted_once(peers):
    alice, bob = await peers(), await peers()
    envelope = alice.seal(bob)
    for _ in range(3):
        assert bob.router.deliver(envelope, origin_of([]))
    assert bob.received.qsize() == 1
    assert bob.stats["signals_duplicate"] == 2


async def test_the_senders_address_must_be_the_signers(peers):
    alice, bob, mallory = await peers(), await peers(), await peers()
    answers = []
    for sent_s in (None, time.time() - YEAR_S):
        envelope = mallory.seal(bob, alice.message(), sent_s)
        assert bob.router.deliver(envelope, origin_of(answers))
    await turns()
    assert bob.received.empty()
    assert bob.stats["signals_RemoteProtocolError"] == 2
    assert answers == []  # nor is anyone told the time in alice's name


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02" + bytes(100), bytes(9000)])
async def test_what_is_not_sealed_to_this_node_is_known_to_be_garbage(peers, data):
    alice, bob, other = await peers(), await peers(), await peers()
    assert bob.router.deliver(data, origin_of([])) is False
    assert bob.router.deliver(alice.seal(other), origin_of([])) is False
    assert sum(bob.stats.values()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"wire_name": "No.Such"},
        {"body": b"garbage"},
        {"body": strict.pack([[], [], None])},
        {"wire_name": TIME_WIRE_NAME, "body": b"garbage"},
        {"wire_name": TIME_WIRE_NAME, "body": strict.pack([b"x" * 16, "noon"])},
        {"wire_name": TIME_WIRE_NAME, "body": strict.pack([b"x" * 16, 2**62])},
    ],
)
async def test_signed_nonsense_is_dropped_and_counted(peers, changes):
    alice, bob = await peers(), await peers()
    assert bob.router.deliver(alice.seal(bob, **changes), origin_of([])) is True
    assert bob.received.empty()
    assert sum(bob.stats.values()) == 1


async def test_what_goes_wrong_above_does_not_reach_the_transport(peers, caplog):
    alice, bob = await peers(), await peers()

    def broken(peer, msg, origin):
        raise KeyError("bug")

    bob.router._on_signal = broken
    assert bob.router.deliver(alice.seal(bob), origin_of([]))
    assert bob.stats["signal_errors"] == 1


# Wrong clocks.


@pytest.mark.parametrize("error_s", [-YEAR_S, -60, 3600, YEAR_S])
async def test_a_wrong_clock_costs_a_round_trip_not_the_connection(peers, error_s):
    alice = await peers(clock=lambda: time.time() + error_s)
    bob = await peers()
    await alice.send(bob)
    peer, _, origin = await bob.received.get()
    assert peer.raw == alice.address.raw
    assert (bob.stats["signals_stale"], alice.stats["clock_corrections"]) == (1, 1)
    # The answer finds that alice's clock is another one, in the same way.
    await bob.send(alice, origin)
    await alice.received.get()
    # From now on both know.
    await alice.send(bob)
    await bob.received.get()
    assert (bob.stats["signals_stale"], alice.stats["signals_stale"]) == (1, 1)


async def test_a_clock_that_is_put_right_again_is_found_out_again(peers):
    error_s = [YEAR_S]
    alice = await peers(clock=lambda: time.time() + error_s[0])
    bob = await peers()
    await alice.send(bob)
    await bob.received.get()
    error_s[0] = 0
    await alice.send(bob)
    await bob.received.get()
    assert alice.stats["clock_corrections"] == 2


async def test_a_message_is_repeated_once_only(peers):
    """A peer that answers with a time that does not help is not asked for ever."""
    alice = await peers()
    clock_s = [time.time()]

    def later():
        clock_s[0] += 3600
        return clock_s[0]

    bob = await peers(clock=later)
    await alice.send(bob)
    await turns(50)
    assert bob.stats["signals_stale"] == 2
    assert bob.received.empty()


async def test_a_time_answer_is_signed_for_the_message_it_answers(peers):
    alice, bob = await peers(), await peers()
    answers = []
    envelope = alice.seal(bob, sent_s=time.time() - YEAR_S)
    bob.router.deliver(envelope, origin_of(answers))
    await turns()
    ((answer, dest),) = answers
    assert dest.raw == alice.address.raw
    alice.router.deliver(answer, origin_of([]))
    assert alice.stats["time_answers_unasked"] == 1  # alice's router did not send that one


async def test_unasked_time_answers_are_ignored(peers):
    alice, bob, mallory = await peers(), await peers(), await peers()
    msg_id = b"m" * 16
    alice.router._sent[msg_id] = router_module._Sent(bob.address, "ConMsg", b"", 20, None, 1e12)
    body = strict.pack([msg_id, 12345])
    for sender in (mallory, bob, bob):
        envelope = sender.seal(alice, wire_name=TIME_WIRE_NAME, body=body)
        alice.router.deliver(envelope, origin_of([]))
    assert (alice.stats["time_answers_unasked"], alice.stats["clock_corrections"]) == (2, 1)
    assert list(alice.router._offsets_ms) == [bob.address.node_id]


async def test_time_answers_are_rate_limited(peers, monkeypatch):
    monkeypatch.setattr(router_module, "TIME_ANSWERS_PER_S", 3)
    alice, bob = await peers(), await peers()
    answers = []
    for _ in range(5):
        bob.router.deliver(alice.seal(bob, sent_s=0), origin_of(answers))
    await turns()
    assert len(answers) == 3
    assert bob.stats["time_answers_limited"] == 2


async def test_a_time_answer_that_cannot_be_sent_is_counted(peers):
    alice, bob = await peers(), await peers()

    async def reply(envelope, dest):
        raise SignallingError("gone")

    bob.router.deliver(alice.seal(bob, sent_s=0), SignalOrigin("test", False, reply, "gone"))
    await turns()
    assert bob.stats["signals_unsent"] == 1


async def test_tables_are_capped(peers, monkeypatch):
    monkeypatch.setattr(router_module, "MAX_PENDING", 2)
    monkeypatch.setattr(router_module, "MAX_OFFSETS", 2)
    alice = await peers(clock=lambda: time.time() + YEAR_S)
    others = [await peers() for _ in range(4)]
    for other in others:
        await alice.send(other)
        await other.received.get()
    assert len(alice.router._sent) == 2
    assert list(alice.router._offsets_ms) == [other.address.node_id for other in others[2:]]


# Several ways.


class Way:
    """A transport that does as it is told."""

    def __init__(self, name="way", error=None, hang=False):
        self.name, self.error, self.hang = name, error, hang
        self.sent, self.cancelled, self.reached = [], False, asyncio.Event()

    async def start(self, deliver):
        self.deliver = deliver

    def brokers(self):
        return (f"mqtt://{self.name}",)

    async def send(self, dest, envelope):
        self.reached.set()
        if self.hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        if self.error is not None:
            raise self.error
        self.sent.append(envelope)

    async def close(self):
        pass


@pytest.fixture
async def router(make_address):
    table = MessageTable()
    table.add(ConMsg)
    routers = []

    async def make(*ways):
        made = SignalRouter(Identity.generate(), table, Counters(), lambda *_: None)
        routers.append(made)
        await made.start(ways)
        return made

    yield make
    for made in routers:
        await made.close()


@pytest.fixture
def dest(make_address):
    return make_address(["127.0.0.1"])


def test_a_way_is_a_signal_transport():
    assert isinstance(Way(), SignalTransport)


async def test_every_way_is_taken_at_once_with_the_same_envelope(router, dest):
    ways = Way("a"), Way("b"), Way("c", SignallingError("down"))
    made = await router(*ways)
    await made.send(dest, ConMsg(), 20)
    await turns()
    assert ways[0].sent == ways[1].sent
    assert len(ways[0].sent) == 1
    assert made.brokers() == ("mqtt://a", "mqtt://b", "mqtt://c")


async def test_it_returns_with_the_first_and_leaves_the_rest_to_the_caller(router, dest):
    fast, slow = Way("fast"), Way("slow", hang=True)
    made, tasks = await router(slow, fast), set()
    await made.send(dest, ConMsg(), 20, tasks=tasks)
    await turns()
    (task,) = tasks
    task.cancel()
    await turns()
    assert slow.cancelled
    assert not tasks


async def test_it_raises_when_all_have_failed_with_every_cause(router, dest):
    made = await router(
        Way("a", SignallingError("no carrier")), Way("b", ValueError("bug")), Way("c", OSError())
    )
    with pytest.raises(SignallingError) as caught:
        await made.send(dest, ConMsg(), 20)
    for part in ("a: no carrier", "b: ValueError('bug')", "c: OSError()"):
        assert part in str(caught.value)


async def test_a_way_that_takes_too_long_has_failed(router, dest, monkeypatch):
    monkeypatch.setattr(router_module, "SEND_TIMEOUT_S", 0.01)
    made = await router(Way("slow", hang=True))
    with pytest.raises(SignallingError, match="slow: timed out"):
        await made.send(dest, ConMsg(), 20)


async def test_without_a_transport_nothing_can_be_sent(router, dest):
    made = await router()
    with pytest.raises(SignallingError, match="no signal transport"):
        await made.send(dest, ConMsg(), 20)


async def test_a_message_may_not_exceed_8_kib(router, dest):
    msg = ConMsg()
    msg.meta.src_buf = bytes(2048)
    made = await router(Way())
    await made.send(dest, msg, 20)

    class Big(ConMsg):
        class Payload(ConMsg.__base__.__base__):
            data: bytes = bytes(9000)

    with pytest.raises(MessageTooLarge):
        await made.send(dest, Big(), 20)


async def test_cancelling_a_send_gives_every_way_up(router, dest):
    way = Way(hang=True)
    made = await router(way)
    async with LeakCheck():
        sending = asyncio.create_task(made.send(dest, ConMsg(), 20))
        await way.reached.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert way.cancelled


async def test_closing_gives_it_up_too(router, dest):
    way = Way(hang=True)
    made = await router(way)
    sending = asyncio.create_task(made.send(dest, ConMsg(), 20))
    await way.reached.wait()
    await made.close()
    with pytest.raises(SignallingError, match="given up"):
        await sending


async def test_an_answer_takes_the_way_back_instead_of_that_transports_own(router, dest):
    here, other, answers = Way("here"), Way("other"), []

    async def reply(envelope, dest):
        answers.append(envelope)

    made = await router(here, other)
    await made.send(dest, ConMsg(), 20, SignalOrigin("here", False, reply, ""))
    await turns()
    assert (len(answers), len(here.sent), len(other.sent)) == (1, 0, 1)


async def test_and_its_own_when_the_way_back_is_gone(router, dest):
    here = Way("here")

    async def reply(envelope, dest):
        raise SignallingError("gone")

    made = await router(here)
    await made.send(dest, ConMsg(), 20, SignalOrigin("here", False, reply, ""))
    assert len(here.sent) == 1


async def test_a_peer_that_has_left_the_hub(peers):
    alice, bob = await peers(), await peers()
    await alice.send(bob)
    _, _, origin = await bob.received.get()
    await alice.router.close()
    with pytest.raises(SignallingError):
        await bob.send(alice, origin)

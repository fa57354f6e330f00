"""``random_probe`` between nodes on one machine that believe to be behind NATs."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from warpgate import SkipReason, TraversalError, auto_connect
from warpgate.nat.pair import NatPair
from warpgate.net.constants import IP4, IP6, LOOPBACK_BIND, DeltaType, NATType
from warpgate.testing import LeakCheck
from warpgate.testing.nodes import echo, started_nodes
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.probes import INITIATOR
from warpgate_plugin_punch.random_probe import descriptors, hunt, strategy
from warpgate_plugin_punch.random_probe.hunt import Hunt
from warpgate_plugin_punch.random_probe.machine import SprayPlan
from warpgate_plugin_punch.random_probe.messages import SideNumbers, SprayAnswer, SprayOffer
from warpgate_plugin_punch.random_probe.strategy import RandomProbe

EASY = SideFacts(mapping="ei", filtering="apd", kind="preserving")
EPHEMERAL = SideFacts(mapping="apd", filtering="apd", kind="random", low=32768, high=60999)
WHOLE = SideFacts(mapping="apd", filtering="apd", kind="random", low=1024, high=65535)
BLOCK = SideFacts(mapping="apd", filtering="apd", kind="block", low=40960, high=41471)


@asynccontextmanager
async def nodes(count=2, **conf):
    async with (
        LeakCheck(),
        started_nodes(count, strategies=[RandomProbe], conf=conf, memory=False) as made,
    ):
        for node in made:
            node.add_msg_cb(echo)
        yield made


@pytest.fixture
def facts(monkeypatch):
    """Let initiators and responders believe what a test says of their NATs."""

    def believe(initiator, responder):
        monkeypatch.setattr(
            strategy, "own_facts", lambda plugin, _: initiator if plugin.initiator else responder
        )

    return believe


async def connect(node, peer):
    async with asyncio.timeout(15):
        pipe, _ = await auto_connect(
            node, peer.address(), afs=[IP4], route_types=[LOOPBACK_BIND], timeout=10
        )
    return pipe


def cause(node):
    return node.last_report.outcomes[0].cause


def skipped(node):
    """Return the skip of a spray that came too soon: it is no failed attempt."""
    assert node.last_report.outcomes == []
    (skip,) = [s for s in node.last_report.skips if s.reason is SkipReason.TOO_SOON]
    assert "less than a minute ago" in str(skip)
    return skip


@pytest.mark.parametrize(
    ("initiator", "responder"), [(EPHEMERAL, EASY), (EASY, EPHEMERAL), (BLOCK, EASY)]
)
async def test_it_connects_whoever_is_hard(facts, initiator, responder):
    facts(initiator, responder)
    async with nodes() as (alice, bob):
        pipe = await connect(alice, bob)
        assert pipe is not None, str(alice.last_report)
        async with pipe:
            assert pipe.plugin_name == "random_probe"
            await pipe.send(b"through")
            assert await pipe.recv(timeout=5) == b"through"


async def test_when_the_odds_are_bad_it_says_so_at_once(facts):
    facts(WHOLE, WHOLE)
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        assert "P = .0001" in cause(alice)
        assert "a relay is needed" in cause(alice)
        assert alice.last_report.seconds < 1.0
        assert alice.traversal.sprays.room("127.0.0.1", "lo IPv4") == 1400


async def test_a_retry_within_a_minute_is_refused(facts):
    facts(EPHEMERAL, EASY)
    async with nodes() as (alice, bob):
        await (await connect(alice, bob)).close()
        assert await connect(alice, bob) is None
        assert skipped(alice).detail.endswith("127.0.0.1, 0 s ago")
        assert alice.last_report.seconds < 1.0


async def test_the_responder_refuses_a_retry_too(facts):
    facts(EPHEMERAL, EASY)
    async with nodes(3) as (alice, carol, bob):
        await (await connect(alice, bob)).close()
        assert await connect(carol, bob) is None
        assert skipped(carol).detail.startswith("the peer: 127.0.0.1, ")


async def test_a_miss_is_told_with_the_numbers(facts, monkeypatch):
    facts(BLOCK, EASY)
    monkeypatch.setattr(Hunt, "_hear", lambda *_: None)
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        # Each socket writes twice.
        assert "50 x 63 probes, P = .9990, none came through (100 sent, 0 heard)" in cause(alice)
        assert alice.traversal.sprays.room("127.0.0.2", "lo IPv4") == 1350


async def test_a_hello_shows_the_way_when_every_probe_to_the_responder_is_lost(facts, monkeypatch):
    facts(EASY, EASY)
    real = hunt.check
    monkeypatch.setattr(
        hunt,
        "check",
        lambda data, key, role, plugin_id: (
            None if role == INITIATOR else real(data, key, role, plugin_id)
        ),
    )
    monkeypatch.setattr(strategy, "decide", lambda *_, **__: SprayPlan("few", 9, 9, 1.0))
    async with nodes() as (alice, bob):
        pipe = await connect(alice, bob)
        assert pipe is not None, str(alice.last_report)
        await pipe.close()


async def test_two_sprays_of_a_node_take_turns(facts):
    facts(EPHEMERAL, EASY)
    async with nodes(3) as (alice, bob, carol):
        alice.traversal.sprays.room = lambda *_: 1400  # all are on one address here
        for node in (bob, carol):
            node.traversal.sprays.room = lambda *_: 1400
        pipes = await asyncio.gather(connect(alice, bob), connect(alice, carol))
        assert {pipe.peer_id for pipe in pipes} == {bob.node_id, carol.node_id}
        for pipe in pipes:
            await pipe.close()


async def test_two_that_call_each_other_have_one_spray(facts):
    facts(EPHEMERAL, EASY)
    async with nodes() as (alice, bob):
        first, second = sorted([alice, bob], key=lambda node: node.node_id)
        pipe, none = await asyncio.gather(connect(first, second), connect(second, first))
        assert pipe is not None, str(first.last_report)
        assert none is None
        assert "the other call's spray goes first" in cause(second)
        assert (await second.accept()).peer_id == first.node_id
        await pipe.close()


async def test_too_few_descriptors_mean_fewer_sockets(facts, monkeypatch):
    facts(BLOCK, EASY)
    monkeypatch.setattr(
        descriptors, "limit", lambda: descriptors.in_use() + descriptors.RESERVE + 20
    )
    async with nodes() as (alice, bob):
        pipe = await connect(alice, bob)
        assert pipe is not None, str(alice.last_report)
        await pipe.close()


async def test_far_too_few_descriptors_are_told(facts, monkeypatch):
    facts(EASY, WHOLE)
    monkeypatch.setattr(
        descriptors, "limit", lambda: descriptors.in_use() + descriptors.RESERVE + 20
    )
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        assert "only 20 of 512 sockets" in cause(alice)
        assert "ulimit -n" in cause(alice)


async def test_settings_bound_both_sides(facts, monkeypatch):
    facts(EPHEMERAL, EASY)
    seen = []
    real = RandomProbe._carry_out

    async def spy(self, plan, *rest):
        seen.append(plan)
        await real(self, plan, *rest)

    monkeypatch.setattr(RandomProbe, "_carry_out", spy)
    async with nodes(plugin_conf={"random_probe": {"sockets": 300}}) as (alice, bob):
        await (await connect(alice, bob)).close()
    assert [plan.first for plan in seen] == [300, 300]
    assert seen[0].second == seen[1].second > 600


async def test_a_lying_answer_makes_nobody_send_more_than_he_may(facts, monkeypatch):
    """Bob claims that 1,400 packets are due where alice has said 20 sockets."""
    facts(BLOCK, EASY)
    monkeypatch.setattr(Hunt, "_hear", lambda *_: None)
    real = RandomProbe.send_signal_msg

    async def lie(self, msg):
        if isinstance(msg, SprayAnswer):
            msg.payload = msg.payload.model_copy(update={"first": 1400})
        await real(self, msg)

    monkeypatch.setattr(RandomProbe, "send_signal_msg", lie)
    async with nodes(plugin_conf={"random_probe": {"sockets": 20}}) as (alice, bob):
        assert await connect(alice, bob) is None
        assert "(40 sent, 0 heard)" in cause(alice)


def named(ip, port=4000, facts=EASY):
    return SideNumbers(facts=facts, ip=ip, port=port, sockets=512, packets=1400)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (named("10.99.98.97"), "only on a network this machine is part of"),
        (named("2001:db8::1"), "no address of this family"),
        (named("not an address"), "'not an address', which is no address of this family"),
        (named("224.0.0.1"), "an address that can't be dialled"),
        (named("127.0.0.1", 0), "named no port"),
        (named(""), "'', which is no address"),
    ],
)
async def test_a_peer_cannot_aim_it_anywhere(facts, monkeypatch, side, expected):
    facts(EASY, BLOCK)
    real = RandomProbe.send_signal_msg

    async def lie(self, msg):
        if isinstance(msg, SprayOffer):
            msg.payload = msg.payload.model_copy(update={"side": side})
        await real(self, msg)

    monkeypatch.setattr(RandomProbe, "send_signal_msg", lie)
    begun = []
    monkeypatch.setattr(RandomProbe, "_carry_out", lambda *_: begun.append(1))
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        assert expected in cause(alice)
        assert alice.last_report.seconds < 1.0
    assert not begun


async def test_a_range_without_ports_is_told(make_plugin):
    plugin = make_plugin(IP4)
    side = SideNumbers(facts=BLOCK, ip="127.0.0.1", port=4000, low=5000, high=2000)
    with pytest.raises(TraversalError, match="named no port"):
        plugin._target(side)


async def test_where_udp_is_blocked_the_peer_is_told(facts):
    facts(EASY, SideFacts(blocked=True))
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        assert "the peer: UDP does not get through" in cause(alice)
        assert alice.last_report.seconds < 1.0


async def test_one_address_has_one_spelling(make_plugin):
    plugin = make_plugin(IP6)
    side = named("2001:0DB8:0:0::0001")
    assert plugin._checked(side).ip == "2001:db8::1"
    with pytest.raises(TraversalError, match="no address of this family"):
        plugin._checked(named("fe80::1%eth0"))


@pytest.fixture
def make_plugin(monkeypatch):
    def make(af):
        plugin = RandomProbe()
        plugin.af = af
        monkeypatch.setattr(plugin, "refuses", lambda _: None)
        return plugin

    return make


async def test_a_peer_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(RandomProbe, "_respond", lambda *_: asyncio.sleep(0))
    async with nodes() as (alice, bob):
        alice.traversal.plugin_loaders["random_probe"].timeout = 0.4
        assert await connect(alice, bob) is None
        assert "the peer did not answer the offer within 0.4 s" in cause(alice)


async def test_what_is_no_probe_of_this_attempt_is_counted_and_dropped(facts, monkeypatch):
    facts(EASY, SideFacts(mapping="none", filtering="ei"))
    noise = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    real = RandomProbe.send_signal_msg

    async def disturb(self, msg):
        for data in (b"", b"x", b"\xff" * 28, bytes(1400)):
            noise.sendto(data, ("127.0.0.1", self._link.local[1]))
        await real(self, msg)

    monkeypatch.setattr(RandomProbe, "send_signal_msg", disturb)
    with noise:
        async with nodes() as (alice, bob):
            pipe = await connect(alice, bob)
            assert pipe is not None, str(alice.last_report)
            assert alice.stats["random_probe_strays"] + bob.stats["random_probe_strays"] >= 4
            await pipe.close()


async def test_punching_switched_off_means_not_installed():
    async with nodes(enable_punching=False) as (alice, _):
        assert "random_probe" not in alice.traversal.plugin_loaders


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (NatPair(), None),
        (NatPair(local=NATType.SYMMETRIC), None),
        (NatPair(local=NATType.PORT_RESTRICTED), None),
        (NatPair(NATType.SYMMETRIC, DeltaType.RANDOM, NATType.PORT_RESTRICTED), None),
        (NatPair(NATType.SYMMETRIC, DeltaType.RANDOM, NATType.SYMMETRIC, DeltaType.RANDOM), None),
        (NatPair(NATType.FULL_CONE, 0, NATType.PORT_RESTRICTED), "no port needs guessing"),
        (NatPair(NATType.BLOCKED, 0, NATType.SYMMETRIC), "this machine's UDP is blocked"),
        (NatPair(remote=NATType.BLOCKED), "the peer's UDP is blocked"),
    ],
)
def test_impossible(pair, expected):
    assert RandomProbe.impossible(pair) == expected


def test_descriptors(monkeypatch):
    monkeypatch.setattr(descriptors, "in_use", lambda: 100)
    monkeypatch.setattr(descriptors, "limit", lambda: None)
    assert descriptors.sockets_left(512) == (512, "")
    monkeypatch.setattr(descriptors, "limit", lambda: 1024)
    assert descriptors.sockets_left(512) == (512, "")
    monkeypatch.setattr(descriptors, "limit", lambda: 256)
    left, complaint = descriptors.sockets_left(512)
    assert left == 92
    assert "ulimit -n 676" in complaint
    monkeypatch.setattr(descriptors, "limit", lambda: 64)
    assert descriptors.sockets_left(512)[0] == 0


def test_descriptors_are_counted():
    before = descriptors.in_use()
    with socket.socket(), socket.socket():
        assert descriptors.in_use() == before + 2 or before == 0


async def test_a_stray_signal_is_refused():
    plugin = RandomProbe()
    plugin.initiator = False
    with pytest.raises(TraversalError, match="no offer"):
        await plugin.run(SprayAnswer())


class Purse:
    """Bytes for a few packets."""

    left = 28 * 30

    def take(self, size):
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size):
        self.left += size


async def test_what_strangers_may_cost_ends_a_spray(facts, monkeypatch):
    facts(BLOCK, EASY)
    monkeypatch.setattr(Hunt, "_hear", lambda *_: None)
    real = RandomProbe._prepare

    async def poor(self, peer_ip):
        self.budget.purse = Purse()
        return await real(self, peer_ip)

    monkeypatch.setattr(RandomProbe, "_prepare", poor)
    async with nodes() as (alice, bob):
        assert await connect(alice, bob) is None
        assert "(30 sent, 0 heard)" in cause(alice)
        assert "strangers have used up" in cause(alice)


@pytest.mark.parametrize("reason", ["too bad", SkipReason.TOO_SOON.value])
def test_a_peers_reason_is_no_word_to_a_terminal(reason):
    plugin = RandomProbe()
    plugin.manager = SimpleNamespace(sprays=SimpleNamespace(refusal=lambda *_: None))
    mine = SimpleNamespace(packets=1)
    error = str(plugin._none(mine, "192.0.2.1", f"{reason} (\x1b[2J\nwon)"))
    assert error.isprintable()
    assert error.endswith("[2Jwon)")

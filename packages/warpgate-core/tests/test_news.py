"""What a call makes of what it learns meanwhile: of its own NAT, and of the peer's.

Time is virtual here (see conftest); the plans are real ones.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.net.constants import IP4, DeltaType, NATType
from warpgate.traversal.news import News
from warpgate.traversal.plan import (
    MAX_CANDIDATES,
    STAGGER_PUBLIC_S,
    PlanOptions,
    StrategyInfo,
    plan,
)
from warpgate.traversal.prepare import PREPARE_S
from warpgate.traversal.race import Race
from warpgate.traversal.report import AttemptOutcome

HERE, THERE = "192.168.1.2", "10.9.9.9"
OUTSIDE = {HERE: "198.51.100.1", THERE: "198.51.100.2"}
ME, PEER = Identity.generate(), Identity.generate()
HARD = {"nat": NATType.SYMMETRIC, "delta": DeltaType.RANDOM}


def no_guesses(pair):
    return "a port must be guessed" if pair.needs_guesses else None


def nobody_in(pair):
    return "the peer lets nobody in" if pair.remote_closed else None


DIRECT = StrategyInfo("direct_connect", "direct", "tcp", impossible=nobody_in)
PUNCH = StrategyInfo("udp_punch", "spray", "udp", impossible=no_guesses)
TURN = StrategyInfo("turn", "relay", "udp")


class FakeHandshake:
    def __init__(self, attempt):
        self.attempt, self.state = attempt, "proven"

    def nominate(self):
        self.state = "nominated"
        self.attempt.winner = SimpleNamespace(abort=lambda: None)
        self.attempt.end("won")

    def cancel(self):
        self.state = "failed"


class FakeAttempt:
    """Plays what its strategy's script says: ``(seconds, what, …)``."""

    proving, cleanup, heard, met = False, None, 0, False
    on_candidate = on_end = on_news = winner = skip = None

    def __init__(self, manager, combination, peer):
        self.manager, self.combination, self.peer = manager, combination, peer
        path = combination.path
        self.strategy = combination.strategy
        self.outcome = AttemptOutcome(
            combination.strategy, combination.phase, path.af, path.route_type, "", path.ip, ""
        )

    def start(self):
        loop = asyncio.get_running_loop()
        self.manager.started.append(
            (self.strategy, self.combination.path.ip, round(loop.time(), 6))
        )
        for after_s, what, *rest in self.manager.script.get(self.strategy, ()):
            loop.call_later(after_s, getattr(self, what), *rest)

    def prove(self):
        self.on_candidate(self, FakeHandshake(self))

    def hear(self, peer):
        if self.outcome.status == "running":
            self.peer = peer
            self.heard += 1
            if self.on_news is not None:
                self.on_news()

    def lose(self, cause, status="lost"):
        self.outcome.cause = self.outcome.cause or cause
        self.end(status)

    def end(self, status):
        if self.outcome.status == "running":
            self.outcome.status = status
            if self.on_end is not None:
                self.on_end(self)


class FakeManager:
    """A node behind a NAT, with its manager."""

    def __init__(self, make_address, make_nic, strategies, script, **nat):
        self.strategies, self.script = strategies, script
        self.make_address, self.nics = make_address, [make_nic("eth0", 1, f"{HERE}/24")]
        self.callbacks, self.started, self.attempts, self.prepared = [], [], [], []
        self.stats = Counters()
        self.plugin_loaders = {"turn": SimpleNamespace(factory=self)}
        self.node = SimpleNamespace(net_report=None, network=self, peer_address=None)
        self.pending = True
        self.sign(**nat)

    def sign(self, **nat):
        ext = OUTSIDE if nat else None
        self.node.peer_address = self.make_address(
            [HERE], machine=b"a", identity=ME, ext=ext, sequence=len(self.callbacks) + 1, **nat
        )

    def on_change(self, callback):
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def know(self, **nat):
        """Let the node learn what its NAT is."""
        self.sign(**nat)
        for callback in list(self.callbacks):
            callback()

    def prepare(self, af, *, udp_blocked):
        self.prepared.append((af, asyncio.get_running_loop().time()))

    def plan_for(self, peer, options):
        return plan(self.node.peer_address, peer, self.nics, self.strategies, options)

    def create_attempt(self, combination, peer):
        self.attempts.append(FakeAttempt(self, combination, peer))
        return self.attempts[-1]

    async def settle(self, attempts, grace_s):
        await asyncio.sleep(0)


@pytest.fixture
def peer(make_address):
    """Return a function that makes the peer's address: ``peer(sequence, nat=…, delta=…)``."""

    def make(sequence=1, **nat):
        ext = OUTSIDE if nat else None
        return make_address([THERE], machine=b"b", identity=PEER, ext=ext, sequence=sequence, **nat)

    return make


@pytest.fixture
def call(virtual, make_address, make_nic):
    """Return a function that makes a call and returns the manager and the race as they were left."""

    def run(
        dest, script, strategies=(DIRECT, PUNCH, TURN), during=(), options=None, stun=True, **nat
    ):
        async def main():
            manager = FakeManager(make_address, make_nic, strategies, script, **nat)
            manager.pending = stun and not nat
            chosen = options or PlanOptions()
            race = Race(manager, dest, manager.plan_for(dest, chosen))
            for after_s, what in during:
                race.loop.call_later(after_s, what, manager)
            news = News(race, chosen)
            try:
                news.begin()
                await race.run(10)
            finally:
                await news.close()
            assert manager.callbacks == []
            await asyncio.sleep(10)  # whatever is still to come
            return manager, race

        return virtual(main())

    return run


def strategies_of(manager):
    return [strategy for strategy, _, _ in manager.started]


def test_who_knows_both_nats_asks_nobody(call, peer):
    manager, _ = call(peer(nat=NATType.FULL_CONE), {}, nat=NATType.FULL_CONE)
    assert "get_addr" not in strategies_of(manager)
    assert manager.prepared == []


@pytest.mark.parametrize("stun", [True, False])
def test_this_side_counts_only_while_its_report_is_on_its_way(call, peer, stun):
    manager, _ = call(peer(nat=NATType.FULL_CONE), {}, stun=stun)
    assert ("get_addr" in strategies_of(manager)) == stun
    assert bool(manager.prepared) == stun


def test_the_peer_counts_while_its_nat_is_not_known(call, peer):
    manager, _ = call(peer(), {}, stun=False, nat=NATType.FULL_CONE)
    assert "get_addr" in strategies_of(manager)


def test_the_answer_ends_what_can_not_work_and_the_relay_begins_at_once(call, peer):
    answer = peer(2, **HARD)
    script = {"get_addr": [(0.3, "hear", answer)], "turn": [(0.1, "prove")]}
    manager, race = call(peer(), script, **HARD)
    assert race.winner.strategy == "turn"
    assert manager.started[-1] == ("turn", OUTSIDE[THERE], 0.3)
    assert race.winner.peer is answer  # so its permission is for the right address
    causes = {o.strategy: o.cause for o in race.outcomes if o.status == "failed"}
    assert "a port must be guessed" in causes["udp_punch"]


def test_so_does_this_sides_own_report(call, peer):
    def learn(manager):
        manager.know(**HARD)

    script = {"direct_connect": [(0.1, "end", "failed")], "turn": [(0.1, "prove")]}
    known = peer(nat=NATType.PORT_RESTRICTED)
    manager, race = call(known, script, during=[(0.4, learn)])
    assert (race.winner.strategy, manager.started[-1][2]) == ("turn", 0.4)


def test_a_relay_is_prepared_soon_when_no_pipe_is_proven(call, peer):
    manager, _ = call(peer(), {"udp_punch": [(0.5, "prove")]})
    assert manager.prepared == [(IP4, PREPARE_S)]


@pytest.mark.parametrize("soon_s", [0.05, PREPARE_S - 0.01])
def test_and_not_when_the_call_is_over_or_as_good_as_that(call, peer, soon_s):
    # The second one is held for the direct attempt, and proven when the time has come.
    manager, race = call(peer(), {"udp_punch": [(soon_s, "prove")]})
    assert race.winner.strategy == "udp_punch"
    assert manager.prepared == []


def test_what_has_become_possible_is_tried(call, peer):
    answer = peer(2, nat=NATType.OPEN, delta=DeltaType.NOT_APPLICABLE)
    script = {"get_addr": [(0.3, "hear", answer)]}
    manager, race = call(peer(), script, (DIRECT, PUNCH), nat=NATType.FULL_CONE)
    dials = [(ip, at) for name, ip, at in manager.started if name == "direct_connect"]
    assert dials == [(THERE, 0), (OUTSIDE[THERE], 0.3)]
    # A punch asks the peer itself, so one will do.
    assert strategies_of(manager).count("udp_punch") == 1
    assert len(race.outcomes) == 3


def test_what_was_left_out_and_is_tried_now_is_no_skip_any_more(call, peer):
    hard, easy = peer(1, **HARD), peer(2, nat=NATType.FULL_CONE)
    script = {"direct_connect": [(0.3, "hear", easy)], "udp_punch": [(0.1, "prove")]}
    _, race = call(hard, script, (DIRECT, PUNCH), **HARD)
    assert race.winner.strategy == "udp_punch"
    assert "udp_punch" not in {s.strategy for s in race.skips if "guessed" in s.detail}


def test_a_peer_that_moves_and_moves_is_not_dialled_for_ever(call, make_address):
    def at(number):
        ext = {THERE: f"198.51.100.{number}"}
        return make_address([THERE], machine=b"b", identity=PEER, ext=ext, sequence=number)

    moves = [(0.1 + number / 100, "hear", at(number)) for number in range(2, 40)]
    manager, _ = call(at(1), {"get_addr": moves}, (DIRECT,), nat=NATType.OPEN)
    assert strategies_of(manager).count("direct_connect") == MAX_CANDIDATES


def test_what_waits_for_its_turn_goes_on_waiting(call, make_address):
    dest = make_address(["198.51.100.7"], ["198.51.100.8"], machine=b"b", identity=PEER)

    def learn(manager):
        manager.know(nat=NATType.OPEN)

    manager, _ = call(dest, {}, (DIRECT,), during=[(0.1, learn)])
    dials = [at for name, _, at in manager.started if name == "direct_connect"]
    assert dials == [0, STAGGER_PUBLIC_S]


def test_a_call_that_failed_prepares_nothing(call, peer):
    script = {name: [(0.05, "end", "failed")] for name in ("direct_connect", "udp_punch", "turn")}
    manager, race = call(peer(), script)
    assert race.winner is None
    assert manager.prepared == []


def test_who_answers_the_question_is_not_silent(call, peer):
    failed = {"direct_connect": [(0.05, "end", "failed")], "udp_punch": [(0.05, "end", "failed")]}
    heard = []
    for script in ({}, {"get_addr": [(0.01, "hear", peer())]}):
        _, race = call(peer(), {**failed, **script}, (DIRECT, PUNCH))
        heard.append(race.heard)
    assert heard == [False, True]


def test_the_question_ends_with_the_call(call, peer):
    manager, _ = call(peer(), {"direct_connect": [(0.1, "prove")]})
    (asking,) = [a for a in manager.attempts if a.strategy == "get_addr"]
    assert asking.outcome.cause == "the call is over"
    assert asking.on_news is None

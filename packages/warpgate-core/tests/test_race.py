"""Running a plan: when each combination starts, which pipe wins, what happens to the losers.

Time is virtual here (see conftest).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from warpgate.errors import PluginDefinitionError
from warpgate.net.constants import IP4, IP6, NIC_BIND
from warpgate.traversal.paths import Path
from warpgate.traversal.plan import GROUPS, Combination, Plan
from warpgate.traversal.race import PREFERENCE_S, Race
from warpgate.traversal.report import AttemptOutcome, Skip, SkipReason

OPENS_S = {"direct": 0.0, "punch": 0.05, "spray": 0.3, "relay": 3.0}
FOLLOWS = {"spray": "punch"}


class FakeHandshake:
    def __init__(self, attempt):
        self.attempt, self.state = attempt, "proven"

    def nominate(self):
        if self.state == "proven":
            self.state = "nominated"
            self.attempt.end("won")

    def cancel(self):
        self.state = "failed"


class FakeAttempt:
    """Plays what its strategy's script says."""

    def __init__(self, manager, combination):
        self.manager, self.combination = manager, combination
        self.outcome = AttemptOutcome(
            combination.strategy, combination.phase, IP4, NIC_BIND, "", "", ""
        )
        self.winner = self.skip = None
        self.proving = False
        self.handshakes = []
        self.cleanup = None
        self.on_candidate = self.on_end = None

    def start(self):
        loop = asyncio.get_running_loop()
        self.manager.started.append((self.combination.strategy, round(loop.time(), 6)))
        for after_s, what in self.manager.script.get(self.combination.strategy, ()):
            loop.call_later(after_s, getattr(self, what))

    def prove(self):
        if self.outcome.status == "running":
            self.handshakes.append(FakeHandshake(self))
            self.on_candidate(self, self.handshakes[-1])

    def break_pipe(self):
        self.handshakes[-1].state = "failed"

    def fail(self):
        self.end("failed")

    def lose(self, cause, status="lost"):
        self.outcome.cause = cause
        self.end(status)

    def end(self, status):
        if self.outcome.status != "running":
            return
        self.outcome.status = status
        if status == "won":
            self.winner = FakePipe()
        self.on_end(self)


class FakePipe:
    aborted = False

    def abort(self):
        self.aborted = True


class FakeManager:
    def __init__(self, script):
        self.script = script
        self.started = []
        self.settled = []
        self.attempts = []

    def create_attempt(self, combination, peer):
        if self.script.get(combination.strategy) == "removed":
            return None
        if self.script.get(combination.strategy) == "broken":
            raise PluginDefinitionError("no instance")
        self.attempts.append(FakeAttempt(self, combination))
        return self.attempts[-1]

    async def settle(self, attempts, grace_s):
        self.settled.append([attempt.combination.strategy for attempt in attempts])
        await asyncio.sleep(0)


def combination(strategy, group="direct", delay_s=0.0):
    path = Path(IP4, NIC_BIND, 0, 0, "192.0.2.1", 4000, 1, True, False)
    return Combination(strategy, group, group, path, delay_s)


def a_race(script, *combinations, order=GROUPS, opens_s=OPENS_S):
    manager = FakeManager(script)
    ranked = sorted(combinations, key=lambda c: order.index(c.group))
    return Race(manager, None, Plan(tuple(ranked), (), opens_s, FOLLOWS, order)), manager


CASCADE = (
    combination("d"),
    combination("p", "punch"),
    combination("s", "spray"),
    combination("late", "late"),
    combination("r", "relay"),
)


def test_groups_open_after_their_head_starts_when_nothing_ends(virtual):
    async def main():
        race, manager = a_race({}, *CASCADE)
        assert await race.run(10) is None
        return manager.started

    assert virtual(main()) == [("d", 0), ("p", 0.05), ("s", 0.35), ("r", 3.0)]


def test_a_group_opens_at_once_when_those_before_it_have_ended(virtual):
    async def main():
        script = {"d": [(0.01, "fail")], "p": [(0.1, "fail")], "s": [(0.2, "fail")]}
        race, manager = a_race(script, *CASCADE)
        await race.run(10)
        return manager.started

    # The spray's 300 ms count from when punching began; random_probe waits for all punching.
    assert virtual(main()) == [("d", 0), ("p", 0.01), ("s", 0.11), ("late", 0.31), ("r", 3.0)]


def test_the_relay_starts_at_once_when_nothing_cheaper_is_left(virtual):
    async def main():
        race, manager = a_race({"d": [(0.2, "fail")]}, combination("d"), combination("r", "relay"))
        await race.run(10)
        return manager.started

    assert virtual(main()) == [("d", 0), ("r", 0.2)]


def test_candidates_of_one_strategy_are_staggered_each_strategy_by_itself(virtual):
    async def main():
        race, manager = a_race(
            {},
            *(combination("d", delay_s=delay) for delay in (0, 0.03, 0.28)),
            *(combination("e", delay_s=delay) for delay in (0, 0.03)),
        )
        await race.run(1)
        return manager.started

    assert virtual(main()) == [("d", 0), ("e", 0), ("d", 0.03), ("e", 0.03), ("d", 0.28)]


def test_the_next_candidate_starts_when_those_before_it_have_ended(virtual):
    async def main():
        race, manager = a_race(
            {"d": [(0.01, "fail")]}, *(combination("d", delay_s=d) for d in (0, 0.25, 0.5))
        )
        await race.run(1)
        return manager.started

    assert virtual(main()) == [("d", 0), ("d", 0.01), ("d", 0.02)]


def test_it_ends_when_nothing_is_left_to_try(virtual):
    async def main():
        race, _ = a_race({"d": [(0.1, "fail")]}, combination("d"))
        assert await race.run(10) is None
        return asyncio.get_running_loop().time(), race.skips

    now, skips = virtual(main())
    assert now == pytest.approx(0.1)
    assert skips == []


def test_it_ends_at_its_time_out_and_says_so(virtual):
    async def main():
        race, manager = a_race({}, *CASCADE)
        assert await race.run(0.2) is None
        causes = {(a.outcome.status, a.outcome.cause) for a in manager.attempts}
        return asyncio.get_running_loop().time(), causes, [s.reason for s in race.skips]

    now, causes, reasons = virtual(main())
    assert now == pytest.approx(0.2)
    assert causes == {("timeout", "the call's 0.2 s were up")}
    assert reasons == [SkipReason.NO_TIME] * 3


@pytest.mark.parametrize(
    ("left_s", "limit_s", "text"), [(-0.01, None, "0 s"), (-0.01, 2, "2 s"), (0.1234, 0.2, "0.2 s")]
)
def test_the_report_names_the_whole_calls_time(virtual, left_s, limit_s, text):
    async def main():
        race, manager = a_race({}, combination("d"))
        await race.run(left_s, limit_s)
        return [attempt.outcome.cause for attempt in manager.attempts]

    assert virtual(main()) == [f"the call's {text} were up"]


def test_without_combinations_it_ends_at_once(virtual):
    async def main():
        race, _ = a_race({})
        assert await race.run(10) is None
        return asyncio.get_running_loop().time()

    assert virtual(main()) == 0


def test_the_first_proven_pipe_wins_and_the_losers_are_settled(virtual):
    async def main():
        script = {"d": [(0.5, "prove")], "e": [(0.1, "prove")]}
        race, manager = a_race(
            script, combination("d"), combination("e"), combination("r", "relay")
        )
        winner = await race.run(10)
        return winner, manager, [s.reason for s in race.skips], race.outcomes

    winner, manager, reasons, outcomes = virtual(main())
    assert winner.combination.strategy == "e"
    assert [o.status for o in outcomes] == ["lost", "won"]
    assert outcomes[0].cause == "another attempt won"
    assert manager.settled == [["d"]]
    assert reasons == [SkipReason.NOT_NEEDED]


@pytest.mark.parametrize(
    ("direct_at", "winner"),
    [(0.1 + PREFERENCE_S - 0.001, "d"), (0.1 + PREFERENCE_S + 0.001, "p")],
)
def test_an_earlier_phase_beats_a_later_one_within_20_ms(virtual, direct_at, winner):
    async def main():
        script = {"d": [(direct_at, "prove")], "p": [(0.05, "prove")]}
        race, _ = a_race(script, combination("d"), combination("p", "punch"))
        return (await race.run(10)).combination.strategy

    assert virtual(main()) == winner


def test_nobody_waits_for_an_earlier_phase_that_has_ended(virtual):
    async def main():
        script = {"d": [(0.105, "fail")], "p": [(0.05, "prove")]}
        race, _ = a_race(script, combination("d"), combination("p", "punch"))
        await race.run(10)
        return asyncio.get_running_loop().time()

    assert virtual(main()) == pytest.approx(0.105)


def test_a_better_pipe_that_breaks_while_held_gives_way(virtual):
    async def main():
        script = {
            "d": [(0.4, "prove"), (0.405, "break_pipe")],
            "p": [(0.36, "prove")],
            "s": [(0.04, "prove")],
        }
        combinations = (combination("d"), combination("p", "punch"), combination("s", "spray"))
        race, _ = a_race(script, *combinations, opens_s={**OPENS_S, "punch": 0.0})
        return (await race.run(10)).combination.strategy

    assert virtual(main()) == "p"


def test_pipes_that_broke_do_not_count_as_proven(virtual):
    async def main():
        # p's first pipe is held for d and breaks; s's pipe must still be held for p's second one.
        script = {
            "d": [(0.02, "fail")],
            "p": [(0.01, "prove"), (0.015, "break_pipe"), (0.062, "prove")],
            "s": [(0.05, "prove")],
        }
        opens_s = {"direct": 0.0, "punch": 0.0, "spray": 0.0}
        combinations = (combination("d"), combination("p", "punch"), combination("s", "spray"))
        race, _ = a_race(script, *combinations, opens_s=opens_s)
        return (await race.run(10)).combination.strategy

    assert virtual(main()) == "p"


def test_preferring_relays_turns_the_order_round(virtual):
    async def main():
        order = ("relay", *GROUPS[:-1])
        opens_s = {"relay": 0.0, "direct": 3.0, "punch": 3.05, "spray": 0.3}
        script = {"r": [(3.11, "prove")], "d": [(0.1, "prove")]}
        combinations = (combination("d"), combination("r", "relay"))
        race, manager = a_race(script, *combinations, order=order, opens_s=opens_s)
        return (await race.run(10)).combination.strategy, manager.started

    assert virtual(main()) == ("r", [("r", 0), ("d", 3.0)])


def test_a_strategy_that_was_removed_meanwhile_is_a_skip(virtual):
    async def main():
        race, _ = a_race({"d": "removed"}, combination("d"))
        assert await race.run(10) is None
        return [s.reason for s in race.skips]

    assert virtual(main()) == [SkipReason.REMOVED]


def test_a_strategy_that_cannot_be_built_is_a_failed_attempt(virtual, caplog):
    async def main():
        race, _ = a_race({"d": "broken", "e": [(0.1, "prove")]}, combination("d"), combination("e"))
        assert (await race.run(10)).combination.strategy == "e"
        return race.outcomes[0]

    outcome = virtual(main())
    assert (outcome.strategy, outcome.status, outcome.cause) == ("d", "failed", "no instance")


def test_a_cancelled_race_loses_its_attempts_and_closes_the_winners_pipe(virtual):
    async def main():
        race, manager = a_race({"d": [(0.1, "prove")]}, combination("d"), combination("e"))
        holding = asyncio.Event()

        async def settle(attempts, grace_s):
            holding.set()
            await asyncio.sleep(0.01)

        manager.settle = settle
        task = asyncio.create_task(race.run(10))
        await holding.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return manager.attempts

    winner, loser = virtual(main())
    assert winner.winner.aborted
    assert loser.outcome.status == "lost"


def test_a_race_cancelled_before_anything_is_proven_says_so(virtual):
    async def main():
        race, manager = a_race({}, combination("d"))
        task = asyncio.create_task(race.run(10))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return manager.attempts[0].outcome.cause

    assert virtual(main()) == "the call was cancelled"


def test_what_worked_last_time_starts_at_once(virtual):
    async def main():
        again = replace(combination("s", "spray", delay_s=0.25), at_once=True)
        race, manager = a_race({}, combination("d"), combination("p", "punch"), again)
        await race.run(1)
        return manager.started

    assert virtual(main()) == [("s", 0), ("d", 0), ("p", 0.05)]


def test_a_group_may_need_only_some_of_those_before_it(virtual):
    async def main():
        script = {"p": [(0.1, "fail")], "s": [(0.2, "fail")]}
        race, manager = a_race(script, *CASCADE)
        race.plan = replace(race.plan, needs={"late": ("punch", "spray")})
        await race.run(10)
        return manager.started

    # The direct attempt never ends: the late group does not wait for it, the relay does.
    started = virtual(main())
    assert started == [("d", 0), ("p", 0.05), ("s", 0.35), ("late", 0.55), ("r", 3.0)]


def test_nobody_waits_for_what_is_unlikely(virtual):
    async def main():
        hopeless = replace(combination("d"), unlikely=True)
        race, manager = a_race({}, hopeless, combination("r", "relay"))
        await race.run(10)
        return manager.started

    assert virtual(main()) == [("d", 0), ("r", 0)]


def test_only_one_pipe_is_nominated_though_it_takes_effect_later(virtual, monkeypatch):
    """Within a hello's own event a nomination ends only when the event has been handled."""

    def late(self):
        self.state = "nominating"
        nominated.append(self.attempt.combination.strategy)
        asyncio.get_running_loop().call_soon(self.attempt.end, "won")

    nominated = []
    monkeypatch.setattr(FakeHandshake, "nominate", late)

    async def main():
        script = {"d": [(0.015, "prove")], "s": [(0.01, "prove")]}
        race, _ = a_race(script, combination("d"), replace(combination("s", "spray"), at_once=True))
        await race.run(10)
        return nominated

    assert virtual(main()) == ["d"]


def test_when_a_nomination_fails_the_next_proven_pipe_is_nominated(virtual, monkeypatch):
    original = FakeHandshake.nominate

    def expires(self):
        if self.attempt.combination.strategy == "d":
            self.state = "nominating"
            asyncio.get_running_loop().call_soon(setattr, self, "state", "failed")
        else:
            original(self)

    monkeypatch.setattr(FakeHandshake, "nominate", expires)

    async def main():
        script = {"d": [(0.015, "prove"), (0.016, "fail")], "s": [(0.01, "prove")]}
        race, _ = a_race(script, combination("d"), replace(combination("s", "spray"), at_once=True))
        winner = await race.run(10)
        return winner.combination.strategy

    assert virtual(main()) == "s"


def newer_plan(*combinations, impossible=()):
    skips = [Skip(name, SkipReason.IMPOSSIBLE, IP4, NIC_BIND, "no way") for name in impossible]
    return Plan(combinations, tuple(skips))


def test_newer_facts_end_and_skip_what_they_rule_out(virtual):
    async def main():
        race, manager = a_race({}, *CASCADE)
        loop = asyncio.get_running_loop()
        others = [c for c in CASCADE if c.strategy not in ("d", "p", "late")]
        newer = newer_plan(*others, impossible=["d", "p", "late"])
        loop.call_later(0.2, race.rule_out, newer)
        await race.run(10)
        ended = {o.strategy: (o.status, o.cause) for o in race.outcomes}
        return manager.started, ended, [s.strategy for s in race.skips]

    started, ended, skips = virtual(main())
    assert started == [("d", 0), ("p", 0.05), ("s", 0.2), ("r", 3.0)]
    assert ended["d"][0] == ended["p"][0] == "failed"
    assert "no way" in ended["d"][1]
    assert skips == ["late"]


def test_newer_facts_leave_alone_what_one_path_still_allows(virtual):
    async def main():
        race, _ = a_race({"d": [(0.3, "prove")]}, combination("d"))
        newer = newer_plan(combination("d"), impossible=["d"])
        asyncio.get_running_loop().call_later(0.2, race.rule_out, newer)
        winner = await race.run(10)
        return winner.combination.strategy

    assert virtual(main()) == "d"


def test_newer_facts_make_something_unlikely_so_that_nobody_waits(virtual):
    async def main():
        race, manager = a_race({}, combination("d"), combination("r", "relay"))
        newer = newer_plan(replace(combination("d"), unlikely=True), combination("r", "relay"))
        asyncio.get_running_loop().call_later(0.2, race.rule_out, newer)
        await race.run(10)
        return manager.started

    assert virtual(main()) == [("d", 0), ("r", 0.2)]


def test_nobody_waits_for_a_proof_that_newer_facts_speak_against(virtual):
    async def main():
        race, manager = a_race({"d": [(0.5, "prove")]}, combination("d"), combination("r", "relay"))
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, lambda: setattr(manager.attempts[0], "proving", True))
        newer = newer_plan(combination("r", "relay"), impossible=["d"])
        loop.call_later(0.2, race.rule_out, newer)
        winner = await race.run(10)
        return winner.combination.strategy, manager.started

    assert virtual(main()) == ("d", [("d", 0), ("r", 0.2)])


def test_a_newer_plan_says_why_what_waited_is_left_out(virtual):
    async def main():
        race, _ = a_race({}, *CASCADE)
        skip = Skip("late", SkipReason.OTHER_NETWORK, IP4, NIC_BIND)
        newer = Plan((combination("d"), combination("r", "relay")), (skip,))
        race.replan(newer, None)
        await race.run(0)
        return race.skips[:1], skip

    found, skip = virtual(main())
    assert found == [skip]


@pytest.mark.parametrize(("limit", "relays"), [(0, 0), (1, 1), (3, 2)])
def test_newer_facts_bring_no_more_relays_than_the_call_may_try(virtual, limit, relays):
    async def main():
        race, manager = a_race({}, combination("d"))
        first = combination("r", "relay")
        second = replace(first, path=replace(first.path, af=IP6, ip="2001:db8::1"))
        found = (combination("d"), first, second)
        newer = Plan(found, (), OPENS_S, FOLLOWS, GROUPS, turn_limit=limit)
        asyncio.get_running_loop().call_later(0.2, race.replan, newer, None)
        await race.run(10)
        return [strategy for strategy, _ in manager.started]

    assert virtual(main()).count("r") == relays

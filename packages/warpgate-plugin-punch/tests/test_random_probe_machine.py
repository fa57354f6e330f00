"""Who does what in a spray, how much of it and how fast; and how often it works, simulated."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.random_probe.machine import (
    BURST,
    COUNTED,
    FEW,
    Pacer,
    aim,
    decide,
    guessed_ports,
    list_ports,
    ports_of,
)
from warpgate_plugin_punch.random_probe.messages import SideNumbers


def hard(kind="random", low=1024, high=65535, *, step=0, counter=None, sockets=512, packets=1400):
    facts = SideFacts(mapping="apd", filtering="apd", kind=kind, step=step, low=low, high=high)
    low, high, stride = ports_of(facts, counter)
    return SideNumbers(
        facts=facts, low=low, high=high, stride=stride, sockets=sockets, packets=packets
    )


def easy(filtering="apd", mapping="ei", packets=1400):
    facts = SideFacts(mapping=mapping, filtering=filtering, kind="preserving")
    return SideNumbers(facts=facts, port=4000, sockets=512, packets=packets)


def block(low=40960, size=512):
    return hard("block", low, low + size - 1)


def counting(step=1, counter=30000):
    return hard("sequential", 0, 0, step=step, counter=counter)


# Who does what.


def test_in_the_whole_range_512_by_900_whoever_called():
    plan = decide(hard(), easy())
    assert (plan.mode, plan.first, plan.second) == ("guess", 512, 900)
    assert plan.odds > 0.999
    assert str(plan) == "512 x 900 probes, P = .9993"
    turned = decide(easy(), hard())
    assert (turned.first, turned.second) == (900, 512)
    assert (turned.packets(True), turned.packets(False)) == (900, 512)


@pytest.mark.parametrize(
    ("side", "at_most"),
    [(hard(low=32768, high=60999), 880), (block(), 115), (block(size=1024), 165), (counting(), 40)],
)
def test_where_the_ports_are_known_it_takes_fewer(side, at_most):
    plan = decide(side, easy())
    assert plan.mode == "guess"
    assert plan.odds >= 0.999
    assert plan.first + plan.second <= at_most


@pytest.mark.parametrize("filtering", ["ei", "ad"])
def test_who_lets_any_port_in_needs_no_guess(filtering):
    assert decide(hard(), easy(filtering)).mode == "few"
    assert decide(easy(filtering), hard()).mode == "few"


def test_what_is_not_known_counts_as_easy_to_reach_and_strict():
    assert decide(SideNumbers(), SideNumbers()).mode == "few"
    assert decide(hard(), SideNumbers(packets=1400)).mode == "guess"


@pytest.mark.parametrize(
    ("one", "other", "flows"),
    [
        (block(), block(), (512, 512)),
        (block(size=256), block(), (256, 512)),
        (counting(), block(), (COUNTED, 512)),
        (counting(), counting(-2), (COUNTED, COUNTED)),
    ],
)
def test_two_hard_sides_with_few_ports_fill_them(one, other, flows):
    plan = decide(one, other)
    assert plan.mode == "sweep"
    assert (plan.first, plan.second) == flows
    assert plan.odds > 0.96


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (hard(), hard()),
        (hard(), counting()),
        (hard(), block()),
        (block(size=1024), block(size=1024)),
        (hard(sockets=20), easy()),
        (hard(packets=0), easy()),
        (hard(), easy(packets=50)),
    ],
)
def test_bad_odds_are_told_and_not_tried(one, other):
    plan = decide(one, other)
    assert plan.mode == "none"
    assert plan.odds < 0.5
    assert (plan.first, plan.second) == (0, 0)


def test_fewer_sockets_are_made_up_for_by_guesses():
    plan = decide(hard(sockets=300), easy())
    assert plan.first == 300
    assert 1300 < plan.second <= 1400
    assert plan.odds > 0.99


@given(
    st.builds(
        SideNumbers,
        facts=st.builds(
            SideFacts,
            mapping=st.sampled_from(["", "none", "ei", "ad", "apd"]),
            filtering=st.sampled_from(["", "ei", "ad", "apd"]),
            kind=st.sampled_from(["", "preserving", "sequential", "block", "random"]),
            low=st.integers(0, 65535),
            high=st.integers(0, 65535),
        ),
        low=st.integers(0, 65535),
        high=st.integers(0, 65535),
        stride=st.integers(1, 128),
        sockets=st.integers(0, 1024),
        packets=st.integers(0, 1400),
    ),
    st.integers(0, 1024),
    st.integers(0, 1400),
)
def test_whatever_a_peer_says_the_limits_hold(side, sockets, packets):
    me = easy(packets=packets)
    plan = decide(side, me)
    assert plan.second <= max(packets, FEW)
    assert all(1024 <= port <= 65535 for port in guessed_ports(side, 1400, random.Random(1)))
    facts = SideFacts(mapping="apd", filtering="apd")
    other = SideNumbers(facts=facts, low=1024, high=65535, sockets=sockets, packets=packets)
    plan = decide(side, other)
    assert plan.second <= max(min(512, sockets, packets), FEW)


# Ports.


def test_ports_of_a_nat_that_counts():
    facts = SideFacts(mapping="apd", kind="sequential", step=2)
    assert ports_of(facts, 30000) == (30002, 30000 + 2 * COUNTED, 2)
    down = SideFacts(mapping="apd", kind="sequential", step=-1)
    assert ports_of(down, 30000) == (30000 - COUNTED, 29999, 1)
    assert ports_of(facts, 65500) == (1024, 65535, 1)  # it wraps around where nobody knows
    assert ports_of(facts, None) == (1024, 65535, 1)


def test_ports_of_a_block_and_of_none():
    assert ports_of(SideFacts(mapping="apd", kind="block", low=2048, high=2559), None)[:2] == (
        2048,
        2559,
    )
    assert ports_of(SideFacts(mapping="apd"), None) == (1024, 65535, 1)
    assert ports_of(SideFacts(mapping="apd", kind="block", low=53, high=600), None)[0] == 1024


def test_guesses_are_in_the_range_and_none_twice():
    side = block()
    ports = guessed_ports(side, 300, random.Random(3))
    assert len(set(ports)) == len(ports) == 300
    assert set(ports) <= set(range(40960, 41472))
    assert ports != sorted(ports)
    assert sorted(guessed_ports(side, 5000, random.Random(3))) == list(range(40960, 41472))
    assert guessed_ports(side, 20, random.Random(4)) != guessed_ports(side, 20, random.Random(5))


def test_the_aim_is_no_port_that_is_known_to_be_taken():
    taken = set(range(2048, 2548))
    found = {aim(2048, 2559, 1, taken, random.Random(seed)) for seed in range(300)}
    assert len(found) > 5
    assert sum(port in taken for port in found) <= 1  # it may happen, and must not hang
    assert (
        aim(30002, 30128, 2, set(), random.Random(1)) == 30066
    )  # what is counted passes the middle


# Time.


def test_never_more_than_1000_in_any_second():
    pacer = Pacer(0.0)
    sent = []
    now = 0.0
    rng = random.Random(1)
    while now < 5.0:
        sent += [now] * pacer.take(now)
        now += rng.choice([0.001, 0.008, 0.05, 0.6])
    steady = Pacer(10.0)
    for tick in range(2500):
        sent += [10.0 + tick * 0.001] * steady.take(10.0 + tick * 0.001)
    for start in set(sent):
        assert sum(start <= at < start + 1.0 for at in sent) <= 1000


def test_a_steady_tick_reaches_the_rate_and_a_late_one_makes_no_burst():
    pacer = Pacer(0.0)
    assert sum(pacer.take(tick * 0.008) for tick in range(1, 126)) > 960
    assert pacer.take(100.0) == BURST


# How often it works.


def guess_once(seed, sockets, guesses, side):
    rng = random.Random(seed)
    mapped = set(rng.sample(list_ports(side), sockets))
    return not mapped.isdisjoint(guessed_ports(side, guesses, rng))


@pytest.mark.parametrize("side", [hard(), hard(low=32768, high=60999), block()])
def test_guessing_meets_in_99_of_100(side):
    plan = decide(side, easy())
    met = sum(guess_once(seed, plan.first, plan.second, side) for seed in range(400))
    assert met >= 396


class BlockNat:
    """A NAT that gives each flow another port of a block, at random, until there are none."""

    def __init__(self, side, used, rng):
        free = list(list_ports(side))
        rng.shuffle(free)
        self.taken, self.free = set(free[:used]), free[used:]
        self.flows = {}

    def write(self, target):
        if self.free:
            self.flows[self.free.pop()] = target


def sweep_once(seed, used):
    rng = random.Random(seed)
    sides = (block(40960), block(12288))
    plan = decide(*sides)
    nats = [BlockNat(side, used, rng) for side in sides]
    aims = [
        aim(side.low, side.high, 1, nat.taken, rng) for side, nat in zip(sides, nats, strict=True)
    ]
    for nat, target, count in zip(nats, reversed(aims), (plan.first, plan.second), strict=True):
        for _ in range(count):
            nat.write(target)
    one, other = nats
    return any(other.flows.get(target) == port for port, target in one.flows.items())


def test_sweeping_meets_for_certain_where_what_is_taken_is_known():
    assert all(sweep_once(seed, used=30) for seed in range(60))

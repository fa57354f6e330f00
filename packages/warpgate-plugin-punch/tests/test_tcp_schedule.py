"""Ports, pairs and times of a TCP punch, and its messages."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from warpgate.nat.pair import NatPair
from warpgate.net.constants import DeltaType, NATType
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.tcp_punch import schedule
from warpgate_plugin_punch.tcp_punch.messages import (
    MAX_PORTS,
    MAX_ROUNDS,
    Round,
    TcpAnswer,
    TcpOffer,
)
from warpgate_plugin_punch.tcp_punch.strategy import TcpPunch

R_S = 0.080
S_S = 0.050
SLOWNESS_S = 0.010
"""What a responder takes from a signal's arrival to its SYNs, in the laboratory."""

CONE = SideFacts(mapping="ei", filtering="apd", kind="preserving")
COUNTING = SideFacts(mapping="apd", filtering="apd", kind="sequential", step=1)
RANDOM = SideFacts(mapping="apd", filtering="apd", kind="random", low=1024, high=65535)
CARRIER = SideFacts(mapping="ei", filtering="apd", kind="random", low=1024, high=65535)
ids = st.text(string.ascii_letters + string.digits, min_size=15, max_size=15)
ports = st.integers(1, 65535)


def test_derived_ports_are_those_of_every_implementation() -> None:
    assert schedule.derived_ports("abcdefghij12345", 1, 3) == [33238, 29066, 54789]
    assert schedule.derived_ports("abcdefghij12345", 2, 3) == [26753, 59108, 28513]


@given(ids, st.integers(1, MAX_ROUNDS), st.integers(0, 16))
def test_derived_ports_are_in_range_and_differ(plugin_id: str, number: int, count: int) -> None:
    found = schedule.derived_ports(plugin_id, number, count)
    assert len(set(found)) == len(found) == count
    assert all(20_000 <= port <= 59_999 for port in found)
    assert schedule.derived_ports(plugin_id, number, 16)[:count] == found


@given(st.lists(ports, max_size=8, unique=True), st.lists(ports, max_size=8, unique=True))
def test_every_pair_comes_once(own: list[int], other: list[int]) -> None:
    found = schedule.pairs(own, other, limit=64)
    assert len(found) == len(set(found)) == len(own) * len(other)
    assert all(mine in own and theirs in other for mine, theirs in found)
    assert schedule.pairs(own, other) == found[: schedule.MAX_PAIRS]


def test_first_pairs_use_every_port() -> None:
    found = schedule.pairs([1, 2], [7, 8, 9])
    assert {mine for mine, _ in found[:2]} == {1, 2}
    assert {theirs for _, theirs in found[:4]} == {7, 8, 9}
    assert schedule.pairs([1, 2, 3], [7]) == [(1, 7), (2, 7), (3, 7)]


def crossing(times_s: list[float], one_way_s: float, trip_s: float) -> list[float]:
    low, high = one_way_s + SLOWNESS_S - trip_s / 2, one_way_s + SLOWNESS_S + trip_s / 2
    return [each for each in times_s if low <= each <= high]


def test_some_first_syns_cross_where_signals_take_about_as_long_as_packets() -> None:
    first = schedule.stagger(1, None)
    assert len(crossing(first, S_S, R_S)) >= 2
    for one_way_s in (0.02, 0.03, 0.05, 0.1):
        assert crossing(first, one_way_s, 2 * one_way_s), one_way_s


@given(st.floats(0.0, 1.5), st.floats(0.04, 0.5))
def test_the_second_round_crosses_whatever_was_measured(one_way_s: float, trip_s: float) -> None:
    assert crossing(schedule.stagger(2, one_way_s), one_way_s, trip_s)


@given(st.integers(1, MAX_ROUNDS), st.none() | st.floats(0, 1e6), st.booleans())
def test_staggers_are_never_in_the_past_and_end(
    number: int, one_way_s: float | None, counting: bool
) -> None:
    times_s = schedule.stagger(number, one_way_s, counting)
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0
    assert times_s[-1] < schedule.MAX_S + 1
    assert 0.3 < schedule.pause(one_way_s) < 2


def test_in_the_third_round_the_initiator_dials_when_the_responders_openers_are_out() -> None:
    assert all(each > S_S for each in schedule.stagger(3, S_S))
    assert not any(schedule.stagger(4, S_S))


@pytest.mark.parametrize(
    ("mine", "theirs", "initiator", "count"),
    [
        (CONE, CONE, True, schedule.INITIATOR_PORTS),
        (CONE, CONE, False, schedule.RESPONDER_PORTS),
        (CARRIER, CONE, False, schedule.INITIATOR_PORTS),
        (COUNTING, CONE, True, schedule.COUNTING_PORTS),
        (CONE, COUNTING, False, 1),
        (COUNTING, COUNTING, False, schedule.COUNTING_PORTS),
    ],
)
def test_how_many_ports(mine: SideFacts, theirs: SideFacts, initiator: bool, count: int) -> None:
    assert schedule.port_count(mine, theirs, initiator) == count


def test_next_ports_of_a_counting_nat() -> None:
    assert schedule.foretold([40_000], 1, 3) == [40_001, 40_002, 40_003]
    assert schedule.foretold([40_000, 40_002], 2, 2) == [40_004, 40_006]
    assert schedule.foretold([40_000, 39_999], -1, 2) == [39_998, 39_997]
    assert schedule.foretold([65_534], 1, 3) == [65_535]
    assert schedule.foretold([1025], -1, 3) == [1024]


def simulate(mine: SideFacts, theirs: SideFacts, foreign: int, others: int) -> bool:
    """Let two NATs of these kinds meet; ``foreign`` and ``others`` connections come in between."""
    p, q = 30_000, 50_000
    own = [1000 + k for k in range(schedule.port_count(mine, theirs, True))]
    far = [2000 + k for k in range(schedule.port_count(theirs, mine, False))]
    told = schedule.foretold([p], 1) if mine.counting else own
    said = schedule.foretold([q], 1) if theirs.counting else far
    if theirs.counting and not mine.counting:
        own = own[:1]
    if mine.counting and not theirs.counting:
        far = far[:1]
    out: set[tuple[int, int]] = set()
    back: set[tuple[int, int]] = set()
    for number, (port, other) in enumerate(
        schedule.pairs(own, schedule.targets(mine, theirs, said))
    ):
        out.add((p + 1 + foreign + number if mine.counting else port, other))
    for number, (port, other) in enumerate(
        schedule.pairs(far, schedule.targets(theirs, mine, told))
    ):
        back.add((other, q + 1 + others + number if theirs.counting else port))
    return bool(out & back)


@pytest.mark.parametrize("foreign", range(schedule.AIM + 1))
@pytest.mark.parametrize("others", range(schedule.AIM + 1))
def test_two_counting_nats_meet_though_others_connect(foreign: int, others: int) -> None:
    assert simulate(COUNTING, COUNTING, foreign, others)


@pytest.mark.parametrize("foreign", range(9))
def test_a_counting_nat_and_a_cone_meet(foreign: int) -> None:
    assert simulate(COUNTING, CONE, foreign, 0)
    assert simulate(CONE, COUNTING, 0, foreign)


def test_one_way_time() -> None:
    assert schedule.one_way(0.13, 0.03, None) == pytest.approx(0.05)
    assert schedule.one_way(0.13, 0.03, 0.08) == 0.08
    assert schedule.one_way(0.13, 0.03, 5.0) == pytest.approx(0.05)  # a clock is wrong
    assert schedule.one_way(0.01, 0.03, None) == 0


@given(
    st.integers(1, MAX_ROUNDS),
    st.lists(ports, max_size=MAX_PORTS),
    st.text(string.hexdigits + ".:", max_size=45),
    st.integers(0, 60_000),
    st.booleans(),
)
def test_messages_survive_the_wire(
    number: int, own: list[int], ip: str, hold_ms: int, opener: bool
) -> None:
    part = Round(round=number, ports=own, ip=ip, hold_ms=hold_ms, opener=opener, facts=COUNTING)
    for cls in (TcpOffer, TcpAnswer):
        assert cls.unpack(cls(payload=part).pack()).payload == part


@pytest.mark.parametrize(
    "field",
    [
        {"round": 0},
        {"round": MAX_ROUNDS + 1},
        {"ports": [0]},
        {"ports": [65_536]},
        {"ports": [1] * (MAX_PORTS + 1)},
        {"ip": "1" * 46},
        {"hold_ms": -1},
        {"clock_ms": 2**49},
        {"facts": {"mapping": "odd"}},
    ],
)
def test_messages_have_bounds(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Round.model_validate(field)


SYMMETRIC, PORT = NATType.SYMMETRIC, NATType.PORT_RESTRICTED


@pytest.mark.parametrize(
    ("pair", "possible"),
    [
        (NatPair(), True),
        (NatPair(PORT, DeltaType.EQUAL, PORT, DeltaType.EQUAL), True),
        (NatPair(SYMMETRIC, DeltaType.RANDOM, PORT, DeltaType.EQUAL), False),
        (NatPair(PORT, DeltaType.EQUAL, SYMMETRIC, DeltaType.RANDOM), False),
        (NatPair(SYMMETRIC, DeltaType.INDEPENDENT, PORT, DeltaType.EQUAL), True),
        (NatPair(SYMMETRIC, DeltaType.INDEPENDENT, SYMMETRIC, DeltaType.INDEPENDENT), True),
        (NatPair(SYMMETRIC, DeltaType.INDEPENDENT, SYMMETRIC, DeltaType.RANDOM), False),
        (NatPair(SYMMETRIC, DeltaType.RANDOM, NATType.RESTRICTED, DeltaType.EQUAL), True),
        (NatPair(NATType.BLOCKED, DeltaType.EQUAL, NATType.BLOCKED, DeltaType.EQUAL), True),
        (NatPair(NATType.BLOCKED, DeltaType.EQUAL, SYMMETRIC, DeltaType.INDEPENDENT), True),
    ],
)
def test_what_is_impossible(pair: NatPair, possible: bool) -> None:
    assert (TcpPunch.impossible(pair) is None) is possible

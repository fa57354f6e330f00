"""What is tried, in which order and when: the plan is a pure function."""

from __future__ import annotations

from dataclasses import replace

import pytest

from warpgate.nat.pair import NatPair
from warpgate.net.constants import (
    EXT_BIND,
    IP4,
    IP6,
    LOOPBACK_BIND,
    NIC_BIND,
    DeltaType,
    NATType,
)
from warpgate.traversal.plan import MAX_CANDIDATES, PlanOptions, StrategyInfo, plan
from warpgate.traversal.report import SkipReason

HERE, THERE = b"here", b"there"
DIRECT = StrategyInfo("direct_connect", "direct", "tcp")
REVERSE = StrategyInfo("reverse_connect", "direct", "tcp")
TCP_PUNCH = StrategyInfo("tcp_punch", "punch", "tcp")
UDP_PUNCH = StrategyInfo("udp_punch", "spray", "udp")
PROBE = StrategyInfo("random_probe", "spray", "udp", after_punching=True)
TURN = StrategyInfo("turn", "relay", "udp")
AUXILIARY = StrategyInfo("get_addr", None, "tcp")
PUNCHING = [TURN, TCP_PUNCH]
ALL = [TURN, PROBE, UDP_PUNCH, TCP_PUNCH, AUXILIARY, DIRECT, REVERSE]


@pytest.fixture
def near(make_address, make_nic):
    """Two machines on one link."""
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["192.168.1.7"], machine=THERE)
    return local, remote, [make_nic("eth0", 1, "192.168.1.2/24")]


@pytest.fixture
def far(make_address, make_nic):
    """Two machines with private addresses on different links, so that no direct way is likely."""
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["10.9.9.9"], machine=THERE)
    return local, remote, [make_nic("eth0", 1, "192.168.1.2/24")]


def reasons(found, strategy):
    return {skip.reason for skip in found.skips if skip.strategy == strategy}


def test_preference_is_direct_punch_spray_relay(near):
    found = plan(*near, ALL)
    assert list(dict.fromkeys(c.strategy for c in found.combinations)) == [
        "direct_connect",
        "reverse_connect",
        "tcp_punch",
        "udp_punch",
        "random_probe",
        "turn",
    ]


def test_auxiliaries_are_never_dispatched_nor_reported(near):
    found = plan(*near, ALL)
    assert "get_addr" not in {c.strategy for c in found.combinations}
    assert not reasons(found, "get_addr")


def test_punching_has_a_head_start_of_50_ms_to_beat_and_udp_300_ms_more(near):
    found = plan(*near, ALL)
    assert found.opens_s == {"direct": 0, "punch": 0.050, "spray": 0.300, "relay": 3.0}
    assert found.follows == {"spray": "punch"}


def test_punching_starts_at_once_when_no_direct_combination_is_likely(far):
    assert plan(*far, ALL).opens_s["punch"] == 0


def test_udp_punching_starts_with_punching_when_tcp_is_out(near):
    found = plan(*near, ALL, PlanOptions(transport="udp"))
    assert (found.opens_s["punch"], found.opens_s["spray"]) == (0, 0)


def test_random_probe_waits_until_all_punching_has_ended(near):
    found = plan(*near, ALL)
    (group,) = {c.group for c in found.combinations if c.strategy == "random_probe"}
    assert group not in found.opens_s
    assert found.order.index("spray") < found.order.index(group) < found.order.index("relay")


def test_a_strategy_that_makes_both_transports_is_tried_for_either(near):
    both = StrategyInfo("turn", "relay", "udp", transports=("udp", "tcp"))
    for wanted in (None, "udp", "tcp"):
        found = plan(*near, [DIRECT, both], PlanOptions(transport=wanted))
        assert {c.transport for c in found.combinations if c.strategy == "turn"} == {wanted}
    found = plan(*near, [DIRECT, TURN], PlanOptions(transport="tcp"))
    assert "turn" not in {c.strategy for c in found.combinations}


def test_relays_come_after_relay_after(near):
    assert plan(*near, ALL, PlanOptions(relay_after_s=7.5)).opens_s["relay"] == 7.5


def test_relay_never_skips_relays(near):
    found = plan(*near, ALL, PlanOptions(relay="never"))
    assert "turn" not in {c.strategy for c in found.combinations}
    assert reasons(found, "turn") == {SkipReason.RELAY_NEVER}


def test_relay_prefer_puts_relays_first_and_lets_the_others_wait(near):
    found = plan(*near, ALL, PlanOptions(relay="prefer", relay_after_s=2))
    assert found.combinations[0].strategy == "turn"
    assert found.opens_s == {"relay": 0, "direct": 2, "punch": 2.05, "spray": 0.3}


@pytest.mark.parametrize(("limit", "made"), [(0, 0), (1, 1), (3, 3), (99, 6)])
def test_turn_limit_caps_the_relay_attempts(make_address, make_nic, limit, made):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(*[[f"203.0.113.{n}"] for n in range(1, 7)], machine=THERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24")]
    found = plan(local, remote, nics, ALL, PlanOptions(turn_limit=limit))
    assert sum(c.strategy == "turn" for c in found.combinations) == made
    assert (SkipReason.RELAY_LIMIT in reasons(found, "turn")) == (made < 6)


def test_a_strategy_tries_so_many_candidates_at_most(make_address, make_nic):
    nics = [make_nic(f"eth{n}", n, f"192.168.{n}.2/24") for n in range(1, 5)]
    local = make_address(*[[f"192.168.{n}.2"] for n in range(1, 5)], machine=HERE)
    remote = make_address(*[[f"203.0.113.{n}"] for n in range(1, 9)], machine=THERE)
    found = plan(local, remote, nics, [DIRECT])
    assert len(found.combinations) == MAX_CANDIDATES
    assert SkipReason.TOO_MANY in reasons(found, "direct_connect")


def test_two_route_types_to_one_address_are_one_candidate(near):
    found = plan(*near, [DIRECT])
    assert [c.path.route_type for c in found.combinations] == [NIC_BIND]
    assert SkipReason.SAME_AS_OTHER_ROUTE in reasons(found, "direct_connect")


def test_staggers_are_30_ms_after_a_private_candidate_and_250_ms_after_a_public_one(
    make_address, make_nic
):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["192.168.1.7"], ["203.0.113.5"], ["10.9.9.9"], machine=THERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24")]
    found = plan(local, remote, nics, [DIRECT, REVERSE])
    for name in ("direct_connect", "reverse_connect"):
        delays = [c.delay_s for c in found.combinations if c.strategy == name]
        assert delays == pytest.approx([0, 0.030, 0.280])


def test_what_the_caller_narrowed_is_skipped_as_filtered(near):
    found = plan(*near, ALL, PlanOptions(plugins=("tcp_punch",)))
    assert {c.strategy for c in found.combinations} == {"tcp_punch"}
    assert reasons(found, "direct_connect") == {SkipReason.FILTERED}
    found = plan(*near, ALL, PlanOptions(transport="udp"))
    assert {c.strategy for c in found.combinations} == {"udp_punch", "random_probe", "turn"}


def test_families_and_route_types_narrow_the_paths(make_address, make_nic):
    local = make_address(["192.168.1.2", "fd00::2"], machine=HERE)
    remote = make_address(["192.168.1.2", "fd00::2"], machine=HERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24", "fd00::2/64")]
    found = plan(local, remote, nics, [DIRECT], PlanOptions(afs=(IP6,)))
    assert {c.path.af for c in found.combinations} == {IP6}
    found = plan(local, remote, nics, [DIRECT], PlanOptions(route_types=(LOOPBACK_BIND,)))
    assert {(c.path.af, c.path.route_type) for c in found.combinations} == {
        (IP4, LOOPBACK_BIND),
        (IP6, LOOPBACK_BIND),
    }


def test_a_strategys_own_route_types_hold(near):
    only_ext = StrategyInfo("ext", "direct", "tcp", (EXT_BIND,))
    found = plan(*near, [only_ext])
    assert {c.path.route_type for c in found.combinations} == {EXT_BIND}
    assert not any(skip.route_type in (NIC_BIND, LOOPBACK_BIND) for skip in found.skips)


def test_without_a_strategy_the_plan_says_so(near):
    found = plan(*near, [AUXILIARY])
    assert found.combinations == ()
    assert [skip.reason for skip in found.skips] == [SkipReason.NO_STRATEGY]


def test_without_a_shared_family_nothing_is_tried(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["fd00::7"], machine=THERE)
    found = plan(local, remote, [make_nic("eth0", 1, "192.168.1.2/24")], [DIRECT])
    assert found.combinations == ()
    assert reasons(found, "direct_connect") == {SkipReason.FAMILY_NOT_SHARED}


@pytest.fixture
def behind(make_address, make_nic):
    """Return a function: two machines behind NATs of their own, of given types."""

    def make(here, there, deltas=(0, 0)):
        mine = {"192.168.1.2": "198.51.100.1"}
        theirs = {"10.9.9.9": "198.51.100.2"}
        local = make_address(["192.168.1.2"], machine=HERE, ext=mine, nat=here, delta=deltas[0])
        remote = make_address(["10.9.9.9"], machine=THERE, ext=theirs, nat=there, delta=deltas[1])
        return local, remote, [make_nic("eth0", 1, "192.168.1.2/24")]

    return make


def refusing(text, seen=None):
    def impossible(pair):
        if seen is not None:
            seen.append(pair)
        return text

    return replace(TCP_PUNCH, impossible=impossible)


def test_a_strategy_says_what_it_can_not_do_between_two_nats(behind):
    seen = []
    found = plan(*behind(NATType.SYMMETRIC, NATType.RESTRICTED, (6, 2)), [refusing("no way", seen)])
    (skip,) = [s for s in found.skips if s.reason is SkipReason.IMPOSSIBLE]
    assert (skip.route_type, skip.detail) == (EXT_BIND, "no way")
    assert EXT_BIND not in {c.path.route_type for c in found.combinations}
    assert set(seen) == {NatPair(NATType.SYMMETRIC, 6, NATType.RESTRICTED, 2)}


def test_nats_do_not_matter_on_one_link(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE, nat=NATType.SYMMETRIC)
    remote = make_address(["192.168.1.7"], machine=THERE, nat=NATType.SYMMETRIC)
    found = plan(local, remote, [make_nic("eth0", 1, "192.168.1.2/24")], [refusing("no way")])
    assert [c.path.ip for c in found.combinations] == ["192.168.1.7"]


def test_a_strategy_whose_impossible_raises_is_tried(behind, caplog):
    def impossible(pair):
        raise RuntimeError("a defect")

    broken = replace(TCP_PUNCH, impossible=impossible)
    found = plan(*behind(5, 5), [broken])
    assert EXT_BIND in {c.path.route_type for c in found.combinations}
    assert "impossible() raised" in caplog.text


def test_punching_starts_at_once_when_both_nats_let_nobody_in(behind):
    closed = plan(*behind(NATType.PORT_RESTRICTED, NATType.SYMMETRIC), ALL)
    assert closed.opens_s["punch"] == 0
    reachable = plan(*behind(NATType.PORT_RESTRICTED, NATType.OPEN), ALL)
    assert reachable.opens_s["punch"] == 0.050


def test_random_probe_does_not_wait_for_direct_attempts(near):
    assert plan(*near, ALL).needs == {"late": ("punch", "spray")}


def test_what_worked_last_time_is_marked(near):
    found = plan(*near, ALL, PlanOptions(remembered=("udp_punch", IP4, NIC_BIND)))
    assert [c.strategy for c in found.combinations if c.at_once] == ["udp_punch"]


def test_only_dials_go_to_private_addresses_behind_another_nat(behind):
    found = plan(*behind(0, 0), [DIRECT, UDP_PUNCH])
    routes = {c.strategy: [] for c in found.combinations}
    for c in found.combinations:
        routes[c.strategy].append(c.path.ip)
    assert routes == {"direct_connect": ["198.51.100.2", "10.9.9.9"], "udp_punch": ["198.51.100.2"]}
    assert SkipReason.OTHER_NETWORK in reasons(found, "udp_punch")
    assert {c.path.ip for c in found.combinations if c.unlikely} == {"10.9.9.9"}


def test_behind_one_nat_private_addresses_are_punched_too(make_address, make_nic):
    ext = {"192.168.1.2": "198.51.100.1", "10.9.9.9": "198.51.100.1"}
    local = make_address(["192.168.1.2"], machine=HERE, ext=ext)
    remote = make_address(["10.9.9.9"], machine=THERE, ext=ext)
    found = plan(local, remote, [make_nic("eth0", 1, "192.168.1.2/24")], [UDP_PUNCH])
    assert {c.path.ip for c in found.combinations} == {"198.51.100.1", "10.9.9.9"}


def test_a_relay_is_likely_when_nothing_else_has_a_chance(behind, near):
    hopeless = [replace(s, impossible=lambda pair: "no way") for s in (DIRECT, TCP_PUNCH)]
    assert plan(*behind(6, 6), [*hopeless, PROBE, TURN]).relay_likely
    assert not plan(*behind(6, 6), [*hopeless, UDP_PUNCH, TURN]).relay_likely
    assert not plan(*behind(6, 6), [*hopeless, PROBE]).relay_likely
    assert not plan(*near, ALL).relay_likely


@pytest.mark.parametrize("here", [True, False])
def test_nobody_waits_for_a_side_that_reaches_no_stun_server(make_address, make_nic, here):
    """It is in a network that lets out the web alone; then a relay is what is left."""
    sides = [
        make_address(["192.168.1.2"], machine=HERE, nat=NATType.BLOCKED),
        make_address(["203.0.113.5"], machine=THERE, nat=NATType.OPEN),
    ]
    local, remote = sides if here else sides[::-1]
    own = "192.168.1.2/24" if here else "203.0.113.5/24"
    found = plan(local, remote, [make_nic("eth0", 1, own)], [DIRECT, UDP_PUNCH, TURN])
    unlikely = {c.strategy: c.unlikely for c in found.combinations}
    assert unlikely == {"direct_connect": True, "udp_punch": True, "turn": False}
    assert found.relay_likely


def test_a_side_whose_tcp_gets_out_is_waited_for(make_address, make_nic):
    ext = {"192.168.1.2": "198.51.100.1"}
    local = make_address(["192.168.1.2"], machine=HERE, nat=NATType.BLOCKED, ext=ext)
    remote = make_address(["203.0.113.5"], machine=THERE, nat=NATType.OPEN)
    found = plan(local, remote, [make_nic("eth0", 1, "192.168.1.2/24")], [DIRECT, TURN])
    assert not found.relay_likely


def test_what_worked_last_time_does_not_come_before_relays_that_are_preferred(near):
    again = PlanOptions(remembered=("udp_punch", IP4, NIC_BIND), relay="prefer")
    assert not any(c.at_once for c in plan(*near, ALL, again).combinations)


@pytest.mark.parametrize("limit", [0, 2])
def test_the_plan_tells_how_many_relay_attempts_there_may_be(near, limit):
    assert plan(*near, ALL, PlanOptions(turn_limit=limit)).turn_limit == limit


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("kind", "delta", "likely"),
    [
        (NATType.SYMMETRIC, DeltaType.RANDOM, True),
        (NATType.SYMMETRIC, DeltaType.INDEPENDENT, False),
        (NATType.PORT_RESTRICTED, DeltaType.EQUAL, False),
    ],
)
def test_a_guess_over_tcp_is_waited_for_and_a_relay_prepared(behind, turned, kind, delta, likely):
    sides, deltas = (NATType.BLOCKED, kind), (0, delta)
    found = plan(*behind(*sides[:: -1 if turned else 1], deltas[:: -1 if turned else 1]), PUNCHING)
    assert found.relay_likely == likely
    assert not any(c.unlikely for c in found.combinations)

"""What the three strategies share: facts, ports of counting NATs, probes."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.nat.behaviour import Allocation, Filtering, Mapping, PortAllocation
from warpgate.nat.report import PathReport
from warpgate.net.constants import IP4, TCP, UDP, DeltaType, NATType
from warpgate_plugin_punch.common.counting import (
    HIGHEST_PORT,
    LOWEST_PORT,
    advance,
    counter,
    distance,
    following,
    made_between,
)
from warpgate_plugin_punch.common.facts import DIRECT, SideFacts, from_report, from_types
from warpgate_plugin_punch.common.probes import (
    INITIATOR,
    M0_SIZE,
    PROBE_SIZE,
    RESPONDER,
    attempt_key,
    check,
    is_m0,
    is_m1,
    m0,
    probe,
)
from warpgate_plugin_punch.common.sockets import Mapped

ID = "aB3dEfGhIjKlMn0"
KEY = attempt_key(ID)


def path(**facts: Any) -> PathReport:
    return PathReport("eth0", IP4, "192.168.1.2", **facts)


# Facts.


def test_what_is_not_known_counts_as_friendly_but_filtering_as_strict() -> None:
    unknown = from_report(None, UDP)
    assert unknown == SideFacts()
    assert (unknown.easy, unknown.keeps_port, unknown.by_port) == (True, True, True)
    said = (unknown.counting, unknown.hard, unknown.lets_anyone_in, unknown.block)
    assert said == (False, False, False, None)
    assert unknown.outer_port(4000) == 4000


def test_a_report_speaks_of_both_transports() -> None:
    found = path(
        udp=False,
        mapping=Mapping.ADDRESS_DEPENDENT,
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        allocation=PortAllocation(Allocation.SEQUENTIAL, step=2),
        tcp_mapping=Mapping.ENDPOINT_INDEPENDENT,
        tcp_allocation=PortAllocation(Allocation.SHIFTED, step=-7),
    )
    udp, tcp = from_report(found, "udp"), from_report(found, TCP)
    assert (udp.mapping, udp.filtering, udp.kind, udp.step) == ("ad", "apd", "sequential", 2)
    assert (udp.counting, udp.hard, udp.blocked) == (True, False, True)
    assert (tcp.mapping, tcp.kind, tcp.blocked) == ("ei", "shifted", False)
    assert tcp.outer_port(4000) == 3993
    assert tcp.outer_port(7) is None


@pytest.mark.parametrize("value", list(Mapping))
def test_every_mapping_has_a_word(value: Mapping) -> None:
    assert from_report(path(mapping=value), UDP).mapping in ("none", "ei", "ad", "apd")


@pytest.mark.parametrize("value", list(Allocation))
def test_every_allocation_has_a_word(value: Allocation) -> None:
    allocation = PortAllocation(value, step=1, low=2000, high=2511)
    facts = from_report(path(mapping=Mapping.NONE, allocation=allocation), UDP)
    assert facts.kind == value.value
    assert facts.block == ((2000, 2511) if value in (Allocation.BLOCK, Allocation.RANDOM) else None)


@pytest.mark.parametrize(
    ("nat", "delta", "expected"),
    [
        (NATType.OPEN, DeltaType.NOT_APPLICABLE, ("none", "ei", True, False, False)),
        (NATType.PORT_RESTRICTED, DeltaType.EQUAL, ("ei", "apd", True, False, False)),
        (NATType.SYMMETRIC, DeltaType.INDEPENDENT, ("apd", "apd", False, True, False)),
        (NATType.SYMMETRIC, DeltaType.RANDOM, ("apd", "apd", False, False, True)),
        (0, 0, ("", "", True, False, False)),
    ],
)
def test_types_of_a_signed_address(nat: int, delta: int, expected: tuple[Any, ...]) -> None:
    facts = from_types({"type": int(nat), "delta": int(delta)})
    found = (facts.mapping, facts.filtering, facts.easy, facts.counting, facts.hard)
    assert found == expected
    assert from_types({"type": int(NATType.BLOCKED)}).blocked


def test_random_ports_for_all_destinations_cannot_be_foretold() -> None:
    facts = SideFacts(mapping="ei", kind="random")
    assert facts.easy
    assert facts.outer_port(4000) is None


@given(st.dictionaries(st.sampled_from(list(SideFacts.model_fields)), st.none() | st.integers()))
def test_facts_of_a_peer_are_checked(data: dict[str, Any]) -> None:
    try:
        facts = SideFacts.model_validate(data)
    except ValueError:
        return
    assert abs(facts.step) <= 65535
    assert 0 <= facts.low <= 65535


# Counting NATs.

ports = st.integers(LOWEST_PORT, HIGHEST_PORT)
steps = st.integers(-16, 16).filter(bool)


@given(ports, st.integers(-500, 500))
def test_a_counter_goes_round(port: int, by: int) -> None:
    assert LOWEST_PORT <= advance(port, by) <= HIGHEST_PORT
    assert advance(advance(port, by), -by) == port


@given(ports, steps, st.integers(0, 50))
def test_a_distance_is_counted_in_steps(port: int, step: int, count: int) -> None:
    assert distance(port, advance(port, step * count), step) == count
    assert distance(port, advance(port, step * count), 0) == -1


@given(
    start=ports,
    step=steps,
    others=st.integers(0, 3),
    count=st.integers(1, 10),
    lost=st.sets(st.integers(0, 2), max_size=2),
)
def test_ports_made_between_requests_are_found(
    start: int, step: int, others: int, count: int, lost: set[int]
) -> None:
    """One request before, two after, strangers' mappings in between, and answers that are lost."""
    made = following(start, step, 3 + count + others)
    seen_all = [(0, made[0]), (1, made[1 + count + others]), (2, made[2 + count + others])]
    seen = [each for each in seen_all if each[0] not in lost]
    truth = made[1 : 1 + count + others]
    found = made_between(seen, 1, step, count)
    if not others or ({0, 1}.isdisjoint(lost) and count + others <= 8):
        assert found == truth
    else:
        assert len(found) >= count
    if not {1, 2} <= lost:
        assert counter(seen, 3, step) == made[-1]


def test_without_answers_nothing_is_known() -> None:
    assert made_between([], 1, 1) == ()
    assert counter([], 3, 1) == 0


def test_facts_are_mended_by_what_servers_saw() -> None:
    easy = SideFacts(mapping="ei", filtering="apd", kind="preserving")
    counts = Mapped(("1.2.3.4", 5000), ((0, 5000), (2, 5004)), 3, False, 0.05)
    jumps = Mapped(("1.2.3.4", 5000), ((0, 5000), (1, 23456)), 3, False, 0.05)
    assert counts.corrects(easy).step == 2
    assert counts.corrects(easy).counting
    assert jumps.corrects(easy).hard
    same = Mapped(("1.2.3.4", 5000), ((0, 5000), (1, 5000)), 2, True, 0.05)
    assert same.corrects(easy) is easy
    assert counts.corrects(DIRECT.model_copy(update={"mapping": "apd"})).mapping == "apd"


# Probes.


def test_a_probe_is_small_and_authentic() -> None:
    data = probe(KEY, INITIATOR, ID, 70_000)
    assert len(data) == PROBE_SIZE <= 64
    assert check(data, KEY, INITIATOR, ID) == 70_000
    number = (70_000).to_bytes(4, "big")
    tag = hmac.new(KEY, b"warpgate probe v1I" + ID.encode() + number, hashlib.sha256).digest()
    assert data[8:] == number + tag[:16]


@given(st.integers(0, PROBE_SIZE * 8 - 1))
def test_an_altered_probe_is_none(bit: int) -> None:
    data = bytearray(probe(KEY, RESPONDER, ID, 5))
    data[bit // 8] ^= 1 << bit % 8
    assert check(bytes(data), KEY, RESPONDER, ID) is None


def test_a_probe_of_another_role_key_or_attempt_is_none() -> None:
    data = probe(KEY, INITIATOR, ID)
    assert check(data, KEY, RESPONDER, ID) is None
    assert check(data, bytes(32), INITIATOR, ID) is None
    assert check(data, KEY, INITIATOR, ID[::-1]) is None


@given(st.binary(max_size=64))
def test_whatever_comes_is_no_probe(data: bytes) -> None:
    assert check(data, KEY, INITIATOR, ID) is None
    assert not is_m0(data, ID)
    assert not is_m1(data, ID)


def test_m0_bears_the_attempt() -> None:
    assert len(m0(ID)) == M0_SIZE
    assert is_m0(m0(ID), ID)
    assert not is_m0(m0(ID), ID[::-1])
    assert not is_m1(m0(ID), ID)

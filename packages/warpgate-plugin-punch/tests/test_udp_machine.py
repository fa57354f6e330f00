"""The PURE parts of ``udp_punch``: messages, the opener with losses and limits, two counting NATs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from warpgate.nat.pair import NatPair
from warpgate.net.budget import MAX_UNANSWERED_PACKETS, PacketBudget
from warpgate.net.constants import DeltaType, NATType
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.udp_punch.aims import (
    TRIED,
    both_count,
    meeting_points,
    must_guess,
    must_measure,
    next_ports,
    usable,
)
from warpgate_plugin_punch.udp_punch.caller import DENSE_S, MAX_DIALS, ROUNDS_S, SPARSE_S
from warpgate_plugin_punch.udp_punch.messages import MAX_ENDPOINTS, MAX_ROUNDS, Punch
from warpgate_plugin_punch.udp_punch.opener import Opener
from warpgate_plugin_punch.udp_punch.strategy import UdpPunch

A, B = ("203.0.113.10", 4000), ("203.0.113.10", 4001)
COUNTING = SideFacts(mapping="apd", filtering="apd", kind="sequential", step=1)
CONE = SideFacts(mapping="ei", filtering="apd", kind="preserving")

# Messages.

endpoints = st.tuples(
    st.ip_addresses().map(str).filter(lambda text: "%" not in text), st.integers(1, 65535)
)


@given(
    st.integers(0, MAX_ROUNDS - 1),
    st.lists(endpoints, max_size=MAX_ENDPOINTS),
    st.integers(0, 65535),
    st.sampled_from([COUNTING, CONE, SideFacts()]),
)
def test_a_message_survives_the_wire(
    number: int, places: list[Any], counter: int, facts: SideFacts
) -> None:
    payload = {"number": number, "endpoints": places, "counter": counter, "facts": facts}
    found = Punch.unpack(Punch(payload=payload).pack()).payload
    assert found == Punch.Payload(**payload)
    assert [tuple(each) for each in found.endpoints] == places


@pytest.mark.parametrize(
    "payload",
    [
        {"number": MAX_ROUNDS},
        {"number": -1},
        {"endpoints": [A] * (MAX_ENDPOINTS + 1)},
        {"endpoints": [("victim.example", 80)]},
        {"endpoints": [("1.2.3.4", 0)]},
        {"endpoints": [("1.2.3.4", 65536)]},
        {"endpoints": [("fe80::1%eth0", 80)]},
        {"endpoints": [("1" * 46, 80)]},
        {"counter": 65536},
        {"facts": {"step": 65536}},
        {"facts": {"mapping": "x" * 100}},
    ],
)
def test_what_a_peer_may_not_say(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Punch.payload_from_wire(payload)


def test_rounds_fit_into_the_attempt() -> None:
    assert len(ROUNDS_S) == MAX_ROUNDS
    assert sum(ROUNDS_S) <= 5.0 < UdpPunch.conf["timeout"]
    assert MAX_DIALS <= 8  # the core proves so many at once


def test_hellos_leave_room_for_retries() -> None:
    """One dense hello until its end, and two sparse ones, are within the budget of an address."""

    def packets(pauses: tuple[float, ...]) -> int:
        at, sent, pauses_left, pause = 0.0, 1, list(pauses), 0.0
        while True:
            pause = pauses_left.pop(0) if pauses_left else min(pause * 2, 1.0)
            at += pause
            if at >= 5.0:
                return sent
            sent += 1

    assert packets(DENSE_S) + 2 * packets(SPARSE_S) <= MAX_UNANSWERED_PACKETS
    assert sum(DENSE_S[:13]) == pytest.approx(0.195)


# The opener.


def run(opener: Opener, until: float, start: float = 0.0) -> list[tuple[float, Any]]:
    """Drive it as a driver does; return when it sent what."""
    now, sent = start, []
    while True:
        sent += [(now, packet) for packet in opener.outgoing(now)]
        due = opener.next_timeout()
        if due is None or due > until:
            return sent
        assert due > now
        now = due
        opener.handle_timeout(now)


def test_every_address_gets_its_packets_in_time() -> None:
    opener = Opener(b"x", (0.1, 0.4), lambda _ip: True)
    opener.add([A, B], 0.0)
    times = [(round(at, 6), addr) for at, (_, addr) in run(opener, 9.0)]
    assert times == [(0.0, A), (0.0, B), (0.1, A), (0.1, B), (0.5, A), (0.5, B)]
    assert opener.sent == 6
    assert opener.next_timeout() is None


def test_an_address_that_answered_gets_no_more() -> None:
    opener = Opener(b"x", (0.1, 0.4), lambda _ip: True)
    opener.add([A, B], 0.0)
    opener.outgoing(0.0)
    opener.receive(b"anything", A, 0.05)
    assert {addr for _, (_, addr) in run(opener, 9.0, 0.05)} == {B}


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from([A, B])), max_size=20),
)
def test_the_limit_of_an_address_holds_whatever_is_asked(
    limit: int, wishes: list[tuple[float, Any]]
) -> None:
    budget = PacketBudget(limit)
    opener = Opener(b"x", (0.02, 0.06, 0.15, 0.35), budget.take)
    sent = []
    for at, where in sorted(wishes):
        opener.add([where], at)
        sent += opener.outgoing(at)
    sent += run(opener, 60.0, 5.0)
    assert len(sent) <= limit
    assert opener.sent == len(sent)


@given(st.integers(0, 2**32), st.floats(0.0, 0.4))
def test_with_losses_one_of_both_sides_packets_meets_an_open_nat(seed: int, loss: float) -> None:
    """A port-restricted NAT on either side: what comes before the own first packet is dropped."""
    chance = random.Random(seed)
    opener = Opener(b"M0", (0.02, 0.06, 0.15, 0.35), lambda _ip: True)
    opener.add([A], 0.05)
    openings = [at for at, _ in run(opener, 9.0, 0.05)]
    assert openings[0] == 0.05  # the NAT opens with the first packet, lost further on or not
    hellos, at = [0.0], 0.0
    for pause in DENSE_S:
        at += pause
        hellos.append(at)
    let_in = [at for at in hellos if at + 0.04 > openings[0] and chance.random() >= loss]
    assert len(let_in) >= 1 or loss > 0.3


# Who must know what.


def test_only_counting_nats_before_strict_filters_are_measured() -> None:
    easy_going = SideFacts(mapping="ei", filtering="ad")
    assert must_measure(COUNTING, CONE)
    assert must_measure(COUNTING, SideFacts())
    assert not must_measure(COUNTING, easy_going)
    assert not must_measure(CONE, COUNTING)
    assert both_count(COUNTING, COUNTING)
    assert not both_count(COUNTING, CONE)
    assert not both_count(CONE, COUNTING)


def test_a_port_must_be_guessed_where_one_is_random_and_the_other_strict() -> None:
    hard = SideFacts(mapping="apd", filtering="apd", kind="random")
    by_address = SideFacts(mapping="ei", filtering="ad")
    for one, other in ((hard, CONE), (hard, COUNTING), (hard, hard)):
        assert must_guess(one, other)
        assert must_guess(other, one)
    for one, other in ((hard, by_address), (hard, SideFacts()), (COUNTING, CONE), (CONE, CONE)):
        assert not must_guess(one, other)
        assert not must_guess(other, one)


class CountingNat:
    """Address-and-port-dependent mapping and filtering, ports one after the other."""

    def __init__(self, ip: str, last: int, step: int) -> None:
        self.ip, self.last, self.step = ip, last, step
        self.mappings: dict[Any, int] = {}

    def send(self, dest: Any) -> Any:
        """Return the external endpoint of a packet to ``dest``."""
        if dest not in self.mappings:
            self.last += self.step
            self.mappings[dest] = self.last
        return self.ip, self.mappings[dest]

    def lets_in(self, source: Any, endpoint: Any) -> bool:
        return self.mappings.get(source) == endpoint[1]


@given(
    others=st.integers(0, TRIED + 2),
    mine=st.integers(20_000, 40_000),
    theirs=st.integers(20_000, 40_000),
    steps=st.tuples(st.sampled_from([1, 2, -1]), st.sampled_from([1, 4, -2])),
)
def test_two_counting_nats_meet_with_other_mappings_in_between(
    others: int, mine: int, theirs: int, steps: tuple[int, int]
) -> None:
    caller = CountingNat("198.51.100.10", mine, steps[0])
    callee = CountingNat("203.0.113.10", theirs, steps[1])
    told, base = caller.last, callee.last
    opened = {callee.send(dest): dest for dest in next_ports(caller.ip, told, steps[0])}
    for number in range(others):
        caller.send(("192.0.2.1", number))
    met = 0
    for dest in meeting_points(callee.ip, base, steps[1]):
        source = caller.send(dest)
        met += dest in opened and callee.lets_in(source, dest)
    assert met == (1 if others < TRIED else 0)


def test_usable_endpoints_are_of_the_family_distinct_and_few() -> None:
    named = [A, A, ("2001:db8::1", 5), B, ("192.0.2.1", 1)]
    assert usable(named, ipv6=False, limit=2) == [A, B]
    assert usable(named, ipv6=True, limit=2) == [("2001:db8::1", 5)]


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        (NatPair(NATType.BLOCKED, 0, NATType.OPEN, 0), "this machine's UDP is blocked"),
        (NatPair(NATType.OPEN, 0, NATType.BLOCKED, 0), "the peer's UDP is blocked"),
        (
            NatPair(NATType.SYMMETRIC, DeltaType.RANDOM, NATType.PORT_RESTRICTED, DeltaType.EQUAL),
            "random",
        ),
        (NatPair(), None),
        (NatPair(NATType.SYMMETRIC, DeltaType.RANDOM, NATType.RESTRICTED, 0), None),
        (NatPair(NATType.SYMMETRIC, DeltaType.INDEPENDENT, NATType.PORT_RESTRICTED, 0), None),
    ],
)
def test_what_it_calls_impossible(pair: NatPair, word: str | None) -> None:
    said = UdpPunch.impossible(pair)
    assert said is None if word is None else word in (said or "")

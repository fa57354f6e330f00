from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate.errors import LocalProtocolError
from warpgate.hello.machine import (
    ANSWER_REPEATS_S,
    HELLO_TIMEOUT_S,
    MAX_CLAIMS,
    MAX_KEPT_BYTES,
    MAX_KEPT_DATAGRAMS,
    MAX_M2_PER_CLAIM,
    MAX_M2_REPEATS,
    Event,
    Failed,
    Hello,
    Initiator,
    Nominated,
    NonceCache,
    Proven,
    Responder,
    State,
)
from warpgate.hello.messages import (
    DATAGRAM_SIZE,
    M0,
    M1,
    M2,
    M3,
    PREFIX,
    PROBE,
    SIGNAL,
    message,
    pack_m0,
)

# A busy machine must not fail a test: hypothesis times each example otherwise.
untimed = settings(deadline=None)

WIRE = Path(__file__).parent / "wire"
PLUGIN_ID = "abcDEF012345678"
ADDR = ("192.0.2.1", 5)
MAX_STRANGER_PACKETS = 50


class Keys:
    def __init__(self, number: int) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


ALICE, BOB, EVE = Keys(1), Keys(2), Keys(3)


def seeded(label: str) -> Callable[[int], bytes]:
    count = 0

    def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha256(f"{label} {count}".encode()).digest()[:size]

    return entropy


def initiator(**changes: Any) -> Initiator:
    options: dict[str, Any] = {
        "identity": ALICE,
        "peer": BOB.public_key,
        "plugin_id": PLUGIN_ID,
        "datagram": True,
        "entropy": seeded("alice"),
        "nonces": NonceCache(),
    }
    machine = Initiator(**{**options, **changes})
    machine.start(0.0)
    return machine


def responder(**changes: Any) -> Responder:
    options: dict[str, Any] = {
        "identity": BOB,
        "peer": None,
        "plugin_id": None,
        "datagram": True,
        "entropy": seeded("bob"),
        "nonces": NonceCache(),
        "allow": lambda _peer, _plugin_id: True,
    }
    machine = Responder(**{**options, **changes})
    machine.start(0.0)
    return machine


def feed(machine: Hello, data: bytes, now: float = 0.0) -> list[bytes]:
    machine.receive(data, ADDR, now)
    return machine.outgoing(now)


def events(machine: Hello) -> list[Event]:
    found = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def kinds(machine: Hello) -> list[type]:
    return [type(event) for event in events(machine)]


def transcript(**options: Any) -> tuple[Initiator, Responder, bytes, bytes, bytes]:
    a, b = initiator(**options), responder(**options)
    [m1] = a.outgoing(0.0)
    [m2] = feed(b, m1)
    assert feed(a, m2) == []
    a.nominate(0.0)
    [m3] = a.outgoing(0.0)
    assert feed(b, m3) == []
    return a, b, m1, m2, m3


def in_state(role: str, state: State) -> Hello:
    _, _, m1, m2, m3 = transcript()
    machine: Hello = initiator() if role == "I" else responder()
    machine.outgoing(0.0)
    for at, data in ((State.WAIT_M1, m1), (State.WAIT_M2, m2), (State.WAIT_M3, m3)):
        if machine.state is not state and machine.state is at:
            feed(machine, data)
    if isinstance(machine, Initiator) and state is State.NOMINATED:
        machine.nominate(0.0)
        machine.outgoing(0.0)
    events(machine)
    assert machine.state is state
    return machine


def simulate(
    a: Initiator, b: Responder, deliver: Callable[[int], list[float]], until: float = 60.0
) -> list[Event]:
    """Run both; the n-th datagram sent arrives after each of ``deliver(n)`` seconds."""
    now, number = 0.0, itertools.count()
    order = itertools.count()
    flying: list[tuple[float, int, Hello, bytes]] = []
    seen: list[Event] = []
    while True:
        for machine, other in ((a, b), (b, a)):
            while (event := machine.next_event()) is not None:
                seen.append(event)
                if machine is a and isinstance(event, Proven):
                    a.nominate(now)
            for data in machine.outgoing(now):
                flying += [(now + d, next(order), other, data) for d in deliver(next(number))]
        if a.next_event() is not None:
            raise AssertionError("an event after all were taken")
        times = [t for t in (a.next_timeout(), b.next_timeout()) if t is not None]
        if flying:
            times.append(min(flying)[0])
        if not times or min(times) > until:
            return seen
        now = max(now, min(times))
        due = sorted(item for item in flying if item[0] <= now)
        flying = [item for item in flying if item[0] > now]
        for _, _, target, data in due:
            target.receive(data, ADDR, now)
        for machine in (a, b):
            timeout = machine.next_timeout()
            if timeout is not None and timeout <= now:
                machine.handle_timeout(now)


def assert_connected(a: Initiator, b: Responder, seen: list[Event]) -> None:
    assert a.state is b.state is State.NOMINATED
    assert a.keys == b.keys
    assert sorted(type(event).__name__ for event in seen) == ["Nominated"] * 2 + ["Proven"] * 2


def test_a_whole_hello() -> None:
    a, b, m1, m2, m3 = transcript()
    assert events(a) == [Proven(BOB.public_key, PLUGIN_ID, (), 1), Nominated()]
    assert events(b) == [Proven(ALICE.public_key, PLUGIN_ID, (), 1), Nominated()]
    assert a.keys == b.keys
    assert len(m1) == DATAGRAM_SIZE >= len(m2) > len(m3) == 72
    assert b.next_timeout() is None


def test_golden_transcript() -> None:
    golden = json.loads((WIRE / "hello_datagram.json").read_text())
    a, b, *wire = transcript(capabilities=("seal",))
    assert [data.hex() for data in wire] == [golden["m1"], golden["m2"], golden["m3"]]
    assert message(M0, pack_m0(PLUGIN_ID)).hex() == golden["m0"]
    for machine in (a, b):
        assert machine.keys.initiator_to_responder.hex() == golden["initiator_to_responder"]
        assert machine.keys.responder_to_initiator.hex() == golden["responder_to_initiator"]


@pytest.mark.parametrize("lost", list(itertools.product([False, True], repeat=7)))
def test_any_of_the_first_datagrams_lost(lost: tuple[bool, ...]) -> None:
    a, b = initiator(), responder()
    seen = simulate(a, b, lambda n: [] if n < len(lost) and lost[n] else [0.01])
    assert_connected(a, b, seen)


@untimed
@given(st.lists(st.lists(st.floats(0.0, 0.3), max_size=3), max_size=12))
def test_lost_repeated_and_reordered(fates: list[list[float]]) -> None:
    a, b = initiator(), responder()
    # At most five of them are lost, so that the repeats can make up for it.
    lost = 0
    for fate in fates:
        lost += not fate
        if lost > 5:
            fate.append(0.01)
    seen = simulate(a, b, lambda n: fates[n] if n < len(fates) else [0.01])
    assert_connected(a, b, seen)


def test_a_dead_path_ends_both_at_their_deadlines() -> None:
    a, b = initiator(), responder()
    seen = simulate(a, b, lambda _n: [])
    assert [str(e.cause) for e in seen if isinstance(e, Failed)] == [
        "timed out waiting for M2",
        "timed out waiting for M1",
    ]
    assert len(seen) == 2


def sent_at(machine: Hello, until: float) -> list[float]:
    times = []
    while (at := machine.next_timeout()) is not None and at < until:
        machine.handle_timeout(at)
        times += [round(at, 3)] * len(machine.outgoing(at))
    return times


def test_m1_is_repeated_after_60_120_240_ms() -> None:
    a = initiator()
    [m1] = a.outgoing(0.0)
    assert sent_at(a, HELLO_TIMEOUT_S) == [0.06, 0.18, 0.42, 0.9, 1.86, 2.86, 3.86, 4.86]
    a = initiator()
    a.outgoing(0.0)
    a.handle_timeout(0.059)
    assert a.outgoing(0.059) == []
    a.handle_timeout(0.06)
    assert a.outgoing(0.06) == [m1]


def test_a_late_timer_makes_no_burst() -> None:
    a = initiator()
    a.outgoing(0.0)
    a.handle_timeout(2.0)
    assert len(a.outgoing(2.0)) == 1
    assert a.next_timeout() == 2.12


def test_m2_is_repeated_until_m3_comes() -> None:
    _, _, m1, m2, m3 = transcript()
    b = responder()
    assert feed(b, m1) == [m2]
    assert sent_at(b, HELLO_TIMEOUT_S) == [0.1, 0.3, 0.7, 1.5, 2.5, 3.5, 4.5]
    b = responder()
    feed(b, m1)
    b.handle_timeout(0.1)
    assert b.outgoing(0.1) == [m2]
    feed(b, m3, 0.2)
    assert b.next_timeout() is None
    assert kinds(b) == [Proven, Nominated]


def test_m1_is_no_longer_repeated_once_m2_came() -> None:
    a = in_state("I", State.PROVEN)
    assert a.next_timeout() == HELLO_TIMEOUT_S


def test_a_repeated_m1_is_answered_at_once_with_the_same_m2() -> None:
    _, _, m1, m2, _ = transcript()
    b = in_state("R", State.WAIT_M3)
    assert feed(b, m1, 0.01) == [m2]
    assert b.dropped == 0
    assert b.next_timeout() == 0.1


def test_a_repeated_m2_is_answered_with_m3_for_30_s() -> None:
    a, _, _, m2, m3 = transcript()
    events(a)
    assert ANSWER_REPEATS_S == 30.0
    assert feed(a, m2, 0.1) == [m3]
    assert feed(a, m2, 29.9) == [m3]
    assert a.next_timeout() == 30.0
    assert feed(a, m2, 30.0) == []
    a.handle_timeout(30.0)
    assert a.next_timeout() is None
    assert feed(a, m2, 31.0) == []
    assert a.next_event() is None


def test_a_repeated_m2_does_not_nominate() -> None:
    a = in_state("I", State.PROVEN)
    assert feed(a, transcript()[3]) == []
    assert a.state is State.PROVEN
    assert a.dropped == 0


def test_what_comes_before_m3_is_kept_and_handed_over() -> None:
    _, _, _, _, m3 = transcript()
    b = in_state("R", State.WAIT_M3)
    for data in (b"\x00one", b"\x00two"):
        feed(b, data)
    assert b.leftover() == []
    feed(b, m3)
    feed(b, b"\x00three")
    assert b.leftover() == [b"\x00one", b"\x00two", b"\x00three"]
    assert b.leftover() == []


def test_what_is_kept_is_bounded_by_number_and_size() -> None:
    m3 = transcript()[4]
    b = in_state("R", State.WAIT_M3)
    for n in range(MAX_KEPT_DATAGRAMS + 10):
        feed(b, bytes([0, n]))
    assert b.dropped == 10
    feed(b, m3)
    assert b.leftover() == [bytes([0, n]) for n in range(MAX_KEPT_DATAGRAMS)]

    b = in_state("R", State.WAIT_M3)
    half = bytes(MAX_KEPT_BYTES // 2)
    for _ in range(3):
        feed(b, half)
    assert b.dropped == 1
    feed(b, m3)
    assert b.leftover() == [half, half]
    feed(b, half)
    assert b.leftover() == [half]


@pytest.mark.parametrize(
    ("role", "state"), [("I", State.WAIT_M2), ("I", State.PROVEN), ("R", State.WAIT_M1)]
)
def test_elsewhere_other_datagrams_are_dropped(role: str, state: State) -> None:
    machine = in_state(role, state)
    feed(machine, b"\x00data")
    feed(machine, b"")
    assert (machine.dropped, machine.state) == (2, state)
    assert machine.next_event() is None


# What a valid message does: the next state, and the message it is answered with.
DATAGRAM_TABLE: dict[tuple[str, State, int], tuple[State, int | None]] = {
    ("I", State.WAIT_M2, M0): (State.WAIT_M2, None),
    ("I", State.WAIT_M2, M2): (State.PROVEN, None),
    ("I", State.PROVEN, M2): (State.PROVEN, None),
    ("I", State.NOMINATED, M2): (State.NOMINATED, M3),
    ("R", State.WAIT_M1, M1): (State.WAIT_M3, M2),
    ("R", State.WAIT_M3, M1): (State.WAIT_M3, M2),
    ("R", State.WAIT_M3, M3): (State.NOMINATED, None),
}
STATES = [
    *(("I", state) for state in (State.WAIT_M2, State.PROVEN, State.NOMINATED)),
    *(("R", state) for state in (State.WAIT_M1, State.WAIT_M3, State.NOMINATED)),
]


@pytest.mark.parametrize("kind", [M0, M1, M2, M3, SIGNAL, 200])
@pytest.mark.parametrize(("role", "state"), STATES)
def test_every_message_in_every_state(role: str, state: State, kind: int) -> None:
    _, _, m1, m2, m3 = transcript()
    valid = {M0: message(M0, pack_m0(PLUGIN_ID)), M1: m1, M2: m2, M3: m3}
    machine = in_state(role, state)
    answers = feed(machine, valid.get(kind, PREFIX + bytes([kind]) + b"x"))
    expected = DATAGRAM_TABLE.get((role, state, kind))
    if expected is None:
        assert (machine.state, machine.dropped, answers) == (state, 1, [])
        assert machine.next_event() is None
    else:
        assert machine.state is expected[0]
        assert [data[7] for data in answers] == ([] if expected[1] is None else [expected[1]])
        assert machine.dropped == 0


def test_after_the_failure_everything_is_dropped() -> None:
    for machine in (initiator(), responder()):
        machine.handle_timeout(HELLO_TIMEOUT_S)
        assert kinds(machine) == [Failed]
        for data in transcript()[2:]:
            assert feed(machine, data, 6.0) == []
        assert machine.dropped == 3
        assert machine.next_event() is None
        assert machine.next_timeout() is None


def m1_of(**changes: Any) -> bytes:
    [m1] = initiator(**changes).outgoing(0.0)
    return m1


def with_field(m1: bytes, position: int, value: object) -> bytes:
    fields = msgpack.unpackb(m1[8:])
    fields[position] = value
    return message(M1, bytes(msgpack.packb(fields)))


def test_a_bad_m1_is_dropped_and_the_true_one_still_answered() -> None:
    refused = NonceCache()
    used = m1_of(entropy=seeded("used"))
    assert refused.use(msgpack.unpackb(used[8:])[4])
    b = responder(peer=ALICE.public_key, plugin_id=PLUGIN_ID, nonces=refused)
    bad = [
        m1_of(peer=EVE.public_key),
        m1_of(identity=EVE),
        m1_of(plugin_id="zzzzzzzzzzzzzzz"),
        used,
        with_field(m1_of(), 0, 2),
        with_field(m1_of(), 5, bytes(32)),
        with_field(m1_of(), 7, b""),
        message(M1, bytes(100)),
        PREFIX + b"\x01" + bytes(1025),
    ]
    for data in bad:
        assert feed(b, data) == []
    assert b.dropped == len(bad)
    assert b.next_event() is None
    assert len(feed(b, m1_of())) == 1


def test_a_refused_peer_gets_no_answer_and_the_cause_is_told_at_the_end() -> None:
    b = responder(allow=lambda _peer, _plugin_id: False)
    assert feed(b, m1_of()) == []
    b.handle_timeout(HELLO_TIMEOUT_S)
    [event] = events(b)
    assert isinstance(event, Failed)
    assert "may not connect" in str(event.cause)


def test_a_reflected_m1_is_dropped() -> None:
    a = initiator()
    [m1] = a.outgoing(0.0)
    assert feed(a, m1) == []
    assert (a.state, a.dropped) == (State.WAIT_M2, 1)
    b = responder(identity=ALICE)
    assert feed(b, m1) == []
    assert (b.state, b.dropped) == (State.WAIT_M1, 1)


def test_an_m1_replayed_to_another_hello_is_dropped() -> None:
    nonces = NonceCache()
    m1 = m1_of()
    assert feed(responder(nonces=nonces), m1)
    other = responder(nonces=nonces)
    assert feed(other, m1) == []
    assert other.dropped == 1


@pytest.mark.parametrize("which", [M2, M3])
def test_a_forged_message_does_not_stop_the_true_one(which: int) -> None:
    _, _, _, m2, m3 = transcript()
    machine = in_state("I", State.WAIT_M2) if which == M2 else in_state("R", State.WAIT_M3)
    true = m2 if which == M2 else m3
    for position in range(8, len(true)):
        forged = bytearray(true)
        forged[position] ^= 0x10
        assert feed(machine, bytes(forged)) == []
    for length in range(8, len(true)):
        assert feed(machine, true[:length]) == []
    assert machine.dropped == 2 * (len(true) - 8)
    assert machine.next_event() is None
    feed(machine, true)
    assert kinds(machine)[0] is Proven


@pytest.mark.parametrize("first", ["forged", "altered"])
def test_a_false_m1_that_comes_first_does_not_shut_out_the_true_one(first: str) -> None:
    a, b = initiator(), responder()
    [m1] = a.outgoing(0.0)
    false = m1_of(identity=EVE, entropy=seeded("eve"))
    if first == "altered":
        false = m1[:-1] + b"\x01"
    assert len(feed(b, false)) == 1
    [m2] = feed(b, m1)
    feed(a, m2)
    a.nominate(0.0)
    [m3] = a.outgoing(0.0)
    feed(b, m3)
    assert events(b) == [Proven(ALICE.public_key, PLUGIN_ID, (), 1), Nominated()]
    assert a.keys == b.keys


def test_every_byte_of_m1_is_under_the_signature() -> None:
    m1 = m1_of()
    for position in range(8, len(m1)):
        changed = bytearray(m1)
        changed[position] ^= 0x01
        a, b = initiator(), responder()
        a.outgoing(0.0)
        for m2 in feed(b, bytes(changed)):
            feed(a, m2)
        assert a.state is State.WAIT_M2
        assert a.next_event() is None


def test_the_number_of_claims_is_bounded() -> None:
    b = responder()
    answered = [
        bool(feed(b, m1_of(identity=Keys(n), entropy=seeded(str(n))))) for n in range(10, 20)
    ]
    assert answered == [True] * MAX_CLAIMS + [False] * (10 - MAX_CLAIMS)


def test_no_answer_is_larger_than_its_question() -> None:
    for own in ((), ("a" * 16,) * 4):
        m1 = m1_of()
        [m2] = feed(responder(capabilities=own), m1)
        assert len(m2) <= len(m1)
    [m2] = feed(responder(), m1_of())
    exact = with_field(m1_of(), 7, bytes(len(m2) - len(with_field(m1_of(), 7, b""))))
    assert len(exact) == len(m2)
    assert len(feed(responder(), exact)) == 1
    short = with_field(m1_of(), 7, bytes(len(m2) - len(with_field(m1_of(), 7, b"")) - 1))
    nonces = NonceCache()
    assert feed(responder(nonces=nonces), short) == []
    assert len(nonces) == 0


def test_a_silent_stranger_gets_few_packets_however_long_the_deadline() -> None:
    b = responder(timeout_s=60.0)
    sent = feed(b, m1_of())
    while (at := b.next_timeout()) is not None:
        b.handle_timeout(at)
        sent += b.outgoing(at)
    assert len(sent) == 1 + MAX_M2_REPEATS
    assert kinds(b) == [Failed]


def test_a_flood_of_m1_gets_a_bounded_answer() -> None:
    b = responder()
    floods = [m1_of(identity=Keys(n), entropy=seeded(str(n))) for n in range(10, 15)]
    sent: list[bytes] = []
    for step in range(200):
        for m1 in floods:
            sent += feed(b, m1, step * 0.025)
        b.handle_timeout(step * 0.025)
        sent += b.outgoing(step * 0.025)
    assert len(sent) == MAX_CLAIMS * MAX_M2_PER_CLAIM <= MAX_STRANGER_PACKETS
    assert all(len(data) <= DATAGRAM_SIZE for data in sent)


def test_the_queue_stays_bounded_when_nobody_takes_from_it() -> None:
    _, _, m1, m2, _ = transcript()
    b = in_state("R", State.WAIT_M3)
    a = in_state("I", State.NOMINATED)
    for _ in range(20):
        b.receive(m1, ADDR, 0.0)
        a.receive(m2, ADDR, 0.0)
    assert len(b.outgoing(0.0)) == len(a.outgoing(0.0)) == 1


def test_a_replayed_m3_changes_nothing() -> None:
    _, b, _, _, m3 = transcript()
    events(b)
    assert feed(b, m3) == []
    assert (b.state, b.dropped) == (State.NOMINATED, 1)
    assert b.next_event() is None
    assert b.leftover() == []


def test_an_announcement_is_repeated_until_m1_comes() -> None:
    b = responder(plugin_id=PLUGIN_ID, announce=True)
    m0 = message(M0, pack_m0(PLUGIN_ID))
    assert b.outgoing(0.0) == [m0]
    b.handle_timeout(0.06)
    assert b.outgoing(0.06) == [m0]
    a = initiator()
    [m1] = a.outgoing(0.0)
    assert feed(a, m0) == feed(a, m0) == []
    assert a.dropped == 0
    [m2] = feed(b, m1, 0.07)
    b.handle_timeout(0.17)
    assert b.outgoing(0.17) == [m2]


def test_capabilities_that_leave_no_room_are_this_sides_fault() -> None:
    for make in (initiator, responder):
        with pytest.raises(LocalProtocolError, match="capabilities"):
            make(capabilities=("a" * 16,) * 5)


@untimed
@given(
    st.sampled_from(STATES),
    st.lists(
        st.tuples(st.binary(max_size=400), st.sampled_from([None, 0, 1, 2, 3, 16])), max_size=6
    ),
)
def test_garbage_never_raises_and_proves_nothing(
    where: tuple[str, State], datagrams: list[tuple[bytes, int | None]]
) -> None:
    role, state = where
    machine = in_state(role, state)
    for body, kind in datagrams:
        data = body if kind is None else PREFIX + bytes([kind]) + body
        assert feed(machine, data) == []
    assert machine.state is state
    assert machine.next_event() is None


def test_m0_shows_a_punch_that_the_way_is_open_a_few_times() -> None:
    machine = initiator(repeats_s=(0.015,))
    [m1] = machine.outgoing(0.0)
    m0 = message(M0, pack_m0(PLUGIN_ID))
    answers = [feed(machine, m0, 0.001) for _ in range(10)]
    assert answers == [[m1]] * 4 + [[]] * 6


def test_a_punch_repeats_m1_by_its_own_schedule_and_then_as_usual() -> None:
    machine = initiator(repeats_s=(0.015, 0.015, 0.1))
    now = 0.0
    assert len(machine.outgoing(now)) == 1
    pauses = []
    for _ in range(5):
        due = machine.next_timeout()
        assert due is not None
        machine.handle_timeout(due)
        assert len(machine.outgoing(due)) == 1
        pauses.append(round(due - now, 6))
        now = due
    assert pauses == [0.015, 0.015, 0.1, 0.2, 0.4]


def test_a_probe_is_nothing_to_a_hello() -> None:
    machine = initiator()
    machine.receive(message(PROBE, bytes(16)), ADDR, 0.01)
    assert machine.dropped == 1
    assert machine.state is State.WAIT_M2

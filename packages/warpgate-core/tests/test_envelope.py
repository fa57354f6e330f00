from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import (
    BadSignature,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    StaleMessage,
)
from warpgate.identity import Identity, verify
from warpgate.protocol.envelope import (
    CLOCK_TOLERANCE_S,
    MAX_REMEMBERED,
    MAX_SIGNAL_BYTES,
    MAX_TTL_S,
    ReplayGuard,
    Signal,
    open_signal,
    pack_content,
    seal_signal,
    unpack_content,
)

WIRE = Path(__file__).parent / "wire"
ALICE = Identity.from_bytes(bytes(range(64)))
BOB = Identity.from_bytes(bytes(range(64, 128)))
EVE = Identity.from_bytes(bytes(range(128, 192)))
NOW = 1_790_000_000_123
SIGNAL = Signal(ALICE.public_key, bytes(range(16)), NOW, 10, "tcp_punch.Punch", b"the body")


def seal(receiver=BOB, signer=ALICE, **changes):
    fields = {
        "wire_name": SIGNAL.wire_name,
        "body": SIGNAL.body,
        "sent_ms": SIGNAL.sent_ms,
        "ttl_s": SIGNAL.ttl_s,
        "msg_id": SIGNAL.msg_id,
    }
    return seal_signal(signer, receiver.public_key, receiver.exchange_key, **{**fields, **changes})


def golden(name):
    return bytes.fromhex((WIRE / name).read_text())


def test_golden_content():
    assert pack_content(ALICE, BOB.public_key, SIGNAL) == golden("signal_content.hex")
    assert unpack_content(BOB.public_key, golden("signal_content.hex")) == SIGNAL


def test_golden_envelope():
    # HPKE is randomised: an envelope that was sealed once must open for ever.
    assert open_signal(BOB, golden("signal_envelope.hex")) == SIGNAL


def test_signature_is_over_what_the_wire_format_says():
    content = golden("signal_content.hex")
    text = (
        b"warpgate signal v1"
        + ALICE.public_key
        + BOB.public_key
        + SIGNAL.msg_id
        + NOW.to_bytes(8, "big")
        + b"\0\0\0\x0a"
        + b"\0\x0ftcp_punch.Punch"
        + b"the body"
    )
    assert verify(ALICE.public_key, content[:64], text)
    assert msgpack.unpackb(content[64:]) == [
        ALICE.public_key,
        SIGNAL.msg_id,
        NOW,
        10,
        "tcp_punch.Punch",
        b"the body",
    ]


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**48),
    st.integers(1, MAX_TTL_S),
    st.text("abcXYZ._-ß", min_size=1, max_size=64),
    st.binary(max_size=300),
)
def test_round_trip(msg_id, sent_ms, ttl_s, wire_name, body):
    data = seal(msg_id=msg_id, sent_ms=sent_ms, ttl_s=ttl_s, wire_name=wire_name, body=body)
    assert open_signal(BOB, data) == Signal(
        ALICE.public_key, msg_id, sent_ms, ttl_s, wire_name, body
    )


def test_sealed():
    data = seal()
    assert data[0] == 1
    assert data != seal()
    for part in (SIGNAL.body, b"tcp_punch", ALICE.public_key, BOB.public_key):
        assert part not in data


def test_only_its_receiver_opens_it():
    for other in (ALICE, EVE):
        with pytest.raises(BadSignature, match="not sealed to this node"):
            open_signal(other, seal())
    # Eve's exchange key with Bob's name on it: neither can be tricked into opening it.
    data = seal_signal(
        ALICE, BOB.public_key, EVE.exchange_key,
        wire_name="x", body=b"", sent_ms=NOW, ttl_s=1, msg_id=bytes(16),
    )  # fmt: skip
    for node in (BOB, EVE):
        with pytest.raises(BadSignature):
            open_signal(node, data)


def test_forwarding_to_somebody_else_breaks_the_signature():
    content = pack_content(ALICE, EVE.public_key, SIGNAL)  # Alice to Eve; Eve wants to pass it on
    with pytest.raises(BadSignature, match="not its sender's"):
        unpack_content(BOB.public_key, content)


@pytest.mark.parametrize(
    "field",
    [
        {"sender": EVE.public_key},
        {"msg_id": bytes(16)},
        {"sent_ms": NOW + 1},
        {"ttl_s": 11},
        {"wire_name": "tcp_punch.Punc"},
        {"body": b"another"},
        {"wire_name": "tcp_punch.Punchthe", "body": b" body"},
        {"wire_name": "tcp_punch.Punc", "body": b"hthe body"},
    ],
)
def test_every_field_is_signed(field):
    signature = pack_content(ALICE, BOB.public_key, SIGNAL)[:64]
    changed = replace(SIGNAL, **field)
    packed = pack_content(ALICE, BOB.public_key, changed)[64:]
    with pytest.raises(BadSignature):
        unpack_content(BOB.public_key, signature + packed)


def test_every_altered_byte():
    data = seal()
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1
        with pytest.raises(RemoteProtocolError):
            open_signal(BOB, bytes(altered))
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            open_signal(BOB, data[:size])
    with pytest.raises(BadSignature):
        open_signal(BOB, data + b"x")


def test_another_version():
    with pytest.raises(RemoteProtocolError, match="version"):
        open_signal(BOB, b"\x02" + seal()[1:])
    with pytest.raises(RemoteProtocolError, match="version"):
        open_signal(BOB, b"")


def test_size():
    overhead = len(seal(body=bytes(1000))) - 1000
    largest = seal(body=bytes(MAX_SIGNAL_BYTES - overhead))
    assert len(largest) == MAX_SIGNAL_BYTES == 8192
    assert len(open_signal(BOB, largest).body) == MAX_SIGNAL_BYTES - overhead
    with pytest.raises(MessageTooLarge, match="8192"):
        seal(body=bytes(MAX_SIGNAL_BYTES - overhead + 1))
    with pytest.raises(MessageTooLarge, match="8192"):
        open_signal(BOB, largest + b"x")


@pytest.mark.parametrize(
    "changes",
    [
        {"msg_id": bytes(15)},
        {"msg_id": bytes(17)},
        {"sent_ms": -1},
        {"sent_ms": 2**48 + 1},
        {"sent_ms": 1.5},
        {"ttl_s": 0},
        {"ttl_s": MAX_TTL_S + 1},
        {"wire_name": ""},
        {"wire_name": "x" * 129},
        {"wire_name": "a b"},
    ],
)
def test_arguments_out_of_range(changes):
    with pytest.raises(LocalProtocolError, match=next(iter(changes)).replace("_n", " n")):
        seal(**changes)
    # And a peer that says so anyway is refused.
    fields = replace(SIGNAL, **changes)
    packed = msgpack.packb(
        [fields.sender, fields.msg_id, fields.sent_ms, fields.ttl_s, fields.wire_name, fields.body]
    )
    with pytest.raises(RemoteProtocolError, match="malformed"):
        unpack_content(BOB.public_key, bytes(64) + packed)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"short", b""])
def test_a_peers_unusable_exchange_key(key):
    with pytest.raises(RemoteProtocolError, match="exchange key"):
        seal_signal(
            ALICE, BOB.public_key, key,
            wire_name="x", body=b"", sent_ms=NOW, ttl_s=1, msg_id=bytes(16),
        )  # fmt: skip


def test_further_elements_are_ignored():
    content = pack_content(ALICE, BOB.public_key, SIGNAL)
    longer = content[:64] + msgpack.packb([*msgpack.unpackb(content[64:]), {"new": 1}])
    assert unpack_content(BOB.public_key, longer) == SIGNAL


@given(st.binary(max_size=300))
def test_garbage(data):
    for attempt in (data, b"\1" + data):
        with pytest.raises(RemoteProtocolError):
            open_signal(BOB, attempt)
    with pytest.raises(RemoteProtocolError):
        unpack_content(BOB.public_key, data)


@given(
    st.lists(
        st.none()
        | st.booleans()
        | st.integers(0, 2**64 - 1)
        | st.binary(max_size=40)
        | st.just(ALICE.public_key)
        | st.just(bytes(16))
        | st.text(max_size=10),
        max_size=8,
    )
)
def test_msgpack_of_any_shape(fields):
    with pytest.raises(RemoteProtocolError):
        unpack_content(BOB.public_key, bytes(64) + msgpack.packb(fields))


def signal(n=0, **changes):
    return replace(SIGNAL, msg_id=n.to_bytes(16, "big"), **changes)


def refused(guard, message, now_ms):
    with pytest.raises(StaleMessage) as caught:
        guard.accept(message, now_ms)
    return caught.value


def test_accepted_once():
    guard = ReplayGuard()
    guard.accept(signal(1), NOW)
    assert refused(guard, signal(1), NOW).duplicate is True
    assert refused(guard, signal(1), NOW + 5_000).duplicate is True
    guard.accept(signal(2), NOW)
    guard.accept(signal(1, sender=EVE.public_key), NOW)  # another sender's ids are its own
    assert len(guard) == 3


@pytest.mark.parametrize("offset_ms", [-30_000, 0, 10_000, 40_000])
def test_within_its_window(offset_ms):
    ReplayGuard().accept(signal(), NOW + offset_ms)


@pytest.mark.parametrize("offset_ms", [-(10**12), -30_001, 40_001, 10**12])
def test_outside_its_window(offset_ms):
    guard = ReplayGuard()
    assert refused(guard, signal(), NOW + offset_ms).duplicate is False
    assert len(guard) == 0


def test_remembered_to_the_end_of_the_window():
    for arrival in (-30_000, 0, 39_999):
        guard = ReplayGuard()
        guard.accept(signal(), NOW + arrival)
        for again in range(max(arrival, 0), 40_001, 5_000):
            guard_error = refused(guard, signal(), NOW + again)
            assert guard_error.duplicate is True
        refused(guard, signal(), NOW + 40_001)


def test_forgets_what_is_over():
    guard = ReplayGuard()
    for n in range(100):
        guard.accept(signal(n), NOW)
    guard.accept(signal(100, sent_ms=NOW + 60_000), NOW + 60_000)
    assert len(guard) == 1


def test_a_clock_that_is_set_back_reopens_nothing():
    guard = ReplayGuard()
    guard.accept(signal(1), NOW)
    guard.accept(signal(2, sent_ms=NOW + 3_600_000), NOW + 3_600_000)  # signal 1 is forgotten
    refused(guard, signal(1), NOW)


def test_full_it_refuses_rather_than_letting_a_replay_through():
    guard = ReplayGuard(max_remembered=10)
    victim = signal(0)
    guard.accept(victim, NOW)
    for n in range(1, 100):  # a flood of longer-lived ones pushes it out
        guard.accept(signal(n, ttl_s=20 + n), NOW)
    assert len(guard) == 10
    assert refused(guard, victim, NOW).duplicate is False
    refused(guard, signal(50, ttl_s=70), NOW)  # so were these, and they stay refused, too
    refused(guard, signal(200), NOW)  # the price: new ones as short-lived as those
    guard.accept(signal(201, ttl_s=MAX_TTL_S), NOW)
    assert len(guard) == 10
    later = NOW + (MAX_TTL_S + CLOCK_TOLERANCE_S + 1) * 1000
    guard.accept(signal(202, sent_ms=later), later)  # and it recovers
    assert len(guard) == 1


def test_a_refused_signal_pushes_nothing_out():
    guard = ReplayGuard(max_remembered=3)
    for n in range(3):
        guard.accept(signal(n, ttl_s=100), NOW)
    for n in range(3, 20):
        refused(guard, signal(n, ttl_s=100), NOW)
    assert [refused(guard, signal(n, ttl_s=100), NOW).duplicate for n in range(3)] == [True] * 3


def test_room_for_all_that_strangers_may_send():
    per_second = 50  # WIRE.md section 2: all strangers together
    assert per_second * (MAX_TTL_S + 2 * CLOCK_TOLERANCE_S) < MAX_REMEMBERED


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(-50, 50), st.integers(1, 40), st.integers(-60, 90)
        ),
        max_size=60,
    )
)
def test_nothing_is_ever_accepted_twice(steps):
    guard = ReplayGuard(max_remembered=3)
    accepted = set()
    for n, sent, ttl_s, now in steps:
        message = signal(n, sent_ms=NOW + sent * 1000, ttl_s=ttl_s)
        message = replace(message, msg_id=bytes([n, ttl_s, sent + 50]) + bytes(13))
        try:
            guard.accept(message, NOW + now * 1000)
        except StaleMessage:
            continue
        assert sent - 30 <= now <= sent + ttl_s + 30
        assert message.msg_id not in accepted
        accepted.add(message.msg_id)
        assert len(guard) <= 3

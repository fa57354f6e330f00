"""Sealed records: whatever happens between the two ends, what comes out is what went in, or nothing."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import assume, given
from hypothesis import strategies as st

from warpgate.errors import BadSignature, MessageTooLarge, RemoteProtocolError, UnknownMessage
from warpgate.hello import records
from warpgate.hello.records import (
    DATAGRAM_OVERHEAD,
    MAX_KEYS_AHEAD,
    MAX_RECORD,
    REPLAY_WINDOW,
    STREAM_OVERHEAD,
    DatagramSeal,
    StreamSeal,
)
from warpgate.hello.seal import AES_256_GCM, CHACHA20_POLY1305

THERE, BACK = bytes(range(32)), bytes(range(32, 64))
CIPHERS = [AES_256_GCM, CHACHA20_POLY1305]
AEADS = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}


class SmallStream(StreamSeal):
    """Changes its key often."""

    max_records = 4
    max_bytes = 1000


class SmallDatagram(DatagramSeal):
    max_records = 4


def ends(kind, cipher=AES_256_GCM):
    return kind(cipher, THERE, BACK), kind(cipher, BACK, THERE)


def opened(seal, *pieces):
    return b"".join(b"".join(seal.decode(piece, None)) for piece in pieces)


def cut(data, rng):
    """Return the pieces of ``data``, cut anywhere."""
    at = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


# Streams.


@pytest.mark.parametrize("cipher", CIPHERS)
@given(
    messages=st.lists(st.binary(max_size=300) | st.just(bytes(MAX_RECORD + 5)), max_size=12),
    seed=st.integers(),
    small=st.booleans(),
)
def test_a_stream_may_be_cut_anywhere(cipher, messages, seed, small):
    a, b = ends(SmallStream if small else StreamSeal, cipher)
    wire = b"".join(a.encode(message) for message in messages) + a.farewell()
    assert opened(b, *cut(wire, random.Random(seed))) == b"".join(messages)
    assert b.ended


def test_both_directions_are_independent():
    a, b = ends(StreamSeal)
    assert opened(b, a.encode(b"there")) == b"there"
    assert opened(a, b.encode(b"back")) == b"back"
    with pytest.raises(BadSignature):
        opened(a, a.encode(b"reflected"))


def test_a_message_of_a_record_is_delivered_whole():
    a, b = ends(StreamSeal)
    wire = a.encode(bytes(MAX_RECORD)) + a.encode(b"next")
    assert list(b.decode(wire, None)) == [bytes(MAX_RECORD), b"next"]


@pytest.mark.parametrize("size", [0, 1, MAX_RECORD, MAX_RECORD + 1, 3 * MAX_RECORD + 7])
def test_sizes(size):
    a, b = ends(StreamSeal)
    wire = a.encode(bytes(size))
    assert len(wire) == size + -(-size // MAX_RECORD) * STREAM_OVERHEAD
    assert opened(b, wire) == bytes(size)


def test_reads_go_into_one_buffer():
    """As a pipe does it: the system writes where ``buffer`` says."""
    a, b = ends(StreamSeal)
    sent = random.Random(1).randbytes(3 << 20)
    wire = b"".join(a.encode(sent[at : at + 50_000]) for at in range(0, len(sent), 50_000))
    rng, got, at = random.Random(2), [], 0
    while at < len(wire):
        room = b.buffer()
        assert len(room) >= MAX_RECORD
        count = min(len(room), rng.randrange(1, 300_000), len(wire) - at)
        room[:count] = wire[at : at + count]
        got += b.filled(count)
        at += count
    assert b"".join(got) == sent
    assert max(map(len, got)) <= MAX_RECORD


@given(
    seed=st.integers(),
    bit=st.integers(min_value=0),
    sizes=st.lists(st.integers(1, 200), min_size=1),
)
def test_a_flipped_bit_ends_the_stream_at_its_record(seed, bit, sizes):
    a, b = ends(StreamSeal)
    wire = bytearray(b"".join(a.encode(bytes(size)) for size in sizes) + a.farewell())
    bit %= len(wire) * 8
    wire[bit // 8] ^= 1 << bit % 8
    got = bytearray()
    try:
        for piece in cut(bytes(wire), random.Random(seed)):
            for message in b.decode(piece, None):
                got += message
    except RemoteProtocolError:
        pass
    else:  # a longer size only leaves it waiting for more
        assert bit // 8 < len(wire)
    assert not b.ended
    assert len(got) < sum(sizes) or bit >= (len(wire) - STREAM_OVERHEAD) * 8
    assert not any(got)


@given(order=st.permutations(range(4)))
def test_records_out_of_order_end_the_stream(order):
    assume(list(order) != [0, 1, 2, 3])
    a, b = ends(StreamSeal)
    wires = [a.encode(b"%d" % number) for number in range(4)]
    with pytest.raises(BadSignature):
        opened(b, *[wires[number] for number in order])


def test_a_repeated_and_a_missing_record_end_the_stream():
    for chosen in ([0, 0], [1]):
        a, b = ends(StreamSeal)
        wires = [a.encode(b"0"), a.encode(b"1")]
        with pytest.raises(BadSignature):
            opened(b, *[wires[number] for number in chosen])


@given(keep=st.integers(min_value=0))
def test_a_stream_that_is_cut_off_has_not_ended(keep):
    a, b = ends(StreamSeal)
    wire = a.encode(b"one") + a.encode(b"two") + a.farewell()
    opened(b, wire[: keep % len(wire)])
    assert not b.ended


def test_nothing_follows_the_end():
    a, b = ends(StreamSeal)
    wire = a.farewell() + a.encode(b"more")
    with pytest.raises(RemoteProtocolError, match="after the one that closes"):
        opened(b, wire)


def test_headers_that_can_not_be_right():
    _, b = ends(StreamSeal)
    with pytest.raises(MessageTooLarge, match="65537 bytes; at most 65536"):
        opened(b, (MAX_RECORD + 1).to_bytes(4, "big"))
    a, b = ends(StreamSeal)
    with pytest.raises(UnknownMessage, match="kind 9"):
        opened(b, a._sealed(9, b""))


def test_a_peers_empty_record_is_nothing():
    a, b = ends(StreamSeal)
    assert list(b.decode(a._sealed(records.DATA, b"") + a.encode(b"x"), None)) == [b"x"]


@given(data=st.binary(max_size=2000))
def test_any_bytes_as_a_stream_are_refused_or_waited_for(data):
    _, b = ends(StreamSeal)
    with pytest.raises(RemoteProtocolError):  # in the end all of it is refused
        opened(b, data, bytes(MAX_RECORD + 100))


def key_after(key):
    return HKDF(SHA256(), 32, salt=None, info=b"warpgate seal v1 update").derive(key)


def test_a_streams_key_changes_after_its_records():
    a, b = ends(SmallStream)
    wire = [a.encode(b"%d" % number) for number in range(7)]
    # Numbers 0 to 2 carry data, number 3 announces the next key.
    assert [len(data) - 1 for data in wire] == [20, 20, 20, 40, 20, 20, 40]
    nonce = (0 << 24 | 1).to_bytes(4, "big") + (1 << 32).to_bytes(8, "big")
    assert AESGCM(key_after(THERE)).decrypt(nonce, wire[3][24:], None) == b"3"
    assert opened(b, *wire) == b"0123456"


def test_a_streams_key_changes_after_its_bytes():
    a, b = ends(SmallStream)
    wire = [a.encode(bytes(999)), a.encode(b"x"), a.encode(b"y"), a.encode(b"z")]
    assert [len(data) for data in wire] == [1019, 21, 41, 21]
    assert len(opened(b, *wire)) == 1002


def test_the_limits_are_the_documented_ones():
    assert (StreamSeal.max_records, StreamSeal.max_bytes) == (2**32, 64 * 2**30)
    assert DatagramSeal.max_records * 65536 <= 64 * 2**30
    assert REPLAY_WINDOW == 1024


# Datagrams.


@pytest.mark.parametrize("cipher", CIPHERS)
@given(message=st.binary(max_size=1500), kind=st.sampled_from([0, 1]))
def test_a_datagram_comes_out_as_it_went_in(cipher, message, kind):
    a, b = ends(DatagramSeal, cipher)
    wire = a.seal(message, kind)
    assert (wire[0], len(wire)) == (kind, len(message) + DATAGRAM_OVERHEAD)
    assert b.open(wire) == message


@given(seed=st.integers(), small=st.booleans())
def test_lost_reordered_and_repeated_datagrams(seed, small):
    """Each is opened at most once; within the window and one key, exactly once."""
    rng = random.Random(seed)
    a, b = ends(SmallDatagram if small else DatagramSeal)
    sent = [b"%d" % number for number in range(60)]
    wire = [(data, a.seal(data)) for data in sent]
    if not small:
        rng.shuffle(wire)
    wire = [item for item in wire if rng.random() < 0.8]
    arrived = [again for item in wire for again in [item] * rng.choice([1, 1, 2])]
    got = [data for _, item in arrived if (data := b.open(item)) is not None]
    assert len(set(got)) == len(got)
    assert got == list(dict.fromkeys(data for data, _ in wire))


@given(st.lists(st.integers(0, 3 * REPLAY_WINDOW), min_size=1, max_size=200))
def test_the_window_against_a_plain_model(numbers):
    a, b = ends(DatagramSeal)
    wire = [a.seal(b"") for _ in range(3 * REPLAY_WINDOW + 1)]
    seen, top = set(), -1
    for number in numbers:
        fresh = number not in seen and number > top - REPLAY_WINDOW
        assert (b.open(wire[number]) is not None) == fresh
        if fresh:
            seen.add(number)
            top = max(top, number)


def test_the_windows_edge():
    a, b = ends(DatagramSeal)
    wire = [a.seal(b"%d" % number) for number in range(REPLAY_WINDOW + 2)]
    assert b.open(wire[0]) == b"0"
    assert b.open(wire[REPLAY_WINDOW]) is not None
    assert b.open(wire[0]) is None  # older than what is remembered, and repeated
    assert b.open(wire[1]) == b"1"
    assert b.open(wire[REPLAY_WINDOW + 1]) is not None
    assert b.open(wire[1]) is None


def test_the_next_key_after_a_last_number():
    a, b = ends(DatagramSeal)
    a._out.last = a._out.end
    a._send_from(a._out.end)
    b._expect(a._out.end)
    wire = [a.seal(b"last"), a.seal(b"first"), a.seal(b"second")]
    assert wire[1][1:9] == (1 << 32).to_bytes(8, "big")
    assert [b.open(data) for data in (*wire, *wire)] == [b"last", b"first", b"second", *[None] * 3]


@given(bit=st.integers(min_value=0), message=st.binary(max_size=100))
def test_an_altered_datagram_is_dropped_and_changes_nothing(bit, message):
    a, b = ends(DatagramSeal)
    assert b.open(a.seal(b"before")) == b"before"
    wire = a.seal(message)
    altered = bytearray(wire)
    bit %= len(wire) * 8
    altered[bit // 8] ^= 1 << bit % 8
    assert b.open(bytes(altered)) is None
    assert b.open(wire) == message
    assert b.open(wire) is None


@given(
    st.binary(max_size=100)
    | st.builds(lambda n: b"\0" + n.to_bytes(8, "big") + bytes(16), st.integers(0, 2**64 - 1))
)
def test_any_bytes_as_a_datagram_are_dropped(data):
    _, b = ends(DatagramSeal)
    before = {**vars(b), "_ahead": None}
    assert b.open(data) is None
    assert len(b._ahead) <= MAX_KEYS_AHEAD
    assert {**vars(b), "_ahead": None} == before


def test_forged_numbers_cost_few_derivations(monkeypatch):
    _, b = ends(DatagramSeal)
    calls = []
    real = records.updated_seal_key
    monkeypatch.setattr(records, "updated_seal_key", lambda key: calls.append(1) or real(key))
    for generation in (1, 1, 1, 2, 3, 2, *range(1000), 2**32 - 1):
        assert b.open(b"\0" + (generation << 32).to_bytes(8, "big") + bytes(16)) is None
    assert len(calls) == MAX_KEYS_AHEAD


def test_whole_keys_may_get_lost():
    a, b = ends(SmallDatagram)
    wire = [a.seal(b"%d" % number) for number in range(4 * (MAX_KEYS_AHEAD + 3))]
    assert b.open(wire[-5]) is None  # one key more than allowed
    assert b.open(wire[4 * MAX_KEYS_AHEAD]) is not None
    assert b.open(wire[0]) is None
    assert b.open(wire[-1]) is not None


def test_a_datagrams_key_changes_by_its_number():
    a, b = ends(SmallDatagram)
    wire = [a.seal(b"%d" % number) for number in range(9)]
    assert [int.from_bytes(data[1:9], "big") for data in wire] == [
        *range(4),
        *range(1 << 32, (1 << 32) + 4),
        2 << 32,
    ]
    second = AESGCM(key_after(key_after(THERE)))
    assert second.decrypt(bytes(3) + wire[8][:9], wire[8][9:], None) == b"8"
    # The last ones under the first key are lost, and one comes too late.
    assert [b.open(wire[number]) for number in (0, 1, 5, 2, 4, 8, 7)] == [
        b"0",
        b"1",
        b"5",
        None,
        b"4",
        b"8",
        None,
    ]


def test_a_number_is_used_once():
    a, _ = ends(SmallDatagram)
    numbers = [a.seal(b"x")[1:9] for _ in range(40)]
    assert len(set(numbers)) == 40
    stream, _ = ends(SmallStream)
    nonces = []
    for _ in range(40):
        before = stream._out
        first = before.number
        stream.encode(b"x")
        nonces += [(before, number) for number in range(first, before.number)]
    assert len(set(nonces)) == len(nonces) >= 40

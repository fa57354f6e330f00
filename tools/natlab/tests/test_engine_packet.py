"""Parsing, rewriting, checksums and fragments, against full recomputation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_natlab.engine import build
from warpgate_natlab.engine.checksum import checksum, update
from warpgate_natlab.engine.frag import Reassembler, fragment
from warpgate_natlab.engine.packet import ERROR, SYN, MalformedPacket, Packet
from warpgate_natlab.engine.quote import Quote, seal

ports = st.integers(1, 65535)
data = st.binary(max_size=64)
v4 = st.binary(min_size=4, max_size=4)
v6 = st.binary(min_size=16, max_size=16)
Addrs = tuple[bytes, bytes, bytes, bytes]
pairs = st.one_of(st.tuples(v4, v4, v4, v4), st.tuples(v6, v6, v6, v6))


def plain_checksum(raw: bytes) -> int:
    raw += b"\0" * (len(raw) % 2)
    total = sum(raw[i] << 8 | raw[i + 1] for i in range(0, len(raw), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=200))
def test_checksum_equals_the_word_by_word_sum(raw: bytes) -> None:
    assert checksum(raw) == plain_checksum(raw)


@given(st.binary(min_size=4, max_size=40), st.binary(min_size=2, max_size=2))
def test_update_equals_recomputation(raw: bytes, new: bytes) -> None:
    raw = b"\x45" + raw + b"\0" * ((len(raw) + 1) % 2)  # a header is never all zero
    changed = raw[:2] + new + raw[4:]
    delta = int.from_bytes(new, "big") - int.from_bytes(raw[2:4], "big")
    assert update(plain_checksum(raw), delta) == plain_checksum(changed)


def make(kind: str, src: bytes, dst: bytes, sport: int, dport: int, body: bytes) -> Packet:
    if kind == "udp":
        return build.udp(src, sport, dst, dport, body)
    if kind == "tcp":
        return build.tcp(src, sport, dst, dport, SYN, seq=7, data=body)
    return build.echo(src, dst, sport, 3, body)


@given(st.sampled_from(["udp", "tcp", "echo"]), pairs, ports, ports, ports, ports, data)
def test_rewriting_keeps_every_checksum_right(
    kind: str, addrs: Addrs, sp: int, dp: int, nsp: int, ndp: int, body: bytes
) -> None:
    src, dst, new_src, new_dst = addrs
    packet = make(kind, src, dst, sp, dp, body)
    assert build.valid_checksums(packet)
    packet.rewrite_src(new_src, nsp)
    assert build.valid_checksums(packet)
    packet.rewrite_dst(new_dst, ndp)
    assert packet.hop()
    assert build.valid_checksums(packet)
    again = Packet(bytearray(packet.buf))
    assert (again.src, again.dst, again.ttl) == (new_src, new_dst, 63)
    assert (again.sport, again.dport) == ((ndp, ndp) if kind == "echo" else (nsp, ndp))
    # What was rewritten is byte for byte what would have been made at once.
    fresh = make(kind, new_src, new_dst, ndp if kind == "echo" else nsp, ndp, body)
    assert fresh.hop()
    assert bytes(fresh.buf) == bytes(packet.buf)


def test_a_udp_packet_without_checksum_stays_without() -> None:
    packet = build.udp(b"\1\2\3\4", 5, b"\5\6\7\10", 6, b"x")
    packet.buf[26:28] = b"\0\0"
    packet.rewrite_src(b"\11\12\13\14", 9)
    assert packet.buf[26:28] == b"\0\0"


@given(st.binary(max_size=120))
def test_garbage_raises_only_malformed_packet(raw: bytes) -> None:
    for first in (raw, b"\x45" + raw, b"\x60" + raw):
        try:
            packet = Packet(bytearray(first))
        except MalformedPacket:
            continue
        if packet.icmp == ERROR:
            Quote.read(packet)


@given(pairs, st.sampled_from(["udp", "tcp", "echo"]), ports, ports, ports)
def test_a_quote_is_rewritten_with_its_checksums(
    addrs: Addrs, kind: str, sp: int, dp: int, new_port: int
) -> None:
    src, dst, router, new_src = addrs
    inner = make(kind, src, dst, sp, dp, b"0123456789")
    error = build.icmp_error(router, inner, 1 if inner.v6 else 3, 0)
    quote = Quote.read(error)
    assert quote is not None
    assert (quote.src, quote.dst) == (src, dst)
    quote.rewrite_src(new_src, new_port)
    seal(error)
    assert build.valid_checksums(error)
    whole = Packet(bytearray(error.buf[error.l4 + 8 :]))
    assert build.valid_checksums(whole)
    assert (whole.src, whole.sport) == (new_src, new_port)


@given(
    st.integers(0, 3000), st.integers(68, 1500), st.randoms(use_true_random=False), st.booleans()
)
def test_fragments_in_any_order_make_the_packet_again(
    size: int, mtu: int, rng: random.Random, six: bool
) -> None:
    src, dst = (b"\xfd" + b"\0" * 14 + b"\1",) * 2 if six else (b"\1\2\3\4", b"\4\3\2\1")
    packet = build.udp(src, 1, dst, 2, rng.randbytes(size), df=False)
    pieces = fragment(packet, mtu, 77)
    assert all(len(piece.buf) <= mtu for piece in pieces)
    rng.shuffle(pieces)
    box = Reassembler()
    done = [
        whole for piece in pieces if (whole := box.add(piece, 0.0) if piece.fragment else piece)
    ]
    assert len(done) == 1
    assert bytes(done[0].buf[done[0].l4 :]) == bytes(packet.buf[packet.l4 :])
    assert build.valid_checksums(done[0])


def test_overlapping_fragments_are_thrown_away() -> None:
    packet = build.udp(b"\1\2\3\4", 1, b"\4\3\2\1", 2, bytes(100), df=False)
    first, second, *_ = fragment(packet, 68, 5)
    second.buf[7] -= 1  # eight bytes earlier
    box = Reassembler()
    assert box.add(first, 0.0) is None
    assert box.add(second, 0.0) is None
    assert not box._pending


def test_too_short_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="shorter"):
        Packet(b"\x45")

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpgate.errors import (
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    UnknownMessage,
)
from warpgate.hello import messages
from warpgate.hello.keys import KeyExchange, SealKeys, derive_seal_keys
from warpgate.hello.messages import (
    DATAGRAM_SIZE,
    M0,
    M1,
    M2,
    M3,
    MAGIC_SIZE,
    MAX_HELLO_BODY,
    MAX_SIGNAL_BODY,
    PREFIX,
    SIGNAL,
    Deframer,
    HelloFields,
    frame,
    looks_like_magic,
    message,
    pack_m0,
    pack_m1,
    pack_m2,
    parse_datagram,
    unpack_m0,
    unpack_m1,
    unpack_m2,
    unpack_m3,
)

# A busy machine must not fail a test: hypothesis times each example otherwise.
untimed = settings(deadline=None)

PLUGIN_ID = "abcDEF012345678"
FIELDS = HelloFields(
    PLUGIN_ID, b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32, ("seal", "aes")
)
ELEMENTS: list[Any] = [1, PLUGIN_ID, *(bytes([n]) * 32 for n in (1, 2, 3, 4)), ["seal", "aes"]]

keys = st.binary(min_size=32, max_size=32)
letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
plugin_ids = st.text(letters, min_size=15, max_size=15)
capabilities = st.lists(st.text("abcz0189-._", min_size=1, max_size=16), max_size=16).map(tuple)
hellos = st.builds(HelloFields, plugin_ids, keys, keys, keys, keys, capabilities)
garbage = st.binary(max_size=MAX_HELLO_BODY + 8)


def packed(**changes: Any) -> bytes:
    elements = list(ELEMENTS)
    for position, value in changes.items():
        elements[int(position[1:])] = value
    return bytes(msgpack.packb(elements))


def test_the_magic_is_a_seven_byte_prefix_that_no_text_begins_with() -> None:
    assert len(PREFIX) == 7
    assert PREFIX[0] >= 0x80
    assert MAGIC_SIZE == 8
    with pytest.raises(UnicodeDecodeError):
        PREFIX.decode()
    assert (M0, M1, M2, M3, SIGNAL) == (0, 1, 2, 3, 16)


def test_looks_like_magic_at_every_length() -> None:
    whole = frame(M1, b"x")
    for length in range(len(whole) + 1):
        assert looks_like_magic(whole[:length]) is (True if length >= 7 else None)
    for position in range(7):
        other = bytearray(whole)
        other[position] ^= 1
        assert looks_like_magic(bytes(other)) is False
        assert looks_like_magic(bytes(other[: position + 1])) is False
    assert looks_like_magic(b"GET / HTTP/1.1") is False
    assert looks_like_magic(PREFIX + b"\xee") is True


@untimed
@given(
    st.lists(st.tuples(st.sampled_from([M0, M1, M2, M3, SIGNAL]), garbage), max_size=4), st.data()
)
def test_deframer_finds_every_message_however_the_stream_is_cut(
    sent: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    sent = [(kind, body[:MAX_HELLO_BODY]) for kind, body in sent]
    stream = b"".join(frame(kind, body) for kind, body in sent) + PREFIX[:5]
    deframer = Deframer()
    received: list[tuple[int, bytes]] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        deframer.feed(stream[:size])
        stream = stream[size:]
        while (found := deframer.next()) is not None:
            received.append(found)
    assert received == sent
    assert deframer.leftover() == PREFIX[:5]
    assert deframer.leftover() == b""


def test_deframer_keeps_what_follows_a_message() -> None:
    deframer = Deframer()
    deframer.feed(frame(M3, b"signature") + b"data of the user")
    assert deframer.next() == (M3, b"signature")
    assert deframer.leftover() == b"data of the user"
    assert len(deframer) == 0


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x16\x03\x01", RemoteProtocolError),
        (PREFIX[:6] + b"x", RemoteProtocolError),
        (PREFIX + b"\x04", UnknownMessage),
        (PREFIX + b"\xff", UnknownMessage),
        (PREFIX + bytes([M1]) + (MAX_HELLO_BODY + 1).to_bytes(2, "big"), MessageTooLarge),
        (PREFIX + bytes([SIGNAL]) + (MAX_SIGNAL_BODY + 1).to_bytes(2, "big"), MessageTooLarge),
    ],
)
def test_deframer_refuses_as_soon_as_it_is_certain(
    data: bytes, error: type[RemoteProtocolError]
) -> None:
    deframer = Deframer()
    for position in range(len(data) - 1):
        deframer.feed(data[position : position + 1])
        if data[: position + 1] == PREFIX[: position + 1] or position >= 7:
            assert deframer.next() is None
    deframer.feed(data[-1:])
    for _ in range(2):
        with pytest.raises(error):
            deframer.next()


def test_deframer_takes_bodies_up_to_their_caps() -> None:
    deframer = Deframer()
    deframer.feed(frame(M1, bytes(MAX_HELLO_BODY)) + frame(SIGNAL, bytes(MAX_SIGNAL_BODY)))
    assert deframer.next() == (M1, bytes(MAX_HELLO_BODY))
    assert deframer.next() == (SIGNAL, bytes(MAX_SIGNAL_BODY))


@pytest.mark.parametrize("make", [message, frame])
def test_own_messages_beyond_a_cap_are_this_sides_fault(
    make: Callable[[int, bytes], bytes],
) -> None:
    with pytest.raises(LocalProtocolError, match="1025 bytes"):
        make(M1, bytes(MAX_HELLO_BODY + 1))
    with pytest.raises(LocalProtocolError, match="kind 7"):
        make(7, b"")


def test_datagrams_have_no_length() -> None:
    assert message(M1, b"body") == PREFIX + b"\x01body"
    assert frame(M1, b"body") == PREFIX + b"\x01\x00\x04body"
    assert parse_datagram(message(M2, b"body")) == (M2, b"body")
    for data in (b"", PREFIX, b"\x00" * 20):
        with pytest.raises(RemoteProtocolError):
            parse_datagram(data)
    with pytest.raises(UnknownMessage):
        parse_datagram(PREFIX + b"\x09")
    with pytest.raises(MessageTooLarge):
        parse_datagram(PREFIX + b"\x01" + bytes(MAX_HELLO_BODY + 1))


@untimed
@given(hellos)
def test_m1_and_m2_round_trip(fields: HelloFields) -> None:
    assert unpack_m1(pack_m1(fields, datagram=False)) == fields
    unsigned = pack_m2(fields, datagram=False)
    assert unpack_m2(unsigned + bytes(range(64))) == (fields, unsigned, bytes(range(64)))


@untimed
@given(plugin_ids)
def test_m0_round_trips(plugin_id: str) -> None:
    assert unpack_m0(pack_m0(plugin_id)) == plugin_id


def test_fields_stand_by_position() -> None:
    assert msgpack.unpackb(pack_m1(FIELDS, datagram=False)) == ELEMENTS
    assert msgpack.unpackb(pack_m2(FIELDS, datagram=True)) == ELEMENTS
    assert msgpack.unpackb(pack_m0(PLUGIN_ID)) == [PLUGIN_ID]


@pytest.mark.parametrize("own", [(), ("seal",), ("a" * 16,) * 4, ("abcdefghijkl",) * 5])
def test_m1_datagram_has_one_size_and_no_m2_is_larger(own: tuple[str, ...]) -> None:
    fields = replace(FIELDS, capabilities=own)
    m1 = message(M1, pack_m1(fields, datagram=True))
    m2 = message(M2, pack_m2(fields, datagram=True) + bytes(64))
    assert len(m1) == DATAGRAM_SIZE == 300
    assert len(m2) <= len(m1)
    assert unpack_m1(m1[MAGIC_SIZE:]) == fields
    assert not any(msgpack.unpackb(m1[MAGIC_SIZE:])[7])


@pytest.mark.parametrize(
    ("own", "datagram"),
    [
        (("a",) * 17, False),
        (("a" * 17,), False),
        (("é" * 9,), False),
        (("",), False),
        (("two\nlines",), False),
        (("a" * 16,) * 5, True),
    ],
)
def test_own_capabilities_are_checked(own: tuple[str, ...], datagram: bool) -> None:
    fields = replace(FIELDS, capabilities=own)
    for pack in (pack_m1, pack_m2):
        with pytest.raises(LocalProtocolError, match="capabilities"):
            pack(fields, datagram=datagram)


@pytest.mark.parametrize(
    "body",
    [
        packed(_1="short"),
        packed(_1=PLUGIN_ID.encode()),
        packed(_1="abcDEF01234567é"),
        packed(_2=bytes(31)),
        packed(_3=bytes(33)),
        packed(_4="a" * 32),
        packed(_5=None),
        packed(_6="seal"),
        packed(_6=["a"] * 17),
        packed(_6=["a" * 17]),
        packed(_6=[""]),
        packed(_6=[b"seal"]),
        packed(_6=["\x1b[31m"]),
        bytes(msgpack.packb(ELEMENTS[:6])),
        bytes(msgpack.packb({0: 1})),
        bytes(msgpack.packb(ELEMENTS)) + b"\x00",
        bytes(msgpack.packb(ELEMENTS))[:-1],
        bytes(msgpack.packb([*ELEMENTS, *[None] * 30])),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 1000,
        b"\x97\x01\xa1\xff",
        b"",
    ],
)
def test_bad_fields_are_the_peers_fault(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_m1(body)
    with pytest.raises(RemoteProtocolError):
        unpack_m2(body + bytes(64))


@pytest.mark.parametrize("version", [0, 2, 255, 2**63, -1, True, 1.0, "1", None, b"\x01"])
def test_any_other_version_is_unknown_whatever_follows(version: object) -> None:
    for body in (packed(_0=version), bytes(msgpack.packb([version]))):
        with pytest.raises(UnknownMessage, match="this side speaks 1"):
            unpack_m1(body)
        with pytest.raises(UnknownMessage, match="this side speaks 1"):
            unpack_m2(body + bytes(64))


def test_unknown_elements_are_ignored() -> None:
    extra = [*ELEMENTS, b"padding", {"future": [1, 2]}, "more"]
    assert unpack_m1(bytes(msgpack.packb(extra))) == FIELDS
    assert unpack_m2(bytes(msgpack.packb(extra)) + bytes(64))[0] == FIELDS
    assert unpack_m0(bytes(msgpack.packb([PLUGIN_ID, 5]))) == PLUGIN_ID


def test_oversize_bodies_are_refused_undecoded() -> None:
    for unpack in (unpack_m0, unpack_m1, unpack_m2):
        with pytest.raises(MessageTooLarge):
            unpack(b"\xc0" * (MAX_HELLO_BODY + 65))


def test_m3_is_a_signature() -> None:
    assert unpack_m3(bytes(range(64))) == bytes(range(64))
    for size in (0, 63, 65):
        with pytest.raises(RemoteProtocolError):
            unpack_m3(bytes(size))


@untimed
@given(garbage)
@example(b"\xc7\x0c\xff" + b"\xff" * 12)
@example(b"\x81\x90\x01")
def test_garbage_gives_the_declared_error_or_a_message(data: bytes) -> None:
    for unpack in (unpack_m0, unpack_m1, unpack_m2, unpack_m3, parse_datagram):
        try:
            unpack(data)
        except RemoteProtocolError:
            pass
    deframer = Deframer()
    deframer.feed(data)
    try:
        deframer.next()
    except RemoteProtocolError:
        pass


def test_exported_names_exist() -> None:
    assert sorted(messages.__all__, key=str.lower) == sorted(set(messages.__all__), key=str.lower)
    assert all(hasattr(messages, name) for name in messages.__all__)


LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("share", LOW_ORDER)
def test_a_share_of_low_order_is_refused(share: str) -> None:
    with pytest.raises(RemoteProtocolError, match="share"):
        KeyExchange(b"\x07" * 32).shared_secret(bytes.fromhex(share))


def test_key_exchange_of_rfc_7748_section_6_1() -> None:
    seed = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    bob = KeyExchange(bytes.fromhex(seed))
    alice = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert bob.share.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert bob.shared_secret(bytes.fromhex(alice)).hex() == shared


def test_seal_keys_differ_by_direction_and_transcript_and_stay_out_of_repr() -> None:
    one = derive_seal_keys(b"s" * 32, b"m1", b"m2")
    assert one.initiator_to_responder != one.responder_to_initiator
    assert derive_seal_keys(b"s" * 32, b"m1", b"m2") == one
    others = [derive_seal_keys(b"s" * 32, b"m1", b"m3"), derive_seal_keys(b"t" * 32, b"m1", b"m2")]
    for other in others:
        assert other.initiator_to_responder != one.initiator_to_responder
        assert other.responder_to_initiator != one.responder_to_initiator
    assert repr(one) == "SealKeys()"
    assert isinstance(one, SealKeys)
    assert {len(one.initiator_to_responder), len(one.responder_to_initiator)} == {32}

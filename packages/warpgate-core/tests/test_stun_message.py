from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import BadSignature, MessageTooLarge, RemoteProtocolError
from warpgate.stun import attributes as att
from warpgate.stun.attributes import ATTRIBUTES, Attribute, ErrorCode, table
from warpgate.stun.message import (
    BINDING,
    MAX_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    MessageClass,
    decode,
    encode,
    long_term_key,
    short_term_key,
)

TID = bytes(range(12))

# RFC 5769 section 2.
PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RESPONSE_V4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RESPONSE_V6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)
LONG_TERM = bytes.fromhex(
    "000100602112a44278ad3433c6ad72c029da412e"
    "00060012e3839ee38388e383aae38383e382afe382b90000"
    "0015001c662f2f3439396b39353464364f4c33346f4c394653547679363473 41"
    "0014000b6578616d706c652e6f726700"
    "00080014f67024656dd64a3e02b8e0712e85c9a28ca89666".replace(" ", "")
)
ICE = table(
    Attribute(
        0x0024, "PRIORITY", lambda v, _: v.to_bytes(4, "big"), lambda d, _: int.from_bytes(d)
    ),
    base=ATTRIBUTES,
)


def test_rfc5769_request() -> None:
    message = decode(REQUEST, ICE)
    assert (message.method, message.message_class) == (BINDING, MessageClass.REQUEST)
    assert message.transaction_id.hex() == "b7e7a701bc34d686fa87dfae"
    assert message.get(att.SOFTWARE) == "STUN test client"
    assert message.get(att.USERNAME) == "evtj:h6vY"
    assert message.get(0x0024) == 0x6E0001FF
    assert message.unknown_required == ()
    assert message.fingerprint
    assert message.authenticated(short_term_key(PASSWORD))
    assert not message.authenticated(short_term_key(PASSWORD + "x"))
    assert decode(REQUEST).unknown_required == (0x0024,)


@pytest.mark.parametrize(
    ("data", "mapped"),
    [
        (RESPONSE_V4, ("192.0.2.1", 32853)),
        (RESPONSE_V6, ("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
    ],
)
def test_rfc5769_responses(data: bytes, mapped: tuple[str, int]) -> None:
    message = decode(data)
    assert message.message_class == MessageClass.SUCCESS
    assert message.get(att.SOFTWARE) == "test vector"
    assert message.get(att.XOR_MAPPED_ADDRESS) == mapped
    assert message.authenticated(short_term_key(PASSWORD))


def test_rfc5769_long_term() -> None:
    message = decode(LONG_TERM)
    name = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
    assert message.get(att.USERNAME) == name
    assert message.get(att.NONCE) == "f//499k954d6OL34oL9FSTvy64sA"
    assert message.get(att.REALM) == "example.org"
    assert not message.fingerprint
    assert message.authenticated(long_term_key(name, "example.org", "TheMatrIX"))
    again = encode(
        BINDING, MessageClass.REQUEST, message.transaction_id,
        [(number, message.get(number)) for number in (att.USERNAME, att.NONCE, att.REALM)],
        key=long_term_key(name, "example.org", "TheMatrIX"), fingerprint=False,
    )  # fmt: skip
    assert again == LONG_TERM  # its padding is of zeros, as ours


@pytest.mark.parametrize("place", range(20, len(RESPONSE_V4), 3))
def test_a_changed_byte_breaks_fingerprint_or_form(place: int) -> None:
    changed = bytearray(RESPONSE_V4)
    changed[place] ^= 0x01
    with pytest.raises(RemoteProtocolError):
        decode(bytes(changed))


@pytest.mark.parametrize("sha256", [False, True])
def test_integrity(sha256: bool) -> None:
    data = encode(BINDING, MessageClass.SUCCESS, TID, [(att.XOR_MAPPED_ADDRESS, ("::1", 9))],
                  key=b"key", sha256=sha256)  # fmt: skip
    message = decode(data)
    assert message.authenticated(b"key")
    assert not message.authenticated(b"other")
    assert not decode(encode(BINDING, MessageClass.SUCCESS, TID)).authenticated(b"key")


def test_what_follows_integrity_does_not_count() -> None:
    inner = encode(BINDING, MessageClass.SUCCESS, TID, key=b"key", fingerprint=False)
    stray = b"\x00\x20\x00\x08" + att.encode_xor_address(("192.0.2.9", 9), TID)
    data = inner[:2] + (len(inner) - 20 + len(stray)).to_bytes(2) + inner[4:] + stray
    message = decode(data)
    assert message.get(att.XOR_MAPPED_ADDRESS) is None
    assert message.authenticated(b"key")


VALUES = [
    (att.MAPPED_ADDRESS, ("198.51.100.1", 1)),
    (att.MAPPED_ADDRESS, ("2001:db8::1", 65535)),
    (att.CHANGE_REQUEST, 6),
    (att.USERNAME, "ü"),
    (att.ERROR_CODE, ErrorCode(420, "Unknown Attribute")),
    (att.UNKNOWN_ATTRIBUTES, (0x0003, 0x7FFF)),
    (att.REALM, "r"),
    (att.NONCE, "n" * 763),
    (att.XOR_MAPPED_ADDRESS, ("2001:db8::1", 4242)),
    (att.PADDING, b"\0" * 100),
    (att.RESPONSE_PORT, 4000),
    (att.SOFTWARE, "x"),
    (att.ALTERNATE_SERVER, ("192.0.2.7", 3478)),
    (att.RESPONSE_ORIGIN, ("192.0.2.7", 3478)),
    (att.OTHER_ADDRESS, ("192.0.2.8", 3479)),
]


@pytest.mark.parametrize(("number", "value"), VALUES)
def test_every_attribute_comes_back(number: int, value: object) -> None:
    assert decode(encode(BINDING, MessageClass.ERROR, TID, [(number, value)])).get(number) == value


@given(method=st.integers(0, 0xFFF), kind=st.sampled_from(list(MessageClass)))
def test_method_and_class_come_back(method: int, kind: MessageClass) -> None:
    message = decode(encode(method, kind, TID))
    assert (message.method, message.message_class) == (method, kind)


@given(st.binary(max_size=200))
def test_garbage_after_a_good_header_raises_only_the_declared_error(body: bytes) -> None:
    body += bytes(-len(body) % 4)
    data = b"\x01\x01" + len(body).to_bytes(2) + bytes.fromhex("2112a442") + TID + body
    try:
        decode(data)
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=100))
def test_garbage_raises_the_declared_error(data: bytes) -> None:
    if data[4:8] != bytes.fromhex("2112a442"):
        with pytest.raises(RemoteProtocolError):
            decode(data)


@given(st.sampled_from([REQUEST, RESPONSE_V4, RESPONSE_V6, LONG_TERM]), st.data())
def test_damage_raises_only_the_declared_error(good: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    try:
        decode(good[:place] + bytes([byte]) + good[place + 1 :])
    except RemoteProtocolError:
        pass


def test_caps() -> None:
    with pytest.raises(MessageTooLarge):
        decode(
            encode(BINDING, MessageClass.SUCCESS, TID, [(att.PADDING, bytes(MAX_MESSAGE_BYTES))])
        )
    with pytest.raises(MessageTooLarge):
        decode(
            encode(BINDING, MessageClass.SUCCESS, TID, [(att.PADDING, b"")] * (MAX_ATTRIBUTES + 1))
        )
    long = b"x" * 764
    for number in (att.SOFTWARE, att.REALM, att.NONCE, att.USERNAME):
        with pytest.raises(MessageTooLarge):
            ATTRIBUTES[number].decode(long, TID)
    with pytest.raises(ValueError, match="exceeds"):
        encode(BINDING, MessageClass.REQUEST, TID, [(att.USERNAME, "x" * 514)])


def test_fingerprint_must_be_last_and_right() -> None:
    data = bytearray(encode(BINDING, MessageClass.SUCCESS, TID))
    data[-1] ^= 1
    with pytest.raises(BadSignature):
        decode(bytes(data))
    wrong_place = encode(
        BINDING, MessageClass.SUCCESS, TID, [(att.FINGERPRINT, 1), (att.SOFTWARE, "x")]
    )
    with pytest.raises(BadSignature):
        decode(wrong_place)

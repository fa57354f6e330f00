"""ChannelData, the framing of streams, and TURN's attributes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import RemoteProtocolError
from warpgate.net.constants import IP4, IP6
from warpgate.stun.message import MessageClass, decode, encode
from warpgate_plugin_turn import wire

TID = b"0123456789ab"


def test_channel_data_has_the_form_of_the_rfc() -> None:
    assert wire.channel_data(0x4001, b"hello", padded=False) == b"\x40\x01\x00\x05hello"
    assert wire.channel_data(0x4001, b"hello", padded=True) == b"\x40\x01\x00\x05hello\0\0\0"
    assert wire.channel_data(0x4001, b"four", padded=True) == b"\x40\x01\x00\x04four"
    assert wire.channel_data(0x4001, b"", padded=True) == b"\x40\x01\x00\x00"


@given(st.integers(0x4000, 0x4FFF), st.binary(max_size=2000), st.booleans())
def test_channel_data_round_trip(channel: int, data: bytes, padded: bool) -> None:
    message = wire.channel_data(channel, data, padded=padded)
    assert wire.is_channel_data(message)
    assert wire.read_channel_data(message) == (channel, data)
    assert not padded or len(message) % 4 == 0


def test_truncated_channel_data() -> None:
    with pytest.raises(RemoteProtocolError, match="truncated"):
        wire.read_channel_data(b"\x40\x00\x00\x05hell")


@pytest.mark.parametrize("data", [b"\x00\x01\x00\x00", b"\x80\x00\x00\x00", b"\x40\x00", b""])
def test_what_is_no_channel_data(data: bytes) -> None:
    assert not wire.is_channel_data(data)


messages = st.one_of(
    st.binary(max_size=300).map(lambda data: wire.channel_data(0x4000, data, padded=True)),
    st.binary(max_size=300).map(
        lambda data: encode(
            wire.DATA,
            MessageClass.INDICATION,
            TID,
            [(wire.DATA_ATTRIBUTE, data)],
            table=wire.TURN_ATTRIBUTES,
        )
    ),
)


@given(st.lists(messages, max_size=8), st.data())
def test_a_stream_may_be_cut_anywhere(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    splitter = wire.StreamSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(stream[start:end])
    assert found == sent
    assert splitter.leftover() == b""


@given(st.binary(max_size=400))
def test_any_stream_is_cut_or_refused(data: bytes) -> None:
    splitter = wire.StreamSplitter()
    try:
        found = splitter.feed(data)
    except RemoteProtocolError:
        return
    assert b"".join(found) + splitter.leftover() == data


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request",  # 0x48.. is a channel: of 21584 bytes, which never come
        b"\x50\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x01\x00\x03",  # no multiple of four
        b"\x01\x01\x10\x00",  # more than any STUN message has
    ],
)
def test_a_stream_of_something_else(data: bytes) -> None:
    splitter = wire.StreamSplitter()
    if data.startswith(b"HTTP"):
        assert splitter.feed(data) == []
        return
    with pytest.raises(RemoteProtocolError):
        splitter.feed(data)


@pytest.mark.parametrize(
    ("number", "value", "on_the_wire"),
    [
        (wire.CHANNEL_NUMBER, 0x4000, b"\x40\x00\x00\x00"),
        (wire.LIFETIME, 600, b"\x00\x00\x02\x58"),
        (wire.REQUESTED_TRANSPORT, 17, b"\x11\x00\x00\x00"),
        (wire.REQUESTED_ADDRESS_FAMILY, IP4, b"\x01\x00\x00\x00"),
        (wire.REQUESTED_ADDRESS_FAMILY, IP6, b"\x02\x00\x00\x00"),
        (wire.CONNECTION_ID, 7, b"\x00\x00\x00\x07"),
    ],
)
def test_attributes(number: int, value: int, on_the_wire: bytes) -> None:
    attribute = wire.TURN_ATTRIBUTES[number]
    assert attribute.encode(value, TID) == on_the_wire
    assert attribute.decode(on_the_wire, TID) == value
    with pytest.raises(RemoteProtocolError):
        attribute.decode(on_the_wire + b"\0", TID)


@given(st.binary(max_size=200))
def test_hostile_attributes_never_raise_anything_else(data: bytes) -> None:
    for attribute in wire.TURN_ATTRIBUTES.values():
        try:
            attribute.decode(data, TID)
        except RemoteProtocolError:
            pass


def test_a_message_with_turn_attributes() -> None:
    peer = ("192.0.2.1", 4000)
    raw = encode(
        wire.SEND,
        MessageClass.INDICATION,
        TID,
        [(wire.XOR_PEER_ADDRESS, peer), (wire.DATA_ATTRIBUTE, b"data")],
        table=wire.TURN_ATTRIBUTES,
    )
    message = decode(raw, wire.TURN_ATTRIBUTES)
    assert message.method == wire.SEND
    assert message.get(wire.XOR_PEER_ADDRESS) == peer
    assert message.get(wire.DATA_ATTRIBUTE) == b"data"

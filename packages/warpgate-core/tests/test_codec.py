from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from warpgate.errors import (
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    UnknownMessage,
)
from warpgate.net.constants import IP4, IP6
from warpgate.protocol import strict
from warpgate.protocol.codec import (
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_DEPTH,
    META_FIELDS,
    ROUTING_FIELDS,
    MessageTable,
    decode_body,
    encode_body,
)
from warpgate.protocol.proto_msg import ConMsg, Meta, ProtoMsg, Routing

META = [0, "", 0, b"", 0, 1, False, ""]
ROUTING = [0, b"", 0]


class Note(ConMsg):
    class Payload(BaseModel):
        text: str = ""
        extra: object = None


def test_every_field_is_on_the_wire_in_the_models_order():
    assert tuple(Meta.model_fields) == META_FIELDS
    assert tuple(Routing.model_fields) == ROUTING_FIELDS


def test_body_is_by_position_and_the_payload_by_name():
    msg = Note(payload={"text": "hi"})
    assert msgpack.unpackb(encode_body(msg)) == [META, ROUTING, {"text": "hi", "extra": None}]
    assert msgpack.unpackb(encode_body(ConMsg())) == [META, ROUTING, None]
    assert decode_body(Note, encode_body(msg)) == msg


@pytest.mark.parametrize(("family", "on_wire"), [(0, 0), (IP4, 4), (IP6, 6)])
def test_families_do_not_depend_on_the_system(family, on_wire):
    msg = ConMsg(meta={"af": family}, routing={"af": family})
    meta, routing, _ = msgpack.unpackb(encode_body(msg))
    assert (meta[2], routing[0]) == (on_wire, on_wire)
    assert decode_body(ConMsg, encode_body(msg)) == msg


def test_older_and_newer_peers():
    older = decode_body(ConMsg, msgpack.packb([[5, "abc"], [], None]))
    assert older == ConMsg(meta={"ttl": 5, "pipe_id": "abc"})
    newer = [[*META, "new"], [*ROUTING, {"new": 1}], None, [1, 2, 3]]
    assert decode_body(ConMsg, msgpack.packb(newer)) == ConMsg()


def with_meta(index, value):
    return [[*META[:index], value, *META[index + 1 :]], ROUTING, None]


@pytest.mark.parametrize(
    "body",
    [
        None,
        5,
        {},
        [],
        [META, ROUTING],
        [{}, ROUTING, None],
        [META, None, None],
        [META, ROUTING, []],
        [META, ROUTING, 5],
        [META, ROUTING, {"text": 5}],
        [META, ROUTING, {"text": None}],
        with_meta(0, -1),
        with_meta(0, 2**48 + 1),
        with_meta(0, None),
        with_meta(1, "x" * 16),
        with_meta(1, 5),
        with_meta(2, 2),
        with_meta(2, 10),
        with_meta(2, "4"),
        with_meta(2, [4]),
        with_meta(3, bytes(2049)),
        with_meta(4, 2**32),
        with_meta(5, 256),
        with_meta(6, "perhaps"),
        with_meta(7, "x" * 65),
        [META, [0, bytes(2049)], None],
        [META, [4, b"", -1], None],
        [META, [5, b"", 1], None],
    ],
)
def test_refused_bodies(body):
    with pytest.raises(RemoteProtocolError):
        decode_body(Note, msgpack.packb(body))


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_capped():
    def body(depth):
        return msgpack.packb([META, ROUTING, {"extra": nested(depth)}])

    assert decode_body(Note, body(MAX_PAYLOAD_DEPTH - 2)).payload.extra
    for depth in (MAX_PAYLOAD_DEPTH, 400):
        with pytest.raises(RemoteProtocolError, match="deeper"):
            decode_body(Note, body(depth))
    for raw in (b"\x91" * 8000, b"\x81" * 8000, b"\xdc\xff\xff" * 2000, b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError):
            decode_body(Note, raw)


def test_what_one_side_sends_the_other_takes():
    msg = Note(payload={"extra": nested(MAX_PAYLOAD_DEPTH - 2)})
    assert decode_body(Note, encode_body(msg)) == msg


def test_size_is_capped():
    with pytest.raises(MessageTooLarge, match="8192"):
        decode_body(Note, bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(MessageTooLarge, match="8192"):
        encode_body(Note(payload={"text": "x" * MAX_MESSAGE_BYTES}))


@given(st.binary(max_size=200))
def test_garbage(data):
    for attempt in (data, b"\x93" + data, b"\x93" + msgpack.packb(META) + data):
        try:
            msg = decode_body(Note, attempt)
        except RemoteProtocolError:
            continue
        assert isinstance(msg, Note)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.lists(values, max_size=9), st.lists(values, max_size=4), values)
def test_msgpack_of_any_shape(meta, routing, payload):
    for body in (
        [meta, routing, payload],
        [meta, ROUTING, None],
        [META, ROUTING, {"extra": payload}],
    ):
        try:
            msg = decode_body(Note, msgpack.packb(body))
        except RemoteProtocolError:
            continue
        assert isinstance(msg.meta.ttl, int)
        assert isinstance(msg.meta.src_buf, bytes)
        assert isinstance(msg.payload, Note.Payload)


@given(st.binary(max_size=100))
def test_strict_unpack_raises_value_error_only(data):
    try:
        value = strict.unpack(data)
    except ValueError:
        return
    repr(value)


def test_strict_unpack_takes_one_whole_value():
    assert strict.unpack(b"\x01") == 1
    for data in (b"", b"\x01\x01", b"\x92\x01", b"\xc1", b"\x81\x90\x01", b"\xa1\xff"):
        with pytest.raises(ValueError):
            strict.unpack(data)


def test_table():
    class Other(ConMsg):
        WIRE_NAME = "p.Other"

    table = MessageTable()
    table.add(ConMsg)
    table.add(Other)
    table.add(Other)
    assert table.get("p.Other") is Other
    assert table.get("ConMsg") is ConMsg
    assert list(table) == ["ConMsg", "p.Other"]
    assert len(table) == 2
    assert "p.Other" in table
    assert "Other" not in table
    with pytest.raises(UnknownMessage, match="'Other'"):
        table.get("Other")


def test_table_refuses_clashes_and_unusable_names():
    class First(ConMsg):
        WIRE_NAME = "p.M"

    class Second(ConMsg):
        WIRE_NAME = "p.M"

    table = MessageTable()
    table.add(First)
    with pytest.raises(LocalProtocolError, match=r"First.*|Second.*"):
        table.add(Second)
    assert table.get("p.M") is First
    for name in ("", "x" * 129, "a b", "a\n"):
        unusable = type("Unusable", (ProtoMsg,), {"__module__": __name__, "WIRE_NAME": name})
        with pytest.raises(LocalProtocolError, match="Unusable"):
            table.add(unusable)

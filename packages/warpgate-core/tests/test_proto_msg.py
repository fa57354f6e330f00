from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from warpgate.errors import (
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    UnknownMessage,
)
from warpgate.net.constants import EXT_BIND, IP4, IP6, NIC_BIND
from warpgate.protocol.proto_msg import ConMsg, Meta, ProtoMsg, Routing

WIRE = Path(__file__).parent / "wire"


class Mapping(BaseModel):
    local: int
    external: tuple[str, int] | None = None


class Punch(ConMsg):
    WIRE_NAME = "tcp_punch.Punch"

    class Payload(BaseModel):
        round: int = 1
        at: float = 0.0
        token: bytes = b""
        mappings: list[Mapping] = []


class Answer(ConMsg):
    class Payload(BaseModel):
        port: int


class Colour(Enum):
    RED = "red"


class Kind(IntEnum):
    ONE = 1


class Everything(ConMsg):
    class Payload(BaseModel):
        text: str = ""
        data: bytes = b""
        number: int = 0
        real: float = 0.0
        flag: bool = False
        nothing: None = None
        items: list[Any] = []
        table: dict[str, Any] = {}
        by_number: dict[int, str] = {}
        pair: tuple[str, int] = ("", 0)
        some: set[int] = set()
        frozen: frozenset[str] = frozenset()
        nested: Mapping | None = None
        ip: IPv4Address | IPv6Address = IPv4Address("0.0.0.0")
        when: dt.datetime | None = None
        span: dt.timedelta | None = None
        ident: uuid.UUID | None = None
        colour: Colour | None = None
        kind: Kind = Kind.ONE
        amount: Decimal = Decimal(0)
        path: Path | None = None


FULL = {
    "meta": {
        "ttl": 1_790_000_000,
        "pipe_id": "abcdefghij12345",
        "af": IP6,
        "src_buf": b"\xf7WG source",
        "src_index": 3,
        "route_type": EXT_BIND,
        "same_machine": True,
        "plugin_name": "tcp_punch",
    },
    "routing": {"af": IP6, "dest_buf": b"\xf7WG destination", "dest_index": 2},
    "payload": {
        "round": 2,
        "at": 1.5,
        "token": b"\0\xff",
        "mappings": [{"local": 1, "external": ("192.0.2.1", 2)}, {"local": 3}],
    },
}


@pytest.mark.parametrize(
    ("name", "message"), [("punch", lambda: Punch(**FULL)), ("con_msg", ConMsg)]
)
def test_golden(name, message):
    golden = bytes.fromhex((WIRE / f"message_{name}.hex").read_text())
    assert message().pack() == golden
    assert type(message()).unpack(golden) == message()


def test_defaults():
    msg = ConMsg()
    assert msg.meta == Meta(
        ttl=0,
        pipe_id="",
        af=0,
        src_buf=b"",
        src_index=0,
        route_type=NIC_BIND,
        same_machine=False,
        plugin_name="",
    )
    assert msg.routing == Routing(af=0, dest_buf=b"", dest_index=0)
    assert msg.payload is None
    assert ConMsg().meta is not msg.meta


def test_wire_names():
    class Mine(ConMsg):
        pass

    class Named(ConMsg):
        WIRE_NAME = "some.Named"

    class Child(Named):
        pass

    assert ProtoMsg.WIRE_NAME == "ProtoMsg"
    assert ConMsg.WIRE_NAME == "ConMsg"
    assert (Mine.WIRE_NAME, Named.WIRE_NAME, Child.WIRE_NAME) == ("Mine", "some.Named", "Child")
    Mine.WIRE_NAME = "plugin.Mine"  # what the loader does
    assert (ConMsg.WIRE_NAME, Mine().WIRE_NAME) == ("ConMsg", "plugin.Mine")
    assert Mine.unpack(Mine().pack()) == Mine()


def test_any_subclass_needs_no_argument():
    assert Punch().payload == Punch.Payload()
    assert Punch(...).payload == Punch.Payload()
    assert Answer().payload is None  # its port has no default
    assert ConMsg(...).payload is None


def test_payload_becomes_the_nested_class():
    payload = {"round": 7, "mappings": [{"local": 1}]}
    for msg in (Punch(payload=payload), Punch(payload), Punch(payload=Punch.Payload(**payload))):
        assert isinstance(msg.payload, Punch.Payload)
        assert msg.payload.round == 7
        assert msg.payload.mappings[0].local == 1
    with pytest.raises(TypeError, match="twice"):
        Punch(payload, payload=payload)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValidationError, match="round"):
        Punch(payload={"round": "x"})
    with pytest.raises(ValidationError, match="declares no class Payload"):
        ConMsg(payload={"x": 1})
    with pytest.raises(ValidationError, match="pay_load"):
        Punch(pay_load={})
    with pytest.raises(ValidationError, match="plugin_nam"):
        ConMsg(meta={"plugin_nam": "x"})


def test_a_message_is_mutable():
    msg = Punch()
    msg.meta.plugin_name = "tcp_punch"
    msg.routing.dest_index = 4
    msg.payload.round = 9
    again = Punch.unpack(msg.pack())
    assert again.meta.plugin_name == "tcp_punch"
    assert again.routing.dest_index == 4
    assert again.payload.round == 9
    msg.payload = {"round": 10}
    assert Punch.unpack(msg.pack()).payload == Punch.Payload(round=10)
    msg.payload = None
    assert Punch.unpack(msg.pack()).payload == Punch.Payload()


def test_a_class_inside_a_function_with_an_inherited_payload():
    class Base(ConMsg):
        class Payload(BaseModel):
            x: int = 1

    class Child(Base):
        pass

    class Shared(ConMsg):
        Payload = Mapping

    assert Child.unpack(Child({"x": 2}).pack()).payload == Base.Payload(x=2)
    assert Shared.unpack(Shared({"local": 2}).pack()).payload == Mapping(local=2)
    assert Shared().payload is None


def test_everything_round_trips():
    payload = {
        "text": "äöü",
        "data": b"\xff\0",
        "number": -5,
        "real": 0.1,
        "flag": True,
        "items": [1, "a", b"b", None, [2.5, {"k": False}]],
        "table": {"a": {"b": [1]}},
        "by_number": {1: "x"},
        "pair": ("h", 2),
        "some": {1, 2},
        "frozen": frozenset({"f"}),
        "nested": Mapping(local=1, external=("::1", 3)),
        "ip": IPv6Address("2001:db8::1"),
        "when": dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        "span": dt.timedelta(seconds=1.5),
        "ident": uuid.UUID(int=5),
        "colour": Colour.RED,
        "kind": Kind.ONE,
        "amount": Decimal("1.10"),
        "path": Path("a") / "b",
    }
    msg = Everything(payload=payload)
    assert Everything.unpack(msg.pack()) == msg
    assert msg.payload.table == {"a": {"b": [1]}}


def test_payload_goes_by_field_name_whatever_the_aliases():
    class Aliased(ConMsg):
        class Payload(BaseModel):
            model_config = ConfigDict(serialize_by_alias=True)
            port: int = Field(alias="thePort")

    for msg in (Aliased({"thePort": 5}), Aliased({"port": 5})):
        packed = msg.pack()
        assert b"\xa4port" in packed
        assert b"thePort" not in packed
        assert Aliased.unpack(packed).payload.port == 5


def test_unknown_payload_fields_are_ignored():
    class Old(ConMsg):
        WIRE_NAME = "p.Msg"

        class Payload(BaseModel):
            a: int = 0

    class New(ConMsg):
        WIRE_NAME = "p.Msg"

        class Payload(BaseModel):
            a: int = 0
            b: str = "b"

    class Bare(ConMsg):
        WIRE_NAME = "p.Msg"

    assert Old.unpack(New({"a": 1, "b": "x"}).pack()).payload == Old.Payload(a=1)
    assert New.unpack(Old({"a": 1}).pack()).payload == New.Payload(a=1)
    assert New.unpack(Bare().pack()).payload == New.Payload()
    assert Bare.unpack(New().pack()).payload is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: setattr(m.meta, "plugin_name", "x" * 65), "plugin_name"),
        (lambda m: setattr(m.meta, "pipe_id", "x" * 16), "pipe_id"),
        (lambda m: setattr(m.meta, "src_buf", bytes(2049)), "src_buf"),
        (lambda m: setattr(m.meta, "ttl", -1), "ttl"),
        (lambda m: setattr(m.meta, "ttl", "soon"), "ttl"),
        (lambda m: setattr(m.meta, "af", 99), "af"),
        (lambda m: setattr(m.meta, "route_type", None), "route_type"),
        (lambda m: setattr(m.routing, "dest_buf", bytes(2049)), "dest_buf"),
        (lambda m: setattr(m.routing, "dest_index", 2**32), "dest_index"),
        (lambda m: setattr(m.payload, "round", "x"), "can't be sent"),
        (lambda m: setattr(m.payload, "round", 2**64), "can't be sent"),
        (lambda m: setattr(m, "payload", {"round": "x"}), "round"),
        (lambda m: setattr(m, "payload", Answer.Payload(port=1)), "can't be sent"),
        (lambda m: setattr(m, "payload", 5), "can't be sent"),
    ],
)
def test_what_the_peer_would_refuse_is_not_sent(change, text):
    msg = Punch()
    change(msg)
    with pytest.raises(LocalProtocolError, match=text) as caught:
        msg.pack()
    assert "tcp_punch.Punch" in str(caught.value)


def test_a_payload_that_was_never_set_is_not_sent():
    with pytest.raises(LocalProtocolError, match="port"):
        Answer().pack()
    with pytest.raises(RemoteProtocolError, match="port"):
        Answer.unpack(type("Answer", (ConMsg,), {"__module__": __name__})().pack())


def test_too_deep_or_too_large_payloads_are_not_sent():
    deep: list[Any] = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(LocalProtocolError, match="deeper"):
        Everything({"items": deep}).pack()
    with pytest.raises(LocalProtocolError, match="can't be sent"):
        Everything({"items": [object()]}).pack()
    with pytest.raises(MessageTooLarge):
        Punch({"token": bytes(8192)}).pack()
    Punch({"token": bytes(8000)}).pack()


def test_another_message():
    with pytest.raises(UnknownMessage, match="ConMsg"):
        Punch.unpack(ConMsg().pack())
    with pytest.raises(MessageTooLarge):
        Punch.unpack(bytes(8193))


def test_a_hostile_message_can_not_use_a_plugins_own_validators_to_raise():
    class Naive(ConMsg):
        class Payload(BaseModel):
            kind: str = "a"

            @field_validator("kind")
            @classmethod
            def look_up(cls, value: str) -> str:
                return {"a": "A", "A": "A"}[value]

    packed = Naive(payload={"kind": "a"}).pack()
    assert Naive.unpack(packed).payload.kind == "A"
    with pytest.raises(RemoteProtocolError, match="KeyError"):
        Naive.unpack(packed.replace(b"\xa1A", b"\xa1z"))


def test_errors_about_a_peers_message_are_short():
    packed = Punch({"token": b"t" * 4000}).pack().replace(b"\xa5round\x01", b"\xa5round\xa0")
    with pytest.raises(RemoteProtocolError) as caught:
        Punch.unpack(packed)
    assert len(str(caught.value)) < 400
    assert "tttt" not in str(caught.value)


@given(st.binary(max_size=300))
def test_garbage(data):
    with pytest.raises(RemoteProtocolError):
        Punch.unpack(data)


@given(st.data())
def test_mutated_messages(data):
    packed = bytearray(Punch(**FULL).pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    for attempt in (bytes(packed), bytes(packed[:cut])):
        try:
            msg = Punch.unpack(attempt)
        except RemoteProtocolError:
            continue
        assert msg.meta.af in (0, IP4, IP6)
        Punch.unpack(msg.pack())


@given(
    st.builds(
        Meta,
        ttl=st.integers(0, 2**48),
        pipe_id=st.text(max_size=15),
        af=st.sampled_from([0, IP4, IP6]),
        src_buf=st.binary(max_size=2048),
        src_index=st.integers(0, 2**32 - 1),
        route_type=st.integers(0, 255),
        same_machine=st.booleans(),
        plugin_name=st.text(max_size=64),
    ),
    st.builds(Routing, af=st.sampled_from([0, IP4, IP6]), dest_buf=st.binary(max_size=2048)),
    st.builds(
        Punch.Payload,
        round=st.integers(-(2**63), 2**64 - 1),
        at=st.floats(allow_nan=False),
        token=st.binary(max_size=500),
        mappings=st.lists(st.builds(Mapping, local=st.integers(0, 9)), max_size=9),
    ),
)
def test_round_trip(meta, routing, payload):
    msg = Punch(meta=meta, routing=routing, payload=payload)
    assert Punch.unpack(msg.pack()) == msg

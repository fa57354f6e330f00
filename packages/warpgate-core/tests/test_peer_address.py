from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warpgate.errors import ConfigError, InvalidAddressError
from warpgate.identity import Identity
from warpgate.net.constants import IP4, IP6
from warpgate.protocol.peer_address import (
    ADDRESS_MAGIC,
    ADDRESS_TEXT_PREFIX,
    MAX_ADDRESS_BYTES,
    MAX_INTERFACES,
    Endpoint,
    InterfaceRecord,
    pack_address,
    parse_address,
    unpack_address,
)

WIRE = Path(__file__).parent / "wire"
NODE = Identity.from_bytes(bytes(range(64)))
MACHINE = bytes(range(100, 116))
V4 = Endpoint(IP4, "192.168.1.10", 21000, "203.0.113.7", 45001, 5, 4)
V6 = Endpoint(IP6, "2001:db8:1:2:3:4:5:6", 21000, "2001:db8:9:8:7:6:5:4", 21001, 3, 2)
DUAL = InterfaceRecord(2, (V4, V6))
BROKERS = ("mqtts://one.example:8883", "mqtts://two.example:8883")
HEADER = 6


def make(**changes):
    fields = {"machine": MACHINE, "sequence": 1_790_000_000_000, "brokers": BROKERS}
    return pack_address(NODE, **{**fields, "interfaces": [DUAL], **changes})


def signed(fields, signer=NODE, version=1, magic=ADDRESS_MAGIC):
    """A correctly signed record of any content."""
    body = msgpack.packb(fields)
    size = HEADER + len(body) + 64
    record = magic + bytes([version]) + size.to_bytes(2, "big") + body
    return record + signer.sign(b"warpgate address v1" + record)


def fields_of(address):
    return msgpack.unpackb(address.raw[HEADER:-64])


def test_golden():
    golden = bytes.fromhex((WIRE / "address.hex").read_text())
    assert make().raw == golden
    address = unpack_address(golden)
    assert address == make()
    assert address.interfaces == (DUAL,)
    assert address.to_text() == (WIRE / "address.txt").read_text().strip()
    assert parse_address(address.to_text()) == address


def test_compact():
    assert [len(broker) for broker in BROKERS] == [24, 24]
    assert len(make().raw) <= 300


def test_properties():
    address = make(interfaces=[DUAL, InterfaceRecord(3, (replace(V4, port=0, ext_port=None),))])
    assert address.node_id == NODE.node_id
    assert address.key == NODE.public_key
    assert address.exchange_key == NODE.exchange_key
    assert address.machine == MACHINE
    assert address.families() == {IP4, IP6}
    assert address.ports() == {21000, 45001, 21001}
    assert DUAL.endpoint(IP6) is V6
    assert InterfaceRecord(1, (V4,)).endpoint(IP6) is None
    assert make(interfaces=[]).families() == set()


def test_known_equal_and_unknown_external_addresses_differ():
    endpoints = [
        Endpoint(IP4, "1.2.3.4", 5),
        Endpoint(IP4, "1.2.3.4", 5, "1.2.3.4", 5, 1, 2),
        Endpoint(IP4, "1.2.3.4", 5, "1.2.3.5", None),
        Endpoint(IP4, "1.2.3.4", 5, None, 6),
    ]
    address = make(interfaces=[InterfaceRecord(1, tuple(endpoints))])
    assert list(unpack_address(address.raw).interfaces[0].endpoints) == endpoints


def test_scopes_stay_at_home():
    scoped = Endpoint(IP6, "fe80::1%eth0", 5, "fe80::1%eth0")
    address = make(interfaces=[InterfaceRecord(7, (scoped,))])
    assert address.interfaces[0].endpoints[0].ip == "fe80::1"
    assert address.interfaces[0].index == 7
    assert address == unpack_address(address.raw)


ips4 = st.ip_addresses(v=4, network="64.0.0.0/2").map(str)
ips6 = st.ip_addresses(v=6, network="2000::/3").map(str)
ports = st.integers(0, 65535)


def endpoints_of(af, ips):
    return st.builds(
        Endpoint,
        st.just(af),
        ips,
        ports,
        st.none() | ips,
        st.none() | ports,
        st.integers(0, 7),
        st.integers(0, 6),
    )


records = st.builds(
    InterfaceRecord,
    st.integers(0, 2**32 - 1),
    st.lists(endpoints_of(IP4, ips4) | endpoints_of(IP6, ips6), max_size=4).map(tuple),
)


@given(
    st.binary(min_size=1, max_size=32),
    st.integers(0, 2**63 - 1),
    st.lists(st.text("abcß:/.@", min_size=1, max_size=60), max_size=4),
    st.lists(records, max_size=20),
)
def test_round_trip(machine, sequence, brokers, interfaces):
    address = make(machine=machine, sequence=sequence, brokers=brokers, interfaces=interfaces)
    assert unpack_address(address.raw) == address
    assert parse_address(address.to_text()) == address
    assert parse_address(address.to_text().encode()) == address
    assert parse_address(bytearray(address.raw)) == address
    assert (address.machine, address.sequence) == (machine, sequence)
    assert list(address.brokers) == brokers
    assert len(address.raw) <= MAX_ADDRESS_BYTES
    assert list(address.interfaces) == interfaces[: len(address.interfaces)]  # the best ones stay


def test_lowest_ranked_interfaces_are_left_out():
    many = [InterfaceRecord(n, (V4, V6)) for n in range(40)]
    assert len(make(interfaces=many).interfaces) == MAX_INTERFACES
    big = [InterfaceRecord(n, (V6, V6, V6, V6)) for n in range(16)]
    fits = make(interfaces=big).interfaces
    assert 0 < len(fits) < 16
    assert [record.index for record in fits] == list(range(len(fits)))
    assert len(make(interfaces=big).raw) <= MAX_ADDRESS_BYTES


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"machine": b""}, "machine"),
        ({"machine": bytes(33)}, "machine"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 2**63}, "sequence"),
        ({"sequence": 1.5}, "sequence"),
        ({"brokers": ["x"] * 5}, "brokers"),
        ({"brokers": ["x" * 129]}, "broker"),
        ({"brokers": ["ß" * 65]}, "broker"),
        ({"brokers": [""]}, "broker"),
        ({"brokers": ["a b"]}, "spaces"),
        ({"brokers": ["a\n"]}, "control"),
        ({"interfaces": [InterfaceRecord(-1, ())]}, "index"),
        ({"interfaces": [InterfaceRecord(1, (Endpoint(IP4, "x", 1),))]}, "x"),
        ({"interfaces": [InterfaceRecord(1, (Endpoint(IP4, "::2", 1),))]}, "family"),
        ({"interfaces": [InterfaceRecord(1, (Endpoint(IP4, "1.2.3.4", 65536),))]}, "port"),
        ({"interfaces": [InterfaceRecord(1, (Endpoint(IP4, "0.0.0.0", 1),))]}, "host"),
        ({"interfaces": [InterfaceRecord(1, (replace(V4, ext_ip="::2"),))]}, "family"),
    ],
)
def test_what_no_address_can_hold(changes, text):
    with pytest.raises(ConfigError, match=text):
        make(**changes)


def test_every_truncation():
    raw = make().raw
    for size in range(1, len(raw)):
        with pytest.raises(InvalidAddressError, match="truncated"):
            unpack_address(raw[:size])


def test_without_its_signature():
    raw = make().raw
    for data in (raw[:-64], raw[:-64] + bytes(64)):
        with pytest.raises(InvalidAddressError, match="unsigned"):
            unpack_address(data)


def test_every_altered_byte():
    raw = make().raw
    for position in range(len(raw)):
        data = bytearray(raw)
        data[position] ^= 0x10
        with pytest.raises(InvalidAddressError) as caught:
            unpack_address(bytes(data))
        if position >= HEADER:
            assert "altered" in str(caught.value)


def test_another_nodes_signature():
    body = fields_of(make())
    with pytest.raises(InvalidAddressError, match="altered"):
        unpack_address(signed(body, signer=Identity.generate()))
    assert unpack_address(signed(body)) == make()


def test_a_signature_for_another_purpose():
    raw = make().raw
    with pytest.raises(InvalidAddressError, match="altered"):
        unpack_address(raw[:-64] + NODE.sign(raw[:-64]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not an address"),
        (b"hello", "not an address"),
        (b"GET / HTTP/1.1", "not an address"),
        (b"\xf7WX" + bytes(300), "not an address"),
        (make().raw + b"x", "altered"),
        (make().raw + bytes(2048), "oversize"),
        (ADDRESS_MAGIC + bytes(10**6), "oversize"),
        (signed(fields_of(make()), version=2), "version"),
        (signed(fields_of(make()), version=0), "version"),
    ],
)
def test_says_which(data, text):
    with pytest.raises(InvalidAddressError, match=text):
        unpack_address(data)
    with pytest.raises(InvalidAddressError, match=text):
        parse_address(data)


def change(path, value):
    """The fields with one value, reached by ``path``, replaced."""
    fields = fields_of(make())
    at = fields
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return fields


ENDPOINT = (5, 0, 1, 0)
BAD = [
    change((1,), bytes(31)),
    change((2,), b""),
    change((2,), bytes(33)),
    change((3,), -1),
    change((3,), 2**63),
    change((3,), True),
    change((3,), "1"),
    change((4,), "x"),
    change((4,), ["x"] * 5),
    change((4, 0), b"x"),
    change((4, 0), "x" * 129),
    change((4, 0), "mqtt://a\r\nb"),
    change((5,), None),
    change((5,), [[1, []]] * 17),
    change((5, 0), [1]),
    change((5, 0, 0), -1),
    change((5, 0, 1), [fields_of(make())[5][0][1][0]] * 5),
    change(ENDPOINT, [b"\1\2\3\4", 1]),
    change((*ENDPOINT, 0), b"\1\2\3"),
    change((*ENDPOINT, 0), "1.2.3.4"),
    change((*ENDPOINT, 0), bytes(4)),
    change((*ENDPOINT, 0), b"\xff" * 4),
    change((*ENDPOINT, 0), b"\xe0\0\0\1"),
    change((*ENDPOINT, 0), bytes(10) + b"\xff\xff\1\2\3\4"),
    change((*ENDPOINT, 1), 65536),
    change((*ENDPOINT, 1), True),
    change((*ENDPOINT, 1), None),
    change((*ENDPOINT, 2), False),
    change((*ENDPOINT, 2), b"\x20" + bytes(14) + b"\1"),
    change((*ENDPOINT, 3), -1),
    change((*ENDPOINT, 4), 256),
    change((*ENDPOINT, 4), None),
    change((*ENDPOINT, 5), "1"),
]


@pytest.mark.parametrize("fields", BAD)
def test_well_signed_nonsense(fields):
    with pytest.raises(InvalidAddressError, match="malformed"):
        unpack_address(signed(fields))


@pytest.mark.parametrize(
    "fields", [None, 1, [], [NODE.public_key], {}, change((0,), b""), change((0,), "x" * 32)]
)
def test_without_a_key_nothing_is_verified(fields):
    with pytest.raises(InvalidAddressError, match="altered"):
        unpack_address(signed(fields))


def test_further_elements_are_for_the_future():
    fields = fields_of(make())
    extra = {"k": [1, {2: b"x"}]}
    fields[5][0][1][0] += [extra, msgpack.ExtType(5, b"later")]
    fields[5][0] += [extra]
    fields += [extra, "x" * 200, msgpack.Timestamp(1, 2), 1.5]
    raw = signed(fields)
    address = unpack_address(raw)
    assert replace(address, raw=b"") == replace(make(), raw=b"")
    assert address.raw == raw  # kept as it was signed
    assert parse_address(address.to_text()).raw == raw
    with pytest.raises(InvalidAddressError, match="altered"):  # and covered by the signature
        unpack_address(raw.replace(b"later", b"Later"))


def test_later_behaviours_read_as_not_known():
    address = unpack_address(signed(change((*ENDPOINT, 4), 99)))
    assert address.interfaces[0].endpoints[0].nat == 0
    address = unpack_address(signed(change((*ENDPOINT, 5), 7)))
    assert address.interfaces[0].endpoints[0].delta == 0


def test_text_form():
    text = make().to_text()
    assert text.startswith(ADDRESS_TEXT_PREFIX)
    assert text.isascii()
    assert not set(text) & set(" =+/")
    assert parse_address(f"  {text}\n") == make()
    assert parse_address(f"  {text}\n".encode()) == make()


def test_mistyped_text():
    text = make().to_text()
    for position in range(len(ADDRESS_TEXT_PREFIX), len(text)):
        other = "A" if text[position] != "A" else "B"
        with pytest.raises(InvalidAddressError, match="checksum"):
            parse_address(text[:position] + other + text[position + 1 :])


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 9, 10, 50, 100, -4, -3, -2, -1])
def test_truncated_text(size):
    with pytest.raises(InvalidAddressError, match="truncated or mistyped"):
        parse_address(make().to_text()[:size])


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "not an address"),
        ("alice", "not an address"),
        ("WG1_abcd", "not an address"),
        ("wg2_abcd", "not an address"),
        ("wg1_" + "A" * 4000, "oversize"),
        ("wg1_????", "base64url"),
        ("wg1_é", "base64url"),
        ("wg1_\ud800", "base64url"),
        (make().to_text().replace("-", "+").replace("_", "/").replace("wg1/", "wg1_"), "checksum"),
        (make().to_text() + "=", "mistyped"),
        (make().to_text()[:40] + " " + make().to_text()[40:], "mistyped"),
    ],
)
def test_bad_text(text, cause):
    with pytest.raises(InvalidAddressError, match=cause):
        parse_address(text)
    with pytest.raises(InvalidAddressError):
        parse_address(text.encode("utf-8", "replace"))


def test_text_of_a_bad_record_says_what_is_wrong_with_the_record():
    record = signed(fields_of(make()), version=9)
    content = record + hashlib.sha256(record).digest()[:4]
    with pytest.raises(InvalidAddressError, match="version"):
        parse_address("wg1_" + base64.urlsafe_b64encode(content).decode().rstrip("="))


@given(st.binary(max_size=400))
@example(b"\xf7WG\x01\x00\x06")
def test_garbage(data):
    for attempt in (data, ADDRESS_MAGIC + b"\1" + data):
        with pytest.raises(InvalidAddressError):
            parse_address(attempt)


@given(st.text(max_size=100))
def test_garbage_text(text):
    for attempt in (text, ADDRESS_TEXT_PREFIX + text):
        with pytest.raises(InvalidAddressError):
            parse_address(attempt)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=33)
    | st.text(max_size=9)
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(
        [(n,) for n in range(6)]
        + [(5, 0), (5, 0, 0), (5, 0, 1), ENDPOINT]
        + [(*ENDPOINT, n) for n in range(6)]
    ),
    values,
)
def test_well_signed_garbage(path, value):
    """A hostile signer: an address or the declared error, nothing else."""
    raw = signed(change(path, value))
    try:
        address = unpack_address(raw)
    except InvalidAddressError:
        return
    assert parse_address(address.to_text()) == address
    address.families(), address.ports(), address.node_id


def test_nested_arrays_cost_no_memory():
    # Arrays that declare many elements each, one within the other.
    body = b"\xdc\x07\xff" * 600
    size = HEADER + len(body) + 64
    record = ADDRESS_MAGIC + b"\1" + size.to_bytes(2, "big") + body
    with pytest.raises(InvalidAddressError, match="altered"):
        unpack_address(record + NODE.sign(b"warpgate address v1" + record))

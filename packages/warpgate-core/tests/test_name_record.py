from __future__ import annotations

import asyncio
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import BadSignature, ConfigError, MessageTooLarge, RemoteProtocolError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.names import retained
from warpgate.names.record import (
    MAX_RECORD_BYTES,
    name_filter,
    name_topic,
    pack_record,
    unpack_record,
)
from warpgate.names.retained import LIFE_S, RetainedNames
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address
from warpgate.signalling.broker_policy import topic_hash, topic_matches

WIRE = Path(__file__).parent / "wire"
ALICE = Identity.from_bytes(bytes(range(64)))
EVE = Identity.from_bytes(bytes(range(128, 192)))
NOW = 1_790_000_000


def address(identity, sequence=7):
    endpoint = Endpoint(2, "192.168.1.5", 12345, None, None, 0, 0)
    return pack_address(
        identity,
        machine=b"m" * 16,
        sequence=sequence,
        brokers=["mqtt://broker.example:1883"],
        interfaces=[InterfaceRecord(2, (endpoint,))],
    )


def record(identity=ALICE, name="alice", sequence=7, expires_s=NOW + 60, at=None):
    at = at or address(identity, sequence)
    return pack_record(identity, name=name, address=at, sequence=sequence, expires_s=expires_s)


def signed(fields, identity=ALICE):
    body = msgpack.packb(fields)
    return identity.sign(b"warpgate name v1" + body) + body


def fields(**changes):
    plain = {
        "version": 1,
        "name": "alice",
        "key": ALICE.public_key,
        "address": address(ALICE).raw,
        "sequence": 7,
        "expires_s": NOW,
    }
    return list({**plain, **changes}.values())


def test_round_trip():
    made = record()
    assert unpack_record(made.raw) == made
    assert (made.name, made.key, made.sequence) == ("alice", ALICE.public_key, 7)
    assert made.address.node_id == ALICE.node_id


def test_golden():
    golden = bytes.fromhex((WIRE / "name_record.hex").read_text())
    assert record(expires_s=NOW).raw == golden


def test_topics():
    assert name_topic("alice", ALICE.public_key) == (
        f"wg/1/n/{topic_hash(b'alice')}/{topic_hash(ALICE.public_key)}"
    )
    assert topic_matches(name_filter("alice"), name_topic("alice", ALICE.public_key))
    assert name_topic("caf\u0065\u0301", ALICE.public_key) == name_topic(
        "caf\u00e9", ALICE.public_key
    )


def test_fields_of_a_later_version_are_signed_and_ignored():
    assert unpack_record(signed([*fields(), "more"])).name == "alice"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": True},
        {"name": ""},
        {"name": "x" * 256},
        {"name": b"alice"},
        {"name": " alice"},
        {"name": "a\nb"},
        {"name": "caf\u0065\u0301"},
        {"key": b"short"},
        {"address": b""},
        {"address": b"garbage"},
        {"address": address(EVE).raw},
        {"sequence": -1},
        {"sequence": "7"},
        {"expires_s": 2**62},
    ],
    ids=lambda changes: f"{next(iter(changes))}-{str(next(iter(changes.values())))[:12]}",
)
def test_malformed_records_are_refused(changes):
    with pytest.raises(RemoteProtocolError):
        unpack_record(signed(fields(**changes)))


def test_a_forged_record_is_refused():
    with pytest.raises(BadSignature):
        unpack_record(signed(fields(), EVE))
    altered = bytearray(record().raw)
    altered[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        unpack_record(bytes(altered))


def test_an_oversize_record_is_refused_before_decoding():
    with pytest.raises(MessageTooLarge):
        unpack_record(bytes(MAX_RECORD_BYTES + 1))


@given(st.binary(max_size=400))
def test_whatever_comes_raises_the_declared_error(data):
    with pytest.raises(RemoteProtocolError):
        unpack_record(data)


@given(st.integers(0, len(record().raw) - 1), st.integers(1, 255))
def test_every_altered_byte_is_noticed(position, change):
    data = bytearray(record().raw)
    data[position] ^= change
    with pytest.raises(RemoteProtocolError):
        unpack_record(bytes(data))


def test_nobody_publishes_another_nodes_address():
    with pytest.raises(ConfigError, match="another node"):
        record(at=address(EVE))
    with pytest.raises(ConfigError, match="name"):
        record(name="a\tb")


class Retaining:
    """A transport whose brokers retain what they are told."""

    def __init__(self):
        self.kept = {}
        self.published = asyncio.Event()
        self.limits = []

    async def publish_retained(self, topic, payload, expiry_s=3600):
        self.kept[topic] = [payload] if payload else []
        self.published.set()
        return 1

    async def read_retained(self, topic_filter, limit=8, timeout_s=2.0, *, accept):
        self.limits.append(limit)
        found = [
            (topic, payload)
            for topic, payloads in self.kept.items()
            if topic_matches(topic_filter, topic)
            for payload in payloads
        ]
        return [each for each in found if accept(*each)][:limit]


class Names:
    def __init__(self):
        self.transport = Retaining()
        self.counters = Counters()
        self.now = NOW
        self.names = RetainedNames(self.transport, ALICE, self.counters, lambda: self.now)

    def put(self, record, topic=None):
        topic = topic or name_topic(record.name, record.key)
        self.transport.kept.setdefault(topic, []).append(record.raw)


@pytest.fixture
async def names():
    made = Names()
    yield made
    await made.names.close()


async def test_a_node_is_found_by_its_id(names):
    assert await names.names.lookup_node(ALICE.node_id) is None
    await names.names.publish(ALICE.node_id, address(ALICE))
    found = await names.names.lookup_node(ALICE.node_id)
    assert found == address(ALICE)
    assert names.counters == {}


async def test_only_the_key_that_is_the_id_counts(names):
    forged = record(EVE, ALICE.node_id)
    names.put(forged, name_topic(ALICE.node_id, ALICE.public_key))
    names.put(forged)
    assert await names.names.lookup_node(ALICE.node_id) is None
    assert names.counters == {"names_misplaced": 1}
    names.put(record(name=ALICE.node_id))
    assert (await names.names.lookup_node(ALICE.node_id)).key == ALICE.public_key


async def test_not_a_node_id(names):
    with pytest.raises(ValueError, match="nobody"):
        await names.names.lookup_node("nobody")


async def test_the_newest_record_of_a_key_holds(names):
    for sequence in (5, 9, 7):
        names.put(record(name=ALICE.node_id, sequence=sequence))
    assert (await names.names.lookup_node(ALICE.node_id)).sequence == 9


async def test_an_expired_record_serves_a_node_whose_clock_is_wrong(names):
    names.put(record(name=ALICE.node_id, sequence=9, expires_s=NOW - 1))
    assert (await names.names.lookup_node(ALICE.node_id)).sequence == 9
    assert names.counters == {"names_stale": 1}
    names.put(record(name=ALICE.node_id, sequence=10, expires_s=NOW + 1))
    assert (await names.names.lookup_node(ALICE.node_id)).sequence == 10


async def test_every_valid_key_of_a_name_is_returned(names):
    names.put(record())
    names.put(record(EVE))
    names.put(record(name="bob"), name_topic("alice", ALICE.public_key))
    names.put(record(name="alice", expires_s=NOW))
    names.transport.kept[f"wg/1/n/{topic_hash(b'alice')}/x"] = [b"garbage"]
    found = await names.names.lookup("alice")
    assert {each.key for each in found} == {ALICE.public_key, EVE.public_key}
    assert names.counters == {"names_misplaced": 1, "names_stale": 1, "names_forged": 1}
    assert names.transport.limits == [8]


async def test_a_withdrawn_name_is_gone(names):
    await names.names.publish("alice", address(ALICE))
    await names.names.withdraw("alice")
    assert await names.names.lookup("alice") == []


async def test_records_are_renewed_before_they_expire(names, monkeypatch):
    assert retained.RENEW_S < LIFE_S / 2
    monkeypatch.setattr(retained, "RENEW_S", 0.01)
    await names.names.publish("alice", address(ALICE))
    names.now = NOW + LIFE_S + 5
    assert await names.names.lookup("alice") == []
    names.transport.published.clear()
    await names.transport.published.wait()
    assert len(await names.names.lookup("alice")) == 1

from __future__ import annotations

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from warpgate.signalling.mqtt_packets import take_publish

MAX = 16 * 1024


def packet(topic, payload, qos, mqtt5, **options):
    """Let paho make a packet."""
    version = paho.MQTTv5 if mqtt5 else paho.MQTTv311
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=version)
    made = []
    client._packet_queue = lambda _command, data, *_rest: made.append(bytes(data)) or 0
    client._sock = object()
    client._send_publish(7, topic.encode(), payload, qos, **options)
    client._sock = None
    client._reset_sockets()
    return made[0]


def take(data, mqtt5=True):
    return take_publish(memoryview(data), mqtt5, MAX)


@pytest.mark.parametrize("mqtt5", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 100, 200, 8192, 16000])
def test_what_paho_writes_is_read(mqtt5, qos, size):
    data = packet("wg/1/i/é", bytes(size), qos, mqtt5)
    expected = ("wg/1/i/é", bytes(size), 7 if qos else None, len(data))
    assert take(data, mqtt5) == expected
    assert take(data + b"\x30more", mqtt5) == expected
    for cut in {0, 1, 2, 3, 4, 10, len(data) - 1}:
        assert take(data[:cut], mqtt5) is None


def test_everything_else_is_left_to_paho():
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 5
    assert take(packet("t", b"x", 0, True, properties=properties)) is None
    assert take(packet("t", b"x", 0, True, retain=True)) is None
    assert take(packet("t", b"x", 1, True, dup=True)) is None
    assert take(packet("t", b"x", 2, True)) is None
    assert take(packet("", b"x", 0, True)) is None
    assert take(packet("t", bytes(MAX), 0, True)) is None
    for malformed in (
        b"\x30\x02\x00\xff",  # a topic beyond the packet
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x30\x04\x00\x01\xff\x00",  # a topic that is no UTF-8
        b"\x32\x03\x00\x01t",  # no packet identifier
        b"\x32\x06\x00\x01t\x00\x00\x00",  # packet identifier 0
        b"\x30\x03\x00\x01t",  # no properties
    ):
        assert take(malformed) is None
    assert take(b"\x30\x03\x00\x01t", mqtt5=False) == ("t", b"", None, 5)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_read_within_bounds_or_not_at_all(data, mqtt5):
    for head in (b"\x30", b"\x32", b""):
        found = take(head + data, mqtt5)
        if found is not None:
            topic, payload, _, size = found
            assert size <= len(head + data)
            assert len(topic.encode()) + len(payload) < size

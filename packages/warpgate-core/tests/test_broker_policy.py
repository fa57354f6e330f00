from __future__ import annotations

import base64
import hashlib

import pytest

from warpgate.signalling.broker_policy import (
    inbox_topic,
    may_dial,
    normalise,
    topic_hash,
    topic_matches,
)

LAN = ("192.168.1.", "10.0.0.", "fe80::")


def on_link(ip):
    return ip.startswith(LAN)


def test_the_inbox_topic_is_the_wire_formats():
    key = bytes(range(32))
    expected = base64.b32encode(hashlib.sha256(key).digest()[:20]).decode().lower()
    assert inbox_topic(key) == "wg/1/i/" + expected
    assert len(topic_hash(key)) == 32
    assert "=" not in topic_hash(key)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("mqtt://Broker.Example", "mqtt://broker.example:1883"),
        ("mqtt://broker.example.:1883", "mqtt://broker.example:1883"),
        ("mqtts://user:secret@broker.example", "mqtts://broker.example:8883"),
        ("mqtt://broker.example/ignored", "mqtt://broker.example:1883"),
        ("ws://broker.example", "ws://broker.example:80/mqtt"),
        ("wss://broker.example/", "wss://broker.example:443/mqtt"),
        ("wss://broker.example/Path", "wss://broker.example:443/Path"),
        ("mqtt://[2001:DB8:0::1]:1883", "mqtt://[2001:db8::1]:1883"),
    ],
)
def test_both_sides_write_a_broker_alike(written, normal):
    assert normalise(written) == normal
    assert normalise(normal) == normal


def test_what_is_no_broker_is_refused():
    with pytest.raises(ValueError, match="form"):
        normalise("http://broker.example")


@pytest.mark.parametrize(
    ("ip", "peer_ips", "allowed"),
    [
        ("198.51.100.7", [], True),
        ("2001:db8::1", [], True),
        ("127.0.0.1", ["192.168.1.5", "127.0.0.1"], False),
        ("::1", ["::1"], False),
        ("::ffff:127.0.0.1", ["192.168.1.5"], False),
        ("192.168.1.9", ["198.51.100.7"], False),
        ("192.168.1.9", ["192.168.1.5"], True),
        ("192.168.1.9", ["10.0.0.5"], True),
        ("192.168.1.9", ["172.16.0.5"], False),
        ("192.168.1.9", ["fe80::1"], False),
        ("192.168.7.9", ["192.168.1.5"], False),
        ("0.0.0.0", ["192.168.1.5"], False),
        ("224.0.0.1", ["192.168.1.5"], False),
        ("255.255.255.255", ["192.168.1.5"], False),
        ("not an ip", ["192.168.1.5"], False),
    ],
)
def test_which_brokers_a_peers_word_opens(ip, peer_ips, allowed):
    assert may_dial(ip, peer_ips, on_link) is allowed


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/+/c", "a/b/c", True),
        ("a/b", "a/c", False),
    ],
)
def test_filters(topic_filter, topic, matches):
    assert topic_matches(topic_filter, topic) is matches

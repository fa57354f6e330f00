"""The forms of servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.server_urls import (
    BrokerURL,
    TurnServer,
    join_host_port,
    parse_broker,
    parse_host_port,
    parse_turn,
    redact,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://host", BrokerURL("mqtt", "host", 1883)),
        (" mqtts://host ", BrokerURL("mqtts", "host", 8883)),
        ("mqtt://1.2.3.4:1", BrokerURL("mqtt", "1.2.3.4", 1)),
        ("mqtt://[2001:db8::1]:65535", BrokerURL("mqtt", "2001:db8::1", 65535)),
        ("mqtts://me:pw@host:9", BrokerURL("mqtts", "host", 9, "me", "pw")),
        ("mqtt://me@host", BrokerURL("mqtt", "host", 1883, "me", None)),
        ("mqtt://m%40e:p%3A%2Fw@host", BrokerURL("mqtt", "host", 1883, "m@e", "p:/w")),
        ("ws://host/mqtt", BrokerURL("ws", "host", 80, path="/mqtt")),
        ("wss://host:8084/a/b", BrokerURL("wss", "host", 8084, path="/a/b")),
    ],
)
def test_brokers(text, expected):
    assert parse_broker(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "http://host",
        "mqtt:host",
        "mqtt://",
        "mqtt://host:0",
        "mqtt://host:65536",
        "mqtt://host:x",
        "mqtt://host?query",
        "mqtt://ho st",
        "mqtt://[::g]",
        "mqtt://host:",
    ],
)
def test_what_is_no_broker(text):
    with pytest.raises(ValueError):
        parse_broker(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", 7)),
        ("host.example.org:1", ("host.example.org", 1)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("::1", ("::1", 7)),
        ("[::1]", ("::1", 7)),
        ("[::1]:2", ("::1", 2)),
        ("[fe80::1%eth0]:2", ("fe80::1%eth0", 2)),
    ],
)
def test_host_and_port(text, expected):
    assert parse_host_port(text, 7) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:٣",
        "-host",
        "a b",
        "[host]",
        "[::1",
        "[::1]x",
        "1:2:3",
        "user@host",
    ],
)
def test_what_is_no_host_and_port(text):
    with pytest.raises(ValueError):
        parse_host_port(text, 7)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("turn:u:p@host", TurnServer("host", 3478, "u", "p", "udp")),
        ("turn:u:p@host:1?transport=udp", TurnServer("host", 1, "u", "p", "udp")),
        ("turn:u:p@[::1]:1?transport=tcp", TurnServer("::1", 1, "u", "p", "tcp")),
        ("turn:u:p@host?transport=tls", TurnServer("host", 5349, "u", "p", "tls")),
        ("turns:u:p@host", TurnServer("host", 5349, "u", "p", "tls")),
        ("turns:u:p@host:443?transport=tcp", TurnServer("host", 443, "u", "p", "tls")),
        ("turn:1700:abc:p%40w%2F@host", TurnServer("host", 3478, "1700", "abc:p@w/", "udp")),
        ({"host": "h", "user": "u", "password": "p"}, TurnServer("h", 3478, "u", "p", "udp")),
        (
            {"host": "::1", "port": 9, "user": "", "password": "", "transport": "tcp"},
            TurnServer("::1", 9, "", "", "tcp"),
        ),
    ],
)
def test_turn_servers(server, expected):
    assert parse_turn(server) == expected


@pytest.mark.parametrize(
    "server",
    [
        "",
        "host",
        "turn:host",
        "turn:u@host",
        "turn:u:p@",
        "turn:u:p@host:0",
        "turn:u:p@host?transport=sctp",
        "turn:u:p@host?transport=",
        "turns:u:p@host?transport=udp",
        "turn:u:p@host?other=1",
        "stun:u:p@host",
        {},
        {"host": "h"},
        {"host": "h", "user": "u"},
        {"host": "h", "user": "u", "password": 5},
        {"host": "h", "user": "u", "password": "p", "port": "9"},
        {"host": "h", "user": "u", "password": "p", "port": 0},
        {"host": "h", "user": "u", "password": "p", "port": True},
        {"host": "h h", "user": "u", "password": "p"},
        {"host": "h", "user": "u", "password": "p", "transport": "sctp"},
        {"host": "h", "user": "u", "password": "p", "realm": "r"},
    ],
    ids=str,
)
def test_what_is_no_turn_server(server):
    with pytest.raises(ValueError):
        parse_turn(server)


def test_passwords_stay_out_of_texts():
    assert "secret" not in repr(parse_broker("mqtt://me:secret@host"))
    assert "secret" not in repr(parse_turn("turn:me:secret@host"))
    assert redact("mqtt://me:secret@host:1") == "mqtt://…@host:1"
    assert redact("turn:me:secret@host") == "turn:…@host"
    assert redact("turn:me:sec@ret@host") == "turn:…@host"
    assert redact("host:1") == "host:1"
    assert redact("wss://me:secret@host/mqtt") == "wss://…@host/mqtt"
    assert redact("mqtt://me:sec/ret@host") == "mqtt://…"
    assert redact("mqtt://me:secret") == "mqtt://…"
    assert redact("wss://host/mqtt?token=secret") == "wss://…"
    assert redact("turn:me:secret") == "turn:…"
    assert redact("me:secret@host") == "…"


@given(
    st.sampled_from(
        [
            "mqtt://u:{}@h:x",
            "mqtt://u:{}",
            "mqtt://u:{}%40h",
            "ws://h/mqtt?token={}",
            "turn:u:{}",
            "turn:u:{}@h:0",
            "turns:u:{}@h?transport=udp",
            "u:{}@h",
        ]
    ),
    st.text(alphabet="QXZJ0:@/?#%[]&=. ", min_size=6),
)
def test_no_error_holds_a_part_of_a_password(form, password):
    for parse in (parse_broker, parse_turn, lambda value: parse_host_port(value, 1)):
        text = ""
        try:
            parse(form.format(password))
        except ValueError as error:
            text = str(error)
        assert not set("QXZJ") & set(text)


def test_a_password_with_a_slash_is_not_taken_for_host_and_path():
    with pytest.raises(ValueError, match="percent-encoded"):
        parse_broker("mqtt://me:12/34@host")


@given(st.text())
def test_any_text_is_parsed_or_a_value_error(text):
    for parse in (parse_broker, parse_turn, lambda value: parse_host_port(value, 1)):
        try:
            parse(text)
        except ValueError:
            pass


@given(
    st.sampled_from(["a", "host.example", "192.0.2.7", "::1", "2001:db8::5"]), st.integers(1, 65535)
)
def test_joining_and_parsing_agree(host, port):
    assert parse_host_port(join_host_port(host, port), 1) == (host, port)

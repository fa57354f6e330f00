from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.protocol.ip import (
    is_link_local,
    is_loopback,
    is_private,
    is_public,
    parse_ip,
    split_scope,
)

LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
LINK_LOCAL = ["169.254.1.1", "fe80::1", "fe80::1%eth0", "febf::1", "::ffff:169.254.1.1"]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "192.0.0.4",
    "198.18.0.1",
    "fd00::1",
    "fec0::1",
    "::ffff:192.168.1.1",
    "64:ff9b::10.0.0.1",
    "2002:a00:1::1",
]
PUBLIC = [
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "203.0.113.5",
    "198.51.100.1",
    "2606:4700::1111",
    "2001:db8::1",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
]
NONE_OF_THEM = [
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "::",
    "::1.2.3.4",
    "ff02::1",
    "100::1",
    "2001::1",
    "2001:0:1234::1",
    "::ffff:0.0.0.0",
    "",
    "localhost",
    "1.2.3",
    "01.2.3.4",
    "1.2.3.4.5",
    "1.1.1.1:80",
    "[::1]",
    "%eth0",
]


def classes(ip):
    return [is_loopback(ip), is_link_local(ip), is_private(ip), is_public(ip)]


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        (LOOPBACK, [True, False, False, False]),
        (LINK_LOCAL, [False, True, True, False]),
        (PRIVATE, [False, False, True, False]),
        (PUBLIC, [False, False, False, True]),
        (NONE_OF_THEM, [False, False, False, False]),
    ],
    ids=["loopback", "link-local", "private", "public", "none"],
)
def test_classes(ips, expected):
    assert {ip: classes(ip) for ip in ips} == dict.fromkeys(ips, expected)


def test_split_scope():
    assert split_scope("fe80::1%eth0") == ("fe80::1", "eth0")
    assert split_scope("fe80::1%4") == ("fe80::1", "4")
    assert split_scope("fe80::1") == ("fe80::1", None)
    assert split_scope("fe80::1%") == ("fe80::1", None)
    assert split_scope("10.0.0.1") == ("10.0.0.1", None)


def test_parse_ip_drops_the_scope():
    assert str(parse_ip("fe80::1%eth0")) == "fe80::1"
    assert parse_ip("eth0") is None


@given(st.ip_addresses())
def test_classes_exclude_each_other(ip):
    loopback, link_local, private, public = classes(str(ip))
    assert loopback + private + public <= 1
    assert private or not link_local


@given(st.text(max_size=40))
def test_any_text_has_an_answer(text):
    for answer in classes(text):
        assert isinstance(answer, bool)

"""nat64 and the firewall, by packets alone: RFC 6146, 7915, 6092."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_natlab.engine import build
from warpgate_natlab.engine.nat import Firewall
from warpgate_natlab.engine.packet import ACK, ERROR, ICMP, ICMP6, SYN, UDP, Packet
from warpgate_natlab.engine.quote import Quote
from warpgate_natlab.engine.world import World
from warpgate_natlab.engine.xlate import translate


def ip(text: str) -> bytes:
    return ip_address(text).packed


A, A2 = ip("2001:db8:1::2"), ip("2001:db8:1::3")
S, EXT = ip("198.51.100.1"), ip("203.0.113.64")
S64, EXT64 = ip("64:ff9b::198.51.100.1"), ip("64:ff9b::203.0.113.64")


def world64(mtu: int = 0, **nat: object) -> World:
    return World(
        {
            "devices": ["a", "s"],
            "nodes": {
                "n": {
                    "type": "nat64", "external": ["203.0.113.64"], "address": "2001:db8:1::1",
                    "allocation": "random", **nat,
                }
            },
            "links": {"l": {"a": "a", "b": "n:in"}, "r": {"a": "n:out", "b": "s", "ab": {"mtu": mtu}}},
        }
    )  # fmt: skip


def test_udp_both_ways() -> None:
    w = world64()
    w.send("a", build.udp(A, 5000, S64, 3478, b"hello"))
    (out,) = w.take("s")
    assert (out.src, out.dst, out.dport, out.ttl) == (EXT, S, 3478, 63)
    assert bytes(out.buf[28:]) == b"hello"
    w.send("s", build.udp(S, 3478, EXT, out.sport, b"answer"))
    (back,) = w.take("a")
    assert (back.src, back.sport, back.dst, back.dport) == (S64, 3478, A, 5000)
    w.send("s", build.udp(S, 3479, EXT, out.sport, b"stray"))
    assert not w.take("a")


def test_a_missing_udp_checksum_is_made() -> None:
    w = world64()
    w.send("a", build.udp(A, 5000, S64, 3478))
    (out,) = w.take("s")
    answer = build.udp(S, 3478, EXT, out.sport, b"answer")
    answer.buf[26:28] = b"\0\0"
    w.send("s", answer)
    assert w.take("a")  # the world checks that it is right


def test_tcp_and_echo() -> None:
    w = world64()
    w.send("a", build.tcp(A, 5000, S64, 80, SYN))
    (syn,) = w.take("s")
    w.send("s", build.tcp(S, 80, EXT, syn.sport, SYN | ACK))
    assert [p.flags for p in w.take("a")] == [SYN | ACK]
    w.send("a", build.echo(A, S64, 9, 2, b"odd"))
    (request,) = w.take("s")
    assert request.proto == ICMP
    w.send("s", build.echo_reply(request))
    (reply,) = w.take("a")
    assert (reply.proto, reply.sport, reply.src) == (ICMP6, 9, S64)
    w.send("s", build.icmp_error(S, request, 3, 1))
    (error,) = w.take("a")
    inner = Packet(bytearray(error.buf[48:]))
    assert build.valid_checksums(inner)
    assert (inner.proto, inner.sport, inner.dst) == (ICMP6, 9, S64)


def test_hairpin() -> None:
    for on in (True, False):
        w = world64(hairpin=on, filtering="endpoint-independent")
        w.send("a", build.udp(A, 5000, S64, 1))
        port = w.take("s")[0].sport
        w.send("a", build.udp(A2, 6000, EXT64, port, b"x"))
        got = w.take("a")
        assert [(p.src, p.dst, p.dport) for p in got] == ([(EXT64, A, 5000)] if on else [])


def test_errors_from_the_ipv4_side() -> None:
    w = world64()
    w.send("a", build.udp(A, 5000, S64, 1, b"data!"))
    (out,) = w.take("s")
    w.send("s", build.icmp_error(ip("192.0.2.1"), out, 3, 3))
    (error,) = w.take("a")
    assert (error.proto, error.src, error.dst) == (ICMP6, ip("64:ff9b::192.0.2.1"), A)
    assert bytes(error.buf[40:42]) == b"\1\4"
    inner = Packet(bytearray(error.buf[48:]))
    assert build.valid_checksums(inner)
    assert (inner.src, inner.sport, inner.dst, inner.dport) == (A, 5000, S64, 1)


def test_errors_from_the_ipv6_side() -> None:
    w = world64()
    w.send("a", build.udp(A, 5000, S64, 1))
    (out,) = w.take("s")
    w.send("s", build.udp(S, 1, EXT, out.sport, b"data!"))
    (came,) = w.take("a")
    w.send("a", build.icmp_error(A, came, 1, 4))
    (error,) = w.take("s")
    assert (error.proto, error.src, error.dst) == (ICMP, EXT, S)
    assert bytes(error.buf[20:22]) == b"\3\3"
    quote = Quote.read(error)
    assert quote is not None
    assert (quote.src, quote.dst, quote.dport) == (S, EXT, out.sport)
    assert build.valid_checksums(Packet(bytearray(error.buf[28:])))


def test_too_big_on_the_ipv4_side_tells_ipv6_its_own_size() -> None:
    w = world64(mtu=1400)
    w.send("a", build.udp(A, 5000, S64, 1, bytes(1390)))
    (error,) = w.take("a")
    assert bytes(error.buf[40:42]) == b"\2\0"
    assert int.from_bytes(error.buf[44:48], "big") == 1420
    assert not w.take("s")


def test_what_is_not_for_the_prefix_is_dropped() -> None:
    w = world64()
    w.send("a", build.udp(A, 5000, ip("2001:db8:9::1"), 1))
    assert w.graph.nodes["n"].drops == {"no-prefix": 1}


ports = st.integers(1, 65535)


@given(st.sampled_from(["udp", "tcp", "echo"]), ports, ports, ports, st.binary(max_size=40))
def test_there_and_back_is_the_same_packet(
    kind: str, sport: int, dport: int, other: int, data: bytes
) -> None:
    if kind == "udp":
        packet = build.udp(A, sport, S64, dport, data)
    elif kind == "tcp":
        packet = build.tcp(A, sport, S64, dport, SYN, data=data)
    else:
        packet = build.echo(A, S64, sport, 1, data)
        dport = sport
    there = translate(packet, (EXT, other), (S, other if kind == "echo" else dport), 5)
    assert not there.v6
    assert build.valid_checksums(there)
    back = translate(there, (A, sport), (S64, dport), 0)
    assert bytes(back.buf) == bytes(packet.buf)


# The firewall.


def fire(**more: object) -> World:
    return World(
        {
            "devices": ["a", "s"],
            "nodes": {"f": {"type": "firewall", "addresses": ["2001:db8:1::1"], **more}},
            "links": {"l": {"a": "a", "b": "f:in"}, "r": {"a": "f:out", "b": "s"}},
        }
    )


PEERS = [(A, ip("2001:db8:2::2"), ip("2001:db8:2::3")), (ip("10.0.0.2"), S, ip("198.51.100.2"))]


@pytest.mark.parametrize(("host", "one", "two"), PEERS, ids=["v6", "v4"])
@pytest.mark.parametrize(
    ("filtering", "port", "address"),
    [
        ("endpoint-independent", True, True),
        ("address-dependent", True, False),
        ("address-and-port-dependent", False, False),
    ],
)
def test_firewall_filters(
    host: bytes, one: bytes, two: bytes, filtering: str, port: bool, address: bool
) -> None:
    w = fire(filtering=filtering)
    w.send("s", build.udp(one, 1, host, 5000))
    assert not w.take("a")
    w.send("a", build.udp(host, 5000, one, 1))
    (out,) = w.take("s")
    assert (out.src, out.sport) == (host, 5000)
    for src, sport, passes in ((one, 1, True), (one, 2, port), (two, 1, address)):
        w.send("s", build.udp(src, sport, host, 5000))
        assert bool(w.take("a")) is passes


def test_firewall_lets_related_errors_and_pinholes_through() -> None:
    host, peer, _ = PEERS[0]
    w = fire(forwards=[{"proto": "udp", "to": "2001:db8:1::2", "port": 7000}])
    w.send("s", build.udp(peer, 1, host, 7000))
    assert w.take("a")
    w.send("a", build.udp(host, 5000, peer, 1))
    (out,) = w.take("s")
    w.send("s", build.icmp_error(peer, out, 1, 4))
    assert [p.icmp for p in w.take("a")] == [ERROR]
    w.send("s", build.icmp_error(peer, build.udp(host, 1, peer, 1), 1, 4))
    assert not w.take("a")
    w.node("f", Firewall).forward_del(UDP, host, 7000)
    w.send("s", build.udp(peer, 1, host, 7000))
    assert not w.take("a")


def test_firewall_lets_other_families_pass() -> None:
    w = fire(families=[6])
    w.send("s", build.udp(S, 1, ip("10.0.0.2"), 5000))
    w.send("s", build.udp(PEERS[0][1], 1, A, 5000))
    assert [p.v6 for p in w.take("a")] == [False]

"""NATs and ICMP (RFC 5508), nesting, reboots, counters, fragments."""

from __future__ import annotations

import itertools
from ipaddress import ip_address

import pytest

from warpgate_natlab.engine import build
from warpgate_natlab.engine.nat import Nat
from warpgate_natlab.engine.packet import ERROR, Packet
from warpgate_natlab.engine.policy import ConfigError
from warpgate_natlab.engine.quote import Quote
from warpgate_natlab.engine.router import Router
from warpgate_natlab.engine.world import World, two_nats


def ip(text: str) -> bytes:
    return ip_address(text).packed


A, A2, B = ip("192.168.1.2"), ip("192.168.1.3"), ip("10.0.0.2")
S1, S2 = ip("198.51.100.1"), ip("198.51.100.2")
NAT_A, NAT_B = ip("203.0.113.10"), ip("203.0.113.20")
EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"


def mapped(w: World, sport: int, dst: bytes, dport: int, device: str = "a") -> int:
    """The external port the server sees; 0: nothing came."""
    src = {"a": A, "a2": A2, "b": B}[device]
    w.send(device, build.udp(src, sport, dst, dport, b"?"))
    got = w.take("s")
    return got[0].sport if got else 0


def reaches(w: World, src: bytes, sport: int, dport: int) -> bool:
    w.send("s", build.udp(src, sport, NAT_A, dport, b"!"))
    got = w.take("a")
    if got:
        assert (got[0].dst, got[0].src, got[0].sport) == (A, src, sport)
    return bool(got)


def test_nested_nat_maps_twice() -> None:
    w = World(
        {
            "devices": ["a", "s"],
            "nodes": {
                "home": {"type": "nat", "external": ["100.64.0.2"]},
                "cgn": {"type": "nat", "external": ["203.0.113.9"], "allocation": "sequential"},
            },
            "links": {
                "l1": {"a": "a", "b": "home:in"},
                "l2": {"a": "home:out", "b": "cgn:in"},
                "l3": {"a": "cgn:out", "b": "s"},
            },
        }
    )
    w.send("a", build.udp(A, 5000, S1, 1))
    (out,) = w.take("s")
    assert out.src == ip("203.0.113.9")
    assert out.ttl == 62
    w.send("s", build.udp(S1, 1, out.src, out.sport))
    (back,) = w.take("a")
    assert (back.dst, back.dport) == (A, 5000)
    hosts = w.graph.stats(w.now, "cgn")["hosts"]
    assert list(hosts) == ["100.64.0.2"]


def test_icmp_errors_find_the_inside_and_quote_it() -> None:
    w = two_nats()
    w.send("a", build.udp(A, 5000, S1, 1, b"data"))
    (out,) = w.take("s")
    w.send("s", build.icmp_error(S2, out, 3, 3))
    (error,) = w.take("a")
    assert (error.src, error.dst) == (S2, A)
    quote = Quote.read(error)
    assert quote is not None
    assert (quote.src, quote.sport, quote.dst, quote.dport) == (A, 5000, S1, 1)
    assert build.valid_checksums(Packet(bytearray(error.buf[28:])))


def test_icmp_errors_from_the_inside_hide_it() -> None:
    w = two_nats()
    port = mapped(w, 5000, S1, 1)
    w.send("s", build.udp(S1, 1, NAT_A, port, b"data"))
    (came,) = w.take("a")
    w.send("a", build.icmp_error(A, came, 3, 3))
    (error,) = w.take("s")
    assert (error.src, error.dst) == (NAT_A, S1)
    quote = Quote.read(error)
    assert quote is not None
    assert (quote.src, quote.dst, quote.dport) == (S1, NAT_A, port)
    assert build.valid_checksums(Packet(bytearray(error.buf[28:])))


def test_unknown_icmp_errors_are_dropped() -> None:
    w = two_nats()
    w.send("s", build.icmp_error(S2, build.udp(NAT_A, 7, S1, 1), 3, 3))
    assert not w.take("a")
    assert w.graph.nodes["nat_a"].drops == {"icmp-unknown": 1}


def test_a_low_ttl_dies_in_the_middle_and_says_so() -> None:
    w = two_nats()
    for ttl, sender in ((1, ip("192.168.1.1")), (2, ip("203.0.113.1")), (3, NAT_B)):
        if ttl == 3:
            w.send("b", build.udp(B, 6000, NAT_A, 5000))
            assert w.take("a")  # the one that died at the router had opened a's filter
        w.send("a", build.udp(A, 5000, NAT_B, 6000, ttl=ttl))
        (error,) = w.take("a")
        assert (error.src, error.buf[error.l4]) == (sender, 11)
    assert not w.take("b")


def test_echo_is_translated_and_answered() -> None:
    w = two_nats({"allocation": "random"})
    w.send("a", build.echo(A, S1, 77, 1, b"ping"))
    (request,) = w.take("s")
    assert request.src == NAT_A
    assert request.sport != 77
    w.send("s", build.echo_reply(request))
    (reply,) = w.take("a")
    assert (reply.dst, reply.sport) == (A, 77)
    w.send("s", build.echo(S1, NAT_A, 5))
    assert w.take("s")
    w.send("a", build.echo(A, ip("192.168.1.1"), 5))
    assert w.take("a")


def test_a_rebooting_nat_forgets_and_is_down() -> None:
    w = two_nats({"allocation": "random"})
    port = mapped(w, 5000, S1, 1)
    assert w.node("nat_a", Nat).reboot(w.now, 2.0) == 1
    assert mapped(w, 5000, S1, 1) == 0
    w.pass_time(2)
    assert not reaches(w, S1, 1, port)
    assert mapped(w, 5000, S1, 1) not in (port, 0)


def test_another_address_and_the_router_follows() -> None:
    w = two_nats()
    w.node("inet", Router).routes.remove("203.0.113.8/29")
    w.node("inet", Router).routes.add("203.0.113.10/32", "na")
    port = mapped(w, 5000, S1, 1)
    assert w.graph.readdress("nat_a", ["203.0.113.99"], w.now) == 1
    assert not reaches(w, S1, 1, port)
    assert [p.icmp for p in w.take("s")] == [ERROR]  # nobody has the old address any more
    w.send("a", build.udp(A, 5000, S1, 1))
    (out,) = w.take("s")
    assert out.src == ip("203.0.113.99")
    w.send("s", build.udp(S1, 1, out.src, out.sport))
    assert w.take("a")


def test_flows_are_counted_for_spray_budgets() -> None:
    w = two_nats({"mapping": APD, "allocation": "random"})
    for sport, dport in itertools.product(range(5000, 5003), range(1, 11)):
        for _ in range(2):
            w.send("a", build.udp(A, sport, S1, dport))
    stats = w.graph.stats(w.now, "nat_a")
    assert stats["hosts"] == {
        "192.168.1.2": {"live": 30, "peak": 30, "mappings": 30, "flows": 30, "remotes": 1}
    }
    assert stats["dst"] == {"198.51.100.1": [60, 60 * 28]}
    w.graph.reset_stats()
    assert w.graph.stats(w.now, "nat_a")["hosts"]["192.168.1.2"]["live"] == 30


def test_a_host_limit() -> None:
    w = two_nats({"mapping": APD, "max_per_host": 3})
    assert [mapped(w, 5000, S1, p) == 0 for p in range(1, 6)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("how", ["reassemble", "drop"])
def test_fragments(how: str) -> None:
    w = two_nats({"fragments": how}, both={"mtu": 1000})
    from warpgate_natlab.engine.frag import fragment

    for piece in reversed(fragment(build.udp(A, 5000, S1, 1, bytes(2000), df=False), 600, 3)):
        w.send("a", piece)
    got = w.take("s")
    if how == "drop":
        assert not got
        return
    assert len(got) == 3  # cut again for the link
    assert all(p.src == NAT_A for p in got)


def test_changes_at_run_time() -> None:
    w = two_nats({"filtering": APD})
    port = mapped(w, 5000, S1, 1)
    assert not reaches(w, S2, 2, port)
    w.node("nat_a", Nat).configure({"filtering": {"udp": EI}})
    assert reaches(w, S2, 2, port)
    with pytest.raises(ConfigError, match="filtering"):
        w.node("nat_a", Nat).configure({"filtering": "cone"})
    with pytest.raises(ConfigError, match="unknown colour"):
        w.node("nat_a", Nat).configure({"colour": 1})

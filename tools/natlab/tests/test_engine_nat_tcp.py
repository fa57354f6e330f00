"""NAT behaviour for TCP and for what is not let through (RFC 5382, 7857)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from warpgate_natlab.engine import build
from warpgate_natlab.engine.nat import Nat
from warpgate_natlab.engine.packet import ACK, ERROR, FIN, RST, SYN, TCP
from warpgate_natlab.engine.world import World, two_nats


def ip(text: str) -> bytes:
    return ip_address(text).packed


A, A2, B = ip("192.168.1.2"), ip("192.168.1.3"), ip("10.0.0.2")
S1, S2 = ip("198.51.100.1"), ip("198.51.100.2")
NAT_A, NAT_B = ip("203.0.113.10"), ip("203.0.113.20")
EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"


@pytest.mark.parametrize("filtering", [EI, AD, APD])
def test_tcp_filtering(filtering: str) -> None:
    w = two_nats({"filtering": {"tcp": filtering}, "mapping": EI})
    w.send("a", build.tcp(A, 5000, S1, 80, SYN))
    (syn,) = w.take("s")
    for src, sport, passes in (
        (S1, 80, True),
        (S1, 81, filtering != APD),
        (S2, 80, filtering == EI),
    ):
        w.send("s", build.tcp(src, sport, NAT_A, syn.sport, SYN))
        assert bool(w.take("a")) is passes


@pytest.mark.parametrize(("stray", "flags"), [("drop", None), ("rst", RST | ACK), ("icmp", None)])
def test_stray_syn(stray: str, flags: int | None) -> None:
    w = two_nats({"stray_syn": stray})
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, SYN, seq=41))
    got = w.take("s")
    assert [p.flags for p in got] == ([flags] if flags else [])
    if got:
        assert got[0].buf[got[0].l4 + 8 : got[0].l4 + 12] == (42).to_bytes(4, "big")
    w.pass_time(5.9)
    assert not w.take("s")
    w.pass_time(0.2)
    late = w.take("s")
    assert [p.icmp for p in late] == ([ERROR] if stray == "icmp" else [])
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, RST))
    assert not w.take("s")


def test_no_late_icmp_when_the_inside_calls_in_time() -> None:
    w = two_nats({"stray_syn": "icmp"})
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, SYN))
    w.pass_time(1)
    w.send("a", build.tcp(A, 5000, S1, 80, SYN))
    w.take("s")
    w.pass_time(10)
    assert not w.take("s")


def test_unsolicited_udp_is_answered_when_told_so() -> None:
    for how, number in (("drop", 0), ("icmp", 1)):
        w = two_nats({"stray_udp": how})
        w.send("s", build.udp(S1, 80, NAT_A, 5000))
        assert len(w.take("s")) == number


@pytest.mark.parametrize("tcp_filter", [AD, APD])
def test_tcp_simultaneous_open_through_two_nats(tcp_filter: str) -> None:
    both = {"filtering": tcp_filter}
    w = two_nats(both, both)
    w.send("a", build.tcp(A, 5000, NAT_B, 6000, SYN, seq=1))
    assert not w.take("b")  # b's NAT knows nothing of it
    w.send("b", build.tcp(B, 6000, NAT_A, 5000, SYN, seq=9))
    (syn,) = w.take("a")
    assert (syn.src, syn.sport, syn.dport, syn.flags) == (NAT_B, 6000, 5000, SYN)
    w.send("a", build.tcp(A, 5000, NAT_B, 6000, SYN | ACK, seq=1, ack=10))
    (synack,) = w.take("b")
    assert synack.flags == SYN | ACK
    w.send("b", build.tcp(B, 6000, NAT_A, 5000, ACK, seq=10, ack=2))
    assert w.take("a")
    w.pass_time(7000)  # established on both: far beyond the transitory timer
    w.send("a", build.tcp(A, 5000, NAT_B, 6000, ACK, data=b"x"))
    assert w.take("b")


def open_tcp(w: World) -> None:
    w.send("a", build.tcp(A, 5000, S1, 80, SYN))
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, SYN | ACK))
    w.send("a", build.tcp(A, 5000, S1, 80, ACK))
    assert len(w.take("a")) == 1
    w.take("s")


def test_tcp_timers() -> None:
    w = two_nats({"timers": {"tcp_transitory_s": 10, "tcp_established_s": 100}})
    w.send("a", build.tcp(A, 5000, S1, 80, SYN))
    w.pass_time(11)
    assert w.graph.stats(w.now, "nat_a")["mappings"] == 0
    open_tcp(w)
    w.pass_time(99)
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, ACK, data=b"x"))
    assert w.take("a")
    w.send("a", build.tcp(A, 5000, S1, 80, FIN | ACK))
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, FIN | ACK))
    w.send("a", build.tcp(A, 5000, S1, 80, ACK))
    assert w.take("a")
    w.pass_time(11)
    assert w.graph.stats(w.now, "nat_a")["mappings"] == 0


def test_tcp_reset_shortens_but_data_revives() -> None:
    w = two_nats({"timers": {"tcp_transitory_s": 10, "tcp_established_s": 100}})
    open_tcp(w)
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, RST))
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, ACK))
    w.pass_time(50)
    assert w.graph.stats(w.now, "nat_a")["mappings"] == 1
    w.send("s", build.tcp(S1, 80, NAT_A, 5000, RST))
    w.pass_time(11)
    assert w.graph.stats(w.now, "nat_a")["mappings"] == 0


@pytest.mark.parametrize(("how", "sent", "back"), [("drop", 0, 0), ("rst", 0, 1), ("accept", 1, 0)])
def test_tcp_after_a_reboot(how: str, sent: int, back: int) -> None:
    w = two_nats({"tcp_midstream": how})
    open_tcp(w)
    assert w.node("nat_a", Nat).reboot(w.now) == 1
    w.send("a", build.tcp(A, 5000, S1, 80, ACK, data=b"x"))
    assert (len(w.take("s")), len(w.take("a"))) == (sent, back)


@pytest.mark.parametrize(("on_blocked", "answers"), [("drop", 0), ("reject", 1)])
def test_blocked_ports(on_blocked: str, answers: int) -> None:
    w = two_nats({"udp_ports": [53], "tcp_ports": [443], "on_blocked": on_blocked})
    w.send("a", build.udp(A, 5000, S1, 3478))
    w.send("a", build.udp(A, 5000, S1, 53))
    w.send("a", build.tcp(A, 5000, S1, 443, SYN))
    assert [p.dport for p in w.take("s")] == [53, 443]
    assert len(w.take("a")) == answers
    w.send("a", build.tcp(A, 5000, S1, 80, SYN))
    assert [p.flags for p in w.take("a")] == [RST | ACK] * answers
    assert not w.take("s")


def test_forwards_let_strangers_in_and_survive_a_reboot() -> None:
    forward = {"proto": "tcp", "external_port": 8080, "to": "192.168.1.2", "port": 80}
    w = two_nats({"forwards": [forward]})
    for _ in range(2):
        w.send("s", build.tcp(S2, 9, NAT_A, 8080, SYN))
        (syn,) = w.take("a")
        assert (syn.dst, syn.dport) == (A, 80)
        w.send("a", build.tcp(A, 80, S2, 9, SYN | ACK))
        (answer,) = w.take("s")
        assert (answer.src, answer.sport) == (NAT_A, 8080)
        w.node("nat_a", Nat).reboot(w.now)
    w.node("nat_a", Nat).forward_del(TCP, 8080)
    w.send("s", build.tcp(S2, 9, NAT_A, 8080, SYN))
    assert not w.take("a")

"""NAT behaviour, cell by cell, by packets alone: mapping, filtering, ports, timers (RFC 4787)."""

from __future__ import annotations

import itertools
from ipaddress import ip_address

import pytest

from warpgate_natlab.engine import build
from warpgate_natlab.engine.world import World, two_nats


def ip(text: str) -> bytes:
    return ip_address(text).packed


A, A2, B = ip("192.168.1.2"), ip("192.168.1.3"), ip("10.0.0.2")
S1, S2 = ip("198.51.100.1"), ip("198.51.100.2")
NAT_A, NAT_B = ip("203.0.113.10"), ip("203.0.113.20")
EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"


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


@pytest.mark.parametrize(("mapping", "filtering"), [*itertools.product((EI, AD, APD), repeat=2)])
def test_mapping_and_filtering_are_what_rfc_4787_says(mapping: str, filtering: str) -> None:
    w = two_nats({"mapping": mapping, "filtering": filtering, "allocation": "random"})
    first = mapped(w, 5000, S1, 1000)
    same_addr = mapped(w, 5000, S1, 1001)
    other_addr = mapped(w, 5000, S2, 1000)
    assert (first == same_addr) is (mapping != APD)
    assert (first == other_addr) is (mapping == EI)
    assert mapped(w, 5000, S1, 1000) == first

    w = two_nats({"mapping": mapping, "filtering": filtering, "allocation": "random"})
    port = mapped(w, 5000, S1, 1000)
    assert reaches(w, S1, 1000, port)
    assert reaches(w, S1, 1001, port) is (filtering != APD)
    assert reaches(w, S2, 1000, port) is (filtering == EI)


def test_allocation_preserving_falls_back_on_collision() -> None:
    w = two_nats({"allocation": "preserving"})
    assert mapped(w, 5000, S1, 1) == 5000
    other = mapped(w, 5000, S1, 1, "a2")
    assert other not in (5000, 0)
    assert mapped(w, 6000, S1, 1, "a2") == 6000


@pytest.mark.parametrize("step", [1, 2, -1])
def test_allocation_sequential(step: int) -> None:
    w = two_nats({"allocation": {"mode": "sequential", "step": step}, "mapping": APD})
    got = [mapped(w, 5000, S1, port) for port in range(1, 6)]
    deltas = {(b - a) for a, b in itertools.pairwise(got)}
    assert deltas == {step}


def test_allocation_sequential_wraps_and_skips_the_taken() -> None:
    how = {"mode": "sequential", "range": [2000, 2003]}
    w = two_nats({"allocation": how, "mapping": APD})
    got = [mapped(w, 5000, S1, port) for port in range(1, 6)]
    assert sorted(got[:4]) == [2000, 2001, 2002, 2003]
    assert got[4] == 0
    assert w.graph.nodes["nat_a"].drops == {"ports-exhausted": 1}


@pytest.mark.parametrize("size", [64, 512])
def test_allocation_block(size: int) -> None:
    w = two_nats({"allocation": {"mode": "block", "size": size}, "mapping": APD})
    got = [mapped(w, 5000, S1, port) for port in range(1, size + 2)]
    assert got.pop() == 0
    assert len(set(got)) == size
    assert min(got) % size == 0
    assert max(got) - min(got) == size - 1
    assert got != sorted(got)
    other = [mapped(w, 5000, S1, port, "a2") for port in range(1, 9)]
    assert len({port // size for port in other}) == 1
    assert other[0] // size != got[0] // size


def test_allocation_blocks_and_order_within() -> None:
    how = {"mode": "block", "size": 8, "blocks": 2, "within": "sequential"}
    w = two_nats({"allocation": how, "mapping": APD})
    got = [mapped(w, 5000, S1, port) for port in range(1, 18)]
    assert got.pop() == 0
    assert [p - got[0] for p in got[:8]] == list(range(8))
    assert [p - got[8] for p in got[8:]] == list(range(8))


def test_allocation_random_is_spread_and_repeatable() -> None:
    def run(seed: int) -> list[int]:
        w = two_nats({"allocation": "random", "mapping": APD}, seed=seed)
        return [mapped(w, 5000, S1, port) for port in range(1, 200)]

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert max(first) > 50000 > 20000 > min(first) >= 1024
    assert len(set(first)) == len(first)


def test_pooling() -> None:
    external = [f"203.0.113.{n}" for n in (10, 11, 12, 13)]
    for pooling, number in (("paired", 1), ("arbitrary", 4)):
        w = two_nats({"external": external, "pooling": pooling, "mapping": APD})
        seen = set()
        for port in range(1, 40):
            w.send("a", build.udp(A, 5000, S1, port))
            seen.add(w.take("s")[0].src)
        assert len(seen) == number


@pytest.mark.parametrize("refresh", [True, False])
def test_udp_timer_and_inbound_refresh(refresh: bool) -> None:
    w = two_nats({"timers": {"udp_s": 30}, "inbound_refresh": refresh})
    port = mapped(w, 5000, S1, 1)
    w.pass_time(29)
    assert reaches(w, S1, 1, port)
    w.pass_time(2)
    assert reaches(w, S1, 1, port) is refresh
    w.pass_time(31)
    assert not reaches(w, S1, 1, port)
    assert w.graph.stats(w.now, "nat_a")["mappings"] == 0


def test_outbound_always_refreshes() -> None:
    w = two_nats({"timers": {"udp_s": 30}, "inbound_refresh": False, "allocation": "random"})
    port = mapped(w, 5000, S1, 1)
    for _ in range(5):
        w.pass_time(29)
        assert mapped(w, 5000, S1, 1) == port
    w.pass_time(30)
    assert mapped(w, 5000, S1, 1) != port


def test_a_one_packet_mapping_dies_early() -> None:
    w = two_nats({"timers": {"udp_s": 120, "udp_first_packet_s": 15}})
    port = mapped(w, 5000, S1, 1)
    w.pass_time(16)
    assert not reaches(w, S1, 1, port)
    port = mapped(w, 5000, S1, 1)
    w.pass_time(14)
    assert reaches(w, S1, 1, port)
    w.pass_time(100)
    assert reaches(w, S1, 1, port)


def test_permissions_end_on_their_own() -> None:
    w = two_nats({"timers": {"udp_s": 30}})
    port = mapped(w, 5000, S1, 1)
    w.pass_time(20)
    assert mapped(w, 5000, S2, 1) == port
    w.pass_time(20)
    assert reaches(w, S2, 1, port)
    assert not reaches(w, S1, 1, port)


@pytest.mark.parametrize("on", [True, False])
def test_hairpin(on: bool) -> None:
    w = two_nats({"hairpin": on, "filtering": EI, "allocation": "random"})
    port_a, port_a2 = mapped(w, 5000, S1, 1), mapped(w, 6000, S1, 1, "a2")
    w.send("a", build.udp(A, 5000, NAT_A, port_a2, b"hi"))
    got = w.take("a2")
    assert bool(got) is on
    if on:
        assert (got[0].src, got[0].sport) == (NAT_A, port_a)  # RFC 4787 REQ-9
        assert (got[0].dst, got[0].dport) == (A2, 6000)
    else:
        assert w.graph.nodes["nat_a"].drops == {"hairpin": 1}


def test_hairpin_obeys_the_filter_and_opens_it() -> None:
    w = two_nats({"filtering": APD})
    port_a, port_a2 = mapped(w, 5000, S1, 1), mapped(w, 6000, S1, 1, "a2")
    w.send("a", build.udp(A, 5000, NAT_A, port_a2))
    assert not w.take("a2")
    w.send("a2", build.udp(A2, 6000, NAT_A, port_a))
    assert w.take("a")
    w.send("a", build.udp(A, 5000, NAT_A, port_a2))
    assert w.take("a2")

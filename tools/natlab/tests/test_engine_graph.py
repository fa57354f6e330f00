"""Links, routers and the whole graph: impairments, seeds, MTU, building."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from typing import Any

import pytest

from warpgate_natlab.engine import build
from warpgate_natlab.engine.graph import Graph
from warpgate_natlab.engine.link import Direction
from warpgate_natlab.engine.policy import ConfigError
from warpgate_natlab.engine.router import Router
from warpgate_natlab.engine.world import World


def ip(text: str) -> bytes:
    return ip_address(text).packed


A, B = ip("10.0.1.2"), ip("10.0.2.2")
A6, B6 = ip("2001:db8:1::2"), ip("2001:db8:2::2")


def world(seed: object = 1, **link: object) -> World:
    return World(
        {
            "seed": seed,
            "devices": ["a", "b"],
            "nodes": {
                "r": {
                    "type": "router", "addresses": ["10.0.1.1", "2001:db8:1::1"],
                    "routes": {
                        "a": ["10.0.1.0/24", "2001:db8:1::/64"],
                        "b": ["10.0.2.0/24", "2001:db8:2::/64"],
                    },
                }
            },
            "links": {"la": {"a": "a", "b": "r:a"}, "lb": {"a": "r:b", "b": "b", "both": link}},
        }
    )  # fmt: skip


def train(w: World, number: int, gap: float = 0.001) -> list[tuple[float, int]]:
    """Send numbered packets; (delay after its sending, number) of each arrival."""
    start = w.now
    for n in range(number):
        w.send("a", build.udp(A, 1, B, n + 1))
        w.pass_time(gap)
    w.pass_time(10)
    got = w.arrived["b"]
    return [(at - start - (p.dport - 1) * gap, p.dport - 1) for at, p in got]


def test_delay_is_exact() -> None:
    got = train(world(delay_ms=20), 20)
    assert [n for _, n in got] == list(range(20))
    assert all(delay == pytest.approx(0.020, abs=1e-9) for delay, _ in got)


@pytest.mark.parametrize("reorder", [False, True])
def test_jitter_keeps_order_unless_told(reorder: bool) -> None:
    got = train(world(delay_ms=20, jitter_ms=10, jitter_reorder=reorder), 500)
    order = [n for _, n in got]
    assert (order == sorted(order)) is not reorder
    assert all(0.010 - 1e-9 <= delay <= 0.030 + 1e-9 for delay, _ in got)
    assert len({round(delay, 4) for delay, _ in got}) > 50


def test_independent_loss() -> None:
    got = {n for _, n in train(world(loss=0.2), 3000)}
    assert 0.17 < 1 - len(got) / 3000 < 0.23


def test_bursty_loss_has_the_mean_and_the_length_it_should() -> None:
    w = world(burst_p=0.02, burst_r=0.25)
    got = {n for _, n in train(w, 8000)}
    lost = [n not in got for n in range(8000)]
    bursts = [len(list(run)) for gone, run in itertools.groupby(lost) if gone]
    assert 0.05 < sum(lost) / 8000 < 0.10  # p / (p + r) = 0.074
    assert 3 < sum(bursts) / len(bursts) < 5  # 1 / r = 4
    assert w.graph.links["lb"].stats()["ab"]["drops"] == {"burst": sum(lost)}


def test_reorder_and_duplicate() -> None:
    got = train(world(delay_ms=10, reorder=0.1, reorder_ms=5), 1000)
    late = [n for delay, n in got if delay > 0.0149]
    assert 60 < len(late) < 150
    assert len(got) == 1000
    got = train(world(duplicate=0.1), 1000)
    assert 1060 < len(got) < 1150


def test_rate_and_queue() -> None:
    way = Direction("x", {"rate_bps": 8000, "queue_bytes": 2000})  # 1000 bytes a second
    assert way.schedule(500, 0.0) == (0.5,)
    assert way.schedule(500, 0.0) == (1.0,)
    assert way.schedule(1000, 0.0) == (2.0,)
    assert way.schedule(500, 0.0) == ()
    assert way.drops == {"queue": 1}
    assert way.schedule(500, 5.0) == (5.5,)


def test_the_same_seed_gives_the_same_fates() -> None:
    def run(seed: object, **more: object) -> list[int]:
        return [n for _, n in train(world(seed, loss=0.3, **more), 300)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1) == run(1, jitter_ms=3)  # other impairments leave the losses alone


def test_switching_at_run_time_and_cutting() -> None:
    w = world()
    w.graph.link("lb").ab.configure({"up": False})
    assert train(w, 5) == []
    w.send("b", build.udp(B, 1, A, 1))
    assert len(w.take("a")) == 1  # one direction only
    w.graph.link("lb").ab.configure({"up": True})
    assert len(train(w, 5)) == 5
    assert w.graph.links["lb"].stats()["ab"]["drops"] == {"cut": 5}


@pytest.mark.parametrize(
    ("given", "text"),
    [({"loss": 2}, "probability"), ({"delay": 1}, "unknown delay"), ({"burst_p": 0.1}, "burst_r")],
)
def test_wrong_parameters_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        world().graph.link("lb").ab.configure(given)


def test_mtu_with_icmp() -> None:
    w = world(mtu=1280)
    w.send("a", build.udp(A, 1, B, 1, bytes(1300)))
    w.send("a", build.udp(A6, 1, B6, 1, bytes(1300)))
    four, six = w.take("a")
    assert (four.src, bytes(four.buf[20:22]), bytes(four.buf[26:28])) == (
        ip("10.0.1.1"), b"\3\4", (1280).to_bytes(2, "big"),
    )  # fmt: skip
    assert (six.src, bytes(six.buf[40:42])) == (ip("2001:db8:1::1"), b"\2\0")
    assert int.from_bytes(six.buf[44:48], "big") == 1280
    assert not w.take("b")
    w.send("a", build.udp(A, 1, B, 1, bytes(1300), df=False))
    pieces = w.take("b")
    assert [len(p.buf) <= 1280 for p in pieces] == [True, True]


def test_mtu_as_a_black_hole() -> None:
    w = world(mtu=1280, mtu_icmp=False)
    for df in (True, False):
        w.send("a", build.udp(A, 1, B, 1, bytes(1300), df=df))
    assert not w.take("a")
    assert not w.take("b")
    assert w.graph.links["lb"].stats()["ab"]["drops"] == {"mtu": 2}


def test_the_first_link_tells_its_host() -> None:
    w = world()
    w.graph.link("la").ab.configure({"mtu": 576})
    w.send("a", build.udp(A, 1, B, 1, bytes(1300)))
    (error,) = w.take("a")
    assert error.src == ip("10.0.1.1")


def test_router_errors() -> None:
    w = world()
    w.send("a", build.udp(A, 1, ip("192.0.2.1"), 1))
    w.send("a", build.udp(A6, 1, ip("2001:db8:9::1"), 1))
    w.send("a", build.udp(A, 1, B, 1, ttl=1))
    w.send("a", build.echo(A, ip("10.0.1.1"), 4))
    kinds = [bytes(p.buf[p.l4 : p.l4 + 2]) for p in w.take("a")]
    assert kinds == [b"\3\0", b"\1\0", b"\x0b\0", b"\0\0"]
    assert w.graph.stats(w.now, "r")["drops"] == {"no-route": 2, "ttl": 1}


def test_the_longest_prefix_wins() -> None:
    w = world()
    routes = w.node("r", Router).routes
    routes.add("10.0.2.2/32", "a")
    w.send("a", build.udp(A, 1, B, 1))
    assert w.take("a")
    routes.remove("10.0.2.2/32")
    w.send("a", build.udp(A, 1, B, 1))
    assert w.take("b")


def test_link_local_noise_stays_at_the_device() -> None:
    w = world(loss=0.5)
    w.send("a", build.echo(ip("fe80::1"), ip("ff02::2"), 1))
    assert w.graph.stats(w.now, "a")["drops"] == {"link-local": 1}
    assert w.graph.links["la"].stats()["ab"]["packets"] == 0


def test_what_a_victim_received_and_from_whom() -> None:
    w = world()
    train(w, 7)
    stats = w.graph.stats(w.now)
    assert stats["devices"]["b"]["tx_src"] == {"10.0.1.2": 7}
    assert stats["nodes"]["r"]["dst"] == {"10.0.2.2": [7, 7 * 28]}


def test_a_lan_floods_multicast() -> None:
    names = ["a", "b", "c"]
    w = World(
        {
            "devices": names,
            "nodes": {"lan": {"type": "lan", "routes": {n: [] for n in names}}},
            "links": {f"l{n}": {"a": n, "b": f"lan:{n}"} for n in names},
        }
    )
    w.send("a", build.udp(A, 1, ip("239.255.255.250"), 1900))
    assert [len(w.take(n)) for n in names] == [0, 1, 1]


def test_building_is_all_or_nothing() -> None:
    w = world()
    before = w.graph.describe()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"links": {"x": {"a": "a", "b": "r:new"}}}, "linked already"),
        ({"nodes": {"n": {"type": "router"}}, "links": {"x": {"a": "n:1", "b": "q:1"}}}, "no 'q'"),
        ({"nodes": {"n": {"type": "nat", "external": []}}}, "external"),
        ({"nodes": {"n": {"type": "moose"}}}, "moose"),
        ({"nodes": {"r": {"type": "router"}}}, "exists already"),
    ]
    for config, text in bad:
        with pytest.raises(ConfigError, match=text):
            w.graph.add(config)
        assert w.graph.describe() == before


def test_describe_can_be_loaded_again() -> None:
    def strip(described: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in described.items() if v is not None}

    w = world(delay_ms=5, loss=0.1)
    w.graph.add(
        {"nodes": {"n": {"type": "nat", "external": ["203.0.113.1"], "allocation": "block"}}}
    )
    described = w.graph.describe()
    described["nodes"] = {name: strip(node) for name, node in described["nodes"].items()}
    again = Graph(described).describe()
    assert {n: strip(v) for n, v in again["nodes"].items()} == described["nodes"]
    assert again["links"] == described["links"]


def test_a_device_can_go_with_its_link() -> None:
    w = world()
    w.graph.remove_device("b")
    w.send("a", build.udp(A, 1, B, 1))
    assert w.graph.stats(w.now, "r")["drops"] == {"unlinked": 1}

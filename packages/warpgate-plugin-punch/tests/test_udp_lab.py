"""``udp_punch`` between real nodes in the NAT laboratory."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("warpgate_natlab")

from warpgate_natlab.session import Result, run_calls

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

PLAIN_S, MEASURED_S = 1.0, 3.0
"""Bounds for the first answered message; a machine that does other things as well needs some room."""

PAIRS = [
    ("port-restricted", "port-restricted", PLAIN_S),
    ("cgnat", "port-restricted", PLAIN_S),
    ("symmetric-random", "addr-restricted", PLAIN_S),
    ("addr-restricted", "symmetric-random", PLAIN_S),
    ("open-firewall", "linux", PLAIN_S),
    ("linux", "open-firewall", PLAIN_S),
    ("v6-firewalled", "v6-firewalled", PLAIN_S),
    ("symmetric-sequential", "port-restricted", MEASURED_S),
    ("port-restricted", "symmetric-sequential", MEASURED_S),
    ("symmetric-sequential", "symmetric-sequential", MEASURED_S),
]


def calls(lab: Any, count: int = 3, **options: Any) -> list[Result]:
    found = run_calls(lab, calls=count, plugins=["udp_punch"], transport="udp", **options)
    for each in found:
        assert each.ok, each.error
        assert (each.strategy, each.path, each.transport) == ("udp_punch", "direct", "udp")
    return found


@pytest.mark.parametrize(("a", "b", "bound_s"), PAIRS, ids=lambda value: str(value))
def test_it_gets_through(natlab: Any, a: str, b: str, bound_s: float) -> None:
    found = calls(natlab(a, b, servers=["mqtt", "stun"]))
    assert sorted(each.ping_s or 99.0 for each in found)[1] <= bound_s


def test_nodes_that_have_just_started_learn_what_they_need(natlab: Any) -> None:
    lab = natlab("cgnat", "symmetric-sequential", servers=["mqtt", "stun"])
    assert all((each.ping_s or 99.0) <= 5.0 for each in calls(lab, 1, warm=False))


@pytest.mark.parametrize("pair", ["same-lan", "same-lan-no-hairpin"])
def test_peers_on_one_lan_need_no_signal(natlab: Any, pair: str) -> None:
    found = calls(natlab(pair=pair, servers=["mqtt", "stun"]))
    assert sorted(each.ping_s or 99.0 for each in found)[1] <= 0.25


def test_bursts_of_loss_and_jitter_delay_it_only(natlab: Any) -> None:
    lab = natlab(
        "port-restricted", "port-restricted", servers=["mqtt", "stun"], seed=3,
        burst_p=0.034, burst_r=0.3, jitter_ms=100,
    )  # fmt: skip
    assert all((each.connect_s or 99.0) <= 5.0 for each in calls(lab, 4))


def test_a_nat_that_remembers_strays_is_met_by_fresh_sockets(natlab: Any) -> None:
    """Without a filter in ``input`` the kernel keeps what came too early, and moves our port."""
    lab = natlab("linux", "linux", servers=["mqtt", "stun"])
    for router in lab._routers.values():
        router.run(["nft", "chain", "inet", "filter", "input", "{ policy accept; }"])
    assert all((each.ping_s or 99.0) <= 3.0 for each in calls(lab))


@pytest.mark.parametrize(
    ("a", "b", "cause"),
    [
        ("udp-blocked", "port-restricted", "UDP is blocked"),
        ("symmetric-random", "port-restricted", "ports are random"),
    ],
)
def test_what_cannot_work_is_said_at_once(natlab: Any, a: str, b: str, cause: str) -> None:
    lab = natlab(a, b, servers=["mqtt", "stun"])
    [found] = run_calls(lab, plugins=["udp_punch"], conf={"relay": "never"})
    assert not found.ok
    assert cause in found.error
    assert (found.connect_s or 99.0) < 1.0

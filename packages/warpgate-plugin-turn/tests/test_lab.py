"""``turn`` in the NAT laboratory: who gets a pipe, and how soon."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("warpgate_natlab")

from warpgate_natlab import Lab
from warpgate_natlab.session import START_S, Peer

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

COLD_S, WARM_S = 4.0, 2.0
"""From the call to the first answered byte, with 20 ms of access link on either side.

The goals are 1.5 and 0.6 s; ``tools/dev.py lab matrix`` checks them on a quiet machine. Here three
lanes of tests share two cores.
"""
NO_RELAY: dict[str, Any] = {"turn_servers": []}


def connect(
    lab: Lab, first: dict[str, Any], second: dict[str, Any], times: int = 1, transport: str = "udp"
) -> list[dict[str, Any]]:
    """Let a connect to b over a relay, several times; return what came of it."""
    with Peer(lab, "a", first) as a, Peer(lab, "b", second) as b:
        a.answer(START_S)
        request = {
            "do": "connect",
            "address": b.answer(START_S)["address"],
            "timeout": 15,
            "options": {"plugins": ["turn"]},
        }
        found = [a.ask(request, 30) for _ in range(times)]
    for each in found:
        assert each["ok"], each
        assert (each["strategy"], each["path"], each["transport"]) == ("turn", "relay", transport)
    return found


PAIRS = [
    ("symmetric-random", "symmetric-random"),
    ("symmetric-random", "udp-blocked"),
    ("udp-blocked", "symmetric-random"),
    ("udp-blocked", "udp-blocked"),
    ("https-only", "port-restricted"),
    ("port-restricted", "https-only"),
    ("https-only", "https-only"),
    ("v6-firewalled", "v6-firewalled"),
    # No family in common: the relay has the family of whom it serves.
    ("v6-firewalled", "port-restricted"),
    ("symmetric-random", "v6-firewalled"),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_relay_joins(natlab: Any, first: str, second: str) -> None:
    lab = natlab(first, second, servers=["mqtt", "stun"])
    cold, *again = connect(lab, {}, {}, times=3)
    assert cold["ping_s"] <= COLD_S
    if first == second == "symmetric-random":  # the others reach their server over TCP and TLS
        assert min(each["ping_s"] for each in again) <= WARM_S


ONE_SIDE = [
    ("symmetric-random", "symmetric-random", True),
    ("symmetric-random", "symmetric-random", False),
    ("cgnat-symmetric", "port-restricted", True),
    ("cgnat-symmetric", "port-restricted", False),
    ("port-restricted", "cgnat-symmetric", True),
    ("port-restricted", "cgnat-symmetric", False),
    ("https-only", "symmetric-random", True),
    ("symmetric-random", "https-only", False),
]


@pytest.mark.parametrize(("first", "second", "callers"), ONE_SIDE)
def test_one_side_s_relay_will_do(natlab: Any, first: str, second: str, callers: bool) -> None:
    lab = natlab(first, second, servers=["mqtt", "stun"])
    confs = ({}, NO_RELAY) if callers else (NO_RELAY, {})
    (found,) = connect(lab, *confs)
    assert found["ping_s"] <= COLD_S


def test_one_side_s_relay_without_any_stun_server(natlab: Any) -> None:
    lab = natlab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"])
    for confs in (({}, NO_RELAY), (NO_RELAY, {})):
        connect(lab, *({**conf, "stun_servers": []} for conf in confs))


def test_losses_on_both_links(natlab: Any) -> None:
    lab = natlab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"], loss=0.12)
    connect(lab, {}, {}, times=3)


@pytest.mark.parametrize("callers", [True, False])
def test_udp_blocked_without_a_relay_connects_to_the_peers_by_tcp(
    natlab: Any, callers: bool
) -> None:
    """RFC 6062: the pipe is a stream then, and says so."""
    pair = ("symmetric-random", "udp-blocked") if callers else ("udp-blocked", "symmetric-random")
    lab = natlab(*pair, servers=["mqtt", "stun"])
    confs = ({}, NO_RELAY) if callers else (NO_RELAY, {})
    (found,) = connect(lab, *confs, transport="tcp")
    assert found["ping_s"] <= 5.0

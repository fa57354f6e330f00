"""Peers without a family in common in the NAT laboratory, and NAT64 on the way to everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("warpgate_natlab")

from warpgate_natlab import Lab
from warpgate_natlab.profiles import profile
from warpgate_natlab.session import START_S, Peer
from warpgate_natlab.topology import STUN

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

OTHER_PREFIX = "2001:db8:64::/96"
AT_ONCE_S = 2.5
"""A relay that waits for nothing is there after 0.4 to 0.9 s on a quiet machine; 3 s is the timer of
``relay_after``."""


def connect(
    lab: Lab,
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    plugins: list[str] | None = None,
) -> dict[str, Any]:
    """Let a connect to b once; return what came of it."""
    with Peer(lab, "a", first or {}) as a, Peer(lab, "b", second or {}) as b:
        a.answer(START_S)
        found = a.ask(
            {
                "do": "connect",
                "address": b.answer(START_S)["address"],
                "timeout": 15,
                "options": {} if plugins is None else {"plugins": plugins},
            },
            30,
        )
    assert found["ok"], found
    return found


PAIRS = [
    ("v6-firewalled", "https-only"),
    ("v6-only-nat64", "https-only"),
    ("v6-only-nat64", "fullcone"),
]


@pytest.mark.parametrize(("first", "second"), [*PAIRS, *(pair[::-1] for pair in PAIRS)])
def test_a_relay_joins_peers_without_a_family_in_common(
    natlab: Any, first: str, second: str
) -> None:
    lab = natlab(first, second, servers=["mqtt", "stun"])
    found = connect(lab)
    assert (found["strategy"], found["path"]) == ("turn", "relay")
    assert found["connect_s"] < AT_ONCE_S


@pytest.mark.parametrize(
    ("first", "second"), [("v6-only-nat64", "v6-firewalled"), ("v6-firewalled", "v6-only-nat64")]
)
def test_nat64_is_not_in_the_way_of_ipv6(natlab: Any, first: str, second: str) -> None:
    found = connect(natlab(first, second, servers=["mqtt", "stun"]))
    assert found["path"] == "direct"


# Servers that have IPv4 only.


def literals(lab: Lab, *, turn: bool = True) -> dict[str, Any]:
    """Return settings that name every server by its IPv4 address."""
    return {
        "brokers": lab.servers.brokers((4,)),
        "stun_servers": lab.servers.stun((4,)),
        "turn_servers": lab.servers.turn((4,)) if turn else [],
    }


@pytest.mark.parametrize(("prefix", "calls"), [("64:ff9b::/96", True), (OTHER_PREFIX, False)])
def test_every_server_is_given_by_its_ipv4_address(natlab: Any, prefix: str, calls: bool) -> None:
    """Only the IPv6-only side has a relay; it reaches broker, STUN and TURN server through NAT64."""
    behind = replace(profile("v6-only-nat64"), nat64_prefix=prefix)
    pair = (behind, "symmetric-random") if calls else ("symmetric-random", behind)
    lab = natlab(*pair, servers=["mqtt", "stun"])
    with_relay, without = literals(lab), literals(lab, turn=False)
    confs = (with_relay, without) if calls else (without, with_relay)
    found = connect(lab, *confs, plugins=["turn"])
    assert found["path"] == "relay"


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_turn_server_over_a_stream_is_reached_through_nat64(natlab: Any, transport: str) -> None:
    lab = natlab("v6-only-nat64", "symmetric-random", servers=["mqtt", "stun"])
    urls = lab.servers.turn((4,))
    chosen = [url for url in urls if url.startswith("turns:") == (transport == "tls")]
    chosen = [url for url in chosen if "udp" not in url]
    assert chosen
    conf = {**literals(lab), "turn_servers": chosen}
    assert connect(lab, conf, literals(lab, turn=False), ["turn"])["path"] == "relay"


def test_names_that_dns64_does_not_translate(natlab: Any) -> None:
    """A name may come from where nobody translates, such as the machine's own table."""
    lab = natlab("v6-only-nat64", "symmetric-random", servers=["mqtt", "stun"])
    lab.a.names({"broker1.lab": "192.0.2.10", "stun.lab": STUN[0]})
    named = {
        "brokers": ["mqtt://broker1.lab:1883"],
        "stun_servers": ["stun.lab:3478"],
        "turn_servers": ["turn:lab:lab@stun.lab:3478?transport=udp"],
    }
    there = {**literals(lab, turn=False), "brokers": named["brokers"]}
    lab.b.names({"broker1.lab": "192.0.2.10"})
    assert connect(lab, named, there, ["turn"])["path"] == "relay"


def test_the_peer_is_told_the_servers_own_address(natlab: Any) -> None:
    """Not the one that DNS64 made for this network: the peer asks that server where it comes from."""
    lab = natlab("v6-only-nat64", "symmetric-random", servers=["mqtt", "stun"])
    named = {**literals(lab), "turn_servers": ["turn:lab:lab@stun.v4.lab:3478?transport=udp"]}
    there = {**literals(lab, turn=False), "stun_servers": []}
    assert connect(lab, named, there, ["turn"])["path"] == "relay"


def test_a_relayed_stream_whose_server_is_behind_nat64(natlab: Any) -> None:
    """RFC 6062: each connection of a peer is fetched by a further one to the server."""
    lab = natlab("v6-only-nat64", "udp-blocked", servers=["mqtt", "stun"])
    found = connect(lab, literals(lab), literals(lab, turn=False), ["turn"])
    assert found["transport"] == "tcp"


def test_brokers_and_relays_are_reached_without_any_survey(natlab: Any) -> None:
    lab = natlab("v6-only-nat64", "symmetric-random", servers=["mqtt", "stun"])
    off = {"enable_stun_clients": False}
    confs = ({**literals(lab), **off}, {**literals(lab, turn=False), **off})
    assert connect(lab, *confs, plugins=["turn"])["path"] == "relay"


# A TURN server that relays to IPv4 only, on the side that has IPv4.


@pytest.mark.parametrize(("prefix", "calls"), [("64:ff9b::/96", True), (OTHER_PREFIX, False)])
def test_a_relay_of_ipv4_serves_a_peer_behind_nat64(natlab: Any, prefix: str, calls: bool) -> None:
    """The IPv6-only side has no server; its packets come from the NAT64's address."""
    behind = replace(profile("v6-only-nat64"), nat64_prefix=prefix)
    pair = ("symmetric-random", behind) if calls else (behind, "symmetric-random")
    lab = natlab(*pair, servers=["mqtt", "stun"], relays=(4,))
    with_relay, without = literals(lab), {"turn_servers": [], "stun_servers": []}
    confs = (with_relay, without) if calls else (without, with_relay)
    found = connect(lab, *confs, plugins=["turn"])
    assert found["path"] == "relay"


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_relay_of_ipv4_is_none_for_who_has_no_way_to_it(natlab: Any, transport: str) -> None:
    lab = natlab("symmetric-random", "v6-firewalled", servers=["mqtt", "stun"], relays=(4,))
    confs = ({}, {"turn_servers": []})
    with Peer(lab, "a", confs[0]) as a, Peer(lab, "b", confs[1]) as b:
        a.answer(START_S)
        asked = {"do": "connect", "address": b.answer(START_S)["address"]}
        found = a.ask({**asked, "options": {"transport": transport}, "timeout": 15}, 30)
    assert not found["ok"]
    assert "can't be reached" in found["error"]
    assert found["connect_s"] < 8.0  # it is told at once, not at the attempt's end

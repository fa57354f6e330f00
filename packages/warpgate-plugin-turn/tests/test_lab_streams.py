"""``turn`` in the NAT laboratory, asked for one transport: who gets a pipe of it, who is told why not."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("warpgate_natlab")

from warpgate_natlab import Lab
from warpgate_natlab.session import START_S, Peer

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

SOON_S = 6.0
"""An attempt has 10 s: whoever ends by then has known that nothing will come."""
NO_RELAY: dict[str, Any] = {"turn_servers": []}
CALLERS, PEERS = ({}, NO_RELAY), (NO_RELAY, {})
"""Settings where only one side has a relay."""


def call(
    lab: Lab, wanted: str, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Let a ask b for a relayed pipe of a transport; return what came of it."""
    with Peer(lab, "a", first or {}) as a, Peer(lab, "b", second or {}) as b:
        a.answer(START_S)
        request = {
            "do": "connect",
            "address": b.answer(START_S)["address"],
            "timeout": 15,
            "options": {"plugins": ["turn"], "transport": wanted},
        }
        return a.ask(request, 30)


def is_stream(found: dict[str, Any]) -> bool:
    assert found["ok"], found
    return (found["strategy"], found["path"], found["transport"]) == ("turn", "relay", "tcp")


PAIRS = [
    ("symmetric-random", "symmetric-random"),
    ("udp-blocked", "udp-blocked"),
    ("https-only", "port-restricted"),
    ("https-only", "https-only"),  # the relays are connected: neither side can dial the other's
    ("v6-firewalled", "v6-firewalled"),
    ("symmetric-random", "v6-firewalled"),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_stream(natlab: Any, first: str, second: str) -> None:
    assert is_stream(call(natlab(first, second, servers=["mqtt", "stun"]), "tcp"))


ONE_SIDE = [
    ("symmetric-random", "symmetric-random", [CALLERS, PEERS]),
    ("udp-blocked", "symmetric-random", [CALLERS, PEERS]),
    ("https-only", "udp-blocked", [CALLERS]),  # the other way round nothing but 443 gets out
    ("v6-firewalled", "v6-firewalled", [PEERS]),
]


@pytest.mark.parametrize(("first", "second", "whose"), ONE_SIDE)
def test_a_stream_over_one_sides_relay(
    natlab: Any, first: str, second: str, whose: list[Any]
) -> None:
    lab = natlab(first, second, servers=["mqtt", "stun"])
    for confs in whose:
        assert is_stream(call(lab, "tcp", *confs))


def test_a_stream_without_any_stun_server(natlab: Any) -> None:
    """Nobody knows the address that connections come from but the server next to the relay."""
    lab = natlab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"])
    for confs in (CALLERS, PEERS):
        assert is_stream(call(lab, "tcp", *({**conf, "stun_servers": []} for conf in confs)))


def test_a_stream_over_lossy_links(natlab: Any) -> None:
    lab = natlab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"], loss=0.05)
    assert is_stream(call(lab, "tcp"))


@pytest.mark.parametrize(
    ("first", "second", "confs"),
    [("symmetric-random", "udp-blocked", CALLERS), ("udp-blocked", "symmetric-random", PEERS)],
)
def test_where_only_a_stream_could_do_a_call_for_datagrams_says_so(
    natlab: Any, first: str, second: str, confs: Any
) -> None:
    lab = natlab(first, second, servers=["mqtt", "stun"])
    found = call(lab, "udp", *confs)
    assert not found["ok"]
    (outcome,) = found["report"]["attempts"]
    assert outcome["status"] == "failed"
    assert "only a stream could do" in outcome["cause"]
    assert outcome["seconds"] < SOON_S
    assert is_stream(call(lab, "tcp", *confs))


def test_where_no_relay_can_be_dialled_a_call_for_a_stream_says_so(natlab: Any) -> None:
    lab = natlab("https-only", "symmetric-random", servers=["mqtt", "stun"])
    found = call(lab, "tcp", *PEERS)
    (outcome,) = found["report"]["attempts"]
    assert outcome["status"] == "failed", found
    assert "no relay for streams here" in outcome["cause"]
    assert "can't be reached" in outcome["cause"]
    assert outcome["seconds"] < SOON_S


def test_datagrams_where_both_would_do(natlab: Any) -> None:
    lab = natlab("udp-blocked", "udp-blocked", servers=["mqtt", "stun"])
    found = call(lab, "udp")
    assert (found["ok"], found["transport"]) == (True, "udp"), found

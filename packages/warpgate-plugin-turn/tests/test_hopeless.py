"""When an attempt is known to lead to nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import IP4, RelayError
from warpgate_plugin_turn.datagrams import Datagrams
from warpgate_plugin_turn.hopeless import no_permission, no_way, only_a_stream
from warpgate_plugin_turn.messages import RelayFacts
from warpgate_plugin_turn.streams import Streams

NO_SERVER = RelayError("no TURN server is configured here")
FORBIDDEN = RelayError("forbidden")
FAR = RelayError("the other's relay can't be reached: no route")
RELAY: dict[str, Any] = {"relay_ip": "198.51.100.9", "relay_port": 50001}
STREAM: dict[str, Any] = {"stream_ip": "198.51.100.9", "stream_port": 50001}


def some(stream: bool, *, unreachable: Any = None, refused: Any = None, relay: bool = True) -> Any:
    """Return ways of a kind, with a relay of this side's or without."""
    kind = Streams if stream else Datagrams
    made: Any = kind.__new__(kind)
    made.unreachable, made.refused = unreachable, refused or {}
    made.allocation = SimpleNamespace(family=IP4, relayed=("192.0.2.20", 50000)) if relay else None
    return made


@pytest.mark.parametrize(
    ("blocked", "own", "peer", "hopeless"),
    [
        (True, NO_SERVER, {}, True),
        (True, NO_SERVER, RELAY, True),  # that one is for datagrams, which don't get out of here
        (True, None, {}, False),  # this side may get a relay of its own
        (False, NO_SERVER, {}, False),
        (False, None, {"no_udp": True, "cause": "none"}, True),
        (False, None, {"no_udp": True, "cause": "none", **RELAY}, False),
        (False, None, {"no_udp": True}, False),  # the peer may still get one
        (False, None, {"cause": "none"}, False),
    ],
)
def test_only_a_stream(blocked: bool, own: Any, peer: dict[str, Any], hopeless: bool) -> None:
    ways: Any = SimpleNamespace(blocked=blocked)
    found = only_a_stream(ways, own, RelayFacts(**peer))
    assert (found is not None) == hopeless
    assert found is None or 'ask for transport="tcp"' in str(found)


@pytest.mark.parametrize(
    ("stream", "peer", "hopeless"),
    [
        (False, {}, True),
        (False, RELAY, False),
        (True, {}, False),  # the peer's relay may still come
        (True, {"cause": "none"}, True),
        (True, {"cause": "none", **STREAM}, False),
    ],
)
def test_all_permissions_refused(stream: bool, peer: dict[str, Any], hopeless: bool) -> None:
    ways = some(stream, refused={"203.0.113.10": FORBIDDEN})
    policy: Any = SimpleNamespace(mapped={"203.0.113.10"})
    policy.peer_ips = lambda family: policy.mapped if family == IP4 else set()
    found = no_permission(ways, policy, RelayFacts(**peer))
    assert found is (FORBIDDEN if hopeless else None)
    policy.mapped = {"203.0.113.10", "203.0.113.11"}  # the second one is not refused
    assert no_permission(ways, policy, RelayFacts(**peer)) is None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("relay", "unreachable", "own", "peer", "hopeless"),
    [
        (False, FAR, NO_SERVER, "has one", True),
        (False, FAR, None, "has one", False),  # this side may get a relay of its own
        (False, None, NO_SERVER, "has one", False),
        (True, None, None, "unreachable", True),
        (True, None, None, "still unreachable", False),  # the peer may still get one
        (True, None, None, "has one, too", False),
        (True, None, None, "none", False),
    ],
)
def test_no_way_to_the_only_relay(
    stream: bool, relay: bool, unreachable: Any, own: Any, peer: str, hopeless: bool
) -> None:
    one = STREAM if stream else RELAY
    told: dict[str, dict[str, Any]] = {
        "has one": one,
        "unreachable": {"unreachable": True, "cause": "none"},
        "still unreachable": {"unreachable": True},
        "has one, too": {"unreachable": True, "cause": "none", **one},
        "none": {"cause": "none"},
    }
    ways = some(stream, unreachable=unreachable, relay=relay)
    found = no_way(ways, own, RelayFacts(**told[peer]))
    assert (found is not None) == hopeless
    assert found is None or ("streams" in str(found)) == stream

"""When an attempt is known to lead to nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import RelayError
from warpgate_plugin_turn.hopeless import no_permission, no_way_to_dial, only_a_stream
from warpgate_plugin_turn.messages import RelayFacts
from warpgate_plugin_turn.streams import Streams

NO_SERVER = RelayError("no TURN server is configured here")
FORBIDDEN = RelayError("forbidden")
RELAY: dict[str, Any] = {"relay_ip": "198.51.100.9", "relay_port": 50001}
STREAM: dict[str, Any] = {"stream_ip": "198.51.100.9", "stream_port": 50001}


def streams(**fields: Any) -> Any:
    made: Any = Streams.__new__(Streams)
    made.unreachable, made.refused = None, {}
    for name, value in fields.items():
        setattr(made, name, value)
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
    refused = {"203.0.113.10": FORBIDDEN}
    ways = streams(refused=refused) if stream else SimpleNamespace(refused=refused)
    policy: Any = SimpleNamespace(mapped={"203.0.113.10"})
    found = no_permission(ways, policy, RelayFacts(**peer))
    assert found is (FORBIDDEN if hopeless else None)
    policy.mapped = {"203.0.113.10", "203.0.113.11"}  # the second one is not refused
    assert no_permission(ways, policy, RelayFacts(**peer)) is None


@pytest.mark.parametrize(
    ("unreachable", "own", "peer", "hopeless"),
    [
        (OSError("no route"), NO_SERVER, STREAM, True),
        (OSError("no route"), None, STREAM, False),
        (None, NO_SERVER, STREAM, False),
        (None, None, {"no_tcp": True, "cause": "none"}, True),
        (None, None, {"no_tcp": True}, False),
        (None, None, {"no_tcp": True, "cause": "none", **STREAM}, False),
        (None, None, {"cause": "none"}, False),
    ],
)
def test_no_way_to_dial(unreachable: Any, own: Any, peer: dict[str, Any], hopeless: bool) -> None:
    found = no_way_to_dial(streams(unreachable=unreachable), own, RelayFacts(**peer))
    assert (found is not None) == hopeless

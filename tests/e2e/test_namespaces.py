"""Nodes in different network namespaces: a LAN of two machines, as far as they can tell."""

from __future__ import annotations

import json

import pytest
from support import connect, joined, listening, namespaces, why_no_namespaces

from warpgate import IP4
from warpgate.identity import Identity
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address

REASON = why_no_namespaces()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(REASON), reason=REASON or "-")]

STRATEGIES = ("direct_connect", "reverse_connect")
DEADLINE_S = 1.0
MARGIN_S = 0.05


def test_one_lan() -> None:
    with joined() as (left, right), listening(prefix=right.prefix) as peer:
        for name in STRATEGIES:
            for ipv6, remote in ((False, "192.168.77.2"), (True, "fd77::2")):
                wish = {"ipv6": True} if ipv6 else {"afs": [int(IP4)]}
                facts = connect(peer["address"], prefix=left.prefix, plugins=[name], **wish)
                assert facts["connected"], facts["text"]
                assert (facts["plugin"], facts["remote"]) == (name, remote)
                assert facts["peer"] == peer["node_id"]
                assert facts["echoed"]
                skipped = {skip["text"] for skip in facts["report"]["skips"]}
                assert "loopback reaches only peers on this machine" in skipped


def test_one_lan_without_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    # Brokers are configured, as by default, and nothing of the internet can be reached.
    brokers = ["mqtt://198.51.100.7", "mqtts://broker.invalid"]
    conf = {"brokers": brokers, "sig_pipe_no": 2, "enable_nickname": True}
    monkeypatch.setenv("PEER_CONF", json.dumps({**conf, "stun_servers": ["198.51.100.8:3478"]}))
    with joined() as (left, right), listening(prefix=right.prefix) as peer:
        for name in ("reverse_connect", "direct_connect"):
            facts = connect(peer["address"], prefix=left.prefix, plugins=[name])
            assert facts["connected"], facts["text"]
            assert (facts["plugin"], facts["peer"]) == (name, peer["node_id"])
            assert facts["echoed"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_link_local_addresses_alone(name: str) -> None:
    with joined(ipv4=False, ipv6=False) as (left, right), listening(prefix=right.prefix) as peer:
        facts = connect(peer["address"], prefix=left.prefix, plugins=[name])
        assert facts["connected"], facts["text"]
        assert facts["remote"].startswith("fe80:")
        assert facts["remote"].endswith("%left0")
        assert facts["echoed"]


def test_nothing_but_loopback() -> None:
    with namespaces(1) as (alone,), listening(prefix=alone.prefix) as peer:
        for name in STRATEGIES:
            facts = connect(peer["address"], prefix=alone.prefix, plugins=[name])
            assert facts["connected"], facts["text"]
            assert facts["echoed"]


def test_loopback_does_not_reach_another_namespace() -> None:
    with namespaces(2) as (left, right), listening(prefix=right.prefix) as peer:
        facts = connect(peer["address"], prefix=left.prefix, timeout=5)
        assert not facts["connected"]
        assert facts["report"]["attempts"] == []
        assert "loopback reaches only peers on this machine" in facts["text"]


def test_a_black_hole_ends_by_the_deadline() -> None:
    # The right namespace is the gateway, and forwards nothing.
    with joined(ipv6=False) as (left, _right):
        left.ip("route", "add", "default", "via", "192.168.77.2")
        endpoint = Endpoint(int(IP4), "10.66.0.9", 12345, None, None, 0, 0)
        nobody = pack_address(
            Identity.generate(),
            machine=bytes(16),
            sequence=1,
            brokers=(),
            interfaces=[InterfaceRecord(2, (endpoint,))],
        ).to_text()
        took = []
        for _ in range(3):  # the machine may be busy; the contract's margin is for one that is not
            facts = connect(nobody, prefix=left.prefix, timeout=DEADLINE_S)
            assert not facts["connected"]
            attempts = facts["report"]["attempts"]
            assert {attempt["strategy"] for attempt in attempts} >= set(STRATEGIES)
            assert any(attempt["status"] == "timeout" for attempt in attempts), facts["text"]
            took.append(facts["report"]["seconds"])
            if DEADLINE_S <= took[-1] <= DEADLINE_S + MARGIN_S:
                return
        pytest.fail(f"{took} s, wanted {DEADLINE_S} to {DEADLINE_S + MARGIN_S} s")

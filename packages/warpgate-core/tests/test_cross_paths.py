"""Peers without a family in common: NAT64, and relays that join the two."""

from __future__ import annotations

import pytest

from warpgate.net.constants import EXT_BIND, IP4, IP6, NIC_BIND, ROUTE_TYPES
from warpgate.protocol.proto_msg import ConMsg
from warpgate.traversal.combine import responder_path
from warpgate.traversal.paths import cross_paths
from warpgate.traversal.plan import PlanOptions, StrategyInfo, plan
from warpgate.traversal.report import SkipReason

HERE, THERE = b"here", b"there"
DIAL = StrategyInfo("direct_connect", "direct", "tcp", nat64=True)
PUNCH = StrategyInfo("udp_punch", "spray", "udp")
TURN = StrategyInfo("turn", "relay", "udp")
PREFIX = "64:ff9b::/96"


@pytest.fixture
def mobile(make_address, make_nic):
    """Return the two addresses and links of an IPv6-only host and an IPv4-only one."""
    local = make_address(["2001:db8:1::2"], machine=HERE)
    remote = make_address(["10.0.0.5"], machine=THERE, ext={"10.0.0.5": "203.0.113.5"}, port=5000)
    return local, remote, [make_nic("wlan0", 3, "2001:db8:1::2/64")]


def test_nat64_leads_to_a_synthesised_address(mobile):
    (path,) = cross_paths(*mobile, PREFIX)
    assert (path.af, path.remote_af, path.route_type) == (IP6, IP4, EXT_BIND)
    assert (path.ip, path.port) == ("64:ff9b::cb00:7105", 5000)


def test_without_nat64_a_path_leads_only_over_a_relay(mobile):
    (path,) = cross_paths(*mobile, None)
    assert (path.af, path.remote_af, path.port) == (IP6, IP4, 0)


def test_peers_that_share_a_family_need_none(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["203.0.113.5"], machine=THERE)
    assert cross_paths(local, remote, [make_nic("eth0", 1, "192.168.1.2/24")], PREFIX) == []


def test_private_addresses_of_another_family_lead_nowhere(make_address, make_nic):
    local = make_address(["2001:db8:1::2"], machine=HERE)
    remote = make_address(["10.0.0.5"], machine=THERE)
    assert cross_paths(local, remote, [make_nic("wlan0", 3, "2001:db8:1::2/64")], PREFIX) == []


def test_only_who_merely_dials_and_relays_use_such_paths(mobile):
    found = plan(*mobile, [DIAL, PUNCH, TURN], PlanOptions(nat64=PREFIX))
    assert [c.strategy for c in found.combinations] == ["direct_connect", "turn"]
    found = plan(*mobile, [DIAL, PUNCH, TURN], PlanOptions())
    assert [c.strategy for c in found.combinations] == ["turn"]


def test_what_the_caller_narrowed_counts_here_too(mobile):
    for options in (PlanOptions(afs=(IP4,)), PlanOptions(route_types=(NIC_BIND,))):
        assert plan(*mobile, [TURN], options).combinations == ()


def test_a_responder_without_a_shared_family_answers_relays_alone(mobile):
    peer, local, nics = mobile[0], mobile[1], mobile[2]
    msg = ConMsg()
    msg.meta.af, msg.meta.route_type = IP6, EXT_BIND
    refused = responder_path(local, peer, nics, msg, ROUTE_TYPES)
    assert refused is SkipReason.FAMILY_NOT_SHARED
    path = responder_path(local, peer, nics, msg, ROUTE_TYPES, relay=True)
    assert (path.af, path.remote_af, path.port) == (IP4, IP6, 0)

"""Peers without a family in common: NAT64, and relays that join the two."""

from __future__ import annotations

import pytest

from warpgate.net.constants import EXT_BIND, IP4, IP6, NIC_BIND, ROUTE_TYPES, NATType
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


def test_a_peer_that_knows_no_public_address_of_its_own_is_reached_by_relays(mobile, make_address):
    remote = make_address(["10.0.0.5"], machine=THERE)
    (path,) = cross_paths(mobile[0], remote, mobile[2], PREFIX)
    assert (path.af, path.remote_af, path.port, path.private) == (IP6, IP4, 0, True)
    found = plan(mobile[0], remote, mobile[2], [DIAL, PUNCH, TURN], PlanOptions(nat64=PREFIX))
    assert [c.strategy for c in found.combinations] == ["turn"]
    assert found.relay_likely


def test_public_addresses_leave_private_ones_aside(mobile, make_address):
    remote = make_address(
        ["10.0.0.5"], ["192.168.7.5"], machine=THERE, ext={"192.168.7.5": "203.0.113.5"}
    )
    (path,) = cross_paths(mobile[0], remote, mobile[2], None)
    assert path.ip == "203.0.113.5"


@pytest.mark.parametrize("site", ["fe80::5", "fd00::5"])
def test_a_family_that_ends_on_the_link_or_in_the_site_is_not_in_common(mobile, make_address, site):
    local, links = mobile[0], mobile[2]
    remote = make_address(["10.0.0.5", site], machine=THERE, ext={"10.0.0.5": "203.0.113.5"})
    (path,) = cross_paths(local, remote, links, None)
    assert (path.af, path.remote_af) == (IP6, IP4)
    (relay,) = plan(local, remote, links, [TURN], PlanOptions()).combinations
    assert (relay.path.af, relay.path.remote_af) == (IP6, IP4)
    dials = plan(local, remote, links, [DIAL], PlanOptions()).combinations
    assert {c.path.ip for c in dials} == {site}  # it may be on this very link


@pytest.mark.parametrize("remote", [["169.254.1.5"], ["127.0.0.1"]])
def test_addresses_that_lead_nowhere_give_no_path(mobile, make_address, remote):
    assert cross_paths(mobile[0], make_address(remote, machine=THERE), mobile[2], PREFIX) == []


def test_nobody_waits_for_a_dial_to_a_full_cone_through_nat64(mobile, make_address):
    """Its port is UDP's; only where a router maps the listening port the dial works, and wins."""
    for nat, likely in ((NATType.FULL_CONE, False), (NATType.OPEN, True), (0, True)):
        remote = make_address(
            ["10.0.0.5"], machine=THERE, ext={"10.0.0.5": "203.0.113.5"}, nat=int(nat)
        )
        found = plan(mobile[0], remote, mobile[2], [DIAL, TURN], PlanOptions(nat64=PREFIX))
        dial, _ = found.combinations
        assert dial.strategy == "direct_connect"
        assert dial.unlikely is not likely
        assert found.relay_likely is not likely


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


def test_a_responder_sees_through_link_local_addresses(mobile, make_address):
    """What the initiator says of the family counts only where both have it beyond the link."""
    peer, nics = mobile[0], mobile[2]
    local = make_address(["10.0.0.5", "fe80::5"], machine=THERE)
    msg = ConMsg()
    msg.meta.af, msg.meta.route_type = IP6, EXT_BIND
    path = responder_path(local, peer, nics, msg, ROUTE_TYPES, relay=True)
    assert (path.af, path.remote_af) == (IP4, IP6)
    path = responder_path(peer, local, nics, msg, ROUTE_TYPES, relay=True)
    assert (path.af, path.remote_af, path.private) == (IP6, IP4, True)

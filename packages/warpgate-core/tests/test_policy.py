"""What a peer's word can make a responder dial."""

from __future__ import annotations

import pytest

from warpgate.traversal.policy import refuse_dial
from warpgate.traversal.report import SkipReason

OWN = {"192.168.1.2", "127.0.0.1", "::1"}


@pytest.fixture
def links(make_nic):
    return [make_nic("eth0", 1, "192.168.1.2/24"), make_nic("eth1", 2, "fd00:1::2/64")]


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111", "198.51.100.7"])
@pytest.mark.parametrize("over_loopback", [False, True])
def test_public_addresses_may_be_dialled(links, ip, over_loopback):
    assert refuse_dial(ip, links, OWN, over_loopback) is None


@pytest.mark.parametrize("ip", ["192.168.1.77", "fd00:1::77", "192.168.1.2"])
def test_private_ones_on_our_own_subnets_may(links, ip):
    assert refuse_dial(ip, links, OWN, over_loopback=False) is None


@pytest.mark.parametrize(
    "ip", ["192.168.2.77", "10.0.0.1", "172.17.0.1", "100.64.0.9", "fd00:2::1"]
)
@pytest.mark.parametrize("over_loopback", [False, True])
def test_other_private_ones_may_not(links, ip, over_loopback):
    assert refuse_dial(ip, links, OWN, over_loopback) is SkipReason.PEER_CHOSE_PRIVATE


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "127.8.8.8", "::1", "64:ff9b::7f00:1", "2002:7f00:1::"]
)
def test_loopback_is_for_signals_that_came_over_loopback(links, ip):
    assert refuse_dial(ip, links, OWN, over_loopback=False) is SkipReason.PEER_CHOSE_LOOPBACK
    assert refuse_dial(ip, links, OWN, over_loopback=True) is None


def test_an_address_of_this_machine_on_no_subnet_of_the_node_is_for_loopback_signals(make_nic):
    links = [make_nic("lo", 1, "127.0.0.1/8")]
    own = {"10.9.9.9"}
    assert refuse_dial("10.9.9.9", links, own, over_loopback=True) is None
    refusal = refuse_dial("10.9.9.9", links, own, over_loopback=False)
    assert refusal is SkipReason.PEER_CHOSE_PRIVATE


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "no ip",
        "",
    ],
)
@pytest.mark.parametrize("over_loopback", [False, True])
def test_what_is_no_hosts_address_is_never_dialled(links, ip, over_loopback):
    assert refuse_dial(ip, links, OWN, over_loopback) is SkipReason.PEER_CHOSE_UNUSABLE

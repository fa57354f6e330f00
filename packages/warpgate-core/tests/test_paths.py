"""The paths between two addresses, their order, and the dead ends."""

from __future__ import annotations

import pytest

from warpgate.net.constants import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND
from warpgate.traversal.paths import find_paths
from warpgate.traversal.report import SkipReason

HERE, THERE = b"here", b"there"


def ends(dead):
    return {(end.af, end.route_type): end.reason for end in dead}


def test_a_peer_on_this_machine_is_reached_over_loopback_first(make_address, make_nic):
    local = make_address(["192.168.1.2", "fd00::2"], machine=HERE)
    remote = make_address(["192.168.1.2", "fd00::2"], machine=HERE, port=5000)
    nics = [make_nic("eth0", 1, "192.168.1.2/24", "fd00::2/64")]
    paths, dead = find_paths(local, remote, nics)
    assert [(p.ip, p.port) for p in paths[:2]] == [("::1", 5000), ("127.0.0.1", 5000)]
    assert {p.route_type for p in paths[:2]} == {LOOPBACK_BIND}
    assert {p.ip for p in paths[2:]} == {"192.168.1.2", "fd00::2"}
    assert all(p.likely and p.private for p in paths)
    assert dead == []


def test_on_one_machine_only_the_interface_that_bears_the_address_is_used(make_address, make_nic):
    address = make_address(["192.168.1.2"], ["10.0.0.2"], machine=HERE)
    remote = make_address(["192.168.1.2"], ["10.0.0.2"], machine=HERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24"), make_nic("eth1", 2, "10.0.0.2/24")]
    paths, _ = find_paths(address, remote, nics, (IP4,), (NIC_BIND,))
    assert [(p.src_index, p.dest_index) for p in paths] == [(0, 0), (1, 1)]


def test_the_order_is_same_link_then_public_then_private_elsewhere(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["10.9.9.9"], ["192.168.1.7"], ["203.0.113.5"], machine=THERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24")]
    paths, _ = find_paths(local, remote, nics, (IP4,), (NIC_BIND,))
    assert [p.ip for p in paths] == ["192.168.1.7", "203.0.113.5", "10.9.9.9"]
    assert [p.likely for p in paths] == [True, True, False]
    assert [p.private for p in paths] == [True, False, True]


def test_ipv6_comes_before_ipv4_and_virtual_interfaces_come_last(make_address, make_nic):
    local = make_address(["192.168.1.2", "2001:db8::2"], ["172.17.0.1"], machine=HERE)
    remote = make_address(["203.0.113.5", "2001:db8:5::5"], machine=THERE)
    nics = [
        make_nic("eth0", 1, "192.168.1.2/24", "2001:db8::2/64"),
        make_nic("docker0", 2, "172.17.0.1/16", virtual=True),
    ]
    paths, _ = find_paths(local, remote, nics, route_types=(NIC_BIND,))
    assert [(p.ip, p.virtual) for p in paths] == [
        ("2001:db8:5::5", False),
        ("203.0.113.5", False),
        ("203.0.113.5", True),
    ]


def test_ext_bind_leads_to_the_external_address_or_else_the_local_one(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(
        ["10.0.0.2"], ["10.0.1.2"], machine=THERE, ext={"10.0.0.2": "203.0.113.5"}
    )
    nics = [make_nic("eth0", 1, "192.168.1.2/24")]
    paths, _ = find_paths(local, remote, nics, (IP4,), (EXT_BIND,))
    assert [p.ip for p in paths] == ["203.0.113.5", "10.0.1.2"]


@pytest.mark.parametrize("route_type", [LOOPBACK_BIND, NIC_BIND, EXT_BIND])
def test_a_family_that_is_not_shared_is_a_dead_end(make_address, make_nic, route_type):
    local = make_address(["192.168.1.2"], machine=HERE)
    remote = make_address(["fd00::2"], machine=THERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24")]
    paths, dead = find_paths(local, remote, nics, route_types=(route_type,))
    assert paths == []
    assert ends(dead) == {
        (IP4, route_type): SkipReason.FAMILY_NOT_SHARED,
        (IP6, route_type): SkipReason.FAMILY_NOT_SHARED,
    }


def test_dead_ends_say_why(make_address, make_nic):
    local = make_address(["192.168.1.2"], machine=HERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24", default=False)]

    def reason(ip, route_type=NIC_BIND):
        remote = make_address([ip], machine=THERE)
        return ends(find_paths(local, remote, nics, (IP4,), (route_type,))[1])[IP4, route_type]

    assert reason("10.0.0.1", LOOPBACK_BIND) is SkipReason.OTHER_MACHINE
    assert reason("192.168.1.2") is SkipReason.OWN_ADDRESS
    assert reason("127.0.0.1") is SkipReason.OTHER_MACHINE
    assert reason("203.0.113.5") is SkipReason.NO_ROUTE


def test_an_interface_without_the_family_is_no_way_there(make_address, make_nic):
    local = make_address(["192.168.1.2"], ["fd00::2"], machine=HERE)
    remote = make_address(["203.0.113.5"], machine=THERE)
    nics = [make_nic("eth0", 1, "192.168.1.2/24"), make_nic("eth1", 2, "fd00::2/64")]
    paths, _ = find_paths(local, remote, nics, (IP4,), (NIC_BIND,))
    assert [p.src_index for p in paths] == [0]


def test_a_link_local_peer_is_possible_but_not_likely(make_address, make_nic):
    local = make_address(["fe80::1"], machine=HERE)
    remote = make_address(["fe80::2"], machine=THERE)
    nics = [make_nic("eth0", 1, "fe80::1/64")]
    (path,), _ = find_paths(local, remote, nics, (IP6,), (NIC_BIND,))
    assert not path.likely


def test_interfaces_beyond_those_in_the_address_are_not_looked_at(make_address, make_nic):
    nics = [make_nic(f"eth{n}", n, f"192.168.{n}.2/24") for n in range(1, 41)]
    local = make_address(*[[f"192.168.{n}.2"] for n in range(1, 41)], machine=HERE)
    assert len(local.interfaces) < len(nics)
    remote = make_address(["203.0.113.5"], machine=THERE)
    paths, _ = find_paths(local, remote, nics, (IP4,), (NIC_BIND,))
    assert len(paths) == len(local.interfaces)

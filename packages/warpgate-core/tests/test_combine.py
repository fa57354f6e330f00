"""A strategy's facts, and a responder's path from two signed addresses and a hostile message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.net.constants import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND, ROUTE_TYPES
from warpgate.protocol.proto_msg import ConMsg
from warpgate.traversal.combine import info, refresh, responder_path, scoped
from warpgate.traversal.paths import Path
from warpgate.traversal.report import SkipReason

HERE, THERE = b"here", b"there"


def message(af=IP4, route_type=NIC_BIND, src_index=0, dest_index=0):
    msg = ConMsg()
    msg.meta.af, msg.meta.route_type, msg.meta.src_index = af, route_type, src_index
    msg.routing.dest_index = dest_index
    return msg


@pytest.fixture
def nics(make_nic):
    return [make_nic("eth0", 1, "192.168.1.2/24"), make_nic("eth1", 2, "10.0.0.2/8", "fd00::2/64")]


@pytest.fixture
def local(make_address):
    return make_address(["192.168.1.2"], ["10.0.0.2", "fd00::2"], machine=HERE)


def test_info_has_the_facts_that_the_contract_names(make_address):
    address = make_address(["10.0.0.2"], machine=HERE, ext={"10.0.0.2": "203.0.113.5"})
    facts = {"nat": {"type": 0, "delta": 0}, "if_index": 1, "af": IP4, "machine_id": HERE.hex()}
    facts |= {"node_id": address.node_id, "ext": "203.0.113.5", "port": 4000}
    assert info(address, 0, IP4, NIC_BIND) == {**facts, "ip": "10.0.0.2", "nic": "10.0.0.2"}
    assert info(address, 0, IP4, EXT_BIND) == {**facts, "ip": "203.0.113.5", "nic": "10.0.0.2"}
    assert info(address, 0, IP4, LOOPBACK_BIND) == {**facts, "ip": "127.0.0.1", "nic": "127.0.0.1"}


def test_the_external_address_counts_as_the_local_one_while_it_is_not_known(make_address):
    assert info(make_address(["10.0.0.2"]), 0, IP4, EXT_BIND)["ext"] == "10.0.0.2"


def test_link_local_addresses_get_the_scope_of_the_interface(make_nic):
    nic = make_nic("eth7", 7, "fe80::1/64")
    assert scoped("fe80::9", nic) == "fe80::9%eth7"
    assert scoped("fd00::9", nic) == "fd00::9"
    assert scoped("169.254.1.1", nic) == "169.254.1.1"


def test_a_responder_dials_what_stands_in_the_peers_signed_address(make_address, nics, local):
    peer = make_address(["192.168.1.7"], ["203.0.113.5"], machine=THERE, port=5000)
    path = responder_path(local, peer, nics, message(src_index=1), ROUTE_TYPES)
    assert (path.ip, path.port, path.dest_index) == ("203.0.113.5", 5000, 1)


def test_it_leaves_from_the_interface_on_the_peers_link_whatever_the_message_hints(
    make_address, nics, local
):
    peer = make_address(["192.168.1.7"], ["10.1.1.1"], machine=THERE)
    for hint in (0, 1, 99):
        path = responder_path(local, peer, nics, message(dest_index=hint), ROUTE_TYPES)
        assert path.src_index == 0
        path = responder_path(local, peer, nics, message(src_index=1, dest_index=hint), ROUTE_TYPES)
        assert path.src_index == 1


def test_an_impossible_family_gives_way_to_a_shared_one(make_address, nics, local):
    peer = make_address(["fd00::7"], machine=THERE)
    path = responder_path(local, peer, nics, message(af=IP4), ROUTE_TYPES)
    assert (path.af, path.ip) == (IP6, "fd00::7")


def test_without_a_shared_family_there_is_no_path(make_address, nics):
    local = make_address(["192.168.1.2"], machine=HERE)
    peer = make_address(["fd00::7"], machine=THERE)
    found = responder_path(local, peer, nics, message(), ROUTE_TYPES)
    assert found is SkipReason.FAMILY_NOT_SHARED


@pytest.mark.parametrize("relay", [False, True])
def test_a_peer_without_interfaces_has_no_path(make_address, nics, local, relay):
    nobody = make_address(machine=THERE)
    for ours, theirs in ((local, nobody), (nobody, local)):
        found = responder_path(ours, theirs, nics, message(), ROUTE_TYPES, relay)
        assert found is SkipReason.FAMILY_NOT_SHARED


def test_loopback_needs_the_same_machine(make_address, nics, local):
    msg = message(route_type=LOOPBACK_BIND)
    stranger = make_address(["192.168.1.7"], machine=THERE)
    neighbour = make_address(["192.168.1.2"], machine=HERE, port=5000)
    assert responder_path(local, stranger, nics, msg, ROUTE_TYPES) is SkipReason.OTHER_MACHINE
    path = responder_path(local, neighbour, nics, msg, ROUTE_TYPES)
    assert (path.ip, path.port) == ("127.0.0.1", 5000)


def test_a_route_type_that_the_strategy_does_not_support_is_refused(make_address, nics, local):
    peer = make_address(["192.168.1.7"], machine=THERE)
    found = responder_path(local, peer, nics, message(route_type=EXT_BIND), (NIC_BIND,))
    assert found is SkipReason.ROUTE_UNSUPPORTED


@given(
    af=st.sampled_from([0, IP4, IP6, 99, -1]),
    route_type=st.integers(0, 255),
    src=st.integers(0, 2**32 - 1),
    dest=st.integers(0, 2**32 - 1),
    same_machine=st.booleans(),
)
def test_no_message_makes_it_raise(hostile, af, route_type, src, dest, same_machine):
    local, nics, strangers = hostile
    msg = message(af, route_type, src, dest)
    msg.meta.same_machine = same_machine
    for peer in strangers:
        found = responder_path(local, peer, nics, msg, ROUTE_TYPES)
        assert isinstance(found, Path | SkipReason)
        if isinstance(found, Path):
            assert found.route_type == route_type
            assert local.interfaces[found.src_index].endpoint(found.af)


@pytest.fixture(scope="module")
def hostile():
    from warpgate.identity import Identity
    from warpgate.net.nic import Interface, InterfaceAddress
    from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address

    def signed(*records, machine=HERE):
        return pack_address(
            Identity.generate(), machine=machine, sequence=1, brokers=(), interfaces=records
        )

    four, six = Endpoint(IP4, "192.168.1.2", 1), Endpoint(IP6, "fd00::2", 0)
    address = InterfaceAddress(IP4, "192.168.1.2", 24, "private")
    nics = [Interface("eth0", 1, (address,)), Interface("eth1", 2)]
    local = signed(InterfaceRecord(1, (four,)), InterfaceRecord(2, (six,)))
    strangers = [
        signed(),
        signed(InterfaceRecord(1, ())),
        signed(InterfaceRecord(1, ()), InterfaceRecord(2, (six, six))),
        signed(InterfaceRecord(2**32 - 1, (four, four, six)), machine=THERE),
    ]
    return local, nics, strangers


def test_a_newer_address_refreshes_what_is_known_of_the_nat(make_address):
    known = info(make_address(["10.0.0.2"]), 0, IP4, EXT_BIND)
    before = dict(known)
    # By now another interface stands first.
    ext = {"10.0.0.1": "203.0.113.4", "10.0.0.2": "203.0.113.5"}
    newer = make_address(["10.0.0.1"], ["10.0.0.2"], ext=ext, nat=6, delta=6)
    known["if_index"] = 2
    refresh(known, newer)
    assert (known["ext"], known["nat"]) == ("203.0.113.5", {"type": 6, "delta": 6})
    assert (known["ip"], known["port"]) == (before["ip"], before["port"])


def test_an_interface_that_is_gone_refreshes_nothing(make_address):
    known = info(make_address(["10.0.0.2"]), 0, IP4, EXT_BIND)
    before = dict(known)
    refresh(known, make_address(["fd00::2"], nat=6))
    assert known == before

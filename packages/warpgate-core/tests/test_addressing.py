"""Which interfaces a node uses, where it listens, and what its address says of that."""

from __future__ import annotations

import pytest

from warpgate.errors import ConfigError
from warpgate.net.constants import IP4, IP6
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node import addressing
from warpgate.node.addressing import (
    choose_interfaces,
    direct_targets,
    interface_records,
    listening_hosts,
)


@pytest.fixture
def machine(monkeypatch, make_nic):
    """A machine with two interfaces besides loopback."""
    eth0 = Interface(
        "eth0",
        1,
        (
            InterfaceAddress(IP4, "192.168.1.2", 24, "private"),
            InterfaceAddress(IP6, "fd00::2", 64, "private"),
            InterfaceAddress(IP6, "2001:db8::2", 64, "global"),
            InterfaceAddress(IP6, "fe80::2%eth0", 64, "link"),
        ),
    )
    eth1 = Interface("eth1", 2, (InterfaceAddress(IP4, "203.0.113.2", 24, "global"),))
    ips = [InterfaceAddress(IP4, "127.0.0.1", 8, "loopback")]
    ips.append(InterfaceAddress(IP6, "::1", 128, "loopback"))
    lo = Interface("lo", 9, tuple(ips), loopback=True)
    monkeypatch.setattr(addressing, "list_interfaces", lambda: [eth0, eth1])
    monkeypatch.setattr(addressing, "loopback_interface", lambda: lo)
    return eth0, eth1, lo


def test_by_default_all_but_loopback_are_used(machine):
    eth0, eth1, _ = machine
    assert choose_interfaces(None, None) == ([eth0, eth1], None)


def test_a_machine_with_nothing_but_loopback_uses_that(machine, monkeypatch):
    lo = machine[2]
    monkeypatch.setattr(addressing, "list_interfaces", lambda: [lo])
    assert choose_interfaces(None, None) == ([lo], None)


def test_interfaces_are_named_or_given(machine):
    eth0, eth1, lo = machine
    assert choose_interfaces(["eth1", eth0], None) == ([eth1, eth0], None)
    assert choose_interfaces(["lo"], None) == ([lo], None)


def test_an_ip_chooses_the_interface_that_bears_it(machine):
    assert choose_interfaces(None, "203.0.113.2") == ([machine[1]], "203.0.113.2")
    assert choose_interfaces(None, "127.0.0.1") == ([machine[2]], "127.0.0.1")
    assert choose_interfaces(None, "127.0.0.9") == ([machine[2]], "127.0.0.9")


@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
def test_an_unspecified_ip_means_all(machine, ip):
    assert choose_interfaces(None, ip) == ([machine[0], machine[1]], None)


@pytest.mark.parametrize(
    ("ifs", "ip", "text"),
    [
        (["eth9"], None, "eth0, eth1, lo"),
        ([], None, "ifs is empty"),
        (None, "192.168.1.3", "192.168.1.2"),
        (None, "localhost", "not an IP address"),
    ],
)
def test_what_does_not_exist_is_a_config_error_that_says_what_does(machine, ifs, ip, text):
    with pytest.raises(ConfigError, match=text):
        choose_interfaces(ifs, ip)


def test_a_node_listens_on_every_address_and_loopback(machine):
    eth0, eth1, _ = machine
    assert listening_hosts([eth0, eth1], None) == [
        (IP4, "192.168.1.2"),
        (IP6, "fd00::2"),
        (IP6, "2001:db8::2"),
        (IP6, "fe80::2%eth0"),
        (IP4, "203.0.113.2"),
        (IP4, "127.0.0.1"),
        (IP6, "::1"),
    ]


def test_or_on_the_one_ip_alone(machine):
    assert listening_hosts([machine[0]], "192.168.1.2") == [(IP4, "192.168.1.2")]
    assert listening_hosts([machine[0]], "fe80::2%eth0") == [(IP6, "fe80::2%eth0")]


def test_the_address_has_an_endpoint_per_family_and_the_public_address_as_external(machine):
    eth0, eth1, _ = machine
    used, records = interface_records([eth0, eth1], None, 4000)
    assert used == [eth0, eth1]
    found = [
        (record.index, e.af, e.ip, e.ext_ip, e.port) for record in records for e in record.endpoints
    ]
    assert found == [
        (1, IP4, "192.168.1.2", None, 4000),
        (1, IP6, "fd00::2", "2001:db8::2", 4000),
        (2, IP4, "203.0.113.2", None, 4000),
    ]


def test_with_an_ip_it_is_all_that_the_address_has(machine):
    used, records = interface_records([machine[0]], "192.168.1.2", 4000)
    assert used == [machine[0]]
    assert [(e.af, e.ip) for record in records for e in record.endpoints] == [(IP4, "192.168.1.2")]


def test_a_direct_signal_goes_over_loopback_first_and_to_each_address_once(machine, make_address):
    eth0, _, lo = machine
    address = make_address(["192.168.1.2", "fd00::2"], machine=b"here")
    targets = direct_targets(address, address, [eth0], lo)
    assert [(nic.name, ip) for nic, _, ip, _ in targets] == [
        ("lo", "::1"),
        ("lo", "127.0.0.1"),
        ("eth0", "fd00::2"),
        ("eth0", "192.168.1.2"),
    ]
    assert {port for *_, port in targets} == {4000}


def test_a_link_local_target_has_the_scope_of_our_interface(machine, make_address):
    local = make_address(["fe80::2"], machine=b"here")
    peer = make_address(["fe80::9"], machine=b"there")
    ((_, _, ip, _),) = direct_targets(local, peer, [machine[0]], machine[2])
    assert ip == "fe80::9%eth0"

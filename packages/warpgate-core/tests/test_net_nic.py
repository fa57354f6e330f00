from __future__ import annotations

import socket
from collections import namedtuple
from typing import Any

import psutil
import pytest

from warpgate.net import nic
from warpgate.net.constants import IP4, IP6
from warpgate.net.nic import (
    Interface,
    InterfaceAddress,
    list_interfaces,
    loopback_interface,
    own_ips,
    scope_of,
)

Entry = namedtuple("Entry", "family address netmask")  # noqa: PYI024
Stats = namedtuple("Stats", "isup flags")  # noqa: PYI024

M64 = "ffff:ffff:ffff:ffff::"
IF_INET6 = """\
20010db8000000000000000000000002 04 40 00 80     eth0
20010db800000000000000000000000a 04 40 00 01     eth0
20010db800000000000000000000000b 04 40 00 20     eth0
20010db800000000000000000000000c 04 40 00 40     eth0
20010db800000000000000000000000d 04 40 00 08     eth0
fe800000000000000000000000000001 04 40 20 80     eth0
"""
ROUTE = """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
wlan0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0
eth0 00000000 010200C0 0003 0 0 100 00000000 0 0 0
tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0
"""
Z = "0" * 32
IPV6_ROUTE = f"{Z} 00 {Z} 00 fe80000000000000000000000000abcd 00000400 2 0 00000003 eth0\n"

MACHINE: dict[str, list[Entry]] = {
    "lo": [Entry(IP4, "127.0.0.1", "255.0.0.0"), Entry(IP6, "::1", "ffff:" * 7 + "ffff")],
    "docker0": [Entry(IP4, "172.17.0.1", "255.255.0.0")],
    "usb0": [Entry(IP4, "169.254.7.7", "255.255.0.0")],
    "tun0": [Entry(IP4, "10.8.0.2", "255.255.255.255")],
    "eth1": [Entry(IP4, "10.1.0.2", "255.255.255.0")],
    "wlan0": [Entry(IP4, "192.168.1.5", "255.255.255.0")],
    "eth0": [
        Entry(IP6, "2001:db8::b", M64),
        Entry(IP6, "2001:db8::a", M64),
        Entry(IP6, "2001:db8::c", M64),
        Entry(IP6, "2001:db8::d", M64),
        Entry(IP6, "2001:db8::2", M64),
        Entry(IP6, "fe80::1%eth0", M64),
        Entry(IP4, "192.0.2.2", "255.255.255.0"),
        Entry(17, "02:00:00:00:00:01", None),
    ],
    "down0": [Entry(IP4, "192.0.2.99", "255.255.255.0")],
    "bare0": [Entry(17, "02:00:00:00:00:02", None)],
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Entry]]:
    entries = {name: list(addresses) for name, addresses in MACHINE.items()}
    stats = {name: Stats(name != "down0", "") for name in MACHINE}
    files = {"if_inet6": IF_INET6, "route": ROUTE, "ipv6_route": IPV6_ROUTE}
    indexes = {name: number for number, name in enumerate(MACHINE, 1)}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    monkeypatch.setattr(nic, "_proc", lambda name: files[name])
    monkeypatch.setattr(nic, "_LINUX", True)
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: indexes[name])
    return entries


def test_the_ranking(machine: dict[str, list[Entry]]) -> None:
    names = [interface.name for interface in list_interfaces()]
    assert names == ["eth0", "wlan0", "tun0", "eth1", "usb0", "docker0"]


def test_only_loopback(machine: dict[str, list[Entry]]) -> None:
    for name in [name for name in machine if name != "lo"]:
        del machine[name]
    (only,) = list_interfaces()
    assert only.loopback
    assert only.supported() == [IP4, IP6]
    assert only.local_ip(IP4) == "127.0.0.1"
    assert only.local_ip(IP6) == "::1"
    assert only.global_ip(IP4) is None


def test_a_dual_stack_interface(machine: dict[str, list[Entry]]) -> None:
    eth0 = list_interfaces()[0]
    assert eth0.index == list(MACHINE).index("eth0") + 1
    assert eth0.supported() == [IP4, IP6]
    ips = [address.ip for address in eth0.addresses]
    assert "2001:db8::c" not in ips  # tentative
    assert "2001:db8::d" not in ips  # duplicate
    assert ips[-2:] == ["2001:db8::a", "2001:db8::b"]  # temporary, then deprecated
    assert next(a for a in eth0.addresses if a.ip.endswith("::a")).temporary
    assert next(a for a in eth0.addresses if a.ip.endswith("::b")).deprecated
    assert eth0.local_ip(IP4) == "192.0.2.2"
    assert eth0.local_ip(IP6) == "fe80::1%eth0"
    assert eth0.global_ip(IP4) == "192.0.2.2"
    assert eth0.global_ip(IP6) == "2001:db8::2"
    assert eth0.gateways == {IP4: "192.0.2.1", IP6: "fe80::abcd"}
    assert eth0.has_default(IP6)
    assert eth0.metric == 100
    assert {address.prefix for address in eth0.addresses} == {24, 64}


def test_a_tunnel_has_a_default_route_without_gateway(machine: dict[str, list[Entry]]) -> None:
    tun0 = next(i for i in list_interfaces() if i.name == "tun0")
    assert tun0.virtual
    assert tun0.gateways == {IP4: None}
    assert not tun0.has_default(IP6)
    assert tun0.global_ip(IP4) is None
    assert not list_interfaces()[0].virtual


def test_elsewhere_the_default_source_tells(
    machine: dict[str, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nic, "_LINUX", False)
    monkeypatch.setattr(
        nic, "_default_source", lambda af: "192.168.1.5" if af == IP4 else "2001:db8::2"
    )
    found = {interface.name: interface for interface in list_interfaces()}
    assert found["wlan0"].gateways == {IP4: None}
    assert found["eth0"].gateways == {IP6: None}
    assert not found["eth1"].gateways
    assert next(iter(found)) in ("wlan0", "eth0")


def test_windows_has_other_names(
    machine: dict[str, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> int:
        raise OSError(name)

    monkeypatch.setattr(socket, "if_nametoindex", unknown)
    machine["eth0"] = [Entry(IP6, "fe80::9%4000012", None), Entry(IP4, "10.0.0.9", "24")]
    eth0 = next(i for i in list_interfaces() if i.name == "eth0")
    assert eth0.index == 4000012
    assert eth0.local_ip(IP6) == "fe80::9%4000012"
    assert next(a for a in eth0.addresses if a.af == IP4).prefix == 24


def test_own_ips(machine: dict[str, list[Entry]]) -> None:
    ips = own_ips()
    assert {"127.0.0.1", "::1", "192.0.2.2", "fe80::1%eth0", "fe80::1", "10.8.0.2"} <= ips
    assert "192.0.2.99" not in ips


def test_this_machine() -> None:
    interfaces = list_interfaces()
    assert interfaces
    assert all(interface.addresses for interface in interfaces)
    assert len({interface.name for interface in interfaces}) == len(interfaces)
    assert loopback_interface().local_ip(IP4) == "127.0.0.1"
    for interface in interfaces:
        for af in interface.supported():
            assert interface.local_ip(af) in own_ips()
    assert nic._default_source(IP4) is None or nic._default_source(IP4) in own_ips()


def test_loopback_is_there_even_if_it_is_not_listed(machine: dict[str, list[Entry]]) -> None:
    del machine["lo"]
    loopback = loopback_interface()
    assert loopback.loopback
    assert loopback.local_ip(IP4) == "127.0.0.1"


def address(ip: str, prefix: int = 24, **flags: Any) -> InterfaceAddress:
    bare = ip.partition("%")[0]
    return InterfaceAddress(IP6 if ":" in ip else IP4, ip, prefix, scope_of(bare), **flags)


def test_local_ip_prefers_unique_local_then_link_local() -> None:
    ula, link = address("fd00::5", 64), address("fe80::5%x0", 64)
    public = address("2001:db8::5", 64)
    assert Interface("x0", 1, (public, link, ula)).local_ip(IP6) == "fd00::5"
    assert Interface("x0", 1, (public, link)).local_ip(IP6) == "fe80::5%x0"
    assert Interface("x0", 1, (public,)).local_ip(IP6) == "2001:db8::5"
    assert Interface("x0", 1, (public,)).local_ip(IP4) is None
    both = Interface("x0", 1, (address("169.254.1.1"), address("10.0.0.1"), address("8.8.8.8")))
    assert both.local_ip(IP4) == "10.0.0.1"
    assert both.global_ip(IP4) == "8.8.8.8"
    assert Interface("x0", 1, (address("169.254.1.1"),)).local_ip(IP4) == "169.254.1.1"


def test_on_link() -> None:
    x0 = Interface("x0", 7, (address("10.1.0.5"), address("fe80::5%x0", 64)))
    assert x0.on_link("10.1.0.77")
    assert not x0.on_link("10.2.0.77")
    assert x0.on_link("fe80::77")
    assert x0.on_link("fe80::77%x0")
    assert x0.on_link("fe80::77%7")
    assert not x0.on_link("fe80::77%y0")
    assert not x0.on_link("2001:db8::1")
    assert not x0.on_link("nonsense")


def test_interfaces_can_be_made_compared_and_hashed() -> None:
    one = Interface("x0", 1, (address("10.0.0.1"),), gateways={IP4: "10.0.0.254"})
    two = Interface("x0", 1, (address("10.0.0.1"),), gateways={IP4: "10.0.0.254"})
    assert one == two
    assert len({one, two}) == 1
    assert one.has_default(IP4)
    assert Interface("y0").supported() == []
    with pytest.raises(ValueError, match="x0 has no IPv6 address"):
        one.route(IP6)

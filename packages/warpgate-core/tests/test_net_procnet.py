from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warpgate.net.procnet import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    DefaultRoute,
    parse_if_inet6,
    parse_ipv6_route,
    parse_route,
)

IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000002 04 40 00 80     eth0
20010db800000000a1b2c3d4e5f60718 04 40 00 01     eth0
20010db8000000001111222233334444 04 40 00 21     eth0
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
fe80000000000000023456fffe789abc 05 40 20 c8    wlan0
fd000000000000000000000000000005 05 40 00 40    wlan0
garbage
zz 05 40 00 40    wlan0
"""

ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t700\t00000000\t0\t0\t0
dead0\t00000000\t010200C0\t0002\t0\t0\t1\t00000000\t0\t0\t0
rej0\t00000000\t00000000\t0201\t0\t0\t1\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
short
"""

ZERO = "0" * 32
IPV6_ROUTE = f"""\
20010db8000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 fe80000000000000000000000000abcd 00000400 00000002 00000000 00450003    wlan0
{ZERO} 00 {ZERO} 00 20010db8000000000000000000000001 00000064 00000002 00000000 00000003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} 00000800 00000002 00000000 00000001     tun0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
nonsense
"""


def test_flags_of_addresses() -> None:
    flags = parse_if_inet6(IF_INET6)
    assert flags["lo", "::1"] & 0x7F == 0
    assert flags["eth0", "2001:db8::2"] & 0x7F == 0
    assert flags["eth0", "2001:db8::a1b2:c3d4:e5f6:718"] == IFA_F_TEMPORARY
    assert flags["eth0", "2001:db8::1111:2222:3333:4444"] == IFA_F_TEMPORARY | IFA_F_DEPRECATED
    assert flags["wlan0", "fe80::234:56ff:fe78:9abc"] & IFA_F_DADFAILED
    assert flags["wlan0", "fd00::5"] == IFA_F_TENTATIVE
    assert len(flags) == 7


def test_default_routes_of_ipv4_best_first() -> None:
    assert parse_route(ROUTE, "little") == [
        DefaultRoute("eth0", "192.0.2.1", 100),
        DefaultRoute("wlan0", "192.168.1.1", 600),
        DefaultRoute("ppp0", None, 700),
    ]
    assert parse_route(ROUTE, "big")[0].gateway == "1.2.0.192"
    assert parse_route("") == []


def test_default_routes_of_ipv6_best_first() -> None:
    assert parse_ipv6_route(IPV6_ROUTE) == [
        DefaultRoute("eth0", "2001:db8::1", 0x64),
        DefaultRoute("wlan0", "fe80::abcd", 0x400),
        DefaultRoute("tun0", None, 0x800),
    ]


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    parse_if_inet6(text)
    parse_route("head\n" + text)
    parse_ipv6_route(text)

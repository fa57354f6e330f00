from __future__ import annotations

import pytest

from warpgate import IP4, IP6, TCP, ConfigError
from warpgate_plugin_direct.port_mapping.default_gateway import (
    find_gateway,
    parse_netstat,
    parse_route_print,
)
from warpgate_plugin_direct.port_mapping.model import Mapping, Spot, judge
from warpgate_plugin_direct.port_mapping.settings import Settings
from warpgate_plugin_direct.port_mapping.status import MappingStatus, SpotStatus

OWN = "192.168.1.2"


@pytest.mark.parametrize(
    ("claimed", "seen", "several", "ip", "words"),
    [
        ("203.0.113.7", (), None, "203.0.113.7", ""),
        ("203.0.113.7", ("203.0.113.7",), True, "203.0.113.7", ""),
        ("203.0.113.8", ("203.0.113.7", "203.0.113.8"), None, "203.0.113.8", ""),
        (None, (), None, None, "no external address"),
        ("10.1.2.3", (), None, None, "10.1.2.3 is not public"),
        ("100.64.1.2", (), None, None, "not public"),
        ("192.168.1.2", (), None, None, "not public"),
        ("127.0.0.1", (), None, None, "not public"),
        ("224.0.0.1", (), None, None, "not public"),
        ("nonsense", (), None, None, "not public"),
        ("10.1.2.3", ("203.0.113.7",), None, None, "servers see 203.0.113.7"),
        ("10.1.2.3", ("203.0.113.7",), True, None, "servers see 203.0.113.7"),
        ("8.8.8.8", ("203.0.113.7",), None, None, "the router says 8.8.8.8"),
        # There is no other NAT: the router is mistaken about its own address.
        ("10.1.2.3", ("203.0.113.7",), False, "203.0.113.7", "the router says 10.1.2.3"),
        (None, ("203.0.113.7",), False, "203.0.113.7", "no external address"),
        # What servers see inside a site says nothing.
        ("203.0.113.7", ("192.168.1.2",), None, "203.0.113.7", ""),
    ],
)
def test_whose_word_counts(
    claimed: str | None, seen: tuple[str, ...], several: bool | None, ip: str | None, words: str
) -> None:
    verdict = judge(claimed, OWN, seen, several)
    assert verdict.ip == ip
    assert words in verdict.reason
    assert bool(verdict.reason) == bool(words)


def test_a_pinhole_changes_no_address() -> None:
    assert judge("2001:db8::5", "2001:db8::5", ("2001:db8::9",)).ip == "2001:db8::5"
    assert judge("fd00::5", "fd00::5").ip is None


@pytest.mark.parametrize(
    ("lease", "renew", "ends"),
    [
        (7200.0, 3700.0, 7300.0),
        (2.0, 104.0, 102.0),  # never a storm
        (4294967295.0, 100 + 43200.0, 100 + 4294967295.0),
        (None, float("inf"), float("inf")),
    ],
)
def test_when_to_renew(lease: float | None, renew: float, ends: float) -> None:
    mapping = Mapping(TCP, 1, None, 1, lease, 100.0)
    assert (mapping.renew_at, mapping.ends_at) == (renew, ends)


def test_settings() -> None:
    assert Settings.make({}) == Settings()
    made = Settings.make({"port_mapping": {"protocols": ["upnp"], "lease_s": 60}, "turn": {}})
    assert made == Settings(protocols=("upnp",), lease_s=60)
    assert made.wants("UPnP")
    assert not made.wants("NAT-PMP")
    assert Settings().wants("NAT-PMP")


@pytest.mark.parametrize(
    "given",
    [
        {"lease": 1},
        {"lease_s": 0},
        {"lease_s": "1"},
        {"check_s": True},
        {"pcp_port": 5351.5},
        {"ssdp_port": 65536},
        {"announce_port": 0},
        {"protocols": "pcp"},
        {"protocols": ["igd"]},
        ["pcp"],
    ],
)
def test_settings_that_cant_be_used(given: object) -> None:
    with pytest.raises(ConfigError, match="port_mapping"):
        Settings.make({"port_mapping": given})


NETSTAT = """Routing tables

Internet:
Destination        Gateway            Flags           Netif Expire
default            192.168.178.1      UGScg             en0
default            link#12            UCSIg       bridge100      !
10.8/16            10.8.0.1           UGSc            utun3
127                127.0.0.1          UCS               lo0
192.168.178        link#6             UCS               en0      !
"""
NETSTAT6 = """Internet6:
Destination      Gateway                         Flags         Netif Expire
default          fe80::1%en0                     UGcg            en0
default          fe80::%utun0                    UGcIg         utun0
::1              ::1                             UHL             lo0
"""
ROUTE_PRINT = """===========================================================================
Schnittstellenliste
  6...aa bb cc dd ee ff ......Intel(R) Ethernet
===========================================================================
IPv4-Routentabelle
Aktive Routen:
     Netzwerkziel    Netzwerkmaske          Gateway    Schnittstelle Metrik
          0.0.0.0          0.0.0.0      192.168.2.1     192.168.2.40     45
          0.0.0.0          0.0.0.0    192.168.178.1   192.168.178.40     25
===========================================================================
"""
ROUTE_PRINT6 = """IPv6 Route Table
Active Routes:
 If Metric Network Destination      Gateway
  6    281 ::/0                     fe80::1
  1    331 ::1/128                  On-link
"""


def test_gateways_as_others_print_them() -> None:
    assert parse_netstat(NETSTAT, "en0") == "192.168.178.1"
    assert parse_netstat(NETSTAT, "bridge100") is None
    assert parse_netstat(NETSTAT, "en1") is None
    assert parse_netstat(NETSTAT6, "en0") == "fe80::1%en0"
    assert parse_route_print(ROUTE_PRINT) == "192.168.178.1"
    assert parse_route_print(ROUTE_PRINT6) == "fe80::1%6"
    assert parse_route_print("") is None


async def test_a_gateway_that_cant_be_asked_for() -> None:
    assert await find_gateway(IP4, "eth0", "linux") is None
    assert await find_gateway(IP6, "en0", "plan9") is None


def test_the_status_in_words() -> None:
    spot = SpotStatus(Spot("eth0", 2, IP4, OWN, 12345, "192.168.1.1"))
    assert str(spot) == "eth0, IPv4 192.168.1.2 port 12345: asking the router"
    spot.causes = {"PCP": "no answer", "UPnP": "error 606"}
    assert str(spot).endswith("not mapped: PCP: no answer; UPnP: error 606")
    spot.external = ("203.0.113.7", 4000)
    spot.protocol = "PCP"
    spot.mappings = (Mapping(TCP, 12345, "203.0.113.7", 4000, 3600.0, 0.0),)
    assert "203.0.113.7 port 4000 leads here (TCP, by PCP, for 3600 s at a time)" in str(spot)
    status = MappingStatus([spot])
    assert status.mapped
    assert str(status).startswith("port mapping on eth0, IPv4")
    assert status.as_dict()["spots"][0]["transports"] == ["TCP"]
    assert str(MappingStatus([], "nothing")) == "port mapping: nothing"

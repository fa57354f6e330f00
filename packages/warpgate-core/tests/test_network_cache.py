"""The memory for networks: what it keeps, what it does not believe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from warpgate.nat.behaviour import Allocation, Filtering, Mapping, PortAllocation
from warpgate.nat.report import PathReport
from warpgate.net.constants import IP4, IP6
from warpgate.net.neighbours import parse_arp
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node import network_cache
from warpgate.node.network_cache import (
    FILE_NAME,
    MAX_NETWORKS,
    NetworkCache,
    NetworkKey,
    network_keys,
)

KEY = NetworkKey("eth0", IP4, "192.168.1.0/24", "192.168.1.1", "02:00:00:00:00:01")
ELSEWHERE = replace(KEY, hardware="02:00:00:00:00:02")
UNKNOWN = replace(KEY, hardware=None)
REPORT = PathReport(
    "eth0", IP4, "192.168.1.2", udp=True, tcp=False, external=("198.51.100.1",),
    mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT,
    allocation=PortAllocation(Allocation.SEQUENTIAL, step=2, samples=8),
    tcp_mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, hairpin=False, rtt_s=0.05, taken=(4000, 4001),
)  # fmt: skip
KEPT = replace(REPORT, local_ip="", external=(), rtt_s=None, taken=())


def test_facts_are_read_back_without_addresses(tmp_path) -> None:
    NetworkCache(tmp_path).put([(KEY, REPORT)])
    assert NetworkCache(tmp_path).get(KEY) == KEPT
    text = (tmp_path / FILE_NAME).read_text("utf-8")
    assert "198.51.100.1" not in text
    assert '"endpoint-independent"' in text  # for people
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_in_memory_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = NetworkCache(None)
    cache.put([(KEY, REPORT)])
    assert cache.get(KEY) == KEPT
    assert not list(tmp_path.iterdir())


def test_another_router_is_another_network_and_one_not_known_yet_may_be_any(tmp_path) -> None:
    cache = NetworkCache(tmp_path)
    other = replace(REPORT, hairpin=True)
    cache.put([(KEY, REPORT)])
    assert cache.get(ELSEWHERE) is None
    assert cache.get(replace(KEY, network="192.168.2.0/24")) is None
    assert cache.get(UNKNOWN) == KEPT
    cache.put([(ELSEWHERE, other)])
    assert cache.get(KEY) == KEPT
    assert cache.get(ELSEWHERE) == replace(KEPT, hairpin=True)
    assert cache.get(UNKNOWN) == replace(KEPT, hairpin=True)  # the newest


def test_a_network_that_becomes_known_better_stays_one(tmp_path) -> None:
    cache = NetworkCache(tmp_path)
    cache.put([(UNKNOWN, REPORT)])
    cache.put([(KEY, replace(REPORT, hairpin=True))])
    saved = json.loads((tmp_path / FILE_NAME).read_text("utf-8"))
    assert [each["hardware"] for each in saved["networks"]] == [KEY.hardware]


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_oldest_networks_are_forgotten(tmp_path, on_disk) -> None:
    cache = NetworkCache(tmp_path if on_disk else None)
    keys = [replace(KEY, network=f"10.0.{number}.0/24") for number in range(MAX_NETWORKS + 3)]
    cache.put([(key, REPORT) for key in keys])
    assert [cache.get(key) is None for key in keys] == [True] * 3 + [False] * MAX_NETWORKS
    assert (NetworkCache(tmp_path).get(keys[-1]) == KEPT) is on_disk


def test_nothing_is_written_when_nothing_is_new(tmp_path, monkeypatch) -> None:
    cache = NetworkCache(tmp_path)
    cache.put([(KEY, REPORT)])
    monkeypatch.setattr(network_cache, "write_text", pytest.fail)
    cache.put([(KEY, replace(REPORT, rtt_s=0.1, external=("203.0.113.9",)))])


def test_what_another_node_wrote_is_kept(tmp_path) -> None:
    one, two = NetworkCache(tmp_path), NetworkCache(tmp_path)
    one.put([(KEY, REPORT)])
    two.put([(ELSEWHERE, REPORT)])
    assert one.get(ELSEWHERE) == KEPT
    assert two.get(KEY) == KEPT


def altered(*path, to):
    def alter(saved):
        place = saved
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        return json.dumps(saved)

    return alter


FIRST = ("networks", 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "", lambda _: "[]", lambda _: "{", lambda _: "null", lambda _: "[" * 100_000,
        lambda _: " " * (network_cache.MAX_CHARACTERS + 1), lambda _: '{"format": 1}',
        altered("format", to=2), altered("networks", to=5), altered("networks", to=[[], 3, None]),
        altered(*FIRST, "af", to="IPv5"), altered(*FIRST, "network", to=7),
        altered(*FIRST, "gateway", to=7), altered(*FIRST, "facts", to=[]),
        altered(*FIRST, "facts", to={}), altered(*FIRST, "facts", "udp", to=1),
        altered(*FIRST, "facts", "mapping", to="sideways"),
        altered(*FIRST, "facts", "mapping", to=[]),
        altered(*FIRST, "facts", "allocation", to="block"),
        altered(*FIRST, "facts", "allocation", "step", to=10**9),
        altered(*FIRST, "facts", "allocation", "step", to="1"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path, damage) -> None:
    NetworkCache(tmp_path).put([(KEY, REPORT)])
    file = tmp_path / FILE_NAME
    file.write_text(damage(json.loads(file.read_text("utf-8"))), "utf-8")
    cache = NetworkCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put([(KEY, REPORT)])
    assert NetworkCache(tmp_path).get(KEY) == KEPT


def test_a_folder_that_can_t_be_written_is_no_error(tmp_path) -> None:
    cache = NetworkCache(tmp_path / "missing")
    cache.put([(KEY, REPORT)])
    assert NetworkCache(tmp_path / "missing").get(KEY) is None


def test_the_keys_of_the_networks(monkeypatch) -> None:
    table = {("eth0", "192.168.1.1"): "02:00:00:00:00:01"}
    monkeypatch.setattr(network_cache, "hardware_addresses", lambda: table)
    addresses = (
        InterfaceAddress(IP4, "192.168.1.2", 24, "private"),
        InterfaceAddress(IP6, "2001:db8::2", 64, "global"),
    )
    eth0 = Interface("eth0", 1, addresses, gateways={IP4: "192.168.1.1", IP6: None})
    places = [("eth0", IP4, "192.168.1.2"), ("eth0", IP6, "2001:db8::2"), ("gone", IP4, "10.0.0.1")]
    assert network_keys([eth0], places) == {
        ("eth0", IP4): KEY,
        ("eth0", IP6): NetworkKey("eth0", IP6, "2001:db8::/64", None),
    }


def test_what_linux_tells_of_neighbours() -> None:
    text = """IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         02:00:00:00:00:0A     *        eth0
192.168.1.9      0x1         0x0         00:00:00:00:00:00     *        eth0
10.0.0.1         0x1         0x2         00:00:00:00:00:00     *        tun0
10.0.0.2         0x1         what
"""
    assert parse_arp(text) == {("eth0", "192.168.1.1"): "02:00:00:00:00:0a"}

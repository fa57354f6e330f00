from __future__ import annotations

import json
from dataclasses import replace

import pytest

from warpgate.protocol.ip import is_private, is_public
from warpgate_natlab.dns64 import answer
from warpgate_natlab.engine.graph import Graph
from warpgate_natlab.profiles import APD, EI, GRID, PAIRS, PROFILES, pair, pair_of, profile
from warpgate_natlab.topology import SERVERS, nat64, plan, server_v6

REQUIRED = """open open-firewall fullcone addr-restricted port-restricted symmetric-random
    symmetric-sequential symmetric-block cgnat cgnat-symmetric udp-blocked https-only rst-on-stray linux
    linux-random linux-upnp v6-firewalled v6-only-nat64 dual-stack""".split()


def test_all_promised_profiles_and_pairs_are_there() -> None:
    assert set(REQUIRED) <= set(PROFILES)
    assert set(PAIRS) == {"same-lan", "same-lan-no-hairpin", "two-nics"}
    assert set(GRID) <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_promises_something_in_each_of_its_families(name: str) -> None:
    found = profile(name)
    assert set(found.expect) - {64} == set(found.families)
    assert (64 in found.expect) == found.nat64


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no profile is called 'nat9'.*port-restricted"):
        profile("nat9")
    with pytest.raises(ValueError, match=r"no pair is called 'nat9'.*same-lan"):
        pair("nat9")
    with pytest.raises(ValueError, match="symmetric-block-99999"):
        profile("symmetric-block-99999")


def test_the_size_of_blocks_can_be_set() -> None:
    found = profile("symmetric-block-1024")
    assert found.nat is not None
    assert found.nat["allocation"]["size"] == 1024
    assert found.nat["mapping"] == APD


@pytest.mark.parametrize("name", PROFILES)
def test_addresses_are_public_outside_and_private_behind_a_nat(name: str) -> None:
    topology = plan(pair_of(name, name))
    outside = {nic.public[version] for nics in topology.hosts.values() for nic in nics
               for version in nic.public}  # fmt: skip
    assert all(is_public(ip) for ip in outside)
    assert len(outside) == 2 * len(profile(name).expect)
    if profile(name).translated:
        assert is_private(topology.hosts["a"][0].local[4])
        assert topology.hosts["a"][0].local != topology.hosts["b"][0].local


def test_servers_are_public_in_both_families() -> None:
    assert all(is_public(ip) and is_public(server_v6(ip)) for ip in SERVERS)
    assert nat64("192.0.2.10") == "64:ff9b::c000:20a"  # RFC 6052, section 2.4's algorithm


@pytest.mark.parametrize("name", [*PROFILES, *PAIRS])
def test_the_engine_takes_every_topology(name: str) -> None:
    chosen = PAIRS[name] if name in PAIRS else pair_of(name, "open")
    config = json.loads(json.dumps(plan(chosen, seed=3, link={"loss": 0.1}).engine))
    Graph(config)
    assert config["links"]["access_a"]["both"] == {"delay_ms": 20.0, "loss": 0.1}


def test_both_hosts_of_a_lan_are_behind_one_nat() -> None:
    topology = plan(PAIRS["same-lan"])
    (a,), (b,) = topology.hosts["a"], topology.hosts["b"]
    assert (a.local[4], b.local[4]) == ("192.168.1.2", "192.168.1.3")
    assert a.public == b.public
    assert a.nodes == b.nodes == ["nat_a"]


def test_two_interfaces_have_two_public_addresses() -> None:
    first, second = plan(PAIRS["two-nics"]).hosts["a"]
    assert first.public[4] != second.public[4]
    assert (first.profile.expect[4].mapping, second.profile.expect[4].mapping) == (APD, EI)


def test_dns64_synthesises_what_has_no_ipv6_address() -> None:
    def ask(name: str, kind: int) -> bytes:
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        query = (
            b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0" + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"
        )
        reply = answer(query)
        assert reply is not None
        assert reply[:2] == b"\x12\x34"
        return reply

    assert bytes.fromhex("0064ff9b0000000000000000c00000aa") in ask("ipv4only.arpa", 28)
    assert bytes.fromhex("0064ff9b0000000000000000c000020a") in ask("broker1.v4.lab", 28)
    assert bytes.fromhex("20010db8010000000000000000000010") in ask("broker1.LAB", 28)
    assert ask("nobody.lab", 28)[3] & 15 == 3
    assert ask("broker1.lab", 15)[6:8] == b"\0\0"


def test_dns64_answers_with_the_prefix_of_the_network() -> None:
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x1c\0\1"
    reply = answer(query, "2001:db8:64::/96")
    assert reply is not None
    assert bytes.fromhex("20010db80064000000000000c00000aa") in reply


def test_another_nat64_prefix_is_built() -> None:
    own = replace(PROFILES["v6-only-nat64"], nat64_prefix="2001:db8:64::/96")
    engine = plan(pair_of(own, "open")).engine
    assert engine["nodes"]["nat64_a"]["prefix"] == "2001:db8:64::/96"
    assert engine["nodes"]["cpe_a"]["routes"]["four"] == ["2001:db8:64::/96"]
    assert nat64("192.0.2.10", "2001:db8:64::/96") == "2001:db8:64::c000:20a"


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 11, b"\0\0\1\0\0\1\0\0\0\0\0\0\x3fshort", b"\xff" * 40]
)
def test_dns_junk_is_not_answered(junk: bytes) -> None:
    assert answer(junk) is None

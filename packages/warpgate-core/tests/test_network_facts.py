"""From what is known of a NAT to what the address says."""

from __future__ import annotations

import pytest

from warpgate.nat.behaviour import Allocation, Filtering, Mapping, PortAllocation
from warpgate.nat.report import PathReport
from warpgate.net.constants import IP4, IP6, DeltaType, NATType
from warpgate.node.network_facts import (
    Seen,
    agree,
    keeps_mapping,
    needs_keeping,
    usable_external,
    with_facts,
)
from warpgate.protocol.peer_address import Endpoint

BASE = Endpoint(IP4, "192.168.1.2", 4000)
OUTSIDE = ("198.51.100.1", 5000)
A, B, C = ("192.0.2.1", 3478), ("192.0.2.2", 3478), ("192.0.2.3", 3478)


def path(mapping=None, filtering=None, allocation=None, **facts):
    kind = None if allocation is None else PortAllocation(allocation)
    return PathReport("eth0", IP4, "192.168.1.2", mapping=mapping, filtering=filtering,
                      allocation=kind, **{"udp": True, **facts})  # fmt: skip


CONE = path(Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT,
            Allocation.PRESERVING)  # fmt: skip
SYMMETRIC = path(Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)
FIREWALL = path(Mapping.NONE, Filtering.ADDRESS_AND_PORT_DEPENDENT, Allocation.NONE)
OPEN = path(Mapping.NONE, Filtering.ENDPOINT_INDEPENDENT, Allocation.NONE)
BLOCKED = path(udp=False, tcp=True, external=("198.51.100.9",))


@pytest.mark.parametrize(
    ("report", "seen", "expected"),
    [
        (None, None, (None, None, 0, 0)),
        (None, Seen(OUTSIDE), ("198.51.100.1", None, 0, 0)),
        (None, Seen(OUTSIDE, agreed=True), (*OUTSIDE, 0, 0)),
        (CONE, None, (None, None, NATType.PORT_RESTRICTED, DeltaType.EQUAL)),
        (CONE, Seen(OUTSIDE), (*OUTSIDE, NATType.PORT_RESTRICTED, DeltaType.EQUAL)),
        (CONE, Seen(OUTSIDE, agreed=False),
         ("198.51.100.1", None, NATType.PORT_RESTRICTED, DeltaType.EQUAL)),
        (SYMMETRIC, Seen(OUTSIDE, agreed=False),
         ("198.51.100.1", None, NATType.SYMMETRIC, DeltaType.RANDOM)),
        (SYMMETRIC, Seen(OUTSIDE), ("198.51.100.1", None, NATType.SYMMETRIC, DeltaType.RANDOM)),
        (FIREWALL, Seen(OUTSIDE),
         (*OUTSIDE, NATType.SYMMETRIC_UDP_FIREWALL, DeltaType.NOT_APPLICABLE)),
        (BLOCKED, None, ("198.51.100.9", None, NATType.BLOCKED, 0)),
    ],
)  # fmt: skip
def test_an_endpoint_says_what_is_known(report, seen, expected) -> None:
    found = with_facts(BASE, report, seen, None)
    assert (found.ext_ip, found.ext_port, found.nat, found.delta) == expected
    assert (found.af, found.ip, found.port) == (BASE.af, BASE.ip, BASE.port)


def test_a_forwarded_port_overrides_what_the_nat_does() -> None:
    found = with_facts(BASE, SYMMETRIC, Seen(OUTSIDE, agreed=False), ("198.51.100.7", 9))
    assert (found.ext_ip, found.ext_port, found.nat) == ("198.51.100.7", 9, NATType.FULL_CONE)


def test_without_an_answer_the_interface_s_own_public_address_stays() -> None:
    base = Endpoint(IP6, "fd00::2", 4000, "2001:db8::2")
    assert with_facts(base, None, None, None) == base
    seen = Seen(("2001:db8::3", 4000), agreed=True)
    assert with_facts(base, None, seen, None).ext_ip == "2001:db8::3"


def test_most_servers_decide_and_a_single_one_is_no_proof() -> None:
    other = ("203.0.113.66", 1)
    assert agree([]) is None
    assert agree([(A, OUTSIDE)]) == Seen(OUTSIDE)
    assert agree([(A, OUTSIDE), (B, OUTSIDE)]) == Seen(OUTSIDE, agreed=True)
    assert agree([(A, other), (B, OUTSIDE), (C, OUTSIDE)]) == Seen(OUTSIDE, agreed=True)
    assert agree([(A, OUTSIDE), (B, other)]) == Seen(OUTSIDE, agreed=False)
    # Two ports of one server are one witness.
    assert agree([(A, OUTSIDE), ((A[0], 3479), OUTSIDE)]) == Seen(OUTSIDE)


@pytest.mark.parametrize(
    ("af", "ip", "port"),
    [
        (IP4, "0.0.0.0", 1), (IP4, "224.0.0.1", 1), (IP4, "255.255.255.255", 1),
        (IP4, "127.0.0.1", 1), (IP4, "169.254.1.1", 1), (IP4, "198.51.100.1", 0),
        (IP4, "2001:db8::1", 1), (IP6, "198.51.100.1", 1), (IP6, "::ffff:198.51.100.1", 1),
        (IP6, "fe80::1", 1), (IP6, "::", 1), (IP4, "no address", 1),
    ],
)  # fmt: skip
def test_what_a_hostile_server_names_is_not_taken(af, ip, port) -> None:
    assert not usable_external(af, (ip, port))


def test_what_may_be_an_external_address_is_taken() -> None:
    assert usable_external(IP4, OUTSIDE)
    assert usable_external(IP4, ("10.0.0.1", 1))  # a server of the site's own
    assert usable_external(IP6, ("2001:db8::1", 1))
    assert not usable_external(IP4, None)


def test_what_needs_keep_alives() -> None:
    agreed = Seen(OUTSIDE, agreed=True)
    assert needs_keeping(CONE, agreed)
    assert needs_keeping(FIREWALL, agreed)
    assert needs_keeping(None, agreed)
    assert not needs_keeping(OPEN, agreed)
    assert not needs_keeping(SYMMETRIC, Seen(OUTSIDE, agreed=False))
    assert not needs_keeping(BLOCKED, None)
    assert keeps_mapping(CONE, None)
    assert not keeps_mapping(None, Seen(OUTSIDE))

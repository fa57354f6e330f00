"""What is believed of surveys, network by network."""

from __future__ import annotations

from dataclasses import replace

from warpgate.nat.behaviour import Filtering, Mapping
from warpgate.nat.report import NetReport, PathReport, ServerReport
from warpgate.net.constants import IP4
from warpgate.node.network_cache import NetworkCache, NetworkKey
from warpgate.node.network_facts import Seen
from warpgate.node.network_known import KnownNetworks

SITE = "eth0", IP4
KEY = NetworkKey("eth0", IP4, "192.168.1.0/24", "192.168.1.1")
ROUTER = replace(KEY, hardware="02:00:00:00:00:01")
IPS = {SITE: "192.168.1.2"}
CONE = PathReport(
    "eth0", IP4, "192.168.1.2", udp=True, tcp=True, external=("198.51.100.1",),
    mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT, hairpin=True,
)  # fmt: skip
BLOCKED = PathReport("eth0", IP4, "192.168.1.2", udp=False, tcp=True, external=("198.51.100.1",))
NOTHING = PathReport("eth0", IP4, "192.168.1.2", udp=False, tcp=False)
SERVERS = (ServerReport("one", answered=True), ServerReport("two", answered=True))


def networks(key=KEY, cache=None):
    found = KnownNetworks(cache)
    assert found.look({SITE: key}, IPS) == {SITE}
    return found


def survey(known, *paths, udp_works=(), online=False, servers=SERVERS):
    return known.merge(NetReport(paths=paths, servers=servers), udp_works, online=online)


def test_a_survey_is_taken_over_and_remembered() -> None:
    cache = NetworkCache(None)
    known = networks(ROUTER, cache)
    assert survey(known, CONE)
    assert known.path(SITE) == CONE
    assert known.paths() == (CONE,)
    again = networks(ROUTER, cache)
    assert again.path(SITE) == replace(CONE, external=())  # whose address it is is asked anew


def test_paths_through_nat64_and_of_vanished_interfaces_are_not() -> None:
    known = networks()
    assert not survey(known, replace(CONE, nat64=True), replace(CONE, interface="eth9"))
    assert known.paths() == ()


def test_the_same_network_is_known_when_its_router_becomes_known() -> None:
    known = networks()
    survey(known, CONE)
    assert known.look({SITE: ROUTER}, IPS) == set()
    assert known.look({SITE: KEY}, IPS) == set()  # its entry has expired
    assert known.path(SITE) == CONE
    other = replace(KEY, hardware="02:00:00:00:00:02")
    assert known.look({SITE: other}, IPS) == {SITE}
    assert known.path(SITE) is None
    assert known.look({}, {}) == {SITE}


def test_another_own_address_in_the_same_network() -> None:
    known = networks()
    survey(known, CONE)
    assert known.look({SITE: KEY}, {SITE: "192.168.1.9"}) == set()
    assert known.path(SITE) == replace(CONE, local_ip="192.168.1.9")


def test_dead_servers_do_not_look_like_a_firewall() -> None:
    known = networks()
    assert not survey(known, NOTHING)
    assert known.path(SITE) == replace(NOTHING, udp=None, tcp=None)
    assert known.path(SITE).nat_type is None
    survey(known, CONE)
    assert not survey(known, NOTHING, online=True)
    assert known.path(SITE) == CONE


def test_several_silent_servers_and_other_proof_of_the_internet_do() -> None:
    known = networks()
    alone = (SERVERS[0], ServerReport("two"))
    survey(known, NOTHING, online=True, servers=alone)
    assert known.path(SITE).udp is None
    survey(known, NOTHING, online=True)
    assert known.path(SITE) == NOTHING


def test_udp_blocked_is_believed_at_once_of_a_new_network() -> None:
    known = networks()
    assert survey(known, BLOCKED)
    assert known.path(SITE) == BLOCKED
    assert not known.doubtful()


def test_and_of_one_where_it_worked_only_the_second_time() -> None:
    known = networks()
    survey(known, CONE)
    assert survey(known, BLOCKED)
    assert known.path(SITE) == CONE
    assert known.doubtful()
    survey(known, BLOCKED)
    assert known.path(SITE) == BLOCKED  # without any fact of CONE's
    assert not known.doubtful()
    survey(known, CONE)
    survey(known, BLOCKED)
    survey(known, CONE)
    assert not known.doubtful()


def test_and_never_while_a_listening_socket_has_answers() -> None:
    known = networks()
    assert survey(known, BLOCKED, udp_works={SITE})
    assert known.doubtful()
    survey(known, BLOCKED, udp_works={SITE})
    assert not known.doubtful()  # asked once more, not for ever
    assert known.path(SITE) is None


def test_what_a_survey_did_not_find_this_time_is_as_it_was() -> None:
    known = networks()
    survey(known, CONE)
    survey(known, replace(CONE, filtering=None, hairpin=None, external=("203.0.113.1",)))
    assert known.path(SITE) == replace(CONE, external=("203.0.113.1",))
    survey(known, replace(CONE, hairpin=False))
    assert known.path(SITE).hairpin is False


def test_what_contradicts_a_survey() -> None:
    known = networks()
    outside = ("198.51.100.1", 5000)
    assert not known.contradicted(SITE, Seen(outside, agreed=False), udp_works=True)
    survey(known, CONE)
    assert known.contradicted(SITE, Seen(outside, agreed=False), udp_works=True)
    assert not known.contradicted(SITE, Seen(outside, agreed=True), udp_works=True)
    survey(known, BLOCKED)
    survey(known, BLOCKED)
    assert known.contradicted(SITE, Seen(outside), udp_works=True)
    assert not known.contradicted(SITE, None, udp_works=False)

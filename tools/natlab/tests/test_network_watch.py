"""What a node's address says of its network, behind each kind of NAT, and when the network changes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from warpgate.net.constants import IP4, IP6, DeltaType, NATType
from warpgate.protocol.peer_address import Endpoint, PeerAddress, parse_address
from warpgate_natlab import Lab
from warpgate_natlab.session import Peer

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

SOON_S = 6.0  # a survey takes one, and the machine may be busy
KEPT_S = 25.0  # until the next question, and an answer


@contextmanager
def node(lab: Lab, **conf: Any) -> Iterator[Peer]:
    servers = [server for family in lab.a.families for server in lab.servers.stun((family,))]
    with Peer(lab, "a", {"enable_upnp": False, "stun_servers": servers, **conf}) as peer:
        peer.answer(20)
        yield peer


def until(peer: Peer, true: Callable[[PeerAddress], bool], seconds: float = SOON_S) -> PeerAddress:
    """Wait until the node's address is as it should be."""
    deadline = time.monotonic() + seconds
    while True:
        address = parse_address(peer.ask({"do": "address"})["address"])
        if true(address):
            return address
        assert time.monotonic() < deadline, f"{address.interfaces}\n{peer.log()}"
        time.sleep(0.05)


def only(address: PeerAddress, af: int = IP4) -> Endpoint:
    (record,) = address.interfaces
    found = record.endpoint(af)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("profile", "nat", "delta", "has_port"),
    [
        ("port-restricted", NATType.PORT_RESTRICTED, DeltaType.EQUAL, True),
        ("cgnat", NATType.PORT_RESTRICTED, DeltaType.RANDOM, True),
        ("symmetric-sequential", NATType.SYMMETRIC, DeltaType.INDEPENDENT, False),
        ("open-firewall", NATType.SYMMETRIC_UDP_FIREWALL, DeltaType.NOT_APPLICABLE, True),
        ("udp-blocked", NATType.BLOCKED, DeltaType.EQUAL, False),
    ],
)
def test_the_address_says_what_the_nat_does(
    profile: str, nat: NATType, delta: DeltaType, has_port: bool
) -> None:
    with Lab(profile, "open", servers=["stun"]) as lab, node(lab) as peer:
        endpoint = only(until(peer, lambda address: only(address).nat != 0))
        assert (endpoint.nat, endpoint.delta) == (nat, delta)
        assert endpoint.ext_ip == lab.a.public_ip
        if not has_port:
            assert endpoint.ext_port is None
            return
        # The port is the listening socket's own: what is sent there arrives, once it is let in.
        assert endpoint.ext_port is not None
        if profile != "open-firewall":
            mapped = [
                each
                for each in lab.mappings("a")
                if str(endpoint.port) in str(each) and str(endpoint.ext_port) in str(each)
            ]
            assert mapped, lab.mappings("a")


def test_both_families_have_their_facts() -> None:
    with Lab("dual-stack", "open", servers=["stun"]) as lab, node(lab) as peer:
        address = until(peer, lambda a: all(only(a, af).nat for af in (IP4, IP6)))
        assert only(address).nat == NATType.PORT_RESTRICTED
        there = only(address, IP6)
        assert (there.nat, there.ext_ip, there.ext_port) == (
            NATType.SYMMETRIC_UDP_FIREWALL,
            there.ip,
            there.port,
        )


def test_a_router_that_starts_anew_and_another_external_address_are_noticed() -> None:
    with Lab("cgnat", "open", servers=["stun"]) as lab, node(lab) as peer:
        first = until(peer, lambda a: only(a).nat != 0 and only(a).ext_port is not None)
        assert lab.reboot_nat("a")  # a carrier's NAT: the new mapping has another port
        second = until(peer, lambda a: only(a).ext_port != only(first).ext_port, KEPT_S)
        assert second.sequence > first.sequence
        assert only(second).ext_ip == only(first).ext_ip
        public = lab.change_address("a")
        third = until(peer, lambda a: only(a).ext_ip == public, KEPT_S + 10)
        assert third.sequence > second.sequence
        assert only(third).ext_port is not None
        assert peer.ask({"do": "address"})["stats"].get("stun-unanswered", 0) == 0


def test_interfaces_that_come_and_go_change_the_address() -> None:
    with Lab("port-restricted", "open", servers=["stun"]) as lab, node(lab) as peer:
        first = until(peer, lambda a: only(a).nat != 0)
        for words in (
            "link add more0 type veth peer name more1",
            "link set more0 addrgenmode none",
            "link set more1 addrgenmode none up",
            "addr add 10.9.9.2/24 dev more0",
            "link set more0 up",
        ):
            lab.a.run(["ip", *words.split()])
        second = until(peer, lambda a: len(a.interfaces) == 2)
        assert second.interfaces[0] == first.interfaces[0]  # no question was needed
        endpoint = second.interfaces[1].endpoint(IP4)
        assert endpoint == Endpoint(IP4, "10.9.9.2", only(first).port)
        lab.a.python(f"import socket; socket.create_connection(('10.9.9.2', {endpoint.port}), 5)")
        lab.a.run(["ip", "link", "del", "more0"])
        third = until(peer, lambda a: len(a.interfaces) == 1)
        assert third.interfaces == first.interfaces
        assert third.sequence > second.sequence > first.sequence


def test_another_address_of_the_interface_is_listened_on_and_surveyed() -> None:
    with Lab("port-restricted", "open", servers=["stun"]) as lab, node(lab) as peer:
        first = only(until(peer, lambda a: only(a).nat != 0))
        routes = lab.a.run(["ip", "route", "show", "default"]).stdout.split("\n")[0].split()
        lab.a.run(["ip", "addr", "del", "192.168.1.2/24", "dev", "eth0"])
        lab.a.run(["ip", "addr", "add", "192.168.1.77/24", "dev", "eth0"])
        lab.a.run(["ip", "route", "replace", *routes])
        second = only(
            until(peer, lambda a: only(a).ip == "192.168.1.77" and only(a).ext_port is not None)
        )
        assert second.port == first.port
        assert (second.ext_ip, second.nat) == (first.ext_ip, first.nat)


BROKERS = """
import asyncio, subprocess, time
from warpgate import Node
from warpgate.node.node_defs import NODE_TEST_CONF

async def main():
    async with Node(conf={**NODE_TEST_CONF, "brokers": None, "sig_pipe_no": 1}) as node:
        mqtt = node.rendezvous.mqtt
        await mqtt.wait_connected()
        (link,) = mqtt._kept.values()
        first = link.session
        for words in ("addr del 192.168.1.2/24 dev eth0", "addr add 192.168.1.77/24 dev eth0",
                      "route replace default via 192.168.1.1 dev eth0"):
            subprocess.run(["ip", *words.split()], check=True)
        began = time.monotonic()
        while link.session in (first, None):
            await asyncio.sleep(0.01)
        print(link.session.local_ip, time.monotonic() - began)

asyncio.run(asyncio.wait_for(main(), 60))
"""


def test_brokers_are_dialled_again_at_once_from_the_new_address() -> None:
    with Lab("linux", "open", servers=["mqtt"]) as lab:
        process = lab.a.popen(
            [sys.executable, "-c", BROKERS], env=lab.environ("a"), stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=70)
        ip, seconds = out.split()
        assert ip == "192.168.1.77"
        assert float(seconds) < 8  # keep-alives alone take 30

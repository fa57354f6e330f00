"""IPv4 addresses from where only IPv6 leads outside."""

from __future__ import annotations

import asyncio
import socket

import pytest

from warpgate.errors import SignallingError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.nat.classify import embedded, synthesize
from warpgate.nat.report import NetReport
from warpgate.net import nat64 as nat64_module
from warpgate.net.constants import IP6
from warpgate.net.nat64 import Nat64, has_route
from warpgate.protocol.peer_address import pack_address
from warpgate.server_urls import parse_broker
from warpgate.signalling.mqtt_dial import NotPermitted, connect_socket
from warpgate.signalling.mqtt_transport import MqttTransport

PREFIX = "2001:db8:64::/96"
SERVER = "192.0.2.10"
SYNTHESISED = "2001:db8:64::c000:20a"


class Network:
    """What the system says of routes, and what its resolver says of NAT64."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.families = {6}
        self.answers: list[str] = [synthesize(PREFIX, "192.0.0.170")]
        self.asked = 0
        monkeypatch.setattr(
            nat64_module, "has_route", lambda ip: (6 if ":" in ip else 4) in self.families
        )
        monkeypatch.setattr(nat64_module, "look_up", self.look_up)

    async def look_up(self, host, port, *, family, kind, timeout_s):
        assert (host, family) == ("ipv4only.arpa", IP6)
        self.asked += 1
        await asyncio.sleep(0)
        if not self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(family, kind, 0, "", (ip, port, 0, 0)) for ip in self.answers]


@pytest.fixture
def network(monkeypatch):
    return Network(monkeypatch)


async def test_a_public_ipv4_address_is_reached_through_the_prefix_that_dns64_tells(network):
    nat64 = Nat64()
    assert nat64.prefix is None
    assert await nat64.reach(SERVER) == SYNTHESISED
    assert nat64.prefix == PREFIX
    assert await nat64.reach("192.0.2.11") == "2001:db8:64::c000:20b"
    assert network.asked == 1
    assert nat64.native(SYNTHESISED) == SERVER
    assert nat64.native("2001:db8:1::1") == "2001:db8:1::1"


@pytest.mark.parametrize("ip", ["2001:db8::5", "10.0.0.5", "127.0.0.1", "169.254.1.1"])
async def test_other_addresses_stay_as_they_are(network, ip):
    """RFC 6052 section 3.1: no private addresses; and nothing is asked for them."""
    assert await Nat64().reach(ip) == ip
    assert network.asked == 0


@pytest.mark.parametrize("families", [{4, 6}, {4}, set()])
async def test_where_ipv4_leads_outside_or_nothing_does_no_resolver_is_asked(network, families):
    network.families = families
    assert await Nat64().reach(SERVER) == SERVER
    assert network.asked == 0


async def test_without_nat64_the_resolver_is_asked_once_in_a_while_only(network):
    network.answers = []
    nat64 = Nat64()
    for _ in range(3):
        assert await nat64.reach(SERVER) == SERVER
    assert network.asked == 1
    nat64.forget()  # another network
    network.answers = [synthesize(PREFIX, "192.0.0.171")]
    assert await nat64.reach(SERVER) == SYNTHESISED


async def test_an_answer_about_the_last_network_does_not_count_in_this_one(network):
    nat64 = Nat64()
    asking = asyncio.ensure_future(nat64.reach(SERVER))
    await asyncio.sleep(0)
    nat64.forget()
    assert await asking == SERVER
    assert nat64.prefix is None


async def test_what_a_survey_has_found_is_not_asked_for_again(network):
    nat64 = Nat64()
    nat64.learn(NetReport(nat64=True, nat64_prefix=PREFIX))
    nat64.learn(NetReport())  # this one did not ask
    assert await nat64.reach(SERVER) == SYNTHESISED
    assert network.asked == 0
    nat64.learn(NetReport(nat64=False))
    assert nat64.prefix is None


async def test_who_has_no_time_gets_no_answer_and_spoils_none(network, monkeypatch):
    async def silent(*_args, timeout_s, **_options):
        raise TimeoutError

    nat64 = Nat64()
    with monkeypatch.context() as patch:
        patch.setattr(nat64_module, "look_up", silent)
        assert await nat64.find(0.1) is None
    assert await nat64.find() == PREFIX


def test_the_systems_routes():
    assert has_route("127.0.0.1")


@pytest.mark.parametrize("length", [32, 40, 48, 56, 64, 96])
def test_what_is_synthesised_is_found_again(length):
    prefix = f"2001:db8::/{length}"
    assert embedded(prefix, synthesize(prefix, SERVER)) == SERVER
    assert embedded(prefix, "2001:dead::1") is None
    assert embedded(prefix, SERVER) is None


# Brokers.


async def test_a_broker_that_has_ipv4_only_is_dialled_by_the_synthesised_address():
    """The loopback address stands in for it."""
    asked = []

    async def reach(ip: str) -> str:
        asked.append(ip)
        return "::1"

    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "::1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        permitted = []
        url = parse_broker(f"mqtt://{SERVER}:{port}")
        sock = await connect_socket(url, lambda ip: bool(permitted.append(ip)) or True, reach)
        with sock:
            assert sock.getpeername()[0] == "::1"
    assert asked == permitted == [SERVER]  # it is the broker's own address that must be permitted


async def test_what_may_not_be_dialled_is_not_translated_either():
    async def reach(ip: str) -> str:
        raise AssertionError(ip)

    with pytest.raises(NotPermitted):
        await connect_socket(parse_broker("mqtt://10.0.0.1:1883"), lambda _ip: False, reach)


async def test_a_broker_that_has_ipv6_is_not_translated():
    async def reach(ip: str) -> str:
        raise AssertionError(ip)

    with pytest.raises(SignallingError):
        await connect_socket(parse_broker("mqtt://[::1]:1"), lambda _ip: True, reach)


async def test_a_peers_word_opens_no_private_broker_behind_nat64():
    """DNS64 makes an IPv6 address of a private one, too; what counts is where it leads."""
    nat64, peer = Nat64(), Identity.generate()
    nat64.learn(NetReport(nat64=True, nat64_prefix=PREFIX))
    transport = MqttTransport(Identity.generate(), [], 1, Counters(), nat64=nat64)
    await transport.start(lambda *_: True)
    try:
        for ip in ("10.0.0.1", "127.0.0.1", "169.254.169.254"):
            inside = f"mqtt://[{synthesize(PREFIX, ip)}]:1883"
            dest = pack_address(
                peer, machine=bytes(16), sequence=1, brokers=[inside], interfaces=[]
            )
            with pytest.raises(SignallingError, match="a peer's word is not enough"):
                await transport.send(dest, b"signal")
    finally:
        await transport.close()

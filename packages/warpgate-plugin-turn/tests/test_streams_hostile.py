"""What a peer's words can make this side and its relay for TCP do, without any network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import RelayError
from warpgate.events import Counters
from warpgate.net.budget import MAX_SYNS, PacketBudget
from warpgate.net.constants import IP4, IP6
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn import streams as streams_module
from warpgate_plugin_turn.calls import Calls
from warpgate_plugin_turn.messages import MAX_MAPPED, RelayFacts
from warpgate_plugin_turn.policy import PeerPolicy
from warpgate_plugin_turn.streams import (
    MAX_CONNECTIONS,
    MAX_CONNECTS,
    MAX_DIALS,
    MAX_LET_IN,
    Streams,
)
from warpgate_plugin_turn.tcp_relay import DataConnection

SIGNED = ("192.168.2.2", "203.0.113.10")
OWN = ("192.0.2.20", 50000)
PEERS = ("198.51.100.9", 50001)


class Relay:
    """Stands in for an allocation; every connection fails."""

    def __init__(self) -> None:
        self.server = TurnServer("192.0.2.20", 3478, "user", "password", "tcp")
        self.name, self.failure, self.ended = "192.0.2.20 port 3478", None, False
        self.address, self.relayed, self.family = ("192.0.2.20", 3478), OWN, IP4
        self.on_incoming: Any = None
        self.on_permitted: Any = None
        self.on_refused: Any = None
        self.permitted: list[str] = []
        self.connects: list[Any] = []
        self.notes: tuple[str, ...] = ()
        self.retired = False
        self.grants = True
        self.asked = asyncio.Event()

    def permit(self, ip: str) -> None:
        self.permitted.append(ip)
        self.asked.set()
        if self.grants:
            asyncio.get_running_loop().call_soon(self.on_permitted, ip)

    def connect(self, peer: Any, done: Callable[[Any], None]) -> None:
        self.connects.append(peer)
        done(RelayError("can't connect to the peer"))

    def retire(self) -> None:
        self.retired = True


class Side:
    """A side's streams, and all that they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, initiator: bool = True) -> None:
        self.relay = Relay()
        self.dials: list[Any] = []
        self.questions: list[Any] = []
        self.told = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.refused: set[str] = {"127.0.0.1", "10.0.0.1", "192.168.1.1"}
        endpoint = SimpleNamespace(af=IP4, ip=SIGNED[0], ext_ip=SIGNED[1])
        peer = SimpleNamespace(interfaces=[SimpleNamespace(endpoints=[endpoint])])
        self.plugin: Any = SimpleNamespace(
            af=IP4,
            nic=SimpleNamespace(route=lambda _af: SimpleNamespace(connect=self.dial)),
            budget=PacketBudget(),
            node=SimpleNamespace(stats=Counters()),
            src_info={"nat": {"type": 7}, "nic": "192.168.1.2", "ext": "192.168.1.2"},
            dest_info={"af": IP4},
            initiator=initiator,
            manager=SimpleNamespace(attempt_of=lambda _: SimpleNamespace(peer=peer)),
            refuses=lambda ip: "not on a peer's word" if ip in self.refused else None,
            result=asyncio.get_running_loop().create_future(),
        )
        self.policy = PeerPolicy(self.plugin)

        async def allocate(_af: int, *, streams: bool) -> Relay:
            assert streams
            return self.relay

        async def tell() -> None:
            self.told += 1

        async def mapped(_af: int, beside: Any, _budget: Any) -> set[str]:
            self.questions.append(beside)
            return set()

        async def no_server(*_: Any) -> Any:
            raise RelayError("there is no network here")

        monkeypatch.setattr(streams_module, "tcp_mapped_ips", mapped)
        monkeypatch.setattr(streams_module, "local_ip_towards", lambda _relay: None)
        monkeypatch.setattr(streams_module, "open_beside", no_server)
        monkeypatch.setattr(streams_module, "OTHERS_TURN_S", 0.0)
        servers = SimpleNamespace(https_only=False)
        pool: Any = SimpleNamespace(allocate=allocate, context=lambda _: None, servers=servers)
        calls = Calls(lambda _: None, self.spawn, tell, lambda: None, lambda: None)
        self.streams = Streams(self.plugin, pool, self.policy, calls)

    def spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        return task

    async def dial(self, relay: Any, *_: Any, **__: Any) -> Any:
        self.dials.append(relay)
        raise OSError("there is no network here")

    async def offer(self) -> None:
        await self.streams.offer()
        await self.settle()

    async def hear(self, relay: Any, lets: Any = (OWN[0],), **fields: Any) -> None:
        facts = RelayFacts(stream_ip=relay[0], stream_port=relay[1], lets=list(lets), **fields)
        self.policy.hear(facts.mapped)
        self.streams.heard(facts)
        await self.settle()

    async def settle(self) -> None:
        while pending := [task for task in self.tasks if not task.done()]:
            await asyncio.wait(pending)
        for task in self.tasks:
            task.result()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Side]:
    return lambda **options: Side(monkeypatch, **options)


@pytest.mark.parametrize("initiator", [True, False])
@pytest.mark.parametrize("ip", [PEERS[0], SIGNED[0], SIGNED[1], OWN[0]])
async def test_our_relay_connects_to_public_and_signed_addresses(
    make: Any, ip: str, initiator: bool
) -> None:
    """And to its own server, where the peer's relay may be as well."""
    side = make(initiator=initiator)
    await side.offer()
    await side.hear((ip, 50001))
    assert side.relay.connects == [(ip, 50001)]
    assert ip in side.relay.permitted  # it lets the other relay in, too


@pytest.mark.parametrize(
    "ip", ["10.0.0.1", "192.168.2.3", "172.16.0.1", "100.64.0.1", "169.254.1.1", "127.0.0.1",
           "127.1.2.3", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fd00::1", "2001:db8::1",
           "::ffff:10.0.0.1", "::ffff:127.0.0.1"],
)  # fmt: skip
@pytest.mark.parametrize("allowed", [False, True])
async def test_it_connects_to_no_other(make: Any, ip: str, allowed: bool) -> None:
    """Nor where the core would let this side itself write there, as to loopback on one machine."""
    side = make()
    side.refused = set() if allowed else {ip}
    await side.offer()
    await side.hear((ip, 50001))
    assert side.relay.connects == []
    assert ip not in side.relay.permitted


@pytest.mark.parametrize(
    "ip", ["::1", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1",
           "64:ff9b::a00:1", "64:ff9b::7f00:1", "2002:a00:1::1", "10.0.0.1"],
)  # fmt: skip
async def test_nor_does_a_relay_for_ipv6(make: Any, ip: str) -> None:
    side = make()
    side.plugin.dest_info["af"], side.refused = IP6, set()
    side.relay.relayed, side.relay.family = ("2001:db8::20", 50000), IP6
    await side.offer()
    await side.hear((ip, 50001), lets=["2001:db8::20"])
    assert side.relay.connects == []
    assert ip not in side.relay.permitted
    await side.hear(("2001:db8:1::9", 50001), lets=["2001:db8::20"])
    assert side.relay.connects == [("2001:db8:1::9", 50001)]


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.1", "192.168.1.1"])
async def test_this_side_dials_what_the_core_allows(make: Any, ip: str) -> None:
    side = make()
    await side.hear((ip, 50001))
    assert side.dials == []
    side.refused.clear()
    await side.hear((ip, 50001))
    assert side.dials == [(ip, 50001)]


@pytest.mark.parametrize("ip", [PEERS[0], "10.0.0.1", "127.0.0.1"])
async def test_the_server_beside_a_relay_is_asked_where_the_core_allows_it(
    make: Any, ip: str
) -> None:
    side = make()
    await side.hear(PEERS, stun_ip=ip, stun_port=3478)
    assert set(side.questions) == ({(ip, 3478)} if ip == PEERS[0] else set())


async def test_a_server_inside_our_own_network_is_trusted(make: Any) -> None:
    side = make()
    side.relay.relayed = side.relay.address = ("192.168.1.20", 3478)
    side.policy.trusted.add("2001:db8::20")  # by which it is reached; its relay is for IPv4
    await side.offer()
    await side.hear(("2001:db8::20", 50001), lets=["192.168.1.20"])
    assert side.relay.connects == []
    await side.hear(("192.168.1.20", 50001), lets=["192.168.1.20"])
    assert side.relay.connects == [("192.168.1.20", 50001)]


@pytest.mark.parametrize("port", [1, 22, 25, 80, 443, 1023])
async def test_services_have_the_well_known_ports(make: Any, port: int) -> None:
    side = make()
    await side.offer()
    await side.hear((PEERS[0], port))
    assert (side.relay.connects, side.dials) == ([], [])


async def test_it_connects_where_it_is_let_in_only(make: Any) -> None:
    side = make()
    await side.offer()
    await side.hear(PEERS, lets=["203.0.113.1"])
    assert side.relay.connects == []
    await side.hear(PEERS)
    assert side.relay.connects == [PEERS]


async def test_relay_after_relay(make: Any) -> None:
    side = make()
    await side.offer()
    for number in range(20):
        await side.hear((PEERS[0], 50000 + number))
    assert len(side.relay.connects) == MAX_CONNECTS
    assert len(side.dials) == MAX_DIALS


async def test_address_after_address_that_is_let_in(make: Any) -> None:
    side = make()
    await side.offer()
    for number in range(20):
        await side.hear(PEERS, lets=[f"198.51.100.{number}"])
    assert len(side.dials) == MAX_DIALS
    for number in range(100):
        await side.hear((f"198.51.101.{number}", 50001), mapped=[f"198.51.102.{number}"])
    assert len(side.relay.permitted) == MAX_LET_IN
    assert len(side.streams.told()["lets"]) <= MAX_MAPPED


async def test_connects_and_dials_count_against_the_budget(make: Any) -> None:
    """WIRE section 5: 50 packets to an address that has not answered."""
    side = make()
    await side.offer()
    await side.hear(PEERS)
    assert side.plugin.budget.left(PEERS[0]) == 50 - 2 * MAX_SYNS
    side = make()
    await side.offer()
    side.plugin.budget.take(PEERS[0], 50 - MAX_SYNS + 1)
    await side.hear(PEERS)
    assert (side.dials, side.relay.connects) == ([], [])
    assert side.plugin.node.stats["turn_dials_limited"] == 2


async def test_through_nat64_it_is_the_same_budget(make: Any) -> None:
    """What the hello and STUN send goes to the synthesised address, too."""
    side, synthesised = make(), "2001:db8:64::c633:6409"

    async def way(address: Any) -> Any:
        return synthesised, address[1]

    side.streams._way = way
    await side.offer()
    await side.hear(PEERS)
    assert side.dials == [(synthesised, PEERS[1])]
    assert side.relay.connects == [PEERS]
    assert side.plugin.budget.left(synthesised) == 50 - 2 * MAX_SYNS
    assert side.plugin.budget.left(PEERS[0]) == 50


async def test_who_does_not_know_its_own_address_says_so(make: Any) -> None:
    side = make()
    await side.hear(PEERS, lets=[])
    assert side.dials == []
    assert "nobody knows the address" in str(side.streams.unreachable)
    await side.hear(PEERS, lets=["203.0.113.1"])
    assert side.dials == [PEERS]  # the peer knows it
    assert "no network" in str(side.streams.unreachable)


async def test_a_network_that_lets_out_only_443_is_cut_off(make: Any) -> None:
    side = make()
    assert side.streams.is_cut_off()  # as its signed address says
    side.plugin.src_info["nat"] = {"type": 0}
    assert not side.streams.is_cut_off()
    side.streams._pool.servers.https_only = True
    assert side.streams.is_cut_off()


async def test_many_that_connect(make: Any) -> None:
    side = make()
    await side.offer()
    for number in range(20):
        side.relay.on_incoming(number, ("203.0.113.10", 4000 + number))
    await side.settle()
    assert len(side.tasks) <= 1 + MAX_CONNECTIONS
    assert side.plugin.node.stats["turn_connections_limit"] == 20 - MAX_CONNECTIONS


async def test_it_is_told_where_the_peer_may_connect_when_that_is_so(make: Any) -> None:
    side = make()
    assert side.streams.told() == {}
    await side.offer()
    told = side.streams.told()
    assert (told["stream_ip"], told["stream_port"]) == OWN
    assert told["lets"] == [SIGNED[1]]
    await side.hear(PEERS, mapped=["203.0.113.99"])
    assert side.streams.told()["lets"] == sorted([SIGNED[1], "203.0.113.99", PEERS[0]])
    side.relay.on_refused(PEERS[0], RelayError("forbidden"))
    assert PEERS[0] not in side.streams.told()["lets"]
    assert side.told >= 1


async def offering(side: Side) -> asyncio.Task[Any]:
    """Begin to offer a relay for two addresses, and return when the permissions are asked for."""
    side.relay.grants = False
    side.streams.let_in(["203.0.113.11"])
    task = asyncio.create_task(side.streams.offer())
    await side.relay.asked.wait()
    await asyncio.sleep(0)
    assert sorted(side.relay.permitted) == [SIGNED[1], "203.0.113.11"]
    return task


async def test_it_is_told_only_when_all_have_their_permission(make: Any) -> None:
    side = make()
    offer = await offering(side)
    assert (side.streams.relayed, offer.done()) == (None, False)
    side.relay.on_permitted(SIGNED[1])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (side.streams.relayed, offer.done()) == (None, False)
    side.relay.on_permitted("203.0.113.11")
    await offer
    assert side.streams.relayed == OWN


async def test_a_refusal_settles_it_as_well(make: Any) -> None:
    side = make()
    offer = await offering(side)
    side.relay.on_permitted(SIGNED[1])
    side.relay.on_refused("203.0.113.11", RelayError("forbidden"))
    await offer
    assert side.streams.told()["lets"] == [SIGNED[1]]
    assert str(side.streams.why_not) == "forbidden"


async def test_without_a_permission_in_time_it_is_never_told(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "PERMIT_S", 0.01)
    side = make()
    side.relay.grants = False
    with pytest.raises(RelayError, match="gave no permission in time"):
        await side.streams.offer()
    assert side.streams.told() == {}


async def test_close_lets_go(make: Any) -> None:
    side = make()
    await side.offer()
    side.streams.close()
    assert side.relay.retired
    assert side.relay.on_incoming is None


@pytest.mark.parametrize("wants", ["TCP", "sctp", "x" * 1000, 6, None])
def test_what_nobody_can_want(wants: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RelayFacts(wants=wants)


def test_caps() -> None:
    with pytest.raises(ValueError, match="validation error"):
        RelayFacts(lets=["192.0.2.1"] * (MAX_MAPPED + 1))
    with pytest.raises(ValueError, match="validation error"):
        RelayFacts(lets=["1" * 46])


async def test_a_connection_that_was_ready_for_the_peer_ends_with_the_attempt(make: Any) -> None:
    side = make()
    closed: list[bool] = []
    await side.offer()
    side.streams._ahead = SimpleNamespace(close=lambda: closed.append(True))
    side.streams.close()
    assert closed
    assert side.relay.retired


async def test_a_server_that_speaks_unasked_is_hung_up_on() -> None:
    aborted: list[bool] = []
    connection = DataConnection()
    transport: Any = SimpleNamespace(abort=lambda: aborted.append(True))
    connection.connection_made(transport)
    connection.data_received(bytes(20))
    assert aborted

"""Relays for peers of the other family, and NAT64 on the way to servers and relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from warpgate import RelayError
from warpgate.events import Counters
from warpgate.net.constants import IP4, IP6
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn import datagrams
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import NotSupported, ServerUnreachable
from warpgate_plugin_turn.messages import KNOCK_BYTES, RelayFacts
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.servers import LACKING_S, ServerList
from warpgate_plugin_turn.strategy import Turn

SERVERS = [TurnServer(ip, 3478, "user", "password") for ip in ("192.0.2.1", "192.0.2.2")]
RELAY4, RELAY6 = ("192.0.2.20", 50000), ("2001:db8:100::20", 50000)


# In which family the relay is.


class Stub:
    """Stands in for an allocation."""

    def __init__(self, server: TurnServer, family: int) -> None:
        self.server, self.family = server, family
        self.rtt_s, self.ended, self.on_end = 0.01, False, lambda _self: None
        self.on_lost: list[Any] = []

    def close(self) -> None:
        self.ended = True

    def __getattr__(self, name: str) -> Any:  # what pools do with allocations beyond that
        return lambda *_args: None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a pool; its servers answer as the function given says."""

    def make(answer: Any) -> tuple[Pool, list[tuple[str, int]]]:
        asked: list[tuple[str, int]] = []

        async def open_(server: TurnServer, _address: Any, **options: Any) -> Any:
            asked.append((server.host, options["family"]))
            options["on_answer"]()
            error = answer(server.host, options["family"])
            if error is not None:
                raise error
            return Stub(server, options["family"])

        monkeypatch.setattr(Allocation, "open", open_)
        return Pool(ServerList(SERVERS), Counters()), asked

    return make


def ipv4_only(_host: str, family: int) -> RelayError | None:
    return NotSupported("no such family") if family == IP6 else None


async def test_where_no_server_has_ipv6_the_relay_is_of_ipv4(world: Any) -> None:
    pool, asked = world(ipv4_only)
    allocation = await pool.take(IP6)
    assert allocation.family == IP4
    assert asked == [("192.0.2.1", IP6), ("192.0.2.2", IP6), ("192.0.2.1", IP4)]
    await pool.take(IP6)
    assert asked[3:] == [("192.0.2.1", IP4)]  # it is remembered


async def test_a_relay_that_is_kept_ready_is_of_ipv4_then(world: Any) -> None:
    pool, asked = world(ipv4_only)
    pool.prepare(IP6)
    assert (await pool.take(IP6)).family == IP4
    assert len(asked) == 3


async def test_what_lacks_ipv6_is_not_waited_for_by_another_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where UDP is blocked, the same server has said over TLS what there is to be known."""
    tls = TurnServer(SERVERS[0].host, 443, "user", "password", "tls")
    silent: list[str] = []

    async def open_(server: TurnServer, _address: Any, **options: Any) -> Any:
        if server.transport == "udp":
            silent.append(server.host)
            await asyncio.Event().wait()
        options["on_answer"]()
        if options["family"] == IP6:
            raise NotSupported("no such family")
        return Stub(server, options["family"])

    monkeypatch.setattr(Allocation, "open", open_)
    pool = Pool(ServerList([SERVERS[0], tls]), Counters(), stagger_s=0.01)
    async with asyncio.timeout(20):
        allocation = await pool.take(IP6)
    assert (allocation.family, allocation.server) == (IP4, tls)
    assert silent == [SERVERS[0].host] * 2
    allocation.close()
    await pool.close()


async def test_one_server_with_ipv6_will_do(world: Any) -> None:
    pool, _ = world(lambda host, family: ipv4_only(host, family) if host[-1] == "1" else None)
    for _ in range(2):
        allocation = await pool.take(IP6)
        assert (allocation.family, allocation.server.host) == (IP6, "192.0.2.2")


async def test_a_server_that_is_only_away_is_no_reason_for_ipv4(world: Any) -> None:
    pool, asked = world(lambda *_: ServerUnreachable("away"))
    with pytest.raises(ServerUnreachable):
        await pool.take(IP6)
    assert {family for _, family in asked} == {IP6}


async def test_an_ipv4_peer_is_never_given_a_relay_of_ipv6(world: Any) -> None:
    pool, asked = world(lambda _host, family: NotSupported("none") if family == IP4 else None)
    with pytest.raises(NotSupported):
        await pool.take(IP4)
    assert {family for _, family in asked} == {IP4}


async def test_what_lacks_ipv6_is_no_matter_for_an_ipv4_peer(world: Any) -> None:
    pool, asked = world(lambda *_: ServerUnreachable("away"))
    pool.servers.note_lack(SERVERS[0], IP6, asyncio.get_running_loop().time())
    with pytest.raises(ServerUnreachable):
        await pool.take(IP4)
    assert len(asked) == len(SERVERS)  # it is not tried twice


async def test_without_either_the_first_cause_is_told(world: Any) -> None:
    pool, _ = world(
        lambda _host, family: NotSupported("no IPv6 here") if family == IP6 else RelayError("full")
    )
    with pytest.raises(NotSupported, match="no IPv6 here"):
        await pool.take(IP6)


def test_what_a_server_lacks_is_believed_for_a_while() -> None:
    tls = TurnServer("192.0.2.1", 443, "user", "password", "tls")
    servers = ServerList([*SERVERS, tls])
    servers.note_lack(SERVERS[0], IP6, 100.0)
    assert servers.lacking(IP6, 100.0 + LACKING_S - 1) == 2  # by whichever way it is reached
    assert servers.lacks(tls, IP6, 101.0)
    assert not servers.lacks(SERVERS[1], IP6, 101.0)
    assert servers.lacking(IP4, 101.0) == servers.lacking(IP6, 100.0 + LACKING_S) == 0


async def test_a_server_without_relays_for_streams_has_those_for_datagrams(world: Any) -> None:
    refusals = [NotSupported("no TCP relays")]
    pool, asked = world(lambda *_: refusals.pop() if refusals else None)
    pool.servers = ServerList([TurnServer("192.0.2.1", 443, "user", "password", "tls")])
    with pytest.raises(NotSupported):
        await pool.allocate(IP6, streams=True)
    assert (await pool.take(IP6)).family == IP6
    assert asked == [("192.0.2.1", IP6)] * 2


async def test_a_server_that_lacks_a_family_is_not_asked_again_over_another_transport(
    world: Any,
) -> None:
    pool, asked = world(ipv4_only)
    pool.servers.note_lack(SERVERS[0], IP6, asyncio.get_running_loop().time())
    with pytest.raises(NotSupported, match=r"192\.0\.2\.1 has no relay addresses of this family"):
        await pool.allocate(IP6)
    assert asked == [("192.0.2.2", IP6)]


async def test_a_server_is_dialled_where_it_is_reached() -> None:
    """The address that peers are told of stays the server's own."""
    asked: list[Any] = []

    async def way(address: Any) -> Any:
        asked.append(address)
        return "::1", 9  # nothing is there

    server = TurnServer("192.0.2.1", 3478, "user", "password", "tcp")
    pool = Pool(ServerList([server]), Counters(), way=way)
    with pytest.raises(ServerUnreachable, match=r"192\.0\.2\.1"):
        await pool.take(IP4)
    assert asked == [("192.0.2.1", 3478)]


# What an attempt makes of it.


class Relay:
    """Stands in for an allocation in use."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.server, self.address = SERVERS[0], ("192.0.2.1", 3478)
        self.relayed = RELAY4 if family == IP4 else RELAY6
        self.mapped = ("198.51.100.1", 4000)
        self.name, self.failure, self.ended, self.knock = "a server", None, False, b""
        self.stranger = self.on_refused = None
        self.on_lost: list[Any] = []
        self.notes = ()
        self.permitted: set[str] = set()
        self.piped: list[Any] = []

    def permit(self, ip: str) -> None:
        self.permitted.add(ip)

    def has(self, _peer: Any) -> bool:
        return False

    def pipe(self, peer: Any) -> Any:
        self.piped.append(peer)
        return SimpleNamespace(hello_repeats_s=(), abort=lambda: None)

    def retire(self) -> None:
        pass


class Result:
    """Stands in for the attempt's future."""

    error: Any = None

    def done(self) -> bool:
        return self.error is not None

    def set_result(self, pipe: Any) -> None:
        pass

    def set_exception(self, error: Any) -> None:
        self.error = error


class Node:
    """Stands in for the node and its manager; the peer is signed with one address."""

    def __init__(self, af: int, ip: str) -> None:
        nic = SimpleNamespace(endpoints=[SimpleNamespace(af=af, ip=ip, ext_ip=None)])
        self.stats = Counters()
        self.attempt = SimpleNamespace(peer=SimpleNamespace(interfaces=[nic]))
        self.sent: list[Any] = []

    def attempt_of(self, _plugin: Any) -> Any:
        return self.attempt

    def refuses(self, _plugin: Any, _ip: str) -> None:
        return None

    async def send_signal(self, _plugin: Any, msg: Any) -> None:
        self.sent.append(msg.payload)


@pytest_asyncio.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Return a function that makes an attempt against a peer of a family; nothing can be reached."""
    made: list[Any] = []

    async def open_towards(dest: Any) -> Any:
        raise OSError(f"no route to {dest[0]}")

    monkeypatch.setattr(datagrams, "open_towards", open_towards)

    def build(peer_af: int, peer_ip: str, relay: Relay | None, initiator: bool = True) -> Any:
        plugin: Any = Turn(None)
        plugin.node = plugin.manager = Node(peer_af, peer_ip)
        plugin.initiator, plugin.af = initiator, IP4 if peer_af == IP6 else IP6
        plugin.src_info = {"nic": "here", "ext": "here", "nat": {"type": 0, "delta": 0}}
        plugin.dest_info = {"node_id": "peer", "af": peer_af}
        plugin._result = Result()
        if relay is not None:
            plugin._datagrams.adopt(relay)
        made.append(plugin)
        return plugin

    yield build
    for plugin in made:
        await plugin.close()


def facts(**fields: Any) -> RelayFacts:
    return RelayFacts(knock=bytes(KNOCK_BYTES), **fields)


MAPPED = ["203.0.113.64", "2001:db8:2:1::2"]


@pytest.mark.parametrize(
    ("family", "permitted"),
    [(IP4, {"203.0.113.64"}), (IP6, {"2001:db8:2:1::2", "2001:db8:2:1::9"})],
)
async def test_a_relay_lets_in_the_addresses_of_its_own_family(
    make: Any, family: int, permitted: set[str]
) -> None:
    """Through NAT64 an IPv6 peer comes from an IPv4 address, which it learns by STUN and tells."""
    relay = Relay(family)
    plugin = make(IP6, "2001:db8:2:1::9", relay)
    await plugin._hear(facts(mapped=MAPPED))
    assert relay.permitted == permitted


@pytest.mark.parametrize("ip", ["10.0.0.5", "127.0.0.1", "fd00::5", "::1"])
async def test_no_private_address_that_the_peer_has_not_signed(make: Any, ip: str) -> None:
    relay = Relay(IP6 if ":" in ip else IP4)
    plugin = make(IP6, "2001:db8:2:1::9", relay)
    plugin.manager.refuses = lambda _plugin, _ip: "no"
    await plugin._hear(facts(mapped=[ip]))
    assert ip not in relay.permitted


async def test_a_relay_writes_to_relays_of_its_own_family_only(make: Any) -> None:
    relay = Relay(IP4)
    plugin = make(IP6, "2001:db8:2:1::9", relay)
    plugin._datagrams.two_relays(RELAY6)
    assert relay.piped == []
    plugin._datagrams.two_relays(RELAY4)
    assert relay.piped == [RELAY4]


async def test_who_cannot_write_to_the_others_relay_says_so(make: Any) -> None:
    plugin = make(IP4, "203.0.113.5", None, initiator=False)
    plugin._cause = RelayError("no TURN server here")
    await plugin._hear(facts(relay_ip=RELAY4[0], relay_port=RELAY4[1]))
    told = plugin.manager.sent[-1]
    assert told.unreachable
    assert told.cause


async def test_a_relay_that_the_peer_cannot_reach_is_an_end(make: Any) -> None:
    plugin = make(IP6, "2001:db8:2:1::9", Relay(IP4))
    await plugin._hear(facts(unreachable=True))
    assert plugin._result.error is None  # the peer may be getting one of its own
    await plugin._hear(facts(unreachable=True, cause="no TURN server is configured"))
    text = str(plugin._result.error)
    assert RELAY4[0] in text
    assert "no TURN server is configured" in text


async def test_a_peers_relay_that_cannot_be_reached_is_an_end_without_one_here(make: Any) -> None:
    plugin = make(IP4, "203.0.113.5", None)
    await plugin._hear(facts(relay_ip=RELAY4[0], relay_port=RELAY4[1]))
    await asyncio.wait(plugin._tasks)  # getting one of its own
    text = str(plugin._result.error)
    assert f"no route to {RELAY4[0]}" in text
    assert "without a factory" in text


async def test_knocks_and_hellos_through_nat64_have_one_budget(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WIRE section 5: so many packets go to a relay that has not answered, by whichever address."""
    plugin, sent = make(IP4, "203.0.113.5", None, initiator=False), []
    way = ("64:ff9b::cb00:7114", RELAY4[1])

    async def translated(_address: Any) -> Any:
        return way

    class Socket:
        local, af, default, closed = ("2001:db8:2:1::2", 4000), IP6, None, False

        def send_to(self, data: bytes, address: Any) -> bool:
            sent.append((data, address))
            return True

        def route(self, *_args: Any) -> None: ...
        def unroute(self, *_args: Any) -> None: ...
        def on_close(self, *_args: Any) -> None: ...
        def close(self) -> None: ...

    async def open_towards(_dest: Any) -> Any:
        return Socket()

    monkeypatch.setattr(datagrams, "open_towards", open_towards)
    monkeypatch.setattr(datagrams, "OWN_RELAY_S", 0.0)
    plugin._datagrams._way = translated
    await plugin._datagrams.one_relay(RELAY4)
    assert sent
    assert {address for _, address in sent} == {way}
    assert plugin.budget.sent(way[0]) == len(sent)
    assert plugin.budget.sent(RELAY4[0]) == 0


@pytest.mark.parametrize("ip", ["192.0.2.20", "10.0.0.5", "127.0.0.1"])
async def test_the_server_beside_a_relay_is_asked_where_the_core_allows_it(
    make: Any, monkeypatch: pytest.MonkeyPatch, ip: str
) -> None:
    questions: list[Any] = []

    async def mapped(_where: Any, beside: Any, *_: Any) -> set[str]:
        questions.append(beside)
        return set()

    monkeypatch.setattr(datagrams, "mapped_ips", mapped)
    monkeypatch.setattr(datagrams, "tcp_mapped_ips", mapped)
    plugin = make(IP4, "203.0.113.5", None)
    plugin.manager.refuses = lambda _plugin, ip: None if ip == "192.0.2.20" else "no"
    sock: Any = SimpleNamespace(af=IP4)
    await plugin._datagrams._learn(sock, RELAY4, facts(stun_ip=ip, stun_port=3478))
    assert questions == [(ip, 3478) if ip == "192.0.2.20" else None] * 2  # over UDP, then TCP

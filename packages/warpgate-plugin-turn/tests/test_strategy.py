"""What a peer's words can make an attempt do, without any network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from warpgate import ConMsg, RelayError
from warpgate.events import Counters
from warpgate.net.constants import IP4
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn import datagrams
from warpgate_plugin_turn import strategy as strategy_module
from warpgate_plugin_turn.datagrams import MAX_SOCKETS
from warpgate_plugin_turn.knock import PREFIX, knock
from warpgate_plugin_turn.messages import KNOCK_BYTES, RelayFacts, TurnAnswer, TurnOffer
from warpgate_plugin_turn.policy import MAX_PEER_IPS
from warpgate_plugin_turn.strategy import MAX_PIPES, Turn

SIGNED = ("192.168.2.2", "203.0.113.10")
RELAYED = ("192.0.2.20", 50000)


class Manager:
    """Stands in for the traversal manager."""

    def __init__(self) -> None:
        endpoint = SimpleNamespace(af=IP4, ip=SIGNED[0], ext_ip=SIGNED[1])
        nic = SimpleNamespace(endpoints=[endpoint])
        self.attempt = SimpleNamespace(peer=SimpleNamespace(interfaces=[nic]))
        self.sent: list[Any] = []
        self.refused: set[str] = {"127.0.0.1", "10.0.0.1", "192.168.1.1"}

    def attempt_of(self, _plugin: Any) -> Any:
        return self.attempt

    def refuses(self, _plugin: Any, ip: str) -> str | None:
        return "not on a peer's word" if ip in self.refused else None

    async def send_signal(self, _plugin: Any, msg: ConMsg) -> None:
        self.sent.append(msg)


class Relay:
    """Stands in for an allocation."""

    def __init__(self) -> None:
        self.server = TurnServer("192.0.2.20", 3478, "user", "password")
        self.address = ("192.0.2.20", 3478)
        self.relayed, self.mapped = RELAYED, ("198.51.100.1", 4000)
        self.family = IP4
        self.name, self.failure, self.ended = "192.0.2.20 port 3478", None, False
        self.knock = b""
        self.stranger: Any = None
        self.on_refused: Any = None
        self.permitted: list[str] = []
        self.piped: list[Any] = []
        self.retired = False

    def permit(self, ip: str) -> None:
        self.permitted.append(ip)

    def has(self, peer: Any) -> bool:
        return peer in self.piped

    def pipe(self, peer: Any) -> Any:
        if peer in self.piped:
            raise RelayError("one for each")
        self.piped.append(peer)
        return SimpleNamespace(hello_repeats_s=(), abort=lambda: None)

    def retire(self) -> None:
        self.retired = True


class Result:
    """Stands in for the attempt's future."""

    def __init__(self) -> None:
        self.pipes: list[Any] = []
        self.error: Any = None

    def done(self) -> bool:
        return self.error is not None

    def set_result(self, pipe: Any) -> None:
        if pipe is None:
            self.error = "gave up"
        else:
            self.pipes.append(pipe)

    def set_exception(self, error: Any) -> None:
        assert error is not None
        self.error = error


@pytest_asyncio.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Return a function that makes an attempt; no socket is ever opened."""
    made: list[Turn] = []
    opened: list[Any] = []

    async def open_towards(dest: Any) -> Any:
        opened.append(dest)
        raise OSError("there is no network here")

    monkeypatch.setattr(datagrams, "open_towards", open_towards)

    def build(initiator: bool = False, relay: bool = False) -> Any:
        plugin: Any = Turn(None)
        plugin.manager, plugin.initiator, plugin.af = Manager(), initiator, IP4
        plugin.src_info = {
            "nic": "192.168.1.2",
            "ext": "203.0.113.1",
            "nat": {"type": 0, "delta": 0},
        }
        plugin.dest_info = {"node_id": "peer", "af": IP4}
        plugin.node = SimpleNamespace(stats=Counters())
        plugin._result = Result()
        plugin.opened = opened
        if relay:
            plugin._datagrams.adopt(Relay())
        made.append(plugin)
        return plugin

    yield build
    for plugin in made:
        await plugin.close()


def facts(**fields: Any) -> RelayFacts:
    return RelayFacts(knock=bytes(KNOCK_BYTES), **fields)


async def test_it_permits_public_addresses_and_signed_ones(make: Any) -> None:
    plugin = make(relay=True)
    await plugin._hear(facts(mapped=["198.51.100.77", SIGNED[0], "10.0.0.1", "127.0.0.1", "::1"]))
    permitted = set(plugin._allocation.permitted)
    # The signed public one is let in unasked; the signed private one only when packets come from there.
    assert permitted == {"203.0.113.10", "198.51.100.77", SIGNED[0]}


async def test_loopback_is_permitted_where_the_core_allows_it(make: Any) -> None:
    plugin = make(relay=True)
    plugin.manager.refused.clear()
    await plugin._hear(facts(mapped=["127.0.0.1"]))
    assert "127.0.0.1" in plugin._allocation.permitted


async def test_nobody_gets_many_permissions(make: Any) -> None:
    plugin = make(relay=True)
    for batch in range(20):
        await plugin._hear(facts(mapped=[f"198.51.{batch}.{n}" for n in range(8)]))
    assert len(plugin._policy.mapped) == MAX_PEER_IPS


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.1", "192.168.1.1"])
@pytest.mark.parametrize("relay", [True, False])
async def test_it_does_not_write_where_a_peer_may_not_send_it(
    make: Any, ip: str, relay: bool
) -> None:
    plugin = make(relay=relay)
    await plugin._hear(facts(relay_ip=ip, relay_port=80))
    assert plugin.opened == []
    assert plugin._result.pipes == []
    if relay:
        assert ip not in plugin._allocation.permitted
        assert plugin._allocation.piped == []


async def test_a_relay_of_our_own_server_is_trusted_where_it_stands(make: Any) -> None:
    plugin = make(relay=True)
    plugin._policy.trusted.add("192.168.1.1")
    await plugin._hear(facts(relay_ip="192.168.1.1", relay_port=50001))
    assert plugin.opened == [("192.168.1.1", 50001)]


async def test_a_peer_that_names_relay_after_relay(make: Any) -> None:
    plugin = make()
    for number in range(20):
        await plugin._hear(facts(relay_ip="198.51.100.9", relay_port=50000 + number))
    assert len(plugin.opened) == MAX_SOCKETS


async def test_only_the_secret_opens_a_way(make: Any) -> None:
    plugin = make(relay=True)
    relay = plugin._allocation
    for data in (b"", PREFIX, knock(bytes(KNOCK_BYTES)), b"\x80" * 100, relay.knock + b"x"):
        relay.stranger(data, ("203.0.113.10", 4000))
    assert relay.piped == []
    assert plugin.node.stats["turn_stranger"] == 5
    relay.stranger(relay.knock, ("203.0.113.10", 4001))
    relay.stranger(relay.knock, ("203.0.113.10", 4001))
    assert relay.piped == [("203.0.113.10", 4001)]
    assert len(plugin._result.pipes) == 1


async def test_knocks_from_everywhere_open_few_ways(make: Any) -> None:
    plugin = make(relay=True)
    for port in range(1, 50):
        plugin._allocation.stranger(plugin._allocation.knock, ("203.0.113.10", port))
    assert len(plugin._result.pipes) == MAX_PIPES


async def test_two_attempts_have_different_secrets(make: Any) -> None:
    one, other = make(relay=True), make(relay=True)
    assert one._allocation.knock != other._allocation.knock
    assert len(one._secret) == KNOCK_BYTES


@pytest.mark.parametrize("message", [ConMsg(), TurnAnswer(payload={})])
async def test_a_responder_is_started_by_an_offer_only(make: Any, message: ConMsg) -> None:
    plugin = make()
    await plugin.run(message)
    assert plugin._result.error == "gave up"
    assert plugin.manager.sent == []


async def test_an_initiator_ignores_offers(make: Any) -> None:
    plugin = make(initiator=True, relay=True)
    await plugin.run(TurnOffer(payload={"mapped": ["198.51.100.77"]}))
    assert "198.51.100.77" not in plugin._allocation.permitted


async def test_neither_side_has_a_relay(make: Any) -> None:
    plugin = make(initiator=True)
    plugin._cause = RelayError("no TURN server is configured here")
    await plugin._hear(facts(cause="none\x1b[31m here\neither"))
    text = str(plugin._result.error)
    assert "no TURN server is configured here" in text
    assert "the peer says: none[31m here either" in text
    assert "\x1b" not in text


async def test_all_permissions_refused_is_an_end(make: Any) -> None:
    plugin = make(initiator=True, relay=True)
    await plugin._hear(facts(mapped=["198.51.100.77"]))
    assert plugin._result.error is None
    plugin._allocation.on_refused("198.51.100.77", RelayError("forbidden"))
    assert str(plugin._result.error) == "forbidden"


async def test_out_of_time_it_says_how_far_it_came(make: Any) -> None:
    plugin = make(initiator=True, relay=True)
    plugin._out_of_time()
    assert "a relay on TURN server 192.0.2.20 port 3478 over udp" in str(plugin._result.error)
    assert "it has not answered" in str(plugin._result.error)


async def test_facts_are_told_once(make: Any) -> None:
    plugin = make(initiator=True, relay=True)
    await plugin._tell()
    await plugin._tell()
    (sent,) = plugin.manager.sent
    assert isinstance(sent, TurnOffer)
    told = sent.payload
    assert told.relay == RELAYED
    assert told.mapped == ["198.51.100.1"]
    assert len(told.knock) == KNOCK_BYTES
    assert "password" not in repr(told)


async def test_close_lets_go(make: Any) -> None:
    plugin = make(relay=True)
    relay = plugin._allocation
    await plugin.close()
    assert relay.retired
    assert relay.stranger is None


@pytest.mark.parametrize(
    "fields",
    [
        {"relay_ip": "192.0.2.1"},
        {"relay_ip": "turn.example.org", "relay_port": 1},
        {"relay_ip": "fe80::1%eth0", "relay_port": 1},
        {"relay_port": 4},
    ],
)
def test_what_is_no_relay(fields: dict[str, Any]) -> None:
    assert RelayFacts(**fields).relay is None


@pytest.mark.parametrize(
    "fields",
    [
        {"relay_port": 65536},
        {"relay_ip": "1" * 46},
        {"mapped": ["192.0.2.1"] * 9},
        {"knock": bytes(17)},
        {"cause": "x" * 301},
    ],
)
def test_caps(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RelayFacts(**fields)


# What the call asked for.


@pytest.mark.parametrize("wanted", ["udp", "tcp", None])
async def test_the_peer_is_told_what_the_call_asks_for(make: Any, wanted: str | None) -> None:
    plugin = make(initiator=True)
    plugin.wanted_transport = wanted
    await plugin._tell(coming=True)
    (sent,) = plugin.manager.sent
    assert sent.payload.wants == (wanted or "")
    peer = make()
    await peer.run(sent)
    assert peer.wanted_transport == wanted


async def test_an_initiator_knows_for_itself_what_it_wants(make: Any) -> None:
    plugin = make(initiator=True)
    plugin.wanted_transport = "udp"
    await plugin.run(TurnAnswer(payload={"knock": bytes(KNOCK_BYTES), "wants": "tcp"}))
    assert plugin.wanted_transport == "udp"


@pytest.mark.parametrize(("wanted", "dials"), [("udp", 0), (None, 1), ("tcp", 1)])
async def test_who_wants_datagrams_dials_no_stream(make: Any, wanted: str, dials: int) -> None:
    plugin = make(initiator=True)
    plugin.wanted_transport = wanted
    dialled = []

    async def dial(relay: Any, _lets: Any) -> None:
        dialled.append(relay)

    plugin._streams.dial = dial
    stream = facts(stream_ip="198.51.100.9", stream_port=50001, lets=["203.0.113.1"])
    await plugin._hear(stream)
    await asyncio.sleep(0)
    assert len(dialled) == dials


async def test_who_wants_datagrams_offers_no_stream(make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(strategy_module, "STREAM_S", 0.0)
    offered = []
    for wanted in ("udp", None):
        plugin = make(initiator=True, relay=True)
        plugin.wanted_transport = wanted

        async def offer(wanted: Any = wanted) -> None:
            offered.append(wanted)

        plugin._streams.offer = offer
        await plugin._hear(facts(no_udp=True, mapped=["203.0.113.10"]))
        await asyncio.sleep(0.01)
    assert offered == [None]


async def test_no_streams_on_either_side_is_an_end(make: Any) -> None:
    plugin = make(initiator=True)
    plugin.wanted_transport = "tcp"
    plugin._cause = RelayError("no TURN server is configured over TCP or TLS")
    await plugin._hear(facts(coming=True))
    assert plugin._result.error is None
    # Its relay for datagrams is of no use.
    await plugin._hear(facts(relay_ip="198.51.100.9", relay_port=50001, cause="none here either"))
    assert "here: RelayError: no TURN server is configured over TCP" in str(plugin._result.error)
    assert "the peer says: none here either" in str(plugin._result.error)


async def test_no_way_to_the_only_relay_is_an_end(make: Any) -> None:
    here = make(initiator=True)
    here.wanted_transport = "tcp"
    here._cause = RelayError("no TURN server is configured here")
    here._peer = facts(stream_ip="198.51.100.9", stream_port=50001)
    here._streams.unreachable = RelayError("the other's relay can't be reached: no route")
    here._check_hopeless()
    text = str(here._result.error)
    assert "no TURN server is configured here" in text
    assert "the other's relay can't be reached: no route" in text
    there = make(initiator=True)
    there.wanted_transport = "tcp"
    there._streams.allocation = Relay()
    await there._hear(facts(unreachable=True))
    assert there._result.error is None  # it may still get a relay of its own
    await there._hear(facts(unreachable=True, cause="no TURN server is configured here"))
    text = str(there._result.error)
    assert "the relay for streams here, 192.0.2.20, can't be reached by the peer" in text
    assert "no TURN server is configured here" in text


@pytest.mark.parametrize("wanted", ["udp", None])
async def test_where_only_a_stream_could_do(make: Any, monkeypatch: Any, wanted: Any) -> None:
    monkeypatch.setattr(strategy_module, "PAUSES_S", (0.01,))
    here = make(initiator=True)  # no relay, and UDP does not get out
    here.wanted_transport = wanted
    here._cause = RelayError("no TURN server is configured here")
    here._peer = facts(relay_ip="198.51.100.9", relay_port=50001)
    here._datagrams.blocked = True
    here._check_hopeless()
    there = make(initiator=True, relay=True)  # the same of the peer's
    there.wanted_transport = wanted
    await there._hear(facts(no_udp=True, cause="no TURN server is configured here"))
    assert (here._result.error, there._result.error) == (None, None)  # knocks are under way
    await asyncio.sleep(0.1)
    for plugin in (here, there):
        if wanted is None:
            assert plugin._result.error is None
        else:
            assert "only a stream could do" in str(plugin._result.error)
            assert "no TURN server is configured here" in str(plugin._result.error)


async def test_a_relay_of_the_peers_that_comes_late_ends_the_doubt(
    make: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(strategy_module, "PAUSES_S", (0.01,))
    plugin = make(initiator=True, relay=True)
    plugin.wanted_transport = "udp"
    await plugin._hear(facts(no_udp=True, cause="no server has answered"))
    plugin._peer = facts(no_udp=True, relay_ip="198.51.100.9", relay_port=50001)
    await asyncio.sleep(0.1)
    assert plugin._result.error is None

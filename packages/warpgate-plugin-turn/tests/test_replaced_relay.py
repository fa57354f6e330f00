"""What an attempt does when its own relay turns out to be dead, without any network."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from warpgate.errors import AllocationExpired, RelayError
from warpgate.events import Counters
from warpgate.net.constants import IP4
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.messages import KNOCK_BYTES, RelayFacts
from warpgate_plugin_turn.strategy import MAX_RELAYS, Turn

THEIRS = ("198.51.100.9", 50001)
DEAD = AllocationExpired("TURN server x has no such allocation any more; was it restarted?")


class Relay:
    """Stands in for an allocation."""

    def __init__(self, port: int) -> None:
        self.server = TurnServer("192.0.2.20", 3478, "user", "password", "tcp")
        self.address, self.relayed = ("192.0.2.20", 3478), ("192.0.2.20", port)
        self.mapped, self.knock, self.family = ("198.51.100.1", 4000), b"", IP4
        self.name, self.failure, self.ended = "192.0.2.20 port 3478", None, False
        self.stranger: Any = None
        self.on_refused: Any = None
        self.on_lost: list[Any] = []
        self.notes = ("WrongCredentials: another server refused",)
        self.permitted: list[str] = []
        self.piped: list[Any] = []
        self.retired = False

    def permit(self, ip: str) -> None:
        self.permitted.append(ip)

    def has(self, peer: Any) -> bool:
        return peer in self.piped

    def pipe(self, peer: Any) -> Any:
        self.piped.append(peer)
        return SimpleNamespace(hello_repeats_s=(), abort=lambda: None)

    def retire(self) -> None:
        self.retired = True

    def die(self) -> None:
        for callback in self.on_lost:
            callback(DEAD)


class Result:
    """Stands in for the attempt's future: a pipe that is handed over has still to be proven."""

    ended = False

    def done(self) -> bool:
        return self.ended

    def set_result(self, _pipe: Any) -> None:
        pass

    def set_exception(self, _error: Any) -> None:
        self.ended = True


class World:
    """An attempt, the relays that its pool gives, and what it tells the peer."""

    def __init__(self) -> None:
        self.relays: list[Relay] = []
        self.told: list[RelayFacts] = []
        self.telling = asyncio.Event()
        self.plugin: Any = Turn(None)
        plugin = self.plugin
        plugin._result = Result()
        plugin._factory = SimpleNamespace(
            pool=SimpleNamespace(take=self.take),
            stun_beside=lambda relay: relay.address,
            stun_servers=(),
            udp_silent=False,
        )
        peer = SimpleNamespace(interfaces=[])
        plugin.manager = SimpleNamespace(
            attempt_of=lambda _plugin: SimpleNamespace(peer=peer),
            refuses=lambda _plugin, _ip: None,
            send_signal=self.send,
        )
        plugin.af, plugin.initiator = IP4, True
        plugin.src_info = {"nat": {"type": 0, "delta": 0}}
        plugin.dest_info = {"node_id": "peer", "af": IP4}
        plugin.node = SimpleNamespace(stats=Counters())

    async def take(self, _af: int, **_options: Any) -> Any:
        self.relays.append(Relay(50100 + len(self.relays)))
        return self.relays[-1]

    async def send(self, _plugin: Any, msg: Any) -> None:
        self.told.append(msg.payload)
        self.telling.set()

    async def relay(self, number: int) -> Relay:
        """Return the relay of a number, once the peer has been told of it."""
        async with asyncio.timeout(5):
            while not self.told or self.told[-1].relay != ("192.0.2.20", 50100 + number):
                self.telling.clear()
                await self.telling.wait()
        return self.relays[-1]


async def test_another_one_is_taken_and_told() -> None:
    world = World()
    world.plugin._allocate()
    first = await world.relay(0)
    first.die()
    assert first.retired
    assert (first.stranger, first.on_refused) == (None, None)
    second = await world.relay(1)
    assert second is not first
    assert [facts.relay for facts in world.told] == [first.relayed, second.relayed]
    assert len({facts.knock for facts in world.told}) == 1  # the old knocks open the new way
    assert second.knock == first.knock
    assert world.plugin.notes == [
        "WrongCredentials: another server refused",
        f"{type(DEAD).__name__}: {DEAD}",
    ]
    await world.plugin.close()
    assert second.retired


async def test_the_peers_relay_is_written_to_over_the_new_one_too() -> None:
    world = World()
    world.plugin._peer = RelayFacts(
        relay_ip=THEIRS[0], relay_port=THEIRS[1], knock=bytes(KNOCK_BYTES)
    )
    world.plugin._datagrams.heard(world.plugin._peer)
    world.plugin._allocate()
    first = await world.relay(0)
    assert first.piped == [THEIRS]
    first.die()
    second = await world.relay(1)
    assert second.piped == [THEIRS]
    assert THEIRS[0] in second.permitted
    await world.plugin.close()


async def test_not_for_ever() -> None:
    world = World()
    world.plugin._allocate()
    for number in range(MAX_RELAYS):
        (await world.relay(number)).die()
    await asyncio.sleep(0)
    assert len(world.relays) == MAX_RELAYS
    await world.plugin.close()


async def test_not_when_the_attempt_has_ended() -> None:
    world = World()
    world.plugin._allocate()
    first = await world.relay(0)
    world.plugin.result.ended = True
    first.die()
    await asyncio.sleep(0)
    assert world.relays == [first]
    assert len(world.plugin.notes) == 1
    await world.plugin.close()


async def test_when_there_is_no_other_the_peer_is_told_why() -> None:
    world = World()
    world.plugin._allocate()
    first = await world.relay(0)

    async def none(_af: int, **_options: Any) -> Any:
        raise RelayError("no room")

    world.plugin._factory.pool.take = none
    world.telling.clear()
    first.die()
    async with asyncio.timeout(5):
        await world.telling.wait()
    assert world.told[-1].relay is None
    assert world.told[-1].cause == "no room"
    assert world.plugin.notes[-1] == "RelayError: no room"
    await world.plugin.close()

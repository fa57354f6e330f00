"""A search for a relay over servers and addresses that are slow, silent, or refuse; without a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from warpgate.errors import RelayError
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn import search as search_module
from warpgate_plugin_turn.errors import (
    ConnectionLost,
    NotSupported,
    Redirected,
    ServerSilent,
    ServerUnreachable,
    WrongCredentials,
)
from warpgate_plugin_turn.search import Search
from warpgate_plugin_turn.servers import ServerList

GUARD_S = 10.0
STAGGER_S = 0.02
Answer = Callable[[], None]
Script = Callable[[Answer], Awaitable[None]]


class Relay:
    """Stands in for an allocation."""

    def __init__(self, place: tuple[str, int]) -> None:
        self.place = place
        self.rtt_s = 0.01
        self.on_lost: list[Any] = []
        self.notes: tuple[str, ...] = ()
        self.closed = False

    def close(self) -> None:
        self.closed = True


async def good(answer: Answer) -> None:
    answer()


async def silent(_answer: Answer) -> None:
    await asyncio.Event().wait()


async def answers_then_silent(answer: Answer) -> None:
    answer()
    await asyncio.Event().wait()


async def unreachable(_answer: Answer) -> None:
    raise ServerUnreachable("it is not there")


async def refuses(answer: Answer) -> None:
    answer()
    raise WrongCredentials("it refused")


class World:
    """Servers that follow their scripts; ``names`` are resolved."""

    def __init__(self, scripts: dict[str, Script], names: dict[str, list[str]]) -> None:
        self.scripts = scripts
        self.asked: list[str] = []
        self.dropped: list[asyncio.Task[Any]] = []
        self.failed: list[tuple[str, RelayError]] = []
        named = {ip for ips in names.values() for ip in ips}
        hosts = [*names, *(ip for ip in scripts if ip not in named)]
        self.servers = ServerList([TurnServer(host, 3478, "user", "password") for host in hosts])
        self.search: Any = None
        self.states = {state.server.host: state for state in self.servers.states}

    async def open(self, _server: TurnServer, address: Any, on_answer: Answer) -> Any:
        self.asked.append(address[0])
        await self.scripts[address[0]](on_answer)
        return Relay(address)

    def drop(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self.dropped.append(task)

    def lost(self, state: Any, error: RelayError) -> None:
        self.failed.append((state.server.host, error))

    async def run(self, stagger_s: float = STAGGER_S) -> Any:
        self.search = search = Search(
            self.servers.states, self.open, self.drop, self.lost,
            stagger_s=stagger_s, unix_time=lambda: 0.0,
        )  # fmt: skip
        try:
            async with asyncio.timeout(GUARD_S):
                return await search.run()
        finally:
            if self.dropped:
                await asyncio.wait(self.dropped)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Return a function that makes servers: scripts by address, and names with their addresses."""

    def make(scripts: dict[str, Script], **names: list[str]) -> World:
        async def resolve(server: TurnServer) -> list[Any]:
            found = names.get(server.host, [server.host])
            await asyncio.sleep(0)
            return [(ip, server.port) for ip in found]

        monkeypatch.setattr(search_module, "_resolve", resolve)
        return World(scripts, names)

    return make


async def test_a_silent_address_of_a_name_costs_a_head_start_only(world: Any) -> None:
    made = world({"::1": silent, "192.0.2.1": good}, both=["::1", "192.0.2.1"])
    relay = await made.run()
    assert relay.place[0] == "192.0.2.1"
    assert made.asked == ["::1", "192.0.2.1"]
    assert relay.notes == ()  # the server has worked
    assert len(made.dropped) == 1


async def test_addresses_come_before_the_next_server(world: Any) -> None:
    made = world({"::1": silent, "192.0.2.1": silent, "192.0.2.2": good}, both=["::1", "192.0.2.1"])
    assert (await made.run()).place[0] == "192.0.2.2"
    assert made.asked == ["::1", "192.0.2.1", "192.0.2.2"]


async def test_an_address_that_refuses_speaks_for_its_server(world: Any) -> None:
    made = world({"::1": refuses, "192.0.2.1": good, "192.0.2.2": good}, both=["::1", "192.0.2.1"])
    assert (await made.run()).place[0] == "192.0.2.2"
    assert made.asked == ["::1", "192.0.2.2"]
    assert [host for host, _ in made.failed] == ["both"]


@pytest.mark.parametrize("error", [ServerUnreachable("not there"), ConnectionLost("hung up")])
async def test_the_next_address_is_asked_at_once_after_a_failure(
    world: Any, error: RelayError
) -> None:
    async def fails(_answer: Answer) -> None:
        raise error

    made = world({"::1": fails, "192.0.2.1": good}, both=["::1", "192.0.2.1"])
    assert (await made.run(60.0)).place[0] == "192.0.2.1"
    assert made.failed == []


async def test_a_name_that_is_slow_to_resolve_holds_nobody_up(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world({"192.0.2.2": good}, slow=["192.0.2.1"])
    plain = search_module._resolve

    async def resolve(server: TurnServer) -> Any:
        if server.host == "slow":
            await asyncio.Event().wait()
        return await plain(server)

    monkeypatch.setattr(search_module, "_resolve", resolve)
    relay = await made.run()
    assert relay.place[0] == "192.0.2.2"
    assert "TURN server slow port 3478 over UDP had not answered" in relay.notes[0]


@pytest.mark.parametrize("speaks", [True, False])
async def test_the_first_wins_when_it_is_first_after_all(world: Any, speaks: bool) -> None:
    """Nothing is said against the second, which has not had the time to answer."""
    second_started = asyncio.Event()

    async def late(answer: Answer) -> None:
        await second_started.wait()
        answer()

    async def second(answer: Answer) -> None:
        second_started.set()
        if speaks:
            answer()
        await asyncio.Event().wait()

    made = world({"192.0.2.1": late, "192.0.2.2": second})
    relay = await made.run()
    assert relay.place[0] == "192.0.2.1"
    assert relay.notes == ()
    assert len(made.dropped) == 1


async def test_one_that_falls_silent_after_a_word_does_not_hold_for_long(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "HOLD_S", 0.1)
    made = world({"192.0.2.1": answers_then_silent, "192.0.2.2": good})
    assert (await made.run()).place[0] == "192.0.2.2"


async def test_who_is_sent_on_to_a_silent_server_is_not_waited_for(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "HOLD_S", 2 * GUARD_S)

    async def sends_on(answer: Answer) -> None:
        answer()
        raise Redirected("elsewhere", ("192.0.2.77", 1))

    made = world({"192.0.2.1": sends_on, "192.0.2.2": good})
    made.scripts["192.0.2.77"] = silent
    assert (await made.run()).place[0] == "192.0.2.2"
    assert made.asked == ["192.0.2.1", "192.0.2.77", "192.0.2.2"]


async def test_a_failure_brings_the_next_though_an_earlier_one_is_silent(world: Any) -> None:
    async def silent_first(answer: Answer) -> None:
        made.search._stagger_s = 2 * GUARD_S  # nobody waits for the third's turn
        await silent(answer)

    made = world({"192.0.2.1": silent_first, "192.0.2.2": refuses, "192.0.2.3": good})
    relay = await made.run()
    assert relay.place[0] == "192.0.2.3"
    first, second = relay.notes
    assert first == "WrongCredentials: it refused"
    assert second.startswith("ServerUnreachable: TURN server 192.0.2.1 port 3478 over UDP had not")


async def test_of_two_that_are_ready_at_once_one_is_dropped(world: Any) -> None:
    gate = asyncio.Event()

    async def first(_answer: Answer) -> None:
        await gate.wait()

    async def second(_answer: Answer) -> None:
        gate.set()

    made = world({"192.0.2.1": first, "192.0.2.2": second})
    assert await made.run() is not None
    (dropped,) = made.dropped
    assert dropped.done()


async def test_all_failed_and_each_says_how(world: Any) -> None:
    made = world({"192.0.2.1": unreachable, "192.0.2.2": refuses})
    with pytest.raises(RelayError) as caught:
        await made.run()
    assert "ServerUnreachable: it is not there" in str(caught.value)
    assert "WrongCredentials: it refused" in str(caught.value)
    assert [host for host, _ in made.failed] == ["192.0.2.1", "192.0.2.2"]


async def test_an_answer_says_more_than_silence(world: Any) -> None:
    async def hangs_up(_answer: Answer) -> None:
        raise ConnectionLost("hung up")

    made = world({"::1": unreachable, "192.0.2.1": hangs_up}, both=["::1", "192.0.2.1"])
    with pytest.raises(ConnectionLost):
        await made.run()


async def test_what_is_not_supported_makes_no_bad_server(world: Any) -> None:
    async def no_ipv6(answer: Answer) -> None:
        answer()
        raise NotSupported("no relay addresses of this family")

    made = world({"192.0.2.1": no_ipv6, "192.0.2.2": good})
    relay = await made.run()
    assert made.failed == []
    assert relay.notes == ("NotSupported: no relay addresses of this family",)


async def test_a_server_that_dies_in_use_has_failed(world: Any) -> None:
    made = world({"192.0.2.1": good})
    relay = await made.run()
    assert made.states["192.0.2.1"].rtt_s == 0.01
    error = ServerSilent("it stopped answering")
    for callback in relay.on_lost:
        callback(error)
    assert made.failed == [("192.0.2.1", error)]


async def test_cancelled_it_drops_what_is_under_way(world: Any) -> None:
    made = world({"192.0.2.1": silent, "192.0.2.2": answers_then_silent})
    task = asyncio.create_task(made.run())
    while len(made.asked) < 2:  # noqa: ASYNC110  # the script has no event
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert len(made.dropped) == 2

"""Relays that are kept ready: when, which, and what replaces them; without a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from warpgate import IP4, IP6, NODE_TEST_CONF, Node, RelayError, auto_connect
from warpgate.nat.report import NetReport, PathReport
from warpgate.testing import LeakCheck, Stage
from warpgate_plugin_turn import pool as pool_module
from warpgate_plugin_turn import standby as standby_module
from warpgate_plugin_turn import warm as warm_module
from warpgate_plugin_turn.errors import QuotaReached
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.standby import Standby
from warpgate_plugin_turn.strategy import Turn
from warpgate_plugin_turn.warm import IDLE_PROBE_S, Warm

GUARD_S = 10.0
RETRY_S = 0.02


class Stub:
    """Stands in for an allocation."""

    def __init__(self, af: int) -> None:
        self.af = af
        self.ended = False
        self.on_end: Any = None
        self.probes: list[float | None] = []

    def probe_every(self, seconds: float | None) -> None:
        self.probes.append(seconds)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            if self.on_end is not None:
                self.on_end(self)


class Servers:
    """Gives allocations; notes when, and how it was asked."""

    def __init__(self) -> None:
        self.given: list[Stub] = []
        self.asked: list[tuple[int, bool]] = []
        self.times: list[float] = []
        self.refusing = False
        self.loses_at_once = False

    async def allocate(self, af: int, *, udp_blocked: bool = False) -> Any:
        self.asked.append((af, udp_blocked))
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        if self.refusing:
            raise RelayError("no room")
        stub = Stub(af)
        self.given.append(stub)
        if self.loses_at_once:
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, stub.close)
        return stub

    @property
    def open(self) -> list[Stub]:
        return [stub for stub in self.given if not stub.ended]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110  # the stubs have no event
            await asyncio.sleep(0.001)


@pytest.fixture
async def warm() -> AsyncIterator[tuple[Warm, Servers]]:
    servers = Servers()
    made = Warm(servers.allocate, 30.0, pool_module.drop)
    made.retry_s = RETRY_S
    async with LeakCheck():
        yield made, servers
        await made.close()
        for stub in servers.open:
            stub.close()


Both = tuple[Warm, Servers]


async def test_one_of_each_family_is_kept_and_a_taken_one_replaced(warm: Both) -> None:
    keeper, servers = warm
    keeper.hold({IP4, IP6})
    keeper.hold({IP4, IP6})
    await until(lambda: keeper.has(IP4) and keeper.has(IP6))
    assert sorted(servers.asked) == [(IP4, True), (IP6, True)]
    taken: Any = await keeper.take(IP4)
    assert taken in servers.given
    await until(lambda: keeper.has(IP4))
    assert len(servers.given) == 3
    other: Any = await keeper.take(IP4)
    assert other is not taken
    assert not taken.ended


async def test_an_idle_one_is_probed_seldom_and_a_used_one_as_usual(warm: Both) -> None:
    keeper, _ = warm
    keeper.hold({IP4})
    await until(lambda: keeper.has(IP4))
    taken: Any = await keeper.take(IP4)
    assert taken.probes == [IDLE_PROBE_S, None]


async def test_one_that_was_prepared_for_a_call_is_kept_from_now_on(warm: Both) -> None:
    keeper, servers = warm
    keeper.keep_s = 0.3
    keeper.prepare(IP4)
    await until(lambda: keeper.has(IP4))
    keeper.hold({IP4})
    await asyncio.sleep(0.4)
    assert [stub.probes for stub in servers.open] == [[IDLE_PROBE_S]]
    assert len(servers.given) == 1


async def test_a_lost_one_is_replaced_and_the_pauses_grow(warm: Both) -> None:
    keeper, servers = warm
    servers.loses_at_once = True
    keeper.hold({IP4})
    await until(lambda: len(servers.given) == 4)
    pauses = [b - a for a, b in zip(servers.times, servers.times[1:], strict=False)]
    for number, pause_s in enumerate(pauses):
        assert pause_s >= RETRY_S * 2**number
    servers.loses_at_once = False
    await until(lambda: keeper.has(IP4))


async def test_one_that_could_not_be_had_is_asked_for_again(warm: Both) -> None:
    keeper, servers = warm
    servers.refusing = True
    keeper.hold({IP4})
    await until(lambda: len(servers.asked) == 2)
    servers.refusing = False
    await until(lambda: keeper.has(IP4))


async def test_a_call_meanwhile_does_not_end_the_trying(warm: Both) -> None:
    keeper, servers = warm
    servers.refusing = True
    keeper.hold({IP4})
    await until(lambda: IP4 not in keeper._tasks)
    assert await keeper.take(IP4) is None
    servers.refusing = False
    await until(lambda: keeper.has(IP4))


async def test_what_is_not_needed_any_more_is_given_back(warm: Both) -> None:
    keeper, servers = warm
    keeper.hold({IP4, IP6})
    await until(lambda: keeper.has(IP4) and keeper.has(IP6))
    keeper.hold({IP6})
    await until(lambda: len(servers.open) == 1)
    assert [stub.af for stub in servers.open] == [IP6]
    keeper.hold(())
    await until(lambda: not servers.open)
    assert len(servers.given) == 2


async def test_another_network_needs_others(warm: Both) -> None:
    keeper, servers = warm
    keeper.hold({IP4})
    await until(lambda: keeper.has(IP4))
    keeper.hold({IP4}, anew=True)
    await until(lambda: len(servers.given) == 2 and keeper.has(IP4))
    assert servers.given[0].ended


async def test_after_a_login_all_are_got_anew(warm: Both) -> None:
    keeper, servers = warm
    keeper.hold({IP4})
    keeper.prepare(IP6)
    await until(lambda: keeper.has(IP4) and keeper.has(IP6))
    before = list(servers.given)
    keeper.renew()
    await until(lambda: keeper.has(IP4))
    assert all(stub.ended for stub in before)
    assert [stub.af for stub in servers.open] == [IP4]


async def test_a_call_that_ends_while_it_waits_gives_back_what_comes(warm: Both) -> None:
    made, servers = warm
    made.prepare(IP4)
    taking = asyncio.create_task(made.take(IP4))
    await asyncio.sleep(0)  # the server has been asked by now
    taking.cancel()
    await asyncio.wait([taking])
    await asyncio.sleep(0)
    assert taking.cancelled()
    assert servers.open == []


async def test_a_dead_one_is_not_handed_out(warm: Both) -> None:
    made, servers = warm
    made.prepare(IP4)
    await until(lambda: made.has(IP4))
    taking = asyncio.create_task(made.take(IP4))
    servers.given[0].ended = True
    assert await taking is None


async def test_a_search_from_before_a_login_does_not_count(warm: Both) -> None:
    keeper, servers = warm
    servers.refusing = True
    keeper.prepare(IP4)
    taking = asyncio.ensure_future(keeper.take(IP4))
    await asyncio.sleep(0)
    keeper.renew()
    assert await taking is None  # the pool asks anew
    keeper.prepare(IP4)
    with pytest.raises(RelayError, match="no room"):
        await keeper.take(IP4)


async def test_nothing_is_replaced_when_the_pool_closes(warm: Both) -> None:
    keeper, servers = warm
    keeper.hold({IP4})
    await until(lambda: keeper.has(IP4))
    await keeper.close()
    servers.given[0].close()
    await asyncio.sleep(RETRY_S * 2)
    assert len(servers.given) == 1


# When.


class Network:
    """A node and its network."""

    def __init__(self) -> None:
        self.network = self
        self.report: NetReport | None = None
        self.callbacks: list[Callable[[], None]] = []
        self.pending = True
        self.age_s: float | None = None
        self.place = self
        self.families = [IP4]
        self.nics = [SimpleNamespace(has_default=lambda af: af == IP4)]

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def supported(self) -> list[int]:
        return self.families

    def is_now(self, *paths: PathReport) -> None:
        self.report = NetReport(paths)
        for callback in self.callbacks:
            callback()


def path(udp: bool | None, tcp: bool | None, **more: Any) -> PathReport:
    return PathReport(
        **{"interface": "eth0", "af": IP4, "local_ip": "10.0.0.1", **more}, udp=udp, tcp=tcp
    )


WEB = path(False, False)


@pytest.fixture
async def followed(warm: Both) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that makes what follows a network, by the setting."""
    keeper, _ = warm
    made: list[Standby] = []

    def make(wanted: bool | None = None) -> tuple[Network, Any]:
        network: Any = Network()
        pool: Any = SimpleNamespace(servers=ServerList([]), warm=keeper, prepare=keeper.prepare)
        made.append(Standby(network, pool, wanted))
        return network, pool

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "paths",
    [
        [path(True, True)],
        [path(False, True)],
        [path(None, None)],
        [WEB, path(True, True, interface="eth1")],
        [WEB, path(False, True, af=IP6, local_ip="fd00::1")],
        [],
    ],
)
async def test_open_networks_need_none(
    followed: Callable[..., Any], warm: Both, paths: list[PathReport]
) -> None:
    network, pool = followed()
    network.is_now(*paths)
    assert not warm[0].held
    assert not pool.servers.https_only


async def test_a_network_that_lets_out_the_web_alone_needs_one(
    followed: Callable[..., Any], warm: Both
) -> None:
    network, pool = followed()
    assert not warm[0].held
    network.is_now(WEB)
    assert warm[0].held == {IP4}
    assert pool.servers.https_only
    network.is_now(path(True, True))  # a better one
    assert not warm[0].held
    assert not pool.servers.https_only


async def test_a_new_node_that_hears_nothing_prepares_one_before_its_survey_is_sure(
    followed: Callable[..., Any], warm: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, servers = warm
    monkeypatch.setattr(standby_module, "SILENCE_S", 0.01)
    network, _ = followed()
    network.families = [IP6, IP4]
    await until(lambda: keeper.has(IP4))
    assert servers.asked == [(IP4, True)]  # IPv6 leads nowhere there
    assert not keeper.held
    network.is_now(WEB)
    assert keeper.held == {IP4}
    assert keeper.has(IP4)
    assert len(servers.given) == 1  # it is the one that is kept


async def test_it_is_given_back_where_the_survey_finds_a_way_unless_a_call_needs_it(
    followed: Callable[..., Any], warm: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, servers = warm
    monkeypatch.setattr(standby_module, "SILENCE_S", 0.01)
    first, _ = followed()
    await until(lambda: keeper.has(IP4))
    first.is_now(path(False, True))
    await until(lambda: not servers.open)
    second, _ = followed()
    await until(lambda: keeper.has(IP4))
    keeper.prepare(IP4)  # a call has begun
    second.is_now(path(False, True))
    assert keeper.has(IP4)
    assert len(servers.open) == 1


async def test_a_guess_is_no_wish_of_a_call(
    followed: Callable[..., Any], warm: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, _ = warm
    monkeypatch.setattr(standby_module, "SILENCE_S", 0.01)
    network, _ = followed()
    await until(lambda: keeper.has(IP4))
    network.is_now(path(False, False, af=IP6, local_ip="fd00::1"))
    assert keeper.held == {IP6}
    assert not keeper.has(IP4)


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [(None, {"age_s": 0.1}), (None, {"pending": False}), (False, {})],
    ids=["a server has answered", "the survey is over", "switched off"],
)
async def test_otherwise_none_is_prepared_early(
    followed: Callable[..., Any],
    warm: Both,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool | None,
    facts: dict[str, Any],
) -> None:
    monkeypatch.setattr(standby_module, "SILENCE_S", 0.0)
    network, _ = followed(wanted)
    vars(network).update(facts)
    await asyncio.sleep(0.01)
    assert warm[1].asked == []


async def test_the_peers_family_is_needed_once_a_call_has_asked_for_it(
    followed: Callable[..., Any], warm: Both
) -> None:
    keeper, servers = warm
    network, _ = followed()
    network.is_now(WEB)
    assert await keeper.take(IP6)
    assert keeper.held == {IP4, IP6}
    await until(lambda: keeper.has(IP6))
    network.is_now(path(False, False, local_ip="10.9.9.9"))  # another one of the kind
    assert keeper.held == {IP4}
    await until(lambda: keeper.has(IP4) and [stub.af for stub in servers.open].count(IP4) == 1)


async def test_the_setting_decides(followed: Callable[..., Any], warm: Both) -> None:
    network, pool = followed(False)
    network.is_now(WEB)
    assert not warm[0].held
    assert pool.servers.https_only  # the order is another matter
    followed(True)
    assert warm[0].held == {IP4}


async def test_the_setting_is_a_switch() -> None:
    with Stage(memory=True) as stage:
        stage.install(Turn)
        conf = {**NODE_TEST_CONF, "plugin_conf": {"turn": {"standby": "yes"}}}
        async with Node(ip="127.0.0.1", conf=conf) as node:
            assert "expected a bool" in str(node.traversal.rejected)


# With a real server.


def pool_of(node: Any) -> Any:
    return node.traversal.plugin_loaders["turn"].factory.pool


@pytest.mark.coturn
async def test_it_is_renewed_while_nobody_needs_it(coturn: Any, pair: Any) -> None:
    server = coturn("max-allocate-lifetime=2", "stale-nonce=2")
    alice, bob = await pair([server.url()], [], standby=True)
    pool = pool_of(alice)
    await until(lambda: pool.is_warm(IP4))
    (allocation,) = pool._open
    loop = asyncio.get_running_loop()
    renewals: list[float] = []
    refreshed = allocation._machine._on_refresh

    def renewed(result: Any, now: float) -> None:
        renewals.append(loop.time())
        refreshed(result, now)

    allocation._machine._on_refresh = renewed
    await until(lambda: len(renewals) >= 4)  # of which each falls due before two seconds are over
    assert pool._open == {allocation}
    async with asyncio.timeout(GUARD_S):
        pipe, _ = await auto_connect(alice, bob.address(), plugins=["turn"])
        inbound = await bob.accept()
        await inbound.send(b"through it")
        assert await pipe.recv(timeout=GUARD_S) == b"through it"
    assert allocation.relayed in (pipe.local, inbound.remote)
    await until(lambda: pool.is_warm(IP4))  # the next one
    assert pool.live == 2


@pytest.mark.coturn
async def test_it_is_given_back_to_the_server(coturn: Any, pair: Any) -> None:
    server = coturn("user-quota=1")
    alice, _ = await pair([server.url()], [], standby=True)
    pool = pool_of(alice)
    await until(lambda: pool.is_warm(IP4))
    (first,) = pool._open
    with pytest.raises(QuotaReached):
        await pool.allocate(IP4)
    pool.warm.hold(())
    async with asyncio.timeout(GUARD_S):
        await first.wait_gone()
        while True:  # it counts a moment longer
            try:
                (await pool.allocate(IP4)).close()
            except QuotaReached:
                await asyncio.sleep(0.05)
            else:
                break


@pytest.mark.coturn
async def test_a_server_that_comes_back_has_it_again(
    coturn: Any, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_module, "RETRY_S", RETRY_S)
    server = coturn()
    alice, _ = await pair([server.url("tcp")], [], standby=True)
    pool = pool_of(alice)
    await until(lambda: pool.is_warm(IP4))
    (first,) = pool._open
    server.kill()
    await until(lambda: first.ended)
    server.start()
    await until(lambda: pool.is_warm(IP4))
    (second,) = pool._open
    assert second is not first


@pytest.mark.coturn
async def test_by_default_there_is_none(coturn: Any, pair: Any) -> None:
    alice, _ = await pair([coturn().url()], [])
    factory = alice.traversal.plugin_loaders["turn"].factory
    factory.standby.look()
    assert not factory.pool.warm.held
    assert not factory.pool.live

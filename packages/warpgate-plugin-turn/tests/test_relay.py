"""Nodes that reach each other over a real TURN server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warpgate import AllocationExpired, PipeClosed, auto_connect
from warpgate.testing.coturn import PASSWORD, USER, Coturn
from warpgate_plugin_turn.credentials import time_limited
from warpgate_plugin_turn.errors import QuotaReached
from warpgate_plugin_turn.knock import knock
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.sockets import open_towards
from warpgate_plugin_turn.strategy import Turn

pytestmark = pytest.mark.coturn

GUARD_S = 20.0
Start = Callable[..., Coturn]
Pair = Callable[..., Any]


def pool_of(node: Any) -> Pool:
    pool: Pool = node.traversal.plugin_loaders["turn"].factory.pool
    return pool


async def connected(alice: Any, bob: Any) -> tuple[Any, Any]:
    """Connect, and return both ends after a byte has gone each way."""
    async with asyncio.timeout(GUARD_S):
        pipe, plugin = await auto_connect(alice, bob.address(), GUARD_S, plugins=["turn"])
        assert pipe is not None, str(alice.last_report)
        assert isinstance(plugin, Turn)
        inbound = await bob.accept()
        await pipe.send(b"there")
        assert await inbound.recv(timeout=GUARD_S) == b"there"
        await inbound.send(b"and back")
        assert await pipe.recv(timeout=GUARD_S) == b"and back"
    assert (pipe.path, inbound.path) == ("relay", "relay")
    assert (pipe.transport, pipe.reliable) == ("udp", False)
    return pipe, inbound


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("whose", ["both", "the caller's", "the peer's"])
async def test_each_transport_and_whoever_has_the_relay(
    coturn: Start, pair: Pair, certificates: Any, transport: str, whose: str
) -> None:
    urls = [coturn().url(transport)]
    first, second = urls if whose != "the peer's" else [], urls if whose != "the caller's" else []
    alice, bob = await pair(first, second, ca_file=str(certificates[0]))
    pipe, inbound = await connected(alice, bob)
    await pipe.close()
    await until(lambda: inbound.closed and not pool_of(alice).live and not pool_of(bob).live)


async def test_a_warm_relay_is_used(coturn: Start, pair: Pair) -> None:
    alice, bob = await pair([coturn().url()], [])
    factory = alice.traversal.plugin_loaders["turn"].factory
    factory.prepare()
    factory.prepare()
    await until(pool_of(alice).is_warm)
    (allocation,) = pool_of(alice)._open
    pipe, inbound = await connected(alice, bob)
    assert pool_of(alice)._open == {allocation}
    assert allocation.relayed in (pipe.local, inbound.remote)
    await pipe.close()


async def test_a_warm_relay_that_nobody_takes_is_deleted(coturn: Start, pair: Pair) -> None:
    alice, _ = await pair([coturn().url()], [], warm_s=0.2)
    pool_of(alice).prepare()
    await until(lambda: pool_of(alice).live == 1)
    await until(lambda: pool_of(alice).live == 0)


async def test_closing_deletes_the_allocation_on_the_server(coturn: Start, pair: Pair) -> None:
    server = coturn("user-quota=1")
    alice, bob = await pair([server.url()], [])
    pipe, _ = await connected(alice, bob)
    await pipe.close()
    async with asyncio.timeout(GUARD_S):  # it has a lifetime of ten minutes
        while True:
            try:
                allocation = await pool_of(alice).allocate()
            except QuotaReached:
                await asyncio.sleep(0.05)
            else:
                break
    allocation.close()
    await allocation.wait_gone()


async def test_the_shared_secret_scheme(coturn: Start, pair: Pair) -> None:
    server = coturn(accounts=("use-auth-secret", "static-auth-secret=north"))
    alice, bob = await pair([server.url(login=":north")], [])
    await connected(alice, bob)


async def test_a_user_name_that_has_expired(coturn: Start, pair: Pair) -> None:
    server = coturn(accounts=("use-auth-secret", "static-auth-secret=north"))
    user, password = time_limited("north", 1_600_000_000)
    login = f"{user.replace(':', '%3A')}:{password.replace('/', '%2F')}"
    alice, bob = await pair([server.url(login=login)], [])
    text = await refused(alice, bob)
    assert "the time-limited user name ended" in text
    assert "CredentialsExpired" in text or "get a new one" in text


async def refused(alice: Any, bob: Any, limit_s: float = 6.0) -> str:
    """Return the report of a call that can't succeed, and ends long before its time is up."""
    async with asyncio.timeout(limit_s):
        pipe, _ = await auto_connect(alice, bob.address(), GUARD_S, plugins=["turn"])
    assert pipe is None
    return str(alice.last_report)


WRONG = {
    "wrong password": (f"{USER}:wrong", "refused the user name or the password"),
    "unknown user": (f"nobody:{PASSWORD}", "refused the user name or the password"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_credentials(coturn: Start, pair: Pair, case: str) -> None:
    login, words = WRONG[case]
    server = coturn()
    alice, bob = await pair([server.url(login=login)], [])
    text = await refused(alice, bob)
    assert words in text
    assert f"127.0.0.1 port {server.port}" in text
    assert "wrong" not in text


async def test_quota(coturn: Start, pair: Pair) -> None:
    server = coturn("user-quota=1")
    alice, bob = await pair([server.url()], [])
    mine = await pool_of(alice).allocate()
    assert "quota" in await refused(alice, bob)
    mine.close()


async def test_nothing_listens_there(pair: Pair) -> None:
    alice, bob = await pair(["turn:u:p@127.0.0.1:9?transport=tcp"], [])
    assert "127.0.0.1 port 9 over TCP" in await refused(alice, bob)
    alice, bob = await pair(["turn:u:p@127.0.0.1:9?transport=udp"], [], give_up_s=0.5)
    assert "127.0.0.1 port 9 did not answer within 0.5 s" in await refused(alice, bob)


async def test_a_certificate_of_an_unknown_authority(coturn: Start, pair: Pair) -> None:
    alice, bob = await pair([coturn().url("tls")], [])
    text = await refused(alice, bob)
    assert "its certificate is refused" in text
    assert "ca_file" in text


async def test_a_certificate_for_another_name(coturn: Start, pair: Pair, certificates: Any) -> None:
    alice, bob = await pair(
        [coturn().url("tls", host="localhost")], [], ca_file=str(certificates[0])
    )
    text = await refused(alice, bob)
    assert "its certificate is refused" in text
    assert "localhost" in text


async def test_the_peers_address_is_denied(coturn: Start, pair: Pair) -> None:
    server = coturn("denied-peer-ip=127.0.0.0-127.255.255.255")
    alice, bob = await pair([server.url()], [])
    text = await refused(alice, bob)
    assert "forbids it (CreatePermission: 403" in text


@pytest.mark.parametrize("fault", ["password", "quota", "certificate", "port"])
async def test_the_next_server_is_tried(
    coturn: Start, pair: Pair, certificates: Any, fault: str, tmp_path: Path
) -> None:
    good = coturn()
    bad = {
        "password": good.url(login=f"{USER}:wrong"),
        "quota": "",
        "certificate": good.url("tls"),
        "port": "turn:u:p@127.0.0.1:9?transport=udp",
    }[fault]
    if fault == "quota":
        bad = coturn("total-quota=1").url()
    alice, bob = await pair([bad, good.url()], [])
    states = pool_of(alice).servers.states
    held = None
    if fault == "quota":
        held = await Pool(type(pool_of(alice).servers)([states[0].server]), alice.stats).allocate()
    pipe, _ = await connected(alice, bob)
    await pipe.close()
    if held is not None:
        held.close()
        await held.wait_gone()
    assert states[1].rtt_s is not None
    assert pool_of(alice).servers.ordered(asyncio.get_running_loop().time())[0] is states[1]


async def test_a_restarted_server_ends_the_pipe_with_the_cause(coturn: Start, pair: Pair) -> None:
    server = coturn()
    alice, bob = await pair([server.url()], [], probe_s=0.5)
    pipe, inbound = await connected(alice, bob)
    relayed = pipe if pool_of(alice).live else inbound
    server.kill()
    server.start()
    async with asyncio.timeout(GUARD_S):
        await relayed.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await relayed.send(b"lost")
    assert isinstance(caught.value.__cause__, AllocationExpired)
    assert "was it restarted?" in str(caught.value.__cause__)
    pipe, _ = await connected(alice, bob)  # and a new one comes up


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_dead_server_ends_the_pipe_with_the_cause(
    coturn: Start, pair: Pair, transport: str
) -> None:
    server = coturn()
    alice, bob = await pair([server.url(transport)], [], probe_s=0.5, give_up_s=1.0)
    pipe, _ = await connected(alice, bob)
    server.pause()
    async with asyncio.timeout(5):
        await pipe.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await pipe.send(b"lost")
    assert isinstance(caught.value.__cause__, AllocationExpired)
    assert "stopped answering" in str(caught.value.__cause__)


async def test_nothing_is_lost_over_many_lifetimes_while_only_receiving(
    coturn: Start, pair: Pair
) -> None:
    server = coturn(
        "max-allocate-lifetime=2", "permission-lifetime=3", "channel-lifetime=4", "stale-nonce=2"
    )
    settings = {"permission_lifetime_s": 3, "channel_lifetime_s": 4}
    alice, bob = await pair([server.url()], [], **settings)
    pipe, inbound = await connected(alice, bob)  # alice has the relay, and only receives
    for number in range(120):
        await inbound.send(b"%d" % number)
        assert await pipe.recv(timeout=2) == b"%d" % number
        await asyncio.sleep(0.1)
    assert not pipe.closed


async def test_a_server_that_sends_us_elsewhere(coturn: Start, pair: Pair) -> None:
    good = coturn()
    first = coturn(f"alternate-server=127.0.0.1:{good.port}")
    alice, bob = await pair([first.url()], [])
    await connected(alice, bob)
    (allocation,) = pool_of(alice)._open
    assert allocation.address == ("127.0.0.1", good.port)


async def test_ipv6_relay_over_ipv4(coturn: Start, pair: Pair) -> None:
    from warpgate.net.constants import IP6

    server = coturn(hosts=("127.0.0.1", "::1"))
    alice, _ = await pair([server.url()], [])
    allocation = await pool_of(alice).allocate(IP6)
    assert allocation.relayed[0] == "::1"
    assert allocation.address[0] == "127.0.0.1"
    allocation.close()
    await allocation.wait_gone()


async def test_a_host_name_with_its_certificate(
    coturn: Start, pair: Pair, certificates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = coturn()
    alice, bob = await pair([server.url("tls", host="turn.test")], [], ca_file=str(certificates[0]))
    plain = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        return plain("127.0.0.1" if host == "turn.test" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    await connected(alice, bob)
    (state,) = pool_of(alice).servers.states
    assert state.rtt_s is not None


async def test_knocks_after_the_first_one_reach_nobody(coturn: Start, pair: Pair) -> None:
    alice, _ = await pair([coturn().url()], [])
    allocation = await pool_of(alice).take()
    allocation.knock = knock(b"secret")
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    allocation.stranger = lambda _data, peer: opened.set_result(allocation.pipe(peer))
    allocation.permit("127.0.0.1")
    sock = await open_towards(allocation.relayed)
    try:
        async with asyncio.timeout(GUARD_S):
            while not opened.done():
                sock.send_to(knock(b"secret"), allocation.relayed)
                await asyncio.sleep(0.01)
        pipe = opened.result()
        assert pipe.remote == sock.local
        pipe.subscribe()
        for data in (knock(b"secret"), b"data", knock(b"secret")):
            sock.send_to(data, allocation.relayed)
        assert await pipe.recv(timeout=GUARD_S) == b"data"
        assert await pipe.recv(timeout=0.1) is None
        await pipe.close()
    finally:
        sock.close()
        allocation.close()
        await allocation.wait_gone()

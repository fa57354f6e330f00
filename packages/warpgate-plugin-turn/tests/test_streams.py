"""TCP connections through a real TURN server (RFC 6062)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from warpgate.errors import AllocationExpired, PipeClosed, RelayError
from warpgate.events import Counters
from warpgate.net.budget import PacketBudget
from warpgate.net.constants import IP4, IP6
from warpgate.net.nic import loopback_interface
from warpgate.server_urls import parse_turn
from warpgate.testing import LeakCheck
from warpgate.testing.coturn import Coturn
from warpgate_plugin_turn.calls import Calls
from warpgate_plugin_turn.errors import NoStreamServers, NotSupported
from warpgate_plugin_turn.messages import RelayFacts
from warpgate_plugin_turn.policy import PeerPolicy
from warpgate_plugin_turn.pool import Pool, tls_context
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.streams import MAX_CONNECTIONS, Streams
from warpgate_plugin_turn.tcp_relay import join, open_beside

pytestmark = pytest.mark.coturn

GUARD_S = 10.0
Start = Callable[..., Coturn]


@pytest_asyncio.fixture
async def make(certificates: Any) -> AsyncIterator[Any]:
    """Return a function that makes a side's :class:`Streams`, and what it hands over."""
    tasks: list[asyncio.Task[None]] = []
    pools: list[Pool] = []
    sides: list[Streams] = []
    async with LeakCheck():

        def build(url: str | None, initiator: bool = True) -> tuple[Streams, asyncio.Queue[Any]]:
            pipes: asyncio.Queue[Any] = asyncio.Queue()
            pool = None
            if url is not None:
                context = tls_context(str(certificates[0]))
                options = {"probe_s": 0.3, "give_up_s": 1.0}
                servers = ServerList([parse_turn(url)])
                pool = Pool(servers, Counters(), tls=context, options=options)
                pools.append(pool)
            peer = SimpleNamespace(interfaces=[])
            plugin: Any = SimpleNamespace(
                af=IP4,
                nic=loopback_interface(),
                budget=PacketBudget(),
                node=SimpleNamespace(stats=Counters()),
                src_info={"nat": {"type": 0}, "nic": "127.0.0.1", "ext": "127.0.0.1"},
                dest_info={"af": IP4},
                initiator=initiator,
                manager=SimpleNamespace(attempt_of=lambda _: SimpleNamespace(peer=peer)),
                refuses=lambda _ip: None,
                result=asyncio.get_running_loop().create_future(),
            )

            def spawn(coroutine: Any) -> asyncio.Task[None]:
                tasks.append(asyncio.get_running_loop().create_task(coroutine))
                return tasks[-1]

            async def tell() -> None:
                pass

            calls = Calls(pipes.put_nowait, spawn, tell, lambda: None, lambda: None)
            sides.append(Streams(plugin, pool, PeerPolicy(plugin), calls))
            return sides[-1], pipes

        yield build
        for task in tasks:  # what waits for the end of a pipe that somebody keeps
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for side in sides:
            side.close()
        for pool in pools:
            await pool.close()


async def offered(streams: Streams, *ips: str) -> RelayFacts:
    """Get a relay that lets addresses in, and return what the peer is told."""
    streams.let_in(ips or ["127.0.0.1"])
    await streams.offer()
    assert streams.relayed is not None, streams.why_not
    told: Any = streams.told()
    return RelayFacts(**told)


async def joined(make: Any, url: str) -> tuple[Any, Any, Streams]:
    """Return the pipe of the side without a relay, and that of the side with one."""
    ours, incoming = make(url)
    theirs, dialled = make(None)
    async with asyncio.timeout(GUARD_S):
        relay = await offered(ours)
        theirs.heard(relay)
        pipe = await dialled.get()
        await pipe.send(b"at once ")  # before the other connection is joined with this one
        return pipe, await incoming.get(), ours


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_bytes_go_both_ways(coturn: Start, make: Any, transport: str) -> None:
    pipe, inbound, ours = await joined(make, coturn().url(transport))
    assert (pipe.transport, inbound.transport) == ("tcp", "tcp")
    assert (pipe.path, inbound.path) == ("relay", "relay")
    assert (inbound.local, inbound.remote) == (pipe.remote, pipe.local)
    assert await inbound.recv_n(8, timeout=GUARD_S) == b"at once "
    data = bytes(range(256)) * 4096  # 1 MiB
    async with asyncio.timeout(GUARD_S):
        sending = asyncio.ensure_future(pipe.send(data))
        assert await inbound.recv_n(len(data)) == data
        await sending
        sending = asyncio.ensure_future(inbound.send(data))
        assert await pipe.recv_n(len(data)) == data
        await sending
        ours.close()  # the pipe keeps what it needs
        await inbound.send(b"still there")
        assert await pipe.recv_n(11) == b"still there"
        await pipe.close()
        await inbound.wait_closed()


@pytest.mark.parametrize("transports", [("tcp", "tcp"), ("tcp", "tls"), ("tls", "tls")])
async def test_one_relay_connects_to_the_other(
    coturn: Start, make: Any, transports: tuple[str, str]
) -> None:
    """RFC 6062 section 4.3: neither side dials the other's relay."""
    first, second = coturn(), coturn()
    ours, connected = make(first.url(transports[0]))
    theirs, incoming = make(second.url(transports[1]), initiator=False)
    async with asyncio.timeout(GUARD_S):
        one, other = await offered(ours), await offered(theirs)
        for streams in (ours, theirs):  # as where nothing gets out but the way to the own server
            streams.dial = nothing  # type: ignore[method-assign]
        theirs.heard(one)
        ours.heard(other)
        pipe, inbound = await connected.get(), await incoming.get()
        assert (pipe.local, pipe.remote) == (ours.relayed, theirs.relayed)
        assert (inbound.local, inbound.remote) == (pipe.remote, pipe.local)
        data = bytes(range(256)) * 4096
        sending = asyncio.ensure_future(pipe.send(data))
        assert await inbound.recv_n(len(data)) == data
        await sending
        sending = asyncio.ensure_future(inbound.send(data))
        assert await pipe.recv_n(len(data)) == data
        await sending
        ours.close()
        theirs.close()
        await inbound.send(b"still there")
        assert await pipe.recv_n(11) == b"still there"
        await inbound.close()
        await pipe.wait_closed()


async def test_the_peers_relay_connects_where_the_initiators_does_not(
    coturn: Start, make: Any
) -> None:
    """As where the initiator's server forbids it."""
    ours, incoming = make(coturn().url("tcp"))
    theirs, connected = make(coturn().url("tcp"), initiator=False)
    ours._connect = ours.dial = theirs.dial = nothing  # type: ignore[method-assign]
    async with asyncio.timeout(GUARD_S):
        one, other = await offered(ours), await offered(theirs)
        theirs.heard(one)
        ours.heard(other)
        pipe, inbound = await connected.get(), await incoming.get()
        await pipe.send(b"there")
        assert await inbound.recv_n(5) == b"there"
        await inbound.close()
        await pipe.wait_closed()


async def nothing(*_: Any) -> None:
    pass


async def test_with_the_server_the_pipe_ends_and_says_why(coturn: Start, make: Any) -> None:
    server = coturn()
    _pipe, inbound, _ = await joined(make, server.url("tcp"))
    server.pause()
    async with asyncio.timeout(GUARD_S):
        await inbound.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await inbound.send(b"lost")
    assert isinstance(caught.value.__cause__, AllocationExpired)
    server.kill()


async def test_a_stranger_is_not_let_in(coturn: Start, make: Any) -> None:
    ours, incoming = make(coturn().url("tcp"))
    await offered(ours, "203.0.113.10")
    assert ours.relayed is not None
    async with asyncio.timeout(GUARD_S):
        try:  # the server closes it, sooner or later
            reader, writer = await asyncio.open_connection(*ours.relayed)
            try:
                assert await reader.read(1) == b""
            finally:
                writer.close()
        except ConnectionResetError:
            pass
    assert incoming.empty()


async def test_nobody_makes_many_connections(coturn: Start, make: Any) -> None:
    ours, incoming = make(coturn().url("tcp"))
    await offered(ours)
    assert ours.relayed is not None
    writers = []
    for _ in range(MAX_CONNECTIONS + 2):
        _, writer = await asyncio.open_connection(*ours.relayed)
        writers.append(writer)
    async with asyncio.timeout(GUARD_S):
        pipes = [await incoming.get() for _ in range(MAX_CONNECTIONS)]
    assert incoming.empty()
    for each in [*writers]:
        each.close()
    for pipe in pipes:
        await pipe.close()


async def test_a_connection_that_the_server_does_not_know(coturn: Start) -> None:
    pool = Pool(ServerList([parse_turn(coturn().url("tcp"))]), Counters())
    async with LeakCheck():
        allocation = await pool.allocate(streams=True)
        connection = await open_beside(allocation, None)
        with pytest.raises(RelayError):
            await join(allocation, 12345, ("127.0.0.1", 9), connection)
        await pool.close()


async def test_where_the_server_offers_none(coturn: Start, make: Any) -> None:
    server = coturn("no-tcp-relay")
    ours, _ = make(server.url("tcp"))
    with pytest.raises(NotSupported):
        await ours.offer()
    udp, _ = make(server.url("udp"))
    with pytest.raises(NoStreamServers, match="over TCP or TLS"):
        await udp.offer()
    none, _ = make(None)
    with pytest.raises(RelayError, match="switched off"):
        await none.offer()


async def test_nobody_listens_at_the_relay(make: Any) -> None:
    theirs, dialled = make(None)
    await theirs.dial(("127.0.0.1", 9), ["127.0.0.1"])
    assert dialled.empty()
    assert "the other's relay 127.0.0.1 can't be reached" in str(theirs.unreachable)


async def test_no_address_of_the_relay_s_family(make: Any) -> None:
    theirs, dialled = make(None)
    loopback = loopback_interface()
    only_ipv6 = tuple(each for each in loopback.addresses if each.af == IP6)
    theirs._plugin.nic = replace(loopback, addresses=only_ipv6)
    await theirs.dial(("127.0.0.1", 9), ["127.0.0.1"])
    assert dialled.empty()
    assert "has no IPv4 address" in str(theirs.unreachable)


async def test_a_relay_that_closes_at_once_can_be_reached(make: Any) -> None:
    """As a server does that has no permission for this address yet: it is dialled again then."""
    theirs, _ = make(None)
    dials: list[Any] = []

    async def connect(relay: Any, *_: Any, **__: Any) -> Any:
        dials.append(relay)
        raise ConnectionResetError("before anybody has looked")

    theirs._plugin.nic = SimpleNamespace(route=lambda _af: SimpleNamespace(connect=connect))
    relay = ("127.0.0.1", 50000)
    await theirs.dial(relay, ["192.0.2.9"])
    assert theirs.unreachable is None
    await theirs.dial(relay, ["192.0.2.9", "127.0.0.1"])
    assert dials == [relay, relay]

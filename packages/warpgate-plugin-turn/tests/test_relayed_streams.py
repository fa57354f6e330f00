"""Nodes that ask for a stream, and get it over a real TURN server (RFC 6062)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from warpgate import (
    IP6,
    LOOPBACK_BIND,
    AllocationExpired,
    PipeClosed,
    RemoteProtocolError,
    auto_connect,
)
from warpgate.testing.coturn import Coturn
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.strategy import Turn
from warpgate_plugin_turn.streams import Streams

pytestmark = pytest.mark.coturn

GUARD_S = 20.0
SOON_S = 5.0
"""Less than an attempt's time: whoever ends sooner has known the cause."""
Start = Callable[..., Coturn]
Pair = Callable[..., Any]


def pool_of(node: Any) -> Pool:
    pool: Pool = node.traversal.plugin_loaders["turn"].factory.pool
    return pool


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0.005)


async def connected(alice: Any, bob: Any, **narrowed: Any) -> tuple[Any, Any]:
    """Ask for a stream, and return both ends after a byte has gone each way."""
    async with asyncio.timeout(GUARD_S):
        pipe, plugin = await auto_connect(
            alice, bob.address(), GUARD_S, plugins=["turn"], transport="tcp", **narrowed
        )
        assert pipe is not None, str(alice.last_report)
        assert isinstance(plugin, Turn)
        inbound = await bob.accept()
        await pipe.send(b"there")
        assert await inbound.recv_n(5) == b"there"
        await inbound.send(b"back!")
        assert await pipe.recv_n(5) == b"back!"
    assert ": won, a stream (tcp), relay" in str(alice.last_report)
    for each in (pipe, inbound):
        assert (each.path, each.transport, each.reliable) == ("relay", "tcp", True)
        assert each.sealed
    return pipe, inbound


async def refused(alice: Any, bob: Any, transport: str = "tcp") -> str:
    """Return the report's text of a call that ends without a pipe, before its time is up."""
    async with asyncio.timeout(SOON_S):
        pipe, _ = await auto_connect(
            alice, bob.address(), GUARD_S, plugins=["turn"], transport=transport
        )
    assert pipe is None
    (outcome,) = alice.last_report.outcomes
    assert outcome.status == "failed"
    return str(outcome.cause)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("whose", ["both", "the caller's", "the peer's"])
async def test_a_stream_whoever_has_the_relay(
    coturn: Start, pair: Pair, certificates: Any, transport: str, whose: str
) -> None:
    urls = [coturn().url(transport)]
    first, second = urls if whose != "the peer's" else [], urls if whose != "the caller's" else []
    alice, bob = await pair(first, second, ca_file=str(certificates[0]))
    pipe, inbound = await connected(alice, bob)
    await pipe.close()
    await until(lambda: inbound.closed and not pool_of(alice).live and not pool_of(bob).live)


async def test_a_stream_over_ipv6(coturn: Start, pair: Pair) -> None:
    url = coturn(hosts=("::1",)).url("tcp")
    for first, second in (([url], []), ([], [url]), ([url], [url])):
        alice, bob = await pair(first, second, ip="::1")
        pipe, _ = await connected(alice, bob)
        assert pipe.remote[0] == "::1"
        await pipe.close()


@pytest.mark.parametrize("whose", ["the caller's", "the peer's"])
async def test_a_relay_of_ipv4_serves_an_attempt_over_ipv6(
    coturn: Start, pair: Pair, whose: str
) -> None:
    urls = [coturn().url("tcp")]  # it has no IPv6 relays
    first, second = (urls, []) if whose == "the caller's" else ([], urls)
    alice, bob = await pair(first, second, ip=None)
    pipe, _ = await connected(alice, bob, afs=[IP6], route_types=[LOOPBACK_BIND])
    assert pipe.remote[0] == "127.0.0.1"
    await pipe.close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_neither_side_can_dial_the_others_relay(
    coturn: Start, pair: Pair, certificates: Any, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """As where a network lets nothing out but the way to its own server."""

    async def dial(self: Streams, *_: Any) -> None:
        pass

    monkeypatch.setattr(Streams, "dial", dial)
    urls = [coturn().url(transport)], [coturn().url(transport)]
    alice, bob = await pair(*urls, ca_file=str(certificates[0]))
    pipe, inbound = await connected(alice, bob)
    assert {pool_of(node).live for node in (alice, bob)} == {1}
    await inbound.close()
    await until(lambda: pipe.closed and not pool_of(alice).live and not pool_of(bob).live)


async def test_several_servers_and_only_some_relay_streams(coturn: Start, pair: Pair) -> None:
    plain, both = coturn("no-tcp-relay"), coturn()
    alice, bob = await pair([plain.url(), plain.url("tcp"), both.url("tcp")], [])
    await connected(alice, bob)
    assert "(noted: NotSupported: " in str(alice.last_report)


@pytest.mark.parametrize("closer", ["the caller", "the peer"])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_what_was_sent_before_the_close_arrives(
    coturn: Start, pair: Pair, certificates: Any, transport: str, closer: str
) -> None:
    alice, bob = await pair([coturn().url(transport)], [], ca_file=str(certificates[0]))
    pipe, inbound = await connected(alice, bob)
    sender, receiver = (pipe, inbound) if closer == "the caller" else (inbound, pipe)
    data = bytes(range(256)) * 4096 * 24  # 24 MiB: more than all buffers on the way

    async def send() -> None:
        await sender.send(data)
        await sender.close()

    async with asyncio.timeout(GUARD_S):
        sending = asyncio.ensure_future(send())
        received = bytearray()
        while (more := await receiver.recv(timeout=GUARD_S)) is not None:
            received += more
            await asyncio.sleep(0.003)  # slower than the sender: all buffers are full at the end
        await sending
    assert received == data
    await receiver.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await receiver.recv_n(1)
    assert caught.value.__cause__ is None  # the peer has closed it, nobody has cut it off


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_server_that_dies_ends_the_stream_with_the_cause(
    coturn: Start, pair: Pair, certificates: Any, transport: str
) -> None:
    server = coturn()
    alice, bob = await pair([server.url(transport)], [], ca_file=str(certificates[0]))
    pipe, inbound = await connected(alice, bob)
    server.kill()
    async with asyncio.timeout(GUARD_S):
        await pipe.wait_closed()
        await inbound.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await pipe.send(b"lost")
    assert isinstance(caught.value.__cause__, AllocationExpired | RemoteProtocolError)


async def test_servers_over_udp_alone_relay_no_streams(coturn: Start, pair: Pair) -> None:
    url = coturn().url("udp")
    for first, second in (([url], [url]), ([url], []), ([], [url])):
        alice, bob = await pair(first, second)
        text = await refused(alice, bob)
        assert "no relay for streams here: " in text
        assert "over TCP or TLS, which streams need" in text


async def test_a_server_that_does_not_offer_them(coturn: Start, pair: Pair) -> None:
    url = coturn("no-tcp-relay").url("tcp")
    alice, bob = await pair([url], [url])
    text = await refused(alice, bob)
    assert text.count("does not relay this transport (Allocate: 442") == 2


async def test_streams_are_switched_off(coturn: Start, pair: Pair) -> None:
    url = coturn().url("tcp")
    alice, bob = await pair([url], [], streams=False)
    assert "streams over relays are switched off here" in await refused(alice, bob)


async def test_a_call_for_datagrams_never_gets_a_stream(coturn: Start, pair: Pair) -> None:
    alice, bob = await pair([coturn().url("tcp")], [])
    async with asyncio.timeout(GUARD_S):
        pipe, _ = await auto_connect(
            alice, bob.address(), GUARD_S, plugins=["turn"], transport="udp"
        )
    assert pipe is not None, str(alice.last_report)
    assert pipe.transport == "udp"
    assert ": won, datagrams (udp), relay" in str(alice.last_report)

"""Servers in a network that wants a login: what is found there, and what is forgotten afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import ServerUnreachable
from warpgate_plugin_turn.servers import ServerList

GUARD_S = 20
PAGE = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n"


async def test_a_web_page_in_a_servers_stead() -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(PAGE)
        await over.wait()  # the page alone is enough: nobody waits for the connection's end
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = TurnServer("127.0.0.1", port, "user", "password", "tcp")
    try:
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(ServerUnreachable, match="spoke HTTP: a login page"):
                await Allocation.open(server, ("127.0.0.1", port))
    finally:
        over.set()
        listening.close()


def test_servers_are_forgiven() -> None:
    servers = ServerList([TurnServer(host, 3478, "u", "p") for host in ("first", "second")])
    first, second = servers.states
    second.worked(0.01)
    first.failed("it spoke HTTP", 5.0)
    assert servers.ordered(6.0) == [second, first]
    servers.forgive()
    assert servers.ordered(6.0) == [first, second]
    assert [(each.why_bad, each.rtt_s) for each in servers.states] == [("", None)] * 2


async def test_another_network_makes_all_servers_good(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = await pair(["turn:user:password@127.0.0.1:9"], [])
    factory = node.traversal.plugin_loaders["turn"].factory
    (state,) = factory.pool.servers.states
    state.failed("it spoke HTTP", asyncio.get_running_loop().time())
    factory.udp_was(heard=False)
    assert factory.udp_silent
    renewed: list[bool] = []
    monkeypatch.setattr(factory.pool.warm, "renew", lambda: renewed.append(True))
    node.network.back_online()
    assert renewed  # a relay that was searched for before the login tells of a portal
    assert not factory.udp_silent
    assert (state.bad_until, state.why_bad) == (0.0, "")

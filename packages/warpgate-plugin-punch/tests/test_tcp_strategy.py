"""tcp_punch between two nodes of this process: what it says, what it refuses, what it makes of messages."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from warpgate import (
    IP4,
    LOOPBACK_BIND,
    NODE_TEST_CONF,
    ConMsg,
    Node,
    TraversalError,
    auto_connect,
)
from warpgate.testing import LeakCheck
from warpgate.testing.nodes import started_nodes
from warpgate_plugin_punch.common.facts import DIRECT
from warpgate_plugin_punch.tcp_punch import schedule, strategy
from warpgate_plugin_punch.tcp_punch.clock import NtpClock
from warpgate_plugin_punch.tcp_punch.messages import Round, TcpAnswer, TcpOffer
from warpgate_plugin_punch.tcp_punch.strategy import TcpPunch

GUARD_S = 10


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[list[Node]]:
    async with LeakCheck(), started_nodes(2, strategies=[TcpPunch]) as both:
        yield both


async def attempt(node: Node, peer: Node) -> Any:
    """Return an attempt on ``node`` that plays the responder's part and has not begun."""
    plugin = await node.connect(IP4, LOOPBACK_BIND, peer.address(), "tcp_punch")
    for task in asyncio.all_tasks():
        if task.get_name().endswith(plugin.plugin_id):
            task.cancel()
    await asyncio.sleep(0)
    plugin.initiator = False
    return plugin


def offer(**fields: Any) -> TcpOffer:
    return TcpOffer(payload=Round(**{"ports": [1, 2], "facts": DIRECT, **fields}))


class Sent:
    """Keeps what an attempt would signal."""

    def __init__(self, plugin: Any) -> None:
        self.messages: list[Any] = []
        plugin.send_signal_msg = self._take

    async def _take(self, msg: Any) -> None:
        self.messages.append(msg)


async def ended(plugin: Any) -> None:
    plugin.result.cancel()
    async with asyncio.timeout(GUARD_S):
        while plugin.manager.plugins:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def first_free(sock: socket.socket, ports: Sequence[int]) -> int:
    for number, port in enumerate(ports):
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return number
    raise AssertionError(f"all of {ports} are taken")


async def test_a_taken_port_is_replaced_and_the_answer_says_so(nodes: list[Node]) -> None:
    plugin = await attempt(*nodes)
    sent = Sent(plugin)
    derived = schedule.derived_ports(plugin.plugin_id, 1, schedule.RESPONDER_PORTS)
    with socket.socket() as other:
        taken = first_free(other, derived)  # another program may have one of them
        other.listen()
        await plugin.run(offer())
    (answer,) = sent.messages
    assert isinstance(answer, TcpAnswer)
    assert derived[taken] not in answer.payload.ports
    assert set(derived[taken + 1 :]) <= set(answer.payload.ports)
    assert len(answer.payload.ports) == len(derived)
    await ended(plugin)


async def test_a_connection_of_the_last_round_has_its_time_to_be_proven(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_number: int) -> None:
        pass

    plugin = await attempt(*nodes)
    await plugin._prepare()
    monkeypatch.setattr(plugin, "_offer", nothing)
    monkeypatch.setattr(strategy, "NEAR_PAUSE_S", 0)
    plugin._made.handed = True
    rounds = asyncio.create_task(plugin._rounds())
    for _ in range(5 * schedule.ROUNDS):
        await asyncio.sleep(0)
    assert not rounds.done()
    plugin._made.handed = False
    with pytest.raises(TraversalError, match="in 4 rounds"):
        await rounds
    await ended(plugin)


async def test_a_round_is_answered_once_and_old_ones_never(nodes: list[Node]) -> None:
    plugin = await attempt(*nodes)
    await plugin.run(offer(round=2))
    sent = plugin._sockets.sent
    assert sent == 2 * schedule.RESPONDER_PORTS
    for number in (2, 1):
        await plugin.run(offer(round=number))
    assert plugin._sockets.sent == sent
    await ended(plugin)


async def test_an_answer_for_another_round_is_not_for_us(nodes: list[Node]) -> None:
    plugin = await attempt(*nodes)
    plugin.initiator = True
    plugin._spawn = lambda work: work.close()
    await plugin.run(None)
    plugin._round = 2
    await plugin.run(TcpAnswer(payload=Round(round=1, ports=[5])))
    assert plugin._answered == 0
    await plugin.run(TcpOffer(payload=Round(round=2, ports=[5])))
    assert plugin._sockets.sent == 0
    await ended(plugin)


async def test_a_signal_without_an_offer_ends_it(nodes: list[Node]) -> None:
    plugin = await attempt(*nodes)
    with pytest.raises(TraversalError, match="no offer"):
        await plugin.run(ConMsg())
    await ended(plugin)


async def test_it_never_writes_where_it_may_not(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = await attempt(*nodes)
    monkeypatch.setattr(strategy, "crosses_nat", lambda _: True)
    refused = {"10.1.2.3", "127.0.0.1", "224.0.0.1", "nonsense", "2001:db8::1", ""}
    plugin.refuses = lambda ip: "no" if ip in refused else None
    assert {plugin._address(ip) for ip in refused} == {plugin.dest_info["ip"]}
    assert plugin._address("192.0.2.7") == "192.0.2.7"
    monkeypatch.setattr(strategy, "crosses_nat", lambda _: False)
    assert plugin._address("192.0.2.7") == plugin.dest_info["ip"]
    await ended(plugin)


async def test_who_hears_nothing_says_what_was_sent(nodes: list[Node]) -> None:
    alice, bob = nodes
    bob.traversal.plugin_loaders.pop("tcp_punch")
    async with asyncio.timeout(GUARD_S):
        pipe, _ = await auto_connect(alice, bob.address(), route_types=[LOOPBACK_BIND], afs=[IP4])
    assert pipe is None
    (outcome,) = alice.last_report.outcomes
    assert re.search(r"\d+ SYNs sent, 0 connections accepted, \d+ answered with RST", outcome.cause)


async def test_punching_can_be_switched_off() -> None:
    conf = {**NODE_TEST_CONF, "enable_punching": False}
    assert await TcpPunch.setup(type("N", (), {"conf": conf})()) is None


# The clock.


def serve_ntp(offset_s: float) -> tuple[socket.socket, threading.Thread]:
    """Answer one request with the time that is ``offset_s`` ahead (RFC 5905, section 7.3)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(GUARD_S)

    def stamp() -> bytes:
        return struct.pack("!Q", int((time.time() + offset_s + 2_208_988_800) * 2**32))

    def body() -> None:
        request, addr = sock.recvfrom(64)
        now = stamp()
        head = bytes((0x24, 1, 0, 0xEC)) + bytes(8) + b"test"
        sock.sendto(head + now + request[40:48] + now + stamp(), addr)

    thread = threading.Thread(target=body)
    thread.start()
    return sock, thread


def test_the_clock_goes_by_ntp() -> None:
    pytest.importorskip("ntplib")
    sock, server = serve_ntp(5.0)
    with sock:
        clock = NtpClock([f"127.0.0.1:{sock.getsockname()[1]}"])
        assert clock.now_ms() == 0
        asking = clock.refresh()
        assert asking is not None
        asking.join(GUARD_S)
        server.join(GUARD_S)
        assert 4.0 < clock.now_ms() / 1000 - time.time() < 6.0
        assert clock.refresh() is None  # not so soon again


def test_a_clock_without_servers_knows_nothing() -> None:
    clock = NtpClock([])
    assert clock.refresh() is None
    assert clock.now_ms() == 0

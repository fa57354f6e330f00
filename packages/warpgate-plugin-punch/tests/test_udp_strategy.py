"""``udp_punch`` on loopback with real nodes: what it does when things go wrong, and to whom it writes."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

import pytest

from warpgate import IP4, LOOPBACK_BIND, ConMsg, Node, Plugin, TraversalError
from warpgate.identity import Identity, stack_id
from warpgate.net.udp import UdpPipe
from warpgate.node.auto_connect import auto_connect
from warpgate.protocol.peer_address import PeerAddress, pack_address
from warpgate.testing import LeakCheck
from warpgate.testing.nodes import echo, started_nodes
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.probes import m0
from warpgate_plugin_punch.common.sockets import PunchSocket, bound_udp, metered
from warpgate_plugin_punch.udp_punch import callee, caller
from warpgate_plugin_punch.udp_punch.caller import Caller
from warpgate_plugin_punch.udp_punch.messages import MAX_ENDPOINTS, Punch
from warpgate_plugin_punch.udp_punch.strategy import UdpPunch

LIMIT_S = 10.0
IP_RECVTTL = 12  # ip(7)
CONE = SideFacts(mapping="ei", filtering="apd", kind="preserving")
QUICK_ROUNDS_S = (0.3, 0.2, 0.2)


class Victim:
    """A socket that counts what comes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.address: tuple[str, int] = sock.getsockname()

    def packets(self) -> list[bytes]:
        """Return what has come by now."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(65535))
            except BlockingIOError:
                return found


@contextmanager
def victims(count: int) -> Iterator[list[Victim]]:
    """Give sockets on loopback that nobody is asked by."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        yield [Victim(sock) for sock in socks]
    finally:
        for sock in socks:
            sock.close()


class Liar(Plugin):
    """Asks peers to write to somebody else, as often as it can."""

    name: ClassVar[str] = "udp_punch"
    transport: ClassVar[Any] = "udp"
    phase: ClassVar[str | None] = "spray"
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = ((Punch, 1, 20),)
    named: ClassVar[list[tuple[str, int]]] = []
    offers: ClassVar[int] = 12

    async def run(self, reply: ConMsg | None = None) -> None:
        """Name the victim again and again, and never begin a hello."""
        if reply is None:
            for number in range(self.offers):
                payload = {"number": number % 3, "endpoints": self.named[:MAX_ENDPOINTS]}
                await self.send_signal_msg(Punch(payload=payload))
                await asyncio.sleep(0.02)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    async with started_nodes(2, strategies=[UdpPunch]) as (alice, bob):
        bob.add_msg_cb(echo)
        yield alice, bob


async def until_idle(node: Node) -> None:
    """Wait until no attempt is alive."""
    async with asyncio.timeout(LIMIT_S):
        while node.traversal.plugins:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)


def absent() -> PeerAddress:
    """Return the address of a node on this machine that does not run."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return address_at(sock.getsockname()[1])


def address_at(port: int) -> PeerAddress:
    from warpgate.protocol.peer_address import Endpoint, InterfaceRecord

    endpoint = Endpoint(IP4, "127.0.0.1", port, None, None, 0, 0)
    record = InterfaceRecord(1, (endpoint,))
    return pack_address(
        Identity.generate(), machine=stack_id(), sequence=1, brokers=(), interfaces=[record]
    )


# To whom it writes.


@pytest.mark.parametrize("count", [1, MAX_ENDPOINTS])
async def test_a_responder_writes_little_to_whom_a_peer_names(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(callee, "QUIET_S", 0.6)
    with victims(count) as named:
        monkeypatch.setattr(Liar, "named", [each.address for each in named])
        async with LeakCheck(), pair() as (alice, bob):
            alice.traversal.plugin_loaders.clear()
            alice.traversal.install_plugin("udp_punch", {"class": Liar})
            plugin = await alice.connect(IP4, LOOPBACK_BIND, bob.peer_address, "udp_punch")
            async with asyncio.timeout(LIMIT_S):
                while not bob.traversal.plugins:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await until_idle(bob)
            plugin.result.cancel()
        packets = [data for each in named for data in each.packets()]
    assert 0 < len(packets) <= 50 - 16  # the rest is for M2
    assert max(map(len, packets)) <= 300


async def test_an_initiator_writes_little_to_whom_a_peer_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UdpPunch, "refuses", lambda _self, _ip: None)
    monkeypatch.setattr(caller, "ROUNDS_S", (0.4, 0.4, 0.4))
    monkeypatch.setattr(caller, "SPARSE_S", (0.01,) * 40)  # so that nothing but the meter is left
    with victims(MAX_ENDPOINTS) as named:
        async with LeakCheck(), pair() as (alice, _):
            silent = address_at(named[0].address[1])
            plugin = await alice.connect(IP4, LOOPBACK_BIND, silent, "udp_punch")
            for number in range(200):
                await asyncio.sleep(0.01)
                named_now = [named[number % MAX_ENDPOINTS].address]
                await plugin.run(Punch(payload={"number": number % 3, "endpoints": named_now}))
                if plugin.result.done():
                    break
            await until_idle(alice)
        packets = [data for each in named for data in each.packets()]
    assert 10 < len(packets) <= 50
    assert max(map(len, packets)) <= 300


async def test_what_must_not_be_dialled_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "ROUNDS_S", (0.1, 0.1, 0.1))
    with victims(1) as [victim]:
        async with pair() as (alice, _):
            plugin = await alice.connect(IP4, LOOPBACK_BIND, absent(), "udp_punch")
            monkeypatch.setattr(plugin, "refuses", lambda _ip: "no")
            plugin.dest_info["ip"] = "127.0.0.2"
            await asyncio.sleep(0)
            await plugin.run(Punch(payload={"endpoints": [victim.address, ("10.9.8.7", 5)]}))
            await until_idle(alice)
            assert alice.stats["punch_targets_refused"] >= 1
        assert victim.packets() == []


# What it makes of what comes.


async def test_m0_from_another_port_shows_where_the_peer_is() -> None:
    """The peer's NAT gave its packets another port than its address says."""
    async with LeakCheck(), pair() as (alice, bob):
        plugin = await alice.connect(IP4, LOOPBACK_BIND, absent_like(bob), "udp_punch")
        async with asyncio.timeout(LIMIT_S):
            while not (isinstance(plugin, UdpPunch) and isinstance(plugin._side, Caller)  # noqa: ASYNC110
                       and plugin._side.rounds):  # fmt: skip
                await asyncio.sleep(0)
            [link] = plugin._side.links
            listening = bob.listening_socket(IP4, "127.0.0.1")
            assert listening is not None
            listening.send_to(m0("x" * 15), link.local)
            listening.send_to(m0(plugin.plugin_id), link.local)
            pipe = await plugin.result
            assert isinstance(pipe, UdpPipe)
            assert pipe.remote == listening.local
            assert alice.stats["punch_strays"] == 1
            pipe.subscribe()
            await pipe.send(b"there")
            assert await pipe.recv() == b"there"
            await pipe.close()
            while not link.closed:  # noqa: ASYNC110
                await asyncio.sleep(0)


def absent_like(node: Node) -> PeerAddress:
    """Return a node's address with a port where nobody is, signed by the node."""
    from dataclasses import replace

    port = absent().interfaces[0].endpoints[0].port
    records = [
        replace(nic, endpoints=tuple(replace(e, port=port) for e in nic.endpoints))
        for nic in node.peer_address.interfaces
    ]
    return pack_address(
        node.identity,
        machine=stack_id(),
        sequence=node.peer_address.sequence,
        brokers=(),
        interfaces=records,
    )


async def test_the_pipe_is_the_punched_socket() -> None:
    async with LeakCheck(), pair() as (alice, bob):
        pipe, plugin = await auto_connect(alice, bob.address(), LIMIT_S)
        assert isinstance(pipe, UdpPipe)
        assert isinstance(plugin, UdpPunch)
        async with asyncio.timeout(LIMIT_S):
            while plugin._side is not None and plugin._side.links[0].meter is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert isinstance(plugin._side, Caller)
        [link] = plugin._side.links
        assert not link.closed
        assert pipe.local == link.local
        await pipe.close()
        assert link.closed


async def test_a_peer_that_never_answers_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "ROUNDS_S", QUICK_ROUNDS_S)
    monkeypatch.setattr(caller, "UNSIGNALLED_S", 0.1)
    async with LeakCheck(), pair() as (alice, _):
        pipe, _ = await auto_connect(
            alice, absent(), LIMIT_S, plugins=["udp_punch"], route_types=[LOOPBACK_BIND]
        )
        assert pipe is None
        report = str(alice.last_report)
        assert "no hello came through" in report
        assert "packets went to 127.0.0.1" in report


async def test_an_answer_that_leaves_no_way_ends_the_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caller, "crosses_nat", lambda _plugin: True)
    monkeypatch.setattr(caller, "peer_facts", lambda _plugin: CONE)
    async with LeakCheck(), pair() as (alice, _):
        for facts, cause in (
            ({"mapping": "apd", "filtering": "apd", "kind": "random"}, "guessed"),
            ({"blocked": True}, "blocked"),
        ):
            plugin = await alice.connect(IP4, LOOPBACK_BIND, absent(), "udp_punch")
            await asyncio.sleep(0)
            assert isinstance(plugin, UdpPunch)
            assert isinstance(plugin._side, Caller)
            plugin._side._own = CONE
            with pytest.raises(TraversalError, match=cause):
                await plugin.run(Punch(payload={"facts": facts}))
            plugin.result.cancel()


async def test_a_forwarded_port_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address says that anyone gets in; what the NAT does with other sockets is no matter."""
    monkeypatch.setattr(caller, "crosses_nat", lambda _plugin: True)
    monkeypatch.setattr(
        caller, "peer_facts", lambda _plugin: SideFacts(mapping="ei", filtering="ei")
    )
    facts = {"mapping": "apd", "filtering": "apd", "kind": "random"}
    async with LeakCheck(), pair() as (alice, _):
        plugin = await alice.connect(IP4, LOOPBACK_BIND, absent(), "udp_punch")
        await asyncio.sleep(0)
        assert isinstance(plugin, UdpPunch)
        assert isinstance(plugin._side, Caller)
        plugin._side._own = CONE
        await plugin.run(Punch(payload={"facts": facts}))
        assert not plugin.result.done()
        plugin.result.cancel()


async def test_an_answer_that_does_not_get_out_holds_no_pipe_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()
    real = Caller._open

    async def stuck(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def near_offer(self: Caller, here: caller.Round, _: object) -> None:
        self._offer([here.link.local])
        await asked.wait()
        real(self, here)

    monkeypatch.setattr(Caller, "_near_offer", near_offer)
    monkeypatch.setattr(callee.Callee, "_answer", stuck)
    async with LeakCheck(), pair() as (alice, bob), asyncio.timeout(LIMIT_S / 2):
        pipe, _ = await auto_connect(
            alice, bob.address(), LIMIT_S, afs=[IP4], route_types=[LOOPBACK_BIND]
        )
        assert pipe is not None
        assert (await bob.accept()).peer_id == alice.node_id
        await pipe.close()


async def test_punching_can_be_switched_off() -> None:
    async with started_nodes(1, strategies=[UdpPunch], conf={"enable_punching": False}) as (node,):
        assert "udp_punch" not in node.traversal.plugin_loaders


# Sockets.


async def test_a_metered_socket_stops_at_the_limit() -> None:
    plugin = UdpPunch()
    with victims(1) as [victim]:
        link = await bound_udp(IP4, ("127.0.0.1", 0))
        metered(plugin, link)
        for _ in range(60):
            link.send_to(b"x", victim.address)
        link.close()
        assert len(victim.packets()) == 50
        assert plugin.budget.refused == 10


@pytest.mark.skipif(sys.platform != "linux", reason="the test reads the TTL by Linux's option")
async def test_a_low_packet_is_low_and_the_next_one_is_not() -> None:
    with victims(1) as [victim]:
        victim.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        link = await bound_udp(IP4, ("127.0.0.1", 0))
        assert isinstance(link, PunchSocket)
        link.send_low(b"low", victim.address, 3)
        link.send_to(b"usual", victim.address)
        link.close()
        hops = []
        for _ in range(2):
            _, ancillary, _, _ = victim.sock.recvmsg(100, 100)
            hops.append(int.from_bytes(ancillary[0][2][:1], "little"))
    assert hops[0] == 3
    assert hops[1] > 3

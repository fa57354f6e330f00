"""The tests that every strategy should pass: subclass :class:`StrategyConformance`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import pytest

from warpgate.contract import check_strategy
from warpgate.identity import Identity, stack_id
from warpgate.net.constants import IP4, IP6, PHASES, af_name, route_type_name
from warpgate.net.nic import loopback_interface
from warpgate.net.pipe import Pipe
from warpgate.net.route import Route
from warpgate.node.auto_connect import auto_connect
from warpgate.node.node import Node
from warpgate.plugin import Plugin
from warpgate.protocol.peer_address import InterfaceRecord, PeerAddress, pack_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.testing.leaks import LeakCheck
from warpgate.testing.nodes import echo, started_nodes

GUARD_S = 20.0
"""No test waits longer for anything: a strategy that hangs fails instead."""
MAX_TURNS = 2000
"""Loop turns that a cancelled connect may take at most, in the sweep."""
KEPT_S = 10.0
"""What a connect leaves on purpose, such as a signal connection, is kept for longer than this."""


class Wish(NamedTuple):
    """A family and route type to connect by."""

    af: int
    route_type: int


class StrategyConformance:
    """Runs a strategy between nodes in this process, over loopback and this machine's addresses.

    A subclass whose name starts with ``Test`` sets ``strategy``::

        class TestMyWay(StrategyConformance):
            strategy = MyWay

    Attributes:
        strategy: the class under test.
        companions: further strategies that the peer or this side must have for it to work.
        conf: settings of the nodes that differ from ``NODE_TEST_CONF``.
        afs: the families it supports.
        duplex: bytes go both ways on its pipes.
        connects: it can connect two nodes on one machine; False skips the tests that need it.
        attempt_timeout: seconds that an attempt is given where the peer never answers.
        sweep_step: the cancel sweep cancels at every loop turn; n: at every n-th, where a
            strategy takes many.

    """

    strategy: ClassVar[type[Plugin]]
    companions: ClassVar[Sequence[type[Plugin]]] = ()
    conf: ClassVar[dict[str, Any]] = {}
    afs: ClassVar[Sequence[int]] = (IP4, IP6)
    duplex: ClassVar[bool] = True
    connects: ClassVar[bool] = True
    attempt_timeout: ClassVar[float] = 0.3
    sweep_step: ClassVar[int] = 1

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]

    # What the tests use; override where a strategy needs more.

    @asynccontextmanager
    async def nodes(self, count: int = 2) -> AsyncIterator[list[Node]]:
        """Start nodes that have the strategy and its companions; the last one echoes."""
        wanted = [self.strategy, *self.companions]
        async with started_nodes(count, conf=self.conf, strategies=wanted) as nodes:
            nodes[-1].add_msg_cb(echo)
            yield nodes

    async def connect(self, node: Node, dest: Any, wish: Wish | None = None) -> Pipe | None:
        """Connect by the strategy under test alone."""
        async with asyncio.timeout(GUARD_S):
            if self.strategy.phase not in PHASES:
                af, route_type = wish or (None, self.strategy.route_types[0])
                plugin = await node.connect(af, route_type, dest, self.strategy.name)
                result: Pipe | None = await plugin.result
                return result
            afs, route_types = (None, None) if wish is None else ([wish.af], [wish.route_type])
            names = [self.strategy.name]
            pipe, _ = await auto_connect(
                node, dest, GUARD_S, plugins=names, afs=afs, route_types=route_types
            )
            return pipe

    def wishes(self, node: Node) -> list[Wish]:
        """Return the combinations of family and route type that this machine can try."""
        afs = [af for af in self.afs if af in node.supported()]
        return [Wish(af, route_type) for af in afs for route_type in self.strategy.route_types]

    # The tests.

    async def test_class_contract(self) -> None:
        """The class has what the framework needs."""
        check_strategy(self.strategy)
        assert "phase" in vars(self.strategy), "mark the class with @register(phase=…)"
        assert inspect.iscoroutinefunction(self.strategy.run)
        parameters = list(inspect.signature(self.strategy.run).parameters.values())
        assert len(parameters) == 2, "run(self, reply=None)"
        assert parameters[1].default is None, "run(self, reply=None)"

    async def test_connects_by_every_family_and_route_type(self) -> None:
        """It makes a pipe by everything that it says it supports."""
        self._needs_connecting()
        async with LeakCheck(), self.nodes() as (alice, bob):
            failures = []
            for wish in self.wishes(alice):
                pipe = await self.connect(alice, bob.address(), wish)
                if pipe is None:
                    way = f"{af_name(wish.af)} {route_type_name(wish.route_type)}"
                    failures.append(f"{way}: {alice.last_report}")
                    continue
                assert pipe.peer_id == bob.node_id
                assert pipe.plugin_name == self.strategy.name
                await pipe.close()
            assert not failures, "\n".join(failures)

    async def test_bytes_both_ways(self) -> None:
        """What is sent arrives, from either side."""
        self._needs_connecting()
        async with LeakCheck(), self.nodes() as (alice, bob):
            pipe = await self._connected(alice, bob)
            async with pipe, asyncio.timeout(GUARD_S):
                inbound = await bob.accept()
                assert inbound.peer_id == alice.node_id
                pipe.subscribe()
                for token in (b"first", b"second"):
                    await pipe.send(token)
                    if self.duplex:
                        assert await pipe.recv(timeout=GUARD_S) == token

    async def test_the_peers_end_is_seen(self) -> None:
        """When the peer closes a pipe of streams, this side notices."""
        self._needs_connecting()
        async with LeakCheck(), self.nodes() as (alice, bob):
            pipe = await self._connected(alice, bob)
            async with pipe, asyncio.timeout(GUARD_S):
                await (await bob.accept()).close()
                if pipe.transport == "tcp":
                    await pipe.wait_closed()

    async def test_absent_peer_gives_none(self) -> None:
        """Nobody is where the peer was: the result is None by the attempt's deadline."""
        async with LeakCheck(), self.nodes() as (alice, bob):
            self._shorten(alice)
            await bob.close()
            await self._none_by_deadline(alice, bob.peer_address)

    async def test_silent_peer_gives_none(self) -> None:
        """Something accepts and never answers: the result is None by the attempt's deadline."""
        async with LeakCheck(), self.nodes(1) as (alice,), _silent_peer(alice) as silent:
            self._shorten(alice)
            await self._none_by_deadline(alice, silent)

    async def test_cancelled_anywhere_leaves_nothing(self) -> None:
        """Cancelled at any loop turn of a connect, nothing is left within a second."""
        self._needs_connecting()
        async with self.nodes() as (alice, bob):
            loop = asyncio.get_running_loop()
            kept_until = 0.0
            for turns in range(0, MAX_TURNS, self.sweep_step):
                if loop.time() > kept_until:
                    # What a connect leaves on purpose, such as a signal connection that is kept.
                    await (await self._connected(alice, bob)).close()
                    kept_until = loop.time() + KEPT_S
                async with LeakCheck():
                    task = asyncio.create_task(self.connect(alice, bob.address()))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task], timeout=GUARD_S)
                    assert task.done(), f"cancelled at loop turn {turns}, it goes on"
                    if not task.cancelled():
                        pipe = task.result()
                        assert pipe is not None
                        await pipe.close()
                        return
            pytest.fail(f"the connect took more than {MAX_TURNS} loop turns")

    async def test_late_pipe_is_closed(self) -> None:
        """A pipe that is handed over when the attempt has ended is closed."""
        async with LeakCheck(), self.nodes() as (alice, bob):
            plugin = await self._attempt(alice, bob.peer_address)
            plugin.result.cancel()
            route = await Route(loopback_interface(), IP4).bind()
            async with asyncio.timeout(GUARD_S):
                pipe = await route.connect(("127.0.0.1", bob.port))
                plugin.result.set_result(pipe)
                await pipe.wait_closed()

    async def test_attempts_at_once_do_not_cross(self) -> None:
        """Several connects at once, from two nodes to a third: each gets its own pipe."""
        self._needs_connecting()
        async with LeakCheck(), self.nodes(3) as (alice, carol, bob):
            callers = [alice, carol, alice, carol]
            async with asyncio.timeout(GUARD_S):
                pipes = await asyncio.gather(*(self._connected(node, bob) for node in callers))
                for number, pipe in enumerate(pipes):
                    pipe.subscribe()
                    await pipe.send(b"for %d" % number)
                if self.duplex:
                    for number, pipe in enumerate(pipes):
                        assert await pipe.recv(timeout=GUARD_S) == b"for %d" % number
                callers_seen = sorted([(await bob.accept()).peer_id or "" for _ in callers])
                assert callers_seen == sorted(node.node_id for node in callers)
                for pipe in pipes:
                    await pipe.close()

    async def test_exceptions_stay_inside(self) -> None:
        """Whatever ``run`` meets, it ends the attempt and reaches no handler of the loop."""
        seen: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        try:
            async with LeakCheck(), self.nodes() as (alice, bob):
                self._shorten(alice)
                plugin = await self._attempt(alice, bob.peer_address, start=False)
                plugin.dest_info.update(ip="not an address", port="not a port")
                plugin.src_info.clear()
                plugin.nic = None  # type: ignore[assignment]
                async with asyncio.timeout(GUARD_S):
                    pipe = await plugin.result
                if pipe is not None:
                    await pipe.close()
        finally:
            loop.set_exception_handler(None)
        assert not seen

    async def test_stray_signal_does_no_harm(self) -> None:
        """A peer's signal that starts the strategy here out of the blue ends without a trace."""
        async with LeakCheck(), self.nodes() as (alice, bob):
            self._shorten(bob)
            plugin = await self._attempt(alice, bob.peer_address, start=False)
            message = ConMsg()
            message.meta.plugin_name = self.strategy.name
            await plugin.send_signal_msg(message)
            plugin.result.cancel()
            async with asyncio.timeout(GUARD_S):
                while not bob.stats["signals_received"] or bob.traversal.plugins:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    # Helpers.

    def _needs_connecting(self) -> None:
        if not self.connects:
            pytest.skip(f"{self.strategy.name} does not connect nodes on one machine")

    def _shorten(self, node: Node) -> None:
        for loader in node.traversal.plugin_loaders.values():
            loader.timeout = self.attempt_timeout

    async def _connected(self, node: Node, peer: Node) -> Pipe:
        pipe = await self.connect(node, peer.address())
        assert pipe is not None, str(node.last_report)
        return pipe

    async def _attempt(self, node: Node, peer: PeerAddress, start: bool = True) -> Plugin:
        """Return an attempt; with ``start`` False its first ``run`` has yet to begin."""
        plugin = await node.connect(None, self.strategy.route_types[0], peer, self.strategy.name)
        if start:
            await asyncio.sleep(0)
        return plugin

    async def _none_by_deadline(self, node: Node, peer: PeerAddress) -> None:
        plugin = await self._attempt(node, peer)
        async with asyncio.timeout(self.attempt_timeout + 2):  # the margin is for a busy machine
            assert await plugin.result is None
        assert not node.traversal.plugins


@asynccontextmanager
async def _silent_peer(node: Node) -> AsyncIterator[PeerAddress]:
    """Listen where a node of this machine would, accept, never answer; gives the address."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    record = node.peer_address.interfaces[0]
    af = next(af for af in (IP4, IP6) if record.endpoint(af))
    server = await asyncio.start_server(hold, "0.0.0.0" if af == IP4 else "::", 0)
    port = server.sockets[0].getsockname()[1]
    endpoints = tuple(replace(e, port=port) for e in record.endpoints if e.af == af)
    try:
        yield pack_address(
            Identity.generate(),
            machine=stack_id(),
            sequence=1,
            brokers=(),
            interfaces=[InterfaceRecord(record.index, endpoints)],
        )
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()
        await server.wait_closed()

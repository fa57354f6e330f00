"""Gets allocations: several servers at once with small head starts, one kept warm on demand."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from warpgate.errors import ConfigError, RelayError
from warpgate.events import Counters
from warpgate.net.addresses import Address
from warpgate.net.constants import IP4
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import NoServers, NoStreamServers, NotSupported
from warpgate_plugin_turn.search import STAGGER_S, Search
from warpgate_plugin_turn.servers import ServerList, ServerState
from warpgate_plugin_turn.serving import serving
from warpgate_plugin_turn.warm import Warm
from warpgate_plugin_turn.wire import TCP_PROTOCOL

log = logging.getLogger("warpgate.turn")

WARM_S: Final = 30.0
"""How long an allocation that nobody takes is kept."""
MAX_ALLOCATIONS: Final = 64
FAREWELL_S: Final = 2.0


class Pool:
    """The allocations of one node.

    Args:
        servers: the configured servers.
        counters: the node's.
        tls: checks servers' certificates; None: the system's authorities.
        options: for every :class:`~warpgate_plugin_turn.machine.TurnMachine`.
        stagger_s: see ``search.STAGGER_S``.
        warm_s: see ``WARM_S``.
        unix_time: the clock of time-limited user names.
        way: tells by which address a server is reached; None: by its own.

    """

    def __init__(
        self,
        servers: ServerList,
        counters: Counters,
        *,
        tls: ssl.SSLContext | None = None,
        options: dict[str, Any] | None = None,
        stagger_s: float = STAGGER_S,
        warm_s: float = WARM_S,
        unix_time: Callable[[], float] = time.time,
        way: Callable[[Address], Awaitable[Address]] | None = None,
    ) -> None:
        self.servers = servers
        self.counters = counters
        self.stagger_s = stagger_s
        self.warm = Warm(partial(serving, self), warm_s, self._drop)
        self._tls = tls
        self._options = options or {}
        self._unix_time = unix_time
        self._way = way
        self._open: set[Allocation] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def live(self) -> int:
        """How many allocations there are."""
        return len(self._open)

    # Warm ones.

    def is_warm(self, af: int = IP4) -> bool:
        """Return whether :meth:`take` has an allocation at once."""
        return self.warm.has(af)

    def prepare(self, af: int = IP4, *, udp_blocked: bool = False) -> None:
        """Allocate in the background, so that the next :meth:`take` has it at once.

        One at most is kept for each family, for ``warm_s``; failures are silent here, they come
        again when somebody takes it.
        """
        if self.servers:
            self.warm.prepare(af, udp_blocked=udp_blocked)

    async def take(self, af: int = IP4, *, udp_blocked: bool = False) -> Allocation:
        """Return an allocation: the warm one, or a new one. The caller retires or closes it.

        A warm one is handed out at once and asked whether it lives meanwhile: its ``on_lost`` tells
        when it does not.

        Raises:
            RelayError: no server gave one; the text says why of each.

        """
        allocation = await self.warm.take(af)
        if allocation is None:
            return await serving(self, af, udp_blocked=udp_blocked)
        allocation.check()  # it may have died unnoticed meanwhile
        return allocation

    # New ones.

    async def allocate(
        self, af: int = IP4, *, udp_blocked: bool = False, streams: bool = False
    ) -> Allocation:
        """Try the servers until one gives an allocation.

        With ``streams`` the relay takes TCP connections (RFC 6062 section 4.1: such a server is
        itself reached over TCP or TLS).

        Their addresses are asked one after the other, ``STAGGER_S`` apart, until one has answered by
        a TURN message; then the next starts only when that one has failed, or lets us wait.

        Raises:
            NoServers: none is configured.
            NoStreamServers: none is over TCP or TLS, and ``streams`` is set.
            RelayError: none gave one. Where all failed alike the class says how.

        """
        if not self.servers:
            raise NoServers("no TURN server is configured here; set turn_servers or WARPGATE_TURN")
        if self._closed or len(self._open) >= MAX_ALLOCATIONS:
            raise RelayError(f"this node has {len(self._open)} relays already; close pipes")
        now = asyncio.get_running_loop().time()
        states = self.servers.ordered(now, udp_blocked=udp_blocked)
        if streams:
            states = [state for state in states if state.server.transport != "udp"]
        if not states:
            raise NoStreamServers(
                "no TURN server is configured over TCP or TLS, which streams need"
            )
        options = {**self._options, **({"protocol": TCP_PROTOCOL} if streams else {})}

        async def open_(
            server: TurnServer, address: Address, on_answer: Callable[[], None]
        ) -> Allocation:
            if not streams and self.servers.lacks(server, af, now):
                raise NotSupported(
                    f"TURN server {server.host} has no relay addresses of this family"
                )
            dialled = address if self._way is None else await self._way(address)
            try:
                return await Allocation.open(
                    server, address, dialled=dialled, family=af, tls=self.context(server),
                    counters=self.counters, on_answer=on_answer, register=self._register, **options,
                )  # fmt: skip
            except NotSupported:
                if not streams:
                    self.servers.note_lack(server, af, now)
                raise

        search = Search(
            states, open_, self._drop, self._server_failed,
            stagger_s=self.stagger_s, unix_time=self._unix_time,
        )  # fmt: skip
        return await search.run()

    def _server_failed(self, state: ServerState, error: RelayError) -> None:
        state.failed(str(error), asyncio.get_running_loop().time())
        self.counters.count("turn_server_failures")

    def _drop(self, task: asyncio.Task[Allocation]) -> None:
        drop(task)
        self._leave(task)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        """Let :meth:`close` wait for the end of something that nobody else waits for."""
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _register(self, allocation: Allocation) -> None:
        self._open.add(allocation)
        allocation.on_end = self._ended

    def _ended(self, allocation: Allocation) -> None:
        self._open.discard(allocation)
        if allocation.server.transport != "udp":  # the connection is closed a moment later
            closing = asyncio.get_running_loop().create_task(
                allocation.wait_gone(), name="relay's end"
            )
            self._leave(closing)

    def context(self, server: TurnServer) -> ssl.SSLContext | None:
        """Return what checks a server's certificate; None where no TLS is spoken with it."""
        if server.transport != "tls":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    # The end.

    async def close(self) -> None:
        """Delete all allocations; waits ``FAREWELL_S`` at the most for the servers' word."""
        self._closed = True
        await self.warm.close()
        loop = asyncio.get_running_loop()
        by = loop.time() + FAREWELL_S
        while self._open or self._leaving:
            # What is being made registers only now, and what ends leaves a connection to be closed.
            open_ = list(self._open)
            for allocation in open_:
                allocation.close()
            waiting = [loop.create_task(each.wait_gone()) for each in open_]
            _, late = await asyncio.wait([*waiting, *self._leaving], timeout=by - loop.time())
            if late:
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=0)
                break


def tls_context(ca_file: str | None) -> ssl.SSLContext | None:
    """Return what checks servers' certificates: by a file of authorities, or None for the system's.

    Raises:
        ConfigError: the file can't be used.

    """
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f'plugin_conf["turn"]["ca_file"] = {ca_file!r} is no file of certificates: {error}'
        ) from error


def drop(task: asyncio.Task[Allocation]) -> None:
    """End an attempt to allocate; what it brings all the same is deleted."""

    def done(task: asyncio.Task[Allocation]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().close()

    task.cancel()
    task.add_done_callback(done)

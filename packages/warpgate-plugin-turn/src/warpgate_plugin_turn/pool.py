"""Gets allocations: several servers at once with small head starts, one kept warm on demand."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from warpgate.errors import ConfigError, RelayError
from warpgate.events import Counters
from warpgate.net.addresses import Address, is_ip, user_address
from warpgate.net.constants import IP4, IP6
from warpgate.net.resolve import look_up
from warpgate.protocol.ip import is_public
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.credentials import expired, with_credentials
from warpgate_plugin_turn.errors import (
    CredentialsExpired,
    NotSupported,
    Redirected,
    ServerUnreachable,
    WrongCredentials,
)
from warpgate_plugin_turn.servers import ServerList, ServerState
from warpgate_plugin_turn.warm import Warm, drop
from warpgate_plugin_turn.wire import TCP_PROTOCOL

log = logging.getLogger("warpgate.turn")

STAGGER_S: Final = 0.1
"""The head start of each server over the next one, while none of them has said a word."""
WARM_S: Final = 30.0
"""How long an allocation that nobody takes is kept."""
MAX_ALLOCATIONS: Final = 64
MAX_REDIRECTS: Final = 2
RESOLVE_S: Final = 3.0
FAREWELL_S: Final = 2.0


class NoServers(RelayError):
    """No TURN server is configured here."""


class Pool:
    """The allocations of one node.

    Args:
        servers: the configured servers.
        counters: the node's.
        tls: checks servers' certificates; None: the system's authorities.
        options: for every :class:`~warpgate_plugin_turn.machine.TurnMachine`.
        stagger_s: see ``STAGGER_S``.
        warm_s: see ``WARM_S``.
        unix_time: the clock of time-limited user names.

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
    ) -> None:
        self.servers = servers
        self.counters = counters
        self.stagger_s = stagger_s
        self.warm = Warm(self.allocate, warm_s)
        self._tls = tls
        self._options = options or {}
        self._unix_time = unix_time
        self._open: set[Allocation] = set()
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

        Raises:
            RelayError: no server gave one; the text says why of each.

        """
        return await self.warm.take(af) or await self.allocate(af, udp_blocked=udp_blocked)

    # New ones.

    async def allocate(
        self, af: int = IP4, *, udp_blocked: bool = False, streams: bool = False
    ) -> Allocation:
        """Try the servers until one gives an allocation.

        With ``streams`` the relay takes TCP connections (RFC 6062 section 4.1: such a server is
        itself reached over TCP or TLS).

        They start one after the other, ``STAGGER_S`` apart, until one has answered at all; then the
        next starts only when that one has failed.

        Raises:
            NoServers: none is configured.
            RelayError: none gave one. Where all failed alike the class says how.

        """
        if not self.servers:
            raise NoServers("no TURN server is configured here; set turn_servers or WARPGATE_TURN")
        if self._closed or len(self._open) >= MAX_ALLOCATIONS:
            raise RelayError(f"this node has {len(self._open)} relays already; close pipes")
        loop = asyncio.get_running_loop()
        waiting = self.servers.ordered(loop.time(), udp_blocked=udp_blocked)
        if streams:
            waiting = [state for state in waiting if state.server.transport != "udp"]
        if not waiting:
            raise NoServers("no TURN server is configured over TCP or TLS, which streams need")
        options = {**self._options, **({"protocol": TCP_PROTOCOL} if streams else {})}
        running: dict[asyncio.Task[Allocation], ServerState] = {}
        answered: set[ServerState] = set()
        causes: list[RelayError] = []
        news = asyncio.Event()

        def start() -> None:
            state = waiting.pop(0)

            def on_answer() -> None:
                answered.add(state)
                news.set()

            trying = self._try(state, af, on_answer, options)
            task = loop.create_task(trying, name="relay")
            running[task] = state
            task.add_done_callback(lambda _task: news.set())

        try:
            start()
            while running:
                hold = any(state in answered for state in running.values()) or not waiting
                news.clear()
                try:
                    async with asyncio.timeout(None if hold else self.stagger_s):
                        await news.wait()
                except TimeoutError:
                    start()
                    continue
                for task in [task for task in running if task.done()]:
                    error = task.exception()
                    if error is None:
                        del running[task]
                        return task.result()
                    answered.discard(running.pop(task))
                    if not isinstance(error, RelayError):
                        raise error
                    causes.append(error)
                    if waiting and not running:
                        start()
            raise _summary(causes)
        finally:
            for task in running:
                drop(task)

    async def _try(
        self, state: ServerState, af: int, on_answer: Callable[[], None], options: dict[str, Any]
    ) -> Allocation:
        loop = asyncio.get_running_loop()
        try:
            allocation = await self._follow(state.server, af, on_answer, options)
        except NotSupported:
            raise  # good for everything else
        except RelayError as error:
            state.failed(str(error), loop.time())
            self.counters.count("turn_server_failures")
            raise
        state.worked(allocation.rtt_s)
        return allocation

    async def _follow(
        self,
        configured: TurnServer,
        af: int,
        on_answer: Callable[[], None],
        options: dict[str, Any],
    ) -> Allocation:
        """Allocate on a server, or on the one it sends us to."""
        server = with_credentials(configured, int(self._unix_time()))
        addresses = await _resolve(server)
        for redirects in range(MAX_REDIRECTS + 1):
            try:
                return await self._first(server, addresses, af, on_answer, options)
            except Redirected as error:
                target = error.alternate
                if target is None or redirects == MAX_REDIRECTS:
                    raise
                # A server on the internet has no business with what stands inside our network.
                if is_public(addresses[0][0]) and not is_public(target[0]):
                    raise RelayError(f"{error}, which is no public address") from error
                addresses = [target]
            except WrongCredentials as error:
                ago = expired(server.user, int(self._unix_time()))
                if ago is None or isinstance(error, CredentialsExpired):
                    raise
                raise CredentialsExpired(
                    f"{error}; the time-limited user name ended {ago} s ago: get a new one"
                ) from error
        raise AssertionError("unreachable")

    async def _first(
        self,
        server: TurnServer,
        addresses: list[Address],
        af: int,
        on_answer: Callable[[], None],
        options: dict[str, Any],
    ) -> Allocation:
        """Allocate at the first of a host's addresses that answers."""
        last: RelayError | None = None
        for address in addresses:
            try:
                return await Allocation.open(
                    server, address, family=af, tls=self.context(server),
                    counters=self.counters, on_answer=on_answer, register=self._register,
                    **options,
                )  # fmt: skip
            except ServerUnreachable as error:
                last = error
        assert last is not None
        raise last

    def _register(self, allocation: Allocation) -> None:
        self._open.add(allocation)
        allocation.on_end = self._open.discard

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
        open_ = list(self._open)
        for allocation in open_:
            allocation.close()
        if open_:
            waiting = [asyncio.ensure_future(each.wait_gone()) for each in open_]
            _, late = await asyncio.wait(waiting, timeout=FAREWELL_S)
            for each in late:
                each.cancel()


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


async def _resolve(server: TurnServer) -> list[Address]:
    """Return one address of each family that a server's name has."""
    if is_ip(server.host):
        return [(server.host, server.port)]
    kind = socket.SOCK_DGRAM if server.transport == "udp" else socket.SOCK_STREAM
    name = f"TURN server {server.host} port {server.port}"
    try:
        found = await look_up(server.host, server.port, kind=kind, timeout_s=RESOLVE_S)
    except TimeoutError as error:
        raise ServerUnreachable(f"{name}: its name was not resolved in {RESOLVE_S:g} s") from error
    except OSError as error:
        raise ServerUnreachable(f"{name}: its name can't be resolved: {error.strerror}") from error
    first: dict[int, Address] = {}
    for af, _, _, _, address in found:
        if af in (IP4, IP6):
            first.setdefault(af, user_address(address))
    if not first:
        raise ServerUnreachable(f"{name} has no address")
    return list(first.values())


def _summary(causes: list[RelayError]) -> RelayError:
    if len(causes) == 1:
        return causes[0]
    lines = list(dict.fromkeys(str(cause) for cause in causes))
    kinds = {type(cause) for cause in causes}
    kind = kinds.pop() if len(kinds) == 1 else RelayError
    return kind("no TURN server gave a relay: " + "; ".join(lines))

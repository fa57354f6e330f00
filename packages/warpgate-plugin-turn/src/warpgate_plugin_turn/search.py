"""One search for a relay: over all servers and their addresses, with small head starts (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from warpgate.errors import RelayError
from warpgate.net.addresses import Address, is_ip, user_address
from warpgate.net.constants import IP4, IP6
from warpgate.net.resolve import look_up
from warpgate.protocol.ip import is_public
from warpgate.server_urls import TurnServer
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.credentials import expired, with_credentials
from warpgate_plugin_turn.errors import (
    ConnectionLost,
    CredentialsExpired,
    NotSupported,
    Redirected,
    ServerUnreachable,
    WrongCredentials,
    named,
)
from warpgate_plugin_turn.servers import ServerState

STAGGER_S: Final = 0.1
"""The head start of each address of a server over the next one, and of the last over the next server."""
HOLD_S: Final = 1.0
"""One that has answered is waited for so long before the next starts all the same."""
MAX_REDIRECTS: Final = 2
RESOLVE_S: Final = 3.0

Open = Callable[[TurnServer, Address, Callable[[], None]], Awaitable[Allocation]]


@dataclass(slots=True, eq=False)
class _Candidate:
    """One server's part in a search.

    Attributes:
        state: what is known of it.
        server: with the credentials of now.
        addresses: those that wait for their turn; None: its name is not resolved yet.
        errors: what its addresses came to.
        trying: how many are being asked.
        started: when the first one was.

    """

    state: ServerState
    server: TurnServer
    addresses: list[Address] | None = None
    errors: list[RelayError] = field(default_factory=list)
    trying: int = 0
    started: float = 0.0

    @property
    def error(self) -> RelayError:
        """What it came to in all: an answer says more than silence."""
        said = [error for error in self.errors if not isinstance(error, ServerUnreachable)]
        return (said or self.errors)[0]


@dataclass(slots=True, eq=False)
class _Try:
    """One address that is being asked; ``answered_at``: when it sent its first TURN message."""

    candidate: _Candidate
    answered_at: float | None = None


class Search:
    """One search for a relay.

    Args:
        states: the servers, in the order in which they are tried.
        open_: allocates: ``await open_(server, address, on_answer)``.
        drop: ends a try that nobody waits for any more.
        failed: called with each server that failed, and why.
        stagger_s: see ``STAGGER_S``.
        unix_time: the clock of time-limited user names.

    """

    def __init__(
        self,
        states: Sequence[ServerState],
        open_: Open,
        drop: Callable[[asyncio.Task[Allocation]], None],
        failed: Callable[[ServerState, RelayError], None],
        *,
        stagger_s: float,
        unix_time: Callable[[], float],
    ) -> None:
        now = int(unix_time())
        self._waiting = [_Candidate(state, with_credentials(state.server, now)) for state in states]
        self._open = open_
        self._drop = drop
        self._failed = failed
        self._stagger_s = stagger_s
        self._unix_now = now
        self._loop = asyncio.get_running_loop()
        self._running: dict[asyncio.Task[Allocation], _Try] = {}
        self._next_at = 0.0
        self._news = asyncio.Event()
        self._causes: list[RelayError] = []

    async def run(self) -> Allocation:
        """Return the first allocation that there is; its ``notes`` say what did not work.

        Raises:
            RelayError: no server gave one. Where all failed alike the class says how.

        """
        try:
            self._start_next()
            while self._running:
                self._news.clear()
                try:
                    async with asyncio.timeout_at(self._next_start()):
                        await self._news.wait()
                except TimeoutError:
                    self._start_next()
                    continue
                allocation = self._collect()
                if allocation is not None:
                    return allocation
                if self._waiting and not self._running:
                    self._start_next()
            raise _summary(self._causes)
        finally:
            for task in self._running:
                self._drop(task)

    def _next_start(self) -> float | None:
        """Return when the next address starts; None: nothing is left to start."""
        if not self._waiting:
            return None
        answers = [each.answered_at for each in self._running.values() if each.answered_at]
        return max([self._next_at, *(at + HOLD_S for at in answers)])

    def _start_next(self) -> None:
        """Ask the next address: of the server that is being tried, or else the next server's first."""
        candidate, now = self._waiting[0], self._loop.time()
        address = candidate.addresses.pop(0) if candidate.addresses else None
        if not candidate.addresses:
            del self._waiting[0]  # it comes back when its name is resolved
        candidate.started = candidate.started or now
        candidate.trying += 1
        self._next_at = now + self._stagger_s
        made = _Try(candidate)
        task = self._loop.create_task(self._ask(made, address), name="relay")
        self._running[task] = made
        task.add_done_callback(lambda _task: self._news.set())

    def _collect(self) -> Allocation | None:
        """Take what the tries that have ended came to."""
        for task in [task for task in self._running if task.done()]:
            made, error = self._running[task], task.exception()
            candidate = made.candidate
            if error is not None and not isinstance(error, RelayError):
                raise error
            del self._running[task]
            candidate.trying -= 1
            if error is None:
                return self._found(candidate, task.result())
            candidate.errors.append(error)
            self._next_at = self._loop.time()
            if not isinstance(error, ServerUnreachable | ConnectionLost):
                # The server itself has spoken.
                self._waiting = [each for each in self._waiting if each is not candidate]
            if isinstance(error, NotSupported):
                self._end_others(candidate.server.host)
            if not candidate.trying and candidate not in self._waiting:
                self._causes.append(candidate.error)
                if not isinstance(candidate.error, NotSupported):  # good for everything else
                    self._failed(candidate.state, candidate.error)
        return None

    def _end_others(self, host: str) -> None:
        """Wait no more for what a server said that it has not, by the other ways to it.

        Those that have not begun are told so by whoever remembers it.
        """
        for task, other in list(self._running.items()):
            if other.candidate.server.host == host and not task.done():
                del self._running[task]
                other.candidate.trying -= 1
                self._drop(task)

    def _found(self, candidate: _Candidate, allocation: Allocation) -> Allocation:
        candidate.state.worked(allocation.rtt_s)
        allocation.on_lost.append(lambda error: self._failed(candidate.state, error))
        notes, now = [named(error) for error in self._causes], self._loop.time()
        mute = [each.candidate for each in self._running.values() if each.answered_at is None]
        for other in dict.fromkeys(mute):
            if other is candidate or other.started > candidate.started:
                continue  # who began later has not had the time
            server = other.server
            notes.append(
                f"ServerUnreachable: TURN server {server.host} port {server.port} over "
                f"{server.transport.upper()} had not answered after {now - other.started:.2f} s, "
                "when another one was ready"
            )
        allocation.notes = tuple(notes)
        return allocation

    # One try.

    async def _ask(self, made: _Try, address: Address | None) -> Allocation:
        candidate = made.candidate
        if address is None:
            address, *others = await _resolve(candidate.server)
            if others:
                candidate.addresses = others
                self._waiting.insert(0, candidate)
                self._next_at = self._loop.time() + self._stagger_s
                self._news.set()
        try:
            return await self._follow(made, address)
        except WrongCredentials as error:
            ago = expired(candidate.server.user, self._unix_now)
            if ago is None or isinstance(error, CredentialsExpired):
                raise
            raise CredentialsExpired(
                f"{error}; the time-limited user name ended {ago} s ago: get a new one"
            ) from error

    async def _follow(self, made: _Try, address: Address) -> Allocation:
        """Allocate at an address, or on the server that it sends us to."""

        def on_answer() -> None:
            made.answered_at = self._loop.time()
            self._news.set()

        target = address
        for redirects in range(MAX_REDIRECTS + 1):
            try:
                return await self._open(made.candidate.server, target, on_answer)
            except Redirected as error:
                if error.alternate is None or redirects == MAX_REDIRECTS:
                    raise
                # A server on the internet has no business with what stands inside our network.
                if is_public(address[0]) and not is_public(error.alternate[0]):
                    raise RelayError(f"{error}, which is no public address") from error
                target, made.answered_at = error.alternate, None
                self._news.set()
        raise AssertionError("unreachable")


async def _resolve(server: TurnServer) -> list[Address]:
    """Return one address of each family that a server's name has; there is at least one."""
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
    kinds = {type(cause) for cause in causes}
    same = len(kinds) == 1
    lines = dict.fromkeys(str(cause) if same else named(cause) for cause in causes)
    kind = kinds.pop() if same else RelayError
    return kind("no TURN server gave a relay: " + "; ".join(lines))

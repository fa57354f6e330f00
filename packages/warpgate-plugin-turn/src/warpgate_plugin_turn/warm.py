"""Relays that are there before somebody needs them: prepared for one call, or kept ready for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, Protocol

from warpgate_plugin_turn.allocation import Allocation

RETRY_S: Final = 2.0
"""The pause before a relay that was lost, or could not be had, is asked for again; it doubles."""
RETRY_CAP_S: Final = 300.0
STEADY_S: Final = 60.0
"""A relay that has lived for so long was a good one: the next pause is short again."""
IDLE_PROBE_S: Final = 25.0
"""How often an idle relay's server is asked whether it lives; it keeps NATs' mappings, too."""


class Allocate(Protocol):
    """Makes a relay: ``Pool.allocate``."""

    def __call__(self, af: int, *, udp_blocked: bool = False) -> Coroutine[Any, Any, Allocation]:
        """Make one; raises RelayError."""


class Warm:
    """One relay for each family, at the most.

    Args:
        allocate: makes them.
        keep_s: how long a prepared one that nobody takes is kept.
        drop: ends a task that makes one; what it brings all the same is deleted.

    Attributes:
        on_asked: called with a family when one of it is prepared or taken.

    """

    def __init__(
        self,
        allocate: Allocate,
        keep_s: float,
        drop: Callable[[asyncio.Task[Allocation]], None],
    ) -> None:
        self.keep_s = keep_s
        self.retry_s = RETRY_S
        self.on_asked: Callable[[int], None] | None = None
        self._allocate = allocate
        self._drop = drop
        self._tasks: dict[int, asyncio.Task[Allocation]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}  # the end of a prepared one, or a retry
        self._held: set[int] = set()
        self._failures: dict[int, int] = {}
        self._renewals = 0
        self._closed = False

    def has(self, af: int) -> bool:
        """Return whether :meth:`take` has one at once."""
        task = self._tasks.get(af)
        return task is not None and task.done()

    def prepare(self, af: int, *, udp_blocked: bool = False) -> None:
        """Get one in the background, and keep it for ``keep_s``; failures are silent here."""
        self._tell(af)
        if not self._closed and af not in self._tasks:
            self._start(af, udp_blocked)
            if af not in self._held:
                loop = asyncio.get_running_loop()
                self._timers[af] = loop.call_later(self.keep_s, self._cool, af)

    def hold(self, families: Collection[int], *, anew: bool = False) -> None:
        """Keep one of each of these families ready, for as long as it takes, and none of others.

        Args:
            families: the families.
            anew: those that are held came from another network; give them back.

        """
        if self._closed:
            return
        for af in [af for af in self._held if anew or af not in families]:
            self._held.discard(af)
            self._failures.pop(af, None)
            self._cool(af)
        for af in families:
            if af not in self._held:
                self._held.add(af)
                self._stop_timer(af)
                self._refill(af)

    def release(self, af: int) -> None:
        """Give back one that was prepared, unless one of its family is held."""
        if af not in self._held:
            self._cool(af)

    def renew(self) -> None:
        """Give back what is there or on its way, and get those that are held anew: the network is another."""
        self._renewals += 1
        self._failures.clear()
        for af in list(self._tasks):
            self._cool(af)
        for af in self._held:
            self._stop_timer(af)
            self._refill(af)

    @property
    def held(self) -> frozenset[int]:
        """The families of which one is kept ready."""
        return frozenset(self._held)

    async def take(self, af: int) -> Allocation | None:
        """Return the one there is, or is going to be; None: there is none. The caller owns it.

        Raises:
            RelayError: it could not be had.

        """
        self._tell(af)
        if af not in self._tasks:
            return None  # one that is held will be tried again all the same
        task, held = self._tasks.pop(af), af in self._held
        self._stop_timer(af)
        self._failures.pop(af, None)
        self._refill(af)
        renewals = self._renewals
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            self._drop(task)
            raise
        if self._renewals != renewals and task.exception() is not None:
            return None  # that was about another network
        allocation = task.result()
        if allocation.ended:
            return None
        if held:
            allocation.probe_every(None)
        return allocation

    async def close(self) -> None:
        """Get no more; those that are there are their pool's to close."""
        self._closed = True
        for af in list(self._timers):
            self._stop_timer(af)
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _tell(self, af: int) -> None:
        if self.on_asked is not None and not self._closed:
            self.on_asked(af)

    def _start(self, af: int, udp_blocked: bool) -> None:
        self._stop_timer(af)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._allocate(af, udp_blocked=udp_blocked), name="warm relay")
        self._tasks[af] = task
        task.add_done_callback(lambda done: self._warmed(af, done))

    def _refill(self, af: int) -> None:
        if not self._closed and af in self._held:
            if af not in self._tasks:
                self._start(af, udp_blocked=True)
            elif self.has(af):
                self._tasks[af].result().probe_every(IDLE_PROBE_S)

    def _warmed(self, af: int, task: asyncio.Task[Allocation]) -> None:
        mine = self._tasks.get(af) is task
        if task.cancelled() or task.exception() is not None:
            if mine:
                self._forget(af)
                self._again_later(af)
            return
        allocation = task.result()
        if mine and af in self._held:
            allocation.probe_every(IDLE_PROBE_S)
        before = allocation.on_end
        loop = asyncio.get_running_loop()
        since = loop.time()

        def ended(which: Allocation) -> None:
            if self._tasks.get(af) is task:
                self._forget(af)
                if loop.time() - since >= STEADY_S:
                    self._failures.pop(af, None)
                self._again_later(af)
            if before is not None:
                before(which)

        allocation.on_end = ended

    def _again_later(self, af: int) -> None:
        if self._closed or af not in self._held:
            return
        failures = self._failures.get(af, 0)
        self._failures[af] = failures + 1
        pause_s = min(self.retry_s * 2.0 ** min(failures, 16), RETRY_CAP_S)
        self._timers[af] = asyncio.get_running_loop().call_later(pause_s, self._refill, af)

    def _stop_timer(self, af: int) -> None:
        timer = self._timers.pop(af, None)
        if timer is not None:
            timer.cancel()

    def _forget(self, af: int) -> asyncio.Task[Allocation] | None:
        self._stop_timer(af)
        return self._tasks.pop(af, None)

    def _cool(self, af: int) -> None:
        task = self._forget(af)
        if task is not None:
            self._drop(task)

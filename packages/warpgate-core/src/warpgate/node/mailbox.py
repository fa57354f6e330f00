"""What a node's user sees of inbound pipes: message callbacks, ``accept()`` and futures by id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..events import Counters
    from ..net.pipe import Pipe

MAX_UNACCEPTED = 1024
"""Inbound pipes that wait for ``accept()``; more are still served by callbacks, and counted."""

MsgCallback = Callable[[bytes, tuple[str, int], Any], Any]


class Mailbox:
    """Inbound pipes of one node."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._callbacks: list[MsgCallback] = []
        self._pipes: set[Pipe] = set()
        self._unaccepted: OrderedDict[Pipe, None] = OrderedDict()
        self._accepting: deque[asyncio.Future[Pipe]] = deque()
        self._futures: dict[str, asyncio.Future[Pipe]] = {}

    def callbacks(self) -> list[MsgCallback]:
        """Return the callbacks in the order in which they were added."""
        return self._callbacks

    def add_callback(self, callback: MsgCallback) -> None:
        """Add a callback; pipes that kept messages for want of one deliver them now."""
        self._callbacks = [*self._callbacks, callback]
        for pipe in list(self._pipes):
            pipe.kick()

    def remove_callback(self, callback: MsgCallback) -> None:
        """Remove a callback; unknown ones are ignored."""
        self._callbacks = [other for other in self._callbacks if other != callback]

    def deliver(self, pipe: Pipe) -> None:
        """Show an inbound pipe to the callbacks and to ``accept()``."""
        self._pipes.add(pipe)
        pipe.add_close_callback(self._gone)
        while self._accepting:
            waiting = self._accepting.popleft()
            if not waiting.done():
                waiting.set_result(pipe)
                break
        else:
            if len(self._unaccepted) < MAX_UNACCEPTED:
                self._unaccepted[pipe] = None
            else:
                self._counters.count("accept_overflow")
        pipe.set_callbacks(self.callbacks, self._counters)

    async def accept(self) -> Pipe:
        """Return the next inbound pipe that has not been returned before."""
        if self._unaccepted:
            return self._unaccepted.popitem(last=False)[0]
        waiting: asyncio.Future[Pipe] = asyncio.get_running_loop().create_future()
        self._accepting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                # The pipe came in the same turn as the cancellation: the next caller gets it.
                self._unaccepted[waiting.result()] = None
                self._unaccepted.move_to_end(waiting.result(), last=False)
            raise

    def _gone(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        if pipe in self._unaccepted and not pipe.has_unread:
            del self._unaccepted[pipe]

    def future(self, pipe_id: str) -> asyncio.Future[Pipe]:
        """Return the future for an id of the user's choice, made on first use."""
        future = self._futures.get(pipe_id)
        if future is None or future.cancelled():
            future = asyncio.get_running_loop().create_future()
            self._futures[pipe_id] = future
            future.add_done_callback(lambda done: self._forget(pipe_id, done))
        return future

    def _forget(self, pipe_id: str, future: asyncio.Future[Pipe]) -> None:
        if future.cancelled() and self._futures.get(pipe_id) is future:
            del self._futures[pipe_id]

    def ready(self, pipe_id: str, pipe: Pipe) -> None:
        """Resolve the future for an id; a second pipe for the same id replaces nothing."""
        future = self.future(pipe_id)
        if not future.done():
            future.set_result(pipe)

    def close(self, error: BaseException) -> None:
        """Fail everyone who still waits for a pipe."""
        for waiting in [*self._accepting, *self._futures.values()]:
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()
        self._accepting.clear()
        self._futures.clear()
        self._unaccepted.clear()

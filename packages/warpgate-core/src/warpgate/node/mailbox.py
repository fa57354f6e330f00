"""What a node's user sees of inbound pipes: message callbacks, ``accept()`` and futures by id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from warpgate.net.subscription import MsgCallback

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.net.pipe import Pipe

MAX_UNACCEPTED = 1024
"""Inbound pipes that wait for ``accept()``; more are still served by callbacks, and counted."""
MAX_READY = 1024
"""Pipes that ``pipe_ready`` has put under an id that nobody has asked for; the oldest go first."""


class Mailbox:
    """Inbound pipes of one node."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._callbacks: list[MsgCallback] = []
        self._pipes: set[Pipe] = set()
        self._unaccepted: OrderedDict[Pipe, None] = OrderedDict()
        self._accepting: deque[asyncio.Future[Pipe]] = deque()
        self._futures: OrderedDict[str, asyncio.Future[Pipe]] = OrderedDict()
        self._closed: BaseException | None = None

    def callbacks(self) -> list[MsgCallback]:
        """Return the callbacks in the order in which they were added."""
        return self._callbacks

    def add_callback(self, callback: MsgCallback) -> None:
        """Add a callback; pipes that kept messages for want of one deliver them now.

        Raises:
            TypeError: it can't be called.

        """
        if not callable(callback):
            raise TypeError(f"{callback!r} can't be called with (msg, client_tup, pipe)")
        self._set_callbacks([*self._callbacks, callback])

    def remove_callback(self, callback: MsgCallback) -> None:
        """Remove a callback; unknown ones are ignored."""
        self._set_callbacks([other for other in self._callbacks if other != callback])

    def _set_callbacks(self, callbacks: list[MsgCallback]) -> None:
        self._callbacks = callbacks
        for pipe in list(self._pipes):
            pipe.kick()

    # Pipes in the order in which they came.

    def deliver(self, pipe: Pipe) -> None:
        """Show an inbound pipe to the callbacks and to ``accept()``."""
        self._pipes.add(pipe)
        pipe.add_close_callback(self._gone)
        if not self._give(pipe):
            if len(self._unaccepted) >= MAX_UNACCEPTED:
                self._forget_ended()
            if len(self._unaccepted) < MAX_UNACCEPTED:
                self._unaccepted[pipe] = None
            else:
                self._counters.count("accept_overflow")
        pipe.set_callbacks(self.callbacks, self._counters)

    def _give(self, pipe: Pipe) -> bool:
        """Give a pipe to whoever has waited longest; False when nobody waits."""
        while self._accepting:
            waiting = self._accepting.popleft()
            if not waiting.done():
                waiting.set_result(pipe)
                return True
        return False

    async def accept(self) -> Pipe:
        """Return the next inbound pipe that has not been returned before.

        Raises:
            PipeClosed: the node is closed.

        """
        if self._unaccepted:
            return self._unaccepted.popitem(last=False)[0]
        if self._closed is not None:
            raise self._closed
        waiting: asyncio.Future[Pipe] = asyncio.get_running_loop().create_future()
        self._accepting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting in self._accepting:
                self._accepting.remove(waiting)
            elif waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                # The pipe came in the same turn as the cancellation: the next in line gets it.
                pipe = waiting.result()
                if not self._give(pipe):
                    self._unaccepted[pipe] = None
                    self._unaccepted.move_to_end(pipe, last=False)
            raise

    def _gone(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        if not pipe.has_unread:
            self._unaccepted.pop(pipe, None)

    def _forget_ended(self) -> None:
        """Forget pipes that ended while callbacks were still at their last messages."""
        for pipe in [p for p in self._unaccepted if p.closed and not p.has_unread]:
            del self._unaccepted[pipe]

    # Pipes by an id of the user's choice.

    def future(self, pipe_id: str) -> asyncio.Future[Pipe]:
        """Return the future for an id, made on first use or when the pipe of the last one is closed."""
        future = self._futures.get(pipe_id)
        if future is None or _is_over(future):
            future = asyncio.get_running_loop().create_future()
            if self._closed is not None:
                _fail(future, self._closed)
                return future
            self._futures[pipe_id] = future
            future.add_done_callback(lambda done: self._forget(pipe_id, done))
        return future

    def _forget(self, pipe_id: str, future: asyncio.Future[Pipe]) -> None:
        if future.cancelled() and self._futures.get(pipe_id) is future:
            del self._futures[pipe_id]

    def ready(self, pipe_id: str, pipe: Pipe) -> None:
        """Resolve the future for an id; a second pipe for the same id replaces no open one."""
        future = self.future(pipe_id)
        if future.done():
            return
        future.set_result(pipe)
        self._futures.move_to_end(pipe_id)
        # The ids may be the peers' choice.
        done = [key for key, other in self._futures.items() if other.done()]
        for key in done[: max(0, len(done) - MAX_READY)]:
            del self._futures[key]
            self._counters.count("pipe_ready_evicted")

    def close(self, error: BaseException) -> None:
        """Fail everyone who still waits for a pipe, and who will."""
        self._closed = error
        for waiting in [*self._accepting, *self._futures.values()]:
            _fail(waiting, error)
        self._accepting.clear()
        self._futures.clear()
        self._unaccepted.clear()


def _is_over(future: asyncio.Future[Pipe]) -> bool:
    if not future.done() or future.cancelled():
        return future.done()
    pipe = future.result()
    return pipe.closed and not pipe.has_unread


def _fail(future: asyncio.Future[Pipe], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody has to look

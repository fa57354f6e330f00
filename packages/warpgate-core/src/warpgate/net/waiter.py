"""What a reader waits on: a future that can resume its task without another turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Waiter:
    """An awaitable for one task, resolved with True (look) or False (the time is up).

    It is a future to asyncio's tasks (``_asyncio_future_blocking`` is how they recognise one). A
    future of asyncio itself always takes another turn of the loop, with a system call, before its
    task runs; that is a quarter of the time of a ping-pong, and :meth:`resume` saves it.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_callback",
        "_cancelled",
        "_context",
        "_loop",
        "_value",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._callback: Callable[[Waiter], object] | None = None
        self._cancelled = False
        self._context: Context | None = None
        self._loop = loop
        self._value: bool | None = None

    def done(self) -> bool:
        """Return whether it is resolved or cancelled."""
        return self._value is not None

    def set_result(self, value: bool) -> None:
        """Resolve it; the task runs in the loop's next turn."""
        self._value = value
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)

    def resume(self) -> None:
        """Resolve it with True and run the task now.

        Only for callbacks of the loop, as their last deed: a task can't run inside of another.
        """
        self._value = True
        if self._callback is not None and self._context is not None:
            self._context.run(self._callback, self)

    # What asyncio's tasks call

    def __await__(self) -> Generator[Waiter, None, bool]:
        if self._value is None:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def add_done_callback(
        self, callback: Callable[[Waiter], object], *, context: Context | None = None
    ) -> None:
        """Take the task's way of going on."""
        self._callback, self._context = callback, context

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def result(self) -> bool:
        """Return what it was resolved with.

        Raises:
            asyncio.CancelledError: it was cancelled.

        """
        if self._cancelled:
            raise asyncio.CancelledError
        return bool(self._value)

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it, unless it is done."""
        if self._value is not None:
            return False
        self._cancelled = True
        self.set_result(False)
        return True

"""Closing what a node, its strategies and its hooks have opened."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from warpgate.errors import LocalProtocolError
from warpgate.events import Counters

CLOSE_TIMEOUT_S: Final = 5.0
CANCEL_GRACE_S: Final = 0.2  # for a close() that was cancelled to run its own finally blocks
RESOURCE_ERRORS: Final = "resource_errors"
RESOURCE_TIMEOUTS: Final = "resource_timeouts"

log = logging.getLogger(__name__)
T = TypeVar("T")


class Resources:
    """Objects that are closed with a node: in reverse order, each once, each guarded.

    Args:
        counters: where failures are counted, as ``resource_errors`` and ``resource_timeouts``.

    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = Counters() if counters is None else counters
        self._open: list[Any] = []
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    def register(self, obj: T) -> T:
        """Close ``obj`` when the node closes.

        Args:
            obj: has ``close()``, synchronous or asynchronous, or an asynchronous ``aclose()``.
                Registering it again changes nothing. While the node is closing it is still
                accepted, and closed in the same sweep.

        Returns:
            The object.

        Raises:
            TypeError: it has neither method.
            LocalProtocolError: everything is closed; the object stays the caller's to close.

        """
        _closer(obj)
        if self._closed:
            raise LocalProtocolError(
                f"the node is closed and can't own a {type(obj).__name__} any more; close it yourself"
            )
        if not any(obj is known for known in self._open):
            self._open.append(obj)
        return obj

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Close everything, the newest first; a second call waits for the first.

        Args:
            timeout_s: seconds for all of it. When they are over, what is being closed is
                cancelled, and each of the rest gets the moment that ``close()`` takes until it
                first waits. Cancelling this call does not stop the sweep.

        """
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.create_task(self._close_all(timeout_s), name="close resources")
        await asyncio.shield(self._closing)

    async def _close_all(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        late: set[asyncio.Task[None]] = set()
        while self._open:
            task = self._start(self._open.pop())
            if task is None:
                continue
            try:
                await asyncio.wait({task}, timeout=max(0.0, deadline - loop.time()))
            finally:
                if task.cancel():  # False when it is done
                    late.add(task)
        self._closed = True
        if late:
            self.counters.count(RESOURCE_TIMEOUTS, len(late))
            names = ", ".join(sorted(task.get_name() for task in late))
            log.warning("took too long and was cancelled: %s", names)
            await asyncio.wait(late, timeout=CANCEL_GRACE_S)

    def _start(self, obj: Any) -> asyncio.Task[None] | None:
        try:
            result = _closer(obj)()
        except Exception:  # noqa: BLE001  # one resource must not keep the others open
            self._failed(obj, None)
            return None
        if not inspect.isawaitable(result):
            return None
        # In a task of its own: its cancellations are not ours, and it can't outstay its time.
        task = asyncio.create_task(_await(result), name=f"close {type(obj).__name__}")
        task.add_done_callback(lambda done: self._ended(obj, done))
        return task

    def _ended(self, obj: Any, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failed(obj, task.exception())

    def _failed(self, obj: Any, error: BaseException | None) -> None:
        self.counters.count(RESOURCE_ERRORS)
        log.error("closing a %s failed", type(obj).__name__, exc_info=error or True)


def _closer(obj: Any) -> Callable[[], Any]:
    for name in ("close", "aclose"):
        method = getattr(obj, name, None)
        if callable(method):
            found: Callable[[], Any] = method
            return found
    raise TypeError(f"a {type(obj).__name__} has no close() and can't be a resource")


async def _await(result: Awaitable[Any]) -> None:
    await result

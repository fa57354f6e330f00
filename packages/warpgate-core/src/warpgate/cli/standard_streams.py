"""Standard input and output for a program that runs an event loop.

Both are read and written by threads. Reading them from the loop would need O_NONBLOCK, which is a
property of the open file and thus of everyone who shares it (the shell behind a terminal, standard
output); and neither files nor Windows' handles can be waited for that way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

CHUNK = 64 * 1024

T = TypeVar("T")


class BlockingCalls:
    """A thread that makes one blocking call after the other.

    It is a daemon: a call that never returns, such as a read from a terminal, keeps no program
    from ending. (An executor's threads would be waited for.)
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Return a future for what a function returns or raises, called after those before it."""
        future: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                result = function()
            except OSError as error:
                self._tell(_fail, future, error)
            else:
                self._tell(_settle, future, result)

        self._calls.put(work)
        return future

    def _work(self) -> None:
        while True:
            self._calls.get()()

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(function, *args)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: OSError) -> None:
    if not future.done():
        future.set_exception(error)


class Input:
    """Standard input; nothing is read before somebody asks."""

    def __init__(self) -> None:
        self._calls = BlockingCalls("stdin")
        self._reading: asyncio.Future[bytes] | None = None
        self._ended = sys.stdin is None  # closed by our parent: descriptor 0 is anything by now

    async def read(self) -> bytes:
        """Return what comes next, at most 64 KiB; nothing at the end. A cancelled call loses nothing.

        Raises:
            OSError: standard input can't be read.

        """
        if self._ended:
            return b""
        if self._reading is None:
            self._reading = self._calls.call(_read)
        data = await asyncio.shield(self._reading)
        self._reading = None
        self._ended = not data
        return data


class Output:
    """Standard output."""

    def __init__(self) -> None:
        self._calls = BlockingCalls("stdout")

    async def write(self, data: bytes) -> None:
        """Write bytes and wait until the system has them.

        Raises:
            OSError: standard output can't be written; ``BrokenPipeError`` when nobody reads it.

        """
        if sys.stdout is not None:
            await self._calls.call(lambda: _write(data))


def _read() -> bytes:
    while True:
        try:
            return os.read(0, CHUNK)
        except BlockingIOError:  # somebody who shares the file made it non-blocking
            select.select([0], [], [])


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(1, left) :]
        except BlockingIOError:
            select.select([], [1], [])

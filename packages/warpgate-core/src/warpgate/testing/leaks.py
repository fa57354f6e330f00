"""What a piece of code has left behind: tasks, sockets, file descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from types import TracebackType
from typing import Final, Self

GRACE_S: Final = 1.0
POLL_S: Final = 0.005

_FOLDERS: Final = ("/proc/self/fd", "/dev/fd")

Descriptor = tuple[object, ...]


def open_descriptors() -> dict[Descriptor, str]:
    """Return this process's open file descriptors, each with a description.

    The keys tell a descriptor from a later one that bears the same number. On Windows only the
    sockets that are bound or connected are listed.
    """
    if sys.platform == "win32":
        return _windows_sockets()
    folder = next(folder for folder in _FOLDERS if os.path.isdir(folder))  # noqa: PTH112
    found: dict[Descriptor, str] = {}
    for name in os.listdir(folder):  # noqa: PTH208  # pathlib would open more of them
        number = int(name)
        try:
            facts = os.fstat(number)
        except OSError:
            continue  # the one that listed the folder
        found[number, facts.st_dev, facts.st_ino] = _describe(number, facts.st_mode)
    return found


def _describe(number: int, mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return f"socket {number} {_ends(number)}".rstrip()
    if sys.platform == "linux":
        try:
            return f"descriptor {number} ({os.readlink(f'/proc/self/fd/{number}')})"  # noqa: PTH115
        except OSError:
            pass
    return f"descriptor {number}"


def _ends(number: int) -> str:
    sock = socket.socket(fileno=os.dup(number))
    try:
        text = str(sock.getsockname())
        try:
            text += f" to {sock.getpeername()}"
        except OSError:
            text += ", not connected"
    except OSError:
        text = ""
    finally:
        sock.close()
    return text


def _windows_sockets() -> dict[Descriptor, str]:
    import psutil

    return {
        (c.fd, c.family, c.type, c.laddr, c.raddr): f"socket {c.laddr} {c.raddr} {c.status}"
        for c in psutil.Process().net_connections("inet")
        if c.status != psutil.CONN_TIME_WAIT
    }


class LeakCheck:
    """Compares the tasks and descriptors at its begin with those at its end.

    Use it as ``async with LeakCheck(): …``, or call :meth:`begin` and :meth:`check`. When the block
    raises, nothing is checked: what failed says more.

    Args:
        grace_s: seconds in which what was left may still go away by itself.

    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._tasks: set[asyncio.Task[object]] = set()
        self._descriptors: dict[Descriptor, str] = {}

    def begin(self) -> None:
        """Note what is there; call it in the running loop."""
        self._tasks = asyncio.all_tasks()
        self._descriptors = open_descriptors()

    def left(self) -> list[str]:
        """Return what has come since :meth:`begin` and is still there, in words."""
        current = asyncio.current_task()
        lines = [
            f"task {_task_text(task)}"
            for task in asyncio.all_tasks() - self._tasks
            if task is not current
        ]
        new = open_descriptors()
        return lines + [text for key, text in new.items() if key not in self._descriptors]

    async def check(self) -> None:
        """Wait until nothing is left.

        Raises:
            AssertionError: something is, after ``grace_s`` seconds; one line each.

        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.grace_s
        while left := self.left():
            if loop.time() >= deadline:
                lines = "\n".join(f"  {line}" for line in left)
                raise AssertionError(f"left behind after {self.grace_s:g} s:\n{lines}")
            await asyncio.sleep(POLL_S)

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.check()


def _task_text(task: asyncio.Task[object]) -> str:
    stack = task.get_stack(limit=1)
    where = f" at {stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else ""
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    return f"{task.get_name()!r}: {name}{where}"

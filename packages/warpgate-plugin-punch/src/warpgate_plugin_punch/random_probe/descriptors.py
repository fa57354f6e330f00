"""How many more sockets this process may open."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

RESERVE: Final = 64
"""Descriptors left to the rest of the program."""
WINDOWS_SELECT: Final = 256  # Python's select() takes 512 sockets there
_FOLDERS: Final = ("/proc/self/fd", "/dev/fd")


def limit() -> int | None:
    """Return how many descriptors this process may have; None where there is no such limit."""
    if sys.platform == "win32":
        selecting = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        return WINDOWS_SELECT + RESERVE if selecting else None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def in_use() -> int:
    """Return how many this process has open; 0 where the system does not say."""
    for folder in _FOLDERS:
        try:
            return sum(1 for _ in os.scandir(folder))
        except OSError:
            continue
    return 0


def sockets_left(wanted: int) -> tuple[int, str]:
    """Return how many of so many sockets can be opened, and a complaint when they are fewer."""
    most = limit()
    if most is None:
        return wanted, ""
    used = in_use()
    left = max(0, min(wanted, most - used - RESERVE))
    if left == wanted:
        return wanted, ""
    need = wanted + used + RESERVE
    return left, (
        f"only {left} of {wanted} sockets: this process may have {most} file descriptors and has "
        f"{used}; raise the limit to {need} or more (ulimit -n {need})"
    )

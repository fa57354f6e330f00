"""Looks names up with a deadline, and leaves nothing behind that anybody has to wait for.

A system's resolver can't be interrupted: without an answer it takes as long as it likes. In the
event loop's own executor it would hold up the end of ``asyncio.run``, and the names after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, Final

MAX_LOOKUPS: Final = 32
"""Names that are being looked up at once, in a thread each, over all event loops of the process."""

Entry = tuple[int, int, int, str, tuple[Any, ...]]
"""One result of ``socket.getaddrinfo``."""
_Key = tuple[str, int, int, int]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[Entry]]"]

_lock = threading.Lock()
_waiting: dict[_Key, list[_Waiter]] = {}


async def look_up(
    host: str,
    port: int,
    *,
    family: int = socket.AF_UNSPEC,
    kind: int = 0,
    timeout_s: float,
) -> list[Entry]:
    """Return a name's addresses, as ``socket.getaddrinfo`` does.

    Whoever asks for the same while the resolver is at it waits for the same answer.

    Args:
        host: a name or an IP address.
        port: goes into the addresses.
        family: ``IP4``, ``IP6``, or any.
        kind: ``socket.SOCK_STREAM``, ``socket.SOCK_DGRAM``, or any.
        timeout_s: how long to wait for the resolver, in seconds.

    Raises:
        OSError: the name is not found, or too many are being looked up.
        TimeoutError: the resolver has not answered in time; it goes on in its thread, for nobody.

    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Entry]] = loop.create_future()
    key = host, port, int(family), int(kind)
    waiter = loop, future
    with _lock:
        first = key not in _waiting
        if first and len(_waiting) >= MAX_LOOKUPS:
            raise socket.gaierror(
                socket.EAI_AGAIN, f"{MAX_LOOKUPS} names are being looked up already"
            )
        _waiting.setdefault(key, []).append(waiter)
    if first:
        try:
            threading.Thread(target=_ask, args=(key,), name=f"look up {host}", daemon=True).start()
        except BaseException:  # no more threads
            with _lock:
                _waiting.pop(key, None)
            raise
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    finally:
        with _lock:
            if waiter in _waiting.get(key, ()):
                _waiting[key].remove(waiter)


def _ask(key: _Key) -> None:
    host, port, family, kind = key
    found: list[Entry] = []
    failure: Exception | None = None
    try:
        found = list(socket.getaddrinfo(host, port, family, kind))
    except OSError as error:
        failure = error
    except Exception as error:  # noqa: BLE001  # such as UnicodeError, for what is no name at all
        failure = OSError(f"{host!r} can't be looked up: {error}")
    with _lock:
        waiters = _waiting.pop(key, [])
    for loop, future in waiters:
        with contextlib.suppress(RuntimeError):  # that loop has ended
            loop.call_soon_threadsafe(_settle, future, found, failure)


def _settle(
    future: asyncio.Future[list[Entry]], found: list[Entry], failure: Exception | None
) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(found)

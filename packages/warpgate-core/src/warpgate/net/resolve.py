"""Looks names up with a deadline, and leaves nothing behind that anybody has to wait for.

A system's resolver can't be interrupted: without an answer it takes as long as it likes. In the
event loop's own executor it would hold up the end of ``asyncio.run``, and the names after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

MAX_LOOKUPS: Final = 32
"""Names that are being looked up at once, in a thread each, over all event loops of the process."""
MAX_SAME: Final = 4
"""Of these, how many may be at the same name."""
JOIN_S: Final = 1.0
"""A resolver that has been at it for longer is asked anew: its first question may have gone to a network
that this machine has left, or into one that wanted a login first."""

Entry = tuple[int, int, int, str, tuple[Any, ...]]
"""One result of ``socket.getaddrinfo``."""
_Key = tuple[str, int, int, int]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[Entry]]"]


@dataclass(slots=True, eq=False)
class _Question:
    """What one thread asks, since when, and who waits for its answer."""

    key: _Key
    began: float
    waiters: list[_Waiter] = field(default_factory=list)


_lock = threading.Lock()
_questions: list[_Question] = []  # the oldest first


async def look_up(
    host: str,
    port: int,
    *,
    family: int = socket.AF_UNSPEC,
    kind: int = 0,
    timeout_s: float,
) -> list[Entry]:
    """Return a name's addresses, as ``socket.getaddrinfo`` does.

    Whoever asks for the same while the resolver is at it waits for the same answer; the resolver is
    asked once more where it has been at it for ``JOIN_S``, and the first success is everybody's.

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
        question = _joinable(key)
        anew = question is None
        if question is None:
            question = _Question(key, time.monotonic())
            _questions.append(question)
        question.waiters.append(waiter)
    if anew:
        try:
            threading.Thread(
                target=_ask, args=(question,), name=f"look up {host}", daemon=True
            ).start()
        except BaseException:  # no more threads
            with _lock:
                _questions.remove(question)
            raise
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    finally:
        with _lock:
            if waiter in question.waiters:
                question.waiters.remove(waiter)


def _joinable(key: _Key) -> _Question | None:
    """Return the question whose answer to wait for; None: the resolver is to be asked."""
    same = [each for each in _questions if each.key == key]
    full = len(_questions) >= MAX_LOOKUPS
    if same and (full or len(same) >= MAX_SAME or time.monotonic() - same[-1].began < JOIN_S):
        return same[-1]
    if full:
        raise socket.gaierror(socket.EAI_AGAIN, f"{MAX_LOOKUPS} names are being looked up already")
    return None


def _ask(question: _Question) -> None:
    host, port, family, kind = question.key
    found: list[Entry] = []
    failure: Exception | None = None
    try:
        found = list(socket.getaddrinfo(host, port, family, kind))
    except OSError as error:
        failure = error
    except Exception as error:  # noqa: BLE001  # such as UnicodeError, for what is no name at all
        failure = OSError(f"{host!r} can't be looked up: {error}")
    with _lock:
        _questions.remove(question)
        served = [question]
        if failure is None:
            served += [each for each in _questions if each.key == question.key]
        waiters = [waiter for each in served for waiter in each.waiters]
        for each in served:
            each.waiters = []
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

"""The reading side of a pipe: readers wait in line, and none of them loses anything."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Self, cast

from warpgate.errors import PipeClosed
from warpgate.net.addresses import Address
from warpgate.net.constants import SUB_ALL
from warpgate.net.inbox import READ_SIZE, Inbox
from warpgate.net.subscription import Subscription
from warpgate.net.waiter import Waiter


class Reader(Inbox):
    """``recv``, ``recv_n`` and ``async for``.

    A reader that has to wait stands in its subscription's line with a :class:`Waiter`: True tells it that
    it is first and there is something to see, False that its time is up. The message itself stays
    in the queue until the reader runs again, so a cancelled reader takes nothing with it.
    """

    __slots__ = ("_alarm", "_alarm_at", "_deadlines")

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: dict[Waiter, float] = {}  # of the readers that wait
        self._alarm: asyncio.TimerHandle | None = None  # at the earliest of them, or before
        self._alarm_at = math.inf

    async def recv(self, sub: Any = SUB_ALL, timeout: float | None = 2, full: bool = False) -> Any:
        """Return the next message.

        Args:
            sub: a subscription; it is made when there is no equal one.
            timeout: seconds to wait; None waits for ever, 0 only looks.
            full: return ``[(ip, port), data]`` instead of the bytes alone.

        Returns:
            The message, or None when the time is up or the pipe has ended. What came before the
            end is returned first. A cancelled call loses no message.

        Raises:
            ValueError: as :meth:`subscribe`.

        """
        queue = self._all if sub is SUB_ALL else None
        if queue is None:
            queue = self._queue_for(sub)
        waiters = queue.waiters
        if waiters or not queue.queue:
            if (timeout is not None and timeout <= 0) or (self._ended and not waiters):
                return self._nothing()
            loop = asyncio.get_running_loop()
            waiter = Waiter(loop)
            waiters.append(waiter)
            if timeout is not None:
                deadline = self._deadlines[waiter] = loop.time() + timeout
                if deadline < self._alarm_at:
                    self._set_alarm(loop, deadline)
            try:
                served = await waiter
            except asyncio.CancelledError:
                self._leave_line(queue, waiter)
                self._next_turn(queue)
                raise
            if not served or not queue.queue:
                self._leave_line(queue, waiter)
                self._next_turn(queue)
                return self._nothing()
            waiters.popleft()  # who is told to look is the first in line
            self._deadlines.pop(waiter, None)  # the alarm may have gone off in the same turn
        data, addr = self._take(queue)
        if waiters:
            self._next_turn(queue)
        return [addr, data] if full else data

    async def recv_n(self, n: int, sub: Any = SUB_ALL, timeout: float | None = None) -> bytes:
        """Return exactly ``n`` bytes of a stream; what came beyond them stays for the next call.

        Args:
            n: how many bytes.
            sub: a subscription; it is made when there is no equal one.
            timeout: seconds to wait; None waits for ever.

        Raises:
            PipeClosed: the pipe ended before; ``partial`` has the bytes that came.
            TimeoutError: the time is up; the bytes that came stay for the next call.
            TypeError: datagrams have borders; ask for ``transport="tcp"``.
            ValueError: ``n`` is negative, or as :meth:`subscribe`.

        """
        if self.datagram:
            raise TypeError(
                "recv_n needs a stream, and this pipe carries datagrams, unordered and lossy; "
                'ask for transport="tcp"'
            )
        if n < 0:
            raise ValueError(f"can't receive {n} bytes")
        queue = self._queue_for(sub)
        if n == 0:
            return b""
        if queue.queue and not queue.waiters and len(queue.queue[0][0]) == n:
            return self._take(queue)[0]
        return await self._gather(queue, n, timeout)

    async def _gather(self, queue: Subscription, n: int, timeout: float | None) -> bytes:
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        gathered = bytearray()
        addr: Address | None = None
        waiter: Waiter | None = None
        try:
            while True:
                if waiter is not None or not queue.waiters:
                    # First in line. Taking at once, and not when all has come, keeps the stream
                    # reading however large n is.
                    while queue.queue and len(gathered) < n:
                        data, addr = self._take(queue)
                        if len(data) == n and not gathered:
                            return data
                        gathered += data
                    if len(gathered) >= n:
                        rest = gathered[n:]
                        del gathered[n:]
                        result, gathered = bytes(gathered), rest
                        return result
                if queue.offset not in self._subs or (self._ended and not queue.queue):
                    partial, gathered = bytes(gathered), bytearray()
                    self._nothing()
                    text = f"the pipe ended after {len(partial)} of {n} bytes"
                    raise PipeClosed(text, partial) from self._end_cause()
                following = Waiter(loop)
                if waiter is None:
                    queue.waiters.append(following)
                else:  # keep the place
                    queue.waiters[queue.waiters.index(waiter)] = following
                waiter = following
                if deadline is not None:
                    self._deadlines[waiter] = deadline
                    if deadline < self._alarm_at:
                        self._set_alarm(loop, deadline)
                in_time = await waiter
                self._deadlines.pop(waiter, None)
                if not in_time:
                    raise TimeoutError(f"{len(gathered)} of {n} bytes came within {timeout} s")
        finally:
            if gathered and addr is not None:
                self._put_back(queue, bytes(gathered), addr)
            if waiter is not None:
                self._leave_line(queue, waiter)
            self._next_turn(queue)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self.recv(SUB_ALL, None)
        if message is None:
            cause = self._end_cause()
            if cause is not None:  # a part may be missing: that is no end to go on from
                raise PipeClosed from cause
            raise StopAsyncIteration
        return cast("bytes", message)

    def _end_cause(self) -> BaseException | None:
        """Return why the pipe broke; None for an end that one of its ends has chosen."""
        return None

    def _nothing(self) -> None:
        """Note that a reader got nothing."""
        if self._ended:
            self._drained()  # it has seen the end

    def _leave_line(self, sub: Subscription, waiter: Waiter) -> None:
        self._deadlines.pop(waiter, None)
        sub.waiters.remove(waiter)

    def _next_turn(self, sub: Subscription) -> None:
        """Wake who is first in line now, if there is anything to see."""
        if sub.queue or self._ended or sub.offset not in self._subs:
            sub.wake()

    def _put_back(self, sub: Subscription, data: bytes, addr: Address) -> None:
        """Put bytes that were read but not used at the head of the queue."""
        if sub.offset not in self._subs:
            return
        for start in reversed(range(0, len(data), READ_SIZE)):
            self._put(sub, (data[start : start + READ_SIZE], addr))
            sub.queue.rotate(1)

    # A timer for each recv would cost more than all the rest of it. So there is one for the pipe,
    # which stays where it is when a reader is served, and looks anew when it goes off.

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = loop.call_at(deadline, self._on_alarm, loop)

    def _on_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._alarm, self._alarm_at = max(loop.time(), self._alarm_at), None, math.inf
        for waiter, deadline in list(self._deadlines.items()):
            if deadline > now:
                continue
            del self._deadlines[waiter]
            if not waiter.done():
                waiter.set_result(False)
        if self._deadlines and not self._ended:
            self._set_alarm(loop, min(self._deadlines.values()))

    def _end(self) -> None:
        super()._end()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf

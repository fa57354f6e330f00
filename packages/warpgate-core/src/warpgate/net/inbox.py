"""The incoming half of a pipe: who gets a message, in which order, and who waits for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from warpgate.events import Counters
from warpgate.net.addresses import Address
from warpgate.net.constants import SUB_ALL
from warpgate.net.subscription import (
    MESSAGE_OVERHEAD,
    Key,
    Message,
    MessageQueue,
    MsgCallback,
    Subscription,
    largest,
    subscription_key,
)

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe

log = logging.getLogger("warpgate.pipe")

HIGH_WATER = 1 << 20  # bytes kept unread: above it a stream stops reading
LOW_WATER = HIGH_WATER // 4  # at or below it the stream reads on
UDP_KEEP_DATAGRAMS = 1024  # kept unread for one reader; beyond it the oldest go
UDP_KEEP_BYTES = 4 << 20
READ_SIZE = 1 << 16  # bytes of the largest message of a stream

ALL: Key = (None, None)
Receiver = Callable[[bytes, Address], None]


def no_callbacks() -> Sequence[MsgCallback]:
    """Return no callbacks: what a pipe that belongs to no node has."""
    return ()


class Inbox:
    """Subscriptions, the messages that wait, and the one task that runs handlers.

    Queue subscriptions get a message directly. Handlers and callbacks run one at a time, in the
    order of the messages, in a task that exists only while there is work for it. Everything that
    waits anywhere counts to ``HIGH_WATER`` on a stream, and is bounded per queue on datagrams.
    """

    datagram: ClassVar[bool] = False

    # Reading a slot is quicker than looking into a dictionary, and this is the hot path.
    __slots__ = (
        "_all",
        "_backlog",
        "_callback_source",
        "_callbacks",
        "_dispatcher",
        "_ended",
        "_held",
        "_next_offset",
        "_paused",
        "_queues",
        "_receiver",
        "_sole",
        "_subs",
        "_work",
        "counters",
        "dropped",
        "keep_bytes",
        "unmatched",
    )

    def __init__(self) -> None:
        self.unmatched = 0  # messages that no subscription wanted
        self.dropped = 0  # datagrams that gave way to newer ones
        self.keep_bytes = UDP_KEEP_BYTES  # unread datagrams of one reader
        self._subs: dict[int, Subscription] = {}
        self._queues: dict[Key, Subscription] = {}
        self._all: Subscription | None = None  # the queue of SUB_ALL
        self._next_offset = 0
        self._sole: Subscription | None = None  # the only receiver there is, when it takes all
        self._receiver: Receiver | None = None
        self._backlog = MessageQueue()  # came before anyone asked
        self._work = MessageQueue()  # waits for handlers and callbacks
        self._dispatcher: asyncio.Task[None] | None = None
        self._callback_source: Callable[[], Sequence[MsgCallback]] = no_callbacks
        self._callbacks: tuple[MsgCallback, ...] = ()
        self.counters = Counters()
        self._held = 0
        self._paused = False
        self._ended = False  # nothing more will come

    # Subscriptions

    def subscribe(self, sub: Any = SUB_ALL, handler: MsgCallback | None = None) -> int:
        """Ask for messages.

        Args:
            sub: ``SUB_ALL``, or ``(pattern, address)``: a bytes regular expression that is searched
                in the message, or None; and the sender's ``(ip, port)``, or None.
            handler: ``handler(msg, client_tup, pipe)``, sync or async; None queues the messages
                for :meth:`recv`. Asking twice for the same queue is asking once.

        Returns:
            A number for :meth:`unsubscribe`.

        Raises:
            ValueError: the pattern is no regular expression, or the ip no IP address.
            TypeError: ``sub`` is no such pair, or the handler can't be called.

        """
        key = subscription_key(sub)
        if handler is not None and not callable(handler):
            raise TypeError(f"a handler is called with each message; {handler!r} can't be called")
        if handler is None and key in self._queues:
            return self._queues[key].offset
        new = Subscription(key, self._next_offset, handler)
        self._next_offset += 1
        self._subs[new.offset] = new
        if handler is None:
            self._queues[key] = new
            # Messages whose turn with the handlers has not come are new to this queue: a handler
            # that subscribes and reads misses nothing after its own message.
            for data, addr in self._work.queue:
                if new.matches(data, addr):
                    self._put(new, (data, addr))
        self._settle_sole()
        self._flush_backlog()
        return new.offset

    def unsubscribe(self, offset_or_sub: Any) -> None:
        """End a subscription; its queue is thrown away and its readers get None.

        Args:
            offset_or_sub: what :meth:`subscribe` returned, or a subscription: then all that are
                equal to it. What does not exist is no error.

        """
        if isinstance(offset_or_sub, int):
            gone = [self._subs[offset_or_sub]] if offset_or_sub in self._subs else []
        else:
            key = subscription_key(offset_or_sub)
            gone = [sub for sub in self._subs.values() if sub.key == key]
        self._remove(gone)

    def _remove(self, subs: Iterable[Subscription]) -> None:
        for sub in list(subs):
            del self._subs[sub.offset]
            if sub.handler is None:
                del self._queues[sub.key]
            self._drain(sub)
            sub.wake_all()
        self._settle_sole()

    def _queue_for(self, sub: Any) -> Subscription:
        """Return the queue of a subscription, which is made when there is none."""
        key = ALL if sub is SUB_ALL else subscription_key(sub)
        found = self._queues.get(key)
        return found if found is not None else self._subs[self.subscribe(key)]

    # Delivery

    def _deliver(self, data: bytes, addr: Address) -> None:
        """Hand a message to everyone who asked for it; keep it while nobody has asked at all."""
        if not self._subs and not self._callbacks:
            self._put(self._backlog, (data, addr))
            return
        queued, handled = False, bool(self._callbacks)
        for sub in self._subs.values():
            if not sub.matches(data, addr):
                continue
            if sub.handler is None:
                queued = True
                self._put(sub, (data, addr))
                sub.wake()
            else:
                handled = True
        if handled:
            self._put(self._work, (data, addr))
            if self._dispatcher is None:
                self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())
        elif not queued:
            self.unmatched += 1

    def _put(self, place: MessageQueue, message: Message) -> None:
        cost = len(message[0]) + MESSAGE_OVERHEAD
        place.queue.append(message)
        place.held += cost
        self._held += cost
        if self.datagram:
            while len(place.queue) > UDP_KEEP_DATAGRAMS or place.held > self.keep_bytes:
                self._take(place)
                self.dropped += 1
        elif self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._pause_reading()

    def _take(self, place: MessageQueue) -> Message:
        message = place.queue.popleft()
        cost = len(message[0]) + MESSAGE_OVERHEAD
        place.held -= cost
        self._held -= cost
        if self._paused and self._held <= LOW_WATER:
            self._paused = False
            self._resume_reading()
        return message

    @property
    def has_unread(self) -> bool:
        """Whether something that came is still waiting for a reader or a handler."""
        return self._held > 0

    def _drain(self, place: MessageQueue) -> list[Message]:
        """Empty a queue and return what was in it."""
        messages = list(place.queue)
        while place.queue:
            self._take(place)
        return messages

    def _flush_backlog(self) -> None:
        if self._receiver is not None or not (self._subs or self._callbacks):
            return
        for data, addr in self._drain(self._backlog):
            self._deliver(data, addr)

    def _settle_sole(self) -> None:
        """Find out whether one queue takes everything, so that a stream can skip all questions."""
        self._all = self._queues.get(ALL)
        self._sole = None
        if len(self._subs) == 1 and not self._callbacks and self._takes_directly():
            self._sole = self._all

    def _takes_directly(self) -> bool:
        return self._receiver is None

    async def _dispatch(self) -> None:
        """Run handlers and callbacks on what waits for them."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            while self._work.queue:
                data, addr = self._take(self._work)
                for sub in list(self._subs.values()):
                    alive = sub.handler is not None and sub.offset in self._subs
                    if alive and sub.matches(data, addr):
                        await self._call(cast("MsgCallback", sub.handler), data, addr, task)
                for callback in self._callbacks:
                    await self._call(callback, data, addr, task)
        finally:
            self._dispatcher = None
            if self._ended:
                self._drained()

    async def _call(
        self, handler: MsgCallback, data: bytes, addr: Address, task: asyncio.Task[None]
    ) -> None:
        try:
            result = handler(data, addr, cast("Pipe", self))
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            self.counters.count("handler_errors")  # the handler awaited something cancelled
            log.warning("a message handler of %r ended with a cancellation of its own", self)
        except Exception:
            self.counters.count("handler_errors")
            log.exception("a message handler of %r failed", self)

    def _end(self) -> None:
        """Let the readers know that nothing more will come."""
        self._ended = True
        for sub in self._queues.values():
            sub.wake_all()

    def _pause_reading(self) -> None:
        """Stop taking bytes from the system; streams override it."""

    def _resume_reading(self) -> None:
        """Take bytes from the system again; streams override it."""

    def _drained(self) -> None:
        """Do what follows when the handlers are done after the end; streams override it."""

    def _unread(self) -> list[Message]:
        """Take everything that nobody has seen, oldest first, and end all subscriptions."""
        messages = self._drain(self._backlog)
        fullest = largest([sub for sub in self._queues.values() if sub.key == ALL])
        work = self._drain(self._work)
        messages += list(fullest.queue) if fullest is not None else work
        self._remove(self._subs.values())
        return messages

"""Messages that brokers keep: publishing ours again on every connection, and reading others'."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import SignallingError
from warpgate.signalling.broker_policy import topic_matches

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.signalling.mqtt_link import BrokerLink

MAX_KEPT: Final = 16
"""Retained topics of a node."""
MAX_RETAINED_BYTES: Final = 4096
MAX_READINGS: Final = 32
MAX_EXAMINED: Final = 64
"""Messages of one broker that are looked at for one question."""
GRACE_S: Final = 0.25
"""How long the other brokers have once one has shown something acceptable."""
MARK: Final = b"\x00"
"""First byte of a message to oneself; no signal begins with it."""
MARK_BYTES: Final = 17


class _Reading:
    """One question to several brokers."""

    def __init__(self, topic_filter: str, limit: int, accept: Callable[[str, bytes], bool]) -> None:
        self.filter = topic_filter
        self.limit = limit
        self.accept = accept
        self.mark = MARK + secrets.token_bytes(MARK_BYTES - 1)
        self.found: dict[tuple[str, bytes], None] = {}
        self.some = asyncio.Event()
        self.examined: dict[BrokerLink, int] = {}
        self.marked: dict[BrokerLink, asyncio.Event] = {}

    def full(self) -> bool:
        return len(self.found) >= self.limit

    def take(self, link: BrokerLink, topic: str, payload: bytes) -> bool:
        """Look at a message; False when there is no more room for it."""
        self.examined[link] = self.examined.get(link, 0) + 1
        if self.full() or self.examined[link] > MAX_EXAMINED:
            if link in self.marked:
                self.marked[link].set()
            return False
        if payload and (topic, payload) not in self.found and self.accept(topic, payload):
            self.found[topic, payload] = None
            self.some.set()
        if self.full():
            for event in self.marked.values():
                event.set()
        return True


class Retained:
    """The retained side of a transport.

    Args:
        inbox: the node's own inbox topic.
        counters: where drops are counted.

    """

    def __init__(self, inbox: str, counters: Counters) -> None:
        self._inbox = inbox
        self._counters = counters
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._readings: list[_Reading] = []

    # Ours.

    async def publish(
        self, links: Sequence[BrokerLink], topic: str, payload: bytes, expiry_s: int
    ) -> int:
        """Publish now where there is a connection; what is kept is for :meth:`republish`."""
        if len(payload) > MAX_RETAINED_BYTES:
            raise SignallingError(
                f"a retained message of {len(payload)} bytes, at most {MAX_RETAINED_BYTES} allowed"
            )
        if topic not in self._kept and len(self._kept) >= MAX_KEPT:
            raise SignallingError(f"at most {MAX_KEPT} retained topics are allowed")
        if payload:
            self._kept[topic] = (payload, asyncio.get_running_loop().time() + expiry_s)
        else:
            self._kept.pop(topic, None)
        ways = [link.publish_retained(topic, payload, expiry_s) for link in links if link.connected]
        results = await asyncio.gather(*ways, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if not isinstance(error, SignallingError):
                raise error
        if errors and len(errors) == len(results):
            raise SignallingError("; ".join(map(str, errors)))
        return len(results) - len(errors)

    async def republish(self, link: BrokerLink) -> None:
        """Publish everything that is kept on a new connection."""
        now = asyncio.get_running_loop().time()
        for topic, (payload, expires) in list(self._kept.items()):
            if expires <= now:
                del self._kept[topic]
                continue
            try:
                await link.publish_retained(topic, payload, max(1, int(expires - now)))
            except SignallingError:
                self._counters.count("mqtt_retained_unpublished")
                return

    # Others'.

    async def read(
        self,
        links: Sequence[BrokerLink],
        topic_filter: str,
        limit: int,
        timeout_s: float,
        accept: Callable[[str, bytes], bool],
    ) -> list[tuple[str, bytes]]:
        """Return what the brokers keep for a filter and ``accept`` takes, at most ``limit`` messages."""
        if len(self._readings) >= MAX_READINGS:
            raise SignallingError("too many names are being looked up at once")
        reading = _Reading(topic_filter, limit, accept)
        self._readings.append(reading)
        asked = [asyncio.ensure_future(self._ask(reading, link)) for link in links]
        everywhere = asyncio.ensure_future(asyncio.wait(asked))
        some = asyncio.ensure_future(reading.some.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({everywhere, some}, timeout=timeout_s, return_when=first)
            if some.done():
                await asyncio.wait({everywhere}, timeout=min(GRACE_S, timeout_s))
        finally:
            self._readings.remove(reading)
            for task in (*asked, everywhere, some):
                task.add_done_callback(_retrieve)
                task.cancel()
        errors = [task.exception() for task in asked if task.done() and not task.cancelled()]
        causes = [str(error) for error in errors if error is not None]
        if len(causes) == len(asked) and not reading.found:
            raise SignallingError("; ".join(causes))
        return list(reading.found)

    async def _ask(self, reading: _Reading, link: BrokerLink) -> None:
        session = link.session
        if session is None:
            raise SignallingError(f"{link.name}: not connected")
        marked = reading.marked[link] = asyncio.Event()
        await session.subscribe(reading.filter)
        try:
            # Retained messages follow the subscription's acknowledgement; what we publish to
            # ourselves comes behind them, and tells that there are no more.
            await session.publish(self._inbox, reading.mark)
            await marked.wait()
        finally:
            if all(
                other.filter != reading.filter for other in self._readings if other is not reading
            ):
                await session.unsubscribe(reading.filter)

    def take_mark(self, link: BrokerLink, payload: bytes) -> bool:
        """Offer a message to oneself; returns whether it is one that a reading waits for."""
        for reading in self._readings:
            if payload == reading.mark and link in reading.marked:
                reading.marked[link].set()
                return True
        return False

    def take(self, link: BrokerLink, topic: str, payload: bytes) -> bool:
        """Offer a message; returns whether somebody had asked for it."""
        asked = [each for each in self._readings if topic_matches(each.filter, topic)]
        for reading in asked:
            if len(payload) > MAX_RETAINED_BYTES:
                self._counters.count("mqtt_oversize")
            elif not reading.take(link, topic, payload):
                self._counters.count("mqtt_retained_excess")
        return bool(asked)


def _retrieve(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # an answer that came too late

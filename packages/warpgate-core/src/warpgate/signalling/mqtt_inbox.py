"""What arrives from brokers: cheap checks first, bounded queues, small slices of work.

Anyone who can reach a broker can publish to a node's inbox, and to open a sealed signal costs some
0.3 ms even when it turns out to be garbage. So whatever can be refused for a few microseconds (size,
version byte, retained, foreign topic, an exact repetition) never reaches a queue; every broker has a
queue of its own, emptied in turn, so that a flood on one does not hold up another; and the loop gets
its turn after every few milliseconds of opening. What a queue can't take is dropped and counted, and
not taken for known when it comes again: then it has a queue of its own. A sender that hears nothing
repeats its signal, a flood of well-formed rubbish does not, or has to pay twice for it; so a right
signal gets through with its first copy mostly, and otherwise in proportion to what can be opened.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from warpgate.protocol.envelope import MAX_SIGNAL_BYTES, SIGNAL_VERSION

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.signalling.mqtt_link import BrokerLink

log = logging.getLogger("warpgate")

MAX_QUEUED: Final = 256
"""Envelopes of one broker, and as many that came again, that wait to be opened."""
MAX_MISSED: Final = 16384
"""Digests of envelopes that a full queue dropped, in each of two generations: some 2 s of a flood."""
MAX_REMEMBERED: Final = 4096
"""Digests of envelopes, to know the copy that comes by another broker."""
SLICE_S: Final = 0.005
SLICE_MESSAGES: Final = 50
MIN_SIGNAL_BYTES: Final = 1 + 32 + 16 + 64
"""Version, HPKE's encapsulated key and tag, signature."""


class Inbox:
    """Checks and queues envelopes and hands them over in slices.

    Args:
        counters: where drops are counted.
        deliver: takes an envelope and the link that it came by.

    """

    def __init__(self, counters: Counters, deliver: Callable[[bytes, BrokerLink], None]) -> None:
        self._counters = counters
        self._deliver = deliver
        self._queues: dict[tuple[BrokerLink, bool], deque[bytes]] = {}
        self._missed: set[bytes] = set()
        self._missed_before: set[bytes] = set()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._arrived = asyncio.Event()

    def put(self, link: BrokerLink, payload: bytes, retained: bool) -> None:
        """Take what was published to the inbox topic; drops and counts what can't be a signal."""
        if retained:
            # A signal is for now: a retained one would come again with every reconnection.
            self._counters.count("mqtt_retained")
        elif len(payload) > MAX_SIGNAL_BYTES:
            self._counters.count("mqtt_oversize")
        elif len(payload) < MIN_SIGNAL_BYTES or payload[0] != SIGNAL_VERSION:
            self._counters.count("mqtt_garbage")
        else:
            self._enqueue(link, payload)

    def _enqueue(self, link: BrokerLink, payload: bytes) -> None:
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        if digest in self._seen:
            self._counters.count("mqtt_copies")
            return
        again = digest in self._missed or digest in self._missed_before
        queue = self._queues.setdefault((link, again), deque())
        if len(queue) >= MAX_QUEUED:
            self._counters.count("mqtt_flooded")
            self._missed.add(digest)
            if len(self._missed) >= MAX_MISSED:
                self._missed_before, self._missed = self._missed, set()
            return
        self._seen[digest] = None
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        queue.append(payload)
        self._arrived.set()

    async def run(self) -> None:
        """Hand envelopes over until cancelled."""
        while True:
            await self._arrived.wait()
            self._slice()
            if not self._queues:
                self._arrived.clear()
            await asyncio.sleep(0)

    def _slice(self) -> None:
        """Open some envelopes, from each queue in turn."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SLICE_S
        for _ in range(SLICE_MESSAGES):
            source = next(iter(self._queues), None)
            if source is None:
                return
            queue = self._queues.pop(source)
            payload = queue.popleft()
            if queue:
                self._queues[source] = queue  # at the end: the next queue's turn
            try:
                self._deliver(payload, source[0])
            except Exception:
                log.exception("a signal that came by %s", source[0].name)
            if loop.time() >= end:
                return

"""One signal on several brokers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.signalling.mqtt_link import BrokerLink

Publish = Callable[["BrokerLink"], asyncio.Task[None]]


class Race:
    """The same message on several brokers: the first acceptance counts.

    Args:
        publish: starts to publish on a link.

    Attributes:
        errors: the causes of those that failed so far.

    """

    def __init__(self, publish: Publish) -> None:
        self.errors: list[str] = []
        self._publish = publish
        self._pending: dict[asyncio.Task[None], BrokerLink] = {}

    def add(self, links: Iterable[BrokerLink], publish: Publish | None = None) -> None:
        """Publish on these links too, in another manner if one is given."""
        for link in links:
            self._pending[(publish or self._publish)(link)] = link

    async def won(self, timeout_s: float | None) -> bool:
        """Wait for an acceptance; False when the time is up or all have failed."""
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while self._pending:
            left = None if until is None else until - loop.time()
            if left is not None and left <= 0:
                break
            done, _ = await asyncio.wait(
                self._pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                del self._pending[task]
            errors = [task.exception() for task in done if not task.cancelled()]
            self.errors += [str(error) for error in errors if error is not None]
            if None in errors:
                return True
        return False

    def end(self, spare_dials: bool = False) -> None:
        """Let what a connected broker has go on in the background; give the rest up, or don't."""
        for task, link in self._pending.items():
            task.add_done_callback(_forget)
            if not (link.connected or spare_dials):
                task.cancel()


def _forget(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()

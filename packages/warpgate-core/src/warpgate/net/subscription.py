"""What a pipe's user wants to hear, and the queue in which it waits."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from warpgate.net.addresses import Address, canonical_ip
from warpgate.net.waiter import Waiter
from warpgate.protocol.ip import split_scope

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe

Message = tuple[bytes, Address]
MsgCallback = Callable[[bytes, Address, "Pipe"], Awaitable[Any] | None]
Key = tuple[bytes | None, Address | None]

# Counted for each message on top of its bytes, so that a peer who sends single bytes can't make a
# queue use many times the memory that its cap says.
MESSAGE_OVERHEAD = 128


def subscription_key(sub: Any) -> Key:
    """Return the pattern and the address of a subscription, checked, the address in one spelling.

    Args:
        sub: ``SUB_ALL`` or ``(pattern_or_None, (ip, port)_or_None)``.

    Raises:
        TypeError: it is no such pair.
        ValueError: the ip in it is no IP address.

    """
    try:
        pattern, address = sub
        if address is not None:
            ip, port = address
            address = (canonical_ip(ip), int(port))
    except (TypeError, AttributeError) as error:
        raise TypeError(_not_a_subscription(sub)) from error
    except ValueError as error:
        if isinstance(sub, (str, bytes)) or len(sub) != 2 or len(sub[1]) != 2:
            raise TypeError(_not_a_subscription(sub)) from error
        raise
    if pattern is not None and not isinstance(pattern, bytes):
        kind = type(pattern).__name__
        raise TypeError(f"a subscription's pattern is a bytes regular expression, not {kind}")
    return pattern, address


def _not_a_subscription(sub: Any) -> str:
    return f"{sub!r} is no subscription: give SUB_ALL or (pattern or None, (ip, port) or None)"


class MessageQueue:
    """Messages that wait, and how much they weigh."""

    __slots__ = ("held", "queue")

    def __init__(self) -> None:
        self.queue: deque[Message] = deque()
        self.held = 0  # bytes, overhead included


class Subscription(MessageQueue):
    """A filter with either a handler or a queue; of the queue the readers are served in order."""

    __slots__ = ("addr", "handler", "key", "offset", "regex", "waiters")

    def __init__(self, key: Key, offset: int, handler: MsgCallback | None) -> None:
        """Compile the pattern.

        Raises:
            ValueError: the pattern is no regular expression; the text names it.

        """
        super().__init__()
        pattern, self.addr = self.key = key
        try:
            self.regex = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
        self.offset = offset
        self.handler = handler
        # Readers in order of arrival. A message stays in the queue until the first of them runs
        # again and takes it, so a cancelled reader loses none.
        self.waiters: deque[Waiter] = deque()

    def matches(self, data: bytes, addr: Address) -> bool:
        """Return whether a message is one of those that were asked for."""
        if self.addr not in (None, addr) and self.addr != (split_scope(addr[0])[0], addr[1]):
            return False  # the second comparison: one given without a scope matches on every link
        return self.regex is None or self.regex.search(data) is not None

    def wake(self) -> None:
        """Let the first reader look at the queue."""
        if self.waiters and not self.waiters[0].done():
            self.waiters[0].set_result(True)

    def wake_all(self) -> None:
        """Let every reader see that nothing more will come."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(True)


def largest(subscriptions: Sequence[Subscription]) -> Subscription | None:
    """Return the one with the most bytes unread; None when there is none at all."""
    return max(subscriptions, key=lambda sub: sub.held, default=None)

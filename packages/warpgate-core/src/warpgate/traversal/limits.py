"""How much work strangers can cause (WIRE sections 2 and 5).

A stranger is a peer that has never completed a hello with this node.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from warpgate.net.budget import SYN_BYTES

ATTEMPTS_PER_STRANGER = 8
NEW_PER_STRANGER_S = 5.0
ATTEMPTS_ALL_STRANGERS = 64
NEW_ALL_STRANGERS_S = 50.0
BYTES_PER_MINUTE = 100_000
"""What all strangers together can make this node send to addresses that have proven nothing."""
KEPT_FOR_ATTEMPTS = 50_000
"""Of these, what answers to hellos from nowhere leave: anybody can send those, under any address."""
SIGNAL_DIAL_BYTES = 4 * SYN_BYTES
"""A dial for a direct signal that nothing answers: it lasts 3 s."""
MINUTE_S = 60
MAX_KNOWN_PEERS = 4096
MAX_STRANGERS = 1024


class TokenBucket:
    """Allows ``rate`` a second, in bursts of at most ``burst`` (as many, when not given)."""

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = rate if burst is None else burst
        self._tokens = self.burst
        self._updated = now

    def take(self, now: float, amount: float = 1) -> bool:
        """Take ``amount``; False, and nothing is taken, when there is less."""
        self._tokens = min(self.burst, self._tokens + (now - self._updated) * self.rate)
        self._updated = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True


class StrangerBytes:
    """The bytes that have gone out within the last minute on strangers' word (WIRE section 5).

    Every minute is bounded, whenever it begins. UDP counts by its payload, a SYN as a whole.

    Args:
        clock: monotonic seconds.
        limit: bytes a minute.

    Attributes:
        refused: how often there were not enough left.

    """

    def __init__(self, clock: Callable[[], float], limit: int = BYTES_PER_MINUTE) -> None:
        self.refused = 0
        self._clock = clock
        self._limit = limit
        self._spent: deque[list[int]] = deque()  # [second, bytes], at most MINUTE_S + 1 of them
        self._total = 0

    def take(self, size: int, keep: int = 0) -> bool:
        """Take so many bytes, if as many as ``keep`` are left then; False, and none are taken, if not."""
        second = int(self._clock())
        while self._spent and self._spent[0][0] < second - MINUTE_S:
            self._total -= self._spent.popleft()[1]
        if self._total + size > self._limit - keep:
            self.refused += 1
            return False
        if not self._spent or self._spent[-1][0] != second:
            self._spent.append([second, 0])
        self._spent[-1][1] += size
        self._total += size
        return True

    def pay_dial(self) -> bool:
        """Take what one dial for an answer costs, which other ways may carry: never from the kept half."""
        return self.take(SIGNAL_DIAL_BYTES, KEPT_FOR_ATTEMPTS)

    def give_back(self, size: int) -> None:
        """Uncount bytes whose receiver has proven to be the peer; the oldest, which is the safe side."""
        while size > 0 and self._spent:
            part = min(size, self._spent[0][1])
            self._spent[0][1] -= part
            self._total -= part
            size -= part
            if not self._spent[0][1]:
                self._spent.popleft()


class StrangerLimits:
    """Decides whether a stranger's signal may create an attempt."""

    def __init__(self, now: float) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._all = TokenBucket(NEW_ALL_STRANGERS_S, now)

    def befriend(self, peer_id: str) -> None:
        """Remember a peer that has completed a hello; the longest unseen is forgotten first."""
        self._known[peer_id] = None
        self._known.move_to_end(peer_id)
        self._buckets.pop(peer_id, None)
        if len(self._known) > MAX_KNOWN_PEERS:
            self._known.popitem(last=False)

    def is_stranger(self, peer_id: str) -> bool:
        """Whether the peer has yet to complete a hello."""
        return peer_id not in self._known

    def crowded(self, own_live: int, all_live: int) -> bool:
        """Whether a stranger's next attempt would be refused for the number of those alive."""
        return own_live >= ATTEMPTS_PER_STRANGER or all_live >= ATTEMPTS_ALL_STRANGERS

    def admit(self, peer_id: str, now: float, own_live: int, all_live: int) -> str | None:
        """Decide on one more attempt.

        Args:
            peer_id: who asks.
            now: monotonic seconds.
            own_live: the peer's attempts under way here.
            all_live: all strangers' attempts under way here.

        Returns:
            None when it may go on, else the name of the counter of the limit that it hit.

        """
        if not self.is_stranger(peer_id):
            return None
        if own_live >= ATTEMPTS_PER_STRANGER:
            return "stranger_attempts_limit"
        if all_live >= ATTEMPTS_ALL_STRANGERS:
            return "strangers_attempts_limit"
        bucket = self._buckets.get(peer_id)
        if bucket is None:
            bucket = self._buckets[peer_id] = TokenBucket(NEW_PER_STRANGER_S, now)
            if len(self._buckets) > MAX_STRANGERS:
                self._buckets.popitem(last=False)
        if not bucket.take(now):
            return "stranger_rate_limit"
        if not self._all.take(now):
            return "strangers_rate_limit"
        return None

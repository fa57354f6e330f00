"""How much work strangers can cause (WIRE sections 2 and 5).

A stranger is a peer that has never completed a hello with this node.
"""

from __future__ import annotations

from collections import OrderedDict

ATTEMPTS_PER_STRANGER = 8
NEW_PER_STRANGER_S = 5.0
ATTEMPTS_ALL_STRANGERS = 64
NEW_ALL_STRANGERS_S = 50.0
ANSWER_BYTES_PER_MINUTE = 100_000
"""What goes to the UDP sources of hellos, all together, before they are proven."""
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

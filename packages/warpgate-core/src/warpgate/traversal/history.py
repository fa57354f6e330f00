"""What a node remembers of attempts that are over, for as long as their signals and pipes may come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

Key = tuple[str, str]
"""(peer id, plugin_id)."""

MAX_TOMBSTONES = 4096
MAX_DELIVERED = 4096
MAX_WORKED = 1024

Worked = tuple[str, int, int]
"""(strategy, af, route type)."""


class History:
    """Ended attempts, and those of which a pipe has reached the user; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._tombstones: OrderedDict[Key, float] = OrderedDict()
        self._delivered: OrderedDict[Key, None] = OrderedDict()
        self._worked: OrderedDict[tuple[str, Hashable], Worked] = OrderedDict()

    def bury(self, key: Key, until: float) -> None:
        """Note that an attempt has ended; its signals are late until then (monotonic seconds)."""
        self._tombstones[key] = until
        self._tombstones.move_to_end(key)
        if len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def is_buried(self, key: Key, now: float) -> bool:
        """Whether an attempt has ended so recently that signals for it may still come."""
        return self._tombstones.get(key, now) > now

    def first_delivery(self, key: Key) -> bool:
        """Note that a pipe of an attempt set reaches the user; False when one has before."""
        if key in self._delivered:
            return False
        self._delivered[key] = None
        if len(self._delivered) > MAX_DELIVERED:
            self._delivered.popitem(last=False)
        return True

    def worked(self, peer_id: str, network: Hashable, what: Worked) -> None:
        """Note what has connected to a peer from a network."""
        self._worked[peer_id, network] = what
        self._worked.move_to_end((peer_id, network))
        if len(self._worked) > MAX_WORKED:
            self._worked.popitem(last=False)

    def what_worked(self, peer_id: str, network: Hashable) -> Worked | None:
        """Return what has connected to a peer from a network last, None when nothing is known."""
        return self._worked.get((peer_id, network))

    def forget_what_worked(self) -> None:
        """Let the next calls to all peers be as the first ones."""
        self._worked.clear()

"""External ports and addresses: allocation and pooling (RFC 4787 sections 4.1, 4.2, 4.2.2)."""

from __future__ import annotations

import random
from collections.abc import Callable

from warpgate_natlab.engine.policy import Allocation

__all__ = ["AddressPool", "PortAllocator"]

_GUESSES = 32  # random draws before the free ports are listed


class PortAllocator:
    """Chooses an external port; knows nothing of mappings but what ``taken`` says.

    Args:
        how: mode and its numbers.
        rng: makes starts and random ports; the same seed and calls give the same ports.
    """

    def __init__(self, how: Allocation, rng: random.Random) -> None:
        self.how = how
        self._rng = rng
        self._last: dict[tuple[int, bytes], int] = {}  # sequential: by protocol, external address
        self._blocks: dict[tuple[bytes, bytes], list[int]] = {}  # by external address, host
        self._owned: dict[bytes, set[int]] = {}
        self._cursor: dict[tuple[int, bytes, bytes], int] = {}  # sequential within blocks

    def reset(self) -> None:
        """Forget counters and blocks, as a reboot does; the generator goes on."""
        self._last.clear()
        self._blocks.clear()
        self._owned.clear()
        self._cursor.clear()

    def allocate(
        self, proto: int, external: bytes, host: bytes, preferred: int, taken: Callable[[int], bool]
    ) -> int | None:
        """A free external port, or None when there is none.

        Args:
            proto: IP protocol; counters are its own.
            external: the external address.
            host: the inside address.
            preferred: the inside port.
            taken: says whether a port of ``external`` is in use for ``proto``.
        """
        how = self.how
        if how.mode == "preserving":
            if preferred and not taken(preferred):
                return preferred
            return self._random(how.low, how.high, taken)
        if how.mode == "sequential":
            return self._sequential(proto, external, taken)
        if how.mode == "block":
            return self._from_block(proto, external, host, taken)
        return self._random(how.low, how.high, taken)

    def _random(self, low: int, high: int, taken: Callable[[int], bool]) -> int | None:
        for _ in range(_GUESSES):
            port = self._rng.randint(low, high)
            if not taken(port):
                return port
        free = [port for port in range(low, high + 1) if not taken(port)]
        return self._rng.choice(free) if free else None

    def _sequential(self, proto: int, external: bytes, taken: Callable[[int], bool]) -> int | None:
        low, span = self.how.low, self.how.high + 1 - self.how.low
        last = self._last.get((proto, external))
        place = self._rng.randrange(span) if last is None else (last - low + self.how.step) % span
        for tried in range(span):
            port = low + (place + tried * self.how.step) % span
            if not taken(port):
                self._last[proto, external] = port
                return port
        return None

    def _from_block(
        self, proto: int, external: bytes, host: bytes, taken: Callable[[int], bool]
    ) -> int | None:
        blocks = self._blocks.setdefault((external, host), [])
        for start in blocks:
            port = self._within(proto, external, host, start, taken)
            if port is not None:
                return port
        if len(blocks) >= self.how.blocks:
            return None
        opened = self._open_block(external)
        if opened is None:
            return None
        blocks.append(opened)
        return self._within(proto, external, host, opened, taken)

    def _open_block(self, external: bytes) -> int | None:
        size = self.how.size
        owned = self._owned.setdefault(external, set())
        first = -(-self.how.low // size) * size
        free = [s for s in range(first, self.how.high + 2 - size, size) if s not in owned]
        if not free:
            return None
        start = self._rng.choice(free)
        owned.add(start)
        return start

    def _within(
        self, proto: int, external: bytes, host: bytes, start: int, taken: Callable[[int], bool]
    ) -> int | None:
        size = self.how.size
        if self.how.within == "random":
            return self._random(start, start + size - 1, taken)
        cursor = self._cursor.get((proto, external, host), 0)
        for tried in range(size):
            port = start + (cursor + tried) % size
            if not taken(port):
                self._cursor[proto, external, host] = port - start + 1
                return port
        return None


class AddressPool:
    """External addresses and which host gets which (RFC 4787 REQ-2: paired)."""

    def __init__(self, addresses: list[bytes], pooling: str, rng: random.Random) -> None:
        self.addresses = addresses
        self.pooling = pooling
        self._rng = rng
        self._pairs: dict[bytes, bytes] = {}

    def reset(self) -> None:
        """Forget the pairs."""
        self._pairs.clear()

    def choose(self, host: bytes) -> bytes:
        """The external address for a new mapping of ``host``."""
        if len(self.addresses) == 1:
            return self.addresses[0]
        if self.pooling == "arbitrary":
            return self._rng.choice(self.addresses)
        if host not in self._pairs:
            self._pairs[host] = self._rng.choice(self.addresses)
        return self._pairs[host]

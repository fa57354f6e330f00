"""One direction of a link: what happens to a packet on the way (after tc-netem's terms)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from warpgate_natlab.engine.policy import ConfigError, check_keys

__all__ = ["Direction", "Impairments"]

_PROBABILITIES = ("loss", "burst_p", "burst_r", "reorder", "duplicate")
_SWITCHES = ("jitter_reorder", "mtu_icmp", "up")


@dataclass(frozen=True, slots=True)
class Impairments:
    """The parameters of one direction; the engine's docstring explains each."""

    delay_ms: float = 0
    jitter_ms: float = 0
    jitter_reorder: bool = False
    loss: float = 0
    burst_p: float = 0
    burst_r: float = 0
    reorder: float = 0
    reorder_ms: float = 5
    duplicate: float = 0
    rate_bps: float = 0
    queue_bytes: float = 150_000
    mtu: int = 0
    mtu_icmp: bool = True
    up: bool = True

    def changed(self, given: Mapping[str, Any]) -> Impairments:
        """A copy with what ``given`` names. Raises ConfigError."""
        check_keys("link", given, {f.name for f in fields(self)})
        for name, value in given.items():
            if name in _SWITCHES:
                if not isinstance(value, bool):
                    raise ConfigError(f"{name}: true or false, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise ConfigError(f"{name}: a number from 0, not {value!r}")
            elif name in _PROBABILITIES and value > 1:
                raise ConfigError(f"{name}: a probability, not {value!r}")
        made = replace(self, **given)
        if made.burst_p and not made.burst_r:
            raise ConfigError("burst_p needs burst_r above 0")
        return made


class Direction:
    """Decides when, whether and how often a packet arrives. Pure: ``now`` in, times out.

    Each kind of impairment draws from a generator of its own, so that switching one on leaves the
    others' decisions as they were.

    Args:
        seed: text; the same seed and packets give the same fates.
        given: parameters.
    """

    def __init__(self, seed: str, given: Mapping[str, Any]) -> None:
        self.how = Impairments().changed(given)
        self._loss = random.Random(f"{seed}/loss")
        self._burst = random.Random(f"{seed}/burst")
        self._jitter = random.Random(f"{seed}/jitter")
        self._reorder = random.Random(f"{seed}/reorder")
        self._duplicate = random.Random(f"{seed}/duplicate")
        self._bad = False
        self._busy_until = 0.0
        self._last = 0.0
        self.queued = 0
        self.reset_stats()

    def configure(self, given: Mapping[str, Any]) -> None:
        """Change parameters from now on. Raises ConfigError."""
        self.how = self.how.changed(given)

    def reset_stats(self) -> None:
        """All counters to zero."""
        self.packets = self.bytes = self.delivered = self.duplicated = self.held_back = 0
        self.drops: dict[str, int] = {}

    def drop(self, cause: str) -> None:
        """Count a packet that is lost here."""
        self.drops[cause] = self.drops.get(cause, 0) + 1

    def _lost(self) -> str | None:
        how = self.how
        if not how.up:
            return "cut"
        if how.burst_p:
            if self._burst.random() < (how.burst_r if self._bad else how.burst_p):
                self._bad = not self._bad
            if self._bad:
                return "burst"
        else:
            self._bad = False
        if how.loss and self._loss.random() < how.loss:
            return "loss"
        return None

    def schedule(self, size: int, now: float) -> tuple[float, ...]:
        """The times at which copies of a packet of ``size`` bytes arrive; none when it is lost."""
        how = self.how
        self.packets += 1
        self.bytes += size
        cause = self._lost()
        if cause is not None:
            self.drop(cause)
            return ()
        at = now
        if how.rate_bps:
            wait = max(0.0, self._busy_until - now)
            if wait * how.rate_bps / 8 + size > max(how.queue_bytes, size):
                self.drop("queue")
                return ()
            at = self._busy_until = now + wait + size * 8 / how.rate_bps
        twice = how.duplicate and self._duplicate.random() < how.duplicate
        held = how.reorder and self._reorder.random() < how.reorder
        delay = how.delay_ms
        if how.jitter_ms:
            delay = max(0.0, delay + self._jitter.uniform(-how.jitter_ms, how.jitter_ms))
        at += delay / 1000
        if held:
            self.held_back += 1
            at += how.reorder_ms / 1000
        elif not how.jitter_reorder:
            at = self._last = max(at, self._last)
        if twice:
            self.duplicated += 1
            return at, at
        return (at,)

    def describe(self) -> dict[str, Any]:
        """The parameters."""
        return asdict(self.how)

    def stats(self) -> dict[str, Any]:
        """The counters."""
        return {
            "packets": self.packets,
            "bytes": self.bytes,
            "delivered": self.delivered,
            "drops": dict(self.drops),
            "duplicated": self.duplicated,
            "held_back": self.held_back,
            "queued": self.queued,
        }

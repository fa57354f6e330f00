"""Runs a plan: groups open by their head starts, the first proven pipe of the best phase wins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .attempt import CLOSE_GRACE_S, Attempt
from .plan import Combination, Plan
from .report import AttemptOutcome, Skip, SkipReason

if TYPE_CHECKING:
    from ..hello.shell import Handshake
    from ..protocol.peer_address import PeerAddress
    from .manager import TraversalManager

PREFERENCE_S = 0.020
"""A pipe of an earlier phase that arrives within this time beats a later one's."""


class Race:
    """One ``auto_connect`` call's attempts against one peer.

    ``winner`` is the attempt whose pipe was nominated; ``outcomes`` and ``skips`` feed the report.
    """

    def __init__(self, manager: TraversalManager, peer: PeerAddress, plan: Plan) -> None:
        self.manager = manager
        self.peer = peer
        self.plan = plan
        self.winner: Attempt | None = None
        self.outcomes: list[AttemptOutcome] = []
        self.skips: list[Skip] = list(plan.skips)
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self._attempts: dict[Attempt, Combination] = {}
        self._running: set[Attempt] = set()
        self._candidates: list[tuple[Attempt, Handshake]] = []
        self._hold: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    async def run(self, timeout_s: float) -> Attempt | None:
        """Race until a pipe has won, nothing is left to try, or the time is up.

        When this returns or raises, every loser's tasks have ended and its sockets are closed,
        except for a ``close()`` that takes long: the node's reaper has that.
        """
        deadline = self.started + timeout_s
        waiting = list(self.plan.combinations)
        opened: dict[str, float] = {}
        try:
            while self.winner is None:
                self._changed.clear()
                due = self._start_due(waiting, opened)
                if not waiting and not self._running:
                    break
                now = self.loop.time()
                if now >= deadline:
                    break
                wake = min(deadline, due) - now
                try:
                    async with asyncio.timeout(max(wake, 0)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            timed_out = self.winner is None and bool(waiting or self._running)
            await self._tear_down(waiting, timed_out, timeout_s)
        return self.winner

    def _start_due(self, waiting: list[Combination], opened: dict[str, float]) -> float:
        """Start what is due; return when the next one is."""
        now = self.loop.time()
        next_due = float("inf")
        for group in self.plan.order:
            if group not in opened:
                opens_at = self.started + self.plan.opens_s.get(group, float("inf"))
                if self._earlier_ended(group, waiting):
                    opens_at = now
                if opens_at > now:
                    next_due = min(next_due, opens_at)
                    continue
                opened[group] = now
            for combination in [c for c in waiting if c.group == group]:
                due = opened[group] + combination.delay_s
                if due > now and not self._predecessors_ended(combination, waiting):
                    next_due = min(next_due, due)
                    continue
                waiting.remove(combination)
                self._start(combination)
                now = self.loop.time()
        return next_due

    def _earlier_ended(self, group: str, waiting: Sequence[Combination]) -> bool:
        earlier = self.plan.order[: self.plan.order.index(group)]
        return not any(c.group in earlier for c in waiting) and not any(
            self._attempts[attempt].group in earlier for attempt in self._running
        )

    def _predecessors_ended(self, combination: Combination, waiting: Sequence[Combination]) -> bool:
        """Whether every better candidate of the same strategy has ended (RFC 8305, section 5)."""
        for other in waiting:
            if other is combination:
                break
            if other.strategy == combination.strategy:
                return False
        return not any(
            self._attempts[attempt].strategy == combination.strategy for attempt in self._running
        )

    def _start(self, combination: Combination) -> None:
        attempt = self.manager.create_attempt(combination, self.peer)
        if attempt is None:
            self.skips.append(
                Skip(combination.strategy, SkipReason.NO_STRATEGY, detail="removed meanwhile")
            )
            return
        attempt.outcome.started_s = self.loop.time() - self.started
        attempt.on_candidate = self._candidate
        attempt.on_end = self._ended
        self.outcomes.append(attempt.outcome)
        self._attempts[attempt] = combination
        self._running.add(attempt)
        attempt.start()

    def _ended(self, attempt: Attempt) -> None:
        self._running.discard(attempt)
        self._candidates = [c for c in self._candidates if c[0] is not attempt]
        if attempt.outcome.status == "won" and self.winner is None:
            self.winner = attempt
        elif self._candidates and not self._better_running():
            self._nominate_best()
        self._changed.set()

    # Choosing among proven pipes.

    def _candidate(self, attempt: Attempt, handshake: Handshake) -> None:
        if self.winner is not None:
            handshake.cancel()
            return
        self._candidates.append((attempt, handshake))
        if not self._better_running():
            self._nominate_best()
        elif self._hold is None:
            self._hold = self.loop.call_later(PREFERENCE_S, self._nominate_best)

    def _rank(self, attempt: Attempt) -> int:
        return self.plan.order.index(self._attempts[attempt].group)

    def _better_running(self) -> bool:
        best = min(self._rank(attempt) for attempt, _ in self._candidates)
        return any(self._rank(attempt) < best for attempt in self._running)

    def _nominate_best(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        for _, handshake in sorted(self._candidates, key=lambda c: self._rank(c[0])):
            if handshake.state == "proven" and self.winner is None:
                handshake.nominate()

    # The end.

    async def _tear_down(
        self, waiting: Sequence[Combination], timed_out: bool, timeout_s: float
    ) -> None:
        if self._hold is not None:
            self._hold.cancel()
        cause = f"the call's {timeout_s:g} s were up" if timed_out else "another attempt won"
        for attempt in list(self._running):
            attempt.lose(cause)
        for combination in waiting:
            path = combination.path
            self.skips.append(
                Skip(
                    combination.strategy,
                    SkipReason.NOT_NEEDED,
                    path.af,
                    path.route_type,
                    cause if timed_out else path.ip,
                )
            )
        await self.manager.settle(self._attempts, CLOSE_GRACE_S)

"""Runs a plan: groups open by their head starts, the first proven pipe of the best phase wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from warpgate.errors import PluginError
from warpgate.traversal.attempt import CLOSE_GRACE_S, OTHER_WON, Attempt
from warpgate.traversal.plan import MAX_CANDIDATES, Combination, Plan
from warpgate.traversal.report import AttemptOutcome, Skip, SkipReason

if TYPE_CHECKING:
    from warpgate.hello.shell import Handshake
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.traversal.manager import TraversalManager

log = logging.getLogger("warpgate")

PREFERENCE_S = 0.020
"""A pipe of an earlier phase that arrives within this time beats a later one's."""
NEVER = float("inf")


class Race:
    """One ``auto_connect`` call's attempts against one peer.

    ``winner`` is the attempt whose pipe was nominated; ``outcomes`` and ``skips`` feed the report.
    ``on_news`` is called when a signal brings a newer address of the peer. ``beside`` are attempts that
    only ask the peer; whoever adds them ends them.
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
        self._waiting = list(plan.combinations)
        self._opened: dict[str, float] = {}
        self._attempts: dict[Attempt, Combination] = {}
        self._running: set[Attempt] = set()
        self._candidates: list[tuple[Attempt, Handshake]] = []
        self._hold: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self.beside: list[Attempt] = []
        self.on_news: Callable[[], None] | None = None

    async def run(self, timeout_s: float, limit_s: float | None = None) -> Attempt | None:
        """Race until a pipe has won, nothing is left to try, or the time is up.

        When this returns or raises, every loser's tasks have ended and its sockets are closed,
        except for a ``close()`` that takes long: the node's reaper has that. When it raises, the
        winner's pipe is closed too.

        Args:
            timeout_s: seconds from now.
            limit_s: the whole call's seconds, for the report's texts; None: ``timeout_s``.

        """
        try:
            await self._decide(self.started + timeout_s)
            if self.winner is not None:
                await self._tear_down(OTHER_WON)
            else:
                limit_s = max(0.0, timeout_s) if limit_s is None else limit_s
                await self._tear_down(f"the call's {limit_s:g} s were up", "timeout")
        except BaseException:
            if self.winner is not None and self.winner.winner is not None:
                self.winner.winner.abort()
            await self._tear_down("the call was cancelled")
            raise
        return self.winner

    @property
    def newest(self) -> PeerAddress:
        """The newest address that the peer has signed, as its signals told."""
        told = [attempt.peer for attempt in [*self._attempts, *self.beside]]
        return max([self.peer, *told], key=lambda each: each.sequence)

    @property
    def proven(self) -> bool:
        """Whether a pipe's other end has proven to be the peer."""
        return self.winner is not None or bool(self._proven())

    def replan(self, newer: Plan, peer: PeerAddress) -> None:
        """Go on by newer facts: end what can't work, and begin what has become possible.

        Args:
            newer: what a plan of now says.
            peer: the peer's address that it was made for.

        """
        self.rule_out(newer)
        self._add(newer)
        self.peer = peer
        self._changed.set()

    def _add(self, newer: Plan) -> None:
        planned = {_target(c): c for c in newer.combinations}
        possible = {_kind(c) for c in newer.combinations}
        gone = {_kind(c) for c in self._waiting} - possible
        # Interfaces may stand at other places in the addresses by now.
        kept = [
            replace(planned[target], delay_s=old.delay_s)
            for old in self._waiting
            if (target := _target(old)) in planned
        ]
        begun = {_target(c) for c in self._attempts.values()} | {_target(c) for c in kept}
        kinds = {_kind(c) for c in self._attempts.values()} | {_kind(c) for c in kept}
        added: list[Combination] = []
        first: dict[str, float] = {}
        for each in newer.combinations:
            # Only dials depend on the address that they began with; the others ask the peer.
            if _target(each) in begun or (each.phase != "direct" and _kind(each) in kinds):
                continue
            tried = [*self._attempts.values(), *kept, *added]
            limit = newer.turn_limit if each.phase == "relay" else MAX_CANDIDATES
            if sum(c.strategy == each.strategy for c in tried) >= limit:
                continue
            since_s = self.loop.time() - self._opened.get(each.group, self.loop.time())
            after_s = each.delay_s - first.setdefault(each.strategy, each.delay_s)
            added.append(replace(each, delay_s=since_s + after_s))
        self._waiting = sorted([*kept, *added], key=lambda c: newer.order.index(c.group))
        self.plan = newer
        # The report's list is this very one.
        tried_now = {_kind(c) for c in added}
        self.skips[:] = [skip for skip in self.skips if skip.kind not in tried_now]
        self.skips += [skip for skip in newer.skips if skip.kind in gone]

    def rule_out(self, newer: Plan) -> None:
        """End and skip what newer facts make impossible, so that nobody waits for it.

        Args:
            newer: what a plan of now says.

        """
        possible = {_kind(c) for c in newer.combinations}
        likely = {_kind(c) for c in newer.combinations if not c.unlikely}
        for attempt, combination in self._attempts.items():
            if _kind(combination) in possible - likely:
                self._attempts[attempt] = replace(combination, unlikely=True)
        for skip in newer.skips:
            if skip.reason is not SkipReason.IMPOSSIBLE or skip.kind in possible:
                continue
            for combination in [c for c in self._waiting if _kind(c) == skip.kind]:
                self._waiting.remove(combination)
                self.skips.append(skip)
            for attempt in [a for a in self._running if _kind(self._attempts[a]) == skip.kind]:
                if attempt.proving:  # who is about to disprove the facts may go on by itself
                    self._attempts[attempt] = replace(self._attempts[attempt], unlikely=True)
                else:
                    attempt.lose(f"{skip.reason.value}: {skip.detail}", "failed")
        self._changed.set()

    def give_up(self, cause: str) -> None:
        """End what runs and start nothing more: nothing can come of it, for a reason in words."""
        self.skips += [
            replace(_skip(combination, SkipReason.IMPOSSIBLE), detail=cause)
            for combination in self._waiting
        ]
        self._waiting.clear()
        for attempt in list(self._running):
            attempt.lose(cause, "failed")
        self._changed.set()

    @property
    def heard(self) -> bool:
        """Whether the peer has answered a signal, or a stream was connected."""
        return any(each.heard or each.met for each in [*self._attempts, *self.beside])

    async def _decide(self, deadline: float) -> None:
        while self.winner is None:
            self._changed.clear()
            due = self._start_due()
            now = self.loop.time()
            if now >= deadline or not (self._waiting or self._running):
                break
            try:
                async with asyncio.timeout_at(min(deadline, max(due, now))):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _start_due(self) -> float:
        """Start what is due; return when the next one is."""
        for combination in [c for c in self._waiting if c.at_once]:
            self._waiting.remove(combination)
            self._start(combination)
        now = self.loop.time()
        next_due = NEVER
        for group in self.plan.order:
            if group not in self._opened:
                opens_at = self._opens_at(group, now)
                if opens_at > now:
                    next_due = min(next_due, opens_at)
                    continue
                self._opened[group] = now
            for combination in [c for c in self._waiting if c.group == group]:
                due = self._opened[group] + combination.delay_s
                if due > now and not self._predecessors_ended(combination):
                    next_due = min(next_due, due)
                    continue
                self._waiting.remove(combination)
                self._start(combination)
                now = self.loop.time()
        return next_due

    def _opens_at(self, group: str, now: float) -> float:
        if self._earlier_ended(group):
            return now
        followed = self.plan.follows.get(group)
        since = self.started if followed is None else self._opened.get(followed, NEVER)
        return since + self.plan.opens_s.get(group, NEVER)

    def _earlier_ended(self, group: str) -> bool:
        earlier = self.plan.needs.get(group, self.plan.order[: self.plan.order.index(group)])
        pending = [*self._waiting, *(self._attempts[attempt] for attempt in self._running)]
        return not any(c.group in earlier and not c.unlikely for c in pending)

    def _predecessors_ended(self, combination: Combination) -> bool:
        """Whether every better candidate of the same strategy has ended (RFC 8305, section 5)."""
        for other in self._waiting:
            if other is combination:
                break
            if other.strategy == combination.strategy:
                return False
        return not any(
            self._attempts[attempt].strategy == combination.strategy for attempt in self._running
        )

    def _start(self, combination: Combination) -> None:
        try:
            attempt = self.manager.create_attempt(combination, self.peer)
        except PluginError as error:
            log.exception("%s can't be built", combination.strategy)
            self.outcomes.append(self._unbuilt(combination, error))
            return
        if attempt is None:
            self.skips.append(_skip(combination, SkipReason.REMOVED))
            return
        attempt.outcome.started_s = self.loop.time() - self.started
        attempt.on_candidate = self._candidate
        attempt.on_end = self._ended
        attempt.on_news = self.on_news
        self.outcomes.append(attempt.outcome)
        self._attempts[attempt] = combination
        self._running.add(attempt)
        attempt.start()

    def _unbuilt(self, combination: Combination, error: PluginError) -> AttemptOutcome:
        path = combination.path
        remote = f"{path.ip} port {path.port}"
        outcome = AttemptOutcome(
            combination.strategy, combination.phase, path.af, path.route_type, "", remote, ""
        )
        outcome.started_s = self.loop.time() - self.started
        outcome.status, outcome.cause = "failed", str(error)
        return outcome

    def _ended(self, attempt: Attempt) -> None:
        self._running.discard(attempt)
        if attempt.skip is not None:
            self.outcomes[:] = [each for each in self.outcomes if each is not attempt.outcome]
            self.skips.append(attempt.skip)
        if attempt.outcome.status == "won" and self.winner is None:
            self.winner = attempt
        elif self._proven() and not self._better_running():
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

    def _proven(self) -> list[tuple[Attempt, Handshake]]:
        """Return the pipes that can be nominated, best first."""
        candidates = [c for c in self._candidates if c[1].state == "proven"]
        return sorted(candidates, key=lambda c: self._rank(c[0]))

    def _rank(self, attempt: Attempt) -> int:
        return self.plan.order.index(self._attempts[attempt].group)

    def _better_running(self) -> bool:
        best = self._rank(self._proven()[0][0])
        return any(self._rank(attempt) < best for attempt in self._running)

    def _nominate_best(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self.winner is not None:
            return
        for _, handshake in self._proven():
            handshake.nominate()
            if handshake.state != "failed":
                # M3 is on its way, at the latest when this turn ends: there is only one.
                self.loop.call_soon(self._check_nominated, handshake)
                return

    def _check_nominated(self, handshake: Handshake) -> None:
        if handshake.state == "failed" and self._proven() and not self._better_running():
            self._nominate_best()

    # The end.

    async def _tear_down(self, cause: str, status: str = "lost") -> None:
        if self._hold is not None:
            self._hold.cancel()
        for attempt in list(self._running):
            attempt.lose(cause, status)
        reason = SkipReason.NOT_NEEDED if self.winner is not None else SkipReason.NO_TIME
        self.skips += [_skip(combination, reason) for combination in self._waiting]
        self._waiting.clear()
        losers = [attempt for attempt in self._attempts if attempt is not self.winner]
        await self.manager.settle(losers, CLOSE_GRACE_S)


def _kind(combination: Combination) -> tuple[str, int | None, int | None]:
    return combination.strategy, combination.path.af, combination.path.route_type


def _target(combination: Combination) -> tuple[str, int, int, str, int]:
    path = combination.path
    return combination.strategy, path.af, path.src_index, path.ip, path.port


def _skip(combination: Combination, reason: SkipReason) -> Skip:
    path = combination.path
    return Skip(combination.strategy, reason, path.af, path.route_type, path.ip)

"""What is learnt of both sides' NATs while a call runs, and what follows for the call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from warpgate.errors import PluginError
from warpgate.nat.pair import UNKNOWN
from warpgate.traversal.attempt import CLOSE_GRACE_S, Attempt
from warpgate.traversal.plan import Combination, PlanOptions, nat_pair
from warpgate.traversal.prepare import PREPARE_S, prepare_relays

if TYPE_CHECKING:
    from warpgate.traversal.race import Race


class News:
    """Keeps a race's plan up to date.

    A node that has just started, or its peer, learns only during the call what its NAT does. Such a
    call asks the peer for its fresh address, plans anew with every answer, and prepares a relay.

    Args:
        race: the call's.
        options: what the caller narrowed.

    """

    def __init__(self, race: Race, options: PlanOptions) -> None:
        self._race = race
        self._options = options
        self._manager = race.manager
        self._asking: Attempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        race.on_news = self.replan
        self._forget = self._manager.node.network.on_change(self.replan)

    def begin(self) -> None:
        """Ask the peer, and prepare a relay soon, where a side's NAT is not known."""
        uncertain = [c for c in self._race.plan.combinations if self._is_uncertain(c)]
        if uncertain:
            self._ask(uncertain[0])
            self._timer = self._race.loop.call_later(PREPARE_S, self._prepare)

    def _is_uncertain(self, combination: Combination) -> bool:
        node = self._manager.node
        pair = nat_pair(node.peer_address, self._race.peer, combination.path)
        if pair is None:
            return False
        # Without STUN servers nothing will ever be known of this side: no reason to ask.
        return pair.remote == UNKNOWN or (pair.local == UNKNOWN and node.network.pending)

    def _ask(self, like: Combination) -> None:
        asking = Combination("get_addr", None, "None", like.path)
        try:
            attempt = self._manager.create_attempt(asking, self._race.peer)
        except PluginError:
            return  # somebody's own get_addr; its defects are shown where it is used
        if attempt is not None:
            attempt.on_news = self.replan
            self._asking = attempt
            self._race.beside.append(attempt)
            attempt.start()

    def replan(self) -> None:
        """Plan anew with what is known now."""
        race = self._race
        if race.winner is not None:
            return
        newest = race.newest
        newer = self._manager.plan_for(newest, self._options)
        race.replan(newer, newest)
        prepare_relays(self._manager, newer)

    def _prepare(self) -> None:
        if not self._race.proven:
            prepare_relays(self._manager, self._race.plan, anyway=True)

    async def close(self) -> None:
        """Stop; the question's tasks have ended then."""
        self._forget()
        self._race.on_news = None
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.on_news = None
            self._asking.lose("the call is over")
            await self._manager.settle([self._asking], CLOSE_GRACE_S)

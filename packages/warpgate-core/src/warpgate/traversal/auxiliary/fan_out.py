"""``fan_out``: several strategies against one peer at once."""

from __future__ import annotations

from typing import Any, ClassVar

from warpgate.errors import NoPathError
from warpgate.plugin import Plugin
from warpgate.protocol.proto_msg import ConMsg
from warpgate.traversal.plan import PlanOptions
from warpgate.traversal.race import Race
from warpgate.traversal.report import Report


class FanOut(Plugin):
    """Races every installed strategy over one family and route type; the first proven pipe wins.

    It is what ``node.connect`` uses when no strategy is named.
    """

    name: ClassVar[str] = "fan_out"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 15, "set_bind": False}

    async def run(self, reply: ConMsg | None = None) -> None:
        """Race; a peer can't start one here."""
        if not self.initiator:
            self.result.set_result(None)
        if reply is not None or not self.initiator:
            return
        peer = self.manager.attempt_of(self).peer
        options = PlanOptions(
            afs=(self.af,),
            route_types=(self.route_type,),
            relay=self.node.conf["relay"],
            relay_after_s=self.node.conf["relay_after"],
        )
        race = Race(self.manager, peer, self.manager.plan_for(peer, options))
        winner = await race.run(self.timeout)
        if winner is not None:
            self.result.set_result(winner.winner)
        else:
            lines = Report(outcomes=race.outcomes, skips=race.skips).lines()
            self.result.set_exception(NoPathError("; ".join(lines) or "nothing could be tried"))

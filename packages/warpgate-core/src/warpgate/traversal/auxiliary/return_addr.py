"""``return_addr``: the other side of ``get_addr``."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from warpgate.plugin import Plugin
from warpgate.protocol.proto_msg import ConMsg
from warpgate.traversal.plan import PlanOptions
from warpgate.traversal.prepare import prepare_relays

SURVEY_S: Final = 2.0
"""A node that has just started finds out what its NAT does before it answers, at most so long."""


class ReturnAddr(Plugin):
    """Answers a peer's ``get_addr``; every signal carries its sender's fresh address."""

    name: ClassVar[str] = "return_addr"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 5, "set_bind": False}

    async def run(self, reply: ConMsg | None = None) -> None:
        """Answer once, then end."""
        if not self.initiator:
            await self._know_the_network()
            msg = ConMsg()
            msg.meta.plugin_name = "get_addr"
            await self.send_signal_msg(msg)
        self.result.set_result(None)

    async def _know_the_network(self) -> None:
        """Wait for the first survey; the caller waits already, so that a relay had better be ready."""
        network = self.node.network
        if network.pending:
            options = PlanOptions(relay=self.node.conf["relay"])
            plan = self.manager.plan_for(self.manager.attempt_of(self).peer, options)
            prepare_relays(self.manager, plan, anyway=True)
            await network.ready(SURVEY_S)

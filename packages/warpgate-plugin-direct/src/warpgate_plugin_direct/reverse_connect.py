"""``reverse_connect``: ask the peer to dial this node."""

from __future__ import annotations

from typing import Any, ClassVar

from warpgate import ConMsg, Plugin, register
from warpgate.nat.pair import NatPair


@register(phase="direct")
class ReverseConnect(Plugin):
    """Signals the peer to run ``direct_connect`` towards this node's listening port.

    It works where this side can be reached and the peer can't.
    """

    name: ClassVar[str] = "reverse_connect"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 10, "set_bind": False}

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """A NAT or firewall in front of this machine lets in nobody who comes unasked."""
        return "this machine's NAT or firewall lets nobody in" if pair.local_closed else None

    async def run(self, reply: ConMsg | None = None) -> None:
        """Claim the connection, ask for it, and wait for it.

        A peer can't start one here: it would only be asked to dial back.
        """
        if not self.initiator:
            self.result.set_result(None)
            return
        if reply is not None:
            return
        self.register_inbound()
        msg = ConMsg()
        msg.meta.plugin_name = "direct_connect"
        await self.send_signal_msg(msg)
        self.result.set_result(await self.wait_for_inbound())

"""``direct_connect``: dial the peer's listening port."""

from __future__ import annotations

from typing import Any, ClassVar

from warpgate import TCP, ConMsg, Plugin, TraversalError, register
from warpgate.nat.pair import NatPair
from warpgate.net.budget import MAX_SYNS, SYN_BYTES


@register(phase="direct")
class DirectConnect(Plugin):
    """Connects over TCP to the address that the peer's signed address gives for the route type.

    It needs no signal. A peer's ``reverse_connect`` starts it here as a responder; then the core
    has checked the address against what a peer's word may make a node dial, and tells the
    initiator's listening socket which attempt the connection is for.
    """

    name: ClassVar[str] = "direct_connect"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 10, "set_bind": False, "nat64": True}

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """A NAT or firewall in front of the peer lets in nobody who comes unasked."""
        return "the peer's NAT or firewall lets nobody in" if pair.remote_closed else None

    async def run(self, reply: ConMsg | None = None) -> None:
        """Dial once; the connection that comes of it is handed over for proof."""
        route = await self.bind()
        ip = self.dest_info["ip"]
        if not self.budget.take(ip, MAX_SYNS, SYN_BYTES):
            raise TraversalError(f"strangers have made this node send enough this minute: not {ip}")
        pipe = await route.connect((ip, self.dest_info["port"]), TCP)
        self.result.set_result(pipe)
        if not self.result.done():
            self.result.set_result(
                None
            )  # there is no other: whoever answers wrongly ends it at once

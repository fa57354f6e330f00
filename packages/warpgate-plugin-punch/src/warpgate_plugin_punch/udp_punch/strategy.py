"""``udp_punch``: the strategy's class."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from warpgate import ConMsg, Pipe, Plugin, register
from warpgate.net.udp import UdpPipe
from warpgate_plugin_punch.udp_punch.callee import Callee
from warpgate_plugin_punch.udp_punch.caller import Caller
from warpgate_plugin_punch.udp_punch.messages import Punch
from warpgate_plugin_punch.udp_punch.spares import Spares

if TYPE_CHECKING:
    from warpgate.nat.pair import NatPair
    from warpgate.net.datagram import DatagramSocket
    from warpgate.node.node import Node

SIGNAL_TTL_S = 20


@register(phase="spray")
class UdpPunch(Plugin):
    """Connects over UDP through the NATs of both sides, where no port must be guessed.

    The initiator offers a fresh socket and begins the hello with the peer's listening one, again and
    again; the responder opens its NAT by M0 from there. The pipe is the punched socket itself.
    """

    name: ClassVar[str] = "udp_punch"
    transport: ClassVar[Any] = "udp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 10, "set_bind": False}
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = ((Punch, 1, SIGNAL_TTL_S),)

    def __init__(self, spares: Spares | None = None) -> None:
        """Make an attempt; ``spares`` are the node's, None without a node."""
        super().__init__()
        self.spares = spares
        self._side: Caller | Callee | None = None

    @classmethod
    async def setup(cls, node: Node) -> Any:
        """Return what makes the node's attempts; None where punching is switched off."""
        if not node.conf["enable_punching"]:
            return None
        factory = UdpPunchFactory(node)
        node.resources.register(factory.spares)
        return factory

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """Say what no packet, or no punch without guesses, gets through."""
        if pair.udp_blocked:
            return f"{pair.udp_blocked} UDP is blocked"
        if pair.needs_guesses:
            return "one side's ports are random and the other lets in only ports it has written to"
        return None

    async def run(self, reply: ConMsg | None = None) -> None:
        """Call, answer a call, or take what the other side has to say."""
        side = self._side
        payload = reply.payload if isinstance(reply, Punch) else None
        if reply is None:
            self._side = caller = Caller(self)
            await caller.run()
        elif not isinstance(payload, Punch.Payload):
            if side is None:
                self.result.set_result(None)  # a signal of something else
        elif isinstance(side, Caller):
            side.answered(payload)
        elif isinstance(side, Callee):
            await side.offered(payload)
        elif not self.initiator:
            self._side = callee = Callee(self)
            await callee.run(payload)

    async def close(self) -> None:
        """Close the sockets; the winner's closes with its pipe."""
        if self._side is None:
            return
        self._side.stop()
        result = self.result
        won = result.result() if result.done() and not result.cancelled() else None
        for link in self._side.links:
            if isinstance(won, UdpPipe) and won in self._side.pipes and won.local == link.local:
                link.meter = link.default = None
                won.add_close_callback(partial(_close_with_pipe, link))
            else:
                link.close()


class UdpPunchFactory:
    """Makes a node's attempts.

    Attributes:
        spares: the node's spare sockets.

    """

    def __init__(self, node: Node) -> None:
        self.spares = Spares(node)

    def build_plugin(self) -> UdpPunch:
        """Return a new attempt."""
        return UdpPunch(self.spares)


def _close_with_pipe(link: DatagramSocket, _pipe: Pipe) -> None:
    link.close()

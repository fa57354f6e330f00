"""``get_addr``: ask a peer for its fresh address."""

from __future__ import annotations

from typing import Any, ClassVar

from warpgate.errors import InvalidAddressError
from warpgate.plugin import Plugin
from warpgate.protocol.peer_address import unpack_address
from warpgate.protocol.proto_msg import ConMsg


class GetAddr(Plugin):
    """Resolves ``result`` to the peer's current :class:`~warpgate.PeerAddress`, or to None.

    An auxiliary: its result is no pipe. The answer comes from the peer's ``return_addr``.
    """

    name: ClassVar[str] = "get_addr"
    transport: ClassVar[Any] = "tcp"
    conf: ClassVar[dict[str, Any]] = {"timeout": 5, "set_bind": False}

    async def run(self, reply: ConMsg | None = None) -> None:
        """Ask; or take the answer, which the router has matched against its signer's key."""
        if not self.initiator:
            self.result.set_result(None)
        elif reply is None:
            msg = ConMsg()
            msg.meta.plugin_name = "return_addr"
            await self.send_signal_msg(msg)
        else:
            try:
                self.result.set_result(unpack_address(reply.meta.src_buf))
            except InvalidAddressError as error:
                self.result.set_exception(error)

"""The core's own way through brokers: MQTT signals, and peers found by their node id."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from warpgate.errors import SignallingError, UnknownPeerError, WarpgateError
from warpgate.hookspecs import hookimpl
from warpgate.identity import node_id_bytes

if TYPE_CHECKING:
    from warpgate.names.retained import RetainedNames
    from warpgate.node.node import Node
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.signalling.mqtt_transport import MqttTransport

log = logging.getLogger("warpgate")

LOOKUP_S = 3.0
"""How long to look for a node id: a peer that starts now has its record there in a moment."""
LOOK_AGAIN_S = 0.2


class Rendezvous:
    """The last implementations of the hooks that bring two nodes together.

    Attributes:
        mqtt: the transport, when the node uses brokers and no plugin brought another one.
        names: this node's records on those brokers.

    """

    def __init__(self) -> None:
        self.mqtt: MqttTransport | None = None
        self.names: RetainedNames | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._again = False

    @hookimpl(trylast=True)
    def warpgate_signal_transport(self, node: Node) -> Any:
        """Return the MQTT transport for the node's brokers, if it has any."""
        brokers, keep = node.conf["brokers"], node.conf["sig_pipe_no"]
        if not brokers or not keep:
            return None
        from warpgate.names.retained import RetainedNames
        from warpgate.signalling.mqtt_transport import MqttTransport

        self.mqtt = MqttTransport(
            node.identity,
            brokers,
            keep,
            node.stats,
            on_link=lambda ip: any(nic.on_link(ip) for nic in node.ifs),
            on_change=node.sign_address,
        )
        if node.conf["enable_nickname"]:
            self.names = RetainedNames(self.mqtt, node.identity, node.stats)
        return self.mqtt

    @hookimpl(trylast=True)
    async def warpgate_resolve_address(
        self, node: Node, address: bytes | str
    ) -> PeerAddress | None:
        """Look a node id up on the brokers.

        Raises:
            UnknownPeerError: it is a node id and could not be found; the text says why.

        """
        if not isinstance(address, str):
            return None
        try:
            node_id_bytes(address)
        except ValueError:
            return None
        if self.names is None:
            raise _unknown(address, self._why_no_look_up(node))
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOKUP_S
        while (left := until - loop.time()) > 0:
            try:
                found = await self.names.lookup_node(address.lower(), left)
            except SignallingError as error:
                raise _unknown(address, f"its brokers can't be asked: {error}") from error
            if found is not None:
                return found
            await asyncio.sleep(LOOK_AGAIN_S)
        raise _unknown(address, "its brokers know no such node")

    def _why_no_look_up(self, node: Node) -> str:
        if not node.conf["brokers"] or not node.conf["sig_pipe_no"]:
            return "no broker is configured here to look it up on"
        if self.mqtt is None:
            return "a plugin's signal transport took the brokers' place"
        return "looking up by node id is switched off here (enable_nickname is False)"

    def publish(self, node: Node) -> None:
        """Let the brokers retain the node's newest address under its id, in the background."""
        if self.names is None:
            return
        self._again = True
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.get_running_loop().create_task(self._publish(node))

    async def _publish(self, node: Node) -> None:
        assert self.names is not None
        while self._again:
            self._again = False
            try:
                await self.names.publish(node.node_id, node.peer_address)
            except WarpgateError as error:
                node.stats.count("names_unpublished")
                log.warning("this node's id could not be published: %s", error)

    async def close(self) -> None:
        """Stop publishing; what brokers retain expires by itself."""
        if self._publishing is not None and not self._publishing.done():
            self._publishing.cancel()
            await asyncio.wait([self._publishing])
        if self.names is not None:
            await self.names.close()


def _unknown(node_id: str, why: str) -> UnknownPeerError:
    return UnknownPeerError(f"nobody here knows {node_id!r}: {why}; or give the peer's address")

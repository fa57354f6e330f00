"""``node.connect``: one strategy against one peer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warpgate.errors import TraversalError
from warpgate.net.constants import route_type_name
from warpgate.node.auto_connect import check_options
from warpgate.node.resolve import pin_quietly, resolve
from warpgate.traversal.auxiliary.fan_out import FanOut
from warpgate.traversal.loaders import Loader
from warpgate.traversal.plan import Combination

if TYPE_CHECKING:
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin
    from warpgate.protocol.peer_address import PeerAddress


async def dial(
    node: Node,
    af: int | None,
    route_type: int,
    dest: bytes | str | PeerAddress,
    plugin_name: str | None,
) -> Plugin:
    """See :meth:`warpgate.Node.connect`."""
    check_options(node)
    if plugin_name is None:
        loader = node.traversal.plugin_loaders.get("fan_out") or Loader(
            "fan_out", FanOut, timeout=FanOut.conf["timeout"]
        )
    else:
        loader = node.traversal.loader(plugin_name)
    peer = await resolve(node, dest)
    if peer.key == node.identity.public_key:
        raise TraversalError("that is this node's own address")
    path = node.traversal.find_path(peer, af, route_type)
    strategy = loader.info()
    if route_type not in strategy.route_types:
        raise TraversalError(
            f"{loader.name} does not support the route type {route_type_name(route_type)}"
        )
    combination = Combination(loader.name, strategy.phase, strategy.group, path)
    attempt = node.traversal.create_attempt(combination, peer, loader=loader)
    if attempt is None:
        raise TraversalError("the node is closing")
    attempt.on_end = lambda ended: pin_quietly(node, dest, peer, ended)
    attempt.start()
    return attempt.plugin

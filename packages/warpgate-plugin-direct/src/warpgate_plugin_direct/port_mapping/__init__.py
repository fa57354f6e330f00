"""Port mapping: asks the routers that a node is behind to let its listening port in.

The entry point ``port_mapping`` names this module; a node with ``enable_upnp`` calls its hook.
PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP IGD are tried at once, in the background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warpgate import hookimpl

if TYPE_CHECKING:
    from warpgate_plugin_direct.port_mapping.mapper import Mapper

__all__ = ["mapper_of", "warpgate_node_starting"]


@hookimpl
async def warpgate_node_starting(node: Any) -> None:
    """Begin in the background, unless ``enable_upnp`` is off; the start waits for nothing.

    Raises:
        ConfigError: ``plugin_conf["port_mapping"]`` can't be used; the node starts all the same.

    """
    if not node.conf["enable_upnp"]:
        return
    from warpgate_plugin_direct.port_mapping.mapper import Mapper
    from warpgate_plugin_direct.port_mapping.settings import Settings

    settings = Settings.make(node.conf["plugin_conf"])
    node.port_mapping = node.resources.register(Mapper(node, settings))


def mapper_of(node: Any) -> Mapper | None:
    """Return a node's mapper, whose ``str()`` tells what has come of it; None where there is none."""
    found: Mapper | None = getattr(node, "port_mapping", None)
    return found

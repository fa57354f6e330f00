"""Peer-to-peer connections in pure Python.

The public names are re-exported lazily (PEP 562): ``import warpgate`` loads nothing else, and a
name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warpgate.errors import AddressError as AddressError
    from warpgate.errors import AllocationExpired as AllocationExpired
    from warpgate.errors import AllocationRefused as AllocationRefused
    from warpgate.errors import BadSignature as BadSignature
    from warpgate.errors import ConfigError as ConfigError
    from warpgate.errors import InvalidAddressError as InvalidAddressError
    from warpgate.errors import KeyChangedError as KeyChangedError
    from warpgate.errors import LocalProtocolError as LocalProtocolError
    from warpgate.errors import MessageTooLarge as MessageTooLarge
    from warpgate.errors import NoPathError as NoPathError
    from warpgate.errors import NoSharedFamilyError as NoSharedFamilyError
    from warpgate.errors import PipeClosed as PipeClosed
    from warpgate.errors import PluginConflictError as PluginConflictError
    from warpgate.errors import PluginDefinitionError as PluginDefinitionError
    from warpgate.errors import PluginError as PluginError
    from warpgate.errors import PluginIncompatibleError as PluginIncompatibleError
    from warpgate.errors import PluginLoadError as PluginLoadError
    from warpgate.errors import ProtocolError as ProtocolError
    from warpgate.errors import RelayError as RelayError
    from warpgate.errors import RemoteProtocolError as RemoteProtocolError
    from warpgate.errors import SignallingError as SignallingError
    from warpgate.errors import StaleMessage as StaleMessage
    from warpgate.errors import TraversalError as TraversalError
    from warpgate.errors import UnknownMessage as UnknownMessage
    from warpgate.errors import UnknownPeerError as UnknownPeerError
    from warpgate.errors import WarpgateError as WarpgateError
    from warpgate.hookspecs import hookimpl as hookimpl
    from warpgate.net.constants import EXT_BIND as EXT_BIND
    from warpgate.net.constants import IP4 as IP4
    from warpgate.net.constants import IP6 as IP6
    from warpgate.net.constants import LOOPBACK_BIND as LOOPBACK_BIND
    from warpgate.net.constants import NIC_BIND as NIC_BIND
    from warpgate.net.constants import SUB_ALL as SUB_ALL
    from warpgate.net.constants import TCP as TCP
    from warpgate.net.constants import UDP as UDP
    from warpgate.net.constants import DeltaType as DeltaType
    from warpgate.net.constants import NATType as NATType
    from warpgate.net.nic import Interface as Interface
    from warpgate.net.pipe import Pipe as Pipe
    from warpgate.net.route import Route as Route
    from warpgate.node.auto_connect import auto_connect as auto_connect
    from warpgate.node.auto_connect import connect as connect
    from warpgate.node.node import Node as Node
    from warpgate.node.node_defs import NODE_CONF as NODE_CONF
    from warpgate.node.node_defs import NODE_TEST_CONF as NODE_TEST_CONF
    from warpgate.plugin import Plugin as Plugin
    from warpgate.protocol.peer_address import PeerAddress as PeerAddress
    from warpgate.protocol.proto_msg import ConMsg as ConMsg
    from warpgate.protocol.proto_msg import ProtoMsg as ProtoMsg
    from warpgate.registry import plugin_registry as plugin_registry
    from warpgate.registry import register as register
    from warpgate.signalling.transport import SignalTransport as SignalTransport
    from warpgate.traversal.report import AttemptOutcome as AttemptOutcome
    from warpgate.traversal.report import Report as Report
    from warpgate.traversal.report import SkipReason as SkipReason

__version__ = "0.1.0"

PLUGIN_API = 1
"""The version of the plugin interface that this core offers."""

_EXPORTS = {
    "errors": (
        "AddressError AllocationExpired AllocationRefused BadSignature ConfigError "
        "InvalidAddressError KeyChangedError LocalProtocolError MessageTooLarge NoPathError "
        "NoSharedFamilyError PipeClosed PluginConflictError PluginDefinitionError PluginError "
        "PluginIncompatibleError PluginLoadError ProtocolError RelayError RemoteProtocolError "
        "SignallingError StaleMessage TraversalError UnknownMessage UnknownPeerError WarpgateError"
    ),
    "hookspecs": "hookimpl",
    "net.constants": ("DeltaType EXT_BIND IP4 IP6 LOOPBACK_BIND NATType NIC_BIND SUB_ALL TCP UDP"),
    "net.nic": "Interface",
    "net.pipe": "Pipe",
    "net.route": "Route",
    "node.auto_connect": "auto_connect connect",
    "node.node": "Node",
    "node.node_defs": "NODE_CONF NODE_TEST_CONF",
    "plugin": "Plugin",
    "protocol.peer_address": "PeerAddress",
    "protocol.proto_msg": "ConMsg ProtoMsg",
    "registry": "plugin_registry register",
    "signalling.transport": "SignalTransport",
    "traversal.report": "AttemptOutcome Report SkipReason",
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = sorted([*_MODULE_OF, "PLUGIN_API", "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

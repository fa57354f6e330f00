"""Peer-to-peer connections in pure Python.

The public names are re-exported lazily (PEP 562): ``import warpgate`` loads nothing else, and a
name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import AddressError as AddressError
    from .errors import AllocationExpired as AllocationExpired
    from .errors import AllocationRefused as AllocationRefused
    from .errors import AttemptSkipped as AttemptSkipped
    from .errors import BadSignature as BadSignature
    from .errors import ConfigError as ConfigError
    from .errors import InvalidAddressError as InvalidAddressError
    from .errors import KeyChangedError as KeyChangedError
    from .errors import LocalProtocolError as LocalProtocolError
    from .errors import MessageTooLarge as MessageTooLarge
    from .errors import NoPathError as NoPathError
    from .errors import NoSharedFamilyError as NoSharedFamilyError
    from .errors import PipeClosed as PipeClosed
    from .errors import PluginConflictError as PluginConflictError
    from .errors import PluginDefinitionError as PluginDefinitionError
    from .errors import PluginError as PluginError
    from .errors import PluginIncompatibleError as PluginIncompatibleError
    from .errors import PluginLoadError as PluginLoadError
    from .errors import ProtocolError as ProtocolError
    from .errors import RelayError as RelayError
    from .errors import RemoteProtocolError as RemoteProtocolError
    from .errors import SignallingError as SignallingError
    from .errors import StaleMessage as StaleMessage
    from .errors import TraversalError as TraversalError
    from .errors import UnknownMessage as UnknownMessage
    from .errors import UnknownPeerError as UnknownPeerError
    from .errors import WarpgateError as WarpgateError
    from .hookspecs import hookimpl as hookimpl
    from .net.constants import EXT_BIND as EXT_BIND
    from .net.constants import IP4 as IP4
    from .net.constants import IP6 as IP6
    from .net.constants import LOOPBACK_BIND as LOOPBACK_BIND
    from .net.constants import NIC_BIND as NIC_BIND
    from .net.constants import SUB_ALL as SUB_ALL
    from .net.constants import TCP as TCP
    from .net.constants import UDP as UDP
    from .net.constants import DeltaType as DeltaType
    from .net.constants import NATType as NATType
    from .net.nic import Interface as Interface
    from .net.pipe import Pipe as Pipe
    from .net.route import Route as Route
    from .node.auto_connect import auto_connect as auto_connect
    from .node.auto_connect import connect as connect
    from .node.node import Node as Node
    from .node.node_defs import NODE_CONF as NODE_CONF
    from .node.node_defs import NODE_TEST_CONF as NODE_TEST_CONF
    from .plugin import Plugin as Plugin
    from .protocol.peer_address import PeerAddress as PeerAddress
    from .protocol.proto_msg import ConMsg as ConMsg
    from .protocol.proto_msg import ProtoMsg as ProtoMsg
    from .registry import plugin_registry as plugin_registry
    from .registry import register as register
    from .signalling.transport import SignalTransport as SignalTransport
    from .traversal.report import AttemptOutcome as AttemptOutcome
    from .traversal.report import Report as Report
    from .traversal.report import SkipReason as SkipReason

__version__ = "0.1.0"

PLUGIN_API = 1
"""The version of the plugin interface that this core offers."""

_EXPORTS = {
    "errors": (
        "AddressError AllocationExpired AllocationRefused AttemptSkipped BadSignature ConfigError "
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

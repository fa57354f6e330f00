"""The hooks: what a plugin may do beyond offering a strategy.

A strategy is a class, not a hook. Hooks are for what cuts across strategies. A module or an
instance that an entry point (or a drop-in) names implements them with :data:`hookimpl`::

    from warpgate import hookimpl

    @hookimpl
    def warpgate_event(node, event):
        print(event)

An implementation may leave out arguments that it does not need. It has the colour of its
specification: an ``async def`` for the two that are awaited, a plain function for the others.
``tryfirst`` and ``trylast`` order implementations; among equals the one registered last is called
first, as pluggy does it. Wrappers are not supported.

Order of events at ``Node.start()``: ``warpgate_register_strategies``, ``warpgate_node_starting``,
``warpgate_signal_transport``, every strategy's ``setup``; then, while the node runs,
``warpgate_resolve_address`` and ``warpgate_event``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import pluggy

if TYPE_CHECKING:
    from warpgate.events import Event
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.signalling.transport import SignalTransport

PROJECT_NAME: Final = "warpgate"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class StrategyRegistrar(Protocol):
    """What ``warpgate_register_strategies`` is given."""

    def __call__(self, cls: type[Plugin], *, phase: str | None = ...) -> type[Plugin]:
        """Offer a strategy to the node that is starting.

        Args:
            cls: a complete :class:`~warpgate.Plugin` subclass.
            phase: as for :func:`~warpgate.register`, and written on the class; leave it out when
                the class bears its phase already.

        Returns:
            The class.

        Raises:
            PluginDefinitionError: the class breaks the class contract.
            ValueError: the phase is unknown.

        """


@hookspec
def warpgate_register_strategies(register: StrategyRegistrar) -> None:
    """Register strategies that exist under a condition, or that code generates.

    Fires once per ``Node.start()``, first of all hooks, while the node's plugins are loaded; there
    is no node yet. A strategy registered here belongs to the distribution of the implementation
    and is subject to the same filters and name rules as any other.

    Args:
        register: call it with each class, ``register(cls)`` or ``register(cls, phase="punch")``.

    """


@hookspec
async def warpgate_node_starting(node: Node) -> None:
    """Prepare something on a node before any strategy is set up.

    Fires once per ``Node.start()``, awaited one implementation after the other, before any
    strategy's ``setup``. The node has its configuration, identity and resources; it has no
    listeners, no address and no strategies. What is to be closed with the node goes to
    ``node.resources.register(obj)``. An exception is logged and counted and does not stop the node.

    Args:
        node: the node that is starting.

    """


@hookspec(firstresult=True)
def warpgate_signal_transport(node: Node) -> SignalTransport | None:
    """Return how the node exchanges signals with its peers, or None to leave it to the next one.

    Fires once per ``Node.start()``, after ``warpgate_node_starting``; the first result that is not
    None is used. The core's own transport is the last implementation.

    Args:
        node: the node that is starting.

    """


@hookspec
async def warpgate_resolve_address(
    node: Node, address: bytes | str
) -> PeerAddress | bytes | str | None:
    """Return the peer address that a name or a foreign kind of address stands for, or None.

    Fires whenever an application names a peer by something that is not a signed address; awaited
    one implementation after the other until one has a result. An :class:`~warpgate.WarpgateError`
    reaches the caller (a changed key must); any other exception is logged, counted and passed over.

    Args:
        node: the node that asks.
        address: what the application gave, unchanged.

    Returns:
        The address, as an object or in its binary or text form; it is verified whoever
        returned it. Or the node id or full name of whoever is meant, for the other resolvers to
        find.

    """


@hookspec
def warpgate_event(node: Node, event: Event) -> None:
    """Observe what happens on a node.

    Fires for every event, in order, on the loop's thread; return quickly. An exception is logged
    and counted and keeps no other observer from being called.

    Args:
        node: the node that it happens on.
        event: a frozen dataclass of :mod:`warpgate.events`.

    """

"""Which strategies and signals the nodes of a test get, whatever is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from warpgate.contract import check_strategy
from warpgate.errors import PluginDefinitionError
from warpgate.hooks import LoadedObject
from warpgate.hookspecs import hookimpl
from warpgate.loading import LoadedStrategy, LoadReport
from warpgate.plugin import Plugin
from warpgate.signalling.memory import MemoryHub, MemoryTransport

if TYPE_CHECKING:
    from warpgate.node.node import Node
    from warpgate.signalling.transport import SignalTransport

DISTRIBUTION = "warpgate.testing"

# Where a node looks up what it loads: the seam that a stage replaces.
_node_module: Any = import_module("warpgate.node.node")

P = TypeVar("P", bound="type[Plugin]")


class Stage:
    """Within ``with Stage(…) as stage:`` nodes that start get what the stage has.

    Args:
        isolated: nothing is discovered: no entry points, no drop-ins, no registered classes; only
            what :meth:`install` was given. Filters of the environment don't apply.
        memory: nodes also have signals that travel within the process, besides direct ones.

    Attributes:
        nodes: the nodes that have started within, oldest first.

    """

    def __init__(self, *, isolated: bool = True, memory: bool = False) -> None:
        self.isolated = isolated
        self.nodes: list[Node] = []
        self._hub = MemoryHub() if memory else None
        self._strategies: list[type[Plugin]] = []
        self._load: Any = None

    def install(self, cls: P) -> P:
        """Install a strategy on every node that starts from now on, and on those that run already.

        Args:
            cls: a registered Plugin subclass; on nodes that start its ``setup`` is called.

        Returns:
            The class, so that this can be a decorator.

        Raises:
            PluginDefinitionError: the class breaks the contract, or it has a ``setup`` of its own
                and nodes are running already.

        """
        check_strategy(cls)
        running = [node for node in self.nodes if node.running]
        if running and cls.setup.__func__ is not Plugin.setup.__func__:  # type: ignore[attr-defined]
            raise PluginDefinitionError(
                f"{cls.__qualname__} has a setup() of its own: install it before the nodes start"
            )
        if cls not in self._strategies:
            self._strategies.append(cls)
        for node in running:
            node.traversal.install_plugin(cls.name, {"class": cls}, DISTRIBUTION)
        return cls

    def __enter__(self) -> Self:
        self._load = _node_module.load
        _node_module.load = self._report
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _node_module.load = self._load

    def _report(
        self, conf: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> LoadReport:
        """Stand in for ``warpgate.loading.load``."""
        report = LoadReport([], [], [], frozenset()) if self.isolated else self._load(conf, environ)
        for cls in self._strategies:
            where = f"{cls.__module__}:{cls.__qualname__}"
            report.strategies.append(LoadedStrategy(cls.name, cls, DISTRIBUTION, "", where))
        report.objects.append(LoadedObject(_Hooks(self), DISTRIBUTION, "", f"stage {id(self)}"))
        result: LoadReport = report
        return result

    def transport(self, node: Node) -> SignalTransport | None:
        """Return a node's member of this stage's memory hub, or None when there is no hub."""
        return None if self._hub is None else MemoryTransport(self._hub, node.identity.public_key)


class _Hooks:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @hookimpl
    async def warpgate_node_starting(self, node: Node) -> None:
        self._stage.nodes.append(node)

    @hookimpl
    def warpgate_signal_transport(self, node: Node) -> SignalTransport | None:
        return self._stage.transport(node)

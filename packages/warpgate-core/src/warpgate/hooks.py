"""Calling hooks: guarded, in pluggy's order, and awaited where they are asynchronous.

pluggy calls synchronously: under ``firstresult`` an asynchronous implementation's un-awaited
coroutine would count as the result, and one raising observer would keep the others from being
called. So the implementations are walked here.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from warpgate import hookspecs
from warpgate.errors import PluginDefinitionError, WarpgateError
from warpgate.events import Counters
from warpgate.hook_contract import check_hooks

if TYPE_CHECKING:
    from warpgate.events import Event
    from warpgate.node.node import Node

HOOK_ERRORS = "hook_errors"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """A module or an instance that implements hooks, and where it came from.

    ``entry_point`` is the entry point's name, or the path of a drop-in.
    """

    object: Any
    distribution: str
    version: str
    entry_point: str

    @property
    def name(self) -> str:
        """The name under which pluggy knows it."""
        return f"{self.distribution}:{self.entry_point}"


class Hooks:
    """The hook implementations of one node.

    Args:
        objects: modules and instances (or :class:`LoadedObject` of them), registered in this
            order; as pluggy has it, what is registered later is called earlier, save for
            ``tryfirst`` and ``trylast``. The same object counts once.
        counters: where failures are counted as ``hook_errors``.

    Raises:
        PluginDefinitionError: an implementation does not fit its specification.

    """

    def __init__(
        self,
        objects: Iterable[Any] = (),
        counters: Counters | None = None,
    ) -> None:
        self.pm: pluggy.PluginManager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self.pm.add_hookspecs(hookspecs)
        self.counters = Counters() if counters is None else counters
        for obj in objects:
            self.register(obj)

    def register(self, obj: Any, name: str | None = None) -> None:
        """Add a module's or an instance's implementations.

        Raises:
            PluginDefinitionError: an implementation does not fit its specification.

        """
        if isinstance(obj, LoadedObject):
            obj, name = obj.object, name or obj.name
        if any(obj is known for known in self.pm.get_plugins()):
            return
        check_hooks(obj)
        try:
            self.pm.register(obj, name=name)
            self.pm.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginDefinitionError(str(error)) from error

    def notify(self, node: Node, event: Event) -> None:
        """Tell every ``warpgate_event`` observer; never raises what an observer raises."""
        for implementation in self.implementations("warpgate_event"):
            try:
                _call(implementation, {"node": node, "event": event})
            except Exception:  # noqa: BLE001  # an observer must not harm what it observes
                self._failed("warpgate_event", implementation)

    async def first(self, name: str, **arguments: Any) -> Any:
        """Return the first result of a hook that is not None, awaiting each implementation.

        Raises:
            WarpgateError: raised on purpose by an implementation; other exceptions are logged and
                counted, and the next implementation is asked.

        """
        for implementation in self.implementations(name):
            try:
                result = _call(implementation, arguments)
                if inspect.isawaitable(result):
                    result = await result
            except WarpgateError:
                raise
            except Exception:  # noqa: BLE001  # a bad plugin never takes a node down
                self._failed(name, implementation)
                continue
            if result is not None:
                return result
        return None

    async def each(self, name: str, **arguments: Any) -> list[Any]:
        """Call every implementation of a hook in turn, awaiting each.

        Returns:
            The results that are not None; what raised is logged, counted and left out.

        """
        results = []
        for implementation in self.implementations(name):
            try:
                result = _call(implementation, arguments)
                if inspect.isawaitable(result):
                    result = await result
            except Exception:  # noqa: BLE001  # a bad plugin never takes a node down
                self._failed(name, implementation)
                continue
            if result is not None:
                results.append(result)
        return results

    def first_sync(self, name: str, **arguments: Any) -> Any:
        """Return the first result of a synchronous hook that is not None; raises as :meth:`first`."""
        for implementation in self.implementations(name):
            try:
                result = _call(implementation, arguments)
            except WarpgateError:
                raise
            except Exception:  # noqa: BLE001  # a bad plugin never takes a node down
                self._failed(name, implementation)
                continue
            if result is not None:
                return result
        return None

    def implementations(self, name: str) -> Iterator[pluggy.HookImpl]:
        """Return a hook's implementations in the order in which they are called."""
        caller: pluggy.HookCaller = getattr(self.pm.hook, name)
        return reversed(caller.get_hookimpls())

    def _failed(self, name: str, implementation: pluggy.HookImpl) -> None:
        self.counters.count(HOOK_ERRORS)
        log.exception("%s of %s failed", name, implementation.plugin_name)


def _call(implementation: pluggy.HookImpl, arguments: dict[str, Any]) -> Any:
    # An implementation may take fewer arguments than the hook has.
    return implementation.function(*[arguments[name] for name in implementation.argnames])

"""What ``plugin_loaders`` holds: how the attempts of one installed strategy are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from warpgate.contract import is_positive
from warpgate.errors import PluginDefinitionError
from warpgate.net.constants import PHASES, ROUTE_TYPES, transport_name
from warpgate.plugin import DEFAULT_TIMEOUT_S, Plugin
from warpgate.traversal.plan import StrategyInfo


@dataclass(slots=True)
class Loader:
    """Makes the attempts of one strategy.

    Attributes:
        name: the strategy's name, which is its id on the wire.
        cls: the strategy's class; of a factory alone, the class of what it builds.
        factory: an object with ``build_plugin()``, or None.
        timeout: seconds per attempt.
        set_bind: bind to the chosen local address before ``run``.
        distribution: where it came from, for reports.

    Raises:
        PluginDefinitionError: the class, or what the factory builds, can't be used.

    """

    name: str
    cls: type[Plugin] | None
    factory: Any = None
    timeout: float = DEFAULT_TIMEOUT_S
    set_bind: bool = False
    distribution: str = ""
    _info: StrategyInfo = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cls is None:
            self.cls = type(self.build())
        self._info = _examine(self.name, self.cls)

    def build(self) -> Plugin:
        """Return a new instance.

        Raises:
            PluginDefinitionError: it could not be made, or it is no Plugin of its own.

        """
        plugin = self._make()
        if not isinstance(plugin, Plugin):
            raise PluginDefinitionError(
                f"{self.name}: build_plugin() returned {plugin!r}; expected a Plugin instance"
            )
        if "plugin_id" not in vars(plugin):
            raise PluginDefinitionError(
                f"{self.name}: {type(plugin).__name__}.__init__ must call super().__init__()"
            )
        if getattr(plugin, "manager", None) is not None:
            raise PluginDefinitionError(
                f"{self.name}: build_plugin() returned an instance that is in use; "
                "every attempt needs its own"
            )
        plugin.__dict__["name"] = self.name
        plugin.timeout = self.timeout
        return plugin

    def _make(self) -> Any:
        make = self.cls if self.factory is None else self.factory.build_plugin
        assert make is not None
        try:
            return make()
        except Exception as error:
            raise PluginDefinitionError(f"{self.name}: can't be built: {error!r}") from error

    def info(self) -> StrategyInfo:
        """Return what a plan must know."""
        return self._info


def _examine(name: str, cls: type[Plugin]) -> StrategyInfo:
    try:
        transport = transport_name(getattr(cls, "transport", None))
        transports = tuple(transport_name(each) for each in cls.transports)
    except (TypeError, ValueError) as error:
        raise PluginDefinitionError(f"{name}: {error}") from None
    route_types = tuple(cls.route_types or ROUTE_TYPES)
    if cls.phase is not None and cls.phase not in PHASES:
        raise PluginDefinitionError(f"{name}: phase {cls.phase!r} is unknown")
    if not all(route_type in ROUTE_TYPES for route_type in route_types):
        raise PluginDefinitionError(f"{name}: route_types {route_types!r} can't be used")
    after_punching = bool(cls.conf.get("after_punching", False))
    nat64 = bool(cls.conf.get("nat64", False))
    return StrategyInfo(
        name, cls.phase, transport, route_types, after_punching, cls.impossible, nat64, transports
    )


def make_loader(name: str, spec: Mapping[str, Any], distribution: str = "") -> Loader:
    """Turn ``install_plugin``'s dict into a loader.

    Args:
        name: the strategy's name.
        spec: ``class`` (a Plugin subclass, or an object with ``build_plugin()``), and optionally
            ``timeout`` in seconds and ``set_bind``; ``strategy``, the class that a factory belongs to.
        distribution: where it came from.

    Raises:
        PluginDefinitionError: ``class`` is missing or neither, or something about it can't be used.

    """
    target = spec.get("class")
    if isinstance(target, type) and issubclass(target, Plugin):
        cls: type[Plugin] | None = target
        factory = None
    elif callable(getattr(target, "build_plugin", None)):
        cls, factory = spec.get("strategy"), target
    else:
        raise PluginDefinitionError(
            f'{name}: "class" is {target!r}; expected a Plugin subclass '
            "or an object with build_plugin()"
        )
    loader = Loader(name, cls, factory, distribution=distribution)
    assert loader.cls is not None
    conf = {**loader.cls.conf, **spec}
    timeout = conf.get("timeout", DEFAULT_TIMEOUT_S)
    if not is_positive(timeout):
        raise PluginDefinitionError(f"{name}: timeout {timeout!r} is no number of seconds above 0")
    loader.timeout, loader.set_bind = float(timeout), bool(conf.get("set_bind", False))
    return loader

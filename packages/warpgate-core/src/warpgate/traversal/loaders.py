"""What ``plugin_loaders`` holds: how the attempts of one installed strategy are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import PluginDefinitionError
from ..net.constants import ROUTE_TYPES, transport_name
from ..plugin import DEFAULT_TIMEOUT_S, Plugin
from .plan import StrategyInfo


@dataclass(slots=True)
class Loader:
    """Makes the attempts of one strategy.

    Attributes:
        name: the strategy's name, which is its id on the wire.
        cls: the strategy's class, None when only a factory is known.
        factory: an object with ``build_plugin()``, or None.
        timeout: seconds per attempt.
        set_bind: bind to the chosen local address before ``run``.
        distribution: where it came from, for reports.

    """

    name: str
    cls: type[Plugin] | None
    factory: Any = None
    timeout: float = DEFAULT_TIMEOUT_S
    set_bind: bool = False
    distribution: str = ""
    _sample: Plugin | None = field(default=None, repr=False)

    def build(self) -> Plugin:
        """Return a new instance.

        Raises:
            PluginDefinitionError: the factory returned something else.

        """
        plugin = self.factory.build_plugin() if self.factory is not None else self._construct()
        if not isinstance(plugin, Plugin):
            raise PluginDefinitionError(
                f"{self.name}: build_plugin() returned {plugin!r}; expected a Plugin instance"
            )
        plugin.__dict__["name"] = self.name
        plugin.timeout = self.timeout
        return plugin

    def _construct(self) -> Plugin:
        assert self.cls is not None
        return self.cls()

    def info(self) -> StrategyInfo:
        """Return what a plan must know."""
        model: Any = self.cls
        if model is None:
            if self._sample is None:
                self._sample = self.build()
            model = self._sample
        return StrategyInfo(
            self.name,
            model.phase,
            transport_name(model.transport),
            tuple(model.route_types or ROUTE_TYPES),
            bool(model.conf.get("after_punching", False)),
        )


def make_loader(name: str, spec: dict[str, Any], distribution: str = "") -> Loader:
    """Turn ``install_plugin``'s dict into a loader.

    Args:
        name: the strategy's name.
        spec: ``class`` (a Plugin subclass, or an object with ``build_plugin()``), and optionally
            ``timeout`` in seconds and ``set_bind``.
        distribution: where it came from.

    Raises:
        PluginDefinitionError: ``class`` is missing or neither.

    """
    target = spec.get("class")
    if isinstance(target, type) and issubclass(target, Plugin):
        cls: type[Plugin] | None = target
        factory = None
    elif callable(getattr(target, "build_plugin", None)):
        cls, factory = spec.get("strategy"), target
    else:
        raise PluginDefinitionError(
            f'{name}: "class" is {target!r}; expected a Plugin subclass or an object with build_plugin()'
        )
    conf = cls.conf if cls is not None else {}
    return Loader(
        name,
        cls,
        factory,
        float(spec.get("timeout", conf.get("timeout", DEFAULT_TIMEOUT_S))),
        bool(spec.get("set_bind", conf.get("set_bind", False))),
        distribution,
    )

"""Puts what was loaded onto a node: every strategy's ``setup``, and the core's own auxiliaries."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ..errors import PluginDefinitionError, PluginError
from ..events import PluginRejected
from ..loading import LoadedStrategy, LoadReport, PluginFailure
from ..plugin import Plugin
from ..traversal.auxiliary.fan_out import FanOut
from ..traversal.auxiliary.get_addr import GetAddr
from ..traversal.auxiliary.return_addr import ReturnAddr
from ..traversal.loaders import make_loader

if TYPE_CHECKING:
    from .node import Node

log = logging.getLogger("warpgate")

SETUP_TIMEOUT_S = 5.0
AUXILIARIES: tuple[type[Plugin], ...] = (GetAddr, ReturnAddr, FanOut)


async def install_strategies(node: Node, report: LoadReport) -> None:
    """Set up and install every loaded strategy; what fails is listed in ``node.traversal.rejected``.

    All ``setup`` methods run at once, each for at most 5 s.
    """
    manager = node.traversal
    manager.rejected.extend(report.rejected)
    for cls in AUXILIARIES:
        if cls.name not in report.blocked:
            manager.install_plugin(cls.name, {"class": cls}, "warpgate-core")
    wanted = [
        strategy
        for strategy in report.strategies
        if node.conf["enable_punching"] or strategy.phase not in ("punch", "spray")
    ]
    results = await asyncio.gather(*(_set_up(node, strategy) for strategy in wanted))
    for strategy, built in zip(wanted, results, strict=True):
        if isinstance(built, PluginFailure):
            manager.rejected.append(built)
            log.warning("plugin rejected: %s", built)
        elif built is not None:
            spec = {"class": built, "strategy": strategy.cls}
            manager.install_plugin(strategy.name, spec, strategy.distribution)
    for failure in manager.rejected:
        node.notify(PluginRejected(failure.entry_point, str(failure)))
    if not any(loader.info().phase for loader in manager.plugin_loaders.values()):
        log.warning(
            "no strategy is installed, so this node can't dial; "
            "pip install warpgate-plugin-direct, warpgate-plugin-punch or warpgate-plugin-turn"
        )


async def _set_up(node: Node, strategy: LoadedStrategy) -> Any:
    """Return what ``setup`` returned, or a failure."""
    try:
        async with asyncio.timeout(SETUP_TIMEOUT_S):
            built = await strategy.cls.setup(node)
        if built is not None:
            loader = make_loader(strategy.name, {"class": built, "strategy": strategy.cls})
            if loader.factory is not None:
                _check_sample(strategy, loader.build())
    except TimeoutError:
        error: Exception = PluginError(f"setup() took more than {SETUP_TIMEOUT_S:g} s")
        mend = "let setup() start slow work in the background"
    except Exception as raised:  # noqa: BLE001  # a strategy must not take the node down
        error, mend = raised, "mend the strategy's setup(), or block the strategy"
    else:
        return built
    return PluginFailure(
        strategy.distribution,
        strategy.version,
        strategy.entry_point,
        "setup",
        error,
        mend,
    )


def _check_sample(strategy: LoadedStrategy, sample: Plugin) -> None:
    """Apply the loader's phase and name rule to what a factory builds."""
    if type(sample).name != strategy.name or sample.phase != strategy.phase:
        raise PluginDefinitionError(
            f"build_plugin() made {type(sample).__name__} with name {type(sample).name!r} and phase "
            f"{sample.phase!r}; expected {strategy.name!r} and {strategy.phase!r}"
        )

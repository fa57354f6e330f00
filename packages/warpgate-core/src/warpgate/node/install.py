"""Puts what was loaded onto a node: every strategy's ``setup``, and the core's own auxiliaries."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from warpgate.errors import PluginDefinitionError, PluginError
from warpgate.events import PluginRejected
from warpgate.loading import LoadedStrategy, LoadReport, PluginFailure
from warpgate.plugin import Plugin
from warpgate.traversal.auxiliary.fan_out import FanOut
from warpgate.traversal.auxiliary.get_addr import GetAddr
from warpgate.traversal.auxiliary.return_addr import ReturnAddr
from warpgate.traversal.loaders import make_loader

if TYPE_CHECKING:
    from warpgate.node.node import Node

log = logging.getLogger("warpgate")

SETUP_TIMEOUT_S = 5.0
CANCEL_GRACE_S = 0.1
SetupResult = tuple[Any, Exception | SystemExit | None]
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
    for strategy, (built, error) in zip(wanted, results, strict=True):
        error = error or _install(node, strategy, built)
        if error is not None:
            failure = _failure(strategy, error)
            manager.rejected.append(failure)
            log.warning("plugin rejected: %s", failure)
    for failure in manager.rejected:
        node.notify(PluginRejected(failure.entry_point, str(failure)))
    if not any(loader.info().phase for loader in manager.plugin_loaders.values()):
        log.warning(
            "no strategy is installed, so this node can't dial; "
            "pip install warpgate-plugin-direct, warpgate-plugin-punch or warpgate-plugin-turn"
        )


async def _set_up(node: Node, strategy: LoadedStrategy) -> SetupResult:
    """Return what ``setup`` returned and what went wrong."""
    # In a task of its own: its cancellations are not ours, and it can't outstay its time.
    task = asyncio.create_task(_call_setup(node, strategy), name=f"setup of {strategy.name}")
    try:
        await asyncio.wait({task}, timeout=SETUP_TIMEOUT_S)
    finally:
        in_time = task.done()
        task.cancel()
    if not in_time:
        await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
        error = PluginError(f"setup() took more than {SETUP_TIMEOUT_S:g} s")
        error.add_note("let setup() start slow work in the background")
        return None, error
    if task.cancelled():
        return None, PluginError("setup() was cancelled from within")
    return task.result()


async def _call_setup(node: Node, strategy: LoadedStrategy) -> SetupResult:
    try:
        return await strategy.cls.setup(node), None
    except (Exception, SystemExit) as raised:  # noqa: BLE001  # a strategy must not take the node down
        return None, raised


def _install(node: Node, strategy: LoadedStrategy, built: Any) -> Exception | None:
    if built is None:
        return None
    spec = {"class": built, "strategy": strategy.cls}
    try:
        loader = make_loader(strategy.name, spec, strategy.distribution)
        if loader.factory is not None:
            _check_made(strategy, type(loader.build()))
        elif loader.cls is not strategy.cls:
            _check_made(strategy, built)
        node.traversal.install_loader(loader)
    except Exception as raised:  # noqa: BLE001  # a factory may raise anything
        return raised
    return None


def _failure(strategy: LoadedStrategy, error: Exception | SystemExit) -> PluginFailure:
    usual = "mend the strategy's setup(), or block the strategy"
    return PluginFailure(
        strategy.distribution,
        strategy.version,
        strategy.entry_point,
        "setup",
        error,
        next(iter(getattr(error, "__notes__", ())), usual),
    )


def _check_made(strategy: LoadedStrategy, cls: type[Plugin]) -> None:
    """Apply the loader's phase and name rule to what ``setup`` or its factory made."""
    name = getattr(cls, "name", None)
    if name != strategy.name or cls.phase != strategy.phase:
        raise PluginDefinitionError(
            f"setup() leads to {cls.__name__} with name {name!r} and phase {cls.phase!r}; "
            f"expected {strategy.name!r} and {strategy.phase!r}"
        )

"""Lets relay strategies begin early with what takes its time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warpgate.traversal.manager import TraversalManager
    from warpgate.traversal.plan import Plan

PREPARE_S: Final = 0.2
"""Before the NATs are known a relay is prepared when this has not led to anything else by then."""

log = logging.getLogger("warpgate")


def prepare_relays(manager: TraversalManager, chosen: Plan, *, anyway: bool = False) -> None:
    """Prepare relays where a plan leaves little else, so that the fallback costs no serial wait.

    A strategy's factory may have a method ``prepare(af, udp_blocked=…)`` for that, which returns at once.

    Args:
        manager: whose strategies.
        chosen: what is going to be tried.
        anyway: also where something cheaper has a chance.

    """
    if not (chosen.relay_likely or anyway):
        return
    report = manager.node.net_report
    wanted = {(c.strategy, c.path.remote_af): c for c in chosen.combinations if c.phase == "relay"}
    for (name, af), combination in wanted.items():
        loader = manager.plugin_loaders.get(name)
        prepare = getattr(loader.factory, "prepare", None) if loader is not None else None
        if loader is None or prepare is None:
            continue
        if combination.transport is not None and combination.transport != loader.info().transport:
            continue  # what is prepared is of the strategy's usual transport
        path = None if report is None else report.path(combination.path.af)
        try:
            prepare(af, udp_blocked=path is not None and path.udp is False)
        except Exception:
            log.exception("%s: prepare() raised", name)
            manager.stats.count("prepare_errors")

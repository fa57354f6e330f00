"""From installed distributions, drop-ins and registered classes to what a node installs.

Order: entry points of the group ``warpgate.strategies``, sorted by distribution and name; then the
drop-ins (see :mod:`.dropins`); then classes that code registered before the node started; then what
``warpgate_register_strategies`` implementations add. Of two strategies with one name the first in
this order is installed. Loading happens at ``Node.start()``, never at import.

An entry point is checked in this order, and the first failure is the one that is reported:
``api`` (its distribution's requirement on ``warpgate-core`` admits the core that runs; after the
import also an attribute ``api = N`` of the class, module or instance, against
``warpgate.PLUGIN_API``), ``import``, ``contract``, ``hooks``, ``name``. A module whose hooks are
wrong is rejected whole; of several classes in a module each is judged alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from warpgate.hooks import LoadedObject
from warpgate.loading.assembly import Assembly
from warpgate.loading.discovery import GROUP, catalog
from warpgate.loading.dropins import drop_ins
from warpgate.loading.filters import CORE_AUXILIARIES, RESERVED, Filters
from warpgate.loading.report import LoadedStrategy, LoadReport, PluginFailure

__all__ = [
    "CORE_AUXILIARIES",
    "GROUP",
    "RESERVED",
    "LoadReport",
    "LoadedObject",
    "LoadedStrategy",
    "PluginFailure",
    "load",
    "load_report",
]

STRICT_VARIABLE = "WARPGATE_STRICT"

log = logging.getLogger(__name__)


def load_report(refresh: bool = False) -> LoadReport:
    """Return what the installed distributions offer, without any filter.

    Args:
        refresh: look at the installed distributions again and retry what failed; without it they
            are looked at once per process, and every entry point is imported at most once.

    """
    if refresh:
        catalog.cache_clear()
    assembly = Assembly(Filters())
    _add_entry_points(assembly)
    return assembly.report()


def load(
    conf: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> LoadReport:
    """Return what one node installs.

    An entry point that a filter excludes is not imported. Drop-ins are imported unless their own
    name is blocked, and their strategies are filtered by name afterwards.

    Args:
        conf: ``plugins``, ``block_plugins`` and ``plugin_dirs`` are read; missing ones count as
            not set.
        environ: ``WARPGATE_PLUGINS`` and ``WARPGATE_BLOCK_PLUGINS`` (comma separated) win over
            ``conf``; the process's environment when None.

    Raises:
        ConfigError: a filter names something unknown, or ``plugin_dirs`` names no folder.
        ExceptionGroup: something was rejected and ``WARPGATE_STRICT`` is 1.

    """
    conf = {} if conf is None else conf
    environ = os.environ if environ is None else environ
    filters = Filters.make(conf, environ)
    assembly = Assembly(filters)
    _add_entry_points(assembly)
    for drop_in in drop_ins(conf.get("plugin_dirs") or ()):
        assembly.known.add(drop_in.name)
        assembly.owners.append(drop_in.source)
        if drop_in.name not in filters.block:
            assembly.add(drop_in.outcome(), drop_in.name)
    assembly.add_registered()
    assembly.call_hook()
    report = assembly.report()
    filters.check_known(assembly.known, report.rejected)
    for failure in report.rejected:
        log.warning("plugin rejected: %s", failure)
        log.debug("what rejected it", exc_info=failure.error)
    if report.rejected and environ.get(STRICT_VARIABLE) == "1":
        count = len(report.rejected)
        raise ExceptionGroup(
            f"{count} plugin{'s were' if count > 1 else ' was'} rejected",
            [failure.exception() for failure in report.rejected],
        )
    return report


def _add_entry_points(assembly: Assembly) -> None:
    found = catalog()
    assembly.rejected.extend(found.broken)
    for point in found.points:
        assembly.known.add(point.name)
        assembly.owners.append(point.source)
        if assembly.filters.may_import(point.name):
            assembly.add(found.outcome(point), point.name)

"""Putting outcomes together: filters after import, names, registered classes, generated ones."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from packaging.utils import canonicalize_name

import warpgate
from warpgate.contract import check_api, check_strategy
from warpgate.errors import PluginConflictError
from warpgate.hooks import Hooks, LoadedObject
from warpgate.loading.dropins import SYNTHETIC
from warpgate.loading.examine import (
    Outcome,
    Source,
    examine_strategy,
    guarded,
    latest_registered,
    name_of,
)
from warpgate.loading.filters import CORE_AUXILIARIES, RESERVED, Filters
from warpgate.loading.report import REGISTERED, LoadedStrategy, LoadReport, PluginFailure
from warpgate.net.constants import PHASES
from warpgate.plugin import Plugin

_AUXILIARY_PACKAGE: Final = "warpgate.traversal.auxiliary"
_KEEP: Final[Any] = object()  # "phase was not given", which None can't say


class Assembly:
    """Gathers one :class:`LoadReport`.

    ``known`` are the names that filters may hold, ``owners`` the sources whose classes are not
    "registered code".
    """

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self.known: set[str] = set(CORE_AUXILIARIES)
        self.owners: list[Source] = []
        self.rejected: list[PluginFailure] = []
        self._kept: dict[str, tuple[LoadedStrategy, str]] = {}  # by name, with its origin
        self._objects: list[tuple[LoadedObject, str]] = []
        self._seen: set[type] = set()

    def add(self, outcome: Outcome, origin: str) -> None:
        """Take over what came of a source; ``origin`` is the name that filters know it by."""
        self._seen.update(outcome.classes)
        self.known.update(filter(None, map(name_of, outcome.classes)))
        self.rejected.extend(outcome.failures)
        kept = [self.offer(strategy, origin) for strategy in outcome.strategies]
        if outcome.object is not None:
            allow = self.filters.allow
            if allow is None or origin in allow or any(kept):
                self._objects.append((outcome.object, origin))

    def offer(self, strategy: LoadedStrategy, origin: str) -> bool:
        """Keep a strategy if the filters do and its name is free; return whether."""
        self.known.add(strategy.name)
        if not self.filters.keeps(strategy.name, strategy.phase, origin):
            return False
        owner = RESERVED.get(strategy.name)
        if owner is not None and canonicalize_name(strategy.distribution) != owner:
            self._conflict(strategy, f"belongs to {owner}")
            return False
        taken = self._kept.get(strategy.name)
        if taken is None:
            self._kept[strategy.name] = (strategy, origin)
        elif taken[0].cls is not strategy.cls:
            self._conflict(strategy, f"is taken by {taken[0].source}")
            return False
        return True

    def add_registered(self) -> None:
        """Add classes that code registered before the node started."""
        for cls in latest_registered():
            if cls in self._seen or self._is_owned(cls):
                continue
            where = f"{cls.__module__}:{cls.__qualname__}"
            outcome = Outcome(Source(REGISTERED, "", where, ""), classes=[cls])
            if examine_strategy(outcome.source, cls, outcome):
                outcome.strategies = [outcome.source.strategy(cls)]
            self.add(outcome, "")

    def call_hook(self) -> None:
        """Let ``warpgate_register_strategies`` implementations add theirs."""
        hooks = Hooks(loaded for loaded, _ in self._objects)
        by_object = {id(loaded.object): (loaded, origin) for loaded, origin in self._objects}
        for implementation in hooks.implementations("warpgate_register_strategies"):
            loaded, origin = by_object[id(implementation.plugin)]
            source = Source(loaded.distribution, loaded.version, loaded.entry_point, "")
            outcome = Outcome(source)
            arguments = [self._registrar(source, origin)] if implementation.argnames else []
            guarded(source, "hooks", outcome, partial(implementation.function, *arguments))
            self.rejected.extend(outcome.failures)

    def report(self) -> LoadReport:
        """Return the result: strategies by the allow-list's order, auxiliaries last."""
        ordered = sorted(
            self._kept.values(),
            key=lambda kept: (kept[0].phase is None, self.filters.rank(kept[0].name, kept[1])),
        )
        return LoadReport(
            [strategy for strategy, _ in ordered],
            [loaded for loaded, _ in self._objects],
            self.rejected,
            self.filters.block,
        )

    def _registrar(self, source: Source, origin: str) -> Any:
        def register(cls: type[Plugin], *, phase: str | None = _KEEP) -> type[Plugin]:
            if phase is not _KEEP:
                if phase is not None and phase not in PHASES:
                    raise ValueError(f"phase {phase!r} is none of {', '.join(PHASES)} and None")
                cls.phase = phase
            check_api(cls, warpgate.PLUGIN_API)
            check_strategy(cls)
            self._seen.add(cls)
            self.offer(source.strategy(cls), origin)
            return cls

        return register

    def _is_owned(self, cls: type) -> bool:
        module = cls.__module__
        core = module == _AUXILIARY_PACKAGE or module.startswith(f"{_AUXILIARY_PACKAGE}.")
        return (
            core
            or module.startswith(SYNTHETIC)  # from another node's plugin_dirs
            or any(owner.owns(cls) for owner in self.owners)
        )

    def _conflict(self, strategy: LoadedStrategy, why: str) -> None:
        error = PluginConflictError(
            f"the name {strategy.name!r} {why}; {strategy.source} can't have it"
        )
        error.add_note("rename the strategy, or uninstall or block one of the two")
        self.rejected.append(
            PluginFailure(
                strategy.distribution,
                strategy.version,
                strategy.entry_point,
                "name",
                error,
                str(error.__notes__[0]),
            )
        )

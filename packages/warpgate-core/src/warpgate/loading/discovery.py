"""Entry points: found once per process, each imported at most once and only when wanted."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

import importlib_metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import warpgate
from warpgate.errors import PluginIncompatibleError
from warpgate.loading.examine import Outcome, Source, examine, guarded
from warpgate.loading.report import CORE, PluginFailure

GROUP: Final = "warpgate.strategies"

_REQUIREMENT_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def search_path() -> list[str]:
    """Return the folders in which installed distributions are looked for."""
    return list(sys.path)


class EntryPoint:
    """An entry point and the outcome of importing it."""

    def __init__(self, source: Source, point: Any, requires: list[str]) -> None:
        self.source = source
        self.name = source.entry_point
        self._point = point
        self._requires = requires
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """Check, import and examine, the first time; return what came of it."""
        if self._outcome is None:
            self._outcome = self._load()
        return self._outcome

    def _load(self) -> Outcome:
        failed = Outcome(self.source)
        if not guarded(self.source, "api", failed, lambda: check_requirement(self._requires)):
            return failed
        loaded: list[Any] = []
        if not guarded(self.source, "import", failed, lambda: loaded.append(self._import())):
            return failed
        return examine(self.source, loaded[0])

    def _import(self) -> Any:
        try:
            return self._point.load()
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if f"{self.source.module}.".startswith(f"{missing}."):
                error.add_note(
                    f"the distribution does not hold the module {missing!r} that its entry point "
                    f"names: reinstall {self.source.distribution} or tell its maintainers"
                )
            elif missing:
                error.add_note(
                    f"install the distribution that holds {missing.partition('.')[0]!r}; "
                    f"{self.source.distribution} should require it"
                )
            raise


class Catalog:
    """All entry points of the group, in order: by distribution, then by entry point."""

    def __init__(self) -> None:
        self.broken: list[PluginFailure] = []
        found = list(self._discover())
        self.points: list[EntryPoint] = sorted(
            found, key=lambda point: (point.source.distribution, point.name)
        )
        self._lock = threading.RLock()  # nodes may start on several threads' loops

    def outcome(self, point: EntryPoint) -> Outcome:
        """Return what came of importing an entry point, importing it the first time."""
        with self._lock:
            return point.outcome()

    def _discover(self) -> Iterator[EntryPoint]:
        importlib.invalidate_caches()
        seen: set[str] = set()
        for distribution in importlib_metadata.distributions(path=search_path()):
            # One folder of broken metadata must not hide all other distributions, as it would
            # behind importlib_metadata.entry_points().
            name, version = "(unnamed distribution)", ""
            try:
                text = distribution.read_text("entry_points.txt") or ""
                if GROUP not in text:
                    continue
                name, version = str(distribution.metadata["Name"]), str(distribution.version)
                if canonicalize_name(name) in seen or not _is_first(distribution, name):
                    continue
                seen.add(canonicalize_name(name))
                requires = list(distribution.requires or [])
                points = list(distribution.entry_points.select(group=GROUP))
            except Exception as error:  # noqa: BLE001  # whatever broken metadata leads to
                self.broken.append(Source(name, version, GROUP, "").failure("import", error))
                continue
            for point in points:
                module, _, attribute = point.value.partition("[")[0].partition(":")
                source = Source(name, version, point.name, module.strip(), attribute.strip())
                yield EntryPoint(source, point, requires)


def _is_first(distribution: Any, name: str) -> bool:
    """Return whether no distribution of the same name stands earlier on the path and hides it."""
    for first in importlib_metadata.distributions(name=name, path=search_path()):
        mine = (distribution.version, distribution.read_text("entry_points.txt"))
        same: bool = (first.version, first.read_text("entry_points.txt")) == mine
        return same
    return True


def check_requirement(requires: list[str]) -> None:
    """Refuse a distribution whose requirement on the core excludes the core that runs.

    Args:
        requires: its ``Requires-Dist`` lines.

    Raises:
        PluginIncompatibleError: the core's version is outside, or the line can't be read.

    """
    for line in requires:
        match = _REQUIREMENT_NAME.match(line)
        if match is None or canonicalize_name(match[1]) != CORE:
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise PluginIncompatibleError(f"its requirement {line!r} can't be read") from error
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(warpgate.__version__, prereleases=True):
            refusal = PluginIncompatibleError(
                f"it requires {CORE}{requirement.specifier}, this is {warpgate.__version__}"
            )
            refusal.add_note(f'pip install --upgrade "{CORE}{requirement.specifier}"')
            raise refusal


@functools.cache
def catalog() -> Catalog:
    """Return the process's entry points; ``catalog.cache_clear()`` forgets them."""
    return Catalog()

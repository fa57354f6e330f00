"""What an imported object offers: strategies and hooks, checked, or the reasons against it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import warpgate
from warpgate.contract import check_api, check_strategy, defect, describe
from warpgate.errors import PluginDefinitionError
from warpgate.hook_contract import check_hooks
from warpgate.hooks import LoadedObject
from warpgate.loading.report import DROP_IN, REGISTERED, LoadedStrategy, PluginFailure
from warpgate.plugin import Plugin
from warpgate.registry import plugin_registry

# What a plugin's code may not stop us from doing: being interrupted and being cancelled.
PASS_THROUGH = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


@dataclass(frozen=True, slots=True)
class Source:
    """Where something comes from.

    ``module`` is the name of the module; ``attribute`` is what the entry point names in it, empty
    for the module itself.
    """

    distribution: str
    version: str
    entry_point: str
    module: str
    attribute: str = ""

    def owns(self, cls: type) -> bool:
        """Return whether a class was defined in this source's module or below it."""
        return bool(self.module) and f"{cls.__module__}.".startswith(f"{self.module}.")

    def strategy(self, cls: type[Plugin]) -> LoadedStrategy:
        """Return the strategy that a class of this source is."""
        return LoadedStrategy(cls.name, cls, self.distribution, self.version, self.entry_point)

    def failure(self, stage: str, error: BaseException) -> PluginFailure:
        """Return a failure of this source; the error's first note says how to mend it."""
        notes = getattr(error, "__notes__", ())
        mend = str(notes[0]) if notes else self.usual_mend(stage)
        return PluginFailure(self.distribution, self.version, self.entry_point, stage, error, mend)

    def usual_mend(self, stage: str) -> str:
        """Return the advice that fits any failure of this source."""
        if self.distribution == DROP_IN:
            return f"mend {self.entry_point} or take it out of the folder"
        if self.distribution == REGISTERED:
            return f"mend the class {self.entry_point}"
        verb = "set up" if stage == "setup" else "load"
        return (
            f"pip install --upgrade {self.distribution}, or uninstall it; "
            f"WARPGATE_BLOCK_PLUGINS={self.entry_point} does not {verb} it"
        )


@dataclass(slots=True)
class Outcome:
    """What became of one source; ``classes`` are all that were looked at, good or bad."""

    source: Source
    strategies: list[LoadedStrategy] = field(default_factory=list)
    object: LoadedObject | None = None
    failures: list[PluginFailure] = field(default_factory=list)
    classes: list[type] = field(default_factory=list)


def guarded(source: Source, stage: str, outcome: Outcome, step: Callable[[], Any]) -> bool:
    """Run a step of loading; whatever a plugin's code raises becomes a failure.

    Returns:
        Whether the step went well.

    """
    try:
        step()
    except PASS_THROUGH:
        raise
    except BaseException as error:  # noqa: BLE001  # SystemExit at import must not end the node
        outcome.failures.append(source.failure(stage, error))
        return False
    return True


def examine(source: Source, obj: Any) -> Outcome:
    """Check what an entry point or a drop-in gave.

    Args:
        source: where it came from.
        obj: a Plugin subclass, a module or an instance.

    """
    outcome = Outcome(source)
    if not guarded(source, "api", outcome, lambda: check_api(obj, warpgate.PLUGIN_API)):
        return outcome
    if inspect.isclass(obj):
        guarded(source, "contract", outcome, lambda: _examine_class(source, obj, outcome))
        return outcome
    if isinstance(obj, Plugin):
        guarded(source, "contract", outcome, lambda: _refuse_instance(obj))
        return outcome
    found: list[type[Plugin]] = []
    if not guarded(source, "contract", outcome, lambda: found.extend(_offered(source, obj))):
        return outcome
    outcome.classes = list(found)
    hooks = 0

    def count_hooks() -> None:
        nonlocal hooks
        hooks = check_hooks(obj)

    good = [cls for cls in found if examine_strategy(source, cls, outcome)]
    if not guarded(source, "hooks", outcome, count_hooks):
        return outcome
    if not hooks and not found:
        guarded(source, "contract", outcome, lambda: _refuse(obj))
        return outcome
    outcome.strategies = [source.strategy(cls) for cls in good]
    if hooks:
        outcome.object = LoadedObject(obj, source.distribution, source.version, source.entry_point)
    return outcome


def examine_strategy(source: Source, cls: type[Plugin], outcome: Outcome) -> bool:
    """Check one class of a source: version, contract, and that it bears no hooks."""
    return (
        guarded(source, "api", outcome, lambda: check_api(cls, warpgate.PLUGIN_API))
        and guarded(source, "contract", outcome, lambda: check_strategy(cls))
        and guarded(source, "hooks", outcome, lambda: check_hooks(cls))
    )


def _examine_class(source: Source, cls: type, outcome: Outcome) -> None:
    outcome.classes = [cls]
    if not examine_strategy(source, cls, outcome):
        return
    name = cls.name  # type: ignore[attr-defined]  # check_strategy has seen it
    if source.attribute and name != source.entry_point:
        raise defect(
            f"the entry point {source.entry_point!r} names {describe(cls)}, whose name is {name!r}",
            "give both the same name",
        )
    outcome.strategies = [source.strategy(cls)]


def _offered(source: Source, obj: Any) -> list[type[Plugin]]:
    """Return the registered classes that a module or an instance brings, in their order."""
    if isinstance(obj, ModuleType):
        own = _classes_in(vars(obj).values(), source.module)
    else:
        inherited = [value for base in type(obj).__mro__ for value in vars(base).values()]
        own = _classes_in([*inherited, *getattr(obj, "__dict__", {}).values()], "")
    return [cls for cls in latest_registered() if cls in own or source.owns(cls)]


def _classes_in(values: Any, module: str) -> set[type]:
    # A module may import its strategies from its siblings; what it imports from another
    # distribution (to derive from it, say) is not its own.
    top = module.partition(".")[0]
    return {
        value
        for value in values
        if inspect.isclass(value) and (not module or value.__module__.partition(".")[0] == top)
    }


def _refuse_instance(obj: Plugin) -> None:
    raise defect(
        f"the entry point names an instance of {type(obj).__qualname__}", "let it name the class"
    )


def _refuse(obj: Any) -> None:
    raise PluginDefinitionError(
        f"{describe(obj)} is no plugin: it has neither registered strategies nor hooks"
    )


def name_of(cls: type) -> str:
    """Return an unchecked class's strategy name, or nothing where it has none."""
    try:
        name = getattr(cls, "name", None)
    except Exception:  # noqa: BLE001  # a metaclass may compute it
        return ""
    return name if isinstance(name, str) else ""


def latest_registered() -> list[type[Plugin]]:
    """Return ``plugin_registry`` without the classes that a reload has superseded."""
    latest: dict[tuple[str, str, str], type[Plugin]] = {}
    for cls in plugin_registry:
        key = (cls.__module__, cls.__qualname__, name_of(cls))
        latest[key] = cls
    return list(latest.values())

"""Whether an object's hook implementations fit the specifications."""

from __future__ import annotations

import difflib
import inspect
from types import FunctionType
from typing import Any, Final

import pluggy

from warpgate import hookspecs
from warpgate.contract import defect, describe
from warpgate.hookspecs import PROJECT_NAME

PREFIX: Final = f"{PROJECT_NAME}_"
SPECS: Final[dict[str, FunctionType]] = {
    name: value
    for name, value in vars(hookspecs).items()
    if name.startswith(PREFIX) and inspect.isfunction(value)
}


def arguments_of(hook: str) -> tuple[str, ...]:
    """Return the names of a hook's arguments, in order."""
    return tuple(inspect.signature(SPECS[hook]).parameters)


def is_async(hook: str) -> bool:
    """Return whether a hook's implementations are awaited."""
    return inspect.iscoroutinefunction(SPECS[hook])


def check_hooks(obj: object) -> int:
    """Check every hook implementation of a module or an instance.

    Args:
        obj: the object; for a class, any implementation is an error, since classes are strategies.

    Returns:
        How many implementations it has.

    Raises:
        PluginDefinitionError: which function is wrong; its first note says how to mend it.

    """
    # A manager without specifications accepts any marked function: pluggy finds them for us
    # (statically, so that no property runs), and the messages stay ours.
    scan: pluggy.PluginManager = pluggy.PluginManager(PROJECT_NAME)
    scan.register(obj, name="scanned")
    found = [
        (caller.name, implementation)
        for caller in scan.get_hookcallers(obj) or []
        for implementation in caller.get_hookimpls()
    ]
    if found and inspect.isclass(obj):
        raise defect(
            f"{describe(obj)} implements {found[0][0]}, which a class can't",
            "move hook implementations to a module or an instance with an entry point of its own",
        )
    for hook, implementation in found:
        _check_implementation(hook, implementation)
    if not inspect.isclass(obj):
        _check_unmarked(obj)
    return len(found)


def _check_implementation(hook: str, implementation: Any) -> None:
    if hook not in SPECS:
        if implementation.optionalhook:
            return
        raise _unknown(hook)
    if implementation.wrapper or implementation.hookwrapper:
        raise defect(f"{hook} is implemented as a wrapper", "wrappers are not supported; drop it")
    known = arguments_of(hook)
    for argument in implementation.argnames:
        if argument not in known:
            raise _wrong_argument(hook, argument)
    for name, parameter in inspect.signature(implementation.function).parameters.items():
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if keyword_only and parameter.default is inspect.Parameter.empty:
            raise defect(
                f"{hook}: argument {name!r} is keyword-only",
                "hooks are called with positional arguments; drop the * before it",
            )
    coroutine = inspect.iscoroutinefunction(implementation.function)
    if is_async(hook) and not coroutine:
        raise defect(f"{hook} is a plain function but is awaited", f"write async def {hook}(…)")
    if not is_async(hook) and inspect.iscoroutinefunction(inspect.unwrap(implementation.function)):
        raise defect(f"{hook} is asynchronous but is never awaited", f"write def {hook}(…)")


def _check_unmarked(obj: object) -> None:
    # Only functions that the object itself defines: an imported one is somebody else's.
    home = obj.__name__ if inspect.ismodule(obj) else type(obj).__module__
    for name in dir(obj):
        value = inspect.getattr_static(obj, name, None)
        value = getattr(value, "__func__", value)
        if not (name.startswith(PREFIX) and inspect.isfunction(value)):
            continue
        if hasattr(value, f"{PROJECT_NAME}_impl") or value.__module__ != home:
            continue
        if isinstance(getattr(inspect.getattr_static(obj, name), f"{PROJECT_NAME}_impl", 0), dict):
            continue  # the marker stands above @staticmethod or @classmethod
        if name not in SPECS:
            raise _unknown(name)
        raise defect(f"{name} is not marked as a hook implementation", f"put @hookimpl on {name}")


def _unknown(name: str) -> Exception:
    wanted = name if name.startswith(PREFIX) else PREFIX + name
    near = difflib.get_close_matches(wanted, SPECS, n=1)
    known = ", ".join(SPECS)
    mend = f"did you mean {near[0]}?" if near else f"the hooks are {known}"
    return defect(f"there is no hook {name!r}", mend)


def _wrong_argument(hook: str, argument: str) -> Exception:
    known = arguments_of(hook)
    near = difflib.get_close_matches(argument, known, n=1, cutoff=0.5)
    listed = f"{hook}({', '.join(known)})"
    mend = f"did you mean {near[0]!r}? The hook is {listed}" if near else f"the hook is {listed}"
    return defect(f"{hook} has no argument {argument!r}", mend)

"""What a strategy's class must look like, checked before it is installed."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from warpgate.errors import PluginDefinitionError, PluginIncompatibleError
from warpgate.net.constants import PHASES, ROUTE_TYPES, transport_name
from warpgate.plugin import Plugin
from warpgate.protocol.codec import MAX_WIRE_NAME_BYTES
from warpgate.protocol.proto_msg import MAX_PLUGIN_NAME, ProtoMsg

MAX_NAME_LENGTH: Final = MAX_PLUGIN_NAME
NAME_PATTERN: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME_LENGTH - 1}}}")


def defect(text: str, mend: str) -> PluginDefinitionError:
    """Return an error whose note says how to mend it."""
    error = PluginDefinitionError(text)
    error.add_note(mend)
    return error


def check_api(obj: object, offered: int) -> None:
    """Refuse what was made for another version of the plugin interface.

    Args:
        obj: a class, module or instance; an attribute ``api = N`` names the version that it needs.
        offered: the version that this core has (``warpgate.PLUGIN_API``).

    Raises:
        PluginIncompatibleError: ``api`` is another number.

    """
    wanted = getattr(obj, "api", None)  # a submodule or a function of that name says nothing
    if isinstance(wanted, int) and wanted != offered:
        error = PluginIncompatibleError(
            f"made for version {int(wanted)} of the plugin interface, this core has {offered}"
        )
        newer = wanted > offered
        error.add_note("update warpgate-core" if newer else "update the plugin's distribution")
        raise error


def check_strategy(cls: Any) -> None:
    """Check a class against the class contract.

    Args:
        cls: a subclass of :class:`~warpgate.Plugin`.

    Raises:
        PluginDefinitionError: which attribute is wrong; its first note says how to mend it.

    """
    if not (inspect.isclass(cls) and issubclass(cls, Plugin)):
        raise defect(
            f"{describe(cls)} is not a Plugin subclass",
            "derive it from warpgate.Plugin, or name a module or an instance with hooks",
        )
    where = cls.__qualname__
    _check_name(where, getattr(cls, "name", None))
    if not hasattr(cls, "transport"):
        raise defect(f"{where} has no transport", 'set transport = "tcp" or "udp" on the class')
    try:
        transport_name(cls.transport)
    except ValueError as error:
        raise defect(f"{where}: {error}", 'set transport = "tcp" or "udp"') from None
    _check_transports(where, cls.transports, transport_name(cls.transport))
    _check_phase(cls)
    _check_route_types(cls)
    _check_conf(where, cls.conf)
    _check_messages(cls, cls.proto_messages)
    _check_methods(cls)


def describe(obj: object) -> str:
    """Return a short text for an object of any kind: ``module x``, ``class X``, ``a str``."""
    if inspect.ismodule(obj):
        return f"module {obj.__name__}"
    if inspect.isclass(obj):
        return f"class {obj.__qualname__}"
    if inspect.isroutine(obj):
        return f"function {getattr(obj, '__qualname__', '?')}"
    return f"a {type(obj).__name__}"


def _check_name(where: str, name: object) -> None:
    if name is None:
        raise defect(f"{where} has no name", f'set name = "…" on class {where}')
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise defect(
            f"{where}: name {name!r} is not usable",
            f"use 1 to {MAX_NAME_LENGTH} letters, digits, underscores and hyphens",
        )


def _check_transports(where: str, transports: object, usual: str) -> None:
    mend = 'use a tuple such as ("udp", "tcp"), with its transport among them; or leave it out'
    if not isinstance(transports, tuple | list):
        raise defect(f"{where}: transports is {describe(transports)}, not a tuple", mend)
    try:
        names = [transport_name(each) for each in transports]
    except ValueError as error:
        raise defect(f"{where}: transports {transports!r}: {error}", mend) from None
    if names and usual not in names:
        raise defect(f"{where}: transports {transports!r} lacks its transport {usual}", mend)


def _check_phase(cls: type[Plugin]) -> None:
    phase: Any = cls.phase
    if phase is not None and phase not in PHASES:
        raise defect(
            f"{cls.__qualname__}: phase {phase!r} is unknown",
            f"use @register(phase=…) with one of {', '.join(PHASES)} or None",
        )
    marked = any("phase" in vars(base) for base in cls.__mro__ if base is not Plugin)
    if phase is None and not marked:
        raise defect(
            f"{cls.__qualname__} has no phase",
            "put @register(phase=…) on the class (phase=None for an auxiliary)",
        )


def _check_route_types(cls: type[Plugin]) -> None:
    kinds: Any = cls.route_types
    good = isinstance(kinds, tuple | list) and all(
        isinstance(kind, int) and kind in ROUTE_TYPES for kind in kinds
    )
    if not good or (not kinds and cls.phase is not None):
        raise defect(
            f"{cls.__qualname__}: route_types {kinds!r} is not usable",
            "use a tuple of NIC_BIND, EXT_BIND, LOOPBACK_BIND",
        )


def _check_conf(where: str, conf: object) -> None:
    if not isinstance(conf, Mapping):
        raise defect(f"{where}: conf is {describe(conf)}, not a dict", 'use conf = {"timeout": 10}')
    timeout = conf.get("timeout", 1)
    if not is_positive(timeout):
        raise defect(f"{where}: timeout {timeout!r} in conf is not usable", "use seconds above 0")
    set_bind = conf.get("set_bind", False)
    if not isinstance(set_bind, bool):
        raise defect(f"{where}: set_bind {set_bind!r} in conf is not usable", "use True or False")


def is_positive(value: object) -> bool:
    """Return whether a value is a finite number above 0 (True is no number here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > 0 and math.isfinite(value)


def _check_messages(cls: type[Plugin], messages: object) -> None:
    where = cls.__qualname__
    form = "use tuples of (message class, strategy id, seconds to live)"
    if not isinstance(messages, tuple | list):
        raise defect(f"{where}: proto_messages is {describe(messages)}, not a tuple", form)
    seen: set[str] = set()
    for entry in messages:
        if not isinstance(entry, tuple | list) or len(entry) != 3:
            raise defect(f"{where}: proto_messages holds {entry!r}", form)
        message, strategy_id, ttl = entry
        if not (inspect.isclass(message) and issubclass(message, ProtoMsg)):
            raise defect(
                f"{where}: {describe(message)} in proto_messages is no message class",
                "derive it from ConMsg or ProtoMsg",
            )
        if isinstance(strategy_id, bool) or not isinstance(strategy_id, int):
            raise defect(f"{where}: strategy id {strategy_id!r} is no whole number", form)
        if not is_positive(ttl):
            raise defect(f"{where}: ttl {ttl!r} of {message.__name__} is not usable", form)
        if message.__name__ in seen:
            raise defect(
                f"{where}: two message classes are called {message.__name__}",
                "rename one: the class name is part of the wire name",
            )
        seen.add(message.__name__)
        wire_name = f"{cls.name}.{message.__name__}"
        if len(wire_name.encode()) > MAX_WIRE_NAME_BYTES:
            raise defect(
                f"{where}: the wire name {wire_name} exceeds {MAX_WIRE_NAME_BYTES} bytes",
                "give the strategy or the message class a shorter name",
            )


def _check_methods(cls: type[Plugin]) -> None:
    where = cls.__qualname__
    own_setup = _function(cls, "setup") is not _function(Plugin, "setup")
    if own_setup:
        static = inspect.getattr_static(cls, "setup")
        if not isinstance(static, classmethod) or not inspect.iscoroutinefunction(cls.setup):
            raise defect(
                f"{where}: setup is no asynchronous class method",
                "write @classmethod async def setup(cls, node)",
            )
    if _function(cls, "run") is _function(Plugin, "run"):
        if own_setup:
            return  # the factory may build instances of another class
        raise defect(f"{where} has no run", "write async def run(self, reply=None)")
    if not inspect.iscoroutinefunction(cls.run):
        raise defect(
            f"{where}: run is no coroutine function", "write async def run(self, reply=None)"
        )
    if not _accepts_reply(cls.run):
        raise defect(
            f"{where}: run can't be called with a reply", "write async def run(self, reply=None)"
        )


def _function(cls: type[Plugin], name: str) -> Any:
    method = getattr(cls, name, None)
    return getattr(method, "__func__", method)


def _accepts_reply(run: Any) -> bool:
    signature = inspect.signature(run)
    try:
        signature.bind(None)
        signature.bind(None, None)
    except TypeError:
        return False
    return True

"""``@register`` and the registry that it fills: the only global state of warpgate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from warpgate.net.constants import PHASES

if TYPE_CHECKING:
    from warpgate.plugin import Plugin

P = TypeVar("P", bound="type[Plugin]")

plugin_registry: list[type[Plugin]] = []


def register(phase: str | None) -> Callable[[P], P]:
    """Mark a :class:`~warpgate.Plugin` subclass as a strategy of the given phase.

    Args:
        phase: ``"direct"``, ``"punch"``, ``"spray"`` or ``"relay"``; None marks an auxiliary
            that ``auto_connect`` never dispatches.

    Returns:
        A class decorator that writes ``phase`` on the class and appends it to ``plugin_registry``.

    Raises:
        ValueError: the phase is none of these.

    """
    if phase is not None and phase not in PHASES:
        known = ", ".join(map(repr, PHASES))
        raise ValueError(f"phase {phase!r} is unknown; expected one of {known} or None")

    def mark(cls: P) -> P:
        cls.phase = phase
        plugin_registry.append(cls)
        return cls

    return mark

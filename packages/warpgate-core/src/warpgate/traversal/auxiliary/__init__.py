"""The core's own auxiliaries: strategies of phase None that ``auto_connect`` never dispatches."""

from __future__ import annotations

from typing import Any


def is_core_auxiliary(cls: Any) -> bool:
    """Whether a strategy's class is one of these, none of which dials anybody on a peer's word."""
    return str(getattr(cls, "__module__", "")).startswith(f"{__name__}.")

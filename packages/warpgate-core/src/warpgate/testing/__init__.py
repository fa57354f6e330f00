"""What plugin authors and this project's own tests need to test strategies.

``AsyncTestCase`` for :mod:`unittest`; for pytest ``pytest_plugins = ["warpgate.testing.pytest_plugin"]``
gives fixtures, and :class:`~warpgate.testing.conformance.StrategyConformance` the tests that every
strategy should pass. pytest is imported by those two modules alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warpgate.testing.case import AsyncTestCase
from warpgate.testing.leaks import LeakCheck, open_descriptors
from warpgate.testing.nodes import echo, started_nodes
from warpgate.testing.stage import Stage

if TYPE_CHECKING:
    from warpgate.testing.conformance import StrategyConformance

__all__ = [
    "AsyncTestCase",
    "LeakCheck",
    "Stage",
    "StrategyConformance",
    "echo",
    "open_descriptors",
    "started_nodes",
]


def __getattr__(name: str) -> Any:
    if name == "StrategyConformance":  # needs pytest, which the rest does not
        from warpgate.testing.conformance import StrategyConformance

        return StrategyConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

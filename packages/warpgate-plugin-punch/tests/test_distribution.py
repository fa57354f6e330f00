"""What the distribution promises while it holds no strategy."""

from __future__ import annotations

from importlib import metadata

import warpgate_plugin_punch
from warpgate import plugin_registry


def test_version_is_that_of_the_installed_distribution() -> None:
    assert warpgate_plugin_punch.__version__ == metadata.version("warpgate-plugin-punch")


def test_it_registers_no_strategy() -> None:
    files = metadata.distribution("warpgate-plugin-punch")
    assert not [e for e in files.entry_points if e.group == "warpgate.strategies"]
    assert not [c for c in plugin_registry if c.__module__.startswith("warpgate_plugin_punch")]

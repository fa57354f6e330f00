"""What the distribution promises: its version, and exactly three strategies."""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import warpgate_plugin_punch
from warpgate import Plugin

PROMISED = {
    "random_probe": ("spray", "udp"),
    "tcp_punch": ("punch", "tcp"),
    "udp_punch": ("spray", "udp"),
}


def test_version_is_that_of_the_installed_distribution() -> None:
    assert warpgate_plugin_punch.__version__ == metadata.version("warpgate-plugin-punch")


def test_its_entry_points_are_the_promised_strategies() -> None:
    entries = metadata.distribution("warpgate-plugin-punch").entry_points
    found = {e.name: e.load() for e in entries if e.group == "warpgate.strategies"}
    assert {name: (cls.phase, cls.transport) for name, cls in found.items()} == PROMISED
    assert all(issubclass(cls, Plugin) and cls.name == name for name, cls in found.items())


def test_the_project_file_names_the_same_entry_points() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("not in the source tree")
    declared = tomllib.loads(project.read_text())["project"]["entry-points"]["warpgate.strategies"]
    assert set(declared) == set(PROMISED)
    for name, place in declared.items():
        module, _, attribute = place.partition(":")
        assert getattr(import_module(module), attribute).name == name

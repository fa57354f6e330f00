from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["warpgate_natlab.pytest_plugin"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.natlab)

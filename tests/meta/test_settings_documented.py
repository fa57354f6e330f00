"""docs/settings.md has every key of NODE_CONF with its default, and no other."""

from __future__ import annotations

import ast
import re
from typing import Any

from repository import ROOT
from warpgate import NODE_CONF

ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|.*\| `?([^|`]+)`? \|$", re.MULTILINE)


def test_every_setting_stands_there_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8").partition("\n## ")[2]
    found: dict[str, Any] = {
        key: ast.literal_eval(default)
        for keys, default in ROW.findall(text)
        for key in re.findall(r"\w+", keys)
    }
    assert found == NODE_CONF

"""Every module can be imported first: no cycle works only by the order of imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from repository import PACKAGES, import_package, module_names

# Third-party modules stay loaded between the imports; ours are forgotten each time.
PROBE = """
import importlib, json, sys
def ours():
    return [name for name in sys.modules if name.split(".")[0].startswith("warpgate")]
failures = {}
for module in json.load(sys.stdin):
    for name in ours():
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except Exception as error:
        failures[module] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""


def alone(modules: list[str], path: str = "") -> dict[str, str]:
    """Import each module with none of ours loaded; return what went wrong."""
    code = f"import sys; sys.path.insert(0, {path!r})\n{PROBE}" if path else PROBE
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, input=json.dumps(modules), check=True, capture_output=True, text=True, timeout=200
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(240)
def test_every_module_can_be_imported_alone() -> None:
    modules = [name for package in PACKAGES for name in module_names(import_package(package))]
    wanted = [name for name in modules if not name.endswith("__main__")]
    assert len(wanted) > 50
    assert alone(wanted) == {}


def test_a_cycle_would_be_seen(tmp_path) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "warpgate_cycle"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from warpgate_cycle.b import y\nx = 1\n")
    (package / "b.py").write_text("import warpgate_cycle.a\ny = warpgate_cycle.a\n")
    (package / "c.py").write_text("from warpgate_cycle.d import z\nw = 1\n")
    (package / "d.py").write_text("from warpgate_cycle.c import w\nz = 1\n")
    names = [f"warpgate_cycle.{part}" for part in "abcd"]
    assert set(alone(names, str(tmp_path))) >= {"warpgate_cycle.c", "warpgate_cycle.d"}

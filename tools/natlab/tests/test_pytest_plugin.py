"""Without privileges the tests are skipped, with the reason; never silently green."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_one(natlab):
    raise AssertionError("must not run")

@pytest.mark.netns
def test_two():
    raise AssertionError("must not run")

def test_three():
    pass
"""
CONFTEST = """
import warpgate_natlab.pytest_plugin as plugin
plugin.why_not = lambda: "no privileges here"
pytest_plugins = ["warpgate_natlab.pytest_plugin"]
"""


def run(folder: Path, *arguments: str, **environ: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_without_privileges_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    out = run(tmp_path)
    assert "1 passed, 2 skipped" in out
    assert "no privileges here" in out


def test_where_they_are_required_they_fail(tmp_path: Path) -> None:
    out = run(tmp_path, WARPGATE_NATLAB_REQUIRED="1")
    assert "1 passed" in out
    assert "2 failed" in out or "2 errors" in out


def test_what_uses_a_laboratory_is_marked(tmp_path: Path) -> None:
    assert "2 deselected" in run(tmp_path, "-m", "not netns")


@pytest.mark.netns
def test_an_unprivileged_user_is_told_why() -> None:
    # Imported before the privileges go: the files of this interpreter may be root's alone.
    program = "import os\nfrom warpgate_natlab.namespaces import why_not\nos.setuid(65534)\nprint(why_not())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "needs root" in done.stdout

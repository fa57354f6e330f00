"""What must not get into the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from repository import ROOT, tracked_files

# The top folders that every system has.
STANDARD = set("bin dev etc home opt proc root run sbin srv sys tmp usr var".split())
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
INDEX = re.compile(r"(?:--?|_|\b)(?:extra[-_])?(?:index[-_]url|find[-_]links)\b", re.IGNORECASE)
HOME = re.compile(r"(?<![\w.])/(?:home|root|Users)/[\w.]+")
LARGEST_BYTES = 300_000


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked_files():
        try:
            found.append((path.relative_to(ROOT), path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue
    assert found
    return found


def places(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line) and path.as_posix() != "tests/meta/test_tracked_files.py"
    ]


def local_paths() -> re.Pattern[str]:
    """Return a pattern of the folders that this checkout happens to lie in."""
    wanted = {ROOT, Path.home()}
    if len(ROOT.parent.parts) > 2 or ROOT.parent.name not in STANDARD:
        wanted.add(ROOT.parent)
    named = [str(path) for path in wanted if len(path.parts) > 1 and path.name not in STANDARD]
    return re.compile(
        "|".join(rf"(?<![\w.]){re.escape(name)}(?![\w-])" for name in named) or r"(?!)"
    )


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(local_paths(), id="folders of this machine"),
        pytest.param(HOME, id="somebody's home"),
        pytest.param(INDEX, id="package indexes"),
        pytest.param(UNFINISHED, id="unfinished"),
        pytest.param(re.compile(r"(?<![\w/-])(?:\.\./)+shared/"), id="files beside the repository"),
    ],
)
def test_no_file_names(pattern: re.Pattern[str]) -> None:
    assert places(pattern) == []


def test_no_generated_files_and_nothing_huge() -> None:
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        assert not re.search(r"(__pycache__|\.pyc$|\.egg-info|\.whl$|(^|/)dist/)", name), name
        assert path.stat().st_size <= LARGEST_BYTES, name


def test_shell_scripts_stop_at_errors_and_can_be_run() -> None:
    scripts = [path for path, text in texts() if text.startswith("#!")]
    assert Path(".ci/run") in scripts
    for path in scripts:
        assert os.name == "nt" or os.access(ROOT / path, os.X_OK), f"{path} is not executable"
        first, _, rest = (ROOT / path).read_text("utf-8").partition("\n")
        assert "bash" not in first or "set -euo pipefail" in rest

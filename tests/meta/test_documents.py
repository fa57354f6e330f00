"""The documents: their code parses and runs, their links lead somewhere, nothing is forgotten."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from repository import ROOT, Block, code_blocks, markdown_files

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
BLOCKS = [block for path in markdown_files() for block in code_blocks(path)]
PYTHON = [block for block in BLOCKS if block.language in ("python", "py")]
PARSERS = {"json": json.loads, "toml": tomllib.loads}
RUN_TIMEOUT_S = 50


def test_the_reader_finds_blocks_and_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n<!-- run -->\n```python\nx = 1\n```\n\n```toml title\ny = 2\n```\n", "utf-8"
    )
    first, second = code_blocks(page)
    assert (first.language, first.text, first.run, first.line) == ("python", "x = 1\n", True, 4)
    assert (second.language, second.run) == ("toml", False)


@pytest.mark.parametrize("block", PYTHON, ids=lambda b: b.id)
def test_python_parses(block: Block) -> None:
    compile(block.text, block.id, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in PARSERS], ids=lambda b: b.id)
def test_data_parses(block: Block) -> None:
    PARSERS[block.language](block.text)


@pytest.mark.parametrize("block", [b for b in PYTHON if b.run], ids=lambda b: b.id)
def test_python_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text, "utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_python_is_marked_to_run() -> None:
    assert [block.id for block in BLOCKS if block.run and block not in PYTHON] == []


@pytest.mark.parametrize("path", markdown_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        there = (path.parent / target.partition("#")[0]).resolve()
        assert there.exists(), f"{path.name} links to {target}"
        assert there.is_relative_to(ROOT), f"{path.name} links out of the repository: {target}"


def test_the_readme_has_the_two_commands_and_a_program() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    first = code_blocks(ROOT / "README.md")[0]
    assert "python3 tools/dev.py demo" in first.text
    assert "python3 tools/dev.py test" in first.text
    assert any(
        block.run and "auto_connect" in block.text for block in code_blocks(ROOT / "README.md")
    )
    assert "docs/index.md" in text


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - set(LINK.findall(index)) == {"index.md"}

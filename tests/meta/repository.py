"""What the tests about the repository share: where things are, and how to read them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
CORE = ROOT / "packages" / "warpgate-core" / "src" / "warpgate"


def settings(package: Path) -> dict[str, Any]:
    """Return the pyproject.toml of a folder."""
    return tomllib.loads((package / "pyproject.toml").read_text("utf-8"))


def import_package(package: Path) -> Path:
    """Return the folder of the import package that a distribution brings."""
    (source,) = settings(package)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return package / str(source)


def module_names(package: Path) -> list[str]:
    """Return the dotted names of all modules of an import package."""
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def load_tool(name: str) -> ModuleType:
    """Import a script of tools/ under its own name."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tracked_files() -> list[Path]:
    """Return the files that are, or would be, in the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 0:
        paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
        return [path for path in paths if path.is_file()]
    ignored = {".venv", ".tox", "dist", "build", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not ignored & set(path.relative_to(ROOT).parts)
        and "_cache" not in path.as_posix()
    ]


def markdown_files() -> list[Path]:
    """Return the documents of the repository."""
    return [path for path in tracked_files() if path.suffix == ".md"]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; ``run`` when a line ``<!-- run -->`` stands before it."""

    path: Path
    line: int
    language: str
    text: str
    run: bool

    @property
    def id(self) -> str:
        """Where it is, for a test's name."""
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line}"


def code_blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    from markdown_it import MarkdownIt

    lines = path.read_text("utf-8").splitlines()
    blocks = []
    for token in MarkdownIt().parse("\n".join(lines)):
        if token.type != "fence" or token.map is None:
            continue
        start = token.map[0]
        before = next((line for line in reversed(lines[:start]) if line.strip()), "")
        language = re.split(r"\W", token.info.strip(), maxsplit=1)[0]
        blocks.append(
            Block(path, start + 1, language, token.content, before.strip() == "<!-- run -->")
        )
    return blocks


def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Return the arguments of every hook specification, from the source."""
    tree = ast.parse((CORE / "hookspecs.py").read_text("utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.decorator_list:
            found[node.name] = tuple(argument.arg for argument in node.args.args)
    return found

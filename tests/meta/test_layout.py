"""The shape of the repository: sizes, versions, files that every distribution has."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from repository import CORE, PACKAGES, ROOT, import_package, module_names, settings, tracked_files

MAX_LINES = 400
FRAGMENT = re.compile(r"(\d+|\+[a-z0-9-]+)\.(feature|bugfix|misc)\.md")
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)


def test_there_are_four_distributions() -> None:
    assert [package.name for package in PACKAGES] == [
        "warpgate-core",
        "warpgate-plugin-direct",
        "warpgate-plugin-punch",
        "warpgate-plugin-turn",
    ]


def test_no_module_is_past_the_limit() -> None:
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in tracked_files()
        if path.suffix == ".py" and "tests" not in path.relative_to(ROOT).parts
    }
    assert sizes
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


@each_package
def test_the_version_is_the_same_everywhere(package: Path) -> None:
    source = import_package(package)
    version = settings(package)["project"]["version"]
    assert importlib.import_module(source.name).__version__ == version
    notes = (package / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## (\d\S*)", notes, re.MULTILINE)
    assert released[:1] in ([], [version])


@each_package
def test_it_has_what_every_distribution_has(package: Path) -> None:
    assert settings(package)["project"]["name"] == package.name
    assert (package / "README.md").read_text("utf-8").startswith(f"# {package.name}\n")
    assert "<!-- towncrier release notes start -->" in (package / "CHANGELOG.md").read_text("utf-8")
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (import_package(package) / "py.typed").read_bytes() == b""
    assert list((package / "tests").glob("test_*.py"))


@each_package
def test_every_folder_of_modules_is_a_package(package: Path) -> None:
    source = import_package(package)
    folders = {path.parent for path in source.rglob("*.py")}
    assert [
        f.relative_to(source) for f in sorted(folders) if not (f / "__init__.py").exists()
    ] == []


@each_package
def test_changes_are_noted_in_fragments(package: Path) -> None:
    fragments = list((package / "changes").iterdir())
    released = "\n## " in (package / "CHANGELOG.md").read_text("utf-8")
    assert fragments or released
    for fragment in fragments:
        assert FRAGMENT.fullmatch(fragment.name) or fragment.name == ".gitkeep", fragment
        text = fragment.read_text("utf-8")
        assert text.strip() or fragment.name == ".gitkeep", f"{fragment} says nothing"


@each_package
def test_entry_points_and_scripts_can_be_imported(package: Path) -> None:
    project = settings(package)["project"]
    values = list(project.get("scripts", {}).values())
    for name, value in project.get("entry-points", {}).get("warpgate.strategies", {}).items():
        module, _, attribute = value.partition(":")
        if not attribute:  # a module with hooks
            assert hasattr(importlib.import_module(module), "warpgate_node_starting"), name
            continue
        values.append(value)
        assert getattr(importlib.import_module(module), attribute).name == name
    for value in values:
        module, _, attribute = value.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


@each_package
def test_siblings_are_wanted_in_ranges(package: Path) -> None:
    project = settings(package)["project"]
    extras = project.get("optional-dependencies", {}).values()
    wanted = [*project["dependencies"], *(line for lines in extras for line in lines)]
    for line in wanted:
        if line.startswith("warpgate"):
            assert re.fullmatch(r"warpgate-[a-z-]+>=0\.\d+,<0\.\d+", line)


def test_plugins_reach_for_nothing_private() -> None:
    private = []
    for package in PACKAGES:
        source = import_package(package)
        if source == CORE:
            continue
        for path in source.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("warpgate."):
                    parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                    private += [(path.name, part) for part in parts if part.startswith("_")]
    assert private == []


def test_no_module_hides_a_public_function() -> None:
    tops = {path.stem for path in CORE.iterdir()}
    assert not tops & {"register", "connect", "auto_connect"}
    assert "warpgate.node.auto_connect" in module_names(CORE)

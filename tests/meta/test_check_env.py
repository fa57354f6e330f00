"""tools/check_env.py refuses an environment that would test the wrong thing."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from repository import load_tool

check_env = load_tool("check_env")


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    return tmp_path / "dist"


def installed(dist: Path, name: str, requires: str = "", url: str | None = None) -> Distribution:
    """Return a distribution as an installer would leave it; from ``dist`` unless told otherwise."""
    info = dist.parent / "site" / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\n{requires}", "utf-8"
    )
    origin = f"{dist.as_uri()}/{name}.whl" if url is None else url
    if origin:
        (info / "direct_url.json").write_text(json.dumps({"url": origin}), "utf-8")
    return PathDistribution(info)


NEEDS_CORE = "Requires-Dist: warpgate-core>=0.1,<0.2\n"
NEEDS_MORE = (
    "Requires-Dist: pluggy>=1.7\nProvides-Extra: all\n"
    'Requires-Dist: warpgate-plugin-turn>=0.1,<0.2; extra == "all"\n'
)


def test_a_plugin_and_its_core_pass(dist: Path) -> None:
    found = [
        installed(dist, "warpgate-core", NEEDS_MORE),
        installed(dist, "warpgate-plugin-turn", NEEDS_CORE),
        installed(dist, "pluggy", url=""),
    ]
    assert check_env.problems("warpgate-plugin-turn", found, dist) == []
    assert check_env.problems("warpgate-core[all]", found, dist) == []


def test_an_undeclared_sibling_is_refused(dist: Path) -> None:
    found = [
        installed(dist, "warpgate-core", NEEDS_MORE),
        installed(dist, "warpgate-plugin-turn", NEEDS_CORE),
    ]
    assert check_env.problems("warpgate-core", found, dist) == [
        "warpgate-plugin-turn is installed, but warpgate-core does not declare it"
    ]


def test_what_is_declared_must_be_there(dist: Path) -> None:
    found = [installed(dist, "warpgate-plugin-turn", NEEDS_CORE)]
    assert check_env.problems("warpgate-plugin-turn", found, dist) == [
        "warpgate-core is not installed, though warpgate-plugin-turn declares it"
    ]


@pytest.mark.parametrize("url", ["", "file:///elsewhere/dist/x.whl"], ids=["an index", "elsewhere"])
def test_ours_must_come_from_dist(dist: Path, url: str) -> None:
    (line,) = check_env.problems("warpgate-core", [installed(dist, "warpgate-core", url=url)], dist)
    assert line.startswith(f"warpgate-core 0.1.0 came from {url or 'an index'}, not from")

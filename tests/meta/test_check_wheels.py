"""tools/check_wheels.py says nothing about sound wheels, and names what is wrong with others."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from repository import ROOT, load_tool

check_wheels = load_tool("check_wheels")

PYPROJECT = """
[project]
name = "warpgate-{short}"
version = "0.1.0"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["src/warpgate_{short}"]
"""
METADATA = """Metadata-Version: 2.4
Name: warpgate-{short}
Version: 0.1.0
Requires-Python: >=3.11
Requires-Dist: pluggy>=1.7
"""
Files = dict[str, str]


@dataclass
class Dist:
    """Two sound distributions; a test changes what the wheel or the sdist of ``one`` holds."""

    root: Path
    wheel: Files
    sdist: Files
    extra_metadata: str = ""

    def problems(self) -> list[str]:
        for short in ("one", "two"):
            changed = short == "one"
            self._write(short, changed)
        projects = check_wheels.read_projects(self.root)
        found: list[str] = check_wheels.all_problems(projects, self.root / "dist", install=False)
        return found

    def _write(self, short: str, changed: bool) -> None:
        package = f"warpgate_{short}"
        folder = self.root / "packages" / f"warpgate-{short}"
        sound = {f"{package}/__init__.py": "x = 1\n", f"{package}/py.typed": ""}
        for name, text in sound.items():
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "src" / name).write_text(text, "utf-8")
        (folder / "pyproject.toml").write_text(PYPROJECT.format(short=short), "utf-8")
        info = f"{package}-0.1.0.dist-info"
        metadata = METADATA.format(short=short) + (self.extra_metadata if changed else "")
        wheel = {**sound, f"{info}/METADATA": metadata, f"{info}/licenses/LICENSE": "MIT"}
        sdist = {f"src/{name}": text for name, text in sound.items()}
        if changed:
            wheel.update(self.wheel)
            sdist.update(self.sdist)
        dist = self.root / "dist"
        dist.mkdir(exist_ok=True)
        with zipfile.ZipFile(dist / f"{package}-0.1.0-py3-none-any.whl", "w") as archive:
            for name, text in wheel.items():
                if text != "absent":
                    archive.writestr(name, text)
        with tarfile.open(dist / f"{package}-0.1.0.tar.gz", "w:gz") as bundle:
            for name, text in sdist.items():
                data = text.encode()
                member = tarfile.TarInfo(f"{package}-0.1.0/{name}")
                member.size = len(data)
                bundle.addfile(member, io.BytesIO(data))


@pytest.fixture
def dist(tmp_path: Path) -> Dist:
    return Dist(tmp_path, {}, {})


def test_sound_wheels_pass(dist: Dist) -> None:
    assert dist.problems() == []


@pytest.mark.parametrize(
    ("wheel", "sdist", "metadata", "expected"),
    [
        ({"warpgate_one/py.typed": "absent"}, {}, "", "warpgate_one/py.typed is missing"),
        ({"warpgate_one/__init__.py": "absent"}, {}, "", "__init__.py is missing"),
        ({"warpgate_one/__init__.py": "x = 2\n"}, {}, "", "differs from the source"),
        ({"tests/test_x.py": ""}, {}, "", "lies outside warpgate_one/"),
        ({"warpgate_one/tests/test_x.py": ""}, {}, "", "has no business in a wheel"),
        ({"warpgate_one/__pycache__/a.pyc": ""}, {}, "", "has no business in a wheel"),
        ({"warpgate_two/__init__.py": "x = 1\n"}, {}, "", "and in warpgate_two-0.1.0"),
        (
            {"warpgate_one-0.1.0.dist-info/licenses/LICENSE": "absent"},
            {},
            "",
            "the licence is missing",
        ),
        ({}, {"src/warpgate_one/more.py": ""}, "", "not the same in wheel and sdist"),
        ({}, {"src/warpgate_one/__init__.py": "x = 3\n"}, "", "not the same in wheel and sdist"),
        ({}, {}, "Requires-Dist: msgpack\n", "no lowest version"),
        ({}, {}, "Requires-Dist: warpgate-two==0.1.0\n", "a sibling wants a range"),
        ({}, {}, "Requires-Dist: warpgate-two>=0.1\n", "a sibling wants a range"),
        ({}, {}, "Requires-Dist: warpgate-two>=0.2,<0.3\n", "shuts out warpgate-two 0.1.0"),
    ],
)
def test_what_is_wrong_is_named(
    dist: Dist, wheel: Files, sdist: Files, metadata: str, expected: str
) -> None:
    dist.wheel, dist.sdist, dist.extra_metadata = wheel, sdist, metadata
    assert any(expected in line for line in dist.problems())


def test_a_wrong_version_is_named(dist: Dist) -> None:
    text = METADATA.format(short="one").replace("0.1.0", "0.2.0")
    dist.wheel = {"warpgate_one-0.1.0.dist-info/METADATA": text}
    assert any("Version is 0.2.0, pyproject.toml says 0.1.0" in line for line in dist.problems())


def test_a_missing_and_a_second_wheel_are_named(dist: Dist) -> None:
    assert dist.problems() == []
    folder = dist.root / "dist"
    wheel = folder / "warpgate_one-0.1.0-py3-none-any.whl"
    (folder / "warpgate_one-0.0.9-py3-none-any.whl").write_bytes(wheel.read_bytes())
    projects = check_wheels.read_projects(dist.root)
    found = check_wheels.all_problems(projects, folder, install=False)
    assert any("2 wheels" in line for line in found)
    for path in folder.glob("warpgate_one-*.whl"):
        path.unlink()
    found = check_wheels.all_problems(projects, folder, install=False)
    assert any("0 wheels" in line for line in found)


def test_a_missing_sdist_is_named(dist: Dist) -> None:
    assert dist.problems() == []
    (dist.root / "dist" / "warpgate_one-0.1.0.tar.gz").unlink()
    projects = check_wheels.read_projects(dist.root)
    found = check_wheels.all_problems(projects, dist.root / "dist", install=False)
    assert found == ["warpgate-one: there is no sdist beside it"]


def test_the_projects_of_this_repository_are_read() -> None:
    projects = check_wheels.read_projects(ROOT)
    assert [project.package.name for project in projects] == [
        "warpgate",
        "warpgate_plugin_direct",
        "warpgate_plugin_punch",
        "warpgate_plugin_turn",
    ]

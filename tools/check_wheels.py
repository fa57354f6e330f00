"""Check what ``build_wheels.py`` left in ``dist/`` before anybody installs it.

Looked at without installing: one wheel and one sdist per distribution, of the version that its
``pyproject.toml`` names; complete (every file of the source folder, ``py.typed``, the licence) and
nothing else in them (tests, caches); the same content in wheel and sdist; no file in two wheels;
ranges on requirements that fit the siblings. Then each wheel is installed in a fresh environment
of its own, with what it declares and nothing more, and every module and entry point is imported.

Needs ``packaging`` and ``uv``; run it as ``python tools/check_wheels.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
REFUSED = ("tests/", "test/", "__pycache__/", ".pytest_cache/", ".mypy_cache/", ".hypothesis/")
PROBE = """
import importlib, importlib.metadata as metadata, json, pkgutil, sys
package, distribution = sys.argv[1:]
failures = []
def attempt(what, action):
    try:
        action()
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}")
def walk(name):
    attempt(f"import {name}", lambda: importlib.import_module(name))
    for info in pkgutil.iter_modules(getattr(sys.modules.get(name), "__path__", ())):
        if info.name not in ("__main__", "testing"):
            walk(f"{name}.{info.name}")
walk(package)
for entry in metadata.distribution(distribution).entry_points:
    attempt(f"entry point {entry.name} = {entry.value}", entry.load)
print(json.dumps(failures))
"""


@dataclass
class Project:
    """One folder of ``packages/``."""

    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The distribution's name."""
        return str(self.settings["project"]["name"])

    @property
    def version(self) -> str:
        """The version in ``pyproject.toml``."""
        return str(self.settings["project"]["version"])

    @property
    def package(self) -> Path:
        """The folder of the import package."""
        (source,) = self.settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        return self.folder / str(source)

    def sources(self) -> dict[str, bytes]:
        """Return the files of the import package as a wheel names them."""
        base = self.package.parent
        return {
            path.relative_to(base).as_posix(): path.read_bytes()
            for path in sorted(self.package.rglob("*"))
            if path.is_file() and path.suffix != ".pyc"
        }


@dataclass
class Built:
    """A wheel, and the sdist it was built from."""

    wheel: Path
    files: dict[str, bytes]
    metadata: Message
    sdist_files: dict[str, bytes] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Name and version as file names spell them: ``warpgate_core-0.1.0``."""
        return "-".join(self.wheel.name.split("-")[:2])


def read_projects(root: Path = ROOT) -> list[Project]:
    """Return the projects under ``packages/``, sorted by name."""
    paths = sorted(root.glob("packages/*/pyproject.toml"))
    return [Project(p.parent, tomllib.loads(p.read_text(encoding="utf-8"))) for p in paths]


def read_built(wheel: Path) -> Built:
    """Read a wheel, and the sdist of the same name and version if it lies beside it."""
    with zipfile.ZipFile(wheel) as archive:
        files = {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}
    text = next((d for n, d in files.items() if n.endswith(".dist-info/METADATA")), b"")
    built = Built(wheel, files, Parser().parsestr(text.decode("utf-8")))
    sdist = wheel.parent / f"{built.stem}.tar.gz"
    if sdist.exists():
        with tarfile.open(sdist) as bundle:
            for member in bundle.getmembers():
                handle = bundle.extractfile(member)
                if handle is not None:
                    built.sdist_files[member.name.partition("/")[2]] = handle.read()
    return built


def content_problems(project: Project, built: Built) -> list[str]:
    """Return what is missing from, or superfluous or different in, a wheel and its sdist."""
    package = project.package.name
    info = f"{built.stem}.dist-info/"
    wrong = []
    inside = {n: d for n, d in built.files.items() if not n.startswith(info)}
    wrong += [f"{n} lies outside {package}/" for n in inside if not n.startswith(package + "/")]
    wrong += [
        f"{name} has no business in a wheel"
        for name in built.files
        if name.endswith(".pyc") or any(f"/{part}" in f"/{name}" for part in REFUSED)
    ]
    sources = project.sources()
    wrong += [f"{name} is missing" for name in sources.keys() - inside.keys()]
    wrong += [
        f"{name} differs from the source"
        for name in sources.keys() & inside.keys()
        if sources[name] != inside[name]
    ]
    if f"{package}/py.typed" not in built.files:
        wrong.append(f"{package}/py.typed is missing")
    if not any(name.startswith(info) and name.endswith("/LICENSE") for name in built.files):
        wrong.append("the licence is missing")
    if not built.sdist_files:
        return [*wrong, "there is no sdist beside it"]
    from_sdist = {
        n.removeprefix("src/"): d for n, d in built.sdist_files.items() if n.startswith("src/")
    }
    wrong += [
        f"{name} is not the same in wheel and sdist"
        for name in inside.keys() | from_sdist.keys()
        if inside.get(name) != from_sdist.get(name)
    ]
    return wrong


def metadata_problems(project: Project, built: Built, versions: dict[str, str]) -> list[str]:
    """Return what is wrong in a wheel's metadata.

    Args:
        project: where the wheel comes from.
        built: the wheel.
        versions: the version of each of our distributions.

    """
    wrong = []
    for key, expected in (
        ("Name", project.name),
        ("Version", project.version),
        ("Requires-Python", project.settings["project"]["requires-python"]),
    ):
        if built.metadata[key] != expected:
            wrong.append(f"{key} is {built.metadata[key]}, pyproject.toml says {expected}")
    for text in built.metadata.get_all("Requires-Dist") or []:
        wanted = Requirement(text)
        operators = {part.operator for part in wanted.specifier}
        if ">=" not in operators:
            wrong.append(f"{text}: no lowest version")
        if wanted.name in versions:
            if "<" not in operators or "==" in operators:
                wrong.append(f"{text}: a sibling wants a range, >=0.N,<0.N+1")
            if not wanted.specifier.contains(versions[wanted.name], prereleases=True):
                wrong.append(f"{text}: shuts out {wanted.name} {versions[wanted.name]}")
    return wrong


def overlap_problems(wheels: Sequence[Built]) -> list[str]:
    """Return the files that two wheels both bring; installers overwrite them in silence."""
    owner: dict[str, str] = {}
    wrong = []
    for built in wheels:
        for name in built.files:
            if name in owner:
                wrong.append(f"{name} is in {owner[name]} and in {built.wheel.name}")
            owner.setdefault(name, built.wheel.name)
    return wrong


def install_problems(project: Project, dist: Path) -> list[str]:
    """Install a distribution alone in a fresh environment; return what can't be imported there."""
    environ = {
        **os.environ,
        "UV_CONSTRAINT": str(dist / "constraints.txt"),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        for command in (
            ["uv", "venv", "--quiet", "--python", sys.executable, str(venv)],
            ["uv", "pip", "install", "--quiet", "--python", str(python), project.name],
        ):
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.returncode:
                return [f"{' '.join(command[:3])} failed: {done.stderr.strip()}"]
        probe = [str(python), "-I", "-c", PROBE, project.package.name, project.name]
        done = subprocess.run(probe, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return [f"importing failed: {done.stderr.strip()}"]
        return [str(line) for line in json.loads(done.stdout)]


def all_problems(projects: Iterable[Project], dist: Path, *, install: bool = True) -> list[str]:
    """Return everything that is wrong in ``dist``, one line each."""
    versions = {project.name: project.version for project in projects}
    wheels, wrong = [], []
    for project in projects:
        found = sorted(dist.glob(f"{project.name.replace('-', '_')}-*.whl"))
        if len(found) != 1:
            wrong.append(f"{project.name}: {len(found)} wheels in {dist}, expected one")
            continue
        built = read_built(found[0])
        wheels.append(built)
        lines = content_problems(project, built) + metadata_problems(project, built, versions)
        if install:
            lines += install_problems(project, dist)
        wrong += [f"{project.name}: {line}" for line in lines]
        print(f"checked {built.wheel.name}: {len(built.files)} files", flush=True)
    return wrong + overlap_problems(wheels)


def main() -> int:
    """Check ``dist/``; print what is wrong and return 1, or 0."""
    wrong = all_problems(read_projects(), DIST)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

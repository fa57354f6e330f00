#!/usr/bin/env python3
"""Everything a developer runs, from a fresh checkout; it needs Python 3.11 or later and git, no more.

    python3 tools/dev.py demo                 two nodes connect and exchange data; see what was tried
    python3 tools/dev.py test [tier…] [-- …]  the tests; arguments after -- go to pytest
    python3 tools/dev.py lint                 rules and formatting, types, rules of direction
    python3 tools/dev.py bench [name…]        the figures of tools/bench/
    python3 tools/dev.py lab …                the NAT laboratory: lab --help, docs/laboratory.md
    python3 tools/dev.py setup                .venv with everything editable, for working on the code

What is missing is installed: Python packages into ``.venv`` (once; again when a ``pyproject.toml``
changes), system packages by apt-get when run as root. The last line of ``test`` is ``N passed, N
failed``: a tier that fails without a failed test in it counts as one failure.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import laboratory
from tools.system_packages import LAB_PACKAGES, has_package, install_packages, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
REPORTS = ROOT / ".tox" / "reports"
CONSTRAINTS = ROOT / "dist" / "constraints.txt"
LOWEST = (3, 11)
MINORS = (11, 12, 13)
HERE = f"3.{sys.version_info[1]}"

INSTALLS: dict[str, tuple[str, ...]] = {
    "demo": (
        "-e", "packages/warpgate-core[broker,cli]", "-e", "packages/warpgate-plugin-direct",
        "-e", "packages/warpgate-plugin-punch", "-e", "packages/warpgate-plugin-turn",
        "-e", "tools/natlab",
    ),
    "lab": (
        "-e", "packages/warpgate-core", "-e", "packages/warpgate-plugin-direct",
        "-e", "packages/warpgate-plugin-punch", "-e", "packages/warpgate-plugin-turn",
        "-e", "tools/natlab[plot]",
    ),
    "tox": ("group:tox",),
    "setup": (
        "-e", "packages/warpgate-core[broker,cli,testing]",
        "-e", "packages/warpgate-plugin-direct[upnp]",
        "-e", "packages/warpgate-plugin-punch", "-e", "packages/warpgate-plugin-turn",
        "-e", "tools/natlab[plot]", "group:dev",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tier:
    """A set of tox environments that is asked for by one name."""

    name: str
    about: str
    envs: tuple[str, ...]
    from_wheels: bool = False
    every_python: bool = False
    packages: tuple[str, ...] = ()  # Debian packages
    packages_required: bool = True  # else its tests skip themselves, with their reason
    tests: str = ""  # the tier is skipped while this folder holds no test
    marker: str = ""  # the tier is skipped while no test bears this marker


TIERS = (
    Tier("lint", "ruff: rules and formatting", ("lint",)),
    Tier("imports", "the rules of direction", ("imports",)),
    Tier("wheels", "build all distributions, check the wheels", ("wheels",)),
    Tier("type", "mypy --strict", ("type",), from_wheels=True),
    Tier("core", "warpgate-core alone", ("core",), from_wheels=True, every_python=True),
    Tier("direct", "warpgate-plugin-direct alone", ("direct",), from_wheels=True, every_python=True),
    Tier("punch", "warpgate-plugin-punch alone", ("punch",), from_wheels=True, every_python=True),
    Tier("turn", "warpgate-plugin-turn alone", ("turn",), from_wheels=True, every_python=True),
    Tier("meta", "the repository itself", ("meta",), from_wheels=True, tests="tests/meta"),
    Tier(
        "seeds", "the documents' programs beside aionetiface", ("seeds",), from_wheels=True,
        packages=("build-essential", "python3-dev"), tests="tests/seeds",
    ),
    Tier(
        "e2e", "processes and network namespaces", ("e2e",), from_wheels=True,
        packages=("iproute2",), packages_required=False, tests="tests/e2e",
    ),
    Tier(
        "broker", "nodes on real MQTT brokers", ("broker",), from_wheels=True,
        packages=("mosquitto",), marker="broker",
    ),
    Tier(
        "coturn", "relays over a real TURN server", ("coturn",), from_wheels=True,
        packages=("coturn",), marker="coturn",
    ),
    Tier(
        "netns", "the NAT laboratory, and what is proven in it", ("netns",), from_wheels=True,
        packages=LAB_PACKAGES, packages_required=False, tests="tools/natlab/tests",
    ),
    Tier("fuzz", "a minute of fuzzing for all parsers", ("fuzz",), from_wheels=True),
    Tier("slow", "what is marked slow", ("slow",), from_wheels=True, marker="slow"),
)  # fmt: skip


@dataclass
class Outcome:
    """How one environment, or a tier that was not run, ended."""

    tier: str
    env: str
    skipped: str = ""  # why it was not run
    failed: bool = False
    seconds: float = 0.0
    counts: tuple[int, int, int] | None = None  # tests passed, failed, skipped


def requirements(names: tuple[str, ...]) -> list[str]:
    """Return pip's arguments, with ``group:x`` replaced by that dependency group's content."""
    import tomllib  # not there before 3.11: main() checks first

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]

    def expand(group: str) -> list[str]:
        found: list[str] = []
        for item in groups[group]:
            found += expand(item["include-group"]) if isinstance(item, dict) else [item]
        return found

    wanted: list[str] = []
    for name in names:
        wanted += expand(name[6:]) if name.startswith("group:") else [name]
    return wanted


def fingerprint(wanted: list[str]) -> str:
    """Return what changes when an installation has to be repeated."""
    digest = hashlib.sha256("\n".join([sys.version, str(ROOT), *wanted]).encode())
    for path in sorted(
        [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("tools/*/pyproject.toml")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    """Create ``.venv`` unless a working one is there."""
    python = BIN / "python"
    probe = [str(python), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    if (
        shutil.which(str(python))
        and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    ):
        return
    say(f"-- creating {VENV}")
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "ensurepip" in done.stdout + done.stderr:
        # Debian keeps ensurepip in a package of its own.
        reason = install_packages([f"python{HERE}-venv"])
        if reason:
            sys.exit(f"Python can't make a virtual environment here. {reason}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def install(what: str) -> None:
    """Install one of INSTALLS into ``.venv``, unless that was done for the present settings."""
    make_venv()
    wanted = requirements(INSTALLS[what])
    stamp = VENV / f".installed-{what}"
    mark = fingerprint(wanted)
    if stamp.exists() and stamp.read_text("utf-8") == mark:
        return
    say(f"-- installing into {VENV} ({what}); this is done once")
    command = [
        str(BIN / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    if subprocess.run([*command, *wanted], cwd=ROOT, check=False).returncode:
        sys.exit("pip could not install what is needed; its message stands above")
    stamp.write_text(mark, "utf-8")


def search_path() -> str:
    """Return PATH with our tools, then Pythons that pyenv hides behind its shims, first."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    hidden: list[str] = []
    with suppress(OSError):  # it may be somebody else's
        hidden = [str(p) for p in sorted(pyenv.glob("versions/3.*/bin")) if (p / "python").exists()]
    return os.pathsep.join([str(BIN), *reversed(hidden), os.environ.get("PATH", "")])


def pythons(path: str) -> list[str]:
    """Return the versions of Python that we test on and that are here, the running one first."""
    found = [HERE] if sys.version_info[1] in MINORS else []
    for version in (f"3.{minor}" for minor in MINORS):
        command = shutil.which(f"python{version}", path=path)
        if version in found or command is None:
            continue
        probe = [command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            found.append(version)
    return found


def read_counts(report: Path) -> tuple[int, int, int] | None:
    """Return how many tests passed, failed and were skipped, from pytest's JUnit report."""
    if not report.exists():
        return None
    total = failed = skipped = 0
    for suite in ET.parse(report).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return max(total - failed - skipped, 0), failed, skipped


def run_env(tier: str, env: str, path: str, extra: list[str]) -> Outcome:
    """Run one tox environment."""
    say(f"\n==== {env}")
    report = REPORTS / f"{env}.xml"
    report.unlink(missing_ok=True)
    REPORTS.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PIP_CONSTRAINT", "UV_CONSTRAINT"):
        environ.pop(name, None)  # what a shell may have set must not reach the environments
    command = [str(BIN / "python"), "-m", "tox", "run", "-q", "-e", env]
    start = time.monotonic()
    status = subprocess.run([*command, *extra], cwd=ROOT, env=environ, check=False).returncode
    return Outcome(tier, env, "", status != 0, time.monotonic() - start, read_counts(report))


def why_not(tier: Tier) -> str:
    """Return the reason to skip a tier, after installing what it needs; or nothing."""
    tests = list((ROOT / tier.tests).rglob("test_*.py")) if tier.tests else []
    if tier.tests and not tests:
        return f"{tier.tests} holds no test yet"
    if tier.marker:
        files = [*ROOT.glob("packages/*/tests/**/test_*.py"), *ROOT.glob("tests/**/test_*.py")]
        if not any(re.search(rf"\bmark\.{tier.marker}\b", f.read_text("utf-8")) for f in files):
            return f"no test is marked {tier.marker} yet"
    reason = install_packages([p for p in tier.packages if not has_package(p)])
    if reason and not tier.packages_required:
        say(f"-- {tier.name}: {reason}; the tests that need it will be skipped")
        return ""
    return reason


def run_tiers(names: list[str], versions: list[str], extra: list[str]) -> int:
    """Run tiers in their order, print the summary, return the exit code."""
    begin = time.time()
    install("tox")
    path = search_path()
    here = pythons(path)
    chosen = [tier for tier in TIERS if tier.name in names]
    if any(tier.from_wheels for tier in chosen) and "wheels" not in names:
        chosen.insert(0, next(tier for tier in TIERS if tier.name == "wheels"))
    outcomes: list[Outcome] = []
    for tier in chosen:
        if tier.from_wheels and not (
            CONSTRAINTS.exists() and CONSTRAINTS.stat().st_mtime >= begin - 2
        ):
            outcomes.append(
                Outcome(tier.name, "", "not run: the wheels were not built", failed=True)
            )
            continue
        reason = why_not(tier)
        if reason:
            outcomes.append(Outcome(tier.name, "", reason))
            continue
        for env in tier.envs:
            if not tier.every_python:
                outcomes.append(
                    run_env(tier.name, env, path, extra if tier.tests or tier.marker else [])
                )
                continue
            for version in versions or [f"3.{minor}" for minor in MINORS]:
                full = f"py{version.replace('.', '')}-{env}"
                if version in here:
                    outcomes.append(run_env(tier.name, full, path, extra))
                else:
                    outcomes.append(Outcome(tier.name, full, f"there is no Python {version} here"))
    if not any(o.counts or not o.skipped for o in outcomes):
        outcomes.append(Outcome("", "", "nothing was run", failed=True))
    print("\n".join(summary(outcomes, time.time() - begin)), flush=True)
    return 1 if any(o.failed for o in outcomes) else 0


def summary(outcomes: list[Outcome], seconds: float) -> list[str]:
    """Return the lines that end a run; the last one is ``N passed, N failed``."""
    lines = ["", "==== summary"]
    passed = failed = 0
    for item in outcomes:
        good, bad, skipped = item.counts or (0, 0, 0)
        bad = max(bad, int(item.failed))
        passed, failed = passed + good, failed + bad
        label = f"{item.env or item.tier:<14}"
        if item.skipped:
            lines.append(f"{label} {'FAILED ' if item.failed else 'skipped'}  {item.skipped}")
            continue
        tests = f"  {good} passed, {bad} failed, {skipped} skipped" if item.counts else ""
        lines.append(
            f"{label} {'FAILED ' if item.failed else 'ok     '} {item.seconds:7.1f} s{tests}"
        )
    return [*lines, f"{'all':<14} {'':7} {seconds:7.1f} s", f"{passed} passed, {failed} failed"]


def parse(argv: list[str]) -> tuple[Any, list[str]]:
    """Return the parsed arguments, and those after ``--``."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("demo", help="two nodes in two processes connect")
    test = commands.add_parser(
        "test", help="the tests", formatter_class=argparse.RawTextHelpFormatter,
        epilog="tiers:\n" + "\n".join(f"  {tier.name:<8} {tier.about}" for tier in TIERS),
    )  # fmt: skip
    test.add_argument("tiers", nargs="*", metavar="tier", help="all when none is named")
    test.add_argument(
        "--python", action="append", default=[], metavar="3.N", help="only on this version"
    )
    commands.add_parser("lint", help="rules and formatting, types, rules of direction")
    bench = commands.add_parser("bench", help="the figures of tools/bench/")
    bench.add_argument("names", nargs="*", metavar="name")
    commands.add_parser("lab", help="the NAT laboratory; lab --help", add_help=False)
    commands.add_parser("setup", help=".venv with everything editable")
    return parser.parse_args(argv[:cut]), argv[cut:]


def lab(argv: list[str]) -> int:
    """Carry out a command of the NAT laboratory; return its exit code."""
    reason = install_packages([p for p in LAB_PACKAGES if not has_package(p)])
    if reason:
        say(f"-- {reason}; what needs it will say so")
    install("lab")
    return laboratory.run(BIN / "python", argv)


def main(argv: list[str]) -> int:
    """Run one command; return the exit code."""
    if sys.version_info < LOWEST:
        newer = next((c for m in reversed(MINORS) if (c := shutil.which(f"python3.{m}"))), None)
        if newer is None:
            sys.exit(f"warpgate needs Python 3.11 or later; this is {sys.version.split()[0]}")
        return subprocess.run([newer, __file__, *argv], check=False).returncode
    if argv[:1] == ["lab"]:  # its arguments are its own
        return lab(argv[1:])
    options, extra = parse(argv)
    if options.command == "test":
        known = [tier.name for tier in TIERS]
        unknown = [name for name in options.tiers if name not in known]
        if unknown:
            sys.exit(f"no tier called {', '.join(unknown)}; there are: {', '.join(known)}")
        return run_tiers(options.tiers or known, options.python, extra)
    if options.command == "lint":
        return run_tiers(["lint", "imports", "type"], [], [])
    if options.command == "bench":
        install("tox")
        for env, more in (("wheels", []), ("bench", ["--", *options.names])):
            if run_env(env, env, search_path(), more).failed:
                return 1
        return 0
    install(options.command)
    if options.command == "setup":
        say(f"{VENV} is ready: run {BIN / 'pytest'} packages/warpgate-core, for example")
        return 0
    code = subprocess.run(
        [str(BIN / "python"), "-m", "warpgate", "demo", *extra[1:]], check=False
    ).returncode
    return code if code or extra[1:] else laboratory.show_two_nats(BIN / "python")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

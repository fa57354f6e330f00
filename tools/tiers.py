"""The tiers of tests, and how one tox environment is run; nothing but the standard library."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tools.system_packages import LAB_PACKAGES, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
REPORTS = ROOT / ".tox" / "reports"


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
    beside: str = ""  # it mostly waits: it runs beside the others, after those of the same word


TIERS = (
    Tier("lint", "ruff: rules and formatting", ("lint",)),
    Tier("imports", "the rules of direction", ("imports",)),
    Tier("wheels", "build all distributions, check the wheels", ("wheels",)),
    Tier("type", "mypy --strict", ("type",), from_wheels=True),
    Tier("core", "warpgate-core alone", ("core",), from_wheels=True, every_python=True),
    Tier(
        "direct", "warpgate-plugin-direct alone", ("direct",), from_wheels=True, every_python=True,
        beside="plugins",
    ),
    Tier(
        "punch", "warpgate-plugin-punch alone", ("punch",), from_wheels=True, every_python=True,
        beside="plugins",
    ),
    Tier(
        "turn", "warpgate-plugin-turn alone", ("turn",), from_wheels=True, every_python=True,
        beside="plugins",
    ),
    Tier("meta", "the repository itself", ("meta",), from_wheels=True, tests="tests/meta"),
    Tier(
        "seeds", "the documents' programs beside aionetiface", ("seeds",), from_wheels=True,
        packages=("build-essential", "python3-dev"), tests="tests/seeds", beside="plugins",
    ),
    Tier(
        "e2e", "processes and network namespaces", ("e2e",), from_wheels=True,
        packages=("iproute2",), packages_required=False, tests="tests/e2e", beside="plugins",
    ),
    Tier(
        "broker", "nodes on real MQTT brokers", ("broker",), from_wheels=True,
        packages=("mosquitto",), marker="broker", beside="plugins",
    ),
    Tier(
        "coturn", "relays over a real TURN server", ("coturn",), from_wheels=True,
        packages=("coturn",), marker="coturn", beside="laboratory",
    ),
    Tier(
        "netns", "the NAT laboratory, and what is proven in it", ("netns",), from_wheels=True,
        packages=LAB_PACKAGES, packages_required=False, tests="tools/natlab/tests", beside="laboratory",
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
    only_alone: tuple[str, ...] = ()  # tests that passed at their second run only


MOST_AGAIN = 10
"""With more failed tests than that it is no neighbour's fault: none of them is run again."""


def failed_tests(report: Path) -> tuple[str, ...]:
    """Return the names of the tests that failed, from pytest's JUnit report."""
    if not report.exists():
        return ()
    cases = ET.parse(report).getroot().iter("testcase")
    bad = (c for c in cases if c.find("failure") is not None or c.find("error") is not None)
    return tuple(dict.fromkeys(str(case.get("name")) for case in bad))


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


def run_env(tier: str, env: str, path: str, extra: list[str], log: Path | None = None) -> Outcome:
    """Run one tox environment; ``log``: the file that its output is appended to, instead of ours."""
    if log is None:
        say(f"\n==== {env}")
    report = REPORTS / f"{env}.xml"
    REPORTS.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    environ = {**os.environ, "PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
    # Environments run beside each other: each remembers its own failed tests.
    cache = "-o " + shlex.quote(f"cache_dir={ROOT / '.tox' / 'cache' / env}")
    environ["PYTEST_ADDOPTS"] = f"{environ.get('PYTEST_ADDOPTS', '')} {cache}".strip()
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PIP_CONSTRAINT", "UV_CONSTRAINT"):
        environ.pop(name, None)  # what a shell may have set must not reach the environments
    command = [str(BIN / "python"), "-m", "tox", "run", "-q", "-e", env]
    start = time.monotonic()
    with contextlib.nullcontext() if log is None else log.open("ab") as output:
        status = subprocess.run(
            [*command, *extra], cwd=ROOT, env=environ, check=False,
            stdout=output, stderr=subprocess.STDOUT if output else None,
        ).returncode  # fmt: skip
    return Outcome(tier, env, "", status != 0, time.monotonic() - start, read_counts(report))


def run_again(first: Outcome, path: str, extra: list[str]) -> Outcome:
    """Run alone what failed while other tiers ran beside; return what counts.

    The tests measure real time on shared processors, so that a neighbour can make one fail. What
    fails alone, too, has failed; what passes is named in the summary.
    """
    names = failed_tests(REPORTS / f"{first.env}.xml")
    if not (first.failed and first.counts and 0 < first.counts[1] <= MOST_AGAIN and names):
        return first
    say(f"\n-- {first.env}: again, alone: {', '.join(names)}")
    extra = extra or ["--"]
    only_those = ["--last-failed", "--last-failed-no-failures=none"]
    second = run_env(first.tier, first.env, path, [*extra, *only_those])
    passed, failed, skipped = first.counts
    again, bad, _ = second.counts or (0, failed, 0)
    if second.failed or again < failed or bad:
        return first
    return Outcome(
        first.tier, first.env, "", False, first.seconds + second.seconds,
        (passed + failed, 0, skipped), names,
    )  # fmt: skip


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
        if item.only_alone:
            lines.append(
                f"{'':<14} failed beside others, passed alone: {', '.join(item.only_alone)}"
            )
    return [*lines, f"{'all':<14} {'':7} {seconds:7.1f} s", f"{passed} passed, {failed} failed"]

"""tools/dev.py: what it installs, which tiers there are, what it says at the end."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest

from repository import ROOT, load_tool

dev = load_tool("dev")
system = load_tool("system_packages")
tiers = load_tool("tiers")

REPORT = '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/></testsuites>'


def test_the_counts_of_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert tiers.read_counts(report) is None
    report.write_text(REPORT, "utf-8")
    assert tiers.read_counts(report) == (4, 3, 3)


@pytest.mark.parametrize(
    ("outcomes", "last"),
    [
        ([("core", False, (5, 0, 1)), ("meta", False, (7, 0, 0))], "12 passed, 0 failed"),
        ([("core", True, (5, 2, 1)), ("meta", False, (7, 0, 0))], "12 passed, 2 failed"),
        ([("lint", True, None), ("meta", False, (7, 0, 0))], "7 passed, 1 failed"),
        ([("core", True, (5, 0, 0))], "5 passed, 1 failed"),
    ],
    ids=["all well", "tests failed", "a tier without tests failed", "it broke after its tests"],
)
def test_the_last_line_of_a_run(
    outcomes: list[tuple[str, bool, tuple[int, int, int] | None]], last: str
) -> None:
    lines = tiers.summary([tiers.Outcome(n, n, failed=f, counts=c) for n, f, c in outcomes], 1.0)
    assert lines[-1] == last


def test_a_skipped_tier_says_why() -> None:
    lines = tiers.summary([tiers.Outcome("e2e", "", skipped="no root")], 1.0)
    assert any("e2e" in line and "skipped" in line and "no root" in line for line in lines)


TWO_FAILED = """<testsuite><testcase name="test_a"><failure/></testcase><testcase name="test_b"/>
<testcase name="test_c"><error/></testcase></testsuite>"""


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [
        ((5, 2, 1), (2, 0, 0), True),
        ((5, 2, 1), (1, 1, 0), False),
        ((5, 2, 1), (1, 0, 1), False),
        ((5, 2, 1), None, False),
        ((50, 11, 0), (11, 0, 0), False),
    ],
    ids=["passed alone", "failed again", "skipped alone", "did not run", "too many"],
)
def test_what_fails_beside_others_is_run_once_more_alone(
    first: tuple[int, int, int],
    second: tuple[int, int, int] | None,
    passes: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked: list[list[str]] = []

    def run_env(tier: str, env: str, path: str, extra: list[str]) -> Any:
        asked.append(extra)
        return tiers.Outcome(tier, env, failed=second is None or second[1] > 0, counts=second)

    (tmp_path / "netns.xml").write_text(TWO_FAILED, "utf-8")
    monkeypatch.setattr(tiers, "REPORTS", tmp_path)
    monkeypatch.setattr(tiers, "run_env", run_env)
    before = tiers.Outcome("netns", "netns", failed=True, counts=first)
    after = tiers.run_again(before, "", ["--", "-x"])
    assert after.failed is not passes
    assert asked in ([], [["--", "-x", "--last-failed", "--last-failed-no-failures=none"]])
    text = "\n".join(tiers.summary([after], 1.0))
    assert ("passed alone: test_a, test_c" in text) is passes
    assert text.endswith(
        "7 passed, 0 failed" if passes else f"{first[0]} passed, {first[1]} failed"
    )


def test_what_passed_or_never_ran_is_not_run_again() -> None:
    for outcome in (
        tiers.Outcome("core", "core", counts=(5, 0, 0)),
        tiers.Outcome("lint", "lint", failed=True),
        tiers.Outcome("e2e", "", skipped="no root"),
    ):
        assert tiers.run_again(outcome, "", []) is outcome


def test_groups_are_expanded() -> None:
    wanted = dev.requirements(("-e", "packages/x", "group:type"))
    assert wanted[:2] == ["-e", "packages/x"]
    assert any(line.startswith("mypy") for line in wanted)
    assert any(line.startswith("pytest>=") for line in wanted)
    assert not any("group" in line for line in wanted)


def test_an_installation_is_repeated_when_its_settings_change() -> None:
    assert dev.fingerprint(["a"]) == dev.fingerprint(["a"])
    assert dev.fingerprint(["a"]) != dev.fingerprint(["b"])


def test_every_tier_has_its_tox_environment() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", "utf-8")
    sections = {name.removeprefix("testenv:") for name in config.sections()}
    matrix = "py3{11,12,13}-{core,direct,punch,turn}"
    for tier in dev.TIERS:
        for env in tier.envs:
            assert (env in matrix) if tier.every_python else (env in sections)


def test_missing_packages_are_named_when_they_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system.shutil, "which", lambda *_, **__: None)
    assert "iproute2" in system.install_packages(["iproute2"])
    monkeypatch.setattr(system.shutil, "which", lambda *_, **__: "apt-get")
    monkeypatch.setattr(system, "is_root", lambda: False)
    assert "sudo apt-get install iproute2" in system.install_packages(["iproute2"])
    assert system.install_packages([]) == ""


def test_services_are_kept_from_starting_while_packages_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(system, "POLICY", policy)
    ran: list[list[str]] = []
    monkeypatch.setattr(system.subprocess, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(system.shutil, "which", lambda *_, **__: "systemctl")
    with system.no_services(["coturn", "iproute2"]):
        assert "exit 101" in policy.read_text("ascii")
    assert not policy.exists()
    assert ran == [["systemctl", "disable", "coturn"]]
    policy.write_text("somebody else's", "ascii")
    with system.no_services([]):
        pass
    assert policy.read_text("ascii") == "somebody else's"


def test_every_package_of_a_tier_can_be_looked_for() -> None:
    for tier in dev.TIERS:
        assert all(isinstance(system.has_package(package), bool) for package in tier.packages)


def test_an_unknown_tier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"no tier called cores; there are: .*\bcore\b"):
        dev.main(["test", "cores"])

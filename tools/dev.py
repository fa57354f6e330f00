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
failed``: a tier that fails without a failed test in it counts as one failure. Tiers run beside each
other; what fails then is run once more alone, which decides, and the summary names it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import laboratory
from tools.system_packages import LAB_PACKAGES, has_package, install_packages, say
from tools.tiers import (
    BIN,
    REPORTS,
    ROOT,
    TIERS,
    VENV,
    Outcome,
    Tier,
    run_again,
    run_env,
    summary,
)

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
    """Run tiers, those that mostly wait beside the others; print the summary, return the exit code."""
    begin = time.time()
    # A shell starts its background jobs with SIGINT ignored, and they hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install("tox")
    path = search_path()
    here = pythons(path)
    chosen = [tier for tier in TIERS if tier.name in names]
    if any(tier.from_wheels for tier in chosen) and "wheels" not in names:
        chosen.insert(0, next(tier for tier in TIERS if tier.name == "wheels"))
    # apt-get bears no company, so all is installed before anything runs.
    reasons = {tier.name: why_not(tier) for tier in chosen}
    outcomes: dict[str, list[Outcome]] = {}

    def run(tier: Tier, *, log: Path | None = None) -> None:
        outcomes[tier.name] = found = []
        if tier.from_wheels and not (
            CONSTRAINTS.exists() and CONSTRAINTS.stat().st_mtime >= begin - 2
        ):
            found.append(Outcome(tier.name, "", "not run: the wheels were not built", failed=True))
        elif reasons[tier.name]:
            found.append(Outcome(tier.name, "", reasons[tier.name]))
        for env, reason in [] if found else plan_envs(tier, versions, here):
            if reason:
                found.append(Outcome(tier.name, env, reason))
            else:
                arguments = extra if tier.every_python or tier.tests or tier.marker else []
                found.append(run_env(tier.name, env, path, arguments, log))

    first = [tier for tier in chosen if not tier.from_wheels]
    beside = [tier for tier in chosen if tier.beside]
    for tier in first:
        run(tier)

    def run_lane(word: str) -> None:
        for tier in beside:
            if tier.beside == word:
                run(tier, log=REPORTS / f"{tier.name}.log")

    lanes = [
        threading.Thread(target=run_lane, args=(word,))
        for word in sorted({t.beside for t in beside})
    ]
    for tier in beside:
        (REPORTS / f"{tier.name}.log").unlink(missing_ok=True)
    for lane in lanes:
        lane.start()
    for tier in chosen:
        if tier not in first and tier not in beside:
            run(tier)
    if any(lane.is_alive() for lane in lanes):
        say("\n-- waiting for those that run beside")
    for lane in lanes:
        lane.join()
    for tier in beside:
        log = REPORTS / f"{tier.name}.log"
        say(f"\n==== {tier.name}, which ran beside the others")
        say(log.read_text("utf-8", "replace") if log.exists() else "it was not run")
    if sum(tier.from_wheels for tier in chosen) > 1:
        for found in outcomes.values():
            found[:] = [run_again(outcome, path, extra) for outcome in found]
    ended = [outcome for tier in chosen for outcome in outcomes[tier.name]]
    if not any(o.counts or not o.skipped for o in ended):
        ended.append(Outcome("", "", "nothing was run", failed=True))
    print("\n".join(summary(ended, time.time() - begin)), flush=True)
    return 1 if any(o.failed for o in ended) else 0


def plan_envs(tier: Tier, versions: list[str], here: list[str]) -> list[tuple[str, str]]:
    """Return a tier's environments, each with the reason not to run it, or nothing."""
    if not tier.every_python:
        return [(env, "") for env in tier.envs]
    return [
        (
            f"py{version.replace('.', '')}-{env}",
            "" if version in here else f"there is no Python {version} here",
        )
        for env in tier.envs
        for version in versions or [f"3.{minor}" for minor in MINORS]
    ]


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

"""The programs of the public documents run as printed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parent / "runner.py"


def load_runner():
    spec = importlib.util.spec_from_file_location("seed_runner", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()
WITHOUT_AIONETIFACE = importlib.util.find_spec("aionetiface") is None  # found, never imported here


def run(names_from: str, program: str, *options: str) -> None:
    command = [sys.executable, *options, str(RUNNER), names_from, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ran {program}" in done.stdout


@pytest.mark.parametrize("program", runner.PROGRAMS)
def test_with_names_from_warpgate(program: str) -> None:
    run("warpgate", program, "-W", "error")


@pytest.mark.skipif(WITHOUT_AIONETIFACE, reason="aionetiface is not installed here")
@pytest.mark.parametrize("program", runner.PROGRAMS)
def test_as_printed_beside_aionetiface(program: str) -> None:
    run("aionetiface", program)


def test_every_block_is_run() -> None:
    assert set(runner.BLOCKS) == runner.COVERED


@pytest.mark.skipif(WITHOUT_AIONETIFACE, reason="aionetiface is not installed here")
def test_the_constants_have_aionetifaces_values() -> None:
    code = (
        "import aionetiface as theirs, warpgate as ours\n"
        "for name in 'IP4 IP6 NIC_BIND EXT_BIND LOOPBACK_BIND SUB_ALL TCP UDP'.split():\n"
        "    assert getattr(theirs, name) == getattr(ours, name), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

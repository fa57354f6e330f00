"""Names from the command line, as two people and a stranger use them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import process

from warpgate.testing.mosquitto import Mosquitto, find_mosquitto

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


# A shell may start its children with SIGINT ignored, and then Python leaves it so.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from warpgate.cli import main; raise SystemExit(main(sys.argv[1:]))"
)


def warpgate(*words: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, *words]


def run(folder: Path, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warpgate(command, "--install-path", str(folder), *words),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=50,
        check=False,
    )


@contextmanager
def named(folder: Path, broker: str, greeting: str) -> Iterator[dict[str, Any]]:
    """Run a listener named alice, which sends a greeting to whoever connects first."""
    options = ("--install-path", str(folder), "--broker", broker, "--name", "alice", "--json")
    with process(warpgate("listen", *options, "--keep")) as child:
        child.stdin.write(greeting)
        child.stdin.flush()
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield json.loads(line)
        child.send_signal(signal.SIGINT)
        child.wait(20)


def hear(folder: Path, broker: str, name: str, greeting: str) -> str:
    """Connect by a name until the greeting has come; return what was said on standard error."""
    options = ("--install-path", str(folder), "--broker", broker, "--timeout", "20")
    with process(warpgate("connect", *options, name)) as child:
        heard = child.stdout.read(len(greeting))
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=20)[1]
    assert heard == greeting, said
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_pin_impostor_rotation(tmp_path: Path) -> None:
    bob, alice, eve = (tmp_path / name for name in ("bob", "alice", "eve"))
    with Mosquitto(tmp_path) as mosquitto:
        with named(alice, mosquitto.url, "hello from alice") as facts:
            full = facts["name"]
            assert run(alice, "id").stdout.splitlines()[1] == f"fingerprint: {full[6:]}"
            hear(bob, mosquitto.url, "Alice", "hello from alice")
        assert run(bob, "trust").stdout.startswith(f"alice {full[6:]} since ")
        # Alice has withdrawn her name, and somebody takes it.
        with named(eve, mosquitto.url, "hello from eve") as facts:
            taken = facts["name"]
            refused = run(bob, "connect", "--broker", mosquitto.url, "alice")
            assert (refused.returncode, refused.stdout) == (1, "")
            for text in (full[6:], taken[6:], f'--install-path "{bob}" accept {taken}'):
                assert text in refused.stderr
            accepted = run(bob, "trust", "accept", taken)
            assert f"it was pinned to {full[6:]} since " in accepted.stdout
            hear(bob, mosquitto.url, "alice", "hello from eve")
        old = run(alice, "id").stdout
        rotated = run(alice, "id", "--rotate")
        assert rotated.stdout.splitlines()[1] != old.splitlines()[1]
        assert "will refuse the new one" in rotated.stderr
        assert run(bob, "trust", "remove", "alice").returncode == 0
        assert run(bob, "trust").stdout == ""

"""The demo: two processes, every byte checked, every attempt listed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from typing import Any

import pytest

needs_amqtt = pytest.mark.skipif(
    importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed"
)
# As if the extra were not installed, in this process; the other one is told not to use a broker.
WITHOUT_AMQTT = "import sys; sys.modules['amqtt.broker'] = None; from warpgate.cli import main; "


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "warpgate", "demo", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    done = demo("--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    data: dict[str, Any] = json.loads(done.stdout)  # one document, and nothing else
    assert data["ok"]
    return data


def check(text: str, mib: int) -> None:
    processes = [int(number) for number in re.findall(r"process (\d+)", text)]
    assert len(set(processes)) == 2
    origin = r"^connected by (\w+) \(from the entry point of warpgate-plugin-direct\) in [\d.]+ ms$"
    connected = re.findall(origin, text, re.MULTILINE)
    assert len(connected) == 2
    assert connected[1] == "reverse_connect"
    hashes = re.findall(
        rf"^(\w+ → \w+): {mib} MiB, SHA-256 ([0-9a-f]{{16}})… equal$", text, re.MULTILINE
    )
    assert [way for way, _ in hashes] == ["alice → bob", "bob → alice"]
    assert hashes[0][1] != hashes[1][1]
    assert text.rstrip().endswith("both directions arrived whole")
    tables = text.split("\nstrategy ")[1:]
    for table, winner in zip(tables, connected, strict=True):
        for column in ("family", "route type", "way", "took", "outcome", "why"):
            assert column in table.splitlines()[0]
        assert re.findall(r"^(\w+) .* ms +won *$", table, re.MULTILINE) == [winner]
    for strategy in ("direct_connect", "reverse_connect"):
        assert re.search(rf"^{strategy} .*\b(skipped|lost|failed)\b +\S", tables[0], re.MULTILINE)
    assert re.search(
        r"^direct_connect .*excluded by an argument of this call$", tables[1], re.MULTILINE
    )
    assert re.search(r"^signals that bob took: \w+ [1-9]", text, re.MULTILINE)


@needs_amqtt
def test_they_meet_by_their_ids_at_a_broker_of_their_own() -> None:
    done = demo("--mib", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"broker: mqtt://127\.0\.0\.1:\d+, in this process\n", done.stdout)
    assert re.search(r"known to alice by its node id [a-z2-7]{12}…", done.stdout)
    check(done.stdout, 3)


@pytest.mark.parametrize("extra", [True, False], ids=["not wanted", "not installed"])
def test_without_a_broker_they_get_addresses(extra: bool) -> None:
    if extra:
        done = demo("--mib", "2", "--no-broker")
        assert not done.stdout.startswith("no broker")
    else:
        code = WITHOUT_AMQTT + "sys.exit(main(['demo', '--mib', '2']))"
        done = run([sys.executable, "-c", code])
        assert done.stdout.startswith("no broker (")
        assert "pip install warpgate-core[broker]" in done.stdout.splitlines()[0]
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"known to alice by its address of \d+ characters", done.stdout)
    check(done.stdout, 2)


@needs_amqtt
@pytest.mark.parametrize("strategy", ["direct_connect", "reverse_connect"])
def test_by_one_strategy_as_json(strategy: str) -> None:
    data = as_json("--mib", "1", "--strategy", strategy)
    assert data["broker"].startswith("mqtt://127.0.0.1:")
    first, second = data["connections"]
    assert (first["winner"], second["winner"]) == (strategy, "reverse_connect")
    assert first["peer_id"] == second["peer_id"] == data["bob"]["node_id"]
    assert {each["distribution"] for each in (first, second)} == {"warpgate-plugin-direct"}
    assert data["alice"]["process"] != data["bob"]["process"]
    assert data["alice"]["ok"]
    assert data["bob"]["ok"]
    assert data["alice"]["sent"] == data["bob"]["received"]
    assert data["bob"]["sent"] == data["alice"]["received"]
    assert sum(data["signals"].values()) >= 1


def test_json_without_a_broker() -> None:
    data = as_json("--mib", "1", "--no-broker")
    assert data["broker"] is None
    assert set(data["signals"]) == {"direct"}


def test_a_broker_that_is_not_there_is_told_as_json() -> None:
    done = demo("--mib", "1", "--json", "--broker", "mqtt://127.0.0.1:9")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert not data["ok"]
    assert "nobody here knows" in data["error"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_a_progress_bar_on_a_terminal(rich: bool) -> None:
    if rich:
        pytest.importorskip("rich")
    import os
    import pty

    block = "" if rich else "import sys; sys.modules['rich.console'] = None; "
    code = block + "import sys; from warpgate.cli import main; "
    code += "sys.exit(main(['demo', '--mib', '2', '--no-broker', '--json']))"
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environ,
        timeout=55,
        check=False,
    )
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0, drawn
    assert json.loads(done.stdout)["ok"]
    assert ("alice ⇄ bob" if rich else "2 of 2 MiB") in drawn


def test_an_unknown_strategy_fails() -> None:
    done = demo("--mib", "1", "--strategy", "no_such_strategy")
    assert done.returncode != 0
    assert "no_such_strategy" in done.stderr
    assert "direct_connect" in done.stderr


@pytest.mark.parametrize("mib", ["0", "-1", "x"])
def test_a_size_that_cant_be_is_refused(mib: str) -> None:
    done = demo("--mib", mib)
    assert done.returncode == 2
    assert "--mib" in done.stderr

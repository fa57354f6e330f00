"""The demo: two processes, every byte checked, every attempt listed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "warpgate", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def test_it_connects_and_exchanges() -> None:
    done = demo("--mib", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    processes = [int(number) for number in re.findall(r"process (\d+)", done.stdout)]
    assert len(set(processes)) == 2
    origin = r"^connected by \w+ \(from the entry point of warpgate-plugin-direct\)"
    assert re.search(origin, done.stdout, re.MULTILINE)
    hashes = re.findall(
        r"^(\w+ → \w+): 3 MiB, SHA-256 ([0-9a-f]{16})… equal$", done.stdout, re.MULTILINE
    )
    assert [way for way, _ in hashes] == ["alice → bob", "bob → alice"]
    assert hashes[0][1] != hashes[1][1]
    assert "both directions arrived whole" in done.stdout
    rows = done.stdout[done.stdout.index("strategy ") :].splitlines()
    for column in ("family", "route type", "way", "took", "outcome", "why"):
        assert column in rows[0]
    table = "\n".join(rows[1:])
    winners = re.findall(r"^(\w+) .* ms +won *$", table, re.MULTILINE)
    assert winners == re.findall(r"connected by (\w+) \(from the entry point", done.stdout)
    assert len(winners) == 1
    for strategy in ("direct_connect", "reverse_connect"):
        assert re.search(rf"^{strategy} .*\b(skipped|lost|failed)\b +\S", table, re.MULTILINE), (
            table
        )


@pytest.mark.parametrize("strategy", ["direct_connect", "reverse_connect"])
def test_by_one_strategy_as_json(strategy: str) -> None:
    done = demo("--mib", "1", "--strategy", strategy, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    start = done.stdout.index("{")
    data, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
    assert data["report"]["winner"] == strategy
    assert data["alice"]["ok"]
    assert data["bob"]["ok"]
    assert data["alice"]["sent"] == data["bob"]["received"]
    assert data["bob"]["sent"] == data["alice"]["received"]


def test_an_unknown_strategy_fails() -> None:
    done = demo("--mib", "1", "--strategy", "no_such_strategy")
    assert done.returncode != 0
    assert "no_such_strategy" in done.stderr
    assert "direct_connect" in done.stderr

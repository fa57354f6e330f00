from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from warpgate_natlab import LabError
from warpgate_natlab.cli import main
from warpgate_natlab.matrix import Cell, table, write
from warpgate_natlab.pytest_plugin import Factory
from warpgate_natlab.session import Peer, Result, run_pair


def result(ok: bool, ping_s: float | None = None, path: str | None = "direct") -> Result:
    found = Result(
        "open", "cgnat", ok, "direct_connect" if ok else None, path, "tcp", ping_s, ping_s
    )
    if not ok:
        found.error = "no path to the peer:\n  and so on"
        found.report = {"attempts": [{"strategy": "direct_connect", "cause": "refused"}]}
    return found


def test_without_attempts_the_error_is_the_cause() -> None:
    assert (
        Cell("open", "open", [Result("open", "open", False, error="none\nof it")]).causes == "none"
    )
    assert Cell("open", "open", [Result("open", "open", True)]).causes == ""


def test_a_matrix_becomes_table_json_and_pictures(tmp_path: Path) -> None:
    cells = [
        Cell("open", "open", [result(True, 0.2), result(True, 0.4)]),
        Cell("open", "cgnat", [result(True, 0.5, "relay"), result(False)]),
    ]
    lines = table(cells)
    assert "2/2        2/2     0.300" in lines[2]
    assert "1/2        0/2     0.500" in lines[3]
    assert lines[3].endswith("direct_connect: refused")
    assert lines[-1].startswith("1 of 2 pairs connected in every run, 1 directly")
    pytest.importorskip("matplotlib")
    files = write(cells, tmp_path)
    assert {path.suffix for path in files} == {".txt", ".json", ".png", ".svg"}
    assert all(path.stat().st_size > 100 for path in files)
    data = json.loads((tmp_path / "matrix.json").read_text())
    assert [cell["connected"] for cell in data] == [2, 1]


@pytest.mark.netns
def test_two_real_nodes_connect_and_the_winner_is_told(natlab: Factory) -> None:
    found = run_pair(natlab("port-restricted", "open", servers=["mqtt"]))
    assert found.ok
    assert found.strategy in ("direct_connect", "reverse_connect")
    assert found.signalling == "mqtt"
    assert found.report["winner"] == found.strategy
    # A handshake and the hello take two round trips of 80 ms, the ping one more.
    assert found.ping_s is not None
    assert found.ping_s >= 0.2


@pytest.mark.netns
def test_a_pair_without_a_path_is_told_with_its_causes(natlab: Factory) -> None:
    found = run_pair(
        natlab("port-restricted", "port-restricted"), timeout=2, plugins=["direct_connect"]
    )
    assert not found.ok
    assert found.strategy is None
    assert "no path" in found.error
    assert found.report["attempts"] or found.report["skips"]


@pytest.mark.netns
def test_a_node_that_dies_is_told(natlab: Factory) -> None:
    lab = natlab("open", "open")
    with Peer(lab, "a") as peer:
        peer.answer(20)
        os.kill(peer.process.pid, signal.SIGKILL)
        with pytest.raises(LabError, match="node a has ended"):
            peer.ask({"do": "address"})


@pytest.mark.netns
def test_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["list"]) == 0
        assert "symmetric-random" in capsys.readouterr().out
        assert main(["--a", "open", "--b", "open", "--servers", ""]) == 0
        out = capsys.readouterr().out
        assert "connected by direct_connect (tcp, direct)" in out
        assert "won" in out
        assert main(["--a", "open", "--b", "bogus"]) == 2
        assert "no profile is called 'bogus'" in capsys.readouterr().err
        assert main(["selftest", "port-restricted"]) == 0
        assert "as promised" in capsys.readouterr().out
        arguments = ["--profiles", "open,fullcone", "--timeout", "2", "--servers", "mqtt"]
        assert main(["matrix", *arguments, "--out", str(tmp_path)]) == 0
        assert "of 3 pairs connected" in capsys.readouterr().out
        assert {path.name for path in tmp_path.iterdir()} >= {"matrix.txt", "matrix.json"}
    finally:
        signal.signal(signal.SIGTERM, handler)

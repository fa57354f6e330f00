"""``warpgate plugins`` and the frame of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import warpgate
from warpgate import TCP, UDP, Plugin, cli
from warpgate.cli.plugins import _as_text
from warpgate.errors import ConfigError, NoPathError
from warpgate.loading.report import LoadedStrategy, LoadReport

DISTS = Path(__file__).parent / "plugin_dists"
SOURCE = str(Path(warpgate.__file__).parents[1])
BROKEN = sorted(path.name for path in DISTS.iterdir() if path.is_dir() and path.name != "good")
RESTRICT = (
    # The child sees the fixtures as all that is installed.
    "import sys; from warpgate.loading import discovery; from warpgate.cli import main; "
    "folders = sys.argv[1].split(';'); sys.path[:0] = folders; "
    "discovery.search_path = lambda: folders; raise SystemExit(main(sys.argv[2:]))"
)


def warpgate_command(*arguments, folders=(), **environ):
    """Run the command in a process of its own with only these distributions."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WARPGATE_")}
    env |= {"PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    joined = ";".join(str(DISTS / folder) for folder in folders)
    return subprocess.run(
        [sys.executable, "-c", RESTRICT, joined, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=env | environ,
        timeout=60,
        check=False,
    )


def test_without_a_strategy_it_says_what_to_install():
    run = warpgate_command("plugins")
    assert run.returncode == 0
    assert "No strategy is installed" in run.stdout
    assert (
        "pip install warpgate-plugin-direct warpgate-plugin-punch warpgate-plugin-turn"
        in run.stdout
    )
    for auxiliary in ("get_addr", "return_addr", "fan_out"):
        assert auxiliary in run.stdout
    assert "REJECTED" not in run.stdout
    assert run.stderr == ""


def test_strategies_and_rejections_are_shown_in_full():
    run = warpgate_command("plugins", folders=["good", *BROKEN], COLUMNS="20")
    assert run.returncode == 0
    (row,) = [line for line in run.stdout.splitlines() if line.startswith("wgx_good")]
    assert row.split() == ["wgx_good", "direct", "tcp", "wgx-good", "1.0"]
    rejected = run.stdout.partition("REJECTED\n")[2].splitlines()
    assert len(rejected) == 3 * len(BROKEN)
    assert all(line.startswith("  cause: ") for line in rejected[1::3])
    assert all(line.startswith("  mend:  ") for line in rejected[2::3])
    assert "wgx-no-name 1.0, entry point wgx_no_name [contract]" in rejected[0::3]
    assert "SystemExit: no such platform" in run.stdout
    assert run.stderr == ""


def test_check_tells_by_the_exit_code():
    assert warpgate_command("plugins", "--check", folders=["good"]).returncode == 0
    assert warpgate_command("plugins", "--check", folders=["good", "no_name"]).returncode == 1


def test_json_holds_the_same():
    run = warpgate_command("plugins", "--json", folders=["good", "no_name", "reserved"])
    data = json.loads(run.stdout)
    assert data["strategies"] == [
        {
            "name": "wgx_good",
            "phase": "direct",
            "transport": "tcp",
            "distribution": "wgx-good",
            "version": "1.0",
            "entry_point": "wgx_good",
        }
    ]
    assert [item["name"] for item in data["auxiliaries"]] == ["get_addr", "return_addr", "fan_out"]
    assert {item["distribution"] for item in data["auxiliaries"]} == {"warpgate-core"}
    assert data["hooks"] == []
    assert [item["stage"] for item in data["rejected"]] == ["contract", "name"]
    assert all(item["cause"] and item["mend"] for item in data["rejected"])


def test_the_filters_of_the_environment_hold():
    run = warpgate_command(
        "plugins", folders=["good", "exits"], WARPGATE_BLOCK_PLUGINS="wgx_exits,fan_out"
    )
    assert "wgx_good" in run.stdout
    assert "REJECTED" not in run.stdout
    assert "fan_out" not in run.stdout
    run = warpgate_command("plugins", folders=["good"], WARPGATE_PLUGINS="")
    assert "exclude all of them" in run.stdout
    run = warpgate_command("plugins", folders=["good"], WARPGATE_PLUGINS="wgx_god")
    assert run.returncode == 2
    assert "did you mean 'wgx_good'?" in run.stderr
    assert run.stdout == ""


def test_strict_does_not_keep_it_from_showing_rejections():
    run = warpgate_command("plugins", folders=["no_name"], WARPGATE_STRICT="1")
    assert run.returncode == 0
    assert "has no name" in run.stdout


def test_a_folder_of_plugins_can_be_looked_at(tmp_path):
    (tmp_path / "bad.py").write_text("raise RuntimeError('in the file')")
    run = warpgate_command("plugins", "--plugin-dir", str(tmp_path))
    assert f"drop-in {tmp_path / 'bad.py'} [import]" in run.stdout
    assert "in the file" in run.stdout
    assert warpgate_command("plugins", "--plugin-dir", str(tmp_path / "none")).returncode == 2


def test_python_m_warpgate_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "warpgate", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": SOURCE},
    )
    assert run.stdout == f"warpgate {warpgate.__version__}\n"


# The frame.


def test_help_lists_every_command_without_importing_any(capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "probe", ("warpgate.cli.no_such_module", "look around"))
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "plugins" in text
    assert "look around" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["plugins", "--nonsense"]])
def test_wrong_usage_is_2(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "usage: warpgate" in capsys.readouterr().err


class Fake:
    """A command whose run() does what it is told."""

    def __init__(self, outcome):
        self.outcome = outcome

    def add_parser(self, subparsers):
        return subparsers.add_parser("fake")

    def run(self, args):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (ConfigError("bad setting"), 2, "warpgate: bad setting\n"),
        (NoPathError("no way"), 1, "warpgate: no way\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(outcome, code, text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wgx_fake_command", Fake(outcome))
    monkeypatch.setitem(cli.COMMANDS, "fake", ("wgx_fake_command", "for this test"))
    assert cli.main(["fake"]) == code
    assert capsys.readouterr().err == text


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break differently on Windows")
def test_a_reader_that_goes_away_is_no_traceback():
    env = os.environ | {"PYTHONPATH": SOURCE}
    child = subprocess.Popen(
        [sys.executable, "-m", "warpgate", "plugins", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    child.wait(60)
    assert b"Traceback" not in error
    assert b"Exception ignored" not in error


def test_all_transports_of_a_strategy_are_shown():
    class Both(Plugin):
        name, phase, transport, transports = "both", "relay", UDP, ("udp", TCP)

    report = LoadReport([LoadedStrategy("both", Both, "a-dist", "1.0", "both")])
    for lines in (_as_text(report), str(report).splitlines()):
        (row,) = [line for line in lines if line.startswith("both")]
        assert row.split()[1:4] == ["relay", "udp,", "tcp"]

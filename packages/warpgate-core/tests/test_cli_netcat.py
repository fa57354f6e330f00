"""``warpgate id``; and ``listen`` and ``connect`` as far as they go without a strategy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import warpgate
from warpgate.cli import main
from warpgate.cli.connect import told
from warpgate.cli.netcat import Copy
from warpgate.errors import PipeClosed
from warpgate.events import (
    AttemptFinished,
    AttemptStarted,
    ConnectFinished,
    ConnectStarted,
    Dropped,
)
from warpgate.identity import node_id_bytes, stack_id
from warpgate.names.rules import fingerprint

SOURCE = str(Path(warpgate.__file__).parents[1])
# A shell may start its children with SIGINT ignored, and then Python leaves it so.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from warpgate.cli import main; raise SystemExit(main(sys.argv[1:]))"
)
MEMORY = ("--install-path", ":memory:")


def environment():
    env = {key: value for key, value in os.environ.items() if not key.startswith("WARPGATE_")}
    return env | {"WARPGATE_BROKERS": "", "WARPGATE_STUN": "", "PYTHONPATH": SOURCE}


def warpgate_command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(),
        timeout=50,
        check=False,
    )


# id


def test_the_id_is_made_once_and_kept_to_this_user(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert main(["id", "--install-path", str(folder)]) == 0
    first = capsys.readouterr().out
    node_id, known_by, key_file, stack = first.splitlines()
    assert len(node_id_bytes(node_id)) == 32
    assert known_by == f"fingerprint: {fingerprint(node_id_bytes(node_id))}"
    assert key_file == f"key file: {folder / 'identity.key'}"
    assert stack == f"stack id: {stack_id().hex()}"
    if sys.platform != "win32":
        assert (folder / "identity.key").stat().st_mode & 0o777 == 0o600
    assert main(["id", "--install-path", str(folder)]) == 0
    assert capsys.readouterr().out == first
    assert main(["id", "--json", "--install-path", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "node_id": node_id,
        "fingerprint": fingerprint(node_id_bytes(node_id)),
        "key_file": str(folder / "identity.key"),
        "stack_id": stack_id().hex(),
    }


def test_a_damaged_key_file_is_named(tmp_path, capsys):
    (tmp_path / "identity.key").write_text("nonsense")
    assert main(["id", "--install-path", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert str(tmp_path / "identity.key") in output.err
    assert output.out == ""


@pytest.mark.parametrize("folder", [":memory:", ""])
def test_an_id_needs_a_folder(folder, capsys):
    assert main(["id", "--install-path", folder]) == 2
    assert capsys.readouterr().out == ""


# connect


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["wg1_nonsense"], 1, "warpgate: "),
        (["nobody"], 1, "nobody here knows 'nobody'"),
        (["a\nb"], 1, "neither an address nor a name"),
        (["nobody", "--plugin", "no_such"], 2, "no_such"),
        (["nobody", "--broker", "ftp://x"], 2, "brokers"),
        (["nobody", "--transport", "sctp"], 2, "invalid choice"),
        (["nobody", "--timeout", "0"], 2, "invalid seconds value"),
        (["nobody", "--timeout", "nan"], 2, "invalid seconds value"),
        ([], 2, "ADDRESS"),
    ],
)
def test_what_can_not_be_connected_to_is_said(arguments, code, text):
    run = warpgate_command("connect", *arguments, *MEMORY)
    assert run.returncode == code, run.stderr
    assert text in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_json_has_the_report_of_a_failure_too():
    run = warpgate_command("connect", "nobody", "--json", "--verbose", *MEMORY)
    assert run.returncode == 1
    started, report, reason = run.stderr.splitlines()
    assert started.startswith("not connected after ")
    assert "nobody" in json.loads(report)["error"]
    assert reason.startswith("warpgate: nobody here knows")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ConnectStarted("peer", 3, 2), "peer peer: 3 ways to try, 2 skipped"),
        (AttemptStarted("peer", "1", "punch", "punch", True), "punch: trying (punch)"),
        (AttemptStarted("peer", "1", "x", None, False), "x: asked by the peer (auxiliary)"),
        (
            AttemptFinished("peer", "1", "punch", "punch", True, "failed", "refused", 0.0123),
            "punch: failed after 12.3 ms, refused",
        ),
        (ConnectFinished("peer", "punch", 0.5), "connected by punch in 500.0 ms"),
        (ConnectFinished("peer", None, 2.5), "not connected after 2.50 s"),
        (Dropped("signals", "bad"), None),
    ],
)
def test_each_event_has_its_line(event, line):
    assert told(event) == line


# listen


def test_an_address_that_is_not_ours_can_not_be_listened_on():
    run = warpgate_command("listen", "--ip", "192.0.2.1", *MEMORY)
    assert run.returncode == 2
    assert "192.0.2.1" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_is_a_number(port, capsys):
    assert main(["listen", f"--port={port}"]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupt_is_130_even_while_standard_input_is_open():
    arguments = ["listen", "--json", "--ip", "127.0.0.1", "--port", "0", *MEMORY]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as child:
        facts = json.loads(child.stdout.readline())
        child.send_signal(signal.SIGINT)
        assert child.wait(50) == 130
        assert child.stdout.read() == b""
        assert child.stderr.read() == b""
    assert facts["address"].startswith("wg1_")
    assert len(node_id_bytes(facts["node_id"])) == 32
    assert facts["port"] > 0
    assert facts["brokers"] == []


# The two directions of a pipe, without a network


class FakeInput:
    def __init__(self, *chunks):
        self.chunks = [*chunks, b""]

    async def read(self):
        return self.chunks.pop(0)


class FakeOutput:
    def __init__(self):
        self.written = b""

    async def write(self, data):
        self.written += data


class FakePipe:
    """A pipe that takes ``takes`` messages, and whose peer says what it is told and then ends."""

    def __init__(self, *heard, max_message=None, takes=99, cause=None):
        self.heard, self.max_message, self.takes, self.cause = [*heard], max_message, takes, cause
        self.sent = []
        self.closed = False

    async def send(self, data):
        if self.closed or len(self.sent) == self.takes:
            raise PipeClosed from self.cause
        self.sent.append(data)
        return len(data)

    async def __aiter__(self):
        for data in self.heard:
            yield data
        self.closed = True

    async def close(self):
        self.closed = True


async def test_datagrams_are_as_large_as_the_pipe_takes():
    pipe, output = FakePipe(b"a", b"b", max_message=4), FakeOutput()
    assert await Copy(pipe, 0.01).run(FakeInput(b"0123456789", b"x"), output) is None
    assert pipe.sent == [b"0123", b"4567", b"89", b"x"]
    assert output.written == b"ab"


async def test_bytes_that_the_peer_did_not_take_are_told():
    pipe = FakePipe(b"bye", takes=1)
    output = FakeOutput()
    trouble = await Copy(pipe, 0.01).run(FakeInput(b"taken", b"not taken"), output)
    assert trouble == "the peer closed before everything was sent"
    assert output.written == b"bye"


async def test_a_connection_that_breaks_is_told():
    pipe = FakePipe(b"half", cause=ConnectionResetError("reset by peer"))
    trouble = await Copy(pipe, 0.01).run(FakeInput(), FakeOutput())
    assert trouble == "the connection broke: reset by peer"


async def test_output_that_fails_ends_it():
    class Closed(FakeOutput):
        async def write(self, data):
            raise BrokenPipeError

    pipe = FakePipe(b"text")
    with pytest.raises(BrokenPipeError):
        await Copy(pipe, 0.01).run(FakeInput(), Closed())
    assert pipe.closed

"""``warpgate listen`` and ``warpgate connect`` between processes, over direct connections."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest

# A shell may start its children with SIGINT ignored, and then Python leaves it so.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from warpgate.cli import main; raise SystemExit(main(sys.argv[1:]))"
)
MEMORY = ("--install-path", ":memory:")
ONLY = ("--plugin", "direct_connect")
GUARD_S = 50


@contextlib.contextmanager
def process(*arguments, **streams):
    env = {key: value for key, value in os.environ.items() if not key.startswith("WARPGATE_")}
    env |= {"WARPGATE_BROKERS": "", "WARPGATE_STUN": "", "PYTHONIOENCODING": "utf-8"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", COMMAND, *arguments, *MEMORY],
        env=env,
        **pipes | streams,
    )
    try:
        yield child
    finally:
        child.kill()
        with contextlib.suppress(BrokenPipeError):
            child.communicate()


@contextlib.contextmanager
def listener(*arguments, **streams):
    """Run ``warpgate listen``; give it and its address."""
    local = ("--json", "--ip", "127.0.0.1", "--port", "0")
    with process("listen", *local, *arguments, **streams) as child:
        yield child, json.loads(child.stdout.readline())["address"]


def test_text_goes_both_ways():
    with listener() as (bob, address), process("connect", address, *ONLY) as alice:
        alice.stdin.write(b"hello bob\n")
        alice.stdin.flush()
        assert bob.stdout.readline() == b"hello bob\n"
        bob.stdin.write(b"hello alice\n")
        bob.stdin.flush()
        assert alice.stdout.readline() == b"hello alice\n"
        rest, errors = alice.communicate(b"bye\n", timeout=GUARD_S)  # and the end
        assert (rest, errors, alice.returncode) == (b"", b"", 0)
        # Bob ends because alice has closed; his standard input is still open.
        assert bob.wait(GUARD_S) == 0
        assert bob.stdout.read() == b"bye\n"
        assert b" connected from 127.0.0.1 port " in bob.stderr.read()


@pytest.mark.parametrize("sender", ["alice", "bob"])
def test_a_file_arrives_whole_at_who_only_receives(sender, tmp_path):
    data = random.Random(4).randbytes(2**20 + 17)
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as file:
        mine, theirs = (file, subprocess.DEVNULL)
        if sender == "bob":
            mine, theirs = theirs, mine
        with (
            listener(stdin=theirs) as (bob, address),
            process("connect", address, *ONLY, stdin=mine) as alice,
        ):
            receiver, other = (bob, alice) if sender == "alice" else (alice, bob)
            received, _ = receiver.communicate(timeout=GUARD_S)
            assert received == data
            assert receiver.returncode == 0
            assert other.wait(GUARD_S) == 0


def test_an_answer_within_the_grace_is_printed():
    with (
        listener() as (bob, address),
        process("connect", address, *ONLY, "--grace", "30") as alice,
    ):
        alice.stdin.write(b"question")
        alice.stdin.close()
        alice.stdin = None
        assert bob.stdout.read(8) == b"question"
        bob.communicate(b"answer", timeout=GUARD_S)
        assert bob.returncode == 0
        assert alice.communicate(timeout=GUARD_S) == (b"answer", b"")
        assert alice.returncode == 0


def test_one_peer_after_the_other_is_served():
    with listener("--keep") as (bob, address):
        for text in (b"first\n", b"second\n"):
            with process("connect", address, *ONLY) as alice:
                alice.communicate(text, timeout=GUARD_S)
                assert alice.returncode == 0
            assert bob.stdout.readline() == text
        assert bob.poll() is None


def test_verbose_says_what_is_tried_and_json_what_was():
    with (
        listener() as (bob, address),
        process("connect", address, *ONLY, "--verbose", "--json") as alice,
    ):
        _, errors = alice.communicate(b"x", timeout=GUARD_S)
        assert alice.returncode == 0
        lines = errors.decode().splitlines()
        assert lines[0].startswith("peer ")
        assert lines[1] == "direct_connect: trying (direct)"
        assert lines[2].startswith("direct_connect: won after ")
        assert lines[3].startswith("connected by direct_connect in ")
        assert lines[4].startswith("strategy ")
        report = json.loads(lines[-1])
        assert report["winner"] == "direct_connect"
        assert report["attempts"][0]["status"] == "won"
        assert bob.wait(GUARD_S) == 0


def test_a_peer_that_is_gone_is_1_with_every_attempt():
    with listener() as (bob, address):
        bob.kill()
        bob.wait(GUARD_S)
        with process("connect", address, *ONLY, "--timeout", "20") as alice:
            out, errors = alice.communicate(timeout=GUARD_S)
    assert alice.returncode == 1
    assert out == b""
    assert b"direct_connect" in errors
    assert b"Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupt_ends_both_sides_cleanly():
    with listener() as (bob, address), process("connect", address, *ONLY) as alice:
        alice.stdin.write(b"here\n")
        alice.stdin.flush()
        assert bob.stdout.readline() == b"here\n"
        alice.send_signal(signal.SIGINT)
        assert alice.wait(GUARD_S) == 130
        assert alice.stderr.read() == b""
        assert bob.wait(GUARD_S) == 0

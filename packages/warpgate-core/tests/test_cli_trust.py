"""``warpgate trust`` and ``warpgate id --rotate``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat

import pytest

from warpgate import identity as identity_module
from warpgate.cli import main
from warpgate.errors import ConfigError
from warpgate.identity import Identity, load_or_create, rotate
from warpgate.names.pins import Pins
from warpgate.names.rules import fingerprint
from warpgate.node.slots import IdentitySlot, next_sequence

ALICE = Identity.generate()
PRINT = fingerprint(ALICE.public_key)


@pytest.fixture
def command(tmp_path, capsys):
    def run(*words, code=0):
        assert main([words[0], "--install-path", str(tmp_path), *words[1:]]) == code
        return capsys.readouterr()

    return run


def test_nothing_is_pinned_at_first(command, tmp_path):
    assert command("trust").out == ""
    assert json.loads(command("trust", "--json").out) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known_by", [PRINT, PRINT.upper(), ALICE.node_id])
def test_accept_list_and_remove(command, tmp_path, known_by):
    assert command("trust", "accept", f"Alice@{known_by}").out == f"'alice' is pinned to {PRINT}\n"
    pin = Pins(tmp_path).get("alice")
    assert pin.fingerprint == PRINT
    for words in (["trust"], ["trust", "list"]):
        assert command(*words).out == f"alice {PRINT} since {pin.since}\n"
    assert json.loads(command("trust", "--json").out) == [
        {"name": "alice", "fingerprint": PRINT, "sequence": 0, "since": pin.since}
    ]
    assert command("trust", "remove", "ALICE").out == "'alice' is forgotten\n"
    assert "'alice' is not pinned" in command("trust", "remove", "alice", code=1).err


def test_accepting_another_key_says_what_it_was(command):
    command("trust", "accept", f"alice@{PRINT}")
    out = command("trust", "accept", f"alice@{'e' * 32}").out
    assert f"it was pinned to {PRINT} since " in out
    assert "e" * 32 in command("trust").out


def test_names_beyond_ascii_are_listed_with_their_punycode(command):
    command("trust", "accept", f"b\u00fccher@{PRINT}")
    command("trust", "accept", f"al ice@{PRINT}")
    assert "'al ice' " in command("trust").out
    assert "(xn--bcher-kva) " in command("trust").out


@pytest.mark.parametrize("text", ["alice", "alice@", f"@{PRINT}", "alice@short", f"\n@{PRINT}"])
def test_what_is_no_full_name(command, tmp_path, text):
    assert "warpgate: " in command("trust", "accept", text, code=2).err
    assert list(tmp_path.iterdir()) == []


def test_pins_in_memory_and_damaged_ones(command, tmp_path, capsys):
    assert main(["trust", "--install-path", ":memory:"]) == 2
    (tmp_path / "known_names").write_text("damage\n")
    for words in (["trust"], ["trust", "remove", "alice"]):
        assert "line 1 is damaged" in command(*words, code=2).err


# Keys.


def test_rotate_keeps_the_old_key_and_warns(command, tmp_path):
    old = command("id").out.splitlines()[0]
    command("trust", "accept", f"alice@{PRINT}")
    answer = command("id", "--rotate")
    new, known_by, *_ = answer.out.splitlines()
    assert new != old
    assert load_or_create(tmp_path).node_id == new
    assert command("id").out == answer.out
    backup = tmp_path / f"identity.key.{old[:8]}.old"
    for text in (
        old,
        str(backup),
        "will refuse the new one",
        known_by.removeprefix("fingerprint: "),
    ):
        assert text in answer.err
    if os.name == "posix":
        for path in (backup, tmp_path / "identity.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Back to the old one, as docs/names.md has it.
    backup.replace(tmp_path / "identity.key")
    assert command("id").out.splitlines()[0] == old
    assert Pins(tmp_path).get("alice") is not None


def test_a_backup_is_a_copy_of_the_file(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    node_id = load_or_create(here).node_id
    elsewhere.mkdir()
    shutil.copy2(here / "identity.key", elsewhere / "identity.key")
    assert load_or_create(elsewhere).node_id == node_id


def test_no_rotation_under_a_running_node(command, tmp_path):
    node_id = command("id").out.splitlines()[0]
    slot = IdentitySlot(tmp_path)
    assert "1 node is running on install_path" in command("id", "--rotate", code=2).err
    slot.close()
    assert load_or_create(tmp_path).node_id == node_id
    assert not (tmp_path / "node-2").exists()
    command("id", "--rotate")
    IdentitySlot(tmp_path).close()


def test_nothing_to_rotate_and_a_damaged_key(command, tmp_path):
    assert "no key file" in command("id", "--rotate", code=2).err
    assert not (tmp_path / "identity.key").exists()
    (tmp_path / "identity.key").write_text("damage")
    assert "is damaged" in command("id", "--rotate", code=2).err
    assert (tmp_path / "identity.key").read_text() == "damage"


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_rotation_that_fails_half_way_loses_no_key(tmp_path, monkeypatch, moment):
    old = load_or_create(tmp_path)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == moment and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(identity_module.os, "fsync", fsync)
    held = old
    with contextlib.suppress(ConfigError):
        _, held, _ = rotate(tmp_path)
    assert load_or_create(tmp_path).node_id == held.node_id
    kept = [
        Identity.from_bytes(identity_module._decode_key(path.read_bytes())).node_id
        for path in tmp_path.glob("identity.key*")
    ]
    assert old.node_id in kept
    assert not list(tmp_path.glob("*.tmp"))


# Sequence numbers.


def test_an_addresss_sequence_grows_though_the_clock_goes_back(tmp_path):
    assert next_sequence(None, 100) == 100
    slot = IdentitySlot(tmp_path)
    assert next_sequence(slot, 100) == 100
    assert next_sequence(slot, 50) == 101
    slot.close()
    slot = IdentitySlot(tmp_path)
    assert next_sequence(slot, 50) == 102
    assert next_sequence(slot, 500) == 500
    for damage in ("x", "-5", str(2**60), "9" * 400):
        (tmp_path / "sequence").write_text(damage)
        assert next_sequence(slot, 600) == 600
    (tmp_path / "sequence").unlink()
    (tmp_path / "sequence").mkdir()
    assert next_sequence(slot, 700) == 700
    slot.close()

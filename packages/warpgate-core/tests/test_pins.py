"""Pins: the file that says which key is behind a name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import warpgate
from warpgate.errors import ConfigError, KeyChangedError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.names import files, pins
from warpgate.names.address_book import AddressBook
from warpgate.names.pins import Pin, Pins
from warpgate.names.rules import fingerprint
from warpgate.names.trust import Trust

ALICE, EVE = "a" * 32, "e" * 32
NOW = 1_790_000_000
TODAY = "2026-09-21"
SOURCE = str(Path(warpgate.__file__).parents[1])


def kept(folder, clock=lambda: NOW):
    return Pins(folder, clock)


def text_of(folder):
    return (folder / "known_names").read_text("utf-8")


@pytest.mark.parametrize("place", ["file", "memory"])
def test_the_first_proof_pins_and_others_are_refused(tmp_path, place):
    known = kept(tmp_path if place == "file" else None)
    assert known.get("alice") is None
    assert known.prove("alice", ALICE, 7) is True
    assert known.prove("alice", ALICE, 5) is False
    assert known.get("alice") == Pin("alice", ALICE, 7, TODAY)
    assert known.prove("alice", ALICE, 9) is False
    assert known.get("alice").sequence == 9
    with pytest.raises(KeyChangedError) as error:
        known.prove("alice", EVE, 99)
    accept = f'warpgate trust --install-path "{tmp_path}" accept alice@{EVE}'
    if place == "memory":
        accept = f"node.trust.pins.accept('alice', '{EVE}')"
    for text in (ALICE, EVE, TODAY, accept):
        assert text in str(error.value)
    assert known.get("alice") == Pin("alice", ALICE, 9, TODAY)
    assert known.accept("alice", EVE) == Pin("alice", ALICE, 9, TODAY)
    assert known.get("alice") == Pin("alice", EVE, 0, TODAY)
    assert known.remove("alice") is True
    assert known.remove("alice") is False
    assert known.all() == []
    assert list(tmp_path.iterdir()) == [] or place == "file"


def test_the_usual_folder_needs_no_option():
    usual = kept(platformdirs.user_data_path("warpgate", appauthor=False))
    assert usual.how_to_accept("alice", EVE) == f"warpgate trust accept alice@{EVE}"
    assert usual.how_to_accept("a b", EVE) == f"warpgate trust accept 'a b@{EVE}'"


def test_accepting_the_same_key_again_keeps_what_is_known():
    known = kept(None)
    known.prove("alice", ALICE, 7)
    known.accept("alice", ALICE)
    assert known.get("alice").sequence == 7


def test_the_file_is_for_people_and_for_this_user_only(tmp_path):
    known = kept(tmp_path / "new" / "folder")
    known.prove("alice", ALICE, 7)
    path = tmp_path / "new" / "folder" / "known_names"
    first, second = path.read_text().splitlines()
    assert first.startswith("# ")
    assert second == f"alice {ALICE} 7 {TODAY}"
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.with_name("known_names.lock").stat().st_mode & 0o777 == 0o600
    assert {each.name for each in path.parent.iterdir()} == {"known_names", "known_names.lock"}


def test_what_people_wrote_is_kept(tmp_path):
    lines = ["# mine", "", f"alice {ALICE} 7 {TODAY}  met at the fair", f"bob {EVE} 1 2020-01-01"]
    (tmp_path / "known_names").write_text("\n".join(lines) + "\n")
    known = kept(tmp_path)
    known.prove("carol", ALICE, 3)
    known.prove("alice", ALICE, 8)
    known.remove("bob")
    assert text_of(tmp_path).splitlines() == [
        "# mine",
        "",
        f"alice {ALICE} 8 {TODAY}  met at the fair",
        f"carol {ALICE} 3 {TODAY}",
    ]


def test_another_process_and_an_editor_are_noticed(tmp_path):
    one, other = kept(tmp_path), kept(tmp_path)
    assert one.get("alice") is None
    other.prove("alice", ALICE, 1)
    assert one.get("alice").fingerprint == ALICE
    other.prove("bob", EVE, 1)
    one.prove("carol", ALICE, 1)
    assert [pin.name for pin in other.all()] == ["alice", "bob", "carol"]
    (tmp_path / "known_names").unlink()
    assert one.all() == other.all() == []


def test_two_processes_pin_at_once_and_lose_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path; from warpgate.names import files\n"
        "from warpgate.names.pins import Pins; files.LOCK_S = 40\n"
        "pins = Pins(Path(sys.argv[1]))\n"
        "for number in range(50): pins.prove(f'{sys.argv[2]}{number}', 'a' * 32, 1)\n"
    )
    env = os.environ | {"PYTHONPATH": SOURCE}
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), who], env=env)
        for who in "xyz"
    ]
    assert [process.wait(50) for process in running] == [0, 0, 0]
    assert len(kept(tmp_path).all()) == 150


def test_of_two_first_proofs_at_once_one_holds(tmp_path):
    known = [kept(tmp_path) for _ in range(8)]
    together, outcomes = threading.Barrier(len(known)), []

    def prove(each, key):
        together.wait()
        try:
            outcomes.append((each.prove("alice", key, 1), key))
        except KeyChangedError:
            outcomes.append((None, key))

    threads = [
        threading.Thread(target=prove, args=(each, letter * 32))
        for each, letter in zip(known, "abcdefgh", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [key for new, key in outcomes if new]
    assert known[0].get("alice").fingerprint == winner
    assert [new for new, _ in outcomes].count(None) == 7


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        f"alice {ALICE}",
        f"alice {ALICE[1:]} 7 {TODAY}",
        f"alice {ALICE} x {TODAY}",
        "\ufeff",
    ],
)
def test_a_damaged_line_is_no_forgotten_pin(tmp_path, line):
    (tmp_path / "known_names").write_text(f"# first\n{line}\n", "utf-8")
    known = kept(tmp_path)
    for act in (
        lambda: known.get("alice"),
        known.all,
        lambda: known.prove("bob", ALICE, 1),
        lambda: known.accept("alice", ALICE),
    ):
        with pytest.raises(ConfigError, match="known_names, line 2 is damaged"):
            act()
    assert text_of(tmp_path) == f"# first\n{line}\n"


def test_a_name_pinned_twice_is_an_error(tmp_path):
    (tmp_path / "known_names").write_text(f"a {ALICE} 1 {TODAY}\na {EVE} 1 {TODAY}\n")
    with pytest.raises(ConfigError, match="line 2: 'a' is pinned twice"):
        kept(tmp_path).get("a")


def test_a_file_that_can_be_no_pins(tmp_path, monkeypatch):
    path = tmp_path / "known_names"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        kept(tmp_path).all()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="known_names"):
        kept(tmp_path).all()
    path.rmdir()
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    path.write_text("#" * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        kept(tmp_path).all()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_a_file_that_others_could_write_to(tmp_path, caplog):
    known = kept(tmp_path)
    known.prove("alice", ALICE, 1)
    known.path.chmod(0o666)
    assert kept(tmp_path).get("alice") is not None
    assert "others could write to" in caplog.text
    assert known.path.stat().st_mode & 0o777 == 0o644


def test_a_lock_that_is_never_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_S", 0.02)
    known = kept(tmp_path)
    with files.locked(known.path), pytest.raises(ConfigError, match="held by another process"):
        known.prove("alice", ALICE, 1)
    assert known.prove("alice", ALICE, 1) is True


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    known = kept(tmp_path)
    known.prove("alice", ALICE, 1)
    before = text_of(tmp_path)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        known.prove("bob", ALICE, 1)
    assert text_of(tmp_path) == before
    assert {each.name for each in tmp_path.iterdir()} == {"known_names", "known_names.lock"}


def test_there_is_an_end_to_pins(monkeypatch):
    monkeypatch.setattr(pins, "MAX_PINS", 2)
    known = kept(None)
    known.prove("a", ALICE, 1)
    known.prove("b", ALICE, 1)
    with pytest.raises(ConfigError, match="2 names are pinned already"):
        known.prove("c", ALICE, 1)
    known.prove("b", ALICE, 2)
    assert [pin.name for pin in known.all()] == ["a", "b"]


@given(st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable() and t == t.strip()))
def test_whatever_a_resolver_knows_can_be_pinned(name):
    line = pins._line(Pin(name, ALICE, 7, TODAY))
    assert pins._pin(line) == Pin(name, ALICE, 7, TODAY)


# The address book.


def test_the_address_book(tmp_path):
    book = AddressBook(tmp_path)
    assert book.find("alice") is None
    node_id = Identity.generate().node_id
    (tmp_path / "address_book").write_text(
        f"# people\n\nalice {node_id}\n Bob  wg1_abc \ncarol carol@{ALICE}\n"
        f"dave nonsense\nerin {node_id} and more\nb@d {node_id}\n"
    )
    assert book.find("alice") == node_id
    assert book.find("bob") == "wg1_abc"
    assert book.find("carol") == f"carol@{ALICE}"
    assert book.find("frank") is None
    for name, line in (("dave", 6), ("erin", 7)):
        with pytest.raises(ConfigError, match=f"address_book, line {line}: expected a name and"):
            book.find(name)
    assert AddressBook(None).find("alice") is None


# What resolution and connecting make of the pins.


@pytest.fixture
def trust():
    return Trust(None, Counters(), lambda: NOW)


def test_only_names_are_pinned(trust, make_address):
    peer = make_address(["10.0.0.1"])
    for dest in (peer, peer.raw, peer.to_text(), peer.node_id):
        assert trust.proven(dest, peer) is None
    assert trust.pins.all() == []
    assert trust.proven("Alice", peer) == "alice"
    assert trust.proven("acme: peer 5", peer) == "acme: peer 5"
    assert [pin.name for pin in trust.pins.all()] == ["acme: peer 5", "alice"]


def test_a_full_name_pins_but_replaces_no_pin(trust, make_address):
    alice, eve = make_address(["10.0.0.1"]), make_address(["10.0.0.2"])
    assert trust.proven(f"alice@{fingerprint(alice.key)}", alice) == "alice"
    assert trust.proven(f"alice@{fingerprint(eve.key)}", eve) is None
    assert trust.pins.get("alice").fingerprint == fingerprint(alice.key)
    trust.check(f"alice@{fingerprint(eve.key)}", eve.key)
    trust.check("alice", alice.key)
    for dest, key in (("alice", eve.key), (f"alice@{fingerprint(eve.key)}", alice.key)):
        with pytest.raises(KeyChangedError):
            trust.check(dest, key)
    with pytest.raises(KeyChangedError):
        trust.proven("alice", eve)


def test_a_pin_that_can_not_be_written_is_counted(tmp_path, make_address, caplog):
    (tmp_path / "folder").write_text("no folder")
    trust = Trust(tmp_path / "folder" / "x", counters := Counters())
    assert trust.proven("alice", make_address(["10.0.0.1"])) is None
    assert counters == {"pins_unwritten": 1}
    assert "could not be pinned" in caplog.text

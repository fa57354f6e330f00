from __future__ import annotations

import base64
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from warpgate import identity as module
from warpgate.errors import ConfigError
from warpgate.identity import (
    KEY_FILE_NAME,
    Identity,
    default_port,
    load_or_create,
    machine_id,
    node_id_bytes,
    node_id_text,
    stack_id,
    verify,
)

SEEDS = bytes(range(64))
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
not_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() == 0, reason="root may read everything"
)


def test_known_keys():
    # RFC 8032 section 7.1, test 1: the signature of the empty message.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    node = Identity.from_bytes(seed + bytes(32))
    assert node.public_key.hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert node.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_bytes_round_trip():
    node = Identity.generate()
    again = Identity.from_bytes(node.to_bytes())
    assert (again.public_key, again.exchange_key) == (node.public_key, node.exchange_key)
    assert len(node.public_key) == len(node.exchange_key) == 32
    assert node.exchange_key == node.exchange_private.public_key().public_bytes_raw()
    assert Identity.generate().public_key != node.public_key
    assert Identity.generate(lambda n: SEEDS[:n]).to_bytes() == SEEDS


def test_the_two_keys_exchange():
    ours, theirs = Identity.generate(), Identity.generate()
    shared = ours.exchange_private.exchange(X25519PublicKey.from_public_bytes(theirs.exchange_key))
    assert shared == theirs.exchange_private.exchange(
        X25519PublicKey.from_public_bytes(ours.exchange_key)
    )


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_from_bytes_wants_64(size):
    with pytest.raises(ValueError, match=f"64 bytes, not {size}"):
        Identity.from_bytes(bytes(size))


def test_repr_holds_no_secret():
    assert repr(Identity.from_bytes(SEEDS)) == (
        "Identity(aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4a)"
    )


def test_verify():
    node = Identity.generate()
    signature = node.sign(b"data")
    assert len(signature) == 64
    assert verify(node.public_key, signature, b"data")
    assert not verify(node.public_key, signature, b"Data")
    assert not verify(Identity.generate().public_key, signature, b"data")
    assert not verify(node.public_key, signature[:-1], b"data")
    assert not verify(node.public_key[:-1], signature, b"data")
    assert not verify(b"", b"", b"data")


@given(st.binary(max_size=40), st.binary(max_size=70), st.binary(max_size=20))
def test_verify_garbage(key, signature, data):
    assert verify(key, signature, data) is False


def test_node_id():
    node = Identity.from_bytes(SEEDS)
    assert node.node_id == "aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4a"
    assert node_id_bytes(node.node_id) == node_id_bytes(node.node_id.upper()) == node.public_key
    with pytest.raises(ValueError, match="31"):
        node_id_text(bytes(31))


@given(st.binary(min_size=32, max_size=32))
def test_node_id_round_trip(key):
    text = node_id_text(key)
    assert len(text) == 52
    assert text == text.lower()
    assert node_id_bytes(text) == key


@pytest.mark.parametrize(
    "text", ["", "alice", "a" * 51, "a" * 53, "1" * 52, "a" * 51 + "b", "é" * 52]
)
def test_node_id_bytes_names_the_value(text):
    with pytest.raises(ValueError, match="no node id") as caught:
        node_id_bytes(text)
    assert repr(text) in str(caught.value)


def test_node_id_bytes_does_not_flood_the_log():
    with pytest.raises(ValueError) as caught:
        node_id_bytes("x" * 10_000)
    assert len(str(caught.value)) < 250


def test_in_memory():
    assert load_or_create(None).public_key != load_or_create(None).public_key


def test_created_once(tmp_path: Path):
    folder = tmp_path / "deep" / "folder"
    first = load_or_create(folder)
    assert load_or_create(folder).to_bytes() == first.to_bytes()
    assert list(folder.iterdir()) == [folder / KEY_FILE_NAME]  # no temporary file stays behind


@posix
def test_created_private(tmp_path: Path):
    old = os.umask(0)
    try:
        load_or_create(tmp_path / "new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / KEY_FILE_NAME).stat().st_mode) == 0o600


@posix
def test_open_mode_is_tightened_with_a_warning(tmp_path: Path, caplog):
    first = load_or_create(tmp_path)
    path = tmp_path / KEY_FILE_NAME
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert load_or_create(tmp_path).to_bytes() == first.to_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(path) in caplog.text
    assert "644" in caplog.text
    caplog.clear()
    load_or_create(tmp_path)
    assert caplog.text == ""


def damaged(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[40] = ord("A") if flipped[40] != ord("A") else ord("B")
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one short": content.rstrip()[:-1],
        "flipped": bytes(flipped),
        "longer": content.rstrip() + b"QUJD\n",
        "text": b"hello",
        "binary": bytes(range(256)),
        "other version": content.replace(b"-1 ", b"-2 "),
        "huge": content * 100,
    }


@pytest.mark.parametrize("kind", damaged(bytes(99)))
def test_damaged_file(tmp_path: Path, kind):
    secret = load_or_create(tmp_path).to_bytes()
    path = tmp_path / KEY_FILE_NAME
    content = damaged(path.read_bytes())[kind]
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_or_create(tmp_path)
    text = str(caught.value)
    assert str(path) in text
    assert "damaged" in text
    assert "backup" in text
    assert path.read_bytes() == content  # never overwritten
    assert base64.b64encode(secret)[:12].decode() not in text


@given(st.binary(max_size=200))
def test_any_file_content_is_a_key_or_damaged(content):
    with pytest.raises(ValueError):
        module._decode_key(content)


def test_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="install_path"):
        load_or_create(tmp_path / "file")


def test_folder_where_the_file_should_be(tmp_path: Path):
    (tmp_path / KEY_FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match=KEY_FILE_NAME):
        load_or_create(tmp_path)


@posix
def test_a_fifo_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / KEY_FILE_NAME)
    with pytest.raises(ConfigError, match="no regular file"):
        load_or_create(tmp_path)


@posix
@not_root
def test_unreadable_file(tmp_path: Path):
    load_or_create(tmp_path)
    (tmp_path / KEY_FILE_NAME).chmod(0)
    with pytest.raises(ConfigError, match="access"):
        load_or_create(tmp_path)


def no_links(*args, **kwargs):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("links", [True, False])
def test_the_first_to_name_the_file_wins(tmp_path: Path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    winner, loser = Identity.generate(), Identity.generate()
    path = tmp_path / KEY_FILE_NAME
    module._create_key(path, winner)
    module._create_key(path, loser)
    assert load_or_create(tmp_path).to_bytes() == winner.to_bytes()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("links", [True, False])
def test_racing_threads_agree(tmp_path: Path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    # All see no file first and create one each, at once.
    missing = threading.Barrier(6)
    read = module._read_key

    def read_together(path):
        try:
            return read(path)
        except FileNotFoundError:
            missing.wait(10)
            raise

    monkeypatch.setattr(module, "_read_key", read_together)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_or_create(tmp_path).to_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert not list(tmp_path.glob("*.tmp"))


RACER = """
import sys
from pathlib import Path
from warpgate.identity import load_or_create
print("ready", flush=True)
for line in sys.stdin:
    print(load_or_create(Path(line.strip())).node_id, flush=True)
"""


def test_racing_processes_agree(tmp_path: Path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(3)
    ]
    try:
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
        for turn in range(20):
            folder = tmp_path / str(turn)
            for racer in racers:
                racer.stdin.write(f"{folder}\n")
                racer.stdin.flush()
            ids = {racer.stdout.readline().strip() for racer in racers}
            assert ids == {load_or_create(folder).node_id}
    finally:
        for racer in racers:
            racer.communicate()
    assert [racer.returncode for racer in racers] == [0, 0, 0]


def test_machine_and_stack_ids():
    assert len(machine_id()) == 32
    assert machine_id() == machine_id()
    assert len(stack_id()) == 16
    assert stack_id() == stack_id()
    assert stack_id() not in machine_id()


def test_machine_id_is_hashed_and_has_a_fallback(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    lines = {"/etc/machine-id": b"0123456789abcdef0123456789abcdef"}
    monkeypatch.setattr(module, "_first_line", lambda path: lines.get(path, b""))
    first = machine_id()
    assert lines["/etc/machine-id"] not in (first, first.hex().encode())
    lines["/var/lib/dbus/machine-id"] = lines.pop("/etc/machine-id")
    assert machine_id() == first
    lines["/etc/machine-id"] = b"uninitialized"
    monkeypatch.setattr(module.uuid, "getnode", lambda: 1)
    second = machine_id()
    monkeypatch.setattr(module.uuid, "getnode", lambda: 2)
    assert len({first, second, machine_id()}) == 3


def test_machine_id_on_macos(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    printed = b'  {\n    "IOPlatformUUID" = "%s"\n    "x" = "y"\n  }'
    uuids = [b"00000000-0000-1000-8000-000000000001", b"00000000-0000-1000-8000-000000000002"]
    found = set()
    for uuid in uuids:
        monkeypatch.setattr(module, "_output", lambda *_, uuid=uuid: printed % uuid)
        found.add(machine_id())
    assert len(found) == 2


def test_stack_id_mixes_machine_and_boot(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    lines = {"/etc/machine-id": b"m" * 32, "/proc/sys/kernel/random/boot_id": b"one"}
    monkeypatch.setattr(module, "_first_line", lambda path: lines.get(path, b""))
    machine, first = machine_id(), stack_id()
    lines["/proc/sys/kernel/random/boot_id"] = b"two"
    assert stack_id() != first
    assert machine_id() == machine
    lines["/proc/sys/kernel/random/boot_id"] = b"one"
    assert stack_id() == first
    lines["/etc/machine-id"] = b"n" * 32
    assert stack_id() != first


def test_output_of_a_missing_command_is_empty():
    assert module._output("no-such-command-anywhere") == b""


@given(st.binary(max_size=32))
def test_default_port(machine):
    assert 10_000 <= default_port(machine) <= 29_999
    assert default_port(machine) == default_port(machine)


def test_default_ports_differ():
    assert len({default_port(bytes([n])) for n in range(100)}) > 90
    assert default_port(SEEDS[:32]) == 25_531

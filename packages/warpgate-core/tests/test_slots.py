"""Which key file a node uses while others run on the same install path."""

from __future__ import annotations

import sys

import pytest

from warpgate.errors import ConfigError
from warpgate.node import slots
from warpgate.node.slots import IdentitySlot


def test_nodes_that_run_at_once_have_a_folder_each(tmp_path):
    first, second = IdentitySlot(tmp_path), IdentitySlot(tmp_path)
    assert (first.folder, first.number) == (tmp_path, 1)
    assert (second.folder, second.number) == (tmp_path / "node-2", 2)
    first.close()
    second.close()


def test_a_folder_is_free_again_after_close(tmp_path):
    first, second = IdentitySlot(tmp_path), IdentitySlot(tmp_path)
    first.close()
    first.close()
    third = IdentitySlot(tmp_path)
    assert third.number == 1
    second.close()
    third.close()


def test_a_new_install_path_is_made_for_its_owner_alone(tmp_path):
    slot = IdentitySlot(tmp_path / "a" / "b")
    assert slot.folder.is_dir()
    if sys.platform != "win32":
        assert slot.folder.stat().st_mode & 0o077 == 0
    slot.close()


def test_a_path_that_cannot_be_written_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        IdentitySlot(tmp_path / "file" / "folder")


def test_there_is_an_end_to_slots(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "MAX_SLOTS", 2)
    held = [IdentitySlot(tmp_path), IdentitySlot(tmp_path)]
    with pytest.raises(ConfigError, match="2 nodes are running"):
        IdentitySlot(tmp_path)
    for slot in held:
        slot.close()

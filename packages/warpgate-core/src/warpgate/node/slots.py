"""Which key file a running node uses.

The first node that runs on an install path has the key in it; further ones that run at the same
time have a key of their own each, in a numbered folder, so that two nodes never share an id.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import IO

from warpgate.errors import ConfigError
from warpgate.names.files import read_text, write_text

log = logging.getLogger("warpgate")

MAX_SLOTS = 1024
SEQUENCE_FILE_NAME = "sequence"
MAX_KEPT_SEQUENCE = 2**48
"""A file that says more is damaged: in Unix seconds this is far away."""


class IdentitySlot:
    """A folder for one node's keys, locked for as long as the node runs.

    Args:
        install_path: the folder that nodes share.
        most: how many nodes may run on it; 1 asks for the key of the folder itself.

    Raises:
        ConfigError: the install path can't be written, or so many nodes are running.

    """

    def __init__(self, install_path: Path, most: int | None = None) -> None:
        self._lock: IO[bytes] | None = None
        most = MAX_SLOTS if most is None else most
        for number in range(1, most + 1):
            folder = install_path if number == 1 else install_path / f"node-{number}"
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                handle = (folder / "in-use").open("ab")
            except OSError as error:
                raise ConfigError(
                    f"install_path {str(install_path)!r} can't be written ({error}); "
                    'name another, or ":memory:"'
                ) from error
            if _try_lock(handle):
                self._lock = handle
                self.folder = folder
                self.number = number
                return
            handle.close()
        raise ConfigError(
            f"{most} node{'s are' if most > 1 else ' is'} running on install_path "
            f"{str(install_path)!r} already"
        )

    def close(self) -> None:
        """Let another node have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def take_slot(install_path: str | Path) -> IdentitySlot | None:
    """Return the slot of a node that starts, None for ``":memory:"``; raises ConfigError as above."""
    if install_path == ":memory:":
        return None
    slot = IdentitySlot(Path(install_path))
    if slot.number > 1:
        log.warning(
            "another node is running on install_path %s; this one has a key of its own in %s",
            install_path,
            slot.folder,
        )
    return slot


def next_sequence(slot: IdentitySlot | None, least: int) -> int:
    """Return an address's next sequence number: ``least``, or more than any before it of the same key.

    It is kept beside the key: peers refuse what is older than they have seen, and a clock that was
    ahead for a day must not make this node unfindable for the next one.
    """
    if slot is None:
        return least
    path, kept = slot.folder / SEQUENCE_FILE_NAME, 0
    with contextlib.suppress(ConfigError, ValueError):
        kept = int(read_text(path)[:20] or 0)
    number = max(least, kept + 1 if 0 <= kept < MAX_KEPT_SEQUENCE else 0)
    try:
        write_text(path, f"{number}\n")
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
    return number


def _try_lock(handle: IO[bytes]) -> bool:
    if sys.platform == "win32":
        import msvcrt

        with contextlib.suppress(OSError):
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""Which key file a running node uses.

The first node that runs on an install path has the key in it; further ones that run at the same
time have a key of their own each, in a numbered folder, so that two nodes never share an id.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import IO

from warpgate.errors import ConfigError

MAX_SLOTS = 1024


class IdentitySlot:
    """A folder for one node's keys, locked for as long as the node runs.

    Raises:
        ConfigError: the install path can't be written.

    """

    def __init__(self, install_path: Path) -> None:
        self._lock: IO[bytes] | None = None
        for number in range(1, MAX_SLOTS + 1):
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
            f"{MAX_SLOTS} nodes are running on install_path {str(install_path)!r} already"
        )

    def close(self) -> None:
        """Let another node have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


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

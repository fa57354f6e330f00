"""Small text files that several processes read and change: locked, atomic, for this user only."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from warpgate.errors import ConfigError

log = logging.getLogger("warpgate")

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
LOCK_S: Final = 1.0
"""How long to wait for another process, which holds the lock for a millisecond."""
_LOCK_RETRY_S: Final = 0.001

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes whenever a file is replaced; None when there is no file."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def read_text(path: Path) -> str:
    """Return a file's text, empty when there is no file.

    Raises:
        ConfigError: it can't be read, is no regular file, is too large or is not UTF-8.

    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:  # O_NONBLOCK: a fifo must not hang us
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is no regular file: move it away")
            if sys.platform != "win32" and mode & 0o022:
                log.warning(
                    "others could write to %s (mode %o): look through it", path, mode & 0o777
                )
                os.fchmod(file.fileno(), stat.S_IMODE(mode) & ~0o022)
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes: move it away")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text: restore it, or move it away") from None


def write_text(path: Path, text: str) -> None:
    """Replace a file at once as far as readers can tell; mode 0600.

    Raises:
        OSError: it can't be written; then the old one is untouched.

    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    until = time.monotonic() + LOCK_S
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            # Windows refuses while another process reads the file, which takes a moment.
            if os.name != "nt" or time.monotonic() > until:
                raise
            time.sleep(_LOCK_RETRY_S)
        else:
            return


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to a file, which is ``<file>.lock`` beside it.

    Raises:
        ConfigError: the folder can't be written, or another process holds the lock for too long.

    """
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock} can't be written ({error.strerror or error})") from error
    try:
        until = time.monotonic() + LOCK_S
        while not _try_lock(descriptor):
            if time.monotonic() > until:
                raise ConfigError(f"{lock} is held by another process for too long")
            time.sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)  # which frees the lock


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

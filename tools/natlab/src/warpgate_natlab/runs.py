"""A laboratory's life: what belongs to it, how it is found and how it goes away, whatever happens.

A run has an id. Its namespaces are called ``wgl-<id>-<role>``, its files lie in its folder, its
processes bear its id in their environment or live in its namespaces. The folder holds a lock that
the owning process keeps; a run whose lock is free is dead. A *guardian*, a process of its own in
its own session, watches the owner and removes everything when the owner closes the run or dies.
When the guardian was killed as well, the next run or ``lab cleanup`` finds the dead run.

This file is also the guardian's program, so it imports nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = Path("/run/warpgate-natlab")
PREFIX: Final = "wgl-"
MARK: Final = "WARPGATE_NATLAB_RUN"
NETNS: Final = Path("/run/netns")
ETC_NETNS: Final = Path("/etc/netns")
ID_LENGTH: Final = 8
KILL_S: Final = 5.0
"""How long killed processes may take to disappear."""
CLOSE_S: Final = 10.0


class Run:
    """One run of the laboratory, from its first namespace to its last.

    Attributes:
        id: 8 hexadecimal digits, unique among the runs of this machine.
        folder: for configuration, sockets and logs; goes with the run.

    """

    def __init__(self) -> None:
        sweep()
        with _all_runs():
            while True:
                self.id = secrets.token_hex(ID_LENGTH // 2)
                self.folder = FOLDER / self.id
                with suppress(FileExistsError):
                    self.folder.mkdir(mode=0o755)
                    break
            self._lock = _lock(self.folder / "lock")
            assert self._lock is not None
        self.owner = os.getpid()
        (self.folder / "owner").write_text(str(self.owner), "ascii")
        self._closed = False
        self.guardian = self._start_guardian()

    def _start_guardian(self) -> subprocess.Popen[bytes]:
        # -S: no site-packages, which it doesn't need and which cost most of its start.
        with (self.folder / "guardian.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, "guard", self.id, str(self.owner)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

    def namespace(self, role: str) -> str:
        """Return the name of this run's namespace for a role."""
        return f"{PREFIX}{self.id}-{role}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment for the run's processes: it marks them."""
        return {**os.environ, MARK: self.id}

    def close(self) -> None:
        """Remove everything; idempotent. Does nothing in a forked child of the owner."""
        if self._closed or os.getpid() != self.owner:
            return
        self._closed = True
        assert self.guardian.stdin is not None
        with suppress(OSError):
            self.guardian.stdin.write(b"x")
            self.guardian.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.guardian.wait(CLOSE_S)
        if self.guardian.poll() != 0:  # it was killed, or it hangs
            self.guardian.kill()
            self.guardian.wait()
            destroy(self.id, spare=(self.owner,))
        assert self._lock is not None
        os.close(self._lock)


def _lock(path: Path) -> int | None:
    """Return the descriptor of a lock that is now ours, or None."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _all_runs() -> Iterator[None]:
    """Keep runs from being made and swept at once."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    with (FOLDER / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep() -> list[str]:
    """Remove what dead runs left.

    Returns:
        The ids of the runs of which something was left.

    """
    gone: list[str] = []
    with _all_runs():
        known = {path.name for path in FOLDER.iterdir() if path.is_dir()}
        for run in sorted(known):
            lock = _lock(FOLDER / run / "lock")
            if lock is not None:
                destroy(run)
                os.close(lock)
                gone.append(run)
        for run in sorted({name.split("-")[1] for name in namespaces()} - known):
            destroy(run)
            gone.append(run)
    return gone


def namespaces(run: str | None = None) -> list[str]:
    """Return the names of the namespaces of one run, or of all."""
    prefix = PREFIX if run is None else f"{PREFIX}{run}-"
    with suppress(FileNotFoundError):
        return sorted(path.name for path in NETNS.iterdir() if path.name.startswith(prefix))
    return []


def processes(run: str) -> list[int]:
    """Return the ids of a run's processes: marked, or living in one of its namespaces."""
    inodes = set()
    for name in namespaces(run):
        with suppress(OSError):
            inodes.add((NETNS / name).stat().st_ino)
    mark = f"{MARK}={run}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        with suppress(OSError):
            if (path / "ns/net").stat().st_ino in inodes or mark in (
                path / "environ"
            ).read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def destroy(run: str, spare: tuple[int, ...] = ()) -> None:
    """Kill a run's processes and remove its namespaces and files; idempotent.

    TUN devices, veth pairs and nftables rules live in the namespaces and go with them.

    Args:
        run: the run's id.
        spare: ids of processes not to kill: the owner, which may be looking into a namespace.

    """
    deadline = time.monotonic() + KILL_S
    while pids := [pid for pid in processes(run) if pid not in spare]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            print(f"processes that can't be killed: {pids}", file=sys.stderr)
            break
        time.sleep(0.005)
    names = namespaces(run)
    if names:
        lines = "".join(f"netns del {name}\n" for name in names)
        subprocess.run(
            ["ip", "-force", "-batch", "-"], input=lines.encode(), capture_output=True, check=False
        )
    for name in names:
        shutil.rmtree(ETC_NETNS / name, ignore_errors=True)
    for path in ETC_NETNS.glob(f"{PREFIX}{run}-*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(FOLDER / run, ignore_errors=True)


def guard(run: str, owner: int) -> None:
    """Wait until the owner closes the run or dies, then remove the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    try:
        poll.register(os.pidfd_open(owner), select.POLLIN)
    except ProcessLookupError:  # it died before we were here
        destroy(run)
        return
    poll.poll()
    destroy(run, spare=(owner,))


if __name__ == "__main__" and sys.argv[1:2] == ["guard"]:
    guard(sys.argv[2], int(sys.argv[3]))

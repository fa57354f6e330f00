"""A real MQTT broker for tests: mosquitto, on a free loopback port, with a configuration of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

START_S: Final = 10.0
POLL_S: Final = 0.01


def find_mosquitto() -> str | None:
    """Return the path of mosquitto's program, or None when it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mosquitto:
    """A mosquitto process; a context manager that stops it in the end.

    Args:
        folder: for its configuration and log.
        lines: configuration that follows the listener's line (options of that listener first).
        port: of the first listener; 0 takes a free one.

    Raises:
        FileNotFoundError: on start, when mosquitto is not installed.
        RuntimeError: on start, when it ends at once or does not listen; the text has its log.

    """

    def __init__(
        self, folder: Path, lines: Sequence[str] = ("allow_anonymous true",), port: int = 0
    ) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._lines = lines
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def url(self) -> str:
        """The URL of the first listener, without TLS."""
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it listens; again after :meth:`kill`, on the same port."""
        program = find_mosquitto()
        if program is None:
            raise FileNotFoundError("mosquitto is not installed")
        conf = self._folder / f"mosquitto-{self.port}.conf"
        log = self._folder / f"mosquitto-{self.port}.log"
        first = f"listener {self.port} 127.0.0.1"
        text = "\n".join(["user root", "log_dest stderr", first, *self._lines, ""])
        conf.write_text(text, encoding="utf-8")
        with log.open("ab") as output:
            self._process = subprocess.Popen([program, "-c", str(conf)], stderr=output)  # noqa: S603
        end = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"mosquitto does not listen: {log.read_text('utf-8')}")
            time.sleep(POLL_S)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it gracefully; idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: it keeps its connections, accepts new ones (the system does) and says nothing."""
        self._paused = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self._paused = False
        self._signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            if self._paused:
                self.resume()
        self._process.wait(START_S)
        self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

"""The engine, seen from outside: its process and its control socket."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .namespaces import LabError

if TYPE_CHECKING:
    from .runs import Run

START_S: Final = 10.0
ANSWER_S: Final = 10.0
STOP_S: Final = 2.0


class Engine:
    """A running engine. It dies with the thread that made it (PR_SET_PDEATHSIG).

    Args:
        run: the run it belongs to.
        config: its description, with names of namespaces.

    Raises:
        LabError: it did not start; the text says why.

    """

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        path = run.folder / "engine.json"
        path.write_text(json.dumps(config, indent=1), "utf-8")
        self._log = run.folder / "engine.log"
        self._lock = threading.Lock()
        self._number = 0
        reader, writer = os.pipe()
        control = run.folder / "engine.sock"
        program = [sys.executable, "-m", "warpgate_natlab.engine", "--config", str(path)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, "--control", str(control), "--ready-fd", str(writer)],
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the laboratory's to handle
                env=run.environ,
            )
        os.close(writer)
        try:
            self._await_ready(reader)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(reader)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(str(control))
        self._file = self._socket.makefile("rb")

    def _await_ready(self, reader: int) -> None:
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([reader], [], [], START_S)[0]:
                raise LabError(f"the engine was not ready within {START_S:g} s: {self.log()}")
            chunk = os.read(reader, 65536)
            if not chunk:
                raise LabError(f"the engine ended before it was ready: {self.log()}")
            line += chunk
        answer = json.loads(line)
        if not answer["ready"]:
            raise LabError(f"the engine does not start: {answer['error']}")

    def log(self) -> str:
        """Return the end of what the engine wrote to its standard streams."""
        with suppress(OSError):
            return self._log.read_text("utf-8", "replace")[-2000:]
        return ""

    def ask(self, op: str, **arguments: Any) -> Any:
        """Carry out one operation of the engine and return its result.

        Raises:
            LabError: the engine refused, or is gone.

        """
        with self._lock:
            self._number += 1
            request = {"id": self._number, "op": op, **arguments}
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
                line = self._file.readline()
            except OSError as error:
                raise LabError(
                    f"the engine does not answer to {op}: {error} {self.log()}"
                ) from error
        if not line:
            raise LabError(f"the engine ended during {op}: {self.log()}")
        answer = json.loads(line)
        if not answer["ok"]:
            raise LabError(f"the engine refused {op}: {answer['error']}")
        return answer.get("result")

    def close(self) -> None:
        """End the engine; its TUN devices go with it."""
        self._file.close()
        self._socket.close()
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

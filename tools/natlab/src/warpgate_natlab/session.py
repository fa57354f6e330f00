"""Two real nodes in a laboratory: starts them, lets one connect to the other, says what happened."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import IO, Any, Final, Self

from .lab import Lab
from .namespaces import LabError

START_S: Final = 20.0
MARGIN_S: Final = 10.0
STOP_S: Final = 4.0
TIMEOUT_S: Final = 20.0


@dataclass
class Result:
    """What became of one connect call.

    Attributes:
        a, b: the networks' names (the pair's name and nothing for a named pair).
        ok: a pipe came up, and the peer answered on it.
        strategy, path, transport: of the winner; None without one.
        connect_s: how long the call took.
        ping_s: from the call to the first answered message; None without a pipe.
        error: why not, in words.
        report: the node's own report, as data.
        signalling: ``mqtt``, or ``none`` where one of the addresses named no broker.
        setup_s: building the laboratory.
        nodes_s: starting both nodes.
        cpu_s, peer_cpu_s: what the call cost the calling and the called process.

    """

    a: str
    b: str
    ok: bool
    strategy: str | None = None
    path: str | None = None
    transport: str | None = None
    connect_s: float | None = None
    ping_s: float | None = None
    error: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    signalling: str = "none"
    setup_s: float = 0.0
    nodes_s: float = 0.0
    cpu_s: float | None = None
    peer_cpu_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


class Peer:
    """A node's process on one host; a context manager.

    Args:
        lab: the laboratory.
        which: ``a`` or ``b``.
        conf: settings over ``NODE_CONF``.
        warm: wait until the node knows its NATs.

    """

    def __init__(
        self, lab: Lab, which: str, conf: dict[str, Any] | None = None, *, warm: bool = True
    ) -> None:
        self.which = which
        self._log = lab.run.folder / f"peer-{which}.log"
        with self._log.open("ab") as log:
            self.process = lab.host(which).popen(
                [sys.executable, "-m", "warpgate_natlab.peer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=lab.environ(which),
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        self._send({"conf": conf or {}, "warm": warm})

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(b"")

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise LabError(f"node {self.which} has ended: {self.log()}") from error

    def answer(self, timeout: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            LabError: the node ended, or it took longer than ``timeout`` seconds.

        """
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise LabError(
                f"node {self.which} was silent for {timeout:g} s: {self.log()}"
            ) from None
        if not line:
            raise LabError(f"node {self.which} has ended: {self.log()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, request: dict[str, Any], timeout: float = START_S) -> dict[str, Any]:
        """Let the node do something (see :mod:`warpgate_natlab.peer`) and return its answer."""
        self._send(request)
        return self.answer(timeout)

    def log(self) -> str:
        """Return the end of what the node wrote to standard error."""
        return self._log.read_text("utf-8", "replace")[-3000:].strip()

    def close(self) -> None:
        """End the node: politely, then not."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()  # the end of its input is its signal to stop
            self.process.wait(STOP_S)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._reader.join(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run_pair(lab: Lab, **options: Any) -> Result:
    """Start a node on each host of a laboratory and let ``a`` connect to ``b`` once.

    Takes what :func:`run_calls` takes, but ``calls``.
    """
    return run_calls(lab, calls=1, **options)[0]


def run_calls(
    lab: Lab,
    *,
    calls: int = 1,
    timeout: float = TIMEOUT_S,
    plugins: Sequence[str] | None = None,
    transport: str | None = None,
    conf: dict[str, Any] | None = None,
    warm: bool = True,
    remember: bool = False,
) -> list[Result]:
    """Start a node on each host of a laboratory and let ``a`` connect to ``b``, several times in turn.

    The address of b's node goes to a's over the processes' pipes; every signal goes through the
    laboratory: over its brokers where it has some, else straight to the peer's listening port.

    Args:
        lab: the laboratory.
        calls: how often a connects; every pipe is closed before the next call.
        timeout: seconds for each connect call.
        plugins: names of the strategies to try; None: all that are installed.
        transport: ``tcp`` or ``udp``; None: either.
        conf: settings of both nodes over ``NODE_CONF``.
        warm: the nodes know their NATs before the first call.
        remember: what worked in one call is tried first in the next.

    Returns:
        A result for each call.

    Raises:
        LabError: a node did not start, or ended.

    """
    names = (lab.a.nics[0].profile.name, lab.b.nics[0].profile.name)
    if " x " not in lab.pair.name:
        names = (lab.pair.name, "")
    settings = {"enable_upnp": any(n.profile.upnp for n in [*lab.a.nics, *lab.b.nics])}
    settings.update(conf or {})
    options = {"plugins": plugins, "transport": transport}
    chosen = {name: value for name, value in options.items() if value is not None}
    results: list[Result] = []
    started = time.perf_counter()
    with Peer(lab, "a", settings, warm=warm) as a, Peer(lab, "b", settings, warm=warm) as b:
        here = a.answer(START_S)
        there = b.answer(START_S)
        nodes_s = time.perf_counter() - started
        for _ in range(calls):
            request = {
                "do": "connect",
                "address": there["address"],
                "timeout": timeout,
                "options": chosen,
                "forget": not remember,
            }
            found = a.ask(request, timeout + MARGIN_S)
            cpu_s, there = there["cpu_s"], b.ask({"do": "address"})
            results.append(
                Result(
                    *names,
                    ok=found["ok"],
                    strategy=found["strategy"],
                    path=found["path"],
                    transport=found["transport"],
                    connect_s=found.get("connect_s"),
                    ping_s=found.get("ping_s"),
                    error=found.get("error", ""),
                    report=found.get("report", {}),
                    signalling="mqtt" if here["brokers"] and there["brokers"] else "none",
                    nodes_s=nodes_s,
                    cpu_s=found.get("cpu_s"),
                    peer_cpu_s=there["cpu_s"] - cpu_s,
                )
            )
    return results

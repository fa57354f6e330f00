"""``python -m warpgate_natlab.engine``: one process that is the network of one laboratory."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from warpgate_natlab.engine.control import Commands, ControlServer
from warpgate_natlab.engine.graph import Graph
from warpgate_natlab.engine.loop import Loop

_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    """Be told by SIGTERM when the parent ends; it may have ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the parent has gone")


def _report(fd: int | None, message: dict[str, Any]) -> None:
    if fd is not None:
        with os.fdopen(fd, "w") as stream:
            stream.write(json.dumps(message) + "\n")


def _stop_on_signals(loop: Loop) -> socket.socket:
    """Have SIGTERM and SIGINT end the loop; the socket returned must outlive it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    loop.watch(ours.fileno(), lambda _: loop.stop())
    return ours


def _quiet_gc() -> None:
    """What is built stays: spare the collector looking at it, and packets make no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _be_punctual() -> None:
    """Go before ordinary processes: under load they would add milliseconds to every delay.

    The kernel keeps 5 % for the others (sched_rt_runtime_us) should we ever run wild.
    """
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
    except OSError:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -15)


def main(argv: list[str] | None = None) -> int:
    """Build, report, forward. Exit status 1: it could not be built."""
    parser = argparse.ArgumentParser(prog="python -m warpgate_natlab.engine", description=__doc__)
    parser.add_argument("--config", required=True, help="JSON file; - for standard input")
    parser.add_argument("--control", required=True, help="path of the control socket")
    parser.add_argument("--ready-fd", type=int, help="descriptor for the line that says ready")
    parser.add_argument("--normal-priority", action="store_true", help="no real-time priority")
    arguments = parser.parse_args(argv)
    _die_with_parent(os.getppid())
    loop = server = None
    try:
        text = sys.stdin.read() if arguments.config == "-" else Path(arguments.config).read_text()
        graph = Graph(json.loads(text))
        loop = Loop(graph)
        server = ControlServer(arguments.control, Commands(loop))
        loop.open_devices(list(graph.devices))
        wakeup = _stop_on_signals(loop)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        _report(arguments.ready_fd, {"ready": False, "error": str(error)})
        print(f"engine: {error}", file=sys.stderr)
        if server is not None:
            server.close()
        if loop is not None:
            loop.close()
        return 1
    _report(arguments.ready_fd, {"ready": True, "pid": os.getpid()})
    _quiet_gc()
    if not arguments.normal_priority:
        _be_punctual()
    try:
        loop.run()
    finally:
        server.close()
        loop.close()
        wakeup.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Starting the NAT laboratory from ``tools/dev.py``; nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.system_packages import DEMO_PACKAGES, has_package, install_packages, is_root, say


def run(python: Path, argv: list[str]) -> int:
    """Carry out a command of the laboratory; return its exit code."""
    process = subprocess.Popen([str(python), "-m", "warpgate_natlab", *argv])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the laboratory has it, too, and takes itself down
            continue


def show_two_nats(python: Path) -> int:
    """Show a connection between two NATs, where this machine can have a laboratory."""
    if sys.platform != "linux" or not is_root():
        say("\nas root on Linux, this command also connects two machines behind two NATs")
        return 0
    reason = install_packages([p for p in DEMO_PACKAGES if not has_package(p)])
    if reason:
        say(f"\nnot shown between two NATs: {reason}")
        return 0
    say("\nthe same between two NATs: network namespaces, 80 ms apart, signals through a broker")
    for pair in (("port-restricted", "port-restricted"), ("symmetric-random", "port-restricted")):
        status = run(python, ["--a", pair[0], "--b", pair[1]])
        if status:
            return status
    return 0

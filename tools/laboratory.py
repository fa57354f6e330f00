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


def show_a_nat(python: Path) -> int:
    """Show a connection through a NAT, where this machine can have a laboratory."""
    if sys.platform != "linux" or not is_root():
        say("\nas root on Linux, this command also connects two machines through a NAT")
        return 0
    reason = install_packages([p for p in DEMO_PACKAGES if not has_package(p)])
    if reason:
        say(f"\nnot shown through a NAT: {reason}")
        return 0
    say("\nthe same through a NAT: two network namespaces, signals through a broker")
    return run(python, ["--a", "open", "--b", "port-restricted", "--servers", "mqtt"])

"""Debian packages for the developer's tools: what is missing, how it gets here, what must not run.

Nothing but the standard library: ``tools/dev.py`` needs it before there is an environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = {
    "build-essential": "cc", "iproute2": "ip", "nftables": "nft", "mosquitto": "mosquitto",
    "coturn": "turnserver", "chrony": "chronyd", "miniupnpd-nftables": "miniupnpd",
}  # fmt: skip
DEMO_PACKAGES = ("iproute2", "nftables", "mosquitto", "coturn")
LAB_PACKAGES = ("iproute2", "nftables", "mosquitto", "coturn", "chrony", "miniupnpd-nftables")
SERVICES = ("mosquitto", "coturn", "chrony", "miniupnpd")
"""What these packages would run on the machine itself; the laboratory starts its own."""
POLICY = Path("/usr/sbin/policy-rc.d")


def say(text: str) -> None:
    """Print a line of our own, at once: the output of commands comes in between."""
    print(text, flush=True)


def is_root() -> bool:
    """Tell whether system packages may be installed."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def has_package(package: str) -> bool:
    """Tell whether what a Debian package is wanted for is here, wherever it came from."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if package == "python3-dev":
        return Path(sysconfig.get_path("include"), "Python.h").exists()
    return shutil.which(COMMANDS[package], path=path) is not None


@contextmanager
def no_services(packages: list[str]) -> Iterator[None]:
    """Keep packages that are being installed from starting their services, now and at boot."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n", "ascii")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink()
        units = [name for name in SERVICES if any(p.startswith(name) for p in packages)]
        if units and shutil.which("systemctl"):
            subprocess.run(["systemctl", "disable", *units], capture_output=True, check=False)


def install_packages(packages: list[str]) -> str:
    """Install Debian packages; return why they are not installed, or nothing."""
    if not packages:
        return ""
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        return f"missing: {names} (by their Debian names; there is no apt-get here)"
    if not is_root():
        return f"missing: {names}; run as root, or: sudo apt-get install {names}"
    say(f"-- apt-get install {names}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with no_services(packages):
        for step in (command, ["apt-get", "update", "-qq"], command):
            done = subprocess.run(step, env=environ, capture_output=True, text=True, check=False)
            if done.returncode == 0 and step is command:
                return ""
    return f"apt-get could not install {names}: {done.stderr.strip()[-300:]}"

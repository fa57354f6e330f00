"""What the tests of this folder share: nodes in other processes, network namespaces, wheels."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEER = HERE / "peer.py"
WAIT_S = 45

# Nodes
# -----


@contextlib.contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process with lines of text on its pipes; it has ended when the block has."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, **options) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


@contextlib.contextmanager
def listening(python: str = sys.executable, prefix: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Run a listening node; give what it said of itself."""
    with process([*prefix, python, str(PEER), "listen"]) as child:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield json.loads(line)
        child.stdin.close()
        assert child.wait(WAIT_S) == 0, child.stderr.read()


def connect(
    address: str, python: str = sys.executable, prefix: Sequence[str] = (), **wish: Any
) -> dict[str, Any]:
    """Connect from a process of its own; return what it said."""
    command = [*prefix, python, str(PEER), "connect"]
    done = subprocess.run(
        command,
        input=json.dumps({"address": address, **wish}) + "\n",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


# Network namespaces
# ------------------

_numbers = itertools.count()
IP = shutil.which("ip", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def why_no_namespaces() -> str:
    """Return why there can be no network namespaces here; empty when there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making a network namespace needs root"
    if IP is None:
        return "there is no ip command (iproute2)"
    name = f"wg-{os.getpid()}-probe"
    made = subprocess.run([IP, "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    subprocess.run([IP, "netns", "delete", name], check=False)
    return ""


class Namespace:
    """A network namespace with its loopback interface up and no way out."""

    def __init__(self) -> None:
        self.name = f"wg-{os.getpid()}-{next(_numbers)}"
        self.prefix = [str(IP), "netns", "exec", self.name]
        ip("netns", "add", self.name)

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` in it."""
        return ip("-netns", self.name, *arguments)

    def settle(self) -> None:
        """Wait until no IPv6 address is tentative (duplicate address detection, RFC 4862)."""
        for _ in range(200):
            if not self.ip("-6", "address", "show", "tentative"):
                return
            time.sleep(0.05)
        raise AssertionError(f"still tentative in {self.name}")


def ip(*arguments: str) -> str:
    """Run ``ip``; return what it printed."""
    done = subprocess.run([str(IP), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Make namespaces, and remove them in any case, with all the interfaces in them."""
    made: list[Namespace] = []
    try:
        for _ in range(count):
            made.append(Namespace())
            made[-1].ip("link", "set", "lo", "up")
        yield made
    finally:
        for space in made:
            subprocess.run([str(IP), "netns", "delete", space.name], check=False)


@contextlib.contextmanager
def joined(*, ipv4: bool = True, ipv6: bool = True) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces on one link; without addresses they have link-local IPv6 ones."""
    with namespaces(2) as (left, right):
        ends = {left: ("left0", "1"), right: ("right0", "2")}
        peer = ["type", "veth", "peer", "name", "right0", "netns", right.name]
        ip("link", "add", "left0", "netns", left.name, *peer)
        for space, (name, number) in ends.items():
            if ipv4:
                space.ip("address", "add", f"192.168.77.{number}/24", "dev", name)
            if ipv6:
                space.ip("address", "add", f"fd77::{number}/64", "dev", name, "nodad")
            space.ip("link", "set", name, "up")
        for space in ends:
            space.settle()
        yield left, right


# Wheels and environments
# -----------------------


def write_wheel(
    folder: Path,
    name: str,
    files: dict[str, str],
    entry_points: dict[str, str],
    version: str = "1.0",
) -> Path:
    """Write a wheel of pure Python, by the binary distribution format."""
    info = f"{name}-{version}.dist-info"
    points = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[warpgate.strategies]\n{points}",
    }
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return wheel


def build_wheel(project: Path, folder: Path) -> Path:
    """Build a project's wheel with its own backend, hatchling."""
    source = folder / "source"
    shutil.copytree(project, source)  # backends may leave files beside what they build
    out = folder / "built"
    if importlib.util.find_spec("hatchling") is not None:
        call([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], source)
    elif shutil.which("uv"):
        call(["uv", "build", "--wheel", "--out-dir", str(out)], source)
    else:
        call([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(out), "."], source)
    (wheel,) = out.glob("*.whl")
    return wheel


def call(command: Sequence[str], folder: Path | None = None, **environ: str) -> str:
    """Run a command that must succeed; return its output."""
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_CONSTRAINT")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


class CommandError(AssertionError):
    """A command failed; the text has what it printed."""


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.uv = shutil.which("uv")
        make = [self.uv, "venv", "-q", "-p"] if self.uv else []
        call(
            [*make, sys.executable, str(folder)]
            if make
            else [sys.executable, "-m", "venv", str(folder)]
        )
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = str(self.scripts / "python")

    def install(self, *what: str | Path) -> None:
        """Install distributions, with what they depend on."""
        pip = [self.uv, "pip", "install", "-q", "-p", self.python] if self.uv else []
        call([*(pip or [self.python, "-m", "pip", "install", "-q"]), *map(str, what)])

    def warpgate(self, *arguments: str, **environ: str) -> str:
        """Run the ``warpgate`` command."""
        return call([str(self.scripts / "warpgate"), *arguments], **environ)


def our(distribution: str) -> Path:
    """Return a distribution's wheel in ``dist/`` when it is as new as its source, else the source."""
    project = ROOT / "packages" / distribution
    wheels = list((ROOT / "dist").glob(f"{distribution.replace('-', '_')}-*.whl"))
    newest = max(path.stat().st_mtime for path in project.glob("src/**/*.py"))
    if len(wheels) == 1 and wheels[0].stat().st_mtime >= newest:
        return wheels[0]
    return project

"""TUN devices inside other network namespaces (Linux, root)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path

from warpgate_natlab.engine.device import DeviceSpec

__all__ = ["TunError", "in_netns", "open_tun", "setup"]

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


class TunError(OSError):
    """A device or its namespace could not be had; the text says which and why."""


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise TunError(code, f"setns: {os.strerror(code)}")


@contextmanager
def in_netns(name: str) -> Iterator[None]:
    """Run the block in a network namespace (this thread, and what it starts).

    Args:
        name: a name in /run/netns, or a path.

    Raises:
        TunError: no such namespace, or no privileges.
    """
    path = Path(name) if "/" in name else Path("/run/netns") / name
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TunError(error.errno, f"namespace {name}: {error.strerror}") from error
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def open_tun(name: str) -> int:
    """Make the TUN device ``name`` in the current namespace; its descriptor, non-blocking.

    The device lives as long as the descriptor. Raises TunError.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TunError(error.errno, f"/dev/net/tun: {error.strerror}") from error
    try:
        flags = _IFF_TUN | _IFF_NO_PI
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise TunError(error.errno, f"device {name}: {error.strerror}") from error
    return fd


def commands(spec: DeviceSpec) -> list[str]:
    """The lines for ``ip -batch`` that set up a device."""
    dev = spec.name
    lines = [
        f"link set dev {dev} addrgenmode none",
        f"link set dev {dev} mtu {spec.mtu} txqueuelen {spec.txqueuelen} up",
    ]
    versions = set()
    for text in spec.addresses:
        version = ip_interface(text).version
        versions.add(version)
        lines.append(f"-{version} addr add {text} dev {dev}{' nodad' if version == 6 else ''}")
    for route in spec.routes:
        if route == "default":
            lines += [f"-{version} route add default dev {dev}" for version in sorted(versions)]
        elif route.startswith("default6"):
            lines.append(f"-6 route add default dev {dev}{route[len('default6') :]}")
        else:
            target = route.split()[0]
            family = "-6 " if ":" in target else ""
            lines.append(f"{family}route add {route} dev {dev}")
    return lines


def setup(specs: Sequence[DeviceSpec]) -> list[int]:
    """Make and configure devices, namespace by namespace; descriptors in the same order.

    Raises:
        TunError: what failed; nothing is left behind then.
    """
    fds: dict[int, int] = {}
    try:
        for netns in dict.fromkeys(spec.netns for spec in specs):
            here = [(n, spec) for n, spec in enumerate(specs) if spec.netns == netns]
            with in_netns(netns):
                lines: list[str] = []
                for number, spec in here:
                    fds[number] = open_tun(spec.name)
                    lines += commands(spec)
                _ip(netns, lines)
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return [fds[number] for number in range(len(specs))]


def _ip(netns: str, lines: list[str]) -> None:
    # One process each family prefix: a batch line cannot carry options of its own.
    batches: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        family, rest = (line[:2], line[3:]) if line.startswith("-") else ("", line)
        batches.setdefault((family,) if family else (), []).append(rest)
    for options, batch in batches.items():
        done = subprocess.run(
            ["ip", *options, "-batch", "-"],
            input="\n".join(batch) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise TunError(0, f"namespace {netns}: ip: {done.stderr.strip()}")

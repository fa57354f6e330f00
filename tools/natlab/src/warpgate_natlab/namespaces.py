"""Network namespaces: making them, entering them, running things in them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .runs import ETC_NETNS, NETNS

if TYPE_CHECKING:
    from .runs import Run

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40
SBIN: Final = ("/usr/sbin", "/sbin")

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The laboratory could not do what was asked; the text says why."""


def command(name: str) -> str | None:
    """Return a program's path, also where root's folders are not on PATH; None when missing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    return shutil.which(name, path=path)


def why_not() -> str:
    """Return the reason why no laboratory can be built here, or an empty text."""
    if sys.platform != "linux":
        return "the NAT laboratory needs Linux"
    if os.geteuid() != 0:
        return "the NAT laboratory needs root (network namespaces and TUN devices)"
    if command("ip") is None:
        return "the NAT laboratory needs the command ip (Debian package iproute2)"
    if not Path("/dev/net/tun").exists():
        return "the NAT laboratory needs /dev/net/tun"
    if _libc.unshare(0) != 0 or not Path("/proc/self/ns/net").exists():
        return "the NAT laboratory needs a kernel with network namespaces"
    return "" if _may_make_namespaces() else "this process may not make network namespaces"


def _may_make_namespaces() -> bool:
    """Try it in a thread: the namespace goes with the thread."""
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(_libc.unshare(CLONE_NEWNET)))
    thread.start()
    thread.join()
    return result == [0]


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace, with this thread only. Sockets keep the namespace they were made in.

    Must not be used around an ``await``: whatever else runs in the thread would be in there, too.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(name)
        try:
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:  # pragma: no cover
                os._exit(70)  # going on in the wrong network would be worse
    finally:
        os.close(home)


def _enter(name: str) -> None:
    there = os.open(NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(there, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise LabError(f"can't enter namespace {name}: {os.strerror(number)}")
    finally:
        os.close(there)


def ip_batch(lines: Iterable[str], name: str | None = None) -> None:
    """Carry out commands of ``ip`` in one process.

    Args:
        lines: the commands, without the leading ``ip``.
        name: the namespace to do it in; None: this one.

    Raises:
        LabError: one of them failed.

    """
    text = "\n".join(lines)
    where = [] if name is None else ["-n", name]
    done = subprocess.run(
        [command("ip") or "ip", *where, "-batch", "-"],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise LabError(
            f"ip failed in {name or 'the root namespace'}:\n{done.stderr.decode()}{text}"
        )


class Namespace:
    """One namespace of a run.

    Attributes:
        role: what it is in the laboratory, such as ``a``.
        name: what ``ip netns`` calls it.

    """

    def __init__(self, run: Run, role: str) -> None:
        self.run_ = run
        self.role = role
        self.name = run.namespace(role)

    def configure(self, *lines: str) -> None:
        """Carry out commands of ``ip`` in here."""
        ip_batch(lines, self.name)

    def sysctl(self, **settings: str | int) -> None:
        """Set kernel parameters of this namespace; ``__`` stands for a dot: ``ipv4__ip_forward=1``."""
        with inside(self.name):
            for key, value in settings.items():
                path = Path("/proc/sys/net") / key.replace("__", "/")
                path.write_text(str(value), "ascii")

    def resolver(self, server: str) -> None:
        """Make programs in here ask this DNS server."""
        folder = ETC_NETNS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        text = f"nameserver {server}\noptions timeout:1 attempts:2\n"
        (folder / "resolv.conf").write_text(text, "ascii")

    def names(self, addresses: Mapping[str, str]) -> None:
        """Let programs in here find these names without a DNS server."""
        folder = ETC_NETNS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in addresses.items())]
        (folder / "hosts").write_text("\n".join(lines) + "\n", "ascii")

    def argv(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Return the command that runs a command in here, with its own /sys and resolv.conf."""
        return [
            command("ip") or "ip",
            "netns",
            "exec",
            self.name,
            *(os.fspath(word) for word in argv),
        ]

    def popen(self, argv: Sequence[str | os.PathLike[str]], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a process in here; arguments as for :class:`subprocess.Popen`."""
        env = {**self.run_.environ, **kwargs.pop("env", {})}
        return subprocess.Popen(self.argv(argv), env=env, **kwargs)

    def run(
        self, argv: Sequence[str | os.PathLike[str]], *, timeout: float = 30, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in here and return what it wrote.

        Args:
            argv: the command.
            timeout: seconds; then it is killed.
            check: raise when it fails.

        Raises:
            LabError: it failed; the text holds its output.
            subprocess.TimeoutExpired: it took too long.

        """
        done = subprocess.run(
            self.argv(argv),
            env=self.run_.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(map(str, argv))} failed:\n{done.stdout}{done.stderr}")
        return done

    def python(
        self, source: str | Path, *args: str, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run Python source text, or the script at a path, in a process in here."""
        program = [str(source)] if isinstance(source, Path) else ["-c", source]
        return self.run([sys.executable, *program, *args], timeout=timeout)

    def call(self, function: Callable[..., T], *args: Any, timeout: float = 30) -> T:
        """Run a function in a thread that lives in here, and return its result.

        Sockets that it makes, also by asyncio in a loop of its own, are in here. To
        ``/proc/self`` it is still this process: a node wants :meth:`python` or :meth:`popen`.

        Raises:
            TimeoutError: it was not back in time; the thread goes on.

        """
        result: list[T] = []
        failure: list[BaseException] = []

        def body() -> None:
            try:
                _enter(self.name)
                result.append(function(*args))
            except BaseException as error:  # noqa: BLE001  # it is raised in the caller's thread
                failure.append(error)

        thread = threading.Thread(target=body, name=f"in {self.name}", daemon=True)
        thread.start()
        thread.join(timeout)
        if failure:
            raise failure[0]
        if not result:
            raise TimeoutError(f"{function!r} took more than {timeout:g} s in {self.name}")
        return result[0]

    def socket(
        self,
        kind: int = socket.SOCK_DGRAM,
        ip: str | None = None,
        port: int = 0,
        *,
        family: int | None = None,
        reuse: bool = False,
    ) -> socket.socket:
        """Return a socket that lives in here, bound when an address is given.

        Args:
            kind: ``SOCK_DGRAM`` or ``SOCK_STREAM``.
            ip: local address; None: not bound unless ``port`` is given.
            port: local port.
            family: address family; None: that of ``ip``, else IPv4.
            reuse: set SO_REUSEADDR and SO_REUSEPORT.

        """
        if family is None:
            family = socket.AF_INET6 if ip is not None and ":" in ip else socket.AF_INET
        with inside(self.name):
            sock = socket.socket(family, kind)
        try:
            if reuse:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if ip is not None or port:
                sock.bind((ip or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        except BaseException:
            sock.close()
            raise
        return sock


def make(run: Run, roles: Iterable[str]) -> dict[str, Namespace]:
    """Make a namespace for each role, with its loopback interface up.

    Raises:
        LabError: the kernel refused.

    """
    made = {role: Namespace(run, role) for role in roles}
    ip_batch(f"netns add {space.name}" for space in made.values())
    for space in made.values():
        # No duplicate address detection: an address would be unusable for its first second.
        space.sysctl(
            ipv6__conf__all__accept_dad=0,
            ipv6__conf__default__accept_dad=0,
            ipv6__conf__default__accept_ra=0,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
        )
        _loopback_up(space)
    return made


def _loopback_up(space: Namespace) -> None:
    with space.socket() as sock:
        # struct ifreq of SIOCSIFFLAGS: name, flags.
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))

"""A real TURN server for tests: coturn, on free loopback ports, with a configuration of its own."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from warpgate.testing.mosquitto import free_port

START_S: Final = 10.0
POLL_S: Final = 0.01
USER: Final = "test"
PASSWORD: Final = "test"  # noqa: S105  # of a server that nobody else reaches
BINDING: Final = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"is it alive?"


def find_coturn() -> str | None:
    """Return the path of coturn's program, or None when it is not installed."""
    return shutil.which("turnserver") or shutil.which("turnserver", path="/usr/sbin:/usr/local/bin")


def make_certificates(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """Write an authority's certificate, and a server's with its key. Needs ``trustme``.

    Args:
        folder: where they are written.
        names: the host names and addresses of the server; those of loopback when there are none.

    Returns:
        The paths of the authority's certificate, the server's and its key, for ``ca_file`` and for
        ``Coturn(certificate=…)``.

    Raises:
        ModuleNotFoundError: trustme is not installed.

    """
    issuer: Any = importlib.import_module("trustme").CA()
    server = issuer.issue_cert(*(names or ("127.0.0.1", "::1")))
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    issuer.cert_pem.write_to_path(str(paths[0]))
    server.cert_chain_pems[0].write_to_path(str(paths[1]))
    server.private_key_pem.write_to_path(str(paths[2]))
    return paths


class Coturn:
    """A coturn process; a context manager that ends it.

    It relays to peers on loopback, over UDP, TCP and (with a certificate) TLS.

    Args:
        folder: for its configuration and log.
        lines: further configuration.
        accounts: how users are known; one with ``USER`` and ``PASSWORD`` by default.
        certificate: the paths of a certificate and its key, for TLS.
        hosts: the addresses that it listens on and relays from.
        port: for UDP and TCP; 0 takes a free one.

    Raises:
        FileNotFoundError: on start, when coturn is not installed.
        RuntimeError: on start, when it ends at once or does not answer; the text has its log.

    """

    def __init__(
        self,
        folder: Path,
        lines: Sequence[str] = (),
        *,
        accounts: Sequence[str] = ("lt-cred-mech", f"user={USER}:{PASSWORD}"),
        certificate: tuple[Path, Path] | None = None,
        hosts: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
    ) -> None:
        self.port = port or free_port()
        self.tls_port = free_port()
        self._folder = folder
        self._lines = [*accounts, *lines]
        self._hosts = hosts
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"turn-{self.port}.log"

    def url(self, transport: str = "udp", *, host: str = "", login: str = "") -> str:
        """Return the URL for ``turn_servers``: over ``udp``, ``tcp`` or ``tls``."""
        secure = transport == "tls"
        host = host or self._hosts[0]
        place = f"[{host}]" if ":" in host else host
        port = self.tls_port if secure else self.port
        login = login or f"{USER}:{PASSWORD}"
        return f"turn{'s' if secure else ''}:{login}@{place}:{port}?transport={transport}"

    def log(self) -> str:
        """Return what it has logged; with ``verbose`` among the lines that is a good deal."""
        return self._log.read_text("utf-8", "replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers; again after :meth:`kill`, on the same ports."""
        program = find_coturn()
        if program is None:
            raise FileNotFoundError("coturn is not installed")
        name = f"turn-{self.port}"
        conf, log = self._folder / f"{name}.conf", self._log
        lines = [f"listening-port={self.port}", f"tls-listening-port={self.tls_port}"]
        lines += [f"{kind}-ip={host}" for host in self._hosts for kind in ("listening", "relay")]
        lines += [
            "realm=test", "fingerprint", "allow-loopback-peers", "no-cli", "no-dtls",
            "no-rfc5780", "relay-threads=1", "log-file=stdout", "simple-log", "no-multicast-peers",
            f"pidfile={self._folder / name}.pid", f"userdb={self._folder / name}.db",
        ]  # fmt: skip
        if self._certificate is None:
            lines.append("no-tls")
        else:
            lines += [f"cert={self._certificate[0]}", f"pkey={self._certificate[1]}"]
        conf.write_text("\n".join([*lines, *self._lines, ""]), encoding="utf-8")
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [program, "-c", str(conf)], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, cwd=self._folder,
            )  # fmt: skip
        end = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"coturn does not answer: {self.log()}")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        host = self._hosts[0]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.1)
            try:
                sock.connect((host, self.port))
                sock.send(BINDING)
                sock.recv(1000)
                socket.create_connection((host, self.port), timeout=1).close()
                if self._certificate is not None:
                    socket.create_connection((host, self.tls_port), timeout=1).close()
            except OSError:
                return False
        return True

    def kill(self) -> None:
        """End it as a crash would: it forgets all allocations. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(START_S)

    def pause(self) -> None:
        """Let it hang: packets reach it and are not answered; :meth:`kill` ends it all the same."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(
            self._process.pid, os.WUNTRACED
        )  # it stops a moment later, and answers until then

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

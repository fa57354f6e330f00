"""Real servers on the internet side, each only when a laboratory asks for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .authority import make_authority
from .dns64 import ZONE
from .namespaces import LabError, Namespace, command
from .profiles import NAT64_PREFIX
from .topology import BROKERS, DNS, NTP, STUN, server_v6

if TYPE_CHECKING:
    from .runs import Run
    from .topology import Router

KINDS: Final = ("mqtt", "stun", "ntp", "dns")
"""What can be asked for: two mosquitto, one coturn (STUN and TURN), one chrony, one DNS64."""
TURN_USER: Final = "lab"
TURN_PASSWORD: Final = "lab"
READY_S: Final = 8.0
BROKER_NAMES: Final = tuple(f"broker{number}.lab" for number in range(len(BROKERS)))
PACKAGES: Final = {
    "mosquitto": "mosquitto", "turnserver": "coturn", "chronyd": "chrony",
    "miniupnpd": "miniupnpd-nftables",
}  # fmt: skip
HTTPS: Final = 443


class Servers:
    """The servers of one laboratory.

    Attributes:
        started: names of the kinds that run.
        ca_file: the certificate that signs their certificates; None: nothing speaks TLS here.

    """

    def __init__(
        self,
        run: Run,
        net: Namespace,
        nat64_prefix: str = NAT64_PREFIX,
        relays: Iterable[int] = (4, 6),
    ) -> None:
        self._run = run
        self._net = net
        self._nat64_prefix = nat64_prefix
        self._relay_ips = [STUN[0] if version == 4 else server_v6(STUN[0]) for version in relays]
        self._processes: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self.started: set[str] = set()
        self.ca_file: Path | None = None
        self._certificate: tuple[Path, Path] | None = None

    # What they are reached by.

    def brokers(
        self, families: Iterable[int] = (4,), https: bool = False, named: bool = False
    ) -> list[str]:
        """Return the brokers' URLs, for a host with these IP versions; ``named``: by their names."""
        if "mqtt" not in self.started:
            return []
        hosts = list(BROKER_NAMES) if named else [_reachable(a, families) for a in BROKERS]
        if https:
            return [f"mqtts://{host}:{HTTPS}" for host in hosts]
        return [f"mqtt://{host}:1883" for host in hosts]

    def stun(self, families: Iterable[int] = (4,)) -> list[str]:
        """Return the STUN server's two addresses, ``host:port``; the second one is for RFC 5780."""
        if "stun" not in self.started:
            return []
        return [f"{_reachable(address, families)}:3478" for address in STUN]

    def turn(self, families: Iterable[int] = (4,)) -> list[str]:
        """Return the TURN server's URLs: UDP, TCP, TLS, and TLS on port 443."""
        if "stun" not in self.started:
            return []
        base = f"{TURN_USER}:{TURN_PASSWORD}@{_reachable(STUN[0], families)}"
        return [
            f"turn:{base}:3478?transport=udp",
            f"turn:{base}:3478?transport=tcp",
            f"turns:{base}:5349",
            f"turns:{base}:{HTTPS}",
        ]

    def ntp(self, families: Iterable[int] = (4,)) -> list[str]:
        """Return the time server, ``host:port``."""
        return [f"{_reachable(NTP, families)}:123"] if "ntp" in self.started else []

    # Their life.

    def start(self, kinds: Iterable[str]) -> None:
        """Start servers and wait until each answers.

        Raises:
            ValueError: there is no such kind.
            LabError: a program is missing or does not start.

        """
        wanted = [kind for kind in dict.fromkeys(kinds) if kind not in self.started]
        unknown = [kind for kind in wanted if kind not in KINDS]
        if unknown:
            raise ValueError(f"no server {unknown[0]!r}; there are: {', '.join(KINDS)}")
        if {"mqtt", "stun"} & set(wanted) and self.ca_file is None:
            addresses = [*BROKERS, *STUN]
            self.ca_file, *pair = make_authority(
                self._run.folder,
                [*addresses, *map(server_v6, addresses)],
                [*BROKER_NAMES, *(name for name in ZONE if name.endswith(".lab"))],
            )
            self._certificate = (pair[0], pair[1])
        for kind in wanted:
            getattr(self, f"_start_{kind}")()
        for kind in wanted:
            getattr(self, f"_await_{kind}")()
            self.started.add(kind)

    def _start_mqtt(self) -> None:
        assert self._certificate is not None
        lines = [
            "per_listener_settings false",
            "allow_anonymous true",
            "persistence false",
            "set_tcp_nodelay true",
            "user root",
            "log_dest stderr",
        ]
        for number, address in enumerate(BROKERS):
            listeners = []
            for host in (address, server_v6(address)):
                listeners += [f"listener 1883 {host}", f"listener {HTTPS} {host}"]
                listeners += [f"certfile {self._certificate[0]}", f"keyfile {self._certificate[1]}"]
            config = self._write(f"mosquitto{number}.conf", [*lines, *listeners])
            self._launch(f"mosquitto{number}", ["mosquitto", "-c", str(config)])

    def _await_mqtt(self) -> None:
        for address in BROKERS:
            self._await_stream(address, 1883)

    def _start_stun(self) -> None:
        assert self._certificate is not None
        lines = [f"listening-ip={ip}" for ip in (*STUN, *map(server_v6, STUN))]
        lines += [f"relay-ip={ip}" for ip in self._relay_ips]
        lines += [f"aux-server={STUN[0]}:{HTTPS}", f"aux-server=[{server_v6(STUN[0])}]:{HTTPS}"]
        lines += [
            "listening-port=3478", "alt-listening-port=3479",
            "tls-listening-port=5349", "alt-tls-listening-port=5350",
            "lt-cred-mech", f"user={TURN_USER}:{TURN_PASSWORD}", "realm=lab", "fingerprint",
            f"cert={self._certificate[0]}", f"pkey={self._certificate[1]}", "no-cli",
            "no-multicast-peers", "relay-threads=1", "log-file=stdout", "simple-log", "no-dtls",
            f"pidfile={self._run.folder}/turn.pid", f"userdb={self._run.folder}/turn.db",
        ]  # fmt: skip
        config = self._write("turn.conf", lines)
        self._launch("turnserver", ["turnserver", "-c", str(config)])

    def _await_stun(self) -> None:
        request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"natlab-probe"
        self._await_datagram(STUN[0], 3478, request)
        self._await_datagram(STUN[1], 3478, request)
        self._await_stream(STUN[0], HTTPS)

    def _start_ntp(self) -> None:
        folder = self._run.folder
        lines = [
            "local stratum 1", "allow all", f"bindaddress {NTP}", f"bindaddress {server_v6(NTP)}",
            "cmdport 0", "bindcmdaddress /", f"pidfile {folder}/chrony.pid",
        ]  # fmt: skip
        config = self._write("chrony.conf", lines)
        # -x: leave this machine's clock alone.
        self._launch("chronyd", ["chronyd", "-d", "-x", "-u", "root", "-f", str(config)])

    def _await_ntp(self) -> None:
        self._await_datagram(NTP, 123, b"\x23" + bytes(47))

    def _start_dns(self) -> None:
        program = Path(__file__).with_name("dns64.py")
        hosts = [DNS, server_v6(DNS)]
        argv = [sys.executable, "-I", "-S", str(program), self._nat64_prefix, *hosts]
        self._launch("dns64", argv)

    def _await_dns(self) -> None:
        query = b"\0\1\1\0\0\1\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x1c\0\1"
        self._await_datagram(DNS, 53, query)

    def start_upnp(self, namespace: Namespace, router: Router) -> None:
        """Start miniupnpd on a kernel NAT; it answers discovery when this returns."""
        number = int(self._run.id, 16)
        lines = [
            "ext_ifname=wan0", f"listening_ip={router.address}/24", "http_port=5000",
            "enable_upnp=yes", "enable_natpmp=yes", "min_lifetime=120",
            "max_lifetime=86400", "secure_mode=yes", "system_uptime=yes", "notify_interval=60",
            f"uuid=00000000-0000-4000-8000-{number:012x}", "serial=1", "model_number=1",
            f"lease_file={self._run.folder}/{router.role}.leases",
            "upnp_table_name=filter", "upnp_nat_table_name=filter",
            "upnp_forward_chain=miniupnpd", "upnp_nat_chain=prerouting_miniupnpd",
            "upnp_nat_postrouting_chain=postrouting_miniupnpd",
            f"allow 1024-65535 {router.address}/24 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535",
        ]  # fmt: skip
        config = self._write(f"miniupnpd-{router.role}.conf", lines)
        pid = self._run.folder / f"miniupnpd-{router.role}.pid"
        argv = ["miniupnpd", "-d", "-f", str(config), "-P", str(pid)]
        self._launch(f"miniupnpd-{router.role}", argv, namespace)
        self._await_stream(router.address, 5000, namespace)

    def start_portal(
        self, namespace: Namespace, name: str, argv: list[str], listens: tuple[str, int]
    ) -> None:
        """Start a captive portal's server in a namespace; it listens when this returns."""
        self._launch(name, argv, namespace)
        self._await_stream(*listens, namespace)

    def close(self) -> None:
        """End them all."""
        for _, process, _ in self._processes:
            process.terminate()
        deadline = time.monotonic() + 0.3
        for _, process, _ in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:  # coturn takes its time; nothing is lost
                process.kill()
                process.wait()
        self._processes.clear()

    # Helpers.

    def _write(self, name: str, lines: list[str]) -> Path:
        path = self._run.folder / name
        path.write_text("\n".join(lines) + "\n", "ascii")
        return path

    def _launch(self, name: str, argv: list[str], where: Namespace | None = None) -> None:
        program = command(argv[0])
        if program is None:
            package = PACKAGES.get(argv[0], argv[0])
            raise LabError(f"the command {argv[0]} is missing (Debian package {package})")
        log = self._run.folder / f"{name}.log"
        with log.open("wb") as file:
            process = (where or self._net).popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._run.folder,
                start_new_session=True,
            )
        self._processes.append((name, process, log))

    def _check(self, what: str, deadline: float) -> None:
        for name, process, log in self._processes:
            if process.poll() is not None:
                text = log.read_text("utf-8", "replace")[-1500:]
                raise LabError(f"{name} ended with {process.returncode}:\n{text}")
        if time.monotonic() > deadline:
            texts = [f"{name}: {log.read_text('utf-8', 'replace')[-500:]}"
                     for name, _, log in self._processes]  # fmt: skip
            raise LabError(f"{what} does not answer after {READY_S:g} s\n" + "\n".join(texts))
        time.sleep(0.01)

    def _await_stream(self, host: str, port: int, where: Namespace | None = None) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            with (where or self._net).socket(socket.SOCK_STREAM) as sock:
                sock.settimeout(0.5)
                if sock.connect_ex((host, port)) == 0:
                    return
            self._check(f"{host}:{port}", deadline)

    def _await_datagram(self, host: str, port: int, request: bytes) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            with self._net.socket() as sock:
                sock.settimeout(0.05)
                sock.connect((host, port))
                try:
                    sock.send(request)
                    sock.recv(2048)
                except OSError:
                    self._check(f"{host}:{port}", deadline)
                else:
                    return


def broker_addresses(families: Iterable[int]) -> dict[str, str]:
    """Return the brokers' addresses by name, for a host with these IP versions."""
    found = [a if 4 in families else server_v6(a) for a in BROKERS]
    return dict(zip(BROKER_NAMES, found, strict=True))


def _reachable(address: str, families: Iterable[int]) -> str:
    return address if 4 in families else f"[{server_v6(address)}]"


def missing_packages(kinds: Iterable[str] = KINDS, kernel: bool = True) -> list[str]:
    """Return the Debian packages that a laboratory with everything still needs here."""
    programs = {"mqtt": "mosquitto", "stun": "turnserver", "ntp": "chronyd"}
    wanted = [programs[kind] for kind in kinds if kind in programs]
    missing = [PACKAGES[name] for name in wanted if command(name) is None]
    if kernel:
        missing += ["miniupnpd-nftables"] if command("miniupnpd") is None else []
        missing += ["nftables"] if command("nft") is None else []
    return missing + (["iproute2"] if command("ip") is None else [])

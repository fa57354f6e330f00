"""How fast and how punctual the engine is: ``python tools/natlab/bench_engine.py`` (root, Linux).

Two hosts, a symmetric NAT and a router between them, 20 ms each way: prints packets a second
forwarded when flooded, the CPU it took, and by how much probes are late at a calm rate.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
DELAY_S = 0.020


def socket_in(netns: str, addr: str, port: int) -> socket.socket:
    """A UDP socket of another namespace."""
    made: list[socket.socket] = []

    def enter() -> None:
        fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        if ctypes.CDLL(None).setns(fd, CLONE_NEWNET):
            raise OSError("setns failed")
        os.close(fd)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind((addr, port))
        made.append(sock)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


def config(tag: str) -> dict[str, object]:
    """The network."""
    device = {"name": "eth0", "routes": ["default"]}
    return {
        "devices": {
            "a": device | {"netns": f"{tag}-a", "addresses": ["192.168.1.2/24"]},
            "b": device | {"netns": f"{tag}-b", "addresses": ["198.51.100.1/24"]},
        },
        "nodes": {
            "nat": {
                "type": "nat",
                "external": ["203.0.113.10"],
                "mapping": "address-and-port-dependent",
                "allocation": "random",
            },
            "inet": {
                "type": "router",
                "routes": {"nat": ["203.0.113.10/32"], "b": ["198.51.100.0/24"]},
            },
        },
        "links": {
            "lan": {"a": "a", "b": "nat:in"},
            "access": {"a": "nat:out", "b": "inet:nat", "both": {"delay_ms": DELAY_S * 1000}},
            "srv": {"a": "inet:b", "b": "b"},
        },
    }


def cpu_s(pid: int) -> float:
    """Seconds of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def receive(sock: socket.socket, arrivals: list[tuple[bytes, float]]) -> None:
    """Note arrivals, by the kernel's own clock, until half a second of silence."""
    sock.settimeout(0.5)
    try:
        while True:
            data, ((_, _, stamp),), _, _ = sock.recvmsg(64, 64)
            seconds, nanos = struct.unpack("=qq", stamp)
            arrivals.append((data, seconds + nanos / 1e9))
    except TimeoutError:
        pass


def run(a: socket.socket, b: socket.socket, rate: int, number: int) -> list[tuple[float, float]]:
    """Send ``number`` packets, ``rate`` a second; (sent, arrived) of each that came through."""
    arrivals: list[tuple[bytes, float]] = []
    thread = threading.Thread(target=receive, args=(b, arrivals))
    thread.start()
    began = time.monotonic()
    sent = []
    for n in range(number):
        due = began + n / rate
        while (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        sent.append(time.time())
        a.sendto(n.to_bytes(8, "big"), ("198.51.100.1", 99))
    thread.join()
    return [(sent[int.from_bytes(data, "big")], at) for data, at in arrivals]


def ask(control: str, op: str) -> Any:
    """One question to the engine."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as stream:
        sock.connect(control)
        stream.write(json.dumps({"op": op}) + "\n")
        stream.flush()
        return json.loads(stream.readline())["result"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=30_000, help="packets of the flood")
    parser.add_argument("--rate", type=int, default=15_000, help="packets a second offered")
    parser.add_argument("--normal-priority", action="store_true", help="see the engine")
    arguments = parser.parse_args()
    tag = f"wgb-{secrets.token_hex(3)}"
    spaces = [f"{tag}-a", f"{tag}-b"]
    process = None
    try:
        for name in spaces:
            subprocess.run(["ip", "netns", "add", name], check=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "engine.json"
            file.write_text(json.dumps(config(tag)))
            command = [sys.executable, "-m", "warpgate_natlab.engine", "--config", str(file)]
            command += ["--control", f"{folder}/sock", "--ready-fd", "1"]
            command += ["--normal-priority"] * arguments.normal_priority
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            print("ready:", process.stdout.readline().strip())
            a = socket_in(spaces[0], "192.168.1.2", 5000)
            b = socket_in(spaces[1], "198.51.100.1", 99)
            with a, b:
                calm = run(a, b, 500, 1000)
                late = sorted((at - sent - DELAY_S) * 1000 for sent, at in calm)
                print(
                    f"calm, 500/s: {len(calm)} of 1000 through, late by median "
                    f"{statistics.median(late):.3f} ms, p99 {late[int(len(late) * 0.99)]:.3f} ms, "
                    f"worst {late[-1]:.3f} ms"
                )
                before = cpu_s(process.pid)
                worst = ask(f"{folder}/sock", "ping")["late_max_ms"]
                print(f"the engine itself: late by {worst:.3f} ms at worst")
                flood = run(a, b, arguments.rate, arguments.number)
                spent = cpu_s(process.pid) - before
                took = flood[-1][1] - flood[0][1]
                print(
                    f"flood: {len(flood)} of {arguments.number} through, "
                    f"{len(flood) / took:.0f} packets/s, {spent / len(flood) * 1e6:.0f} us of CPU each"
                )
    finally:
        if process is not None:
            process.terminate()
            process.wait(10)
        for name in spaces:
            subprocess.run(["ip", "netns", "del", name], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The engine as a process: real TUN devices in real namespaces, driven over its socket."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def why_not() -> str | None:
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    name = f"wge-{secrets.token_hex(4)}"
    try:
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    except OSError as error:
        return f"ip: {error}"
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@pytest.fixture(scope="module")
def allowed() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("allowed")]


@pytest.fixture
def spaces() -> Iterator[dict[str, str]]:
    tag = secrets.token_hex(3)
    names = {key: f"wge-{tag}-{key}" for key in ("a", "b")}
    try:
        for name in names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)


def config(spaces: dict[str, str], **link: object) -> dict[str, Any]:
    return {
        "seed": 3,
        "devices": {
            "a": {
                "netns": spaces["a"], "name": "eth0",
                "addresses": ["192.168.1.2/24", "2001:db8:1::2/64"], "routes": ["default"],
            },
            "b": {"netns": spaces["b"], "name": "eth0", "addresses": ["198.51.100.1/24"],
                  "routes": ["default"]},
        },
        "nodes": {
            "nat": {"type": "nat", "external": ["203.0.113.10"], "allocation": "random"},
            "inet": {"type": "router", "addresses": ["203.0.113.1"],
                     "routes": {"nat": ["203.0.113.10/32"], "b": ["198.51.100.0/24"]}},
        },
        "links": {
            "lan": {"a": "a", "b": "nat:in"},
            "access": {"a": "nat:out", "b": "inet:nat", "both": link},
            "srv": {"a": "inet:b", "b": "b"},
        },
    }  # fmt: skip


class Engine:
    def __init__(self, process: subprocess.Popen[bytes], control: Path) -> None:
        self.process = process
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(control))
        self.stream = self.sock.makefile("rw")

    def call(self, op: str, **arguments: object) -> Any:
        self.stream.write(json.dumps({"id": 1, "op": op, **arguments}) + "\n")
        self.stream.flush()
        answer = json.loads(self.stream.readline())
        assert answer["id"] == 1
        if not answer["ok"]:
            raise ValueError(answer["error"])
        return answer["result"]


def start(conf: dict[str, Any], folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    read, write = os.pipe()
    (folder / "engine.json").write_text(json.dumps(conf))
    command = [sys.executable, "-m", "warpgate_natlab.engine"]
    command += ["--config", str(folder / "engine.json"), "--control", str(folder / "sock")]
    command += ["--ready-fd", str(write)]
    process = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as stream:
        return process, json.loads(stream.readline())


@contextmanager
def engine(conf: dict[str, Any], folder: Path) -> Iterator[Engine]:
    process, ready = start(conf, folder)
    try:
        assert ready == {"ready": True, "pid": process.pid}
        made = Engine(process, folder / "sock")
        with made.sock, made.stream:
            yield made
    finally:
        process.terminate()
        process.wait(10)


def in_space(name: str, call: Callable[[], Any]) -> Any:
    """Run ``call`` in a thread that has entered a namespace."""
    result: list[Any] = []

    def run() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        assert ctypes.CDLL(None).setns(fd, 0x40000000) == 0
        os.close(fd)
        result.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def udp(space: str, addr: str, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((addr, port))
        sock.settimeout(5)
        return sock

    made: socket.socket = in_space(space, make)
    return made


def devices(space: str) -> set[str]:
    done = subprocess.run(
        ["ip", "-n", space, "-j", "link"], check=True, capture_output=True, text=True
    )
    return {link["ifname"] for link in json.loads(done.stdout)}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_packets_cross_and_devices_vanish(spaces: dict[str, str], tmp_path: Path) -> None:
    with engine(config(spaces, delay_ms=20), tmp_path) as e:
        with udp(spaces["a"], "192.168.1.2", 5000) as a, udp(spaces["b"], "198.51.100.1", 99) as b:
            began = time.monotonic()
            a.sendto(b"hello", ("198.51.100.1", 99))
            data, source = b.recvfrom(100)
            b.sendto(b"back", source)
            assert a.recv(100) == b"back"
            assert time.monotonic() - began >= 0.040
        assert data == b"hello"
        assert source[0] == "203.0.113.10"
        (mapping,) = [m for m in e.call("mappings", node="nat") if m["proto"] == "udp"]
        assert mapping["inside"] == ["192.168.1.2", 5000]
        assert mapping["outside"] == list(source)
        assert "eth0" in devices(spaces["a"])
        e.call("stop")
        assert e.process.wait(10) == 0
    assert "eth0" not in devices(spaces["a"])
    assert not (tmp_path / "sock").exists()


def test_tcp_works_through_the_kernel(spaces: dict[str, str], tmp_path: Path) -> None:
    body = os.urandom(200_000)

    def listen() -> socket.socket:
        sock = socket.create_server(("198.51.100.1", 80))
        sock.settimeout(5)
        return sock

    with engine(config(spaces, delay_ms=5), tmp_path), in_space(spaces["b"], listen) as server:
        client = in_space(spaces["a"], lambda: socket.create_connection(("198.51.100.1", 80), 5))
        peer, _ = server.accept()
        peer.settimeout(5)
        with client, peer:
            sender = threading.Thread(target=client.sendall, args=(body,))
            sender.start()
            got = bytearray()
            while len(got) < len(body):
                got += peer.recv(65536)
            sender.join()
    assert bytes(got) == body


def test_control(spaces: dict[str, str], tmp_path: Path) -> None:
    with engine(config(spaces), tmp_path) as e:
        assert e.call("ping")["pid"] == e.process.pid
        assert e.call("set_link", link="access", dir="ab", params={"loss": 1})["ab"]["loss"] == 1
        e.call("set_link", link="access", params={"loss": 0})
        with udp(spaces["a"], "192.168.1.2", 5000) as a, udp(spaces["b"], "198.51.100.1", 99) as b:
            there = ("198.51.100.1", 99)
            e.call("pcap_start", link="srv", file=str(tmp_path / "srv.pcap"))
            a.sendto(b"1", there)
            b.recv(10)
            e.call("cut", link="access")
            a.sendto(b"2", there)
            wait_until(lambda: e.call("stats", name="access")["ab"]["drops"] == {"cut": 1})
            e.call("restore", link="access")
            a.sendto(b"3", there)
            _, old = b.recvfrom(10)
            assert e.call("reboot", node="nat") == {"forgotten": 1}
            a.sendto(b"4", there)
            _, new = b.recvfrom(10)
            assert new != old
            assert e.call("readdress", node="nat", external=["203.0.113.77"]) == {"forgotten": 1}
            a.sendto(b"5", there)
            data, source = b.recvfrom(10)
            assert (data, source[0]) == (b"5", "203.0.113.77")
            b.sendto(b"6", source)
            assert a.recv(10) == b"6"
        assert e.call("pcap_stop", link="srv") == {"packets": 5}
        assert (tmp_path / "srv.pcap").stat().st_size == 24 + 5 * (16 + 29)
        hosts = e.call("stats", name="nat")["hosts"]
        assert hosts["192.168.1.2"]["flows"] == 1
        for request, text in (
            ({"op": "fly"}, "unknown op"),
            ({"op": "cut", "link": "nowhere"}, "nowhere"),
            ({"op": "cut"}, "link"),
            ({"op": "set_node", "node": "nat", "params": {"mapping": "cone"}}, "cone"),
        ):
            with pytest.raises(ValueError, match=text):
                e.call(**request)
        e.stream.write("no json\n")
        e.stream.flush()
        assert json.loads(e.stream.readline())["ok"] is False
        extra = {"netns": spaces["b"], "name": "eth1", "addresses": ["198.18.0.1/24"]}
        e.call("add", devices={"c": extra})
        assert "eth1" in devices(spaces["b"])
        e.call("remove", device="c")
        assert "eth1" not in devices(spaces["b"])
        described = e.call("describe")
        assert described["nodes"]["nat"]["external"] == ["203.0.113.77"]


def test_it_says_why_it_cannot_start(spaces: dict[str, str], tmp_path: Path) -> None:
    conf = config(spaces)
    conf["devices"]["a"]["netns"] = "wge-none"
    process, ready = start(conf, tmp_path)
    assert process.wait(10) == 1
    assert ready["ready"] is False
    assert "wge-none" in ready["error"]
    assert "eth0" not in devices(spaces["b"])


def test_it_dies_with_its_parent(spaces: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(config(spaces)))
    script = (
        "import os, subprocess, sys\n"
        "r, w = os.pipe()\n"
        "p = subprocess.Popen([sys.executable, '-m', 'warpgate_natlab.engine', '--config',"
        " 'engine.json', '--control', 'sock', '--ready-fd', str(w)], pass_fds=[w])\n"
        "os.close(w)\n"
        "print(os.fdopen(r).readline(), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = json.loads(parent.stdout.readline())["pid"]
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    try:
        wait_until(lambda: "eth0" not in devices(spaces["a"]))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_it_sleeps_when_idle(spaces: dict[str, str], tmp_path: Path) -> None:
    with engine(config(spaces), tmp_path) as e:

        def ticks() -> int:
            fields = Path(f"/proc/{e.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        e.call("ping")
        before = ticks()
        time.sleep(1)
        assert ticks() - before <= 5  # of 100 a second

"""tcp_punch in the NAT laboratory: which pairs it joins, how soon, and what a victim gets."""

from __future__ import annotations

import select
import socket
import statistics
import sys
import time
from collections.abc import Callable

import pytest

pytest.importorskip("warpgate_natlab")

from warpgate_natlab import Lab
from warpgate_natlab.session import START_S, Peer, run_calls

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

SERVERS = ["mqtt", "stun"]
CALLS = 3
CONE_S = 0.45
"""Bound for a busy machine; on an idle one the median is below 0.30."""
ASKING_S = 1.0

CELLS = [
    ("port-restricted", "port-restricted", CONE_S),
    ("rst-on-stray", "port-restricted", CONE_S),
    ("rst-on-stray", "rst-on-stray", CONE_S),
    ("cgnat", "port-restricted", ASKING_S),
    ("udp-blocked", "cgnat", ASKING_S),
    ("udp-blocked", "symmetric-sequential", ASKING_S),
    ("symmetric-sequential", "symmetric-sequential", ASKING_S),
    ("symmetric-random", "addr-restricted", ASKING_S),
    ("linux", "linux", CONE_S),
    ("v6-firewalled", "v6-firewalled", CONE_S),
    ("port-restricted", "open-firewall", CONE_S),
]


@pytest.mark.parametrize(("a", "b", "limit_s"), CELLS, ids=lambda each: str(each))
def test_cell(natlab: Callable[..., Lab], a: str, b: str, limit_s: float) -> None:
    lab = natlab(a=a, b=b, servers=SERVERS)
    found = run_calls(lab, calls=CALLS, plugins=["tcp_punch"], transport="tcp")
    assert all(each.ok and each.path == "direct" for each in found), found
    assert statistics.median(each.ping_s or 99 for each in found) < limit_s


@pytest.mark.parametrize(
    ("a", "b"), [("udp-blocked", "symmetric-block"), ("symmetric-block", "udp-blocked")]
)
def test_guesses_where_udp_is_blocked(natlab: Callable[..., Lab], a: str, b: str) -> None:
    lab = natlab(a=a, b=b, servers=SERVERS)
    (found,) = run_calls(lab, calls=1, plugins=["tcp_punch"], transport="tcp")
    assert found.ok, found
    assert found.path == "direct"


def test_nodes_that_have_just_started(natlab: Callable[..., Lab]) -> None:
    """They know nothing of their NATs yet, and their addresses don't name the outside."""
    lab = natlab(a="port-restricted", b="cgnat", servers=SERVERS)
    (found,) = run_calls(lab, calls=1, plugins=["tcp_punch"], transport="tcp", warm=False)
    assert found.ok, found


def test_nothing_is_left(natlab: Callable[..., Lab]) -> None:
    lab = natlab(a="port-restricted", b="rst-on-stray", servers=SERVERS)
    with Peer(lab, "a") as a, Peer(lab, "b") as b:
        a.answer(START_S)
        request = {
            "do": "connect",
            "address": b.answer(START_S)["address"],
            "timeout": 10,
            "options": {"plugins": ["tcp_punch"]},
        }
        assert a.ask(request, 20)["ok"]
        for host, other in ((lab.a, lab.b), (lab.b, lab.a)):
            rows = [
                line.split()
                for line in host.run(["ss", "-Htan"]).stdout.splitlines()
                if other.public_ip in line
            ]
            # Of the pipe itself, which was closed politely, its caller's end may stay a while.
            left = [row for row in rows if row[0] not in ("TIME-WAIT", "FIN-WAIT-2", "LAST-ACK")]
            assert not left, rows
            assert len(rows) <= 1, rows


def test_it_gives_up_where_the_peer_never_answers(natlab: Callable[..., Lab]) -> None:
    lab = natlab(a="port-restricted", b="port-restricted", servers=SERVERS)
    with Peer(lab, "a") as a, Peer(lab, "b", {"plugins": []}) as b:
        a.answer(START_S)
        request = {
            "do": "connect",
            "address": b.answer(START_S)["address"],
            "timeout": 10,
            "options": {"plugins": ["tcp_punch"]},
        }
        answer = a.ask(request, 20)
    causes = [each["cause"] for each in answer["report"]["attempts"]]
    assert any("the peer never answered the signal" in each for each in causes), causes


VICTIM = "192.0.2.77"
HOSTILE = """
import asyncio, sys
from warpgate import Node, auto_connect
from warpgate_plugin_punch.tcp_punch import strategy
from warpgate_plugin_punch.tcp_punch.outside import Outside

async def look(plugin, mine, local_ip, own, sockets):
    sockets.stop_dialling()
    return Outside(list(range(2000, 2016)), sys.argv[2])

strategy.look_outside = look
strategy.crosses_nat = lambda plugin: True

async def main():
    async with Node(conf={"install_path": ":memory:", "enable_upnp": False}) as node:
        while not node.peer_address.brokers:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(
            auto_connect(node, sys.argv[1], timeout=7, plugins=["tcp_punch"]) for _ in range(1)
        ))

asyncio.run(main())
"""


def count_syns(dest: str, until: Callable[[], bool]) -> int:
    """Count the SYNs that leave this namespace for an address."""
    wanted = socket.inet_aton(dest)
    count = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003)) as sock:
        while not until():
            if not select.select([sock], [], [], 0.1)[0]:
                continue
            packet = sock.recv(2048)
            header = (packet[0] & 15) * 4
            if packet[9] == socket.IPPROTO_TCP and packet[16:20] == wanted:
                count += packet[header + 13] & 0x12 == 0x02
    return count


@pytest.mark.slow
def test_a_victim_that_a_peer_names_gets_few_syns(natlab: Callable[..., Lab]) -> None:
    lab = natlab(a="port-restricted", b="port-restricted", servers=SERVERS)
    with Peer(lab, "b") as b:
        address = b.answer(START_S)["address"]
        hostile = lab.a.popen(
            [sys.executable, "-c", HOSTILE, address, VICTIM], env=lab.environ("a")
        )
        try:
            deadline = time.monotonic() + 14
            count = lab.b.call(count_syns, VICTIM, lambda: time.monotonic() > deadline, timeout=30)
        finally:
            hostile.kill()
            hostile.wait()
    assert 12 <= count <= 50

"""``random_probe`` through real NATs of the laboratory, and what it can be made to do to a victim."""

from __future__ import annotations

import socket
import sys
import threading
import time

import pytest

pytest.importorskip("warpgate_natlab", reason="needs the NAT laboratory")

from warpgate_natlab.lab import Lab
from warpgate_natlab.namespaces import why_not
from warpgate_natlab.session import Peer, run_pair

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]

VICTIM = ("192.0.2.100", 7000)
ONLY = ["random_probe"]


@pytest.mark.parametrize(
    ("a", "b", "most_packets"),
    [
        ("symmetric-random", "port-restricted", 1400),
        ("port-restricted", "symmetric-random", 1400),
        ("symmetric-block", "port-restricted", 200),
        ("linux-random", "cgnat", 1400),
        ("symmetric-sequential", "port-restricted", 100),
    ],
)
def test_easy_and_hard(a, b, most_packets):
    with Lab(a, b, servers=["mqtt", "stun"]) as lab:
        result = run_pair(lab, plugins=ONLY)
        assert result.ok, result.report
        assert (result.strategy, result.path, result.transport) == (*ONLY, "direct", "udp")
        assert result.ping_s is not None
        assert result.ping_s < 3.0
        for which in "ab":
            if not lab.nic(which).profile.kernel:
                flows = lab.stats(f"nat_{which}")["hosts"][lab.host(which).ip]["flows"]
                assert flows < most_packets + 60  # the report and the signals have some too


def test_two_blocks():
    """Its chance is 97 %: of two that fail, one would be bad luck."""
    with Lab("symmetric-block", "symmetric-block", servers=["mqtt", "stun"]) as lab:
        results = []
        for _ in range(2):
            results.append(run_pair(lab, plugins=ONLY))
            if results[-1].ok:
                break
            lab.reboot_nat("a")
            lab.reboot_nat("b")
        assert results[-1].ok, results[-1].report
        assert results[-1].ping_s is not None
        assert results[-1].ping_s < 3.0


def test_two_random_sides_are_told_the_odds_within_a_second():
    with Lab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"]) as lab:
        result = run_pair(lab, plugins=ONLY)
    assert not result.ok
    assert result.report["seconds"] < 1.0
    causes = [attempt["cause"] for attempt in result.report["attempts"]]
    assert any("P = .0001" in cause and "a relay is needed" in cause for cause in causes), causes


def test_where_nothing_has_to_be_guessed_it_is_skipped():
    with Lab("port-restricted", "cgnat", servers=["mqtt", "stun"]) as lab:
        result = run_pair(lab, plugins=ONLY)
    assert not result.ok
    skips = [skip for skip in result.report["skips"] if skip["reason"] == "IMPOSSIBLE"]
    assert [skip["detail"] for skip in skips] == ["no port needs guessing"]
    assert result.report["seconds"] < 0.5


# A node whose user means harm: it names another's address, in the role that makes its peer send most.
_LIAR = """
import asyncio, json, sys
from warpgate import Node, auto_connect
from warpgate.node.node_defs import NODE_CONF
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.random_probe import strategy
from warpgate_plugin_punch.random_probe.messages import SideNumbers

ip, port, role, peer = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
KINDS = {
    "easy": SideFacts(mapping="ei", filtering="apd", kind="preserving"),
    "hard": SideFacts(mapping="apd", filtering="apd", kind="random", low=port, high=port + 40000),
}

async def lie(*_):
    return SideNumbers(
        facts=KINDS[role], ip=ip, port=port, low=port, high=port + 40000, sockets=1024, packets=1400
    )

strategy.numbers = lie
strategy.RandomProbe.impossible = classmethod(lambda cls, pair: None)

async def main():
    conf = {**NODE_CONF, "install_path": ":memory:", "enable_upnp": False}
    async with Node(conf=conf) as node:
        await node.network.ready(5)
        while not node.peer_address.brokers:
            await asyncio.sleep(0.01)
        node.traversal.sprays.room = lambda *_: 1400
        for _ in range(3):
            await auto_connect(node, peer, timeout=6, plugins=["random_probe"])
            print(json.dumps([a.cause for a in node.last_report.outcomes]), flush=True)

asyncio.run(main())
"""


class Ear:
    """Takes down every UDP packet that reaches an address, whatever the port."""

    def __init__(self, lab):
        from warpgate_natlab.namespaces import inside

        with inside(lab.net.name):
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self.sock.bind((VICTIM[0], 0))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.sock.settimeout(0.2)
        self.packets = []
        self.over = False
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        while not self.over:
            try:
                packet = self.sock.recv(2048)
            except TimeoutError:
                continue
            size = len(packet) - 20 - 8
            self.packets.append((time.monotonic(), size))

    def close(self):
        self.over = True
        self.thread.join()
        self.sock.close()


@pytest.mark.slow
@pytest.mark.parametrize(("role", "b"), [("easy", "symmetric-random"), ("hard", "port-restricted")])
def test_a_victim_gets_few_small_packets(role, b):
    """WIRE.md section 5: 1,400 packets of 64 bytes once a minute, at most 1,000 a second."""
    with Lab("open", b, servers=["mqtt", "stun"]) as lab, Peer(lab, "b", {}) as victim_maker:
        there = victim_maker.answer(20)
        ear = Ear(lab)
        try:
            process = lab.a.popen(
                [sys.executable, "-c", _LIAR, VICTIM[0], str(VICTIM[1]), role, there["address"]],
                env=lab.environ("a"),
            )
            assert process.wait(50) == 0
            time.sleep(0.5)
        finally:
            ear.close()
        times = [at for at, _ in ear.packets]
        assert 500 < len(times) <= 1400
        assert max(size for _, size in ear.packets) <= 64
        most = max(sum(start <= at < start + 1.0 for at in times) for start in times[::25])
        assert most <= 1010  # the links' queues may squeeze a little

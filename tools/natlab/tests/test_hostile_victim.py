"""What strangers can make a node send to somebody else, measured where that somebody is.

WIRE.md section 5: towards an address that has not answered at most 50 packets of 300 bytes an attempt,
a spray of 1,400 packets of 64 bytes once a minute and 1,000 a second, and 100 KB a minute in all.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from warpgate_natlab.lab import Lab
from warpgate_natlab.namespaces import inside, why_not
from warpgate_natlab.session import START_S, Peer

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]
HOSTILE = Path(__file__).with_name("hostile_peer.py")
STRATEGIES = ("direct_connect", "reverse_connect", "tcp_punch", "udp_punch", "random_probe", "turn")
CROWD = 40
MINUTE_BYTES = 100_000
TCP, UDP = 6, 17


@dataclass
class Seen:
    """One packet at a victim: when, and its size as WIRE counts it."""

    at: float
    protocol: int
    size: int


class Ear:
    """Takes down what comes to the addresses 192.0.2.60 … 99, which nobody has."""

    def __init__(self, lab: Lab) -> None:
        self.packets: dict[str, list[Seen]] = defaultdict(list)
        self._over = False
        with inside(lab.net.name):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over:
            if not select.select([self._sock], [], [], 0.2)[0]:
                continue
            packet = self._sock.recv(4096)
            dest = socket.inet_ntoa(packet[16:20])
            if packet[16:19] == bytes([192, 0, 2]) and 60 <= packet[19] < 100:
                size = len(packet) - 28 if packet[9] == UDP else len(packet)
                self.packets[dest].append(Seen(time.monotonic(), packet[9], size))

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._sock.close()


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[dict[str, list[Seen]], dict[str, Any]]]:
    """One call by each strategy for a victim of its own; then a crowd's, all for one more victim."""
    with Lab("open", "port-restricted", servers=["mqtt", "stun"]) as lab, Peer(lab, "b") as b:
        there = b.answer(START_S)
        ear = Ear(lab)
        try:
            alone = [call(name, f"192.0.2.{60 + n}", n) for n, name in enumerate(STRATEGIES)]
            crowd = [call(STRATEGIES[n % 6], "192.0.2.90", 100 + n % CROWD) for n in range(300)]
            for calls, pause_s, then_s in ((alone, 0.1, 4.0), (crowd, 0.01, 5.0)):
                order = {
                    "broker": there["brokers"][0],
                    "target": there["address"],
                    "calls": calls,
                    "pause_s": pause_s,
                }
                done = lab.a.popen(
                    [sys.executable, str(HOSTILE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=lab.environ("a"),
                    text=True,
                )
                out, _ = done.communicate(json.dumps(order) + "\n", timeout=40)
                assert out == "sent\n"
                time.sleep(then_s)
            yield dict(ear.packets), b.ask({"do": "address"})["stats"]
        finally:
            ear.close()


def call(strategy: str, victim: str, signer: int) -> dict[str, Any]:
    return {"strategy": strategy, "victim": victim, "signer": signer}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_attempt(measured: Any, strategy: str) -> None:
    packets = measured[0].get(f"192.0.2.{60 + STRATEGIES.index(strategy)}", [])
    sizes = [each.size for each in packets]
    print(strategy, len(sizes), "packets,", sum(sizes), "bytes, the largest", max(sizes, default=0))
    if strategy == "random_probe":
        assert 500 < len(packets) <= 1400
        assert max(sizes) <= 64
        times = [each.at for each in packets]
        assert max(sum(at <= t < at + 1.0 for t in times) for at in times[::25]) <= 1010
    elif strategy == "reverse_connect":
        assert not packets  # it asks its initiator to do it, and nobody can ask for that
    else:
        assert 1 <= len(packets) <= 50
        assert max(sizes) <= 300


def test_a_crowd_has_no_more_than_a_minute_s_bytes(measured: Any) -> None:
    packets, stats = measured
    everything = [each for some in packets.values() for each in some]
    times = [each.at for each in everything]
    assert max(times) - min(times) < 60
    total = sum(each.size for each in everything)
    print(len(everything), "packets,", total, "bytes;", {k: v for k, v in stats.items() if v})
    assert 50_000 < total <= MINUTE_BYTES
    # A second spray to one address is none, whoever asks.
    crowd = [each for each in packets["192.0.2.90"] if each.protocol == UDP]
    assert len(crowd) > 50


def test_the_node_counts_what_it_did_not_do(measured: Any) -> None:
    stats = measured[1]
    assert stats["signal_dials_limited"] > 0
    assert stats["turn_dials_limited"] > 0

"""Measures relayed datagrams against aioice's TURN client, over one coturn on loopback, in one run.

Run ``python tools/bench/turn.py [--json] [--seconds N]``. A plain UDP socket in a process of its own
sends back what comes to it through the relay; a client keeps a window of datagrams under way. Exits
with 1 when ours echo less than 0.8 times as many as aioice's, with 77 where aioice or coturn is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from warpgate.server_urls import parse_turn
from warpgate.testing.coturn import PASSWORD, USER, Coturn, find_coturn
from warpgate_plugin_turn.allocation import Allocation

SIZE = 1000  # bytes of a datagram
WINDOW = 32  # datagrams under way
ROUNDS = 7
GOAL = 0.8
SKIPPED = 77
LOST_S = 0.05  # nothing has come back for so long: the window is filled anew

Send = Callable[[bytes], Any]


def echo(sock: socket.socket) -> None:
    """Send back whatever comes."""
    while True:
        data, addr = sock.recvfrom(65536)
        sock.sendto(data, addr)


class Window:
    """Keeps ``WINDOW`` datagrams under way and counts what comes back."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.count = 0
        self.data = bytes(SIZE)

    def received(self, _data: bytes) -> None:
        """Count an echo and send the next one."""
        self.count += 1
        self.send(self.data)

    async def run(self, seconds: float) -> float:
        """Return the echoes in a second."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        before = -1
        while (now := loop.time()) - begin < seconds:
            if self.count == before or before < 0:
                for _ in range(WINDOW):
                    self.send(self.data)
            before = self.count
            await asyncio.sleep(LOST_S)
        return self.count / (now - begin)


async def ours(url: str, peer: tuple[str, int], seconds: float) -> float:
    """Measure an allocation of the plugin's."""
    server = parse_turn(url)
    allocation = await Allocation.open(server, (server.host, server.port))
    pipe = allocation.pipe(peer)
    await asyncio.sleep(0.1)  # the channel
    window = Window(pipe.write_raw)
    pipe.take_over(lambda data, _addr: window.received(data))
    rate = await window.run(seconds)
    await pipe.close()
    allocation.close()
    await allocation.wait_gone()
    return rate


async def aioices(url: str, peer: tuple[str, int], seconds: float) -> float:
    """Measure aioice's."""
    turn: Any = importlib.import_module("aioice.turn")
    server = parse_turn(url)

    class Protocol(asyncio.DatagramProtocol):
        window: Window

        def datagram_received(self, data: bytes, _addr: Any) -> None:
            self.window.received(data)

    transport, protocol = await turn.create_turn_endpoint(
        Protocol, (server.host, server.port), USER, PASSWORD, transport=server.transport
    )
    protocol.window = Window(lambda data: transport.sendto(data, peer))
    transport.sendto(b"", peer)  # binds the channel
    await asyncio.sleep(0.1)
    rate: float = await protocol.window.run(seconds)
    transport.close()
    await asyncio.sleep(0.2)
    return rate


@contextmanager
def other_end() -> Any:
    """Run the echo; gives its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        process = multiprocessing.get_context("fork").Process(
            target=echo, args=(sock,), daemon=True
        )
        process.start()
        try:
            yield sock.getsockname()
        finally:
            process.kill()
            process.join()


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Return the medians of both, by transport."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server: AbstractContextManager[Coturn] = Coturn(Path(folder))
        with other_end() as peer, server as coturn:
            for transport in ("udp", "tcp"):
                url = coturn.url(transport)
                rates: dict[str, list[float]] = {"ours": [], "aioice": []}
                for _ in range(ROUNDS):  # in turns: the machine's moods hit both
                    rates["ours"].append(asyncio.run(ours(url, peer, seconds)))
                    rates["aioice"].append(asyncio.run(aioices(url, peer, seconds)))
                found[transport] = {name: statistics.median(all_) for name, all_ in rates.items()}
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each round")
    options = parser.parse_args()
    if find_coturn() is None or importlib.util.find_spec("aioice") is None:
        print("needs coturn and aioice")
        return SKIPPED
    found = measure(options.seconds)
    ratios = {name: rates["ours"] / rates["aioice"] for name, rates in found.items()}
    if options.json:
        print(json.dumps({"echoes_per_s": found, "ratio": ratios, "goal": GOAL}))
    else:
        for name, rates in found.items():
            figures = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
            print(f"{name}: echoes of {SIZE} bytes a second: {figures}; ratio {ratios[name]:.2f}")
    return 0 if all(ratio >= GOAL for ratio in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

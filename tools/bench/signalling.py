"""Measures signals through a local mosquitto: the round trip, the cost of a message, a flood.

Run ``python tools/bench/signalling.py [--json] [--rounds N]`` where ``warpgate`` is importable and
mosquitto installed (else it says so and exits with 77). A round trip is a signal that is signed,
sealed, published, received, opened, and answered the same way. Exits with 1 when its median is over
5 ms. The flood is 5 s of well-formed rubbish from a process of its own; it has no bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from warpgate.errors import SignallingError, WarpgateError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.protocol.envelope import open_signal, seal_signal
from warpgate.protocol.peer_address import PeerAddress, pack_address
from warpgate.server_urls import parse_broker
from warpgate.signalling.broker_policy import inbox_topic
from warpgate.signalling.mqtt_transport import MqttTransport
from warpgate.signalling.transport import SignalOrigin
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto

BOUND_MS = 5.0
SKIPPED = 77
"""What run.py takes for ``nothing measured``."""
FLOOD_S = 5.0
BODY = bytes(400)


class Peer:
    """One side: keys, transport, and the last body that arrived."""

    def __init__(self, url: str) -> None:
        self.identity = Identity.generate()
        self.counters = Counters()
        self.transport = MqttTransport(self.identity, [url], 1, self.counters)
        self.received: asyncio.Queue[tuple[bytes, SignalOrigin]] = asyncio.Queue()
        self.rubbish = 0

    async def start(self) -> None:
        """Connect."""
        await self.transport.start(self.deliver)
        await self.transport.wait_connected()

    def deliver(self, envelope: bytes, origin: SignalOrigin) -> None:
        """Open an envelope, as the router does."""
        try:
            signal = open_signal(self.identity, envelope)
        except WarpgateError:
            self.rubbish += 1
        else:
            self.received.put_nowait((signal.body, origin))

    def address(self) -> PeerAddress:
        """Return a signed address."""
        return pack_address(
            self.identity,
            machine=b"bench",
            sequence=1,
            brokers=self.transport.brokers(),
            interfaces=[],
        )

    def envelope(self, dest: Peer) -> bytes:
        """Sign and seal a signal."""
        return seal_signal(
            self.identity,
            dest.identity.public_key,
            dest.identity.exchange_key,
            wire_name="bench.Signal",
            body=BODY,
            sent_ms=int(time.time() * 1000),
            ttl_s=20,
            msg_id=os.urandom(16),
        )


async def measure(url: str, rounds: int) -> dict[str, float]:
    """Return the figures, by name."""
    a, b = Peer(url), Peer(url)
    await asyncio.gather(a.start(), b.start())
    address_a, address_b = a.address(), b.address()

    async def answer() -> None:
        while True:
            _, origin = await b.received.get()
            assert origin.reply is not None
            await origin.reply(b.envelope(a), address_a)

    answering = asyncio.ensure_future(answer())
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await a.transport.send(address_b, a.envelope(b))
        await a.received.get()
        times.append((time.perf_counter() - began) * 1000)
    answering.cancel()

    envelopes = [a.envelope(b) for _ in range(rounds)]
    began = time.process_time()
    for envelope in envelopes:
        await a.transport.send(address_b, envelope)
    while b.received.qsize() < rounds:  # noqa: ASYNC110  # no event: deliver() is what is measured
        await asyncio.sleep(0)
    cost = (time.process_time() - began) / rounds * 1000
    while not b.received.empty():
        b.received.get_nowait()

    figures = {
        "round_trip_median_ms": statistics.median(times),
        "round_trip_p95_ms": sorted(times)[int(len(times) * 0.95)],
        "message_cpu_ms": cost,
        **await under_flood(url, a, b),
    }
    await asyncio.gather(a.transport.close(), b.transport.close())
    return figures


async def under_flood(url: str, a: Peer, b: Peer) -> dict[str, float]:
    """Return what becomes of right signals while somebody floods the receiver's inbox."""
    topic = inbox_topic(b.identity.public_key)
    flooder = multiprocessing.get_context("spawn").Process(target=flood, args=(url, topic))
    flooder.start()
    while not b.rubbish:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    first = b.rubbish + b.counters["mqtt_flooded"]
    address_b, sent, times = b.address(), 0, []
    began = time.perf_counter()
    while time.perf_counter() - began < FLOOD_S:
        sent += 1
        once = time.perf_counter()
        try:
            await a.transport.send(address_b, a.envelope(b))
            async with asyncio.timeout(0.5):
                await b.received.get()
        except (SignallingError, TimeoutError):
            continue
        times.append((time.perf_counter() - once) * 1000)
    seconds = time.perf_counter() - began
    flooder.terminate()
    flooder.join()
    return {
        "flood_messages_per_s": (b.rubbish + b.counters["mqtt_flooded"] - first) / seconds,
        "flood_right_signals_percent": 100 * len(times) / sent,
        "flood_one_way_median_ms": statistics.median(times) if times else float("nan"),
    }


def flood(url: str, topic: str) -> None:
    """Publish rubbish as fast as the broker takes it."""
    asyncio.run(_flood(url, topic))


async def _flood(url: str, topic: str) -> None:
    from warpgate.signalling.mqtt import open_session

    session = await open_session(
        parse_broker(url), version=5, on_message=lambda *_: None, permit=lambda _: True
    )

    async def publish() -> None:
        while True:
            await session.publish(topic, b"\x01" + os.urandom(500))

    await asyncio.gather(*(publish() for _ in range(100)))


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    if find_mosquitto() is None:
        print("mosquitto is not installed: nothing measured")
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        lines = ["allow_anonymous true", "set_tcp_nodelay true"]
        with Mosquitto(Path(folder), lines) as broker:
            figures = asyncio.run(measure(broker.url, options.rounds))
    met = figures["round_trip_median_ms"] <= BOUND_MS
    if options.json:
        print(json.dumps({"figures": figures, "bound_ms": BOUND_MS, "met": met}))
        return 0 if met else 1
    print("signals through a local mosquitto, both nodes in one process")
    print(
        f"round trip, median       {figures['round_trip_median_ms']:8.2f} ms   bound {BOUND_MS} ms"
    )
    print(f"round trip, 95th percentile {figures['round_trip_p95_ms']:5.2f} ms")
    print(f"a message, both ends' CPU{figures['message_cpu_ms']:8.2f} ms")
    print(f"flood                    {figures['flood_messages_per_s']:8.0f} messages/s arrived")
    print(f"right signals meanwhile  {figures['flood_right_signals_percent']:8.0f} % got through")
    print(f"and took, median         {figures['flood_one_way_median_ms']:8.2f} ms")
    print("met" if met else "MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

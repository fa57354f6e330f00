"""Measures a fleet on one mosquitto: each node connects to a random other that it knows by its node id.

Run ``python tools/bench/fleet.py [--json] [--sizes 20 200]`` where ``warpgate`` and the direct
strategies are importable and mosquitto is installed (else it says so and exits with 77). The nodes
live in two processes, and each process connects its own one after the other, so the time per connect
says what the fleet costs, not how long a queue for the machine's cores is. Every node connects by
``reverse_connect``, whose signal can only take the broker, and by whatever ``auto_connect`` finds best.
The look-up of the peer's address and a first answer through the pipe are part of it. Exits with 1 when
a connect fails, or when the median time per connect grows by 2 x or more from the first size to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from warpgate import NIC_BIND, NODE_TEST_CONF, Node, auto_connect
from warpgate.testing import echo
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto

BOUND = 2.0
SKIPPED = 77
"""What run.py takes for ``nothing measured``."""
SIZES = (20, 200)
PROCESSES = 2
WAYS = ("reverse_connect", "auto_connect")
TIMEOUT_S = 20.0
WARM_UP = 2
PING = b"ping"


def many_files() -> None:
    """Allow as many open files as the system does; child processes inherit it."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def work(url: str, count: int, boss: Connection) -> None:
    """Be one of the processes: host ``count`` nodes and connect them as told."""
    asyncio.run(_work(url, count, boss))


async def _work(url: str, count: int, boss: Connection) -> None:
    conf = {**NODE_TEST_CONF, "brokers": [url], "sig_pipe_no": 1, "enable_nickname": True}
    async with AsyncExitStack() as stack:
        nodes = []
        began = time.perf_counter()
        for _ in range(count):
            node = await stack.enter_async_context(Node(conf=conf))
            node.add_msg_cb(echo)
            nodes.append(node)
        for node in nodes:
            transport = node.rendezvous.mqtt
            assert transport is not None
            await transport.wait_connected()
        boss.send([[node.node_id for node in nodes], time.perf_counter() - began])
        while (order := await asyncio.to_thread(boss.recv)) is not None:
            way, pairs = order
            results = []
            for number, peer in pairs:
                results.append(await connect(nodes[number], way, peer))
            boss.send(results)
        boss.send(sum(node.stats["signals_by_mqtt"] for node in nodes))


async def connect(node: Node, way: str, peer: str) -> tuple[float, str]:
    """Connect and get an answer; return the seconds it took, and what went wrong."""
    options: dict[str, Any] = {}
    targets = node._direct_targets  # noqa: SLF001  # no direct signals: the broker is measured
    if way == "reverse_connect":
        node._direct._targets = lambda _peer: []  # type: ignore[union-attr]  # noqa: SLF001
        options = {"plugins": [way], "route_types": [NIC_BIND], "afs": node.supported()[:1]}
    began = time.perf_counter()
    try:
        pipe, _ = await auto_connect(node, peer, TIMEOUT_S, **options)
        if pipe is None:
            return time.perf_counter() - began, str(node.last_report)
        async with pipe:
            await pipe.send(PING)
            if await pipe.recv(timeout=TIMEOUT_S) != PING:
                return time.perf_counter() - began, "no answer through the pipe"
        return time.perf_counter() - began, ""
    finally:
        node._direct._targets = targets  # type: ignore[union-attr]  # noqa: SLF001


def fleet(url: str, size: int, rng: random.Random) -> dict[str, Any]:
    """Start a fleet, let each of its nodes connect by both ways, and return the figures."""
    context = multiprocessing.get_context("spawn")
    shares = [size // PROCESSES + (number < size % PROCESSES) for number in range(PROCESSES)]
    bosses, workers = [], []
    for share in shares:
        mine, theirs = context.Pipe()
        worker = context.Process(target=work, args=(url, share, theirs), daemon=True)
        worker.start()
        theirs.close()
        bosses.append(mine)
        workers.append(worker)
    started = [boss.recv() for boss in bosses]
    ids = [node_id for share, _ in started for node_id in share]
    figures: dict[str, Any] = {"nodes": size, "start_s": max(seconds for _, seconds in started)}
    for way in WAYS:
        began = time.perf_counter()
        for boss, (share, _) in zip(bosses, started, strict=True):
            pairs = [
                (number, rng.choice([other for other in ids if other != node_id]))
                for number, node_id in enumerate(share)
            ]
            boss.send((way, pairs))
        results = [result for boss in bosses for result in boss.recv()]
        seconds = [took for took, error in results if not error]
        errors = [error for _, error in results if error]
        figures[way] = {
            "connects": len(results),
            "failed": len(errors),
            "errors": errors[:3],
            "median_ms": statistics.median(seconds) * 1000 if seconds else float("nan"),
            "p95_ms": sorted(seconds)[int(len(seconds) * 0.95)] * 1000 if seconds else float("nan"),
            "all_s": time.perf_counter() - began,
        }
    for boss in bosses:
        boss.send(None)
    figures["signals_by_mqtt"] = sum(boss.recv() for boss in bosses)
    for worker in workers:
        worker.join()
    return figures


def growth(first: dict[str, Any], last: dict[str, Any]) -> dict[str, float]:
    """Return by how much the median time per connect has grown, by way."""
    return {way: last[way]["median_ms"] / first[way]["median_ms"] for way in WAYS}


def measure(sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Return the figures of every size, the growth, and whether the bounds are met."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        lines = ["allow_anonymous true", "set_tcp_nodelay true", "max_connections -1"]
        with Mosquitto(Path(folder), lines) as broker:
            fleet(broker.url, WARM_UP, rng)
            fleets = [fleet(broker.url, size, rng) for size in sizes]
    grown = growth(fleets[0], fleets[-1])
    return {
        "fleets": fleets,
        "growth": grown,
        "bound": BOUND,
        "connected": not any(each[way]["failed"] for each in fleets for way in WAYS),
        "met": all(factor < BOUND for factor in grown.values())
        and not any(each[way]["failed"] for each in fleets for way in WAYS),
    }


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="NODES")
    parser.add_argument("--seed", type=int, default=1, help="who connects to whom")
    options = parser.parse_args()
    if find_mosquitto() is None:
        print("mosquitto is not installed: nothing measured")
        return SKIPPED
    many_files()
    figures = measure(options.sizes, options.seed)
    if options.json:
        print(json.dumps(figures))
        return 0 if figures["met"] else 1
    print(f"nodes on one mosquitto, in {PROCESSES} processes; each connects to a random other")
    for each in figures["fleets"]:
        for way in WAYS:
            row = each[way]
            print(
                f"{each['nodes']:4} nodes  {way:16} {row['connects'] - row['failed']:4} of "
                f"{row['connects']:4} connected   median {row['median_ms']:6.1f} ms   "
                f"95th percentile {row['p95_ms']:6.1f} ms"
            )
            for error in row["errors"]:
                print(f"     {error}")
    for way, factor in figures["growth"].items():
        print(f"growth of the median, {way:16} {factor:5.2f} x   bound {BOUND:g} x")
    print("met" if figures["met"] else "MISSED")
    return 0 if figures["met"] else 1


if __name__ == "__main__":
    sys.exit(main())

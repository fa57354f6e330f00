"""What starting a node and connecting two of them costs, beside a bare TCP connection.

Goals: ``Node.start()`` at most 100 ms and ``auto_connect`` at most 30 ms, medians, with
``NODE_TEST_CONF`` over loopback in one process. A bare connect (``asyncio.open_connection``, one
byte each way) is measured in turn with each ``auto_connect``, so that a busy machine slows both.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from warpgate import NODE_TEST_CONF, Node, auto_connect

START_GOAL_MS = 100.0
CONNECT_GOAL_MS = 30.0
STARTS = 15
CONNECTS = 60


async def starts_ms() -> list[float]:
    """Start nodes one after the other, close them all at the end; milliseconds of each start."""
    nodes, took = [], []
    for _ in range(STARTS):
        node = Node(conf=NODE_TEST_CONF)
        nodes.append(node)
        begin = time.perf_counter()
        await node.start()
        took.append((time.perf_counter() - begin) * 1000)
    await asyncio.gather(*(node.close() for node in nodes))
    return took


async def bare_ms(port: int) -> float:
    """Connect by TCP, and wait until one byte has gone there and back."""
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    await reader.readexactly(1)
    took = (time.perf_counter() - begin) * 1000
    writer.close()
    await writer.wait_closed()
    return took


async def echo_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve :func:`bare_ms`."""
    writer.write(await reader.read(1))
    await writer.drain()
    await reader.read()
    writer.close()


async def connects_ms() -> tuple[list[float], list[float]]:
    """Connect bare and by ``auto_connect`` in turn; milliseconds of each."""
    bare, whole = [], []
    server = await asyncio.start_server(echo_byte, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Node(conf=NODE_TEST_CONF) as alice, Node(conf=NODE_TEST_CONF) as bob:
        for _ in range(CONNECTS):
            bare.append(await bare_ms(port))
            begin = time.perf_counter()
            pipe, _plugin = await auto_connect(alice, bob.address())
            whole.append((time.perf_counter() - begin) * 1000)
            if pipe is None:
                raise SystemExit(f"no connection: {alice.last_report}")
            await pipe.close()
    return bare, whole


def line(name: str, took: list[float], goal: float | None = None) -> float:
    """Print one line of figures; return the median."""
    median, ninth = statistics.median(took), statistics.quantiles(took, n=10)[-1]
    aim = f"   goal {goal:.0f} ms" if goal is not None else ""
    print(f"{name:<18} median {median:7.2f} ms   90 % within {ninth:7.2f} ms{aim}")
    return median


def main() -> int:
    """Measure, print, and return 1 when a goal is missed."""
    start = line("Node.start()", asyncio.run(starts_ms()), START_GOAL_MS)
    bare, whole = asyncio.run(connects_ms())
    base = line("bare TCP connect", bare)
    connect = line("auto_connect", whole, CONNECT_GOAL_MS)
    print(f"auto_connect takes {connect / base:.1f} times a bare connect")
    return 1 if start > START_GOAL_MS or connect > CONNECT_GOAL_MS else 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures a TCP ``Pipe`` against asyncio's streams and raw sockets, over loopback, in one run.

Run ``python tools/bench/pipe.py [--json] [--seconds N]`` where ``warpgate`` is importable. The
other end runs in a process of its own and uses the same kind of connection. Exits with 1 when a
goal is missed: one way at least 1.0 times the streams' rate, ping-pong at least 0.9 times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import time
from multiprocessing.connection import Connection

from warpgate.net.addresses import Address
from warpgate.net.constants import IP4
from warpgate.net.nic import loopback_interface
from warpgate.net.tcp import TcpPipe

CHUNK = bytes(64 * 1024)
PING = bytes(64)
TOTAL = 64 << 20  # bytes one way in a round
ROUNDS = 11
KINDS = ("raw sockets", "asyncio streams", "Pipe")
GOALS = {"one_way": 1.0, "ping_pong": 0.9}

# A round begins with one byte: what the other end is to do until the connection closes.
SINK, ECHO = b"S", b"E"


def serve_raw(sock: socket.socket) -> None:
    """Serve one connection with blocking calls."""
    connection, _ = sock.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mode = connection.recv(1)
        if mode == ECHO:
            while data := connection.recv(65536):
                connection.sendall(data)
            return
        count = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
        buffer = memoryview(bytearray(65536))
        while count > 0:
            count -= connection.recv_into(buffer)
        connection.sendall(b"!")
        connection.recv(1)


async def serve_streams(sock: socket.socket) -> None:
    """Serve one connection with asyncio's streams."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == ECHO:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        else:
            count = int.from_bytes(await reader.readexactly(8), "big")
            while count > 0:
                count -= len(await reader.read(65536))
            writer.write(b"!")
            await reader.read(1)
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, sock=sock)
    await done.wait()
    server.close()


async def serve_pipe(sock: socket.socket) -> None:
    """Serve one connection with a Pipe."""
    accepted: asyncio.Queue[TcpPipe] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TcpPipe(accepted.put_nowait), sock=sock)
    async with await accepted.get() as pipe:
        if await pipe.recv_n(1) == ECHO:
            async for data in pipe:
                await pipe.send(data)
        else:
            count = int.from_bytes(await pipe.recv_n(8), "big")
            while count > 0:
                count -= len(await pipe.recv(timeout=None) or b"")
            await pipe.send(b"!")
            await pipe.recv(timeout=None)
    server.close()


def other_end(control: Connection) -> None:
    """Serve rounds, each on a fresh socket of a kind, until told to stop."""
    while (kind := control.recv()) is not None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            control.send(sock.getsockname())
            if kind == KINDS[0]:
                serve_raw(sock)
            else:
                asyncio.run((serve_streams if kind == KINDS[1] else serve_pipe)(sock))


class Round:
    """One measurement: a rate in MB/s or a time in microseconds."""

    def __init__(self, mode: bytes, seconds: float) -> None:
        self.mode = mode
        self.chunks = TOTAL // len(CHUNK)
        self.seconds = seconds
        self.value = 0.0

    def head(self) -> bytes:
        """Return the first bytes of the connection."""
        return SINK + (self.chunks * len(CHUNK)).to_bytes(8, "big")

    def sent(self, began: float) -> None:
        """Note the end of a one-way round."""
        self.value = self.chunks * len(CHUNK) / (time.perf_counter() - began) / 1e6

    def raw(self, address: Address) -> None:
        """Measure blocking sockets."""
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.mode == SINK:
                began = time.perf_counter()
                sock.sendall(self.head())
                for _ in range(self.chunks):
                    sock.sendall(CHUNK)
                sock.recv(1)
                self.sent(began)
                return
            sock.sendall(ECHO)
            times: list[float] = []
            end = time.perf_counter() + self.seconds
            while (began := time.perf_counter()) < end:
                sock.sendall(PING)
                sock.recv(len(PING), socket.MSG_WAITALL)
                times.append(time.perf_counter() - began)
            self.value = statistics.median(times) * 1e6

    async def streams(self, address: Address) -> None:
        """Measure asyncio's streams."""
        reader, writer = await asyncio.open_connection(*address)
        if self.mode == SINK:
            began = time.perf_counter()
            writer.write(self.head())
            for _ in range(self.chunks):
                writer.write(CHUNK)
                await writer.drain()
            await reader.read(1)
            self.sent(began)
        else:
            writer.write(ECHO)
            times: list[float] = []
            end = time.perf_counter() + self.seconds
            while (began := time.perf_counter()) < end:
                writer.write(PING)
                await writer.drain()
                await reader.read(65536)
                times.append(time.perf_counter() - began)
            self.value = statistics.median(times) * 1e6
        writer.close()

    async def pipe(self, address: Address) -> None:
        """Measure a Pipe."""
        async with await loopback_interface().route(IP4).connect(address) as pipe:
            if self.mode == SINK:
                began = time.perf_counter()
                await pipe.send(self.head())
                for _ in range(self.chunks):
                    await pipe.send(CHUNK)
                await pipe.recv(timeout=None)
                self.sent(began)
                return
            await pipe.send(ECHO)
            times: list[float] = []
            end = time.perf_counter() + self.seconds
            while (began := time.perf_counter()) < end:
                await pipe.send(PING)
                await pipe.recv()
                times.append(time.perf_counter() - began)
            self.value = statistics.median(times) * 1e6

    def run(self, kind: str, address: Address) -> float:
        """Measure one kind and return the value."""
        if kind == KINDS[0]:
            self.raw(address)
        else:
            asyncio.run((self.streams if kind == KINDS[1] else self.pipe)(address))
        return self.value


Rounds = dict[str, dict[str, list[float]]]


def measure(seconds: float) -> Rounds:
    """Return what each round gave: MB/s one way and microseconds a ping-pong, by kind."""
    context = multiprocessing.get_context("spawn")
    control, far = context.Pipe()
    process = context.Process(target=other_end, args=(far,), daemon=True)
    process.start()
    found: Rounds = {"one_way": {}, "ping_pong": {}}
    try:
        for _ in range(ROUNDS):  # interleaved, so that a busy moment hits all of them
            for name, mode in (("one_way", SINK), ("ping_pong", ECHO)):
                for kind in KINDS:
                    control.send(kind)
                    value = Round(mode, seconds / ROUNDS / len(KINDS)).run(kind, control.recv())
                    found[name].setdefault(kind, []).append(value)
    finally:
        control.send(None)
        process.join()
    return found


def compare(dividends: list[float], divisors: list[float]) -> float:
    """Return the median of the rounds' ratios: a round's measurements share its disturbances."""
    return statistics.median(a / b for a, b in zip(dividends, divisors, strict=True))


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=6.0, help="spent on ping-pongs in all")
    options = parser.parse_args()
    rounds = measure(options.seconds)
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in rounds.items()
    }
    one_way, ping_pong = rounds["one_way"], rounds["ping_pong"]
    ratios = {
        "one_way": compare(one_way[KINDS[2]], one_way[KINDS[1]]),
        "ping_pong": compare(ping_pong[KINDS[1]], ping_pong[KINDS[2]]),
    }
    met = all(ratios[name] >= goal for name, goal in GOALS.items())
    if options.json:
        print(json.dumps({"medians": medians, "ratios": ratios, "goals": GOALS, "met": met}))
        return 0 if met else 1
    print(
        f"Python {sys.version.split()[0]}, two processes over loopback, median of {ROUNDS} rounds"
    )
    print(f"{'':18}{'64 KiB one way':>16}{'64 B ping-pong':>18}")
    for kind in KINDS:
        rate, delay = medians["one_way"][kind], medians["ping_pong"][kind]
        print(f"{kind:18}{rate:>11,.0f} MB/s{delay:>15.1f} µs")
    print(f"{'Pipe : streams':18}{ratios['one_way']:>16.2f}{ratios['ping_pong']:>18.2f}")
    print(f"{'goal, at least':18}{GOALS['one_way']:>16.2f}{GOALS['ping_pong']:>18.2f}")
    print("met" if met else "MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Measures sealed pipes against TLS streams and against plain pipes, over loopback, in one run.

Run ``python tools/bench/seal.py [--json]`` where ``warpgate`` is importable. The streams' other end
runs in a process of its own and uses the same kind of connection; datagrams and hellos run within
one. Exits with 1 when a goal is missed: a sealed stream is at least as fast as asyncio's over
``ssl``, sealed datagrams at least 0.7 times plain ones, and sealing adds at most 2 ms of CPU time to
both ends of a hello.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from warpgate.hello import seal
from warpgate.hello.datagrams import DatagramFraming, SealedFraming
from warpgate.hello.machine import Hello, Initiator, NonceCache, Responder
from warpgate.hello.records import DatagramSeal, StreamSeal
from warpgate.identity import Identity
from warpgate.net.addresses import Address
from warpgate.net.constants import IP4
from warpgate.net.nic import loopback_interface
from warpgate.net.tcp import TcpPipe
from warpgate.net.udp import UdpPipe

CHUNK = bytes(64 * 1024)
TOTAL = 64 << 20  # bytes of a stream in a round
DATAGRAM = bytes(1200)
DATAGRAMS = 6400  # of each kind in a round
BATCH = 32  # on their way at once: nothing is to be lost
HELLOS = 40  # in a round
ROUNDS = 11
STREAMS = ("TLS streams", "sealed Pipe", "plain Pipe")
GOALS = {"stream": 1.0, "datagrams": 0.7, "hello_ms": 2.0}

KEYS = bytes(32), bytes(range(32))


def stream_seal(pipe: TcpPipe, *, dialled: bool) -> None:
    """Seal a stream as a hello would."""
    cipher = seal.agreed_cipher(*[seal.offered("require", aes=AES)] * 2)
    assert cipher is not None
    pipe.set_filter(StreamSeal(cipher, *(KEYS if dialled else KEYS[::-1])))


AES = seal.aes_is_quicker(time.perf_counter)


def make_certificate(folder: str) -> str:
    """Write a self-signed certificate and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    path = Path(folder) / "bench.pem"
    path.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(path)


async def serve_tls(sock: socket.socket, certificate: str) -> None:
    """Serve one connection with asyncio's streams over TLS."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = TOTAL
        while count > 0:
            count -= len(await reader.read(65536))
        writer.write(b"!")
        await writer.drain()
        writer.close()
        done.set()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(serve, sock=sock, ssl=context)
    await done.wait()
    server.close()


async def serve_pipe(sock: socket.socket, *, sealed: bool) -> None:
    """Serve one connection with a pipe."""
    accepted: asyncio.Queue[TcpPipe] = asyncio.Queue()

    def take(pipe: TcpPipe) -> None:
        if sealed:
            stream_seal(pipe, dialled=False)
        accepted.put_nowait(pipe)

    server = await asyncio.get_running_loop().create_server(lambda: TcpPipe(take), sock=sock)
    async with await accepted.get() as pipe:
        count = TOTAL
        while count > 0:
            count -= len(await pipe.recv(timeout=None) or b"")
        await pipe.send(b"!")
        await pipe.recv(timeout=None)
    server.close()


def other_end(control: Connection, certificate: str) -> None:
    """Serve rounds, each on a fresh socket of a kind, until told to stop."""
    while (kind := control.recv()) is not None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            control.send(sock.getsockname())
            if kind == STREAMS[0]:
                asyncio.run(serve_tls(sock, certificate))
            else:
                asyncio.run(serve_pipe(sock, sealed=kind == STREAMS[1]))


async def send_tls(address: Address, certificate: str) -> float:
    """Return the rate of a TLS stream in MB/s."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    began = time.perf_counter()
    for _ in range(TOTAL // len(CHUNK)):
        writer.write(CHUNK)
        await writer.drain()
    await reader.read(1)
    rate = TOTAL / (time.perf_counter() - began) / 1e6
    writer.close()
    return rate


async def send_pipe(address: Address, *, sealed: bool) -> float:
    """Return the rate of a pipe in MB/s."""
    async with await loopback_interface().route(IP4).connect(address) as pipe:
        assert isinstance(pipe, TcpPipe)
        if sealed:
            stream_seal(pipe, dialled=True)
        began = time.perf_counter()
        for _ in range(TOTAL // len(CHUNK)):
            await pipe.send(CHUNK)
        await pipe.recv(timeout=None)
        return TOTAL / (time.perf_counter() - began) / 1e6


def ignore(data: bytes, addr: Address) -> None:
    """Take what is no datagram of a pipe: here there is none."""


async def datagram_pair(records: tuple[DatagramSeal, DatagramSeal] | None) -> list[UdpPipe]:
    """Return two pipes to each other, as a hello would leave them."""
    route = await loopback_interface().route(IP4).bind()
    pipes = [await route.datagram(), await route.datagram()]
    ends: list[UdpPipe] = []
    for number, pipe in enumerate(pipes):
        assert isinstance(pipe, UdpPipe)
        pipe.remote = pipes[1 - number].local
        framing = DatagramFraming("A" * 15, pipe, ignore)
        if records:
            framing = SealedFraming("A" * 15, pipe, ignore, records[number])
        pipe.set_filter(framing)
        pipe.only_remote = True
        ends.append(pipe)
    pipes[1].subscribe()
    return ends


async def datagrams() -> dict[str, float]:
    """Return how many datagrams a second go from one pipe to another, all in this process.

    Batches over the two kinds take turns, and of each the quickest tenth counts: what else the
    machine does only adds to the others.
    """
    cipher = seal.AES_256_GCM if AES else seal.CHACHA20_POLY1305
    kinds = {
        "sealed": await datagram_pair(
            (DatagramSeal(cipher, *KEYS), DatagramSeal(cipher, *KEYS[::-1]))
        ),
        "plain": await datagram_pair(None),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(DATAGRAMS // BATCH):
        for kind, (near, far) in kinds.items():
            began = time.perf_counter()
            for _ in range(BATCH):
                await near.send(DATAGRAM)
            for _ in range(BATCH):
                if await far.recv() is None:
                    raise RuntimeError("a datagram was lost on loopback")
            times[kind].append(time.perf_counter() - began)
    for ends in kinds.values():
        for pipe in ends:
            pipe.abort()
    return {kind: BATCH / statistics.quantiles(values, n=10)[0] for kind, values in times.items()}


def hello_cpu_ms(alice: Identity, bob: Identity, *, sealed: bool) -> float:
    """Return the CPU time of both ends of a hello in ms, with what sealing needs made ready."""
    offered = seal.offered("require" if sealed else "off", aes=AES)
    nonces = NonceCache()
    began = time.process_time()
    for _ in range(HELLOS):
        initiator = Initiator(
            identity=alice,
            peer=bob.public_key,
            plugin_id="A" * 15,
            datagram=True,
            entropy=os.urandom,
            nonces=nonces,
            capabilities=offered,
        )
        responder = Responder(
            identity=bob,
            peer=None,
            plugin_id=None,
            datagram=True,
            entropy=os.urandom,
            nonces=nonces,
            capabilities=offered,
            allow=lambda _peer, _plugin_id: True,
        )
        exchange(initiator, responder)
        for machine in (initiator, responder):
            if machine.cipher is not None:
                keys = machine.keys
                DatagramSeal(
                    machine.cipher, keys.initiator_to_responder, keys.responder_to_initiator
                )
    return (time.process_time() - began) / HELLOS * 1e3


def exchange(initiator: Initiator, responder: Responder) -> None:
    """Run a hello in memory."""
    ends: tuple[Hello, Hello] = initiator, responder
    for machine in ends:
        machine.start(0.0)
    for sender, receiver in (ends, ends[::-1], ends):
        if sender is initiator and initiator.state.name == "PROVEN":
            initiator.nominate(0.0)
        for data in sender.outgoing(0.0):
            receiver.receive(data, None, 0.0)
    if responder.state.name != "NOMINATED":
        raise RuntimeError("the hello failed")


Rounds = dict[str, list[float]]


def measure() -> Rounds:
    """Return what each round gave, by kind."""
    found: Rounds = {}
    alice, bob = Identity.generate(), Identity.generate()
    context = multiprocessing.get_context("spawn")
    control, far = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(folder)
        process = context.Process(target=other_end, args=(far, certificate), daemon=True)
        process.start()
        try:
            for _ in range(ROUNDS):  # interleaved, so that a busy moment hits all of them
                for kind in STREAMS:
                    control.send(kind)
                    address = control.recv()
                    if kind == STREAMS[0]:
                        value = asyncio.run(send_tls(address, certificate))
                    else:
                        value = asyncio.run(send_pipe(address, sealed=kind == STREAMS[1]))
                    found.setdefault(kind, []).append(value)
                for word, rate in asyncio.run(datagrams()).items():
                    found.setdefault(f"{word} datagrams", []).append(rate)
                    spent = hello_cpu_ms(alice, bob, sealed=word == "sealed")
                    found.setdefault(f"{word} hello", []).append(spent)
        finally:
            control.send(None)
            process.join()
    return found


def ratio(dividends: list[float], divisors: list[float]) -> float:
    """Return the median of the rounds' ratios: a round's measurements share its disturbances."""
    return statistics.median(a / b for a, b in zip(dividends, divisors, strict=True))


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rounds = measure()
    medians = {kind: statistics.median(values) for kind, values in rounds.items()}
    pairs = zip(rounds["sealed hello"], rounds["plain hello"], strict=True)
    figures = {
        "stream": ratio(rounds[STREAMS[1]], rounds[STREAMS[0]]),
        "datagrams": ratio(rounds["sealed datagrams"], rounds["plain datagrams"]),
        "hello_ms": statistics.median(a - b for a, b in pairs),
    }
    met = (
        figures["stream"] >= GOALS["stream"]
        and figures["datagrams"] >= GOALS["datagrams"]
        and figures["hello_ms"] <= GOALS["hello_ms"]
    )
    if options.json:
        print(json.dumps({"medians": medians, "figures": figures, "goals": GOALS, "met": met}))
        return 0 if met else 1
    cipher = seal.AES_256_GCM if AES else seal.CHACHA20_POLY1305
    print(f"Python {sys.version.split()[0]}, {cipher}, loopback, median of {ROUNDS} rounds")
    for kind in STREAMS:
        print(f"{kind:20}{medians[kind]:>10,.0f} MB/s in 64 KiB writes")
    for kind in ("sealed datagrams", "plain datagrams"):
        print(f"{kind:20}{medians[kind]:>10,.0f} /s of {len(DATAGRAM)} bytes")
    for kind in ("sealed hello", "plain hello"):
        print(f"{kind:20}{medians[kind]:>10.2f} ms CPU at both ends")
    print(f"sealed : TLS streams {figures['stream']:.2f}, at least {GOALS['stream']:.2f}")
    print(f"sealed : plain datagrams {figures['datagrams']:.2f}, at least {GOALS['datagrams']:.2f}")
    print(f"sealing adds {figures['hello_ms']:.2f} ms, at most {GOALS['hello_ms']:.2f}")
    print("met" if met else "MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())

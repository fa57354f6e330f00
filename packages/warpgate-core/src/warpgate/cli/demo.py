"""``warpgate demo``: two nodes in two processes connect and exchange data."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..net.pipe import Pipe
    from ..node.node import Node
    from ..traversal.report import Report
    from . import Subparsers

CHUNK = 256 * 1024
PING = b"are you there?"
DEFAULT_MIB = 64
DEADLINE_S = 120.0


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = subparsers.add_parser("demo", help="connect two nodes in two processes")
    parser.add_argument(
        "--mib", type=int, default=DEFAULT_MIB, help="MiB to send each way (default %(default)s)"
    )
    parser.add_argument("--strategy", action="append", help="try only this strategy; repeatable")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--broker", metavar="URL", help="meet at this broker, not at one of our own"
    )
    parser.add_argument(
        "--no-broker", action="store_true", help="no broker: give the nodes each other's address"
    )
    parser.add_argument("--responder", action="store_true", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns the exit code."""
    return asyncio.run(_responder(args.mib, args.broker) if args.responder else _initiator(args))


def _conf(broker: str | None) -> dict[str, Any]:
    from ..node.node_defs import NODE_TEST_CONF

    conf = {**NODE_TEST_CONF, "accept_plain": False}
    if broker:
        conf |= {"brokers": [broker], "sig_pipe_no": 1, "enable_nickname": True}
    return conf


async def _responder(mib: int, broker: str | None) -> int:
    """Be the peer: say who we are, exchange data on the first pipe, answer on the second."""
    from ..node.node import Node

    async with Node(conf=_conf(broker)) as node:
        _say({"node_id": node.node_id, "address": node.peer_address.to_text()})
        expected = (await asyncio.to_thread(sys.stdin.readline)).strip()
        async with asyncio.timeout(DEADLINE_S):
            async with await node.accept() as pipe:
                if pipe.peer_id != expected:
                    _say({"error": f"expected {expected}, connected by {pipe.peer_id}"})
                    return 1
                result = await exchange(pipe, mib * 2**20)
                _say(result)
                # The initiator closes; waiting for it keeps the last bytes safe.
                await pipe.wait_closed()
            async with await node.accept() as pipe:
                await pipe.send(await pipe.recv_n(len(PING)))
                await pipe.wait_closed()
            _say({"stats": dict(node.stats)})
        return 0 if result["ok"] else 1


async def _initiator(args: argparse.Namespace) -> int:
    from ..node.node import Node

    async with contextlib.AsyncExitStack() as stack:
        broker = await _open_broker(args, stack)
        node = await stack.enter_async_context(Node(conf=_conf(broker)))
        child = await stack.enter_async_context(_child(args.mib, broker))
        assert child.stdin is not None
        print(f"alice: process {os.getpid()}, node {node.node_id[:12]}…, port {node.port}")
        bob = await _hear(child)
        known = str(bob["node_id"] if broker else bob["address"])
        print(f"bob:   process {child.pid}, known to alice by {_by(known)}")
        child.stdin.write(f"{node.node_id}\n".encode())
        await child.stdin.drain()
        first = await _connect(node, known, args.strategy)
        if first is None:
            return 1
        async with first:
            async with asyncio.timeout(DEADLINE_S):
                mine = await exchange(first, args.mib * 2**20, progress=sys.stderr.isatty())
                theirs = await _hear(child)
        _show(args, mine, theirs, first.report)
        second = await _connect(node, known, ["reverse_connect"])
        if second is None:
            return 1
        async with second:
            await second.send(PING)
            ok = await second.recv_n(len(PING)) == PING
        _show_attempts(second.report)
        stats = (await _hear(child))["stats"]
        ways = {name: count for name, count in stats.items() if name.startswith("signals_by_")}
        print("\nsignals that bob took: " + ", ".join(f"{n[11:]} {c}" for n, c in ways.items()))
        await child.wait()
        ok = ok and bool(mine["ok"] and theirs["ok"])
        print("both directions arrived whole" if ok else "DATA WAS DAMAGED")
        return 0 if ok else 1


async def _open_broker(args: argparse.Namespace, stack: contextlib.AsyncExitStack) -> str | None:
    """Return the URL of the broker to meet at: the one asked for, or one of our own."""
    if args.broker or args.no_broker:
        return None if args.no_broker else str(args.broker)
    from ..errors import ConfigError
    from ..signalling.broker import EmbeddedBroker

    try:
        broker = await stack.enter_async_context(EmbeddedBroker())
    except ConfigError as error:
        print(f"no broker ({error}); the nodes get each other's address instead")
        return None
    print(f"broker: {broker.url}, in this process")
    return broker.url


async def _connect(node: Node, known: str, strategies: list[str] | None) -> Pipe | None:
    from ..node.auto_connect import auto_connect

    pipe, plugin = await auto_connect(node, known, timeout=20, plugins=strategies)
    report = node.last_report
    assert report is not None
    if pipe is None or plugin is None:
        print(f"no connection: {report.error}", file=sys.stderr)
        return None
    print(f"\nconnected by {_origin(node, plugin.name)} in {report.seconds * 1000:.1f} ms")
    print(f"pipe:  {pipe!r}\n       peer proven: {pipe.peer_id}\n")
    return pipe


def _by(known: str) -> str:
    return (
        f"its node id {known[:12]}…"
        if len(known) == 52
        else f"its address of {len(known)} characters"
    )


@contextlib.asynccontextmanager
async def _child(mib: int, broker: str | None) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "warpgate", "demo", "--responder", "--mib", str(mib)]
    child = await asyncio.create_subprocess_exec(
        *command,
        *(["--broker", broker] if broker else ["--no-broker"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def exchange(pipe: Pipe, size: int, progress: bool = False) -> dict[str, Any]:
    """Send ``size`` random bytes and their SHA-256, and check what the peer sends likewise.

    Args:
        pipe: a stream.
        size: bytes each way.
        progress: draw a progress line on standard error.

    Returns:
        What was sent and received, as data; ``ok`` tells whether the hashes agree.

    """
    started = time.perf_counter()

    async def send() -> str:
        digest = hashlib.sha256()
        for start in range(0, size, CHUNK):
            chunk = os.urandom(min(CHUNK, size - start))
            digest.update(chunk)
            await pipe.send(chunk)
        await pipe.send(digest.digest())
        return digest.hexdigest()

    async def receive() -> tuple[str, bool]:
        digest = hashlib.sha256()
        for start in range(0, size, CHUNK):
            digest.update(await pipe.recv_n(min(CHUNK, size - start)))
            if progress:
                _bar(start + CHUNK, size)
        return digest.hexdigest(), await pipe.recv_n(32) == digest.digest()

    async with asyncio.TaskGroup() as group:
        sending, receiving = group.create_task(send()), group.create_task(receive())
    received, ok = receiving.result()
    return {
        "ok": ok,
        "bytes": size,
        "sent": sending.result(),
        "received": received,
        "seconds": time.perf_counter() - started,
    }


def _bar(done: int, size: int) -> None:
    done = min(done, size)
    filled = 40 * done // size
    end = "\n" if done == size else ""
    sys.stderr.write(
        f"\r[{'#' * filled}{'.' * (40 - filled)}] {done >> 20} of {size >> 20} MiB{end}"
    )
    sys.stderr.flush()


def _origin(node: Node, strategy: str) -> str:
    distribution = node.traversal.loader(strategy).distribution
    return f"{strategy} (from the entry point of {distribution})"


def _show(
    args: argparse.Namespace, mine: dict[str, Any], theirs: dict[str, Any], report: Report
) -> None:
    if args.json:
        print(json.dumps({"alice": mine, "bob": theirs, "report": report.as_dict()}, indent=2))
        return
    rate = mine["bytes"] / 2**20 / mine["seconds"]
    for name, sent, got in (("alice → bob", mine, theirs), ("bob → alice", theirs, mine)):
        verdict = "equal" if sent["sent"] == got["received"] else "DIFFERENT"
        print(f"{name}: {got['bytes'] >> 20} MiB, SHA-256 {got['received'][:16]}… {verdict}")
    print(f"{mine['seconds']:.2f} s, {rate:.0f} MiB/s each way at once\n")
    _show_attempts(report)


def _show_attempts(report: Report) -> None:
    for line in attempt_table(report):
        print(line)


def attempt_table(report: Report) -> list[str]:
    """Return the lines of a table of every attempt and every skip."""
    from ..loading.report import table
    from ..net.constants import af_name, route_type_name

    rows: list[tuple[str, ...]] = [
        (
            outcome.strategy,
            af_name(outcome.af),
            route_type_name(outcome.route_type),
            f"{outcome.local} → {outcome.remote}",
            f"{outcome.seconds * 1000:.1f} ms",
            outcome.status,
            outcome.cause,
        )
        for outcome in report.outcomes
    ]
    rows += [
        (
            skip.strategy,
            af_name(skip.af) if skip.af is not None else "",
            route_type_name(skip.route_type) if skip.route_type is not None else "",
            skip.detail,
            "",
            "skipped",
            skip.reason.value,
        )
        for skip in report.skips
    ]
    return table(("strategy", "family", "route type", "way", "took", "outcome", "why"), rows)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def _hear(child: asyncio.subprocess.Process) -> dict[str, Any]:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise SystemExit("the other process ended early")
    heard: dict[str, Any] = json.loads(line)
    if "error" in heard:
        raise SystemExit(f"the other process: {heard['error']}")
    return heard

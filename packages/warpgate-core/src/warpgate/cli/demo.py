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
    parser.add_argument("--responder", action="store_true", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns the exit code."""
    role = _responder(args.mib) if args.responder else _initiator(args)
    try:
        return asyncio.run(role)
    except KeyboardInterrupt:
        return 130


def _conf() -> dict[str, Any]:
    from ..node.node_defs import NODE_TEST_CONF

    return {**NODE_TEST_CONF, "accept_plain": False}


async def _responder(mib: int) -> int:
    """Be the peer: print the address, take one pipe, exchange data, say what was seen."""
    from ..node.node import Node

    async with Node(conf=_conf()) as node:
        _say({"address": node.peer_address.to_text()})
        peer = await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.timeout(DEADLINE_S):
            pipe = await node.accept()
            async with pipe:
                if pipe.peer_id != peer.strip():
                    _say({"error": f"expected {peer.strip()}, connected by {pipe.peer_id}"})
                    return 1
                result = await exchange(pipe, mib * 2**20)
                _say(result)
                # The initiator closes; waiting for it keeps the last bytes safe.
                await pipe.wait_closed()
        return 0 if result["ok"] else 1


async def _initiator(args: argparse.Namespace) -> int:
    from ..node.auto_connect import auto_connect
    from ..node.node import Node

    async with Node(conf=_conf()) as node, _child(args.mib) as child:
        assert child.stdin is not None
        print(f"alice: process {os.getpid()}, node {node.node_id[:12]}…, port {node.port}")
        hello = await _hear(child)
        address = str(hello["address"])
        print(f"bob:   process {child.pid}, address of {len(address)} characters received")
        child.stdin.write(f"{node.node_id}\n".encode())
        await child.stdin.drain()
        pipe, plugin = await auto_connect(node, address, timeout=20, plugins=args.strategy)
        report = node.last_report
        assert report is not None
        if pipe is None or plugin is None:
            print(f"no connection: {report.error}", file=sys.stderr)
            return 1
        print(f"\nconnected by {_origin(node, plugin.name)} in {report.seconds * 1000:.1f} ms")
        print(f"pipe:  {pipe!r}\n       peer proven: {pipe.peer_id}\n")
        async with asyncio.timeout(DEADLINE_S):
            mine = await exchange(pipe, args.mib * 2**20, progress=sys.stderr.isatty())
            theirs = await _hear(child)
        await pipe.close()
        ok = bool(mine["ok"] and theirs.get("ok"))
        _show(args, mine, theirs, report)
        await child.wait()
        print("\nboth directions arrived whole" if ok else "\nDATA WAS DAMAGED")
        return 0 if ok else 1


@contextlib.asynccontextmanager
async def _child(mib: int) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "warpgate",
        "demo",
        "--responder",
        "--mib",
        str(mib),
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
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done >> 20} of {size >> 20} MiB{end}")
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

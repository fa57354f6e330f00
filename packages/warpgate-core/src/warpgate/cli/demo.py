"""``warpgate demo``: two nodes in two processes meet through a broker and exchange data."""

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

from warpgate.cli.demo_show import Progress, Show, progress_bar

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.net.pipe import Pipe
    from warpgate.node.node import Node
    from warpgate.traversal.report import Report

CHUNK = 256 * 1024
PING = b"are you there?"
DEFAULT_MIB = 64
DEADLINE_S = 120.0
CONNECT_S = 20.0
ENDING_S = 10.0


class DemoError(Exception):
    """The demo can't go on; the text says why."""


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "demo",
        help="connect two nodes in two processes",
        description=(
            "Start a broker and two nodes, each in a process of its own. One knows the other's "
            "node id and no more; it connects by the best strategy, exchanges data, and connects "
            "again by reverse_connect. Without the broker extra (pip install "
            "warpgate-core[broker]) the nodes are given each other's address."
        ),
    )
    parser.add_argument(
        "--mib", type=_mib, default=DEFAULT_MIB, help="MiB to send each way (default %(default)s)"
    )
    parser.add_argument(
        "--strategy", action="append", help="connect first by this strategy; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument(
        "--broker", metavar="URL", help="meet at this broker, not at one of our own"
    )
    parser.add_argument(
        "--no-broker", action="store_true", help="no broker: give the nodes each other's address"
    )
    parser.add_argument("--responder", action="store_true", help=argparse.SUPPRESS)
    return parser


def _mib(text: str) -> int:
    mib = int(text)
    if mib < 1:
        raise ValueError
    return mib


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns the exit code."""
    if args.responder:
        return asyncio.run(_responder(args.mib, args.broker))
    show = Show(args.json)
    try:
        ok = asyncio.run(_initiator(args, show))
    except DemoError as error:
        return show.end(False, str(error))
    return show.end(ok)


def _conf(broker: str | None) -> dict[str, Any]:
    from warpgate.node.node_defs import NODE_TEST_CONF

    conf = {**NODE_TEST_CONF, "accept_plain": False}
    if broker:
        conf |= {"brokers": [broker], "sig_pipe_no": 1, "enable_nickname": True}
    return conf


# Bob, who is connected to.


async def _responder(mib: int, broker: str | None) -> int:
    """Be the peer: say who we are, exchange data on the first pipe, answer on the second."""
    from warpgate.node.node import Node

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


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


# Alice, who connects.


async def _initiator(args: argparse.Namespace, show: Show) -> bool:
    from warpgate.node.node import Node

    async with contextlib.AsyncExitStack() as stack:
        broker = await _open_broker(args, stack, show)
        node = await stack.enter_async_context(Node(conf=_conf(broker)))
        child = await stack.enter_async_context(_child(args.mib, broker))
        show.line(f"alice: process {os.getpid()}, node {node.node_id[:12]}…, port {node.port}")
        bob = await _hear(child)
        known = str(bob["node_id"] if broker else bob["address"])
        by = f"node id {known[:12]}…" if broker else f"address of {len(known)} characters"
        show.line(f"bob:   process {child.pid}, known to alice by its {by}")
        show.facts |= {
            "broker": broker,
            "alice": {"process": os.getpid(), "node_id": node.node_id},
            "bob": {"process": child.pid, "node_id": bob["node_id"]},
        }
        assert child.stdin is not None
        child.stdin.write(f"{node.node_id}\n".encode())
        await child.stdin.drain()
        pipe, report = await _connect(node, known, args.strategy, show)
        async with pipe, asyncio.timeout(DEADLINE_S):
            with progress_bar(args.mib * 2**20) as progress:
                mine = await exchange(pipe, args.mib * 2**20, progress)
            theirs = await _hear(child)
        show.exchanged(mine, theirs)
        show.attempts(report)
        again: list[str] | None = ["reverse_connect"]
        if "reverse_connect" not in node.traversal.plugin_loaders:
            show.line("reverse_connect is not installed (warpgate-plugin-direct): again as before")
            again = args.strategy
        pipe, report = await _connect(node, known, again, show)
        async with pipe:
            await pipe.send(PING)
            answered = await pipe.recv_n(len(PING), timeout=DEADLINE_S) == PING
        show.attempts(report)
        show.signals((await _hear(child))["stats"])
        async with asyncio.timeout(ENDING_S):
            await child.wait()
        return answered and bool(mine["ok"] and theirs["ok"])


async def _open_broker(
    args: argparse.Namespace, stack: contextlib.AsyncExitStack, show: Show
) -> str | None:
    """Return the URL of the broker to meet at: the one asked for, or one of our own."""
    if args.broker or args.no_broker:
        return None if args.no_broker else str(args.broker)
    from warpgate.errors import ConfigError
    from warpgate.signalling.broker import EmbeddedBroker

    try:
        broker = await stack.enter_async_context(EmbeddedBroker())
    except ConfigError as error:
        show.line(f"no broker ({error}); the nodes get each other's address instead")
        return None
    show.line(f"broker: {broker.url}, in this process")
    return broker.url


async def _connect(
    node: Node, known: str, strategies: list[str] | None, show: Show
) -> tuple[Pipe, Report]:
    from warpgate.node.auto_connect import auto_connect

    pipe, plugin = await auto_connect(node, known, timeout=CONNECT_S, plugins=strategies)
    report = node.last_report
    assert report is not None
    if pipe is None or plugin is None:
        raise DemoError(f"no connection: {report}")
    distribution = node.traversal.loader(plugin.name).distribution
    show.connection(report, distribution, repr(pipe), str(pipe.peer_id))
    return pipe, report


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


async def _hear(child: asyncio.subprocess.Process) -> dict[str, Any]:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise DemoError("the other process ended early")
    heard: dict[str, Any] = json.loads(line)
    if "error" in heard:
        raise DemoError(f"the other process: {heard['error']}")
    return heard


# What they exchange.


async def exchange(
    pipe: Pipe, size: int, progress: Progress = lambda _done: None
) -> dict[str, Any]:
    """Send ``size`` random bytes and their SHA-256, and check what the peer sends likewise.

    Args:
        pipe: a stream.
        size: bytes each way.
        progress: called with the bytes received so far.

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
            progress(start + CHUNK)
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

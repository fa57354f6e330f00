"""``warpgate listen``: wait for a peer, and copy standard input and output, as ``nc -l`` does."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.node.node import Node


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate listen``."""
    from warpgate.cli.netcat import add_arguments

    parser = subparsers.add_parser(
        "listen",
        help="wait for a peer, then copy standard input and output",
        description=(
            "Start a node, print the address to give to a peer, wait for the peer, and copy "
            "standard input to it and what it sends to standard output, until either side ends. "
            "Exit code 1 when the connection broke."
        ),
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the address as one line of JSON on standard output, before the data",
    )
    parser.add_argument("--port", type=_port, metavar="N", help="port (default: the machine's own)")
    parser.add_argument("--ip", help="listen on this address only")
    parser.add_argument("--name", help="publish this name on the brokers, until the end")
    parser.add_argument("--keep", action="store_true", help="serve one peer after the other")
    add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve one peer, or all; returns 1 when a connection broke."""
    return asyncio.run(_listen(args))


async def _listen(args: argparse.Namespace) -> int:
    from warpgate.cli.netcat import Copy, running_node, say
    from warpgate.cli.standard_streams import Input, Output

    async with running_node(args, args.port, args.ip) as node:
        stdin, stdout = Input(), Output()
        full = args.name and await node.nickname(args.name, withdraw_on_close=True)
        _introduce(node, args.json, full)
        while True:
            pipe = await node.accept()
            say(f"{pipe.peer_id} connected from {pipe.remote[0]} port {pipe.remote[1]}")
            trouble = await Copy(pipe, args.grace).run(stdin, stdout)
            if trouble is not None:
                say(f"warpgate: {trouble}")
            if not args.keep:
                return 0 if trouble is None else 1


def _introduce(node: Node, as_json: bool, name: str | None) -> None:
    from warpgate.cli.netcat import say

    address = node.peer_address.to_text()
    if as_json:
        facts = {
            "address": address,
            "node_id": node.node_id,
            "port": node.port,
            "brokers": list(node.router.brokers()),
            **({"name": name} if name else {}),
        }
        print(json.dumps(facts), flush=True)
        return
    say(f"address: {address}")
    if node.rendezvous.names is not None:
        say(f"node id: {node.node_id}")
    if name:
        say(f"name: {name}")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port

"""``warpgate connect``: reach a peer, and copy standard input and output, as ``nc`` does."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Final

from warpgate.hookspecs import hookimpl

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.events import Event
    from warpgate.net.pipe import Pipe
    from warpgate.node.node import Node

TIMEOUT_S: Final = 60.0


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate connect``."""
    from warpgate.cli.netcat import add_arguments, seconds

    parser = subparsers.add_parser(
        "connect",
        help="connect to a peer, then copy standard input and output",
        description=(
            "Connect by the best strategy, then copy standard input to the peer and what it sends "
            "to standard output, until either side ends. Exit code 1 when there was no way, or the "
            "connection broke; the reason is on standard error."
        ),
    )
    parser.add_argument("address", metavar="ADDRESS", help="the peer's address, node id or name")
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="say on standard error what is tried"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT_S,
        metavar="S",
        help="seconds to connect in (default %(default)s)",
    )
    parser.add_argument("--transport", choices=("tcp", "udp"), help="only this kind of pipe")
    parser.add_argument(
        "--plugin", action="append", metavar="NAME", help="only this strategy; may be repeated"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print what was tried as one line of JSON on standard error",
    )
    add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Connect and copy; returns 1 when the connection broke."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from warpgate.cli.netcat import Copy, running_node, say
    from warpgate.cli.standard_streams import Input, Output

    async with running_node(args) as node:
        if args.verbose:
            node.hooks.register(Narrator())
        pipe = await _connect(node, args)
        trouble = await Copy(pipe, args.grace).run(Input(), Output())
        if trouble is not None:
            say(f"warpgate: {trouble}")
        return 0 if trouble is None else 1


async def _connect(node: Node, args: argparse.Namespace) -> Pipe:
    from warpgate.errors import WarpgateError
    from warpgate.node.auto_connect import connect

    try:
        pipe = await connect(
            node,
            args.address,
            args.timeout,
            transport=args.transport,
            plugins=args.plugin,
        )
    except WarpgateError:
        _show_report(node, args)
        raise
    _show_report(node, args)
    return pipe


def _show_report(node: Node, args: argparse.Namespace) -> None:
    from warpgate.cli.demo_show import attempt_table
    from warpgate.cli.netcat import say

    report = node.last_report
    if report is None:
        return
    if args.verbose and (report.outcomes or report.skips):
        say("\n".join(attempt_table(report)))
    if args.json:
        say(json.dumps(report.as_dict()))


class Narrator:
    """Says on standard error what a node tries, while it does."""

    @hookimpl
    def warpgate_event(self, event: Event) -> None:
        """Print one line, if there is something to say."""
        from warpgate.cli.netcat import say

        line = told(event)
        if line is not None:
            say(line)


def told(event: Event) -> str | None:
    """Return the line for an event; None for those that are about something else."""
    from warpgate.events import AttemptFinished, AttemptStarted, ConnectFinished, ConnectStarted

    match event:
        case ConnectStarted():
            return (
                f"peer {event.peer_id}: {event.combinations} ways to try, {event.skipped} skipped"
            )
        case AttemptStarted():
            role = "trying" if event.initiator else "asked by the peer"
            return f"{event.strategy}: {role} ({event.phase or 'auxiliary'})"
        case AttemptFinished():
            why = f", {event.cause}" if event.cause else ""
            return f"{event.strategy}: {event.status} after {event.seconds * 1000:.1f} ms{why}"
        case ConnectFinished(strategy=None):
            return f"not connected after {event.seconds:.2f} s"
        case ConnectFinished():
            return f"connected by {event.strategy} in {event.seconds * 1000:.1f} ms"
    return None

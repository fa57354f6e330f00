"""The ``warpgate`` command.

Each command is a module with ``add_parser(subparsers)``, which adds its own parser and returns it,
and ``run(args) -> int``, which returns the exit code. Only the module of the command that is asked
for is imported.

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  # has no public name

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "listen": ("warpgate.cli.listen", "wait for a peer, then copy standard input and output"),
    "connect": ("warpgate.cli.connect", "connect to a peer, then copy standard input and output"),
    "id": ("warpgate.cli.identity_command", "print this machine's node id"),
    "trust": ("warpgate.cli.trust", "list, accept and remove the keys that names are pinned to"),
    "plugins": ("warpgate.cli.plugins", "list strategies, and what was rejected and why"),
    "broker": ("warpgate.cli.broker", "run an MQTT broker for the nodes of a LAN"),
    "doctor": ("warpgate.cli.doctor", "check this machine and the servers it is told of"),
    "nat": ("warpgate.cli.nat", "print what this machine's NATs do"),
    "demo": ("warpgate.cli.demo", "connect two nodes in two processes and exchange data"),
}
"""Command → module and one line of help."""


class Command(Protocol):
    """A command's module."""

    def add_parser(self, subparsers: Subparsers) -> argparse.ArgumentParser:
        """Add the command's parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Carry the command out; returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; the process's own when None.

    Returns:
        The exit code.

    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="warpgate", description="Peer-to-peer connections in pure Python."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    command: Command | None = None
    for name, (module, summary) in COMMANDS.items():
        if name == asked:
            command = cast("Command", import_module(module))
            command.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    try:
        args = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed the help or the mistake
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    if args.version:
        from warpgate import __version__

        print(f"warpgate {__version__}")
        return EXIT_OK
    if command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return _run(command, args)


def _run(command: Command, args: argparse.Namespace) -> int:
    from warpgate.errors import ConfigError, WarpgateError

    # The commands say themselves what users need to know; a log handler of the user's still gets all.
    logging.getLogger("warpgate").addHandler(logging.NullHandler())
    try:
        code = command.run(args)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"warpgate: {error}", file=sys.stderr)
        return EXIT_USAGE
    except WarpgateError as error:
        print(f"warpgate: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (``| head``) has gone: let the interpreter's last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code

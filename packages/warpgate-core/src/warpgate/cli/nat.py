"""``warpgate nat``: what this machine's NATs do."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Subparsers


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate nat``."""
    parser = subparsers.add_parser(
        "nat",
        help="print what this machine's NATs do",
        description=(
            "Ask STUN servers what the NATs between this machine and the internet do, in about a "
            "second: mapping, filtering, ports, hairpin, per interface and family. Exit code 1 when "
            "no server answered."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--stun",
        action="append",
        nargs="+",
        metavar="HOST:PORT",
        help="ask these servers instead of WARPGATE_STUN; may be repeated",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Probe and print; returns 1 when there are servers and none answered."""
    from ..errors import ConfigError
    from ..stun.survey import survey

    given = [server for several in args.stun or () for server in several]
    servers = given or _configured(os.environ)
    try:
        report = asyncio.run(survey(servers))
    except ValueError as error:
        raise ConfigError(f"a STUN server: {error}") from error
    if args.json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        print(report.text())
    return 0 if any(server.answered for server in report.servers) or not servers else 1


def _configured(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the servers that a node of this environment would ask."""
    named = environ.get("WARPGATE_STUN")
    if named is not None:  # without the settings' module, whose import takes half of the time
        return [server.strip() for server in named.split(",") if server.strip()]
    from ..node.config import make_config

    servers: tuple[str, ...] = make_config({}, environ)["stun_servers"]
    return servers

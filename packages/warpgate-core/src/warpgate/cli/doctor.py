"""``warpgate doctor``: what would keep this machine from connecting, and how to mend it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.findings import Finding


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine and its servers: interfaces, brokers, STUN, TURN, plugins, key file",
        description=(
            "Check what a node of this environment would find; every configured server is asked, "
            "and what a TURN server gives is given back. Every line is ok, warn or fail, with the "
            "mend. Exit code 1 when something failed."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--broker",
        action="append",
        metavar="URL",
        help="check this broker instead of WARPGATE_BROKERS; may be repeated",
    )
    parser.add_argument(
        "--stun",
        action="append",
        metavar="HOST:PORT",
        help="check this STUN server instead of WARPGATE_STUN; may be repeated",
    )
    parser.add_argument(
        "--turn",
        action="append",
        metavar="URL",
        help="check this TURN server instead of WARPGATE_TURN; may be repeated",
    )
    parser.add_argument(
        "--install-path", metavar="DIR", help="where the key file is (default: the platform's)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Check everything; returns 1 when something failed."""
    findings = asyncio.run(_check(args, os.environ))
    if args.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(finding)
    return 1 if any(finding.level == "fail" for finding in findings) else 0


async def _check(args: argparse.Namespace, environ: Mapping[str, str]) -> list[Finding]:
    from warpgate.cli import checks, server_checks
    from warpgate.node.config import make_config

    given = {
        "brokers": args.broker,
        "stun_servers": args.stun,
        "turn_servers": args.turn,
        "install_path": args.install_path,
    }
    settings = {key: value for key, value in given.items() if value}
    conf = make_config(settings, environ)
    findings = [
        *checks.package(),
        *checks.interfaces(),
        *checks.plugins(conf, environ),
        *checks.key_file(conf.folder),
        *checks.descriptors(),
    ]
    servers = await asyncio.gather(
        checks.brokers(conf["brokers"], conf["sig_pipe_no"]),
        server_checks.stun(conf["stun_servers"], enabled=conf["enable_stun_clients"]),
        server_checks.strategies(conf, environ),
    )
    return [*findings, *(finding for found in servers for finding in found)]

"""``warpgate id``: who this machine's node is."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.cli import Subparsers


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate id``."""
    parser = subparsers.add_parser(
        "id",
        help="print this machine's node id",
        description=(
            "Print the node id, alone on the first line; then where its key file is, and the id of "
            "this machine's network stack. The key is made when there is none."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--install-path", metavar="DIR", help="where the key file is (default: the platform's)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the ids; returns the exit code."""
    from warpgate.errors import ConfigError
    from warpgate.identity import KEY_FILE_NAME, load_or_create, stack_id
    from warpgate.node.config import make_config

    settings = {} if args.install_path is None else {"install_path": args.install_path}
    folder = make_config(settings, os.environ).folder
    if folder is None:
        raise ConfigError("an identity in memory has no id that lasts: name a folder")
    identity = load_or_create(folder)
    path, stack = folder / KEY_FILE_NAME, stack_id().hex()
    if args.json:
        print(json.dumps({"node_id": identity.node_id, "key_file": str(path), "stack_id": stack}))
    else:
        print(f"{identity.node_id}\nkey file: {path}\nstack id: {stack}")
    return 0

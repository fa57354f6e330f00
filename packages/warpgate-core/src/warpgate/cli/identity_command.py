"""``warpgate id``: who this machine's node is."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from warpgate.cli import Subparsers
    from warpgate.identity import Identity


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate id``."""
    parser = subparsers.add_parser(
        "id",
        help="print this machine's node id",
        description=(
            "Print the node id, alone on the first line; then the key's fingerprint, where its file "
            "is, and the id of this machine's network stack. The key is made when there is none."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="replace the key by a new one first; the old one stays beside it as a backup",
    )
    parser.add_argument(
        "--install-path", metavar="DIR", help="where the key file is (default: the platform's)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the ids; returns the exit code."""
    from warpgate.errors import ConfigError
    from warpgate.identity import KEY_FILE_NAME, load_or_create, stack_id
    from warpgate.names.rules import fingerprint
    from warpgate.node.config import make_config

    settings = {} if args.install_path is None else {"install_path": args.install_path}
    folder = make_config(settings, os.environ).folder
    if folder is None:
        raise ConfigError("an identity in memory has no id that lasts: name a folder")
    identity = _rotate(folder) if args.rotate else load_or_create(folder)
    facts = {
        "node_id": identity.node_id,
        "fingerprint": fingerprint(identity.public_key),
        "key_file": str(folder / KEY_FILE_NAME),
        "stack_id": stack_id().hex(),
    }
    if args.json:
        print(json.dumps(facts))
    else:
        print(identity.node_id)
        for name in ("fingerprint", "key_file", "stack_id"):
            print(f"{name.replace('_', ' ')}: {facts[name]}")
    return 0


def _rotate(folder: Path) -> Identity:
    from warpgate.identity import rotate
    from warpgate.names.rules import fingerprint
    from warpgate.node.slots import IdentitySlot

    # Held meanwhile: a running node would go on with the old key, and nobody would know which holds.
    slot = IdentitySlot(folder, most=1)
    try:
        old, new, backup = rotate(folder)
    finally:
        slot.close()
    print(
        f"warpgate: this machine has a new key; the old one ({old.node_id}) is in {backup}.\n"
        "warpgate: peers that know the old key will refuse the new one: those that have pinned a "
        "name of this node, or allow it by its id. Tell them the new fingerprint, "
        f"{fingerprint(new.public_key)}, for: warpgate trust accept NAME@FINGERPRINT",
        file=sys.stderr,
    )
    return new

"""``warpgate trust``: which keys are pinned to which names."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.names.pins import Pins


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate trust``."""
    parser = subparsers.add_parser(
        "trust",
        help="list, accept and remove the keys that names are pinned to",
        description=(
            "List the names that this machine has connected to, and the fingerprint of the key that "
            "each is pinned to. A name whose key has changed can't be connected to until the new "
            "fingerprint is accepted here."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--install-path", metavar="DIR", help="where the pins are (default: the platform's)"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="list the pins; what happens without an action too")
    accept = actions.add_parser("accept", help="pin a name to a key, whatever it was pinned to")
    accept.add_argument(
        "full_name", metavar="NAME@FINGERPRINT", help="a node id after the @ will do too"
    )
    remove = actions.add_parser("remove", help="forget a pin: the next connection makes a new one")
    remove.add_argument("name", metavar="NAME")
    return parser


def run(args: argparse.Namespace) -> int:
    """List or change the pins; returns 1 when there was no pin to remove."""
    from warpgate.errors import ConfigError
    from warpgate.names.pins import Pins
    from warpgate.node.config import make_config

    settings = {} if args.install_path is None else {"install_path": args.install_path}
    folder = make_config(settings, os.environ).folder
    if folder is None:
        raise ConfigError("pins in memory end with their node: name a folder")
    pins = Pins(folder)
    if args.action == "accept":
        return _accept(pins, args.full_name)
    if args.action == "remove":
        return _remove(pins, args.name)
    if args.json:
        print(json.dumps([asdict(pin) for pin in pins.all()]))
        return 0
    for pin in pins.all():
        print(f"{_listed(pin.name)} {pin.fingerprint} since {pin.since}")
    return 0


def _accept(pins: Pins, text: str) -> int:
    from warpgate.errors import ConfigError
    from warpgate.names.rules import clean_name, shown, split_full_name

    name, fingerprint = split_full_name(text)
    if fingerprint is None:
        raise ConfigError(
            f"{text!r} is not of the form name@fingerprint, with 32 characters of a-z, 2-7 at the end; "
            "the peer's `warpgate id` prints it"
        )
    try:
        name = clean_name(name)
    except ValueError as error:
        if not _printable(name):
            raise ConfigError(f"{name!r} can't be a name, because {error}") from None
    old = pins.accept(name, fingerprint)
    print(f"{shown(name)} is pinned to {fingerprint}")
    if old is not None and old.fingerprint != fingerprint:
        print(f"it was pinned to {old.fingerprint} since {old.since}")
    return 0


def _remove(pins: Pins, name: str) -> int:
    from warpgate.errors import WarpgateError
    from warpgate.names.rules import shown
    from warpgate.names.trust import pin_name

    name = pin_name(name)
    if not pins.remove(name):
        raise WarpgateError(f"{shown(name)} is not pinned; `warpgate trust` lists what is")
    print(f"{shown(name)} is forgotten")
    return 0


def _printable(name: str) -> bool:
    """Whether a name may be one that a resolver knows, though it breaks the rules for nicknames."""
    from warpgate.node.resolve import MAX_NAME

    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()


def _listed(name: str) -> str:
    from warpgate.names.rules import shown

    return name if name.isascii() and not set(name) & set(" \t") else shown(name)

"""``warpgate plugins``: what is installed, and what was rejected and why."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from warpgate import __version__

if TYPE_CHECKING:
    from warpgate.cli import Subparsers
    from warpgate.loading import LoadReport

NOTHING_INSTALLED = (
    "No strategy is installed. Install some with:\n"
    "  pip install warpgate-plugin-direct warpgate-plugin-punch warpgate-plugin-turn\n"
    "or all of them with:\n"
    '  pip install "warpgate-core[all]"'
)
ALL_FILTERED = (
    "Strategies are installed, but none is left: WARPGATE_PLUGINS and WARPGATE_BLOCK_PLUGINS "
    "exclude all of them."
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate plugins``."""
    parser = subparsers.add_parser(
        "plugins",
        help="list strategies, and what was rejected and why",
        description=(
            "List the strategies that a node of this environment would install, after the filters "
            "WARPGATE_PLUGINS and WARPGATE_BLOCK_PLUGINS, and the plugins that were rejected, with "
            "cause and mend. Exit code 0; with --check 1 when something was rejected."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 when a plugin was rejected"
    )
    parser.add_argument(
        "--plugin-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="look for plugins in this folder too; may be repeated",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the list; returns the exit code."""
    from warpgate.loading import STRICT_VARIABLE, load

    # Rejections are what this command is there to show, so they are never raised here.
    environ = {name: value for name, value in os.environ.items() if name != STRICT_VARIABLE}
    report = load({"plugin_dirs": args.plugin_dir}, environ)
    if args.json:
        print(json.dumps(_as_data(report), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_as_text(report)))
    return 1 if args.check and report.rejected else 0


def _auxiliaries(report: LoadReport) -> list[dict[str, Any]]:
    from warpgate.loading import CORE_AUXILIARIES
    from warpgate.loading.report import CORE

    core = [
        {"name": name, "distribution": CORE, "version": __version__, "entry_point": ""}
        for name in CORE_AUXILIARIES
        if name not in report.blocked
    ]
    others: list[dict[str, Any]] = [
        dict(strategy.as_dict()) for strategy in report.strategies if strategy.phase is None
    ]
    return core + others


def _as_data(report: LoadReport) -> dict[str, Any]:
    return {
        "strategies": [item.as_dict() for item in report.strategies if item.phase is not None],
        "auxiliaries": _auxiliaries(report),
        "hooks": [
            {"distribution": o.distribution, "version": o.version, "entry_point": o.entry_point}
            for o in report.objects
        ],
        "rejected": [failure.as_dict() for failure in report.rejected],
    }


def _as_text(report: LoadReport) -> list[str]:
    from warpgate.loading.report import table

    strategies = [item for item in report.strategies if item.phase is not None]
    lines = []
    if strategies:
        header = ("STRATEGY", "PHASE", "TRANSPORT", "DISTRIBUTION", "VERSION")
        lines += table(
            header,
            [(s.name, s.phase, s.makes, s.distribution, s.version or "-") for s in strategies],
        )
    else:
        from warpgate.loading.discovery import catalog

        lines.append(ALL_FILTERED if catalog().points else NOTHING_INSTALLED)
    rows = [(a["name"], a["distribution"], a["version"] or "-") for a in _auxiliaries(report)]
    lines += ["", *table(("AUXILIARY", "DISTRIBUTION", "VERSION"), rows)]
    if report.objects:
        rows = [(o.entry_point, o.distribution, o.version or "-") for o in report.objects]
        lines += ["", *table(("HOOKS", "DISTRIBUTION", "VERSION"), rows)]
    if report.rejected:
        lines += ["", "REJECTED"]
        for failure in report.rejected:
            lines.append(f"{failure.source} [{failure.stage}]")
            lines.append(f"  cause: {failure.cause}")
            lines.append(f"  mend:  {' '.join(failure.mend.split())}")
    return lines

"""The laboratory's commands: ``warpgate-natlab …``, ``python3 tools/dev.py lab …``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from warpgate.net.constants import af_name, route_type_name

from . import matrix as grids
from . import runs, selftest
from .impairments import check_impairments
from .lab import Lab
from .namespaces import LabError, why_not
from .parallel import leave
from .profiles import GRID, PAIRS, PROFILES
from .session import TIMEOUT_S, Result, run_pair

COMMANDS: Final = ("pair", "matrix", "selftest", "list", "cleanup")
PAIR_SERVERS: Final = "mqtt,stun"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description="a NAT laboratory on one machine (Linux, root)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    pair = commands.add_parser("pair", help="two real nodes behind two NATs (the default command)")
    pair.add_argument("--a", default="open", metavar="PROFILE", help="what the caller is behind")
    pair.add_argument("--b", default="open", metavar="PROFILE", help="what the called is behind")
    pair.add_argument("--pair", choices=sorted(PAIRS), help="a named pair instead of --a and --b")
    pair.add_argument("--json", action="store_true", help="print the whole result as JSON")
    grid = commands.add_parser("matrix", help="every pair of some profiles")
    grid.add_argument(
        "--profiles",
        default=",".join(GRID),
        help="comma separated, or 'all' (default: %(default)s)",
    )
    grid.add_argument("--runs", type=int, default=grids.RUNS, help="runs of each pair")
    grid.add_argument("--calls", type=int, default=1, help="connect calls in each run")
    grid.add_argument("--pairs", help="only these, as 'a x b', comma separated")
    grid.add_argument("--ordered", action="store_true", help="both roles of each pair")
    grid.add_argument("--jobs", type=int, default=grids.JOBS, help="laboratories at once")
    grid.add_argument(
        "--out", type=Path, default=Path("build/natlab-matrix"), help="folder for the files"
    )
    for command in (pair, grid):
        command.add_argument("--seed", type=int, default=0, help="of the NATs' and links' choices")
        command.add_argument("--timeout", type=float, default=TIMEOUT_S, help="of the call, s")
        command.add_argument("--plugins", help="try only these strategies, comma separated")
        command.add_argument("--transport", choices=("tcp", "udp"))
        command.add_argument(
            "--cold", action="store_true", help="connect before the nodes know their NATs"
        )
        command.add_argument(
            "--servers", default=PAIR_SERVERS, help="of mqtt,stun,ntp; '' = none (%(default)s)"
        )
    pair.add_argument(
        "--link", action="append", default=[], metavar="NAME=VALUE",
        help="impair both access links: loss=0.1, delay_ms=50 …; repeatable",
    )  # fmt: skip
    proof = commands.add_parser("selftest", help="probe every profile and compare")
    proof.add_argument("profiles", nargs="*", metavar="profile", help="all when none is named")
    proof.add_argument("--jobs", type=int, default=selftest.WORKERS, help="laboratories at once")
    proof.add_argument("--json", action="store_true", help="print the rows as JSON")
    commands.add_parser("list", help="the profiles and the named pairs")
    commands.add_parser("cleanup", help="remove what dead runs left")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0] not in COMMANDS and words[0] not in ("-h", "--help")):
        words.insert(0, "pair")
    options = _parser().parse_args(words)
    if options.command == "list":
        return _list()
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)
    try:
        command = {"pair": _pair, "matrix": _matrix, "selftest": _selftest, "cleanup": _cleanup}
        return command[options.command](options)
    except (LabError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted(options.command, 130)
    except SystemExit as end:  # SIGTERM, by _leave
        return _interrupted(options.command, int(end.code or 0))


def _interrupted(command: str, status: int) -> int:
    """Wait for no laboratory in another thread: a probe takes its time."""
    if command in ("matrix", "selftest"):
        leave(status)
    return status


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by the ordinary way, through every ``with``."""
    raise SystemExit(128 + number)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _pairs(text: str | None) -> list[tuple[str, str]] | None:
    if text is None:
        return None
    pairs = []
    for item in text.split(","):
        first, cross, second = item.partition(" x ")
        if not cross:
            raise ValueError(f"--pairs {item!r} is not of the form 'a x b'")
        pairs.append((first.strip(), second.strip()))
    return pairs


def _pair(options: argparse.Namespace) -> int:
    link = {}
    for text in options.link:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--link {text!r} is not of the form NAME=VALUE")
        link[name] = json.loads(value)
    started = time.perf_counter()
    with Lab(
        options.a, options.b, pair=options.pair, seed=options.seed, servers=options.servers, **link
    ) as lab:
        setup_s = time.perf_counter() - started
        result = run_pair(
            lab,
            timeout=options.timeout,
            plugins=_names(options.plugins),
            transport=options.transport,
            warm=not options.cold,
        )
        result.setup_s = setup_s
        started = time.perf_counter()
    down_s = time.perf_counter() - started
    if options.json:
        print(json.dumps(result.as_dict(), indent=1, default=str))
    else:
        print("\n".join([*_describe(result), f"taken down in {down_s:.2f} s"]))
    return 0 if result.ok else 1


def _describe(result: Result) -> list[str]:
    """Return the lines that tell a result."""
    where = f"{result.a} x {result.b}" if result.b else result.a
    signals = "over MQTT" if result.signalling == "mqtt" else "straight to the peer"
    head = f"{where}: laboratory in {result.setup_s:.2f} s, nodes in {result.nodes_s:.2f} s, "
    lines = [head + f"signals {signals}", ""]
    head_row = ("strategy", "phase", "route", "way", "began", "took", "outcome", "why")
    rows: list[Sequence[str]] = [head_row]
    for attempt in result.report.get("attempts", ()):
        rows.append(
            (
                attempt["strategy"],
                attempt["phase"] or "auxiliary",
                _route(attempt),
                f"{attempt['local']} → {attempt['remote']}",
                f"{attempt['started_s'] * 1000:.0f} ms",
                f"{attempt['seconds'] * 1000:.0f} ms",
                attempt["status"],
                attempt["cause"],
            )
        )
    for skip in result.report.get("skips", ()):
        row = (skip["strategy"], "", _route(skip), skip["detail"], "", "", "skipped", skip["text"])
        rows.append(row)
    lines += [*selftest.columns(rows), ""]
    if result.ok and result.connect_s is not None and result.ping_s is not None:
        lines.append(
            f"connected by {result.strategy} ({result.transport}, {result.path}) in "
            f"{result.connect_s:.3f} s; first answer after {result.ping_s:.3f} s"
        )
    else:
        took = "" if result.connect_s is None else f" after {result.connect_s:.2f} s"
        cause = result.error.partition("\n")[0].rstrip(":")  # the table has the rest
        lines.append(f"NOT CONNECTED{took}: {cause}")
    return lines


def _route(entry: dict[str, Any]) -> str:
    parts = []
    if entry["af"] is not None:
        parts.append(af_name(entry["af"]))
    if entry["route_type"] is not None:
        parts.append(route_type_name(entry["route_type"]))
    return " ".join(parts)


def _matrix(options: argparse.Namespace) -> int:
    names = list(PROFILES) if options.profiles == "all" else _names(options.profiles) or []

    def done(result: Result) -> None:
        took = f"{result.strategy} {result.ping_s:.3f} s" if result.ok else "no path"
        print(f"{result.a} x {result.b}: {took}", file=sys.stderr, flush=True)

    cells = grids.matrix(
        names,
        pairs=_pairs(options.pairs),
        runs=options.runs,
        calls=options.calls,
        warm=not options.cold,
        ordered=options.ordered,
        jobs=options.jobs,
        seed=options.seed,
        servers=_names(options.servers) or (),
        timeout=options.timeout,
        plugins=_names(options.plugins),
        transport=options.transport,
        done=done,
    )
    print("\n".join(grids.table(cells)))
    try:
        files = grids.write(cells, options.out)
    except ImportError as error:
        print(f"no heat map: {error}; pip install matplotlib", file=sys.stderr)
        return 0
    print("written:", ", ".join(str(path) for path in files))
    return 0


def _selftest(options: argparse.Namespace) -> int:
    started = time.monotonic()

    def done(row: selftest.Row) -> None:
        verdict = "; ".join(row.wrong) or "as promised"
        print(f"{row.name} ({row.seconds:.1f} s): {verdict}", file=sys.stderr, flush=True)

    rows = selftest.selftest(options.profiles, workers=options.jobs, done=done)
    everything = not options.profiles
    pairs = selftest.pairs() if everything else {}
    found = check_impairments() if everything else []
    if options.json:
        plain = {
            "profiles": [row.as_dict() for row in rows],
            "pairs": pairs,
            "impairments": [asdict(finding) for finding in found],
        }
        print(json.dumps(plain, indent=1))
    else:
        print("\n".join(selftest.table(rows)))
    bad = sum(bool(row.wrong) for row in rows) + sum(map(bool, pairs.values()))
    bad += sum(not finding.right for finding in found)
    if everything and not options.json:
        cells: list[Sequence[str]] = [("pair or impairment", "found", "verdict")]
        cells += [(name, "", "; ".join(pairs[name]) or "as promised") for name in pairs]
        cells += [(f.name, f.found, "as promised" if f.right else "WRONG") for f in found]
        print("\n".join(["", *selftest.columns(cells), ""]))
    checked = f"{len(rows)} rows of profiles"
    if everything:
        checked += f", {len(pairs)} pairs and {len(found)} impairments"
    seconds = time.monotonic() - started
    print(
        f"{checked} probed in {seconds:.1f} s: {bad} not as promised",
        file=sys.stderr if options.json else sys.stdout,
    )
    return 1 if bad else 0


def _list() -> int:
    rows: list[Sequence[str]] = [("profile", "what it is")]
    rows += [(profile.name, profile.about) for profile in PROFILES.values()]
    rows += [(pair.name, pair.about) for pair in PAIRS.values()]
    print("\n".join(selftest.columns(rows)))
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    gone = runs.sweep()
    print(f"{len(gone)} dead runs removed" + (f": {', '.join(gone)}" if gone else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())

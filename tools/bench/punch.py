"""Measures punching in the NAT laboratory: seconds to the first answered message, and CPU, by pair.

Run ``python tools/bench/punch.py [--pair 'a x b' …] [--calls N] [--transport udp|tcp]`` as root on
Linux (elsewhere it says so and exits with 77). Without ``--pair`` it measures the pairs that have a
bound, and exits with 1 when one is missed. Both nodes are warm: they know their NATs and their
brokers. ``--link loss=0.1 --link jitter_ms=100`` impairs both access links.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SKIPPED: Final = 77
"""What run.py takes for ``nothing measured``."""
CALLS: Final = 10
TIMEOUT_S: Final = 15.0


@dataclass(frozen=True)
class Cell:
    """A pair of networks, and what must hold for it.

    Attributes:
        a, b: profiles; a named pair has no b.
        transport: ``udp`` or ``tcp``; None: either.
        median_s, ninety_five_s: bounds for the first answered message.
        cpu_ms: bound for both processes' CPU time per call, the median, each.
        share: of the calls that must connect directly.

    """

    a: str
    b: str
    transport: str | None = "udp"
    median_s: float | None = None
    ninety_five_s: float | None = None
    cpu_ms: float | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """The pair in words."""
        return f"{self.a} x {self.b}" if self.b else self.a


CELLS: Final = (
    Cell("port-restricted", "port-restricted", median_s=0.22),
    Cell("cgnat", "port-restricted", median_s=0.30),
    Cell("symmetric-sequential", "port-restricted", ninety_five_s=3.0),
    Cell("symmetric-sequential", "symmetric-sequential", ninety_five_s=3.0),
    Cell("port-restricted", "symmetric-random", ninety_five_s=2.0),
    Cell("port-restricted", "port-restricted", "tcp", median_s=0.32),
    Cell("port-restricted", "port-restricted", None, median_s=0.45),
)


def measure(
    cell: Cell, calls: int, plugins: Sequence[str] | None, link: dict[str, Any]
) -> dict[str, Any]:
    """Build a laboratory, call so often, return the figures."""
    from warpgate_natlab.lab import Lab
    from warpgate_natlab.session import run_calls

    pair: dict[str, Any] = {"pair": cell.a} if not cell.b else {"a": cell.a, "b": cell.b}
    with Lab(**pair, seed=7, servers=["mqtt", "stun"], **link) as lab:
        found = run_calls(
            lab, calls=calls, timeout=TIMEOUT_S, plugins=plugins, transport=cell.transport
        )
    good = [each for each in found if each.ok]
    times = sorted(each.ping_s or 0.0 for each in good)
    connects = sorted(each.connect_s or 0.0 for each in good)
    return {
        "pair": cell.name,
        "transport": cell.transport,
        "ok": len(good),
        "direct": sum(each.path == "direct" for each in good),
        "calls": len(found),
        "connect_s": statistics.median(connects) if connects else None,
        "median_s": statistics.median(times) if times else None,
        "ninety_five_s": times[min(len(times) - 1, round(len(times) * 0.95))] if times else None,
        "cpu_ms": _median_ms([each.cpu_s for each in found]),
        "peer_cpu_ms": _median_ms([each.peer_cpu_s for each in found]),
        "strategies": sorted({each.strategy for each in good if each.strategy}),
        "errors": sorted({each.error for each in found if not each.ok}),
    }


def _median_ms(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return statistics.median(known) * 1000 if known else None


def missed(cell: Cell, figures: dict[str, Any]) -> list[str]:
    """Return which bounds of a cell are missed, in words."""
    wrong = []
    if figures["direct"] < cell.share * figures["calls"]:
        wrong.append(f"{figures['direct']} of {figures['calls']} direct")
    for name, bound in (("median_s", cell.median_s), ("ninety_five_s", cell.ninety_five_s),
                        ("cpu_ms", cell.cpu_ms)):  # fmt: skip
        value = figures[name]
        if bound is not None and value is not None and value > bound:
            wrong.append(f"{name} {value:.3f} > {bound:g}")
    return wrong


def line(figures: dict[str, Any], wrong: Sequence[str]) -> str:
    """Return the line for people."""

    def shown(name: str, unit: str = "", digits: int = 3) -> str:
        value = figures[name]
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    text = (
        f"{figures['pair']:<44} {figures['transport'] or 'any':<4}"
        f"{figures['ok']:>3}/{figures['calls']:<3} direct {figures['direct']:<3}"
        f" connect {shown('connect_s')}  first answer {shown('median_s')}"
        f"  95 % {shown('ninety_five_s')}  CPU {shown('cpu_ms', ' ms', 1)} + "
        f"{shown('peer_cpu_ms', ' ms', 1)}  {', '.join(figures['strategies'])}"
    )
    return text + (f"   MISSED: {'; '.join(wrong)}" if wrong else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description="punching in the NAT laboratory")
    parser.add_argument("--pair", action="append", default=[], help="'a x b', or a named pair")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--transport", choices=("udp", "tcp", "any"), default="udp")
    parser.add_argument("--plugins", help="only these, comma separated")
    parser.add_argument("--link", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        from warpgate_natlab.namespaces import why_not
    except ImportError:
        print("nothing measured: the laboratory is not installed")
        return SKIPPED
    reason = why_not()
    if reason:
        print(f"nothing measured: {reason}")
        return SKIPPED
    transport = None if options.transport == "any" else options.transport
    cells = [Cell(*_sides(text), transport) for text in options.pair] or list(CELLS)
    link = {name: json.loads(value) for name, _, value in (x.partition("=") for x in options.link)}
    plugins = options.plugins.split(",") if options.plugins else None
    failed = False
    for cell in cells:
        figures = measure(cell, options.calls, plugins, link)
        wrong = [] if options.pair else missed(cell, figures)
        failed = failed or bool(wrong)
        print(json.dumps(figures) if options.json else line(figures, wrong), flush=True)
        if not options.json:
            for error in figures["errors"]:
                print(f"    {error}")
    return 1 if failed else 0


def _sides(text: str) -> tuple[str, str]:
    first, _, second = text.partition(" x ")
    return first.strip(), second.strip()


if __name__ == "__main__":
    sys.exit(main())

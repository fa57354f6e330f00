"""A grid of pairs: what connects to what, by which strategy, how fast; as table, JSON and heat map."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any, Final

from .lab import Lab
from .namespaces import LabError
from .parallel import in_parallel
from .profiles import profile
from .selftest import columns
from .session import TIMEOUT_S, Result, run_calls

JOBS: Final = 2
RUNS: Final = 1
SERVERS: Final = ("mqtt", "stun", "ntp")


@dataclass
class Cell:
    """All runs of one pair.

    Attributes:
        a, b: the profiles' names; a is the one that connects.
        runs: one result each.

    """

    a: str
    b: str
    runs: list[Result] = field(default_factory=list)

    @property
    def connected(self) -> int:
        """How many runs had a pipe that answered."""
        return sum(run.ok for run in self.runs)

    @property
    def direct(self) -> int:
        """How many of them went without a relay."""
        return sum(run.ok and run.path != "relay" for run in self.runs)

    @property
    def median_s(self) -> float | None:
        """The median time from the call to the first answer, in seconds."""
        times = [run.ping_s for run in self.runs if run.ok and run.ping_s is not None]
        return statistics.median(times) if times else None

    @property
    def p95_s(self) -> float | None:
        """The time within which 95 % of the runs that connected had their first answer, in seconds."""
        times = sorted(run.ping_s for run in self.runs if run.ok and run.ping_s is not None)
        return times[min(len(times) - 1, round(0.95 * len(times) + 0.5) - 1)] if times else None

    @property
    def cpu_s(self) -> float | None:
        """The median of what a call cost the dearer of the two processes, in seconds."""
        spent = [
            max(r.cpu_s, r.peer_cpu_s or 0.0) for r in self.runs if r.ok and r.cpu_s is not None
        ]
        return statistics.median(spent) if spent else None

    @property
    def strategies(self) -> str:
        """The strategies that won, most frequent first."""
        won = [run.strategy for run in self.runs if run.ok and run.strategy]
        return ", ".join(sorted(set(won), key=lambda name: (-won.count(name), name)))

    @property
    def causes(self) -> str:
        """Why the first run without a path has none: its attempts' causes, else its error."""
        for run in self.runs:
            if run.ok:
                continue
            tried = [
                f"{attempt['strategy']}: {attempt['cause']}"
                for attempt in run.report.get("attempts", ())
                if attempt["cause"]
            ]
            return "; ".join(tried) or run.error.strip().partition("\n")[0]
        return ""


def run_cell(
    a: str, b: str, number: int, *, seed: int, servers: Sequence[str], **options: Any
) -> list[Result]:
    """Build a laboratory for one run of one pair, and run it; failures to build become a result."""
    started = time.perf_counter()
    try:
        with Lab(a, b, seed=f"{seed}/{a}/{b}/{number}", servers=servers) as lab:
            setup_s = time.perf_counter() - started
            results = run_calls(lab, **options)
    except (LabError, OSError) as error:
        return [Result(a, b, ok=False, error=f"{type(error).__name__}: {error}")]
    for result in results:
        result.setup_s = setup_s
    return results


def matrix(
    names: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    runs: int = RUNS,
    calls: int = 1,
    warm: bool = True,
    ordered: bool = False,
    jobs: int = JOBS,
    seed: int = 0,
    servers: Sequence[str] = SERVERS,
    timeout: float = TIMEOUT_S,
    plugins: Sequence[str] | None = None,
    transport: str | None = None,
    done: Callable[[Result], None] | None = None,
) -> list[Cell]:
    """Run every pair of some profiles.

    Args:
        names: the profiles.
        pairs: only these pairs, whatever ``names`` says.
        runs: laboratories for each.
        calls: connect calls in each laboratory.
        warm: the nodes know their NATs before the first call.
        ordered: also with the roles exchanged, else each pair once.
        jobs: laboratories at once.
        seed: the NATs' and links' choices follow from it, pair and number of the run.
        servers: kinds of servers to start.
        timeout: seconds for each connect call.
        plugins, transport: narrow what is tried.
        done: called with each result when it is there.

    Returns:
        The cells, in the order of the pairs.

    """
    if pairs is None:
        each = [(a, b) for a, b in product(names, repeat=2)]
        pairs = each if ordered else list(combinations_with_replacement(names, 2))
    for name in {name for pair in pairs for name in pair}:
        profile(name)
    cells = [Cell(a, b) for a, b in pairs]

    def run(job: tuple[Cell, int]) -> list[Result]:
        cell, number = job
        results = run_cell(
            cell.a, cell.b, number, seed=seed, servers=servers, timeout=timeout,
            plugins=plugins, transport=transport, calls=calls, warm=warm,
        )  # fmt: skip
        if done is not None:
            for result in results:
                done(result)
        return results

    order = [(cell, number) for number in range(runs) for cell in cells]
    for (cell, _), results in zip(order, in_parallel(run, order, jobs), strict=True):
        cell.runs += results
    return cells


def table(cells: Sequence[Cell]) -> list[str]:
    """Return the lines of a table, a summary last."""
    rows: list[Sequence[str]] = [(
        "a", "b", "connected", "direct", "median s", "p95 s", "CPU ms", "won by", "cause"
    )]  # fmt: skip
    for cell in cells:
        median, p95, cpu = cell.median_s, cell.p95_s, cell.cpu_s
        total = len(cell.runs)
        rows.append(
            (
                cell.a,
                cell.b,
                f"{cell.connected}/{total}",
                f"{cell.direct}/{total}",
                "" if median is None else f"{median:.3f}",
                "" if p95 is None else f"{p95:.3f}",
                "" if cpu is None else f"{cpu * 1000:.0f}",
                cell.strategies,
                cell.causes[:100],
            )
        )
    whole = sum(cell.connected == len(cell.runs) for cell in cells)
    direct = sum(cell.direct == len(cell.runs) for cell in cells)
    times = [median for cell in cells if (median := cell.median_s) is not None]
    middle = f"; median of medians {statistics.median(times):.3f} s" if times else ""
    summary = f"{whole} of {len(cells)} pairs connected in every run, {direct} directly{middle}"
    return [*columns(rows), "", summary]


def write(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write table, JSON and, with matplotlib, heat maps.

    Returns:
        The files.

    Raises:
        ImportError: matplotlib is missing; the other files are there.

    """
    folder.mkdir(parents=True, exist_ok=True)
    text, data = folder / "matrix.txt", folder / "matrix.json"
    text.write_text("\n".join(table(cells)) + "\n", "utf-8")
    data.write_text(
        json.dumps(
            [
                {
                    "a": cell.a,
                    "b": cell.b,
                    "connected": cell.connected,
                    "direct": cell.direct,
                    "runs": [run.as_dict() for run in cell.runs],
                    "median_s": cell.median_s,
                    "p95_s": cell.p95_s,
                    "cpu_s": cell.cpu_s,
                }
                for cell in cells
            ],
            indent=1,
            default=str,
        ),
        "utf-8",
    )
    from .heatmap import draw

    return [text, data, *draw(cells, folder)]

"""What ``warpgate demo`` shows: lines and tables, or one JSON document; and its progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from warpgate.traversal.report import Report

BAR_WIDTH: Final = 40

Progress = Callable[[int], None]
"""Called with the bytes received so far."""


class Show:
    """The demo's output.

    Args:
        as_json: nothing but one JSON document, at the end.

    Attributes:
        facts: what the document will hold.

    """

    def __init__(self, as_json: bool) -> None:
        self.facts: dict[str, Any] = {"ok": False, "error": None, "connections": []}
        self._as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line, unless JSON is wanted."""
        if not self._as_json:
            print(text, flush=True)

    def connection(self, report: Report, distribution: str, pipe: str, peer_id: str) -> None:
        """Show how a connection came about."""
        winner = report.winner.strategy if report.winner is not None else ""
        self.facts["connections"].append({"distribution": distribution, **report.as_dict()})
        self.line(
            f"\nconnected by {winner} (from the entry point of {distribution}) "
            f"in {report.seconds * 1000:.1f} ms"
        )
        self.line(f"pipe:  {pipe}\n       peer proven: {peer_id}\n")

    def attempts(self, report: Report) -> None:
        """Show every attempt and every skip."""
        for line in attempt_table(report):
            self.line(line)

    def exchanged(self, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Show what was sent and what arrived."""
        self.facts["alice"] |= mine
        self.facts["bob"] |= theirs
        rate = mine["bytes"] / 2**20 / mine["seconds"]
        for name, sent, got in (("alice → bob", mine, theirs), ("bob → alice", theirs, mine)):
            verdict = "equal" if sent["sent"] == got["received"] else "DIFFERENT"
            digest = got["received"][:16]
            self.line(f"{name}: {got['bytes'] >> 20} MiB, SHA-256 {digest}… {verdict}")
        self.line(f"{mine['seconds']:.2f} s, {rate:.0f} MiB/s each way at once\n")

    def signals(self, stats: dict[str, int]) -> None:
        """Show by which ways the peer's signals came."""
        prefix = "signals_by_"
        ways = {k.removeprefix(prefix): v for k, v in stats.items() if k.startswith(prefix)}
        self.facts["signals"] = ways
        told = ", ".join(f"{name} {count}" for name, count in ways.items()) or "none"
        self.line(f"\nsignals that bob took: {told} (the first copy counts)")

    def end(self, ok: bool, error: str | None = None) -> int:
        """Say how it ended; returns the exit code."""
        self.facts |= {"ok": ok, "error": error}
        if self._as_json:
            print(json.dumps(self.facts, indent=2, ensure_ascii=False), flush=True)
        if error is not None:
            print(error, file=sys.stderr)
        else:
            self.line("both directions arrived whole" if ok else "DATA WAS DAMAGED")
        return 0 if ok else 1


@contextlib.contextmanager
def progress_bar(size: int) -> Iterator[Progress]:
    """Draw a bar on standard error, with rich when it is installed; nothing when it is no terminal.

    Args:
        size: bytes to come.

    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        yield lambda done: _plain_bar(min(done, size), size)
        return
    columns = TextColumn("alice ⇄ bob"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=size)
        yield lambda done: progress.update(task, completed=min(done, size))


def _plain_bar(done: int, size: int) -> None:
    filled = BAR_WIDTH * done // size
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    end = "\n" if done == size else ""
    sys.stderr.write(f"\r[{bar}] {done >> 20} of {size >> 20} MiB{end}")
    sys.stderr.flush()


def attempt_table(report: Report) -> list[str]:
    """Return the lines of a table of every attempt and every skip."""
    from warpgate.loading.report import table
    from warpgate.net.constants import af_name, route_type_name

    rows: list[tuple[str, ...]] = [
        (
            outcome.strategy,
            af_name(outcome.af),
            route_type_name(outcome.route_type),
            f"{outcome.local} → {outcome.remote}",
            f"{outcome.seconds * 1000:.1f} ms",
            outcome.status,
            outcome.cause,
        )
        for outcome in report.outcomes
    ]
    rows += [
        (
            skip.strategy,
            af_name(skip.af) if skip.af is not None else "",
            route_type_name(skip.route_type) if skip.route_type is not None else "",
            skip.detail,
            "",
            "skipped",
            skip.reason.value,
        )
        for skip in report.skips
    ]
    return table(("strategy", "family", "route type", "way", "took", "outcome", "why"), rows)

"""Proves every profile: builds it, probes it, compares with what the profile promises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from .lab import Lab
from .measurement import Measurement
from .namespaces import LabError
from .parallel import in_parallel
from .probe import LOSS, Prober
from .profiles import (
    ACCESS_DELAY_MS,
    PAIRS,
    PROFILES,
    SERVER_DELAY_MS,
    Expectation,
    Profile,
    profile,
)
from .sockets import receive

DELAY_MS: Final = ACCESS_DELAY_MS + SERVER_DELAY_MS
EARLY_MS: Final = 0.5
LATE_MS: Final = 15.0
"""How much a packet may come early or late: late is what a busy machine does."""
LOSS_TOLERANCE: Final = 0.08
"""Four and a half standard deviations of 600 packets at 25 %."""
WORKERS: Final = 4
SHORT: Final = {
    "endpoint-independent": "EI",
    "address-dependent": "AD",
    "address-and-port-dependent": "APD",
}
COMPARED: Final = (
    "mapping",
    "filtering",
    "allocation",
    "hairpin",
    "tcp",
    "tcp_mapping",
    "tcp_filtering",
    "syn",
    "syn_mapped",
    "timer",
    "tcp_timer",
)
"""What a profile promises in words: fields of ``Measurement`` and of ``Expectation``."""
COLUMNS: Final = (
    "profile", "IP", "mapping", "filtering", "allocation", "hairpin", "TCP out", "TCP map",
    "TCP filter", "stray SYN", "… mapped", "timer", "TCP timer", "ms out", "ms in", "loss 25 %",
    "verdict",
)  # fmt: skip


@dataclass
class Row:
    """One profile in one family.

    Attributes:
        name: the profile's.
        version: 4, 6, or 64 for IPv4 through NAT64.
        found: None when it could not be measured.
        wrong: what is not as promised, in words; empty when all is.
        seconds: how long it took.

    """

    name: str
    version: int
    found: Measurement | None
    wrong: list[str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def compare(found: Measurement, expected: Expectation) -> list[str]:
    """Return what was found otherwise than expected, one text each."""
    wrong = [
        f"{name.replace('_', ' ')} is {got}, not {wanted}"
        for name in COMPARED
        if (got := getattr(found, name)) != (wanted := getattr(expected, name))
    ]
    for way, delay in (("out", found.delay_out_ms), ("in", found.delay_in_ms)):
        if delay is None or not DELAY_MS - EARLY_MS <= delay <= DELAY_MS + LATE_MS:
            wrong.append(f"the delay {way} is {delay} ms, not {DELAY_MS:g}")
    if expected.mapping == "blocked":
        if found.loss is not None:
            wrong.append("UDP came through")
        return wrong
    if found.loss is None or abs(found.loss - LOSS) > LOSS_TOLERANCE:
        wrong.append(f"{found.loss} of the packets were lost, not {LOSS}")
    if found.loss_free != 0:
        wrong.append(f"{found.loss_free} of the packets were lost without impairment")
    return wrong


def check_profile(which: str | Profile, seed: int = 1) -> list[Row]:
    """Build one profile, by its name or your own, and probe it in each of its families."""
    chosen = profile(which)
    name = chosen.name
    rows = []
    started = time.monotonic()
    try:
        with Lab(chosen, "open", seed=seed) as lab:
            for version, expected in chosen.expect.items():
                started = time.monotonic()
                with Prober(lab, version) as prober:
                    found = prober.measure()
                wrong = compare(found, expected)
                rows.append(Row(name, version, found, wrong, time.monotonic() - started))
    except (LabError, OSError) as error:
        seconds = time.monotonic() - started
        rows.append(Row(name, 0, None, [f"{type(error).__name__}: {error}"], seconds))
    return rows


def check_pair(name: str, seed: int = 1) -> list[str]:
    """Build a named pair and check what makes it special; return what is wrong."""
    wrong = []
    with Lab(pair=name, seed=seed) as lab:
        if lab.pair.same_lan:
            hairpins = bool(lab.pair.a[0].nat and lab.pair.a[0].nat["hairpin"])
            near, far = _lan_ways(lab)
            if not near:
                wrong.append("the hosts do not reach each other within their network")
            if far is not hairpins:
                wrong.append(f"through the NAT's outside: {far}, not {hairpins}")
        else:
            for number, nic in enumerate(lab.a.nics):
                with Prober(lab, 4, number) as prober:
                    mapping = prober.udp_mapping()
                expected = nic.profile.expect[4].mapping
                if mapping != expected:
                    wrong.append(f"{nic.name}: mapping is {mapping}, not {expected}")
    return wrong


def _lan_ways(lab: Lab) -> tuple[bool, bool]:
    """Return whether b reaches a by its inside address, and by its outside one."""
    with Prober(lab) as prober, contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(host.socket(ip=host.ip)) for host in (lab.a, lab.b))
        two.sendto(b"near", one.getsockname())
        near = bool(receive([one], 0.3, 1))
        outside = [prober.mapped(sock, [0])[0] for sock in (one, two)]
        far = False
        for _ in range(2):
            two.sendto(b"far", outside[0])
            one.sendto(b"far", outside[1])
            far = far or bool(receive([one, two], 0.2, 1))
    return near, far


def selftest(
    names: Iterable[str] = (), *, workers: int = WORKERS, done: Callable[[Row], None] | None = None
) -> list[Row]:
    """Probe profiles, a few at once.

    Args:
        names: of profiles; all when empty.
        workers: how many laboratories at once.
        done: called with each row when it is there.

    Returns:
        The rows, in the order of the profiles.

    """
    wanted = list(names) or list(PROFILES)

    def check(name: str) -> list[Row]:
        rows = check_profile(name)
        for row in rows:
            if done is not None:
                done(row)
        return rows

    return [row for rows in in_parallel(check, wanted, workers) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table of what was found."""
    cells: list[Sequence[str]] = [COLUMNS]
    for row in rows:
        family = {64: "4 via 64", 0: ""}.get(row.version, str(row.version))
        verdict = "as promised" if not row.wrong else "; ".join(row.wrong)
        found = row.found
        if found is None:
            cells.append([row.name, family, *[""] * (len(COLUMNS) - 3), verdict])
            continue
        words = [str(getattr(found, name)) for name in COMPARED]
        numbers = [_number(found.delay_out_ms, 1), _number(found.delay_in_ms, 1)]
        lost = "n/a" if found.loss is None else f"{found.loss * 100:.0f} %"
        short = [SHORT.get(word, word) for word in words]
        cells.append([row.name, family, *short, *numbers, lost, verdict])
    return columns(cells)


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells under one another, a rule below the first."""
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in cells]  # fmt: skip
    lines.insert(1, "  ".join("─" * width for width in widths))
    return lines


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def pairs() -> dict[str, list[str]]:
    """Check the named pairs; return what is wrong with each."""
    return {name: check_pair(name) for name in PAIRS}

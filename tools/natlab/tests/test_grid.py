"""Real nodes with every strategy, behind a sample of the pairs of networks: what connects, and how.

The whole grid is ``python3 tools/dev.py lab matrix --profiles all --runs 3 --ordered``.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from warpgate_natlab.matrix import Cell, matrix, table
from warpgate_natlab.possible import direct_possible
from warpgate_natlab.profiles import GRID, PROFILES

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

EXTRA = (
    ("linux", "linux"),
    ("linux", "linux-random"),
    ("open-firewall", "symmetric-random"),
    ("open-firewall", "rst-on-stray"),
    ("rst-on-stray", "rst-on-stray"),
    ("symmetric-block", "port-restricted"),
    ("symmetric-block", "symmetric-block"),
    ("cgnat-symmetric", "cgnat"),
    ("v6-firewalled", "v6-firewalled"),
    ("dual-stack", "dual-stack"),
    ("dual-stack", "symmetric-random"),
)
"""Beside the 36 pairs of the project's grid."""
PAIRS = (*combinations_with_replacement(GRID, 2), *EXTRA)
POSSIBLE = [(a, b) for a, b in PAIRS if direct_possible(PROFILES[a], PROFILES[b])]


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], Cell]:
    every = len(list(combinations_with_replacement(PROFILES, 2)))
    found = matrix((), pairs=POSSIBLE, jobs=2)
    print("\n".join(table(found)))
    print(f"{len(POSSIBLE)} of {every} pairs were run, once each and in one direction")
    return {(cell.a, cell.b): cell for cell in found}


@pytest.mark.parametrize(("a", "b"), POSSIBLE)
def test_a_pair_that_can_be_direct_is(a: str, b: str, cells: dict[tuple[str, str], Cell]) -> None:
    (result,) = cells[a, b].runs
    assert result.ok, f"{result.error}\n{cells[a, b].causes}"
    assert result.path == "direct", f"{result.strategy}: {result.path}"

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from warpgate_natlab.possible import direct_possible
from warpgate_natlab.profiles import GRID, PROFILES


def test_of_the_grid_34_pairs_are_possible_one_of_them_optional() -> None:
    found = [
        direct_possible(PROFILES[a], PROFILES[b]) for a, b in combinations_with_replacement(GRID, 2)
    ]
    assert (found.count(True), found.count(None), found.count(False)) == (33, 1, 2)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("symmetric-random", "symmetric-random", False),
        ("symmetric-random", "symmetric-sequential", False),
        ("symmetric-sequential", "symmetric-sequential", True),
        ("symmetric-block", "symmetric-block", True),
        ("symmetric-random", "port-restricted", True),
        ("udp-blocked", "symmetric-random", None),
        ("udp-blocked", "udp-blocked", True),
        ("https-only", "open", False),
        ("v6-firewalled", "v6-firewalled", True),
        ("v6-firewalled", "port-restricted", None),
        ("dual-stack", "symmetric-random", True),
    ],
)
def test_what_is_possible(a: str, b: str, expected: bool | None) -> None:
    assert direct_possible(PROFILES[a], PROFILES[b]) is expected
    assert direct_possible(PROFILES[b], PROFILES[a]) is expected

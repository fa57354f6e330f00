"""The odds of a spray, against the tables that it was designed by and against counting."""

from __future__ import annotations

import math
import random

import pytest

from warpgate_plugin_punch.random_probe import odds

WHOLE = 64512


@pytest.mark.parametrize(
    ("sockets", "row"),
    [
        (128, (0.399, 0.640, 0.871, 0.984)),
        (256, (0.639, 0.871, 0.984, 0.9997)),
        (512, (0.871, 0.983, 0.9997, 1.0)),
    ],
)
def test_the_table_of_the_whole_range(sockets, row):
    found = [odds.meeting(sockets, guesses, WHOLE) for guesses in (256, 512, 1024, 2048)]
    assert found == pytest.approx(row, abs=0.0015)


def test_512_by_900_in_the_whole_range():
    assert odds.meeting(512, 900, WHOLE) == pytest.approx(0.9992, abs=0.0001)


def test_it_is_the_share_of_all_drawings():
    """Counted one by one in a small range."""
    ports, sockets, guesses = 9, 3, 2
    missed = math.comb(ports - sockets, guesses) / math.comb(ports, guesses)
    assert odds.meeting(sockets, guesses, ports) == pytest.approx(1 - missed)


@pytest.mark.parametrize(
    ("sockets", "guesses", "ports", "expected"),
    [(0, 5, 10, 0.0), (5, 0, 10, 0.0), (5, 5, 0, 0.0), (6, 5, 10, 1.0), (512, 1, 512, 1.0)],
)
def test_the_ends(sockets, guesses, ports, expected):
    assert odds.meeting(sockets, guesses, ports) == pytest.approx(expected)


@pytest.mark.parametrize(("sockets", "guesses"), [(256, 502), (430, 447)])
def test_the_ephemeral_range(sockets, guesses):
    assert odds.meeting(sockets, guesses, 28233) >= 0.99


@pytest.mark.parametrize(
    ("ports", "total"), [(WHOLE, 1374), (28233, 877), (2048, 232), (1024, 162), (512, 113), (1, 2)]
)
def test_fewest_is_enough_and_few(ports, total):
    sockets, guesses = odds.fewest(ports, 512, 1400)
    assert odds.meeting(sockets, guesses, ports) >= odds.ENOUGH
    assert sockets + guesses == total
    assert sockets <= 512


@pytest.mark.parametrize("ports", [512, 4096])
def test_fewest_is_not_beaten_by_any_other_size(ports):
    best = sum(odds.fewest(ports, 512, 1400))
    for sockets in range(1, 400):
        guesses = best - 1 - sockets
        assert guesses <= 0 or odds.meeting(sockets, guesses, ports) < odds.ENOUGH


def test_with_too_little_room_it_is_all_the_room():
    assert odds.fewest(WHOLE, 60, 1400) == (60, 1400)


def test_random_drawings_agree():
    rng = random.Random(5)
    ports = range(1024, 65536)
    hits = sum(
        not set(rng.sample(ports, 200)).isdisjoint(rng.sample(ports, 300)) for _ in range(600)
    )
    assert hits / 600 == pytest.approx(odds.meeting(200, 300, len(ports)), abs=0.06)


@pytest.mark.parametrize(
    ("sockets", "ports", "expected"),
    [(512, 512, 1.0), (600, 512, 1.0), (128, 512, 0.25), (5, 0, 0)],
)
def test_covering(sockets, ports, expected):
    assert odds.covering(sockets, ports) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.99927, "P = .9993"),
        (1.0, "P = 1"),
        (0.99999, "P > .9999"),
        (1e-6, "P < .0001"),
        (0.0, "P = .0000"),
    ],
)
def test_text(value, expected):
    assert odds.text(value) == expected

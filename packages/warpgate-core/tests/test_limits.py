"""Limits on what strangers can start here."""

from __future__ import annotations

import pytest

from warpgate.traversal import limits
from warpgate.traversal.limits import StrangerBytes, StrangerLimits, TokenBucket


def test_a_bucket_allows_a_burst_and_then_its_rate():
    bucket = TokenBucket(5.0, now=100.0)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(100.19)
    assert bucket.take(100.2)
    assert not bucket.take(100.2)
    assert [bucket.take(1000.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_stranger_has_8_attempts_at_once():
    strangers = StrangerLimits(0.0)
    assert strangers.admit("a", 0.0, 7, 7) is None
    assert strangers.admit("a", 0.0, 8, 8) == "stranger_attempts_limit"


def test_all_strangers_together_have_64():
    strangers = StrangerLimits(0.0)
    assert strangers.admit("a", 0.0, 0, 63) is None
    assert strangers.admit("a", 0.0, 0, 64) == "strangers_attempts_limit"


def test_a_stranger_starts_5_a_second():
    strangers = StrangerLimits(0.0)
    assert [strangers.admit("a", 0.0, 0, 0) for _ in range(6)] == [None] * 5 + [
        "stranger_rate_limit"
    ]
    assert strangers.admit("b", 0.0, 0, 0) is None
    assert strangers.admit("a", 0.2, 0, 0) is None


def test_all_strangers_together_start_50_a_second():
    strangers = StrangerLimits(0.0)
    answers = [strangers.admit(f"peer {number}", 0.0, 0, 0) for number in range(51)]
    assert answers == [None] * 50 + ["strangers_rate_limit"]
    assert strangers.admit("late", 0.02, 0, 0) is None


def test_who_has_completed_a_hello_is_no_stranger():
    strangers = StrangerLimits(0.0)
    strangers.befriend("a")
    assert [strangers.admit("a", 0.0, 100, 100) for _ in range(100)] == [None] * 100
    assert strangers.is_stranger("b")


def test_both_tables_are_capped(monkeypatch):
    monkeypatch.setattr(limits, "MAX_KNOWN_PEERS", 3)
    monkeypatch.setattr(limits, "MAX_STRANGERS", 3)
    strangers = StrangerLimits(0.0)
    for number in range(4):
        strangers.befriend(f"friend {number}")
        strangers.befriend("friend 0")  # who is seen again is not forgotten
        strangers.admit(f"stranger {number}", 0.0, 0, 0)
    assert [strangers.is_stranger(f"friend {n}") for n in range(4)] == [False, True, False, False]
    assert len(strangers._buckets) == 3


@pytest.mark.parametrize(("own", "total", "crowded"), [(7, 63, False), (8, 8, True), (0, 64, True)])
def test_crowded_says_when_a_number_of_attempts_is_at_its_limit(own, total, crowded):
    assert StrangerLimits(0.0).crowded(own, total) is crowded


# The bytes of a minute.


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_no_minute_has_more_than_its_bytes():
    clock = Clock()
    purse = StrangerBytes(clock, limit=1000)
    assert purse.take(600)
    assert not purse.take(401)
    assert purse.refused == 1
    clock.now += 30
    assert purse.take(400)
    clock.now += 30.5  # a second more than a minute, since seconds are counted whole
    assert not purse.take(1)
    clock.now += 1
    assert purse.take(600)
    assert not purse.take(1)
    clock.now += 30
    assert purse.take(400)


def test_in_any_minute_whenever_it_begins():
    clock, spent = Clock(), []
    purse = StrangerBytes(clock, limit=1000)
    for step in range(4000):
        clock.now += 0.09
        if purse.take(7 + step % 11):
            spent.append((clock.now, 7 + step % 11))
    assert len(spent) > 300
    for begin, _ in spent:
        assert sum(size for at, size in spent if begin <= at < begin + 60) <= 1000


def test_a_part_can_be_kept_for_others():
    purse = StrangerBytes(Clock(), limit=1000)
    assert purse.take(500, keep=500)
    assert not purse.take(1, keep=500)
    assert purse.take(500)


def test_what_went_to_the_peer_itself_comes_back():
    clock = Clock()
    purse = StrangerBytes(clock, limit=1000)
    assert purse.take(300)
    clock.now += 20
    assert purse.take(700)
    purse.give_back(500)
    assert purse.take(500)
    assert not purse.take(1)
    purse.give_back(10**6)
    assert purse.take(1000)


def test_memory_of_bytes_is_bounded():
    clock = Clock()
    purse = StrangerBytes(clock)
    for _ in range(1000):
        clock.now += 0.5
        assert purse.take(1)
    assert len(purse._spent) <= 61

"""Calls of nodes that have no TURN server, or none that works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from warpgate import SkipReason, auto_connect

GUARD_S = 20.0
LIMIT_S = 8.0
DEAD = "turn:u:p@127.0.0.1:9?transport=tcp"
Pair = Callable[..., Any]


async def report_of(alice: Any, bob: Any) -> Any:
    """Return the report of a call that can't succeed; it does not wait for any time-out."""
    async with asyncio.timeout(LIMIT_S):
        pipe, _ = await auto_connect(alice, bob.address(), GUARD_S, plugins=["turn"])
    assert pipe is None
    return alice.last_report


async def test_neither_side_has_one(pair: Pair) -> None:
    alice, bob = await pair([], [])
    report = await report_of(alice, bob)
    assert report.outcomes == []
    (skip,) = [each for each in report.skips if each.reason is SkipReason.NO_TURN_SERVER]
    assert skip.strategy == "turn"
    assert "WARPGATE_TURN" in skip.detail
    assert "skipped, neither side has a TURN server" in str(report.error)


@pytest.mark.parametrize("whose", ["the caller's", "the peer's"])
async def test_the_only_one_fails(pair: Pair, whose: str) -> None:
    first, second = ([DEAD], []) if whose == "the caller's" else ([], [DEAD])
    alice, bob = await pair(first, second)
    report = await report_of(alice, bob)
    (outcome,) = report.outcomes
    assert outcome.status == "failed"
    assert "127.0.0.1 port 9 over TCP" in outcome.cause
    assert "no TURN server is configured here" in outcome.cause


async def test_the_peer_is_asked_first(pair: Pair) -> None:
    """A call without servers waits for the peer's word: it may have the relay."""
    alice, bob = await pair([], [])
    bob.traversal.plugin_loaders.clear()  # so nobody answers
    async with asyncio.timeout(LIMIT_S):
        pipe, _ = await auto_connect(alice, bob.address(), 1.0, plugins=["turn"])
    assert pipe is None
    (outcome,) = alice.last_report.outcomes
    assert outcome.status == "timeout"

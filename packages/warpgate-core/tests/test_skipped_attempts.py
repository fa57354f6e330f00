"""Attempts that find nothing to try, and what strategies note for the report."""

from __future__ import annotations

import asyncio
import json

import pytest

from warpgate import AttemptSkipped, NoPathError, Plugin, SkipReason, auto_connect
from warpgate.net.constants import IP4, LOOPBACK_BIND, NIC_BIND, TCP
from warpgate.plugin import MAX_NOTE_CHARS, MAX_NOTES
from warpgate.traversal.report import Skip

pytestmark = pytest.mark.usefixtures("leaks")


def strategy(run):
    class Scripted(Plugin):
        name, transport, phase = "scripted", "tcp", "direct"

    Scripted.run = run
    return Scripted


async def call(start, run):
    """Connect two nodes by a scripted strategy over loopback; return the pipe and the report."""
    alice, bob = await start(strategy(run)), await start(strategy(run))
    async with asyncio.timeout(10):
        pipe, _ = await auto_connect(
            alice, bob.address(), 5, afs=[IP4], route_types=[LOOPBACK_BIND], plugins=["scripted"]
        )
    return pipe, alice.last_report


async def raises(self, reply=None):
    raise AttemptSkipped("no coin for the gate")


async def sets(self, reply=None):
    self.result.set_exception(AttemptSkipped("no coin for the gate"))


async def later(self, reply=None):
    loop = asyncio.get_running_loop()
    loop.call_soon(self.result.set_exception, AttemptSkipped("no coin for the gate"))


@pytest.mark.parametrize("run", [raises, sets, later])
async def test_it_stands_among_the_skips(start, run):
    pipe, report = await call(start, run)
    assert pipe is None
    assert report.outcomes == []
    assert report.skips[-1] == Skip(
        "scripted", SkipReason.NOTHING_TO_TRY, IP4, LOOPBACK_BIND, "no coin for the gate"
    )
    assert isinstance(report.error, NoPathError)
    assert "scripted IPv4 LOOPBACK_BIND: skipped, " in str(report.error)
    assert "no coin for the gate" in str(report.error)
    assert report.seconds < 4  # the call does not wait for it


async def test_a_reason_of_the_core(start):
    async def run(self, reply=None):
        raise AttemptSkipped("192.0.2.1", SkipReason.TOO_SOON)

    _, report = await call(start, run)
    assert report.skips[-1].reason is SkipReason.TOO_SOON
    assert report.skips[-1].detail == "192.0.2.1"


async def test_an_end_that_came_before_holds(start):
    async def run(self, reply=None):
        self.result.set_exception(ValueError("broken"))
        self.result.set_exception(AttemptSkipped("too late"))

    alice, bob = await start(strategy(run)), await start(strategy(run))
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "scripted")
    attempt = alice.traversal.attempt_of(plugin)
    async with asyncio.timeout(10):
        assert await plugin.result is None
    assert (attempt.outcome.status, attempt.outcome.cause) == ("failed", "ValueError: broken")
    assert attempt.skip is None


async def test_the_future_resolves_to_none(start):
    alice, bob = await start(strategy(raises)), await start(strategy(raises))
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "scripted")
    async with asyncio.timeout(10):
        assert await plugin.result is None


def test_what_it_says():
    assert str(AttemptSkipped("why")) == "why"
    assert str(AttemptSkipped("a, 3 s ago", SkipReason.TOO_SOON)) == (
        f"{SkipReason.TOO_SOON.value} (a, 3 s ago)"
    )
    assert str(AttemptSkipped(reason=SkipReason.TOO_SOON)) == SkipReason.TOO_SOON.value


# Notes.


async def test_a_winner_says_what_failed_before(start):
    async def run(self, reply=None):
        self.note("the first gate was shut")
        route = await self.bind()
        dest = self.dest_info["ip"], self.dest_info["port"]
        self.result.set_result(await route.connect(dest, TCP))

    pipe, report = await call(start, run)
    assert pipe is not None, str(report)
    assert report.winner.notes == ["the first gate was shut"]
    assert "won, a stream (tcp), direct (noted: the first gate was shut)" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["attempts"][0]["notes"] == report.winner.notes
    await pipe.close()


async def test_a_note_is_not_said_twice(start):
    async def run(self, reply=None):
        self.note("shut")
        self.note("broken")
        raise ValueError("all gates are shut")

    _, report = await call(start, run)
    assert report.outcomes[0].notes == ["shut", "broken"]
    assert str(report.outcomes[0]).endswith("ValueError: all gates are shut (noted: broken)")


def test_notes_are_bounded_and_printable():
    plugin = Plugin()
    plugin.note("  two\nlines\x1b[31m ")
    plugin.note("two lines[31m")
    plugin.note(" ")
    assert plugin.notes == ["two lines[31m"]
    for number in range(MAX_NOTES + 5):
        plugin.note(f"{number} " + "x" * MAX_NOTE_CHARS)
    assert len(plugin.notes) == MAX_NOTES
    assert max(map(len, plugin.notes)) == MAX_NOTE_CHARS

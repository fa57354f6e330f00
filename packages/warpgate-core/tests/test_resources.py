"""Closing: order, once, guarded, and by a deadline."""

from __future__ import annotations

import asyncio

import pytest

from warpgate.errors import LocalProtocolError
from warpgate.events import Counters
from warpgate.resources import RESOURCE_ERRORS, RESOURCE_TIMEOUTS, Resources


class Sync:
    def __init__(self, log, name="sync", error=None):
        self.log, self.name, self.error = log, name, error

    def close(self):
        self.log.append(self.name)
        if self.error is not None:
            raise self.error


class Async(Sync):
    async def close(self):
        await asyncio.sleep(0)
        super().close()


class OnlyAclose:
    def __init__(self, log):
        self.log = log

    async def aclose(self):
        self.log.append("aclose")


class Stuck:
    """Its close() never ends by itself; ``stubborn``: not even when cancelled once."""

    def __init__(self, log, stubborn=False):
        self.log, self.stubborn = log, stubborn
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    async def close(self):
        self.log.append("stuck")
        self.reached.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            if not self.stubborn:
                raise
            await self.release.wait()


async def test_everything_is_closed_in_reverse_order_once():
    log = []
    resources = Resources()
    first = resources.register(Sync(log, "a"))
    resources.register(Async(log, "b"))
    resources.register(OnlyAclose(log))
    resources.register(first)
    await resources.close()
    await resources.close()
    assert log == ["aclose", "b", "a"]


async def test_equal_objects_are_different_resources():
    class Equal(Sync):
        def __eq__(self, other):
            return True

        __hash__ = None

    log = []
    resources = Resources()
    resources.register(Equal(log, "a"))
    resources.register(Equal(log, "b"))
    await resources.close()
    assert log == ["b", "a"]


async def test_a_failure_is_logged_counted_and_stops_nothing(caplog):
    log, counters = [], Counters()
    resources = Resources(counters)
    resources.register(Sync(log, "a"))
    resources.register(Sync(log, "b", ValueError("sync failure")))
    resources.register(Async(log, "c", ValueError("async failure")))
    resources.register(Async(log, "d", asyncio.CancelledError()))
    await resources.close()
    assert log == ["d", "c", "b", "a"]
    assert counters == {RESOURCE_ERRORS: 2}
    assert "sync failure" in caplog.text
    assert "async failure" in caplog.text


async def test_the_deadline_cancels_and_the_rest_still_gets_its_moment():
    log, counters = [], Counters()
    resources = Resources(counters)
    resources.register(Sync(log, "a"))
    resources.register(Stuck(log))
    resources.register(Stuck(log))
    await resources.close(0.01)
    assert log[:1] == ["stuck"]
    assert sorted(log) == ["a", "cancelled", "cancelled", "stuck", "stuck"]
    assert counters == {RESOURCE_TIMEOUTS: 2}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_even_what_refuses_to_be_cancelled_does_not_hold_it_up():
    log = []
    resources = Resources()
    resources.register(Sync(log, "a"))
    stubborn = resources.register(Stuck(log, stubborn=True))
    async with asyncio.timeout(30):
        await resources.close(0.01)
    assert sorted(log) == ["a", "cancelled", "stuck"]
    stubborn.release.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


async def test_cancelling_close_does_not_stop_the_sweep():
    log = []
    resources = Resources()
    resources.register(Sync(log, "a"))
    stuck = resources.register(Stuck(log))
    closing = asyncio.create_task(resources.close(60))
    await stuck.reached.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    stuck.release.set()
    await resources.close()
    assert log == ["stuck", "a"]


async def test_two_closers_wait_for_the_same_sweep():
    log = []
    resources = Resources()
    stuck = resources.register(Stuck(log))
    both = [asyncio.create_task(resources.close(60)) for _ in range(2)]
    await stuck.reached.wait()
    assert not any(task.done() for task in both)
    stuck.release.set()
    await asyncio.gather(*both)
    assert log == ["stuck"]


async def test_what_is_registered_while_closing_is_closed_too():
    log = []
    resources = Resources()

    class Late:
        def close(self):
            resources.register(Sync(log, "late"))

    resources.register(Late())
    await resources.close()
    assert log == ["late"]


async def test_what_is_registered_afterwards_is_refused_and_stays_the_callers():
    log = []
    resources = Resources()
    await resources.close()
    with pytest.raises(LocalProtocolError, match=r"Sync.*close it yourself"):
        resources.register(Sync(log))
    assert log == []


def test_an_object_without_close_is_refused():
    with pytest.raises(TypeError, match="a dict has no close"):
        Resources().register({})

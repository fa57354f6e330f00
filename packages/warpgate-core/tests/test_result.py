"""The manager's future: handing over is not yet success."""

from __future__ import annotations

import asyncio

import pytest

from warpgate.plugin import Plugin
from warpgate.traversal.result import ResultFuture


class Owner:
    def __init__(self):
        self.calls = []

    def offered(self, value):
        self.calls.append(("offered", value))

    def failed(self, cause):
        self.calls.append(("failed", cause))

    def cancelled(self):
        self.calls.append(("cancelled", None))


@pytest.fixture
async def pair():
    owner = Owner()
    return ResultFuture(owner, asyncio.get_running_loop()), owner


async def test_set_result_only_tells_the_owner(pair):
    future, owner = pair
    future.set_result("a pipe")
    future.set_result(None)
    assert not future.done()
    assert owner.calls == [("offered", "a pipe"), ("offered", None)]


async def test_set_exception_tells_the_owner_the_cause(pair):
    future, owner = pair
    error = OSError("no route")
    future.set_exception(error)
    future.set_exception(KeyError)
    assert not future.done()
    assert owner.calls[0] == ("failed", error)
    assert isinstance(owner.calls[1][1], KeyError)


async def test_the_owner_resolves_it_once(pair):
    future, owner = pair
    future.resolve("first")
    future.resolve("second")
    assert await future == "first"
    future.set_result("late")  # no InvalidStateError: the owner closes it
    assert owner.calls == [("offered", "late")]


async def test_cancelling_tells_the_owner_once(pair):
    future, owner = pair
    assert future.cancel()
    assert not future.cancel()
    assert owner.calls == [("cancelled", None)]
    future.resolve("too late")
    assert future.cancelled()


async def test_a_resolved_future_is_not_cancelled_any_more(pair):
    future, owner = pair
    future.resolve(1)
    assert not future.cancel()
    assert owner.calls == []


async def test_without_a_manager_it_is_a_plain_future():
    class Lonely(Plugin):
        name, transport = "lonely", "tcp"

        async def run(self, reply=None):
            self.result.set_result("whatever")

    plugin = Lonely()
    await plugin.run()
    assert type(plugin.result) is type(asyncio.get_running_loop().create_future())
    assert await plugin.result == "whatever"
    with pytest.raises(asyncio.InvalidStateError):
        plugin.result.set_result("again")

"""Names are looked up with a deadline, and nothing waits for a resolver that never answers."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from warpgate.net import resolve
from warpgate.net.constants import IP4, TCP
from warpgate.net.resolve import look_up

GUARD_S = 30
FOUND = [(IP4, TCP, 6, "", ("192.0.2.7", 5))]


class Resolver:
    """Stands in for the system's; answers once ``answer`` is set."""

    def __init__(self):
        self.answer = threading.Event()
        self.asked = []

    def __call__(self, host, *rest):
        self.asked.append((host, *rest))
        assert self.answer.wait(GUARD_S)
        return FOUND


@pytest.fixture
def resolver(monkeypatch):
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.answer.set()
    for thread in threading.enumerate():  # or the next test would join this one's question
        if thread.name.startswith("look up "):
            thread.join(GUARD_S)


async def test_an_address_and_a_name() -> None:
    found = await look_up("127.0.0.1", 80, kind=TCP, timeout_s=GUARD_S)
    assert [entry[4] for entry in found] == [("127.0.0.1", 80)]
    assert await look_up("localhost", 80, family=IP4, timeout_s=GUARD_S)


@pytest.mark.parametrize("name", ["x" * 300, "a..b", "\0", "\udcff"])
async def test_what_is_no_name(name) -> None:
    with pytest.raises(OSError):
        await look_up(name, 80, timeout_s=GUARD_S)


async def test_the_family_and_the_kind_are_asked_for(resolver) -> None:
    resolver.answer.set()
    assert await look_up("peer.example", 5, family=IP4, kind=TCP, timeout_s=GUARD_S) == FOUND
    assert resolver.asked == [("peer.example", 5, IP4, TCP)]


async def test_a_resolver_that_is_silent_is_not_waited_for(resolver) -> None:
    with pytest.raises(TimeoutError):
        await look_up("peer.example", 5, timeout_s=0.01)
    # It is still at it: who asks now gets its answer, and nobody asks it twice.
    again = asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))
    await asyncio.sleep(0)
    resolver.answer.set()
    assert await again == FOUND
    assert len(resolver.asked) == 1
    assert await look_up("peer.example", 5, timeout_s=GUARD_S) == FOUND
    assert len(resolver.asked) == 2


async def test_a_resolver_that_hangs_is_asked_anew(monkeypatch) -> None:
    """Its first question went to a network that is gone: the answer of this one is not held up by it."""
    hangs, asked = threading.Event(), []

    def resolver(*question):
        asked.append(question)
        if len(asked) == 1:
            assert hangs.wait(GUARD_S)
            raise socket.gaierror(socket.EAI_AGAIN, "the old network")
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(resolve, "JOIN_S", 0.0)
    first = asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))
    await asyncio.sleep(0)
    try:
        assert await look_up("peer.example", 5, timeout_s=GUARD_S / 3) == FOUND
        assert await first == FOUND  # what came is everybody's
    finally:
        hangs.set()
    assert len(asked) == 2


async def test_a_failure_is_for_those_who_asked_then(resolver, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "JOIN_S", 0.0)
    fails, real = threading.Event(), socket.getaddrinfo

    def failing(*question):
        monkeypatch.setattr(socket, "getaddrinfo", real)
        assert fails.wait(GUARD_S)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    first = asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))
    while socket.getaddrinfo is failing:  # noqa: ASYNC110  # no event tells of it
        await asyncio.sleep(0)
    second = asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))
    await asyncio.sleep(0)
    fails.set()
    with pytest.raises(OSError, match="no such name"):
        await first
    resolver.answer.set()
    assert await second == FOUND


async def test_a_resolver_that_hangs_for_good_costs_few_threads(resolver, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "JOIN_S", 0.0)
    waiting = [
        asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))
        for _ in range(3 * resolve.MAX_SAME)
    ]
    await asyncio.sleep(0)
    resolver.answer.set()
    assert await asyncio.gather(*waiting) == [FOUND] * len(waiting)
    assert len(resolver.asked) <= resolve.MAX_SAME


async def test_one_who_gives_up_takes_nobody_along(resolver) -> None:
    first, second = (
        asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S)) for _ in range(2)
    )
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    resolver.answer.set()
    assert await second == FOUND
    assert first.cancelled()


async def test_lookups_are_bounded(resolver, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "MAX_LOOKUPS", 3)
    waiting = [
        asyncio.ensure_future(look_up(f"peer{number}.example", 5, timeout_s=GUARD_S))
        for number in range(3)
    ]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="3 names are being looked up already"):
        await look_up("another.example", 5, timeout_s=GUARD_S)
    resolver.answer.set()
    assert await asyncio.gather(*waiting) == [FOUND] * 3
    assert await look_up("another.example", 5, timeout_s=GUARD_S) == FOUND


def test_the_end_of_the_loop_is_not_held_up(resolver) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await look_up("peer.example", 5, timeout_s=0.01)

    asyncio.run(main())  # with the loop's own executor it would wait for the resolver
    assert not resolver.answer.is_set()


def test_an_answer_after_the_end_of_the_loop_harms_nobody(resolver) -> None:
    async def main() -> None:
        asyncio.ensure_future(look_up("peer.example", 5, timeout_s=GUARD_S))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(main())
    (thread,) = (t for t in threading.enumerate() if t.name == "look up peer.example")
    resolver.answer.set()
    thread.join(GUARD_S)
    assert not thread.is_alive()

"""Inbound pipes as a node's user sees them."""

from __future__ import annotations

import asyncio
import socket

import pytest

from warpgate.errors import PipeClosed
from warpgate.events import Counters
from warpgate.net.tcp import TcpPipe
from warpgate.node import mailbox as mailbox_module
from warpgate.node.mailbox import Mailbox

pytestmark = pytest.mark.usefixtures("leaks")


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


@pytest.fixture
async def pipes():
    """Return a function that makes a connected pair: a pipe and the socket at its other end."""
    made = []

    async def make():
        ours, theirs = socket.socketpair()
        _, pipe = await asyncio.get_running_loop().create_connection(TcpPipe, sock=ours)
        made.append((pipe, theirs))
        return pipe, theirs

    yield make
    for pipe, theirs in made:
        theirs.close()
        await pipe.close()


@pytest.fixture
def box():
    return Mailbox(Counters())


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_accept_returns_pipes_in_their_order(box, pipes):
    first, second = (await pipes())[0], (await pipes())[0]
    box.deliver(first)
    box.deliver(second)
    assert await box.accept() is first
    assert await box.accept() is second


async def test_accept_waits_and_the_longest_waiting_is_served_first(box, pipes):
    waiting = [asyncio.create_task(box.accept()) for _ in range(2)]
    await turns()
    first, second = (await pipes())[0], (await pipes())[0]
    box.deliver(first)
    box.deliver(second)
    assert [await task for task in waiting] == [first, second]


async def test_a_cancelled_accept_loses_nothing(box, pipes):
    waiting = asyncio.create_task(box.accept())
    await turns()
    pipe, _ = await pipes()
    box.deliver(pipe)
    waiting.cancel()  # in the very turn in which the pipe came
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await box.accept() is pipe


async def test_what_a_cancelled_accept_had_goes_to_the_next_in_line(box, pipes):
    first, second = (asyncio.create_task(box.accept()) for _ in range(2))
    await turns()
    pipe, _ = await pipes()
    box.deliver(pipe)
    first.cancel()
    await turns()
    assert second.done()
    assert second.result() is pipe


async def test_and_comes_before_those_that_came_later(box, pipes):
    waiting = asyncio.create_task(box.accept())
    await turns()
    first, second = (await pipes())[0], (await pipes())[0]
    box.deliver(first)
    box.deliver(second)
    waiting.cancel()
    await turns()
    assert await box.accept() is first
    assert await box.accept() is second


async def test_cancelled_waits_leave_nothing_behind(box):
    for _ in range(10):
        task = asyncio.create_task(box.accept())
        await turns()
        task.cancel()
        await turns()
    assert not box._accepting


async def test_callbacks_and_accept_both_see_a_pipe(box, pipes):
    seen = []
    box.add_callback(lambda msg, tup, pipe: seen.append((msg, pipe)))
    pipe, theirs = await pipes()
    box.deliver(pipe)
    theirs.send(b"hello")
    await until(lambda: seen)
    assert seen == [(b"hello", pipe)]
    assert await box.accept() is pipe


async def test_messages_are_kept_until_a_callback_is_added(box, pipes):
    pipe, theirs = await pipes()
    box.deliver(pipe)
    theirs.send(b"early")
    await until(lambda: pipe.has_unread)
    seen = []
    box.add_callback(lambda msg, tup, pipe: seen.append(msg))
    await turns()
    assert seen == [b"early"]


async def test_a_removed_callback_is_not_called_any_more(box, pipes):
    seen, other = [], []

    def callback(msg, tup, pipe):
        seen.append(msg)

    box.add_callback(callback)
    box.add_callback(lambda msg, tup, pipe: other.append(msg))
    pipe, theirs = await pipes()
    box.deliver(pipe)
    theirs.send(b"one")
    await until(lambda: other)
    box.remove_callback(callback)
    box.remove_callback(print)  # unknown ones are ignored
    theirs.send(b"two")
    await until(lambda: len(other) >= 2)
    assert seen == [b"one"]


async def test_a_callback_must_be_callable(box):
    with pytest.raises(TypeError, match="client_tup"):
        box.add_callback("not a function")


async def test_a_callbacks_exception_is_counted(box, pipes):
    def bad(msg, tup, pipe):
        raise ValueError(msg)

    good = []
    box.add_callback(bad)
    box.add_callback(lambda msg, tup, pipe: good.append(msg))
    pipe, theirs = await pipes()
    box.deliver(pipe)
    theirs.send(b"x")
    await until(lambda: good)
    assert box._counters["handler_errors"] == 1


async def test_pipes_waiting_for_accept_are_capped(box, pipes, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MAX_UNACCEPTED", 2)
    made = [(await pipes())[0] for _ in range(3)]
    for pipe in made:
        box.deliver(pipe)
    assert box._counters["accept_overflow"] == 1
    assert [await box.accept(), await box.accept()] == made[:2]


async def test_ended_pipes_make_room(box, pipes, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MAX_UNACCEPTED", 1)
    box.add_callback(lambda msg, tup, pipe: None)
    old, theirs = await pipes()
    box.deliver(old)
    theirs.send(b"work for the callback when the pipe ends")
    theirs.close()
    await old.wait_closed()
    new, _ = await pipes()
    box.deliver(new)
    assert box._counters["accept_overflow"] == 0
    assert await box.accept() is new


async def test_a_closed_pipe_is_not_accepted_unless_it_has_something_to_read(box, pipes):
    empty, _ = await pipes()
    box.deliver(empty)
    empty.abort()
    await empty.wait_closed()
    full, theirs = await pipes()
    box.deliver(full)
    theirs.send(b"last words")
    theirs.close()
    await full.wait_closed()
    accepted = await box.accept()
    assert accepted is full
    assert await accepted.recv() == b"last words"


async def test_a_future_by_id_is_resolved_by_ready(box, pipes):
    future = box.future("session")
    assert box.future("session") is future
    pipe, _ = await pipes()
    box.ready("session", pipe)
    box.ready("session", (await pipes())[0])  # replaces nothing
    assert await future is pipe


async def test_ready_may_come_first(box, pipes):
    pipe, _ = await pipes()
    box.ready("session", pipe)
    assert await box.future("session") is pipe


async def test_a_cancelled_future_is_made_anew(box, pipes):
    box.future("session").cancel()
    await turns()
    assert not box._futures
    pipe, _ = await pipes()
    box.ready("session", pipe)
    assert await box.future("session") is pipe


async def test_an_id_can_be_used_again_when_its_pipe_is_closed(box, pipes):
    first, _ = await pipes()
    box.ready("session", first)
    first.abort()
    await first.wait_closed()
    second, _ = await pipes()
    box.ready("session", second)
    assert await box.future("session") is second


async def test_ids_that_peers_chose_are_capped(box, pipes, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MAX_READY", 3)
    awaited = box.future("ours")
    pipe, _ = await pipes()
    for number in range(10):
        box.ready(f"theirs {number}", pipe)
    assert len(box._futures) == 4
    assert box.future("ours") is awaited
    assert box._counters["pipe_ready_evicted"] == 7


async def test_closing_fails_those_who_wait_and_those_who_will(box):
    waiting = asyncio.create_task(box.accept())
    future = box.future("session")
    await turns()
    box.close(PipeClosed("the node has been closed"))
    for awaitable in (waiting, future, box.accept(), box.future("later")):
        with pytest.raises(PipeClosed, match="node has been closed"):
            await awaitable

"""Allocations that turn out to be gone when they are used, and those that are given back; no socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from warpgate.errors import AllocationExpired
from warpgate.stun.attributes import USERNAME, ErrorCode
from warpgate.stun.message import decode
from warpgate_plugin_turn import errors, wire
from warpgate_plugin_turn.machine import FAREWELL_S, State
from warpgate_plugin_turn.machine_events import Closed, Failed, Permitted, Refused

PEER = ("203.0.113.10", 5000)
GONE = ErrorCode(437, "Allocation Mismatch")
Make = Callable[..., Any]


def failure(server: Any) -> Any:
    (event,) = server.events
    assert isinstance(event, Failed)
    assert server.machine.state is State.ENDED
    assert server.machine.next_timeout() is None
    return event.error


# Noticed when it is used.


@pytest.mark.parametrize("method", [wire.CREATE_PERMISSION, wire.CHANNEL_BIND, wire.REFRESH])
def test_whatever_is_asked_shows_that_the_server_forgot(allocated: Make, method: int) -> None:
    server = allocated()
    server.errors[method] = GONE
    if method == wire.REFRESH:
        server.machine.probe(1.0)
    elif method == wire.CHANNEL_BIND:
        server.machine.bind(PEER, 1.0)
    else:
        server.machine.permit(PEER[0], 1.0)
    server.step()
    error = failure(server)
    assert type(error) is AllocationExpired
    assert "was it restarted?" in str(error)


@pytest.mark.parametrize("what", ["permission", "channel"])
def test_whatever_is_asked_shows_that_the_server_is_silent(allocated: Make, what: str) -> None:
    server = allocated(probe_s=1e9, give_up_s=3.0)
    server.deaf = True
    if what == "permission":
        server.machine.permit(PEER[0], 0.5)
    else:
        server.machine.bind(PEER, 0.5)
    server.step()
    server.run(3.4)
    assert server.events == []
    server.run(3.6)
    assert isinstance(failure(server), errors.ServerSilent)


def test_one_lost_permission_of_a_server_that_speaks_is_no_death(allocated: Make) -> None:
    server = allocated(probe_s=1e9)
    server.machine.bind(PEER, 0.0)
    server.step()
    server.deaf = True
    server.machine.permit("203.0.113.77", 0.5)
    server.step()
    server.run(3.0)
    data = wire.channel_data(0x4000, b"data", padded=False)
    assert server.machine.receive_channel(data, 3.0) == (PEER, b"data")
    server.run(4.0)
    (event,) = server.events  # refused, and the allocation lives
    assert event.ip == "203.0.113.77"
    assert server.machine.state is State.ALLOCATED


def test_a_refusal_that_may_mean_a_lost_allocation_is_looked_into(allocated: Make) -> None:
    server = allocated()
    server.errors[wire.CREATE_PERMISSION] = ErrorCode(400, "Bad Request")  # coturn's way to say 437
    server.errors[wire.REFRESH] = GONE
    server.machine.permit(PEER[0], 1.0)
    server.step()
    assert type(failure(server)) is AllocationExpired


def test_a_refusal_of_a_server_that_knows_the_allocation_is_one(allocated: Make) -> None:
    server = allocated()
    server.errors[wire.CREATE_PERMISSION] = ErrorCode(400, "Bad Request")
    server.machine.permit(PEER[0], 1.0)
    server.step()
    (event,) = server.events
    assert isinstance(event, Refused)
    assert "400 Bad Request" in str(event.error)
    assert server.count(wire.REFRESH) == 1
    assert server.machine.state is State.ALLOCATED


def test_a_probe_asks_once(allocated: Make) -> None:
    server = allocated()
    server.machine.probe(1.0)
    server.machine.probe(1.0)
    server.step()
    assert server.count(wire.REFRESH) == 1
    assert server.machine.heard == server.now
    server.machine.permit(PEER[0], 1.0)
    server.step()
    assert server.events == [Permitted(PEER[0])]


# Given back.


def asking(make: Make, **options: Any) -> tuple[Any, list[bytes]]:
    """Return a server, and the Allocate with credentials on its way to it."""
    server = make(**options)
    (first,) = server.machine.outgoing(0.0)
    server.machine.receive(server.answer(wire_message(first)), ("", 0), 0.0)
    return server, server.machine.outgoing(0.0)


def wire_message(data: bytes) -> Any:
    return decode(data, wire.TURN_ATTRIBUTES)


def test_closed_before_the_credentials_went_out_nothing_is_asked(make: Make) -> None:
    server = make()
    server.machine.outgoing(0.0)
    server.machine.close(0.0)
    server.step()
    assert server.events == [Closed()]
    assert server.asked == []


@pytest.mark.parametrize("reliable", [False, True])
def test_what_is_allocated_for_nobody_is_deleted(make: Make, reliable: bool) -> None:
    server, (second,) = asking(make, reliable=reliable)
    server.machine.close(0.1)
    server.step()
    assert server.events == []  # it may be allocated at this very moment
    server.machine.receive(server.answer(wire_message(second)), ("", 0), 0.2)
    server.step()
    assert server.events == [Closed()]
    last = server.asked[-1]
    assert (last.method, last.get(wire.LIFETIME), last.get(USERNAME)) == (wire.REFRESH, 0, "user")
    assert server.machine.counters["turn_allocations_returned"] == 1


def test_the_answer_that_was_lost_is_asked_for_again(make: Make) -> None:
    server, _lost = asking(make)
    server.machine.close(0.0)
    server.run(1.0)
    assert server.events == [Closed()]
    assert [each.method for each in server.asked[-2:]] == [wire.ALLOCATE, wire.REFRESH]


def test_a_refusal_is_the_end_of_it(make: Make) -> None:
    server, (second,) = asking(make)
    server.errors[wire.ALLOCATE] = ErrorCode(486, "Allocation Quota Reached")
    server.machine.close(0.0)
    server.machine.receive(server.answer(wire_message(second)), ("", 0), 0.0)
    server.step()
    assert server.events == [Closed()]
    assert server.count(wire.REFRESH) == 0


def test_nothing_new_is_asked_for_with_another_nonce(make: Make) -> None:
    server, (second,) = asking(make)
    server.nonce = "two"
    server.machine.close(0.0)
    server.machine.receive(server.answer(wire_message(second)), ("", 0), 0.0)
    server.step()
    assert server.events == [Closed()]
    assert server.count(wire.ALLOCATE) == 2


def test_a_server_that_falls_silent_is_not_waited_for(make: Make) -> None:
    server, _ = asking(make)
    server.deaf = True
    server.machine.close(0.0)
    server.run(FAREWELL_S - 0.1)
    assert server.events == []
    server.run(FAREWELL_S + 0.1)
    assert server.events == [Closed()]
    assert server.machine.counters["turn_farewells_unanswered"] == 1

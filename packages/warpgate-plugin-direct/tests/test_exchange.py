from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_plugin_direct.port_mapping.exchange import (
    MAX_ANSWER_BYTES,
    Answered,
    Epoch,
    Exchange,
    Failed,
)
from warpgate_plugin_direct.port_mapping.model import MappingError

SERVER = ("192.168.1.1", 5351)


def parse(data: bytes) -> bytes | None:
    if data == b"no":
        raise MappingError("refused", 2)
    return data if data.startswith(b"yes") else None


def run(machine: Exchange, until: float) -> list[float]:
    """Let time pass; return when requests left."""
    machine.start(100.0)
    sent, now = [], 100.0
    while True:
        sent += [round(now - 100, 3) for _ in machine.outgoing(now)]
        due = machine.next_timeout()
        if due is None or due > 100 + until:
            return sent
        now = due
        machine.handle_timeout(now)


def test_it_asks_again_with_doubled_waits_and_gives_up() -> None:
    machine = Exchange(b"?", SERVER, parse)
    assert run(machine, 60) == [0, 0.25, 0.75, 1.75, 3.75]
    event = machine.next_event()
    assert isinstance(event, Failed)
    assert str(event.error) == "no answer"
    assert event.error.code is None
    assert machine.next_timeout() is None


def test_a_slow_answer_counts_until_the_end() -> None:
    machine = Exchange(b"?", SERVER, parse)
    run(machine, 7.9)
    machine.receive(b"yes", SERVER, 107.9)
    assert machine.next_event() == Answered(b"yes", 107.9)
    assert machine.next_event() is None
    assert machine.next_timeout() is None
    assert machine.outgoing(108.0) == []


def test_a_refusal() -> None:
    machine = Exchange(b"?", SERVER, parse)
    run(machine, 0)
    machine.receive(b"no", SERVER, 100.1)
    event = machine.next_event()
    assert isinstance(event, Failed)
    assert event.error.code == 2


@pytest.mark.parametrize(
    ("data", "addr"),
    [
        (b"yes", ("192.168.1.2", 5351)),
        (b"yes", ("192.168.1.1", 5350)),
        (b"?", SERVER),
        (b"yes" + bytes(MAX_ANSWER_BYTES), SERVER),
    ],
)
def test_what_is_no_answer_is_counted_and_changes_nothing(
    data: bytes, addr: tuple[str, int]
) -> None:
    machine = Exchange(b"?", SERVER, parse)
    run(machine, 0)
    machine.receive(data, addr, 100.1)
    assert machine.dropped == 1
    assert machine.next_event() is None
    assert machine.next_timeout() == 100.25


def test_a_second_answer_is_nothing() -> None:
    machine = Exchange(b"?", SERVER, parse)
    run(machine, 0)
    machine.receive(b"yes", SERVER, 100.1)
    machine.receive(b"yes 2", SERVER, 100.1)
    assert machine.next_event() == Answered(b"yes", 100.1)
    assert machine.next_event() is None


def test_an_early_timer_does_nothing() -> None:
    machine = Exchange(b"?", SERVER, parse)
    machine.start(0.0)
    machine.outgoing(0.0)
    machine.handle_timeout(0.1)
    assert machine.outgoing(0.1) == []


# The epoch (RFC 6887 section 8.5).


def test_the_first_epoch_says_nothing() -> None:
    assert not Epoch().lost(0, 1000.0)


@pytest.mark.parametrize(
    ("epoch", "now", "lost"),
    [
        (1060, 160.0, False),
        (1059, 160.0, False),  # slower by 1/60
        (0, 160.0, True),
        (999, 100.5, False),  # one second of jitter
        (998, 100.5, True),
        (998, 100.0, True),  # at once, too
        (1000, 160.0, True),  # it has stood still: it was rebooted, and came back to here
        (1000 + 3600, 100.0 + 3600 * 0.95, False),  # clocks differ by a sixteenth at the most
        (1000 + 3600, 100.0 + 3600 * 0.9, True),
        (1000 + 3000, 100.0 + 3600, True),
    ],
)
def test_epochs(epoch: int, now: float, lost: bool) -> None:
    clock = Epoch()
    clock.lost(1000, 100.0)
    assert clock.lost(epoch, now) == lost


@given(
    st.integers(0, 2**31),
    st.lists(st.floats(0, 100_000), max_size=20),
    st.floats(-0.06, 0.06),
)
def test_a_router_that_stays_up_never_looks_restarted(
    start: int, waits: list[float], drift: float
) -> None:
    clock, now, theirs = Epoch(), 0.0, float(start)
    for wait in [0.0, *waits]:
        now += wait
        theirs += wait * (1 + drift)
        assert not clock.lost(int(theirs), now)

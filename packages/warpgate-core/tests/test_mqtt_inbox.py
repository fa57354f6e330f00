# ruff: noqa: ASYNC110  # what another process or a counter shows has no event to wait for

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from warpgate.events import Counters
from warpgate.protocol.envelope import MAX_SIGNAL_BYTES
from warpgate.signalling import mqtt_inbox
from warpgate.signalling.mqtt_inbox import MAX_QUEUED, MAX_REMEMBERED, SLICE_MESSAGES, Inbox


class Link:
    def __init__(self, name):
        self.name = name


def envelope(size=200):
    return b"\x01" + os.urandom(size - 1)


class Bench:
    def __init__(self):
        self.counters = Counters()
        self.got = []
        self.inbox = Inbox(self.counters, lambda data, link: self.got.append((data, link)))
        self.link = Link("one")


@pytest.fixture
def bench():
    return Bench()


async def drain(inbox):
    task = asyncio.ensure_future(inbox.run())
    while inbox._queues:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("payload", "retained", "counter"),
    [
        (b"", False, "mqtt_garbage"),
        (b"\x01" * 50, False, "mqtt_garbage"),
        (b"\x02" + bytes(300), False, "mqtt_garbage"),
        (b"\x01" * (MAX_SIGNAL_BYTES + 1), False, "mqtt_oversize"),
        (b"\x01" * 300, True, "mqtt_retained"),
    ],
)
async def test_what_cant_be_a_signal_is_counted_and_never_queued(bench, payload, retained, counter):
    bench.inbox.put(bench.link, payload, retained)
    await drain(bench.inbox)
    assert bench.got == []
    assert bench.counters == {counter: 1}


async def test_a_copy_by_another_broker_is_dropped(bench):
    data, other = envelope(), Link("two")
    bench.inbox.put(bench.link, data, False)
    bench.inbox.put(other, data, False)
    await drain(bench.inbox)
    assert bench.got == [(data, bench.link)]
    assert bench.counters == {"mqtt_copies": 1}


async def test_what_a_full_queue_drops_may_come_again(bench):
    for _ in range(MAX_QUEUED):
        bench.inbox.put(bench.link, envelope(), False)
    late, other = envelope(), Link("two")
    bench.inbox.put(bench.link, late, False)
    assert bench.counters == {"mqtt_flooded": 1}
    bench.inbox.put(other, late, False)
    await drain(bench.inbox)
    assert (late, other) in bench.got
    assert len(bench.got) == MAX_QUEUED + 1


async def test_what_comes_again_does_not_stand_behind_the_flood(bench):
    for _ in range(MAX_QUEUED):
        bench.inbox.put(bench.link, envelope(), False)
    right = envelope()
    bench.inbox.put(bench.link, right, False)
    assert bench.counters == {"mqtt_flooded": 1}
    bench.inbox.put(bench.link, right, False)  # its sender's first copy, while the queue is full
    await drain(bench.inbox)
    assert bench.got.index((right, bench.link)) <= 1
    bench.inbox.put(bench.link, right, False)
    assert bench.counters == {"mqtt_flooded": 1, "mqtt_copies": 1}


async def test_memory_of_what_was_missed_is_bounded(bench, monkeypatch):
    monkeypatch.setattr(mqtt_inbox, "MAX_MISSED", 100)
    for _ in range(MAX_QUEUED):
        bench.inbox.put(bench.link, envelope(), False)
    first, last = envelope(), envelope()
    bench.inbox.put(bench.link, first, False)
    for _ in range(250):
        bench.inbox.put(bench.link, envelope(), False)
    bench.inbox.put(bench.link, last, False)
    assert len(bench.inbox._missed) <= 100
    assert len(bench.inbox._missed_before) <= 100
    bench.inbox.put(bench.link, first, False)  # forgotten: it waits with all the others, or drops
    bench.inbox.put(bench.link, last, False)
    bench.inbox._slice()
    assert (last, bench.link) in bench.got
    assert (first, bench.link) not in bench.got


async def test_a_flood_on_one_broker_does_not_hold_up_another(bench):
    for _ in range(MAX_QUEUED):
        bench.inbox.put(bench.link, envelope(), False)
    right, other = envelope(), Link("two")
    bench.inbox.put(other, right, False)
    await drain(bench.inbox)
    assert bench.got.index((right, other)) <= 1


async def test_the_loop_gets_its_turn_in_between(bench):
    for _ in range(SLICE_MESSAGES * 3):
        bench.inbox.put(bench.link, envelope(), False)
    task = asyncio.ensure_future(bench.inbox.run())
    seen = []
    while len(bench.got) < SLICE_MESSAGES * 3:
        await asyncio.sleep(0)
        seen.append(len(bench.got))
    task.cancel()
    await asyncio.wait([task])
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= SLICE_MESSAGES


async def test_memory_of_copies_is_bounded(bench):
    for _ in range(MAX_REMEMBERED + 10):
        bench.inbox.put(bench.link, envelope(), False)
        bench.inbox._queues.clear()
    assert len(bench.inbox._seen) == MAX_REMEMBERED


async def test_a_failing_receiver_stops_nothing(bench, caplog):
    got = []

    def deliver(data, _link):
        got.append(data)
        if len(got) == 1:
            raise RuntimeError("broken")

    inbox = Inbox(bench.counters, deliver)
    inbox.put(bench.link, envelope(), False)
    inbox.put(bench.link, envelope(), False)
    await drain(inbox)
    assert len(got) == 2
    assert "broken" in caplog.text


def test_the_transport_alone_loads_no_mqtt_library():
    code = (
        "import sys, warpgate.signalling.mqtt_transport, warpgate.names.retained\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('aiomqtt', 'paho', 'amqtt')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Consent on datagram pipes: who is not heard for 30 s is sent nothing more."""

from __future__ import annotations

import asyncio
import itertools
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import PipeClosed
from warpgate.hello.consent import (
    ANSWER_BURST,
    ANSWERS_PER_S,
    EXPIRY_S,
    MAX_PENDING,
    Consent,
    Expired,
)
from warpgate.hello.datagrams import DatagramFraming, SealedFraming
from warpgate.hello.records import DatagramSeal
from warpgate.hello.seal import CHACHA20_POLY1305
from warpgate.net.udp import UdpPipe

ADDR = ("192.0.2.2", 2)
PLUGIN_ID = "A" * 15
KEYS = bytes(32), bytes(range(32))


def make(uniform=lambda: 0.5, now=0.0):
    consent = Consent(os.urandom, uniform)
    consent.start(now)
    return consent


def run(consent, until, answer=lambda now, request: None):
    """Let time pass; return when each request was sent."""
    times = []
    while (due := consent.next_timeout()) is not None and due <= until:
        consent.handle_timeout(due)
        for data in consent.outgoing(due):
            times.append(due)
            answer(due, data)
    return times


def test_requests_go_early_once_and_then_every_five_seconds():
    consent = make()
    reply = lambda now, request: consent.receive(b"\x02" + request[1:], ADDR, now)  # noqa: E731
    assert run(consent, 21, reply) == [1, 6, 11, 16, 21]


@given(seed=st.integers())
def test_the_intervals_vary_within_a_fifth(seed):
    rng = random.Random(seed)
    consent = make(rng.random)
    times = run(consent, 600, lambda now, data: consent.receive(b"\x02" + data[1:], ADDR, now))
    assert 0.8 <= times[0] <= 1.2
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(4 <= gap <= 6.000001 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.5
    assert consent.next_event() is None


def test_without_an_answer_it_expires_after_thirty_seconds_and_says_nothing_more():
    consent = make()
    assert run(consent, 1000)[-1] < EXPIRY_S
    assert consent.next_event() == Expired()
    assert consent.next_event() is None
    assert consent.next_timeout() is None
    consent.receive(b"\x01" + bytes(8), ADDR, 31.0)
    consent.handle_timeout(100.0)
    assert consent.outgoing(100.0) == []


def test_answers_that_still_wait_go_down_with_the_consent():
    consent = make()
    consent.receive(b"\x01" + bytes(8), ADDR, 29.0)
    consent.handle_timeout(EXPIRY_S)
    assert consent.outgoing(EXPIRY_S) == []


def test_it_expires_thirty_seconds_after_the_last_answer():
    consent = make()
    run(consent, 12, lambda now, data: consent.receive(b"\x02" + data[1:], ADDR, now + 0.25))
    assert consent.heard == 11.25
    run(consent, 41.24)
    assert consent.next_event() is None
    consent.handle_timeout(41.25)
    assert consent.next_event() == Expired()


def test_an_answer_counts_however_late_and_once():
    consent = make()
    sent = []
    run(consent, 29, lambda now, data: sent.append(data))
    assert len(sent) == 6
    consent.receive(b"\x02" + sent[0][1:], ADDR, 29.5)
    assert (consent.heard, consent.refused) == (29.5, 0)
    consent.receive(b"\x02" + sent[0][1:], ADDR, 29.9)
    assert (consent.heard, consent.refused) == (29.5, 1)
    consent.receive(b"\x02" + sent[3][1:], ADDR, 29.9)
    assert consent.heard == 29.9


def test_only_what_was_asked_is_an_answer():
    consent = make()
    consent.handle_timeout(1.0)
    request = consent.outgoing(1.0)[0]
    assert (request[0], len(request)) == (1, 9)
    wrong = [bytes(8), request[1:8], request[1:] + b"\0", request[:0:-1], b""]
    for nonce in wrong:
        consent.receive(b"\x02" + nonce, ADDR, 2.0)
    consent.receive(b"\x03" + request[1:], ADDR, 2.0)
    assert (consent.heard, consent.refused) == (0.0, len(wrong) + 1)


def test_nonces_are_fresh():
    drawn = []
    consent = Consent(lambda n: drawn.append(n) or os.urandom(n), lambda: 0.5)
    consent.start(0.0)
    sent = []
    run(consent, 30, lambda now, data: sent.append(data))
    assert drawn == [8] * len(sent)
    assert len(set(sent)) == len(sent)


def test_answers_echo_the_nonce_and_are_rationed():
    consent = make()
    for number in range(100):
        consent.receive(b"\x01" + number.to_bytes(8, "big"), ADDR, 0.0)
    answers = consent.outgoing(0.0)
    assert answers == [b"\x02" + n.to_bytes(8, "big") for n in range(ANSWER_BURST)]
    assert consent.refused == 100 - ANSWER_BURST
    for tenth in range(100):
        consent.receive(b"\x01" + bytes(8), ADDR, 0.1 * tenth)
    assert len(consent.outgoing(10.0)) <= 10 * ANSWERS_PER_S
    consent.receive(b"\x01" + bytes(8), ADDR, 11.0)
    assert len(consent.outgoing(11.0)) == 1


def test_a_request_is_no_consent():
    consent = make()
    consent.receive(b"\x01" + bytes(8), ADDR, 20.0)
    assert consent.heard == 0.0


@given(st.lists(st.tuples(st.floats(0, 20), st.binary(max_size=20)), max_size=50))
def test_any_bytes_are_survived_and_nothing_grows(messages):
    consent = make()
    now = 0.0
    for wait, data in messages:
        now += wait
        consent.receive(data, ADDR, now)
        consent.handle_timeout(now)
    assert len(consent._pending) <= MAX_PENDING
    assert len(consent.outgoing(now)) <= ANSWER_BURST + ANSWERS_PER_S * now + len(messages)


# On pipes.


class Link:
    """One end of a datagram path in memory; ``lose`` decides what gets lost."""

    def __init__(self, local):
        self.local, self.peer, self.default = local, None, None
        self.sent, self.callbacks = [], []
        self.lose = lambda data: False

    def send_to(self, data, addr):
        self.sent.append((asyncio.get_running_loop().time(), data))
        if not self.lose(data):
            asyncio.get_running_loop().call_soon(self._arrive, data)
        return True

    def _arrive(self, data):
        if self.peer.default is not None:
            self.peer.default(data, self.local)

    async def writable(self):
        pass

    def on_close(self, callback):
        self.callbacks.append(callback)

    def forget(self, callback):
        self.callbacks.remove(callback)

    def close(self):
        self.default = None


def pair(*, sealed=False):
    links = Link(("192.0.2.1", 1)), Link(("192.0.2.2", 2))
    links[0].peer, links[1].peer = links[1], links[0]
    pipes = [UdpPipe(link, link.peer.local) for link in links]
    for pipe, keys in zip(pipes, (KEYS, KEYS[::-1]), strict=True):
        arguments = PLUGIN_ID, pipe, lambda data, addr: None
        if sealed:
            framing = SealedFraming(*arguments, DatagramSeal(CHACHA20_POLY1305, *keys))
        else:
            framing = DatagramFraming(*arguments)
        pipe.only_remote = True
        pipe.set_filter(framing)
        framing.start()
    return pipes, links


@pytest.mark.parametrize("sealed", [False, True])
def test_an_idle_pipe_lives_and_sends_little(virtual, sealed):
    async def main():
        pipes, links = pair(sealed=sealed)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3600)
        assert not pipes[0].closed
        assert not pipes[1].closed
        for pipe, link in zip(pipes, links, strict=True):
            times = [at for at, _ in link.sent]
            assert times[1] <= 2.5  # a second packet early
            assert max(b - a for a, b in itertools.pairwise(times)) <= 6.01
            assert len(times) <= 2 * 3600 / 4 + 2
            assert dict(pipe.counters) == {}
        assert not any(pipe.has_unread for pipe in pipes)
        await pipes[0].send(b"still there")
        assert await pipes[1].recv() == b"still there"
        await pipes[0].close()
        await pipes[1].wait_closed()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []

    virtual(main())


@pytest.mark.parametrize("sealed", [False, True])
def test_a_peer_that_vanishes_ends_the_pipe(virtual, sealed):
    async def main():
        (near, far), links = pair(sealed=sealed)
        await asyncio.sleep(100)
        links[1].lose = lambda data: True
        await far.send(b"lost")
        began = asyncio.get_running_loop().time()
        await near.wait_closed()
        waited = asyncio.get_running_loop().time() - began
        assert EXPIRY_S - 6 - 0.01 <= waited <= EXPIRY_S
        with pytest.raises(PipeClosed) as caught:
            await near.send(b"x")
        assert "has not answered for 30 s (consent expired, RFC 7675)" in str(
            caught.value.__cause__
        )
        assert near.counters["consent_expired"] == 1
        count = len(links[0].sent)
        await asyncio.sleep(100)
        assert len(links[0].sent) == count  # silence, and no farewell
        assert far.closed  # which in turn heard nobody

    virtual(main())


def test_what_came_before_the_peer_vanished_can_be_read(virtual):
    async def main():
        (near, far), links = pair()
        await far.send(b"last words")
        await asyncio.sleep(0)
        links[1].lose = lambda data: True
        await near.wait_closed()
        assert await near.recv() == b"last words"
        assert await near.recv() is None
        far.abort()

    virtual(main())


def test_one_of_twenty_packets_may_be_lost(virtual):
    async def main():
        (near, far), links = pair()
        rng = random.Random(5)
        for link in links:
            link.lose = lambda data: rng.random() < 0.05
        await asyncio.sleep(600)
        assert not near.closed
        await near.close()
        far.abort()

    virtual(main())


def test_data_of_an_unsealed_pipe_is_no_consent(virtual):
    """Anybody on the path can send that."""

    async def main():
        (near, far), links = pair()
        links[1].lose = lambda data: data[:1] == b"\x01"
        for _ in range(40):
            await asyncio.sleep(1)
            if not near.closed:
                await far.send(b"data")
        assert near.closed
        far.abort()

    virtual(main())


def test_any_datagram_of_a_sealed_pipe_is_consent(virtual):
    """And neither a forged nor a repeated one is."""

    async def main(forge):
        (near, far), links = pair(sealed=True)
        links[1].lose = lambda data: data[:1] == b"\x01" or forge is not None
        for _ in range(100):
            await asyncio.sleep(1)
            if not far.closed:
                await far.send(b"data")
            if forge is not None and not near.closed:
                links[0].default(forge(links[1].sent), links[1].local)
        expected = forge is not None
        assert near.closed == expected
        near.abort()
        far.abort()

    virtual(main(None))
    virtual(main(lambda sent: b"\0" * 40))
    virtual(main(lambda sent: sent[0][1]))


def test_a_sealed_pipe_lives_with_a_fifth_of_its_packets_lost(virtual):
    async def main():
        (near, far), links = pair(sealed=True)
        rng = random.Random(5)
        for link in links:
            link.lose = lambda data: rng.random() < 0.2
        await asyncio.sleep(600)
        assert not near.closed
        await near.close()
        far.abort()

    virtual(main())


def test_control_of_a_stranger_is_counted(virtual):
    async def main():
        (near, far), links = pair()
        links[0].default(b"\x01\x02" + bytes(8), links[1].local)
        links[0].default(b"\x01\x02short", links[1].local)
        for _ in range(2 * ANSWER_BURST):
            links[0].default(b"\x01\x01" + bytes(8), links[1].local)
        assert near.counters["consent_refused"] == 2 + ANSWER_BURST
        links[0].default(b"\x01\x02" + bytes(8), ("203.0.113.9", 9))
        assert near.unmatched == 1
        near.abort()
        far.abort()

    virtual(main())

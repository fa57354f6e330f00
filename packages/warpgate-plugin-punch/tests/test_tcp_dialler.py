"""The sockets of a TCP punch, over loopback."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from warpgate.net.budget import PacketBudget
from warpgate.net.constants import IP4, IP6
from warpgate.testing import LeakCheck
from warpgate_plugin_punch.tcp_punch import candidates as candidates_module
from warpgate_plugin_punch.tcp_punch import dialler as dialler_module
from warpgate_plugin_punch.tcp_punch.candidates import Candidates
from warpgate_plugin_punch.tcp_punch.dialler import Dialler, reset

HERE = "127.0.0.1"
GUARD_S = 10


class Side:
    """A dialler, and what came of it."""

    def __init__(self, af: int = IP4, limit: int = 50) -> None:
        self.made: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.budget = PacketBudget(limit)
        self.dialler = Dialler(af, self.budget, self.made.put_nowait, self.broke)

    def broke(self, error: BaseException) -> None:
        raise error

    async def next(self) -> socket.socket:
        async with asyncio.timeout(GUARD_S):
            return await self.made.get()

    async def close(self) -> None:
        await self.dialler.close()
        while not self.made.empty():
            reset(self.made.get_nowait())


@pytest_asyncio.fixture
async def sides() -> AsyncIterator[tuple[Side, Side]]:
    async with LeakCheck():
        one, other = Side(), Side()
        yield one, other
        await one.close()
        await other.close()


async def settled(side: Side) -> None:
    """Wait until no SYN is out."""
    async with asyncio.timeout(GUARD_S):
        while side.dialler._dialling:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def in_error(side: Side) -> None:
    """Wait for a first error."""
    async with asyncio.timeout(GUARD_S):
        while not side.dialler.errors:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_port_listens_and_dials_at_once(sides: tuple[Side, Side]) -> None:
    one, other = sides
    mine, theirs = one.dialler.open(HERE), other.dialler.open(HERE)
    other.dialler.expect(HERE)
    assert one.dialler.dial(mine, (HERE, theirs))
    with await one.next() as near, await other.next() as far:
        assert near.getsockname() == far.getpeername() == (HERE, mine)
        assert near.getpeername() == far.getsockname() == (HERE, theirs)
    assert (one.dialler.sent, one.dialler.connected, other.dialler.accepted) == (1, 1, 1)


async def test_what_connects_at_once_is_taken_where_systems_call_that_an_error(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = sides
    loop = asyncio.get_running_loop()
    real = loop.sock_connect

    async def bsd(sock: socket.socket, address: tuple[str, int]) -> None:
        await real(sock, address)
        raise OSError(errno.EISCONN, "Socket is already connected")

    monkeypatch.setattr(loop, "sock_connect", bsd)
    other.dialler.expect(HERE)
    assert one.dialler.dial(one.dialler.open(HERE), (HERE, other.dialler.open(HERE)))
    with await one.next() as near, await other.next() as far:
        assert near.getpeername() == far.getsockname()
    assert not one.dialler.errors


async def test_who_was_refused_is_still_reached(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.dialler.expect(HERE)
    mine = one.dialler.open(HERE)
    theirs = other.dialler.open(HERE)
    await other.dialler.close()  # nobody listens there yet
    assert one.dialler.dial(mine, (HERE, theirs))
    await settled(one)
    assert one.dialler.errors == {"ECONNREFUSED": 1}
    assert "1 answered with RST" in one.dialler.summary()
    late = Side()
    assert late.dialler.open(HERE, theirs) == theirs
    assert late.dialler.dial(theirs, (HERE, mine))
    with await late.next(), await one.next() as accepted:
        assert accepted.getpeername() == (HERE, theirs)
    await late.close()


async def test_strangers_are_refused(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.dialler.expect("192.0.2.1")
    assert other.dialler.dial(other.dialler.open(HERE), (HERE, one.dialler.open(HERE)))
    await in_error(one)
    assert one.made.empty()
    assert one.dialler.errors == {"a stranger's connection": 1}


async def test_what_is_accepted_while_it_closes_is_reset(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.dialler.expect(HERE)
    port = one.dialler.open(HERE)
    one.dialler.closed = True  # close() waits for its tasks then, and the port still listens
    assert other.dialler.dial(other.dialler.open(HERE), (HERE, port))
    await in_error(one)
    assert one.made.empty()
    assert one.dialler.accepted == 0


async def test_a_port_never_connects_to_itself(sides: tuple[Side, Side]) -> None:
    one, _ = sides
    port = one.dialler.open(HERE)
    assert not one.dialler.dial(port, (HERE, port))
    assert one.dialler.sent == 0


async def test_no_more_syns_than_the_budget_has(sides: tuple[Side, Side]) -> None:
    one = Side(limit=3 + dialler_module.RESERVE)
    port = one.dialler.open(HERE)
    sent = [one.dialler.dial(port, (HERE, 1 + number)) for number in range(5)]
    assert sent == [True, True, True, False, False]
    assert one.budget.sent(HERE) == one.dialler.sent == 3
    assert one.dialler.errors["not sent for the limit"] == 2
    await one.close()


@pytest.mark.parametrize(("limit", "packets"), [(50, 2), (dialler_module.REPEATS_BUDGET, 1)])
async def test_the_systems_own_repetitions_count(
    monkeypatch: pytest.MonkeyPatch, limit: int, packets: int
) -> None:
    """A SYN that nobody answers ends before its repetition, or that is counted too."""
    monkeypatch.setattr(dialler_module, "REPEAT_S", 0.05)
    one = Side(limit=limit)
    with socket.socket() as full:  # a listener whose queue is full lets SYNs go unanswered
        full.bind((HERE, 0))
        full.listen(0)
        address = full.getsockname()
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(address)
            assert one.dialler.dial(one.dialler.open(HERE), address)
            await asyncio.sleep(0.2)  # the time that is being tested
            assert one.budget.sent(HERE) == packets
            assert bool(one.dialler._dialling) is (packets == 2)
            await one.close()


async def test_stopped_timers_dial_no_more(sides: tuple[Side, Side]) -> None:
    one, other = sides
    mine, theirs = one.dialler.open(HERE), other.dialler.open(HERE)
    one.dialler.dial_at(0.01, mine, (HERE, theirs))
    one.dialler.stop_dialling()
    one.dialler.dial_at(0.02, mine, (HERE, theirs))
    await other.dialler.close()
    await in_error(one)
    assert one.dialler.sent == 1


async def test_low_hops_are_raised_once_the_syn_is_out(sides: tuple[Side, Side]) -> None:
    one, other = sides
    other.dialler.expect(HERE)
    assert one.dialler.dial(one.dialler.open(HERE), (HERE, other.dialler.open(HERE)), 1)
    with await one.next() as near, await other.next():
        assert near.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) > 1


async def test_ipv6() -> None:
    async with LeakCheck():
        one, other = Side(IP6), Side(IP6)
        other.dialler.expect("::1")
        assert one.dialler.dial(one.dialler.open("::1"), ("::1", other.dialler.open("::1")), 2)
        (await one.next()).close()
        (await other.next()).close()
        await one.close()
        await other.close()


async def test_closed_before_a_task_has_begun_leaves_nothing(sides: tuple[Side, Side]) -> None:
    one, other = sides
    assert one.dialler.dial(one.dialler.open(HERE), (HERE, other.dialler.open(HERE)))
    await one.dialler.close()
    assert not one.dialler.dial(1, (HERE, 2))


# Which connections are handed over.


async def connected() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind((HERE, 0))
        listener.listen()
        near = socket.socket()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    return near, far


async def test_the_initiator_hands_over_the_first_then_spares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates_module, "SPARE_AFTER_S", 0.02)
    async with LeakCheck():
        offered: asyncio.Queue[object] = asyncio.Queue()
        made = Candidates(True, offered.put_nowait, pytest.fail)
        ends = [await connected() for _ in range(3)]
        for near, _ in ends:
            made.add(near)
        assert made.handed
        async with asyncio.timeout(GUARD_S):
            for _, far in ends[:2]:
                pipe = await offered.get()
                assert pipe.remote == far.getsockname()  # type: ignore[attr-defined]
                pipe.abort()  # type: ignore[attr-defined]
        await made.close()
        for _, far in ends:
            far.close()


async def test_the_responder_waits_for_the_initiators_word() -> None:
    async with LeakCheck():
        offered: asyncio.Queue[object] = asyncio.Queue()
        made = Candidates(False, offered.put_nowait, pytest.fail)
        silent, speaking, closed = [await connected() for _ in range(3)]
        for near, _ in (silent, speaking, closed):
            made.add(near)
        closed[1].close()
        speaking[1].send(b"hello")
        async with asyncio.timeout(GUARD_S):
            pipe = await offered.get()
            assert await pipe.recv_n(5) == b"hello"  # type: ignore[attr-defined]
        pipe.abort()  # type: ignore[attr-defined]
        assert offered.empty()
        assert made.lost == 1
        await made.close()
        silent[1].close()
        speaking[1].close()


@pytest.mark.parametrize("initiator", [True, False])
async def test_a_connection_holds_up_guesses_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch, initiator: bool
) -> None:
    """A guess may have met somebody else, who speaks first and is no peer."""
    monkeypatch.setattr(candidates_module, "SPARE_AFTER_S", 0.05)
    async with LeakCheck():
        offered: asyncio.Queue[object] = asyncio.Queue()
        made = Candidates(initiator, offered.put_nowait, pytest.fail)
        near, far = await connected()
        far.send(b"SSH-2.0-other")
        made.add(near)
        async with asyncio.timeout(GUARD_S):
            while not made.fresh:  # noqa: ASYNC110
                await asyncio.sleep(0)
            pipe = await offered.get()
            while made.fresh:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        pipe.abort()  # type: ignore[attr-defined]
        await made.close()
        far.close()


async def test_candidates_closed_at_once_leave_nothing() -> None:
    async with LeakCheck():
        for initiator in (True, False):
            made = Candidates(initiator, pytest.fail, pytest.fail)
            ends = [await connected() for _ in range(3)]
            for near, _ in ends:
                made.add(near)
            await made.close()
            for _, far in ends:
                far.close()

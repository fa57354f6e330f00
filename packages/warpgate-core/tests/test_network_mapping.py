"""When listening sockets ask STUN servers, and what they make of the answers; in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace

import pytest

from warpgate.events import Counters
from warpgate.net.constants import IP4
from warpgate.node.network_facts import Seen, keeps_mapping
from warpgate.node.network_mapping import ANSWER_S, BACK_OFF_CAP_S, Keepers, MappingKeeper

A, B, C = ("192.0.2.1", 3478), ("192.0.2.2", 3478), ("192.0.2.3", 3478)
OUTSIDE, MOVED = ("198.51.100.1", 5000), ("198.51.100.1", 6000)
ELSEWHERE = ("203.0.113.9", 5000)
SITE = "eth0", IP4


class World:
    """STUN servers, and what each of them sees; None: silent."""

    def __init__(self):
        self.sees = {A: OUTSIDE, B: OUTSIDE, C: OUTSIDE}
        self.asked = []
        self.news = []
        self.needed = True
        self.draw = 0.5
        self.counters = Counters()

    async def ask(self, servers):
        loop = asyncio.get_running_loop()
        self.asked.append((round(loop.time(), 3), list(servers)))
        answers = [SimpleNamespace(server=s, mapped=self.sees[s]) for s in servers if self.sees[s]]
        await asyncio.sleep(0.05 if answers else ANSWER_S)
        return answers

    def keepers(self):
        found = Keepers(
            needed=lambda site, seen: self.needed,
            on_news=lambda site, moved: self.news.append((site, found.seen(site), moved)),
            counters=self.counters,
            spread=lambda: self.draw,
        )
        found.servers = {IP4: [A, B, C]}
        return found


@pytest.fixture
def world(monkeypatch):
    made = World()

    async def ask(keeper, servers, grace_s):
        return await made.ask(servers)

    monkeypatch.setattr(MappingKeeper, "_ask", ask)
    return made


def socket():
    return SimpleNamespace(af=IP4, closed=False)


def test_all_servers_first_then_one_after_five_seconds_and_every_twenty(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(60)
        await keepers.close()

    virtual(main())
    assert [servers for _, servers in world.asked] == [[A, B, C], [A], [A], [A]]
    assert [at for at, _ in world.asked] == pytest.approx([0, 5, 25, 45], abs=0.3)
    assert world.news == [(SITE, Seen(OUTSIDE, agreed=True), False)]
    assert not world.counters


@pytest.mark.parametrize(("draw", "pauses"), [(0.0, [4, 16]), (1.0, [6, 24])])
def test_the_pauses_are_spread(world, virtual, draw, pauses) -> None:
    world.draw = draw

    async def main():
        keepers = world.keepers()
        began = asyncio.get_running_loop().time()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(31)
        await keepers.close()
        return [at - began for at, _ in world.asked]

    asked = virtual(main())
    assert asked[1:3] == pytest.approx([pauses[0], sum(pauses)], abs=0.3)


def test_where_there_is_nothing_to_keep_questions_are_rare(world, virtual) -> None:
    world.needed = False

    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(250)
        await keepers.close()

    virtual(main())
    assert [at for at, _ in world.asked] == pytest.approx([0, 120, 240], abs=0.5)


def test_a_silent_server_s_place_is_taken_by_the_next_for_good(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        world.sees[A] = None
        await asyncio.sleep(30)
        await keepers.close()

    virtual(main())
    assert [servers for _, servers in world.asked] == [[A, B, C], [A], [B], [B]]
    assert not world.counters
    assert len(world.news) == 1


def test_another_port_is_news_once_several_servers_see_it(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        world.sees = dict.fromkeys(world.sees, MOVED)
        await asyncio.sleep(12)
        await keepers.close()

    virtual(main())
    # The new mapping is looked after like a first one.
    assert [servers for _, servers in world.asked] == [[A, B, C], [A], [A, B, C], [A]]
    assert world.news[1:] == [(SITE, Seen(MOVED, agreed=True), False)]


def test_one_server_that_lies_changes_nothing(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        world.sees[A] = ELSEWHERE
        await asyncio.sleep(60)
        await keepers.close()

    virtual(main())
    assert world.news == [(SITE, Seen(OUTSIDE, agreed=True), False)]


def test_another_external_ip_is_told_as_a_move(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        world.sees = dict.fromkeys(world.sees, ELSEWHERE)
        keepers.check(everything=False)  # the last answer is fresh
        await asyncio.sleep(0)
        assert len(world.asked) == 1
        keepers.check(everything=True)
        await asyncio.sleep(0.2)
        assert world.news[-1] == (SITE, Seen(ELSEWHERE, agreed=True), True)
        await keepers.close()

    virtual(main())


def test_a_symmetric_nat_s_ports_are_no_news(world, virtual) -> None:
    world.sees = {server: (OUTSIDE[0], 5000 + n) for n, server in enumerate((A, B, C))}
    world.needed = False

    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        assert not keepers.seen(SITE).agreed
        assert not keeps_mapping(None, keepers.seen(SITE))
        world.sees[A] = (OUTSIDE[0], 7777)
        await asyncio.sleep(130)
        await keepers.close()

    virtual(main())
    assert len(world.news) == 1


def test_when_all_are_dead_what_was_seen_is_kept_and_questions_get_rarer(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        world.sees = dict.fromkeys(world.sees)
        await asyncio.sleep(2000)
        assert keepers.seen(SITE) == Seen(OUTSIDE, agreed=True)
        assert keepers.answered() == {SITE: False}
        assert keepers.answered_s() < 1
        world.sees = dict.fromkeys(world.sees, OUTSIDE)
        await asyncio.sleep(BACK_OFF_CAP_S + 10)
        assert keepers.answered() == {SITE: True}
        await keepers.close()

    virtual(main())
    rounds = [at for at, servers in world.asked if servers == [A]]
    gaps = [after - before for before, after in pairwise(rounds[1:9])]
    assert all(after > before - 0.01 for before, after in pairwise(gaps))
    assert gaps[0] < 30
    assert gaps[-1] == pytest.approx(BACK_OFF_CAP_S, abs=10)
    assert world.counters["stun-unanswered"] == len(world.news) - 2


def test_a_first_question_that_nobody_answers_is_repeated_to_all(world, virtual) -> None:
    world.sees = dict.fromkeys(world.sees)

    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await keepers.first_rounds(ANSWER_S + 1)
        assert keepers.answered() == {SITE: False}
        assert keepers.answered_s() is None
        world.sees = dict.fromkeys(world.sees, OUTSIDE)
        await asyncio.sleep(30)
        assert keepers.seen(SITE) == Seen(OUTSIDE, agreed=True)
        await keepers.close()

    virtual(main())
    assert [servers for _, servers in world.asked][:2] == [[A, B, C]] * 2


def test_a_check_during_a_question_is_not_lost(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(0.01)  # the first one is under way
        keepers.check(everything=True)
        await asyncio.sleep(0.5)
        await keepers.close()

    virtual(main())
    assert [servers for _, servers in world.asked] == [[A, B, C], [A]]


def test_another_socket_gets_another_keeper_and_a_vanished_one_none(world, virtual) -> None:
    async def main():
        keepers = world.keepers()
        one, two = socket(), socket()
        keepers.keep({SITE: one})
        await asyncio.sleep(1)
        keepers.keep({SITE: one})
        assert len(world.asked) == 1
        keepers.keep({SITE: two})
        assert keepers.seen(SITE) is None
        await asyncio.sleep(1)
        assert len(world.asked) == 2
        keepers.keep({})
        assert keepers.answered() == {}
        await asyncio.sleep(30)
        assert len(world.asked) == 2
        await keepers.close()
        assert len(asyncio.all_tasks()) == 1

    virtual(main())


def test_a_failure_of_one_question_does_not_end_it(world, virtual, monkeypatch, caplog) -> None:
    async def broken(keeper, servers, grace_s):
        raise ValueError("no such scope")

    monkeypatch.setattr(MappingKeeper, "_ask", broken)

    async def main():
        keepers = world.keepers()
        keepers.keep({SITE: socket()})
        await asyncio.sleep(1)
        assert keepers.answered() == {SITE: False}
        await keepers.close()

    virtual(main())
    assert "no such scope" in caplog.text

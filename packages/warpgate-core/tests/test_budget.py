from __future__ import annotations

from warpgate.net.budget import MAX_ADDRESSES, MAX_UNANSWERED_PACKETS, PacketBudget


def test_an_address_that_has_not_answered_gets_fifty_packets() -> None:
    budget = PacketBudget()
    taken = [budget.take("198.51.100.1") for _ in range(60)]
    assert taken == [True] * MAX_UNANSWERED_PACKETS + [False] * 10
    assert budget.refused == 10
    assert budget.left("198.51.100.1") == 0
    assert budget.take("198.51.100.2")


def test_several_packets_are_taken_whole_or_not_at_all() -> None:
    budget = PacketBudget(10)
    assert budget.take("198.51.100.1", 8)
    assert not budget.take("198.51.100.1", 3)
    assert budget.take("198.51.100.1", 2)
    assert budget.sent("198.51.100.1") == 10


def test_who_has_answered_is_not_limited() -> None:
    budget = PacketBudget(1)
    assert budget.take("198.51.100.1")
    assert not budget.take("198.51.100.1")
    budget.answered("198.51.100.1")
    assert all(budget.take("198.51.100.1") for _ in range(100))


def test_a_peer_can_name_only_so_many_addresses() -> None:
    budget = PacketBudget()
    assert all(budget.take(f"198.51.100.{n}") for n in range(MAX_ADDRESSES))
    assert not budget.take("203.0.113.1")
    assert budget.take("198.51.100.1")

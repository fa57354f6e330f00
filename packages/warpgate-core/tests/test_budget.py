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


class Bytes:
    """A purse."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        self.left += size


def test_strangers_attempts_pay_from_one_purse() -> None:
    purse = Bytes(1000)
    first, second = PacketBudget(purse=purse), PacketBudget(purse=purse)
    assert first.take("198.51.100.1", 2)  # 300 bytes each, where nobody says less
    assert second.take("198.51.100.2", 10, 25)
    assert not second.take("198.51.100.2", 3, 60)
    assert (purse.left, second.refused, second.sent("198.51.100.2")) == (150, 3, 10)
    assert first.charge("198.51.100.1", 150)
    assert not first.charge("198.51.100.1", 1)
    assert PacketBudget().charge("198.51.100.1", 10**9)  # whoever is no stranger


def test_what_a_refused_packet_would_have_cost_is_not_paid() -> None:
    purse = Bytes(1000)
    budget = PacketBudget(1, purse)
    assert budget.take("198.51.100.1", 1, 100)
    assert not budget.take("198.51.100.1", 1, 100)
    assert purse.left == 900


def test_only_a_proof_brings_bytes_back() -> None:
    purse = Bytes(1000)
    budget = PacketBudget(purse=purse)
    assert budget.take("198.51.100.1")
    assert budget.take("198.51.100.2", 1, 60)
    budget.answered("198.51.100.1")  # by a packet that anybody may have written
    assert purse.left == 640
    budget.proven("198.51.100.1")
    assert purse.left == 940
    assert budget.take("198.51.100.1", 100)
    assert purse.left == 940
    budget.proven("198.51.100.1")
    assert purse.left == 940

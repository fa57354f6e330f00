from __future__ import annotations

import pytest

from warpgate.nat.pair import NatPair
from warpgate.net.constants import DeltaType, NATType

RANDOM, COUNTING = int(DeltaType.RANDOM), int(DeltaType.INDEPENDENT)
SYM, CONE, FULL = NATType.SYMMETRIC, NATType.PORT_RESTRICTED, NATType.FULL_CONE


def test_nothing_known_rules_nothing_out() -> None:
    pair = NatPair()
    assert not pair.needs_guesses
    assert not pair.local_closed
    assert not pair.remote_closed
    assert pair.udp_blocked is None


@pytest.mark.parametrize(
    ("local", "local_delta", "remote", "remote_delta", "guesses"),
    [
        (SYM, RANDOM, CONE, 0, True),
        (CONE, 0, SYM, RANDOM, True),
        (SYM, RANDOM, NATType.SYMMETRIC_UDP_FIREWALL, 0, True),
        (SYM, COUNTING, CONE, 0, False),
        (SYM, RANDOM, FULL, 0, False),
        (SYM, RANDOM, NATType.RESTRICTED, 0, False),
        (SYM, RANDOM, NATType.OPEN, 0, False),
        (SYM, RANDOM, 0, 0, False),
        (SYM, COUNTING, SYM, COUNTING, False),
        (SYM, RANDOM, SYM, COUNTING, True),
        (SYM, 0, SYM, RANDOM, True),
        (CONE, RANDOM, CONE, RANDOM, False),
    ],
)
def test_which_pairs_must_guess(
    local: int, local_delta: int, remote: int, remote_delta: int, guesses: bool
) -> None:
    assert NatPair(local, local_delta, remote, remote_delta).needs_guesses is guesses


def test_who_lets_nobody_in() -> None:
    open_kinds = {NATType.OPEN, NATType.FULL_CONE}
    for kind in NATType:
        assert NatPair(local=kind).local_closed is (kind not in open_kinds)
        assert NatPair(remote=kind).remote_closed is (kind not in open_kinds)


def test_whose_udp_is_blocked() -> None:
    assert NatPair(local=NATType.BLOCKED).udp_blocked == "this machine's"
    assert NatPair(remote=NATType.BLOCKED).udp_blocked == "the peer's"
    both = NatPair(local=NATType.BLOCKED, remote=NATType.BLOCKED)
    assert both.udp_blocked == "this machine's and the peer's"

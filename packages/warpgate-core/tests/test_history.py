from __future__ import annotations

from warpgate.net.constants import EXT_BIND, IP4
from warpgate.traversal.history import MAX_WORKED, History


def test_what_worked_is_remembered_by_peer_and_network() -> None:
    history = History()
    history.worked("bob", "home", ("udp_punch", IP4, EXT_BIND))
    history.worked("bob", "office", ("tcp_punch", IP4, EXT_BIND))
    assert history.what_worked("bob", "home") == ("udp_punch", IP4, EXT_BIND)
    assert history.what_worked("bob", "office") == ("tcp_punch", IP4, EXT_BIND)
    assert history.what_worked("carol", "home") is None


def test_the_oldest_are_forgotten() -> None:
    history = History()
    for number in range(MAX_WORKED + 1):
        history.worked(str(number), "home", ("udp_punch", IP4, EXT_BIND))
    assert history.what_worked("0", "home") is None
    assert history.what_worked("1", "home") is not None

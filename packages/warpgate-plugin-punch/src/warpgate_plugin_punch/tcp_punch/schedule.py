"""Ports, pairs of ports and times of a TCP punch; PURE.

S is the one-way time of a signal, R the round trip between the peers. SYNs of the two sides cross on
their way, so that no NAT sees a stray one, when one side's leave within S - R/2 and S + R/2 after the
signal at which the other side's leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from warpgate_plugin_punch.common.facts import SideFacts

LOWEST_PORT: Final = 20_000
HIGHEST_PORT: Final = 59_999
ROUNDS: Final = 4
OPENER_ROUNDS: Final = (3, 4)
"""In the third round the responder's SYNs only open its own NAT, in the fourth the initiator's do."""
OPENER_TTLS: Final = (2, 3, 4)
"""Past the own NAT or two, and not as far as the peer's."""
LATE_S: Final = 0.15
"""S, where nothing has been measured."""
MAX_S: Final = 2.0

FIRST_STAGGER_S: Final = (0.0, 0.022, 0.036, 0.056, 0.086, 0.140)
TIGHT_STAGGER_S: Final = (-0.020, 0.0, 0.015, 0.030, 0.055, 0.090)
AFTER_STAGGER_S: Final = (0.030, 0.060, 0.100, 0.160, 0.240, 0.360)

COUNTING_STAGGER_S: Final = (0.0, 0.015, 0.030, 0.045, 0.060, 0.075, 0.090)

INITIATOR_PORTS: Final = 2
RESPONDER_PORTS: Final = 3
COUNTING_PORTS: Final = 7
FORETOLD_PORTS: Final = 10
"""How many of a counting NAT's next ports the peer is told: some may go to other connections."""
AIM: Final = COUNTING_PORTS - 1
"""Which of the next ports two counting sides both aim at: so many may go to others before."""
MAX_PAIRS: Final = 12


def derived_ports(plugin_id: str, number: int, count: int) -> list[int]:
    """Return the responder's local ports in a round, which the initiator can work out as well.

    Args:
        plugin_id: the attempt's.
        number: the round, from 1.
        count: how many.

    """
    found: list[int] = []
    turn = 0
    while len(found) < count:
        text = f"warpgate tcp punch {plugin_id} {number} {turn}"
        value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        port = LOWEST_PORT + value % (HIGHEST_PORT + 1 - LOWEST_PORT)
        if port not in found:
            found.append(port)
        turn += 1
    return found


def port_count(mine: SideFacts, theirs: SideFacts, initiator: bool) -> int:
    """Return how many local ports one side uses in a round."""
    if mine.counting:
        return COUNTING_PORTS
    if theirs.counting:
        return 1
    return INITIATOR_PORTS if initiator or not mine.keeps_port else RESPONDER_PORTS


def foretold(ports: Sequence[int], step: int, count: int = FORETOLD_PORTS) -> list[int]:
    """Return the next ports of a NAT that counts.

    Args:
        ports: those that servers have just seen, of connections made at once.
        step: from one to the next.
        count: how many to return.

    """
    last = max(ports) if step > 0 else min(ports)
    after = (last + step * number for number in range(1, count + 1))
    return [port for port in after if 1024 <= port <= 65535]


def targets(mine: SideFacts, theirs: SideFacts, ports: Sequence[int]) -> list[int]:
    """Return which of the peer's ports to dial.

    Two sides that count both aim at one of the other's next ports from all of theirs: whatever other
    connections take in between, up to ``AIM`` of them, one pair of ports meets.
    """
    if theirs.counting and mine.counting:
        return list(ports[AIM : AIM + 1] or ports[-1:])
    if mine.counting:
        return list(ports[:1])
    return list(ports)


def pairs(
    own: Sequence[int], other: Sequence[int], limit: int = MAX_PAIRS
) -> list[tuple[int, int]]:
    """Return every own port with every port of the peer, in turns, so that early ones differ."""
    if not own or not other:
        return []
    if len(own) > len(other):
        return [(mine, theirs) for theirs, mine in pairs(other, own, limit)]
    size = len(other)
    every = [
        (mine, other[(place + shift) % size])
        for shift in range(size)
        for place, mine in enumerate(own)
    ]
    return every[:limit]


def stagger(number: int, one_way_s: float | None, counting: bool = False) -> list[float]:
    """Return when the SYNs of the side that sends a message leave, in seconds after it.

    Args:
        number: the round.
        one_way_s: S as measured; None: not measured.
        counting: its NAT counts: the ports are good for a short time only.

    """
    if counting and number < OPENER_ROUNDS[0]:
        return list(COUNTING_STAGGER_S)
    if number == 1 or (number == 2 and one_way_s is None):
        return list(FIRST_STAGGER_S)
    if number == 4:
        return [0.0] * len(FIRST_STAGGER_S)  # they are openers: the earlier the better
    base = min(LATE_S if one_way_s is None else one_way_s, MAX_S)
    times = TIGHT_STAGGER_S if number == 2 else AFTER_STAGGER_S
    return [max(0.0, base + each) for each in times]


def one_way(trip_s: float, hold_s: float, by_clock_s: float | None) -> float:
    """Return S from an answer's round trip; a second opinion by clocks counts where it is possible.

    Args:
        trip_s: from sending the offer to receiving the answer.
        hold_s: how long the peer had it.
        by_clock_s: what two clocks set by NTP say of the way there; None: nothing.

    """
    both = max(trip_s - hold_s, 0.0)
    if by_clock_s is not None and 0.0 < by_clock_s < both:
        return by_clock_s
    return both / 2


def pause(one_way_s: float | None) -> float:
    """Return how long a round is given before the next one begins, in seconds.

    SYNs, the answer and a handshake must have had their time: R is hardly above 2 S.
    """
    return 0.35 + 5 * min(LATE_S if one_way_s is None else one_way_s, 0.25)

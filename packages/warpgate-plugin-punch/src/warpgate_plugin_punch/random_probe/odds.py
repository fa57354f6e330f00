"""How likely many sockets and many guesses meet, and how few of them will do; PURE."""

from __future__ import annotations

import math
from typing import Final

LOWEST_PORT: Final = 1024
HIGHEST_PORT: Final = 65535
MAX_PACKETS: Final = 1400
"""Of one side's spray: WIRE.md section 5."""
ENOUGH: Final = 0.999
"""A spray is made no larger than this probability needs."""
_AROUND = 12  # sizes looked at beside the one that the approximation names


def meeting(sockets: int, guesses: int, ports: int) -> float:
    """Return the probability that a guess hits a port that one of the sockets has got.

    The sockets have different ports, chosen at random; no guess is made twice. For large numbers
    it is near 1 - exp(-sockets * guesses / ports).

    Args:
        sockets: mappings on the side whose ports are random.
        guesses: different ports that the other side writes to.
        ports: how many ports there are.

    """
    if sockets <= 0 or guesses <= 0 or ports <= 0:
        return 0.0
    if sockets + guesses > ports:
        return 1.0
    missed = (
        math.lgamma(ports - sockets + 1)
        - math.lgamma(ports - sockets - guesses + 1)
        - math.lgamma(ports + 1)
        + math.lgamma(ports - guesses + 1)
    )
    return -math.expm1(missed)


def covering(sockets: int, ports: int) -> float:
    """Return the probability that one of so many mappings has a certain port."""
    return 0.0 if ports <= 0 else min(1.0, max(0, sockets) / ports)


def fewest(
    ports: int, max_sockets: int, max_guesses: int, enough: float = ENOUGH
) -> tuple[int, int]:
    """Return (sockets, guesses): the fewest packets that meet with a probability.

    Where the limits do not allow it, it is the limits.

    Args:
        ports: how many ports there are.
        max_sockets: what one side can have.
        max_guesses: what the other may send.
        enough: the probability.

    """
    if meeting(max_sockets, max_guesses, ports) < enough:
        return max_sockets, max_guesses
    middle = min(max_sockets, math.isqrt(round(-math.log1p(-enough) * ports)) + 1)
    best: tuple[int, int] | None = None
    for sockets in range(max(1, middle - _AROUND), min(max_sockets, middle + _AROUND) + 1):
        guesses = _guesses_for(sockets, ports, max_guesses, enough)
        if guesses is not None and (best is None or sockets + guesses < sum(best)):
            best = sockets, guesses
    return best or (max_sockets, max_guesses)


def _guesses_for(sockets: int, ports: int, limit: int, enough: float) -> int | None:
    if meeting(sockets, limit, ports) < enough:
        return None
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        if meeting(sockets, middle, ports) >= enough:
            high = middle
        else:
            low = middle + 1
    return low


def text(probability: float) -> str:
    """Return a probability for people, such as ``P = .9993``."""
    if 0.0 < probability < 0.00005:
        return "P < .0001"
    if 0.99995 <= probability < 1.0:
        return "P > .9999"
    return f"P = {probability:.4f}".replace("0.", ".") if probability < 1.0 else "P = 1"

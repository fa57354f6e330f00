"""From the ports that servers saw to the ports that a counting NAT made, or will make; PURE."""

from __future__ import annotations

from collections.abc import Sequence

LOWEST_PORT = 1024
HIGHEST_PORT = 65535
MAX_BETWEEN = 8


def advance(port: int, by: int) -> int:
    """Return the port so many further on; a counter goes round within 1024 to 65535."""
    if LOWEST_PORT <= port + by <= HIGHEST_PORT:
        return port + by
    return LOWEST_PORT + (port + by - LOWEST_PORT) % (HIGHEST_PORT + 1 - LOWEST_PORT)


def made_between(
    seen: Sequence[tuple[int, int]], after: int, step: int, count: int = 1
) -> tuple[int, ...]:
    """Return which ports a NAT has given to new mappings that were made amid requests to servers.

    Args:
        seen: ``(index of the request, port)`` of the answers, in the order of sending.
        after: how many requests had been sent before those mappings were made.
        step: the NAT's.
        count: how many mappings there were.

    Returns:
        As many as ``count`` when nobody else has made any; else the candidates, in order, at most
        ``MAX_BETWEEN`` and ``count``; none when no answer came.

    """
    before = [(index, port) for index, port in seen if index < after]
    later = [(index, port) for index, port in seen if index >= after]
    if before:
        index, port = before[-1]
        first = advance(port, step * (after - index))  # unanswered requests made mappings too
        if later:
            last = advance(later[0][1], -step * (later[0][0] - after + 1))
            slots = distance(first, last, step) + 1
            if count <= slots <= max(MAX_BETWEEN, count):
                return _run(first, step, slots)
        return _run(first, step, count)
    if later:
        index, port = later[0]
        return _run(advance(port, -step * (index - after + count)), step, count)
    return ()


def counter(seen: Sequence[tuple[int, int]], requests: int, step: int) -> int:
    """Return the port that was made last, 0 when no answer came.

    Args:
        seen: as for :func:`made_between`.
        requests: how many were sent, also those without an answer.
        step: the NAT's.

    """
    if not seen:
        return 0
    index, port = seen[-1]
    return advance(port, step * (requests - 1 - index))


def following(port: int, step: int, count: int) -> tuple[int, ...]:
    """Return the ports that come after one."""
    return _run(advance(port, step), step, count)


def distance(first: int, last: int, step: int) -> int:
    """Return how many steps lead from one port to another, -1 when none do."""
    span = HIGHEST_PORT + 1 - LOWEST_PORT
    way = last - first
    for real in (way, way + span, way - span):
        if step and real % step == 0 and real // step >= 0:
            steps = real // step
            if steps <= span // 2:
                return steps
    return -1


def _run(first: int, step: int, count: int) -> tuple[int, ...]:
    return tuple(advance(first, step * k) for k in range(count))

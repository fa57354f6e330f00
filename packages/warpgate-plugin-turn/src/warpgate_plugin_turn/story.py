"""How far an attempt came, in words."""

from __future__ import annotations

from collections.abc import Iterable

from warpgate.stun.transaction import printable
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import named
from warpgate_plugin_turn.messages import MAX_CAUSE, RelayFacts


def printable_cause(text: str) -> str:
    """Return a peer's words, fit for a report."""
    return " ".join(printable(part) for part in text.split())[:MAX_CAUSE]


def how_far(
    allocation: Allocation | None,
    cause: Exception | None,
    peer: RelayFacts,
    refused: Iterable[Exception],
    *,
    stream: bool = False,
) -> str:
    """Return what there was on either side when an attempt ran out of time.

    Args:
        allocation: this side's relay.
        cause: why there is none.
        peer: what the peer has told.
        refused: what else went wrong.
        stream: a relay for TCP was wanted.

    """
    relay = peer.stream if stream else peer.relay
    if allocation is not None:
        here = f"a relay on TURN server {allocation.name} over {allocation.server.transport}"
        here += f" (lost: {allocation.failure})" if allocation.failure else ""
    else:
        here = f"no relay ({named(cause) if cause else 'no server has answered yet'})"
    if not peer.knock:
        there = "it has not answered"
    elif relay is not None:
        there = f"a relay at {relay[0]} port {relay[1]}, which let nothing through"
    else:
        there = f"no relay ({printable_cause(peer.cause) or 'it needed none'})"
    return "".join([f"here {here}; at the peer: {there}", *(f"; {error}" for error in refused)])

"""When an attempt is known to lead to nothing: why, in words."""

from __future__ import annotations

from warpgate import AttemptSkipped, RelayError, SkipReason
from warpgate_plugin_turn.datagrams import Datagrams
from warpgate_plugin_turn.errors import NoServers, named
from warpgate_plugin_turn.messages import RelayFacts
from warpgate_plugin_turn.policy import PeerPolicy
from warpgate_plugin_turn.story import printable_cause
from warpgate_plugin_turn.streams import Streams


def no_relay(
    ways: Datagrams | Streams, own: RelayError | None, peer: RelayFacts
) -> Exception | None:
    """Return what to say where neither side has a relay; None: that is not so, or not known yet.

    Args:
        ways: of the kind that is wanted.
        own: why this side has no relay.
        peer: what the peer has told.

    """
    stream = isinstance(ways, Streams)
    theirs = printable_cause(peer.cause)
    if ways.allocation is not None or own is None or not theirs:
        return None
    if (peer.stream if stream else peer.relay) is not None:
        return None
    if isinstance(own, NoServers) and peer.no_servers:
        return AttemptSkipped(str(own), SkipReason.NO_TURN_SERVER)
    what = "relay for streams" if stream else "relay"
    return RelayError(f"no {what} here: {named(own)}; the peer says: {theirs}")


def no_permission(
    ways: Datagrams | Streams, policy: PeerPolicy, peer: RelayFacts
) -> Exception | None:
    """Return the refusal where this side's relay lets none of the peer's addresses in, or None."""
    stream = isinstance(ways, Streams)
    if (peer.stream if stream else peer.relay) is not None or (stream and not peer.cause):
        return None  # where a stream is wanted, the peer's relay may still come
    if ways.allocation is None:
        return None
    mapped = policy.peer_ips(ways.allocation.family) & policy.mapped
    return next(iter(ways.refused.values())) if mapped and not mapped - set(ways.refused) else None


def no_way(ways: Datagrams | Streams, own: RelayError | None, peer: RelayFacts) -> Exception | None:
    """Return what to say where the side without a relay does not reach the other's, or None."""
    stream = isinstance(ways, Streams)
    near, theirs = ways.allocation, printable_cause(peer.cause)
    kind = "relay for streams" if stream else "relay"
    if near is None and own is not None and ways.unreachable is not None:
        return RelayError(f"no {kind} here: {named(own)}; {ways.unreachable}")
    if (peer.stream if stream else peer.relay) is not None:
        return None
    if near is not None and peer.unreachable and theirs:
        text = (
            f"the {kind} here, {near.relayed[0]}, can't be reached by the peer; it says: {theirs}"
        )
        return RelayError(text)
    return None


def only_a_stream(
    datagrams: Datagrams, own: RelayError | None, peer: RelayFacts
) -> Exception | None:
    """Return what to say where no datagram gets through, and a stream would, or None."""
    hint = 'only a stream could do; ask for transport="tcp", or for none'
    if own is not None and datagrams.blocked:
        why = f"no relay here ({named(own)}), and UDP does not get out to the peer's"
        return RelayError(f"{why}: {hint}")
    if peer.cause and peer.no_udp and peer.relay is None:
        cause = printable_cause(peer.cause)
        why = f"the peer has no relay ({cause}), and its UDP does not get out to this one"
        return RelayError(f"{why}: {hint}")
    return None

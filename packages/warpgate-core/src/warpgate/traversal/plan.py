"""What to try against a peer, in which order and when: a pure function of two addresses.

PURE. Order is preference; nobody waits for what can't work (RFC 8305 gives the staggers).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from warpgate.nat.pair import NatPair
from warpgate.net.constants import EXT_BIND, IP4, IP6, PHASES, ROUTE_TYPES, NATType
from warpgate.protocol.peer_address import PeerAddress
from warpgate.traversal.paths import (
    TIER_ELSEWHERE,
    TIER_PUBLIC,
    DeadEnd,
    LinkFacts,
    Path,
    cross_paths,
    find_paths,
)
from warpgate.traversal.report import Skip, SkipReason

log = logging.getLogger("warpgate")

STAGGER_PRIVATE_S = 0.030
STAGGER_PUBLIC_S = 0.250
PUNCH_HEAD_START_S = 0.050
SPRAY_HEAD_START_S = 0.300
TURN_LIMIT = 3
MAX_CANDIDATES = 16
"""How many combinations one strategy may try against one peer."""

LATE = "late"
"""The group of sprays that wait until punching has failed (``conf["after_punching"]``)."""
GROUPS: tuple[str, ...] = ("direct", "punch", "spray", LATE, "relay")


@dataclass(frozen=True, slots=True)
class StrategyInfo:
    """What a plan must know of an installed strategy.

    ``after_punching`` is the strategy's own conf key of that name: it starts only when every
    punch and spray has ended. ``impossible`` is the class's method of that name. ``nat64`` is
    its conf key of that name: it only dials, so it reaches an IPv4 peer by a synthesised address.
    ``transports`` is all that it can make, where that is more than ``transport``.
    """

    name: str
    phase: str | None
    transport: str
    route_types: tuple[int, ...] = ROUTE_TYPES
    after_punching: bool = False
    impossible: Callable[[NatPair], str | None] | None = None
    nat64: bool = False
    transports: tuple[str, ...] = ()

    def makes(self, transport: str | None) -> bool:
        """Return whether it can make a pipe of a transport; None: any will do."""
        return transport is None or transport in (self.transport, *self.transports)

    @property
    def group(self) -> str:
        """The group of combinations that opens together."""
        return LATE if self.phase == "spray" and self.after_punching else str(self.phase)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the caller narrowed, and the node's relay policy; None means no restriction.

    ``nat64`` is the prefix of this network's NAT64. ``remembered`` is the (strategy, af, route type)
    that connected to this peer from this network last.
    """

    transport: str | None = None
    plugins: tuple[str, ...] | None = None
    afs: tuple[int, ...] | None = None
    route_types: tuple[int, ...] | None = None
    relay: str = "last"
    relay_after_s: float = 3.0
    turn_limit: int = TURN_LIMIT
    remembered: tuple[str, int, int] | None = None
    nat64: str | None = None


@dataclass(frozen=True, slots=True)
class Combination:
    """One strategy on one path.

    ``delay_s`` counts from the moment its group opens (the stagger within one strategy); ``at_once``:
    it waits for neither, since it connected these peers last time; ``unlikely``: nobody waits for it;
    ``guess``: it is waited for, and had better not be all there is.
    ``transport`` is what the caller asked for.
    """

    strategy: str
    phase: str | None
    group: str
    path: Path
    delay_s: float = 0.0
    at_once: bool = False
    unlikely: bool = False
    guess: bool = False
    transport: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The combinations in order of preference, the skips, and when each group opens.

    A group opens when all groups before it in ``order`` have ended (those in ``needs``, where it stands
    there), or ``opens_s`` seconds after the
    call (absent: only when they have ended); where ``follows`` names a group, after that one opened.
    ``turn_limit``: how many relay attempts a call may make.
    """

    combinations: tuple[Combination, ...] = ()
    skips: tuple[Skip, ...] = ()
    opens_s: dict[str, float] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = GROUPS
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    turn_limit: int = TURN_LIMIT

    @property
    def relay_likely(self) -> bool:
        """Whether nothing but guesses and relays has a chance."""
        hopeful = {c.group for c in self.combinations if not (c.unlikely or c.guess)}
        return "relay" in hopeful and hopeful <= {LATE, "relay"}


def plan(
    local: PeerAddress,
    remote: PeerAddress,
    links: Sequence[LinkFacts],
    strategies: Sequence[StrategyInfo],
    options: PlanOptions | None = None,
) -> Plan:
    """Plan how to reach a peer.

    Args:
        local: this node's address, its interfaces in the order of ``links``.
        remote: the peer's address.
        links: facts of the local interfaces.
        strategies: what is installed, in order of preference within a phase.
        options: what the caller narrowed.

    """
    options = options or PlanOptions()
    skips: list[Skip] = []
    afs = options.afs if options.afs is not None else (IP6, IP4)
    routes = options.route_types if options.route_types is not None else ROUTE_TYPES
    paths, dead = find_paths(local, remote, links, afs, routes)
    crossing: list[Path] = []
    if EXT_BIND in routes:
        crossing = [p for p in cross_paths(local, remote, links, options.nat64) if p.af in afs]
    combinations: list[Combination] = []
    for strategy in strategies:
        reason = _excluded(strategy, options)
        if reason is not None:
            if reason is not SkipReason.AUXILIARY:
                skips.append(Skip(strategy.name, reason))
            continue
        # What leads over one link or site only, a relay has nothing to do with.
        usable = crossing if crossing and strategy.phase == "relay" else [*paths, *crossing]
        chosen, left_out = _combine(strategy, usable, dead, options, local, remote)
        combinations += chosen
        skips += left_out
    if not any(strategy.phase in PHASES for strategy in strategies):
        skips.append(Skip("auto_connect", SkipReason.NO_STRATEGY))
    order = ("relay", *GROUPS[:-1]) if options.relay == "prefer" else GROUPS
    combinations.sort(key=lambda c: order.index(c.group))
    opens_s = _openings(combinations, options, local, remote)
    # Guessing ports is for pairs that can't be punched, whatever a direct attempt still waits for.
    needs: dict[str, tuple[str, ...]] = {LATE: ("punch", "spray")}
    follows = {"spray": "punch"}
    return Plan(
        tuple(combinations), tuple(skips), opens_s, follows, order, needs, options.turn_limit
    )


def nat_pair(local: PeerAddress, remote: PeerAddress, path: Path) -> NatPair | None:
    """Return what is known of both NATs on a path; None where it crosses none."""
    if path.tier < TIER_PUBLIC or (path.private and path.route_type != EXT_BIND):
        return None
    mine = local.interfaces[path.src_index].endpoint(path.af)
    theirs = remote.interfaces[path.dest_index].endpoint(path.remote_af)
    if mine is None or theirs is None:
        return None
    return NatPair(mine.nat, mine.delta, theirs.nat, theirs.delta)


def _excluded(strategy: StrategyInfo, options: PlanOptions) -> SkipReason | None:
    if strategy.phase not in PHASES:
        return SkipReason.AUXILIARY
    if options.plugins is not None and strategy.name not in options.plugins:
        return SkipReason.FILTERED
    if not strategy.makes(options.transport):
        return SkipReason.FILTERED
    if strategy.phase == "relay" and options.relay == "never":
        return SkipReason.RELAY_NEVER
    return None


def _combine(
    strategy: StrategyInfo,
    paths: Sequence[Path],
    dead: Sequence[DeadEnd],
    options: PlanOptions,
    local: PeerAddress,
    remote: PeerAddress,
) -> tuple[list[Combination], list[Skip]]:
    chosen: list[Combination] = []
    skips = [
        Skip(strategy.name, end.reason, end.af, end.route_type, end.detail)
        for end in dead
        if end.route_type in strategy.route_types
    ]
    seen: set[tuple[int, int, str, int]] = set()
    delay_s = 0.0
    limit = min(options.turn_limit, MAX_CANDIDATES) if strategy.phase == "relay" else MAX_CANDIDATES
    for path in paths:
        if path.route_type not in strategy.route_types or not _carries(strategy, path):
            continue
        key = (path.af, path.src_index, path.ip, path.port)
        detail = path.ip
        elsewhere = _of_another_network(local, remote, path)
        unlikely = elsewhere or (
            strategy.phase != "relay" and (_cut_off(local, remote, path) or _only_udp(remote, path))
        )
        pair = nat_pair(local, remote, path)
        cause = _impossible(strategy, pair)
        guess = strategy.phase != "relay" and pair is not None and pair.guessed_over_tcp
        if key in seen:
            reason = SkipReason.SAME_AS_OTHER_ROUTE
        elif strategy.phase != "direct" and elsewhere:
            reason = SkipReason.OTHER_NETWORK
        elif cause is not None:
            reason, detail = SkipReason.IMPOSSIBLE, cause
        elif len(chosen) >= limit:
            reason = SkipReason.RELAY_LIMIT if strategy.phase == "relay" else SkipReason.TOO_MANY
        else:
            seen.add(key)
            # Who prefers relays gets one though something direct worked last time.
            again = options.relay != "prefer" and options.remembered == (
                strategy.name,
                path.af,
                path.route_type,
            )
            chosen.append(
                Combination(
                    strategy.name,
                    strategy.phase,
                    strategy.group,
                    path,
                    delay_s,
                    again,
                    unlikely,
                    guess,
                    options.transport,
                )
            )
            delay_s += STAGGER_PRIVATE_S if path.private else STAGGER_PUBLIC_S
            continue
        skips.append(Skip(strategy.name, reason, path.af, path.route_type, detail))
    return chosen, skips


def _of_another_network(local: PeerAddress, remote: PeerAddress, path: Path) -> bool:
    """Return whether a private address is behind a NAT that this machine is not behind.

    Only a dial may still find it, where somebody routes between private networks.
    """
    if path.tier != TIER_ELSEWHERE or not path.private or path.route_type == EXT_BIND:
        return False
    mine = local.interfaces[path.src_index].endpoint(path.af)
    theirs = remote.interfaces[path.dest_index].endpoint(path.remote_af)
    if mine is None or theirs is None or theirs.ext_ip is None:
        return False
    return theirs.ext_ip not in (theirs.ip, mine.ext_ip or mine.ip)


def _cut_off(local: PeerAddress, remote: PeerAddress, path: Path) -> bool:
    """Return whether a side behind a NAT reached no STUN server at all, neither over UDP nor over TCP.

    Such a network mostly lets out nothing but the web; still, a server may just have been down.
    """
    if path.tier < TIER_PUBLIC:
        return False
    mine = local.interfaces[path.src_index].endpoint(path.af)
    theirs = remote.interfaces[path.dest_index].endpoint(path.remote_af)
    return any(
        side is not None and side.nat == NATType.BLOCKED and side.ext_ip is None
        for side in (mine, theirs)
    )


def _only_udp(remote: PeerAddress, path: Path) -> bool:
    """Return whether a dial through NAT64 goes to a port that is mostly open for UDP alone.

    A full cone keeps the port that STUN servers see, which is UDP's. Only where a router maps the
    listening port, which is signed as a full cone too, TCP gets in; then the dial is there first.
    """
    theirs = remote.interfaces[path.dest_index].endpoint(path.remote_af)
    return bool(path.peer_af) and theirs is not None and theirs.nat == NATType.FULL_CONE


def _carries(strategy: StrategyInfo, path: Path) -> bool:
    """Return whether a strategy can use a path between families."""
    if not path.peer_af or strategy.phase == "relay":
        return True
    return strategy.nat64 and path.port > 0


def _impossible(strategy: StrategyInfo, pair: NatPair | None) -> str | None:
    if pair is None or strategy.impossible is None:
        return None
    try:
        return strategy.impossible(pair)
    except Exception:  # a strategy's own defect must not keep it, or the others, from being tried
        log.exception("%s: impossible() raised", strategy.name)
        return None


def _openings(
    combinations: Sequence[Combination],
    options: PlanOptions,
    local: PeerAddress,
    remote: PeerAddress,
) -> dict[str, float]:
    def likely(path: Path) -> bool:
        pair = nat_pair(local, remote, path)
        closed = pair is not None and pair.local_closed and pair.remote_closed
        return path.likely and not closed

    direct = any(c.group == "direct" and likely(c.path) for c in combinations)
    punch = any(c.group == "punch" for c in combinations)
    # Where relays are preferred the others wait as relays do otherwise.
    first_s, relay_s = 0.0, options.relay_after_s
    if options.relay == "prefer":
        first_s, relay_s = relay_s, first_s
    return {
        "direct": first_s,
        "punch": first_s + (PUNCH_HEAD_START_S if direct else 0.0),
        "spray": SPRAY_HEAD_START_S if punch else 0.0,
        "relay": relay_s,
    }

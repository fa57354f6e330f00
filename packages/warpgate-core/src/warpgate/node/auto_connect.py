"""``auto_connect``: from a peer's address to a proven pipe."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from warpgate.errors import (
    ConfigError,
    InvalidAddressError,
    KeyChangedError,
    NoPathError,
    NoSharedFamilyError,
    WarpgateError,
)
from warpgate.events import ConnectFinished, ConnectStarted
from warpgate.net.constants import IP4, IP6, ROUTE_TYPES, af_name, transport_name
from warpgate.node.resolve import pin, resolve
from warpgate.traversal.attempt import CLOSE_GRACE_S
from warpgate.traversal.news import News
from warpgate.traversal.paths import crossed
from warpgate.traversal.plan import TURN_LIMIT, PlanOptions
from warpgate.traversal.prepare import prepare_relays
from warpgate.traversal.race import Race
from warpgate.traversal.report import Report, SkipReason

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.traversal.attempt import Attempt

TIMEOUT_S = 60.0
NAT64_S = 0.3
"""How long a call waits to be told of NAT64, where only that leads to the peer without a relay."""
LOGIN_AFTER_S = 3.0
"""What a peer takes to answer anything, with a lost SYN and more."""

T = TypeVar("T")


async def auto_connect(
    node: Node,
    dest_addr: bytes | str | PeerAddress,
    timeout: float = TIMEOUT_S,
    turn_limit: int = TURN_LIMIT,
    *,
    transport: str | int | None = None,
    plugins: Iterable[str] | None = None,
    afs: Iterable[int] | None = None,
    route_types: Iterable[int] | None = None,
) -> tuple[Pipe | None, Plugin | None]:
    """Connect to a peer by the best way there is.

    Every strategy is tried over every family, route type and interface that can work; the first
    pipe whose other end has proven to be the peer wins, and everything else is cleaned up.

    Args:
        node: the local node, started.
        dest_addr: the peer's address (bytes or text form), node id or nickname.
        timeout: seconds; the call returns by then, give or take 50 ms.
        turn_limit: how many relay attempts may be made.
        transport: ``"tcp"``, ``"udp"`` or None for any.
        plugins: names of the strategies to try, None for all that are installed.
        afs: address families to try (``IP4``, ``IP6``).
        route_types: route types to try (``NIC_BIND``, ``EXT_BIND``, ``LOOPBACK_BIND``).

    Returns:
        ``(pipe, plugin)`` of the winner, or ``(None, None)``; then ``node.last_report.error`` says why.

    Raises:
        InvalidAddressError: ``dest_addr`` is not an address.
        KeyChangedError: the peer's key is not the one that was pinned.
        ConfigError: an argument names something unknown, or has a value that can't be used.

    """
    try:
        options = check_options(
            node, turn_limit, transport, plugins, afs, route_types, timeout=timeout
        )
    except ConfigError as error:
        node.last_report = Report(error=error)
        raise
    report = Report()
    loop = asyncio.get_running_loop()
    started = loop.time()
    winner: Attempt | None = None
    try:
        peer = await _resolve(node, dest_addr, timeout)
        winner = await _race(node, peer, options, report, started + timeout, timeout)
        if winner is not None:
            pin(node, dest_addr, peer, winner)
    except (InvalidAddressError, KeyChangedError, ConfigError) as error:
        report.error = error
        raise
    except WarpgateError as error:
        report.error = error
    finally:
        report.seconds = loop.time() - started
        node.last_report = report
        strategy = report.winner.strategy if report.winner else None
        node.notify(ConnectFinished(report.peer_id, strategy, report.seconds))
    if winner is None or winner.winner is None:
        return None, None
    winner.winner.report = report
    return winner.winner, winner.plugin


async def connect(
    node: Node,
    dest_addr: bytes | str | PeerAddress,
    timeout: float = TIMEOUT_S,
    turn_limit: int = TURN_LIMIT,
    *,
    transport: str | int | None = None,
    plugins: Iterable[str] | None = None,
    afs: Iterable[int] | None = None,
    route_types: Iterable[int] | None = None,
) -> Pipe:
    """Connect as :func:`auto_connect` does, but raise the reason when there is no pipe.

    Returns:
        The proven pipe.

    Raises:
        NoPathError: nothing that was tried led to a pipe; one line per attempt.
        UnknownPeerError: a nickname that nobody here knows.
        NoSharedFamilyError: the peers have no address family in common.
        InvalidAddressError, KeyChangedError, ConfigError: as :func:`auto_connect`.

    """
    pipe, _ = await auto_connect(
        node,
        dest_addr,
        timeout,
        turn_limit,
        transport=transport,
        plugins=plugins,
        afs=afs,
        route_types=route_types,
    )
    if pipe is None:
        assert node.last_report is not None
        raise node.last_report.error or NoPathError(str(node.last_report))
    return pipe


async def _resolve(
    node: Node, dest_addr: bytes | str | PeerAddress, timeout_s: float
) -> PeerAddress:
    # In a task of its own: a resolver that ignores its cancellation must not hold the caller up.
    task = asyncio.create_task(resolve(node, dest_addr), name=f"resolution of {dest_addr!r:.60}")
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        in_time = task.done()
        if not in_time:
            task.add_done_callback(_retrieve)
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSE_GRACE_S)
            if not task.done():
                node.stats.count("resolvers_stuck")
                node.traversal.reap(task)
    if not in_time:
        raise NoPathError(f"the name {dest_addr!r} was not resolved within {timeout_s:g} s")
    if task.cancelled():
        raise NoPathError(f"the resolution of {dest_addr!r} was cancelled from within")
    return task.result()


def _retrieve(task: asyncio.Task[PeerAddress]) -> None:
    if not task.cancelled():
        task.exception()  # nobody waits for it any more


async def _race(
    node: Node,
    peer: PeerAddress,
    options: PlanOptions,
    report: Report,
    deadline: float,
    limit_s: float,
) -> Attempt | None:
    report.peer_id = peer.node_id
    if peer.key == node.identity.public_key:
        raise NoPathError("that is this node's own address; a node does not connect to itself")
    manager = node.traversal
    network = _network(node)
    again = manager.history.what_worked(peer.node_id, network)
    if crossed(node.peer_address, peer):
        now = asyncio.get_running_loop().time()
        await node.network.nat64.find(min(NAT64_S, max(0.0, deadline - now)))
    chosen = manager.plan_for(peer, replace(options, remembered=again))
    prepare_relays(manager, chosen)
    node.notify(ConnectStarted(peer.node_id, len(chosen.combinations), len(chosen.skips)))
    race = Race(manager, peer, chosen)
    report.outcomes, report.skips = race.outcomes, race.skips
    node.network.ask_again()
    news = News(race, options)
    timer = race.loop.call_later(LOGIN_AFTER_S, _look_for_login, node, race)
    try:
        news.begin()
        winner = await race.run(deadline - race.loop.time(), limit_s)
    finally:
        timer.cancel()
        await news.close()
    if winner is None:
        report.error = _explain(node, peer, options, report, race.heard)
        return None
    report.winner = outcome = winner.outcome
    if outcome.phase != "relay":  # or a peer once reached by a relay would stay on it
        worked = (outcome.strategy, outcome.af, outcome.route_type)
        manager.history.worked(peer.node_id, network, worked)
    return winner


def _look_for_login(node: Node, race: Race) -> None:
    """End a call that a captive network leaves no way but dials into silence."""
    if node.rendezvous.login_wanted() and not (race.heard or race.proven):
        race.give_up("nothing but a login page is heard in this network")


def _network(node: Node) -> Hashable:
    """Return what tells one network that this machine has been in from another."""
    endpoints = [e for nic in node.peer_address.interfaces for e in nic.endpoints]
    return frozenset((e.ip, e.ext_ip) for e in endpoints)


def _explain(
    node: Node, peer: PeerAddress, options: PlanOptions, report: Report, heard: bool
) -> WarpgateError:
    """Choose the exception that says best why there is no pipe."""
    if not report.outcomes:
        if any(skip.reason is SkipReason.NO_STRATEGY for skip in report.skips):
            return NoPathError(
                "no strategy is installed; pip install warpgate-plugin-direct, "
                "warpgate-plugin-punch or warpgate-plugin-turn"
            )
        wanted = set(options.afs if options.afs is not None else (IP4, IP6))
        if not (node.peer_address.families() & peer.families() & wanted):
            ours = ", ".join(sorted(map(af_name, node.peer_address.families()))) or "none"
            theirs = ", ".join(sorted(map(af_name, peer.families()))) or "none"
            return NoSharedFamilyError(
                f"no address family in common: here {ours}, there {theirs}"
                + (f", asked for {', '.join(sorted(map(af_name, wanted)))}" if options.afs else "")
            )
    lines = report.lines() or ["nothing could be tried"]
    silent = ", which answered no signal and no dial: is it running, with a broker and strategies in common?"
    head = "no path to the peer"
    login = node.rendezvous.login_wanted()
    if login:
        head += f": {login}"
    elif report.outcomes and not heard:
        head += silent
    return NoPathError(f"{head}\n" + "\n".join(f"  {line}" for line in lines))


def check_options(
    node: Node,
    turn_limit: int = TURN_LIMIT,
    transport: str | int | None = None,
    plugins: Iterable[str] | None = None,
    afs: Iterable[int] | None = None,
    route_types: Iterable[int] | None = None,
    *,
    timeout: float = TIMEOUT_S,
) -> PlanOptions:
    """Check a caller's limits, and what it narrowed.

    Raises:
        ConfigError: a value is unknown or can't be used; the text names it and what is expected.

    """
    if not node.running:
        raise ConfigError("the node is not running; await node.start() first")
    if not _is_number(timeout, int | float):
        raise ConfigError(f"timeout={timeout!r}; expected a number of seconds from 0 up")
    if not _is_number(turn_limit, int):
        raise ConfigError(f"turn_limit={turn_limit!r}; expected a whole number from 0 up")
    try:
        wanted = None if transport is None else transport_name(transport)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    names = _listed("plugins", plugins, str)
    for name in names or ():
        node.traversal.loader(name)
    return PlanOptions(
        transport=wanted,
        plugins=names,
        afs=_known("afs", afs, (IP4, IP6)),
        route_types=_known("route_types", route_types, ROUTE_TYPES),
        relay=node.conf["relay"],
        relay_after_s=node.conf["relay_after"],
        turn_limit=turn_limit,
    )


def _is_number(value: object, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value >= 0


def _known(
    name: str, values: Iterable[int] | None, known: tuple[int, ...]
) -> tuple[int, ...] | None:
    chosen = _listed(name, values, int)
    for value in chosen or ():
        if value not in known:
            expected = ", ".join(map(str, map(int, known)))
            raise ConfigError(f"{name} holds {value!r}; expected some of {expected}")
    return chosen


def _listed(name: str, values: Iterable[T] | None, kind: type[T]) -> tuple[T, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r} is no list")
    chosen = tuple(values)
    if not chosen:
        raise ConfigError(f"{name} is empty, which leaves nothing to try; leave it out for all")
    for value in chosen:
        if not isinstance(value, kind):
            raise ConfigError(f"{name} holds {value!r}, which is no {kind.__name__}")
    return chosen

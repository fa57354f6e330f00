"""The traversal manager: installed strategies, live attempts, and the signals between them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from warpgate.errors import ConfigError, LocalProtocolError, NoSharedFamilyError, TraversalError
from warpgate.events import AttemptFinished, AttemptStarted
from warpgate.net.constants import (
    IP4,
    IP6,
    LOOPBACK_BIND,
    ROUTE_TYPES,
    af_name,
    route_type_name,
)
from warpgate.protocol.codec import MessageTable
from warpgate.protocol.envelope import CLOCK_TOLERANCE_S, MAX_TTL_S
from warpgate.protocol.ip import is_loopback, is_public
from warpgate.signalling.router import DEFAULT_TTL_S
from warpgate.traversal.attempt import Attempt
from warpgate.traversal.combine import info, refresh, scoped
from warpgate.traversal.history import History
from warpgate.traversal.inbound import Inbound
from warpgate.traversal.limits import StrangerBytes, StrangerLimits
from warpgate.traversal.loaders import Loader, make_loader
from warpgate.traversal.paths import Path, find_paths, named_ips
from warpgate.traversal.plan import Combination, Plan, PlanOptions, plan
from warpgate.traversal.policy import refuse_dial
from warpgate.traversal.proofs import Proofs
from warpgate.traversal.report import AttemptOutcome
from warpgate.traversal.responder import SignalDoor
from warpgate.traversal.sprays import SprayGate

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.net.pipe import Pipe
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.protocol.proto_msg import ConMsg

log = logging.getLogger("warpgate")

CANCEL_GRACE_S = 0.1
"""For a clean-up that was cancelled to run its own finally blocks."""


class TraversalManager:
    """One node's strategies and attempts.

    Attributes:
        plugin_loaders: strategy name → loader; a plain dict, ``clear()`` it to narrow a test down.
        rejected: what failed to load or install; its ``str()`` says what, why and how to mend it.
        sprays: lets the strategies' sprays through.
        stranger_bytes: what strangers may make this node send, all together.

    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stats: Counters = node.stats
        self.plugin_loaders: dict[str, Loader] = {}
        self.rejected: list[Any] = []
        self.messages = MessageTable()
        self.proofs = Proofs(self, node.conf["allow"])
        self.history = History()
        self.inbound = Inbound(self, bool(node.conf["accept_plain"]), node.accept_signals)
        self.limits = StrangerLimits(asyncio.get_running_loop().time())
        self.stranger_bytes = StrangerBytes(asyncio.get_running_loop().time)
        self.sprays = SprayGate()
        self.signals = SignalDoor(self)
        self.closed = False
        self._attempts: dict[tuple[str, str], Attempt] = {}
        self._cleanups: set[asyncio.Task[Any]] = set()
        self._ttl_s: dict[str, int] = {}
        node.network.on_change(self._network_changed)

    @property
    def plugins(self) -> Mapping[tuple[str, str], Plugin]:
        """The live attempts' instances by (peer id, plugin_id)."""
        return {key: attempt.plugin for key, attempt in self._attempts.items()}

    # Strategies.

    def install_plugin(self, name: str, spec: dict[str, Any], distribution: str = "") -> None:
        """Install a strategy under a name, replacing one of that name.

        Args:
            name: the strategy's id on the wire.
            spec: ``class`` (a Plugin subclass or an object with ``build_plugin()``), optionally
                ``timeout`` in seconds and ``set_bind``. No ``setup`` is called.
            distribution: where it came from, for reports.

        Raises:
            PluginDefinitionError: ``class`` is missing or of another kind, or can't be used.
            LocalProtocolError: the name can't be part of a wire name.

        """
        self.install_loader(make_loader(name, spec, distribution))

    def install_loader(self, loader: Loader) -> None:
        """Install what :func:`make_loader` returned; raises LocalProtocolError as above."""
        assert loader.cls is not None
        for msg_class, _strategy_id, ttl_s in loader.cls.proto_messages:
            msg_class.WIRE_NAME = f"{loader.name}.{msg_class.__name__}"
            self.messages.replace(msg_class)
            self._ttl_s[msg_class.WIRE_NAME] = min(max(1, round(ttl_s)), MAX_TTL_S)
        self.plugin_loaders[loader.name] = loader

    def loader(self, name: str) -> Loader:
        """Return an installed strategy's loader.

        Raises:
            ConfigError: nothing of that name is installed; the text lists what is.

        """
        loader = self.plugin_loaders.get(name)
        if loader is None:
            known = ", ".join(sorted(self.plugin_loaders)) or "none"
            raise ConfigError(f"strategy {name!r} is not installed; installed: {known}")
        return loader

    def set_bind(self, plugin: Plugin) -> bool:
        """Whether a strategy wants to be bound before ``run``."""
        loader = self.plugin_loaders.get(plugin.name)
        return loader.set_bind if loader is not None else bool(plugin.conf.get("set_bind"))

    # Attempts.

    def create_attempt(
        self,
        combination: Combination,
        peer: PeerAddress,
        plugin_id: str | None = None,
        loader: Loader | None = None,
    ) -> Attempt | None:
        """Make an attempt, ready to start; None when its strategy or interface is gone, or the node closes.

        Args:
            combination: strategy and path.
            peer: the peer's address.
            plugin_id: the initiator's id, on the responder's side.
            loader: overrides the installed one.

        Raises:
            PluginDefinitionError: the strategy's instance can't be made.

        """
        loader = loader or self.plugin_loaders.get(combination.strategy)
        if loader is None or self.closed:
            return None
        path = combination.path
        local = self.node.peer_address
        nics: Sequence[Any] = self.node.ifs
        if not any(r.endpoint(path.af) for r in local.interfaces[path.src_index :][:1]):
            return None  # the network has changed since this was planned
        plugin = loader.build()
        loopback = path.route_type == LOOPBACK_BIND
        plugin.initiator = plugin_id is None
        plugin.wanted_transport = combination.transport
        if plugin_id is not None:
            plugin.plugin_id = plugin_id
            if self.limits.is_stranger(peer.node_id):
                plugin.budget.purse = self.stranger_bytes
        plugin.af, plugin.route_type = path.af, path.route_type
        plugin.nic = self.node.loopback if loopback else nics[path.src_index]
        plugin.src_info = info(local, path.src_index, path.af, path.route_type)
        plugin.dest_info = info(peer, path.dest_index, path.remote_af, path.route_type)
        if path.peer_af and path.port:  # through NAT64 the peer has another address
            plugin.dest_info["ip"] = path.ip
        for side in (plugin.src_info, plugin.dest_info):
            side.update({key: scoped(side[key], plugin.nic) for key in ("ip", "nic")})
        plugin.same_machine = local.machine == peer.machine
        plugin.manager, plugin.node = self, self.node
        outcome = AttemptOutcome(
            loader.name,
            plugin.phase,
            path.af,
            path.route_type,
            plugin.nic.name,
            f"{plugin.dest_info['ip']} port {plugin.dest_info['port']}",
            plugin.plugin_id,
        )
        attempt = Attempt(self, plugin, peer, outcome)
        attempt.path = path
        self._attempts[attempt.key] = attempt
        self.node.notify(
            AttemptStarted(
                peer.node_id, plugin.plugin_id, loader.name, plugin.phase, plugin.initiator
            )
        )
        return attempt

    def _network_changed(self) -> None:
        for attempt in self._attempts.values():
            refresh(attempt.plugin.src_info, self.node.peer_address)

    def attempt_of(self, plugin: Plugin) -> Attempt:
        """Return the attempt behind a live instance.

        Raises:
            LocalProtocolError: the attempt has ended.

        """
        attempt = self._attempts.get((plugin.dest_info["node_id"], plugin.plugin_id))
        if attempt is None or attempt.plugin is not plugin:
            raise LocalProtocolError(f"this attempt of {plugin.name} has ended")
        return attempt

    def attempt_won(self, attempt: Attempt, pipe: Pipe) -> None:
        """Hand the pipe of a responder's attempt to the node; the initiator's caller has his."""
        self.limits.befriend(attempt.peer.node_id)
        self.node.track(pipe)
        if not attempt.plugin.initiator:
            self.history.first_delivery(attempt.key)
            self.deliver_inbound(pipe, attempt.plugin.name)

    def attempt_ended(self, attempt: Attempt) -> None:
        """Bury an attempt: its place goes, its id is remembered until its signals have expired."""
        if self._attempts.get(attempt.key) is attempt:
            del self._attempts[attempt.key]
        self.inbound.forget(attempt)
        ttls = [self._ttl_s.get(entry[0].WIRE_NAME, 0) for entry in attempt.plugin.proto_messages]
        late_s = max([DEFAULT_TTL_S, *ttls])
        self.history.bury(attempt.key, attempt.loop.time() + late_s + CLOCK_TOLERANCE_S)
        if attempt.cleanup is not None:
            self.reap(attempt.cleanup)
        outcome = attempt.outcome
        log.debug("attempt ended: %s", outcome)
        self.node.notify(
            AttemptFinished(
                attempt.peer.node_id,
                attempt.plugin.plugin_id,
                outcome.strategy,
                outcome.phase,
                attempt.plugin.initiator,
                outcome.status,
                outcome.cause,
                outcome.seconds,
            )
        )

    def find_path(self, peer: PeerAddress, af: int | None, route_type: int) -> Path:
        """Return the best path of a family and route type; ``af`` None takes the first shared one.

        Raises:
            NoSharedFamilyError: the peers do not share the family.
            TraversalError: the route type is unknown or leads nowhere; the text says why.

        """
        local = self.node.peer_address
        shared = [family for family in (IP4, IP6) if family in local.families() & peer.families()]
        if af is None and shared:
            af = shared[0]
        if af is None or af not in shared:
            names = ", ".join(map(af_name, shared)) or "none"
            asked = "any family" if af is None else af_name(af)
            raise NoSharedFamilyError(f"asked for {asked}; the peers have in common: {names}")
        if route_type not in ROUTE_TYPES:
            raise TraversalError(
                f"route type {route_type!r} is unknown; expected NIC_BIND, EXT_BIND or LOOPBACK_BIND"
            )
        paths, dead = find_paths(local, peer, self.node.ifs, (af,), (route_type,))
        if not paths:
            why = "; ".join(f"{end.reason.value} {end.detail}".strip() for end in dead)
            raise TraversalError(
                f"{af_name(af)} {route_type_name(route_type)} leads nowhere: {why}"
            )
        return paths[0]

    def plan_for(self, peer: PeerAddress, options: PlanOptions) -> Plan:
        """Plan what the installed strategies can do against a peer."""
        strategies = [loader.info() for loader in self.plugin_loaders.values()]
        options = replace(options, nat64=self.node.network.nat64.prefix)
        return plan(self.node.peer_address, peer, self.node.ifs, strategies, options)

    async def settle(self, attempts: Iterable[Attempt], grace_s: float) -> None:
        """Wait until ended attempts have cleaned up; what takes longer is the reaper's."""
        cleanups = [a.cleanup for a in attempts if a.cleanup is not None and not a.cleanup.done()]
        if cleanups:
            _, late = await asyncio.wait(cleanups, timeout=grace_s)
            if late:
                self.stats.count("closes_reaped", len(late))

    def reap(self, task: asyncio.Task[Any]) -> None:
        """Leave a task that should end soon to the reaper, which :meth:`close` waits for."""
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)

    async def close(self, timeout_s: float) -> None:
        """End every attempt and wait for the reaper, at most ``timeout_s`` seconds; idempotent."""
        self.closed = True
        for attempt in list(self._attempts.values()):
            attempt.lose("the node is closing")
        self.inbound.close()
        if self._cleanups:
            _, late = await asyncio.wait(self._cleanups, timeout=timeout_s)
            for task in late:
                log.warning("%s did not end within %g s", task.get_name(), timeout_s)
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CANCEL_GRACE_S)

    # What is alive.

    def responders(self) -> list[Attempt]:
        """Return the live attempts that peers have started here."""
        return [a for a in self._attempts.values() if not a.plugin.initiator]

    def has_called(self, peer_id: str) -> bool:
        """Return whether an attempt of this node's own at the peer is alive."""
        return any(
            attempt.plugin.initiator and key[0] == peer_id
            for key, attempt in self._attempts.items()
        )

    def is_called_over_loopback(self, peer_id: str) -> bool:
        """Return whether a live attempt of the peer's came over loopback or from this process."""
        return any(
            attempt.origin is not None and attempt.origin.loopback
            for key, attempt in self._attempts.items()
            if key[0] == peer_id
        )

    def find(self, peer_id: str, plugin_id: str) -> Attempt | None:
        """Return a live attempt."""
        return self._attempts.get((peer_id, plugin_id))

    def deliver_inbound(self, pipe: Pipe, strategy: str | None) -> None:
        """Give a pipe that a peer brought about, or a plain connection, to the node's user."""
        pipe.inbound = True
        if pipe.peer_id is not None:
            self.limits.befriend(pipe.peer_id)
            pipe.plugin_name = pipe.plugin_name or strategy
            pipe.path = pipe.path or "direct"
        self.node.deliver(pipe)

    # What a strategy's helpers ask for.

    def register_inbound(self, plugin: Plugin) -> None:
        """See :meth:`warpgate.Plugin.register_inbound`."""
        self.inbound.register(self.attempt_of(plugin))

    async def wait_for_inbound(self, plugin: Plugin) -> Pipe | None:
        """See :meth:`warpgate.Plugin.wait_for_inbound`."""
        return await self.inbound.wait(self.attempt_of(plugin))

    def refuses(self, plugin: Plugin, ip: str) -> str | None:
        """See :meth:`warpgate.Plugin.refuses`."""
        attempt = self.attempt_of(plugin)
        peer, node = attempt.peer, self.node
        # Another machine's loopback is ours, when we write to it.
        named = ip in named_ips(peer) and (plugin.same_machine or not is_loopback(ip))
        native = node.network.nat64.native(ip)  # it is what NAT64 makes of it
        if plugin.initiator and (is_public(native) or named):
            return None
        loopback = attempt.origin is not None and attempt.origin.loopback
        refusal = refuse_dial(native, node.ifs, node.own_ips(), loopback)
        return None if refusal is None else refusal.value

    async def send_signal(self, plugin: Plugin, msg: ConMsg) -> None:
        """See :meth:`warpgate.Plugin.send_signal_msg`."""
        attempt = self.attempt_of(plugin)
        peer, path = attempt.peer, attempt.path
        meta, routing = msg.meta, msg.routing
        meta.plugin_name = meta.plugin_name or plugin.name
        meta.pipe_id = plugin.plugin_id
        meta.af, meta.route_type = plugin.af, plugin.route_type
        meta.same_machine = plugin.same_machine
        meta.src_buf, meta.src_index = self.node.address(), path.src_index
        routing.af, routing.dest_buf, routing.dest_index = plugin.af, peer.raw, path.dest_index
        ttl_s = self._ttl_s.get(type(msg).WIRE_NAME, DEFAULT_TTL_S)
        meta.ttl = self.node.unix_time() + ttl_s
        heard = attempt.heard

        known = weakref.ref(attempt)  # the router remembers longer than the attempt lives

        def unheard() -> bool:
            live = known()
            return live is not None and not (live.ended or live.proving) and live.heard == heard

        await self.node.router.send(peer, msg, ttl_s, attempt.origin, attempt.sends, unheard)

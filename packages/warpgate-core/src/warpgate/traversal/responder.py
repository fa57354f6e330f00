"""Signals that come in: re-entry of live attempts, and attempts that a peer asks for."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from warpgate.errors import PluginError
from warpgate.events import Dropped
from warpgate.protocol.con_id import valid_plugin_id
from warpgate.traversal.auxiliary import is_core_auxiliary
from warpgate.traversal.combine import responder_path
from warpgate.traversal.plan import Combination
from warpgate.traversal.policy import refuse_dial
from warpgate.traversal.report import SkipReason

if TYPE_CHECKING:
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.protocol.proto_msg import ConMsg
    from warpgate.signalling.transport import SignalOrigin
    from warpgate.traversal.attempt import Attempt
    from warpgate.traversal.manager import TraversalManager

log = logging.getLogger("warpgate")

MAX_RESPONDER_ATTEMPTS = 256
"""Attempts of peers alive here at once; who has the most of them makes room."""


class SignalDoor:
    """Decides what a verified signal does to this node's attempts."""

    def __init__(self, manager: TraversalManager) -> None:
        self._manager = manager

    def on_signal(self, peer: PeerAddress, msg: ConMsg, origin: SignalOrigin) -> None:
        """Take a verified signal: re-enter its attempt, or answer a new one."""
        manager, plugin_id = self._manager, msg.meta.pipe_id
        if manager.closed or not manager.node.running:
            manager.stats.count("signals_not_running")
            return
        if not valid_plugin_id(plugin_id):
            manager.stats.count("signals_bad_id")
            return
        own = peer.key == manager.node.identity.public_key
        attempt = manager.find(peer.node_id, plugin_id)
        # Whom this node itself asked may answer; conf["allow"] is for those who ask.
        answer = attempt is not None and attempt.plugin.initiator
        if own or not (answer or manager.proofs.allowed(peer.key, plugin_id)):
            manager.stats.count("signals_refused")
        elif attempt is not None:
            newer = peer.sequence > attempt.peer.sequence
            if peer.sequence >= attempt.peer.sequence:
                attempt.told(peer)
            attempt.origin = origin
            attempt.heard += 1
            if not attempt.reenter(msg):
                manager.stats.count("signals_too_many_pending")
            if newer and attempt.on_news is not None:
                attempt.on_news()
        elif manager.history.is_buried((peer.node_id, plugin_id), _now()):
            manager.stats.count("signals_late")
        else:
            self._respond(peer, msg, origin)

    def _respond(self, peer: PeerAddress, msg: ConMsg, origin: SignalOrigin) -> None:
        node = self._manager.node
        loader = self._manager.plugin_loaders.get(msg.meta.plugin_name)
        if loader is None:
            self._drop("signals_unknown_strategy", msg.meta.plugin_name)
            return
        strategy = loader.info()
        # A relay strategy writes to relays, and asks for each of them (Plugin.refuses).
        dials = strategy.phase != "relay" and not is_core_auxiliary(loader.cls)
        path = responder_path(
            node.peer_address, peer, node.ifs, msg, strategy.route_types, relay=not dials
        )
        if dials and not isinstance(path, SkipReason):
            native = node.network.nat64.native(path.ip)
            refusal = refuse_dial(native, node.ifs, node.own_ips(), origin.loopback)
            path = refusal or path
        if isinstance(path, SkipReason):
            self._drop("dials_refused", f"{loader.name} for {peer.node_id}: {path.value}")
            return
        counter = self._limit(peer.node_id) or self._make_room(peer.node_id)
        if counter is not None:
            self._drop(counter, peer.node_id)
            return
        combination = Combination(loader.name, strategy.phase, strategy.group, path)
        try:
            attempt = self._manager.create_attempt(combination, peer, msg.meta.pipe_id)
        except PluginError:
            log.exception("%s can't be built", combination.strategy)
            self._manager.stats.count("build_errors")
            return
        if attempt is not None:
            attempt.origin = origin
            attempt.start(msg)

    def _limit(self, peer_id: str) -> str | None:
        """Return the counter of the limit for strangers that one more attempt would hit, or None.

        Attempts whose ``run`` has returned without a result count too, but make room when asked.
        """
        manager = self._manager
        live = [a for a in manager.responders() if manager.limits.is_stranger(a.peer.node_id)]
        own = [a for a in live if a.peer.node_id == peer_id]
        if manager.limits.crowded(len(own), len(live)):
            idle = _oldest_idle(own)
            if idle is not None:
                _give_way(idle)
                own.remove(idle)
                live.remove(idle)
        return manager.limits.admit(peer_id, _now(), len(own), len(live))

    def _make_room(self, peer_id: str) -> str | None:
        """Let the peer that has the most attempts end one when there are too many in all."""
        live = self._manager.responders()
        if len(live) < MAX_RESPONDER_ATTEMPTS:
            return None
        held = Counter(a.peer.node_id for a in live)
        greediest, most = held.most_common(1)[0]
        theirs = [a for a in live if a.peer.node_id == greediest]
        victim = _oldest_idle(theirs)
        if victim is None and most > held[peer_id] + 1:
            victim = theirs[0]
        if victim is None:
            return "responder_attempts_limit"
        _give_way(victim)
        return None

    def _drop(self, counter: str, detail: str) -> None:
        self._manager.stats.count(counter)
        self._manager.node.notify(Dropped(counter, detail))


def _oldest_idle(attempts: list[Attempt]) -> Attempt | None:
    return next((attempt for attempt in attempts if not attempt.busy), None)


def _give_way(attempt: Attempt) -> None:
    attempt.lose("it made room for a newer attempt")


def _now() -> float:
    return asyncio.get_running_loop().time()

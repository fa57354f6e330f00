"""Signals that come in: re-entry of live attempts, and attempts that a peer asks for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..errors import PluginError
from ..events import Dropped
from ..protocol.con_id import valid_plugin_id
from .combine import responder_path
from .plan import Combination
from .policy import refuse_dial
from .report import SkipReason

if TYPE_CHECKING:
    from ..protocol.peer_address import PeerAddress
    from ..protocol.proto_msg import ConMsg
    from ..signalling.transport import SignalOrigin
    from .manager import TraversalManager

log = logging.getLogger("warpgate")

MAX_RESPONDER_ATTEMPTS = 256
"""Attempts of peers alive here at once; idle ones of the peer that asks make room first."""


class SignalDoor:
    """Decides what a verified signal does to this node's attempts."""

    def __init__(self, manager: TraversalManager) -> None:
        self._manager = manager

    def on_signal(self, peer: PeerAddress, msg: ConMsg, origin: SignalOrigin) -> None:
        """Take a verified signal: re-enter its attempt, or answer a new one."""
        plugin_id = msg.meta.pipe_id
        if not valid_plugin_id(plugin_id):
            self._manager.stats.count("signals_bad_id")
            return
        if peer.key == self._manager.node.identity.public_key or not self._manager.allowed(peer.key, plugin_id):
            self._manager.stats.count("signals_refused")
            return
        attempt = self._manager.find(peer.node_id, plugin_id)
        if attempt is not None:
            if peer.sequence >= attempt.peer.sequence:
                attempt.peer = peer
            attempt.origin = origin
            if not attempt.reenter(msg):
                self._manager.stats.count("signals_too_many_pending")
        elif self._manager.is_buried(peer.node_id, plugin_id):
            self._manager.stats.count("signals_late")
        else:
            self._respond(peer, msg, origin)

    def _respond(self, peer: PeerAddress, msg: ConMsg, origin: SignalOrigin) -> None:
        loader = self._manager.plugin_loaders.get(msg.meta.plugin_name)
        if loader is None:
            self._manager.stats.count("signals_unknown_strategy")
            self._manager.node.notify(Dropped("signals_unknown_strategy", msg.meta.plugin_name))
            return
        try:
            strategy = loader.info()
        except PluginError:
            log.exception("%s can't be built", loader.name)
            self._manager.stats.count("build_errors")
            return
        local, nics = self._manager.node.peer_address, self._manager.node.ifs
        path = responder_path(local, peer, nics, msg, strategy.route_types)
        if not isinstance(path, SkipReason):
            refusal = refuse_dial(path.ip, nics, self._manager.node.own_ips(), origin.loopback)
            path = refusal or path
        if isinstance(path, SkipReason):
            self._manager.stats.count("dials_refused")
            self._manager.node.notify(Dropped("dials_refused", f"{loader.name} for {peer.node_id}: {path.value}"))
            return
        if not self._admit(peer.node_id):
            return
        combination = Combination(loader.name, strategy.phase, strategy.group, path)
        self._start_responder(combination, peer, msg, origin)

    def _start_responder(
        self, combination: Combination, peer: PeerAddress, msg: ConMsg, origin: SignalOrigin
    ) -> None:
        try:
            attempt = self._manager.create_attempt(combination, peer, msg.meta.pipe_id)
        except PluginError:
            log.exception("%s can't be built", combination.strategy)
            self._manager.stats.count("build_errors")
            return
        if attempt is not None:
            attempt.origin = origin
            attempt.start(msg)

    def _admit(self, peer_id: str) -> bool:
        """Apply the limits on what peers can start here; their idle attempts make room."""
        live = self._manager.responders()
        own = [a for a in live if a.peer.node_id == peer_id]
        strangers = [a for a in live if a.busy and self._manager.limits.is_stranger(a.peer.node_id)]
        now = asyncio.get_running_loop().time()
        counter = self._manager.limits.admit(peer_id, now, sum(a.busy for a in own), len(strangers))
        if counter is None and len(live) >= MAX_RESPONDER_ATTEMPTS:
            idle = next((a for a in own if not a.busy), None)
            if idle is None:
                counter = "responder_attempts_limit"
            else:
                idle.lose("it made room for a newer attempt")
        if counter is not None:
            self._manager.stats.count(counter)
            self._manager.node.notify(Dropped(counter, peer_id))
        return counter is None

"""Starts the hellos of a node's attempts, and says who may connect."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from warpgate.events import PeerRefused
from warpgate.hello import seal
from warpgate.hello.machine import Initiator, NonceCache, Responder
from warpgate.hello.shell import Handshake, HandshakeOwner
from warpgate.identity import node_id_text
from warpgate.net.udp import UdpPipe
from warpgate.traversal.allow import AllowList
from warpgate.traversal.limits import KEPT_FOR_ATTEMPTS

if TYPE_CHECKING:
    from warpgate.net.budget import PacketBudget
    from warpgate.net.pipe import Pipe
    from warpgate.traversal.attempt import Attempt
    from warpgate.traversal.manager import TraversalManager


class Proofs:
    """One node's hellos.

    Args:
        manager: the traversal manager.
        allow: node ids and names of those who may connect; None for anyone.

    Raises:
        ConfigError: ``allow`` holds something else.

    """

    def __init__(self, manager: TraversalManager, allow: Iterable[str] | None) -> None:
        self._manager = manager
        self._nonces = NonceCache()
        setting = str(manager.node.conf["seal"])
        aes = setting != "off" and seal.aes_is_quicker(time.perf_counter)
        self._capabilities = seal.offered(setting, aes=aes)
        self._allow = AllowList(allow, manager.node.trust.pins)

    def prove(self, attempt: Attempt, pipe: Pipe) -> None:
        """Start the hello on a pipe that a strategy has handed over."""
        if attempt.plugin.initiator:
            handshake = self.make_initiator(attempt, pipe, attempt)
        else:
            handshake = self.make_responder(attempt, pipe, attempt)
        attempt.watch(handshake)
        handshake.start()

    def make_initiator(self, attempt: Attempt, pipe: Pipe, owner: HandshakeOwner) -> Handshake:
        """Return the initiator's side of a hello for an attempt of ours."""
        machine = Initiator(
            identity=self._manager.node.identity,
            peer=attempt.peer.key,
            plugin_id=attempt.plugin.plugin_id,
            datagram=pipe.transport == "udp",
            entropy=os.urandom,
            nonces=self._nonces,
            capabilities=self._capabilities,
            allow=self.allowed,
            repeats_s=pipe.hello_repeats_s if isinstance(pipe, UdpPipe) else (),
        )
        return Handshake(pipe, machine, owner, self._within(pipe, attempt.plugin.budget))

    def make_responder(
        self,
        attempt: Attempt | None,
        pipe: Pipe,
        owner: HandshakeOwner,
        budget: PacketBudget | None = None,
    ) -> Handshake:
        """Return the responder's side of a hello, for an attempt or for whoever has connected.

        ``budget`` bounds the answers to a source that says to belong to an attempt.
        """
        # M0 tells a listening socket of the initiator for which of its waiters we come.
        announce = attempt is not None and pipe.remote[1] in attempt.peer.ports()
        machine = Responder(
            identity=self._manager.node.identity,
            peer=attempt.peer.key if attempt is not None else None,
            plugin_id=attempt.plugin.plugin_id if attempt is not None else None,
            datagram=pipe.transport == "udp",
            entropy=os.urandom,
            nonces=self._nonces,
            capabilities=self._capabilities,
            announce=announce,
            allow=self._may_initiate,
        )
        if attempt is not None:
            return Handshake(pipe, machine, owner, self._within(pipe, attempt.plugin.budget))
        return Handshake(pipe, machine, owner, self._answering(pipe, budget))

    def _within(self, pipe: Pipe, budget: PacketBudget) -> Callable[[bytes], None] | None:
        """Count a hello's datagrams in the attempt's budget, unless the pipe's socket does so."""
        if not isinstance(pipe, UdpPipe) or pipe.metered:
            return None

        def send(data: bytes) -> None:
            if budget.take(pipe.remote[0], 1, len(data)):
                pipe.write_raw(data)

        return send

    def _answering(self, pipe: Pipe, budget: PacketBudget | None) -> Callable[[bytes], None] | None:
        """Bound what unproven sources of datagrams can make this node send (WIRE section 5).

        Anyone can write another's address on a datagram; on a stream the kernel has asked back.
        """
        if pipe.transport != "udp":
            return None

        def send(data: bytes) -> None:
            if budget is not None:
                may = budget.take(pipe.remote[0], 1, len(data))
            else:
                may = self._manager.stranger_bytes.take(len(data), KEPT_FOR_ATTEMPTS)
            if may:
                pipe.write_raw(data)
            else:
                self._manager.stats.count("hello_answers_limited")

        return send

    def _may_initiate(self, peer: bytes, plugin_id: str) -> bool:
        """Whether a peer may be the initiator of an attempt: of none of ours, in any case."""
        attempt = self._manager.find(node_id_text(peer), plugin_id)
        if attempt is not None and attempt.plugin.initiator:
            self._manager.stats.count("hello_wrong_role")
            return False
        return self.allowed(peer, plugin_id)

    def allowed(self, peer: bytes, _plugin_id: str) -> bool:
        """Whether ``conf["allow"]`` lets a peer connect; a refusal is counted and told."""
        reason = self._allow.refuses(peer)
        if reason is None:
            return True
        self._manager.stats.count("peers_refused")
        self._manager.node.notify(PeerRefused(node_id_text(peer), reason))
        return False

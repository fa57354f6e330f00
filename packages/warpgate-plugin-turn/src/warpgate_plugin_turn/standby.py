"""A relay kept ready where nearly every call needs one: networks that let out nothing but the web."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from warpgate_plugin_turn.pool import Pool

if TYPE_CHECKING:
    from warpgate import Node

SILENCE_S: Final = 0.4
"""When no STUN server has answered a new node over UDP by then, it is likely that none will."""


class Standby:
    """Follows a node's network, and has its pool keep relays ready there.

    Args:
        node: whose network.
        pool: its relays.
        wanted: True: in every network, False: in none, None: where only TCP to port 443 gets out.

    """

    def __init__(self, node: Node, pool: Pool, wanted: bool | None) -> None:
        self._node = node
        self._pool = pool
        self._wanted = wanted
        self._asked: set[int] = set()
        self._guessed: set[int] = set()  # families of relays that nobody but this has asked for
        self._place: object = None
        pool.warm.on_asked = self.asked
        self._forget = node.network.on_change(self.look)
        # A survey takes a second to be sure of silence; a call may come just then.
        loop = asyncio.get_running_loop()
        self._early = None if wanted is False else loop.call_later(SILENCE_S, self._look_early)
        self.look()

    def asked(self, af: int) -> None:
        """Note that a call needs a relay of a family: the next one may, too."""
        self._guessed.discard(af)
        if af not in self._asked:
            self._asked.add(af)
            self.look()

    def look(self) -> None:
        """See which network this is, and keep what it needs."""
        report = self._node.network.report
        paths = [] if report is None else [path for path in report.paths if not path.nat64]
        # Of a network where all servers are silent this is said only when brokers are reached.
        web_only = bool(paths) and all(p.udp is False and p.tcp is False for p in paths)
        self._pool.servers.https_only = web_only
        wanted = web_only if self._wanted is None else self._wanted
        families: set[int] = set()
        if wanted:
            families = {path.af for path in paths} or set(self._node.supported())
        place = frozenset((path.interface, path.local_ip) for path in paths) or None
        moved = self._place is not None and place != self._place
        self._place = place
        if moved:
            self._asked.clear()
        self._pool.warm.hold(families | self._asked if wanted else (), anew=moved)
        if paths:
            for af in self._guessed:
                self._pool.warm.release(af)
            self._guessed.clear()

    def _look_early(self) -> None:
        network = self._node.network
        if not network.pending or network.age_s is not None:
            return
        families = {
            af
            for af in self._node.supported()
            if any(nic.has_default(af) for nic in self._node.place.nics)
        }
        guesses = families - self._asked
        for af in guesses:
            self._pool.prepare(af, udp_blocked=True)
        self._asked -= guesses  # that was no call
        self._guessed = guesses

    def close(self) -> None:
        """Stop following."""
        if self._early is not None:
            self._early.cancel()
        self._pool.warm.on_asked = None
        self._forget()

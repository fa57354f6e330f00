"""Guesses over TCP, where UDP is blocked and one NAT chooses ports at random: many SYNs meet many.

The hard side, whose ports are random, dials the other's one port from many; the easy side dials
from that port what it guesses. SYNs that meet make a simultaneous open.
"""

from __future__ import annotations

import asyncio
import errno
import random
import selectors
import socket
import sys
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import TYPE_CHECKING, Final, cast

from warpgate.net.addresses import Address, system_address
from warpgate.net.budget import SYN_BYTES
from warpgate.net.constants import NATType
from warpgate.stun.client import shared_tcp_socket
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.random_probe.descriptors import sockets_left
from warpgate_plugin_punch.random_probe.odds import fewest, meeting, text
from warpgate_plugin_punch.random_probe.side import gateway

if TYPE_CHECKING:
    from warpgate.plugin import Plugin
    from warpgate.traversal.sprays import Spray

MAX_SIDE: Final = 640
"""SYNs of each side, each from a socket of its own."""
ENOUGH: Final = 0.995
ANY_PORT: Final = (1024, 65535)
BATCH: Final = 8
BATCH_S: Final = 0.010
"""800 SYNs a second: WIRE.md section 5 allows 1,000."""
LIVES_S: Final = 0.9
"""A SYN's socket is closed before the system repeats it."""


def applies(plugin: Plugin, mine: SideFacts, theirs: SideFacts) -> bool:
    """Whether to guess: one side's ports are random, the other filters by port, and UDP is blocked.

    Where UDP gets through, ``random_probe`` does it with less.
    """
    kinds = [(info.get("nat") or {}).get("type") for info in (plugin.src_info, plugin.dest_info)]
    easy = theirs if mine.hard else mine
    return NATType.BLOCKED in kinds and mine.hard != theirs.hard and easy.easy and easy.by_port


def sizes(hard: SideFacts) -> tuple[int, int]:
    """Return how many sockets the hard side and how many guesses the easy side makes."""
    low, high = hard.block or ANY_PORT
    ports = high - low + 1
    return fewest(ports, min(MAX_SIDE, ports), min(MAX_SIDE, ports), ENOUGH)


def odds(hard: SideFacts) -> str:
    """Return the probability that they meet, for people."""
    low, high = hard.block or ANY_PORT
    return text(meeting(*sizes(hard), high - low + 1))


class Volley:
    """Many SYNs, each from a socket that lives for less than a second.

    Args:
        af: the family.
        on_connected: takes the sockets that connect.
        paused: whether to wait, because a connection is under proof: it may be to a port that the
            hard side's router forwards to somebody else.

    """

    def __init__(
        self,
        af: int,
        on_connected: Callable[[socket.socket], None],
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sent = 0
        self._paused = paused
        self._af = af
        self._on_connected = on_connected
        self._loop = asyncio.get_running_loop()
        self._out: dict[socket.socket, float] = {}  # until when, the oldest first
        self._selector: selectors.BaseSelector | None = None
        self._stopped = False

    async def run(self, spray: Spray, aims: Iterable[tuple[Address, Address]]) -> None:
        """Dial, so many a second, and wait until the last SYN's time is up.

        Args:
            spray: what the node's gate allows.
            aims: own and other endpoint of each SYN.

        """
        # The loop's own selector costs several times as much for each of so many sockets.
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            try:
                for number, (local, dest) in enumerate(aims, 1):
                    if self._stopped or not spray.take():
                        break
                    self._dial(local, dest)
                    if number % BATCH == 0:
                        await self._look()
                        while self._paused() and not self._stopped:
                            await self._look()
                while self._out and not self._stopped:
                    await self._look()
            finally:
                self.stop()
                self._selector = None

    def stop(self) -> None:
        """Close what has not connected."""
        self._stopped = True
        for sock in list(self._out):
            self._drop(sock)

    def _dial(self, local: Address, dest: Address) -> None:
        assert self._selector is not None
        sock: socket.socket | None = None
        try:
            sock = shared_tcp_socket(self._af, local)
            error = sock.connect_ex(system_address(self._af, dest))
            if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                raise OSError(error, "connect")
            self._selector.register(sock, selectors.EVENT_WRITE)
        except OSError:
            if sock is not None:
                sock.close()
            return
        self._out[sock] = self._loop.time() + LIVES_S
        self.sent += 1

    async def _look(self) -> None:
        """Let a batch's time pass; take what has connected, close what is too old."""
        await asyncio.sleep(BATCH_S)
        if self._selector is None or self._stopped:
            return
        for key, _ in self._selector.select(0):
            sock = cast("socket.socket", key.fileobj)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(sock)
            else:
                self._selector.unregister(sock)
                del self._out[sock]
                self._on_connected(sock)
        now = self._loop.time()
        while self._out and (oldest := next(iter(self._out))) and self._out[oldest] <= now:
            self._drop(oldest)

    def _drop(self, sock: socket.socket) -> None:
        del self._out[sock]
        if self._selector is not None:
            self._selector.unregister(sock)
        sock.close()


async def guess(
    plugin: Plugin,
    mine: SideFacts,
    theirs: SideFacts,
    local: Address,
    target: Address,
    volley: Volley,
) -> str:
    """Do this side's part; returns what was done, for people, when it has come to nothing.

    Args:
        plugin: the attempt.
        mine: the own NAT.
        theirs: the peer's.
        local: the easy side's own endpoint; of the hard side only the address counts.
        target: the peer's address, and the easy side's port.
        volley: dials.

    Raises:
        TraversalError: the node's gate has no room for it, or a spray went there lately.

    """
    if sys.platform == "win32":
        return "guesses over TCP are not made on Windows"
    sockets, guesses = sizes(mine if mine.hard else theirs)
    count, complaint = sockets_left(sockets if mine.hard else guesses)
    if mine.hard:
        aims = [((local[0], 0), target)] * count
    else:
        low, high = theirs.block or ANY_PORT
        chosen = random.sample(range(low, high + 1), count)
        aims = [(local, (target[0], port)) for port in chosen]
    gate = plugin.manager.sprays
    async with gate.spray(target[0], gateway(plugin), count) as spray:
        # What a stranger's word may cost ends it early.
        paid = takewhile(lambda _: plugin.budget.charge(target[0], SYN_BYTES), aims)
        await volley.run(spray, paid)
    hard = mine if mine.hard else theirs
    return "; ".join(
        [
            f"{volley.sent} SYNs of {sockets} against {guesses} (P = {odds(hard)}) met none",
            complaint,
        ]
    ).rstrip("; ")

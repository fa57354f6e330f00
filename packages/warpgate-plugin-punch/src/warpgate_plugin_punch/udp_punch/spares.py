"""Sockets whose port outside is known beforehand, for NATs where it can't be foretold."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warpgate_plugin_punch.common.sockets import (
    PunchSocket,
    bound_udp,
    crosses_nat,
    mapped_for,
    metered,
)

if TYPE_CHECKING:
    from warpgate.net.addresses import Address
    from warpgate.node.node import Node
    from warpgate.plugin import Plugin
    from warpgate_plugin_punch.common.facts import SideFacts

REPLENISH_S: Final = 0.2
"""After a spare was taken, so that the attempt has the machine for itself."""
CONFIRM_S: Final = 15.0
"""A spare's mapping is looked at and kept alive so often; NATs keep one for 30 s and more."""
LIFE_S: Final = 300.0
"""A node that has not called anyone for so long has no spares."""
MAX_SPARES: Final = 4

Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Spare:
    """A socket, and where it is reached."""

    link: PunchSocket
    endpoint: Address


class _Shelf:
    """Where one local address's spare lies."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.spare: Spare | None = None
        self.taken = asyncio.Event()
        self.task: asyncio.Task[None]


class Spares:
    """One node's spare sockets: one for each local address that called through such a NAT lately."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._shelves: dict[Place, _Shelf] = {}

    def take(self, plugin: Plugin, own: SideFacts) -> Spare | None:
        """Return a spare for an attempt, which owns it from now on; None where there is none.

        Args:
            plugin: the attempt.
            own: this side's NAT.

        """
        if own.keeps_port or not own.easy or not crosses_nat(plugin):
            return None
        shelf = self._shelves.get((plugin.af, plugin.src_info["nic"]))
        spare = None if shelf is None else shelf.spare
        if shelf is None or spare is None or spare.link.closed:
            return None
        shelf.spare = None
        shelf.until = asyncio.get_running_loop().time() + LIFE_S
        shelf.taken.set()
        metered(plugin, spare.link)
        return spare

    def stock(self, plugin: Plugin, local_ip: str) -> None:
        """Have a spare on a local address from now on, for a while."""
        place = (plugin.af, local_ip)
        until = asyncio.get_running_loop().time() + LIFE_S
        if place in self._shelves:
            self._shelves[place].until = until
        elif len(self._shelves) < MAX_SPARES:
            shelf = self._shelves[place] = _Shelf(until)
            shelf.task = asyncio.get_running_loop().create_task(self._keep(place, shelf))

    async def _keep(self, place: Place, shelf: _Shelf) -> None:
        try:
            with contextlib.suppress(OSError):  # the address may be gone: then there is no spare
                while asyncio.get_running_loop().time() < shelf.until:
                    await asyncio.sleep(REPLENISH_S)
                    if not await self._make(place, shelf):
                        break
        finally:
            del self._shelves[place]

    async def _make(self, place: Place, shelf: _Shelf) -> bool:
        """Make a spare and keep its mapping alive; return whether it was taken."""
        loop = asyncio.get_running_loop()
        link = await bound_udp(place[0], (place[1], 0))
        shelf.taken.clear()
        try:
            while loop.time() < shelf.until:
                found = await mapped_for(self._node, place[0], link)
                if shelf.taken.is_set():
                    return True
                if found is None:
                    return False
                shelf.spare = Spare(link, found.endpoint)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CONFIRM_S):
                        await shelf.taken.wait()
                        return True
            return False
        finally:
            if not shelf.taken.is_set():
                shelf.spare = None
                link.close()

    async def close(self) -> None:
        """Close every spare, for good."""
        tasks = [shelf.task for shelf in self._shelves.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

"""Both transports' mappings of one port by one protocol."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from warpgate.net.constants import TCP, UDP
from warpgate_plugin_direct.port_mapping import model
from warpgate_plugin_direct.port_mapping.model import Mapping, MappingError
from warpgate_plugin_direct.port_mapping.tasks import settle

if TYPE_CHECKING:
    from warpgate_plugin_direct.port_mapping.clients import Client
    from warpgate_plugin_direct.port_mapping.model import Spot

OTHER_PORTS: Final = 3
"""How many other external ports are tried when one is taken, or the transports get different ones."""
LOWEST_PORT: Final = 1024  # routers keep those below to themselves
TRANSPORTS: Final = (TCP, UDP)


class Lease:
    """What one client holds on the router; :meth:`drop` removes all that it may hold.

    Args:
        client: the protocol.
        spot: what is mapped.
        lease_s: the life to ask for, in seconds.
        rng: for other external ports.
        now: the clock.

    Attributes:
        held: by transport, what was granted, or asked for and perhaps granted.

    """

    def __init__(
        self,
        client: Client,
        spot: Spot,
        lease_s: float,
        rng: random.Random,
        now: Callable[[], float],
    ) -> None:
        self.client = client
        self.held: dict[int, Mapping] = {}
        self.granted: set[int] = set()
        self._spot = spot
        self._lease_s = lease_s
        self._rng = rng
        self._now = now

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What the router has granted, TCP first."""
        return tuple(self.held[each] for each in TRANSPORTS if each in self.granted)

    @property
    def tcp(self) -> Mapping:
        """The mapping that ``direct_connect`` needs."""
        return self.held[TCP]

    async def obtain(self) -> None:
        """Map TCP and UDP, by the same external port where the router can.

        Raises:
            MappingError: there is no TCP mapping to be had. A router that maps TCP alone will do.

        """
        ports = [self._spot.port] + [
            self._rng.randrange(LOWEST_PORT, 65536) for _ in range(OTHER_PORTS)
        ]
        for last, port in ((port is ports[-1], port) for port in ports):
            try:
                tcp = await self._map(TCP, port)
            except MappingError as error:
                if error.conflict and not last:
                    continue
                raise
            try:
                udp = await self._map(UDP, tcp.external_port)
            except MappingError as error:
                if not error.conflict or last:
                    return
            else:
                if last or udp.external_port == tcp.external_port:
                    return
            await self.drop()

    async def renew(self) -> None:
        """Renew everything, by the ports that there are.

        Raises:
            MappingError: TCP could not be renewed.

        """
        for mapping in self.mappings:
            try:
                await self._map(mapping.transport, mapping.external_port, mapping)
            except MappingError:
                if mapping.transport == TCP:
                    raise

    async def alive(self) -> bool:
        """Return whether the router still has them all; raises MappingError when it is silent."""
        for mapping in self.mappings:
            if not await self.client.alive(mapping):
                return False
        return True

    async def _map(self, transport: int, port: int, last: Mapping | None = None) -> Mapping:
        # Noted before it is asked for: when we are cancelled, the router may have it already.
        self.held.setdefault(
            transport, Mapping(transport, self._spot.port, None, port, self._lease_s, self._now())
        )
        try:
            mapping = await self.client.map(transport, port, self._lease_s, last)
        except MappingError as error:
            if last is None and error.code is not None:
                self.held.pop(transport, None)
            raise
        if mapping.lease_s is not None and mapping.lease_s < model.MIN_LEASE_S:
            raise MappingError(f"maps for {mapping.lease_s:g} s only")
        self.held[transport] = mapping
        self.granted.add(transport)
        return mapping

    async def drop(self) -> None:
        """Remove everything; what the router says to it is of no interest."""
        tasks = {asyncio.ensure_future(self._unmap(mapping)) for mapping in self.held.values()}
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            await settle({task for task in tasks if not task.done()})
        # Not before: whoever cancels us will want to try again.
        self.held, self.granted = {}, set()

    async def _unmap(self, mapping: Mapping) -> None:
        with contextlib.suppress(MappingError):
            await self.client.unmap(mapping)

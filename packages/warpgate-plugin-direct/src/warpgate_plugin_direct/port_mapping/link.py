"""Keeps one family of one interface mapped, as long as it is there."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from warpgate.net.constants import IP4
from warpgate_plugin_direct.port_mapping.clients import NatPmpClient, PcpClient
from warpgate_plugin_direct.port_mapping.default_gateway import find_gateway
from warpgate_plugin_direct.port_mapping.gateway import Announcements
from warpgate_plugin_direct.port_mapping.lease import Lease
from warpgate_plugin_direct.port_mapping.model import MIN_RENEW_S, MappingError, judge
from warpgate_plugin_direct.port_mapping.status import SpotStatus
from warpgate_plugin_direct.port_mapping.tasks import settle
from warpgate_plugin_direct.port_mapping.upnp import UpnpClient

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate_plugin_direct.port_mapping.clients import Client
    from warpgate_plugin_direct.port_mapping.model import Spot
    from warpgate_plugin_direct.port_mapping.settings import Settings

RETRY_CAP_S: Final = 900.0
STAGGER_S: Final = 1.0
"""A protocol that is at it gets this head start before the next one maps too."""
WAKE_GAP_S: Final = 1.0
"""Between two looks at the router for which something outside is the reason."""

log = logging.getLogger("warpgate")

External = tuple[str, int]
Seen = Callable[[], tuple[tuple[str, ...], bool | None]]


class LinkMapper:
    """Obtains a lease by whichever protocol works, renews it, publishes it, removes it.

    Args:
        spot: what is to be mapped.
        settings: see there.
        secret: for PCP's nonces.
        seen: returns what STUN servers see of this path: addresses, and whether there are several NATs.
        publish: called with the external address, or None when there is none any more.
        counters: failures are counted as ``port_mapping_…``.

    Attributes:
        status: what has come of it.

    """

    def __init__(
        self,
        spot: Spot,
        settings: Settings,
        secret: bytes,
        seen: Seen,
        publish: Callable[[External | None], None],
        counters: Counters,
    ) -> None:
        self.spot = spot
        self.status = SpotStatus(spot)
        self._settings = settings
        self._secret = secret
        self._seen = seen
        self._publish = publish
        self._counters = counters
        self._rng = random.Random()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._woken_at = float("-inf")
        self._announced = False
        self._clients: dict[str, Client] = {}
        self._leases: list[Lease] = []
        self._announcements: Announcements | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        name = f"port mapping on {self.spot.interface}"
        self._task = self._loop.create_task(self._run(), name=name)

    def poke(self) -> None:
        """Look at once whether everything is still as it was."""
        self._wake.set()

    def _restarted(self) -> None:
        """Take the router's word that it has, whatever its epoch says."""
        self._announced = True
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                lease = await self._obtain()
                if lease is not None:
                    failures = 0
                    await self._keep(lease)
            except Exception:  # it must never harm the node
                self._counters.count("port_mapping_errors")
                log.exception("port mapping on %s failed", self.spot.interface)
                lease = None
            self._withdraw()
            await self._drop_all()
            if lease is None:
                failures += 1
                self._counters.count("port_mapping_failures")
                log.info("port mapping on %s", self.status)
                pause = min(self._settings.retry_s * 2 ** min(failures - 1, 16), RETRY_CAP_S)
                await self._sleep(pause)

    async def _sleep(self, seconds: float) -> bool:
        """Wait; return whether something woke us before the time was over."""
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._wake.wait()
        except TimeoutError:
            return False
        # Whoever speaks in the router's name must not keep us busy.
        await asyncio.sleep(max(self._woken_at + WAKE_GAP_S - self._loop.time(), 0.0))
        self._woken_at = self._loop.time()
        self._wake.clear()
        return True

    # Obtaining.

    async def _obtain(self) -> Lease | None:
        """Ask by all protocols at once; return the first lease whose address can be believed."""
        self.status.causes = {}
        self.status.note = ""
        self._wake.clear()
        gateway = self.spot.gateway or await find_gateway(self.spot.af, self.spot.interface)
        if gateway is None:
            self.status.note = "the router's address is not known"
            return None
        await self._listen(gateway)
        ready: asyncio.Queue[Client] = asyncio.Queue()
        clients = self._make_clients(gateway)
        probes = {asyncio.ensure_future(self._probe(client, ready)) for client in clients}
        tries: dict[asyncio.Task[None], Lease] = {}
        try:
            return await self._race(probes, ready, tries)
        finally:
            await settle({*probes, *tries})

    def _make_clients(self, gateway: str) -> list[Client]:
        spot, counters, settings = self.spot, self._counters, self._settings
        self._close_clients()
        made: list[Client] = [
            PcpClient(spot, gateway, self._secret, counters, settings.pcp_port),
            *([NatPmpClient(spot, gateway, counters, settings.pcp_port)] if spot.af == IP4 else []),
            UpnpClient(spot, gateway, counters, settings.ssdp_port),
        ]
        self._clients = {client.name: client for client in made if settings.wants(client.name)}
        return list(self._clients.values())

    async def _listen(self, gateway: str) -> None:
        if self._announcements is None:
            spot, settings = self.spot, self._settings
            self._announcements = Announcements(
                spot.af,
                (gateway, settings.pcp_port),
                spot.index,
                settings.announce_port,
                self._restarted,
                self._counters,
            )
            await self._announcements.open()

    async def _probe(self, client: Client, ready: asyncio.Queue[Client]) -> None:
        try:
            await client.probe()
        except MappingError as error:
            self._failed(client, error)
        else:
            ready.put_nowait(client)

    async def _race(
        self,
        probes: set[asyncio.Task[None]],
        ready: asyncio.Queue[Client],
        tries: dict[asyncio.Task[None], Lease],
    ) -> Lease | None:
        """Let protocols map as they turn out to be there, each with a head start on the next."""
        next_try = 0.0
        while True:
            running = {task for task in tries if not task.done()}
            waiting = {task for task in probes if not task.done()}
            if not ready.empty() and (not running or self._loop.time() >= next_try):
                lease = self._new_lease(ready.get_nowait())
                tries[asyncio.ensure_future(lease.obtain())] = lease
                next_try = self._loop.time() + STAGGER_S
                continue
            if not running and not waiting:
                return None
            timeout = None if ready.empty() else next_try - self._loop.time()
            done, _ = await asyncio.wait(
                running | waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done & tries.keys():
                if self._take(task, tries[task]):
                    return tries[task]

    def _new_lease(self, client: Client) -> Lease:
        lease = Lease(client, self.spot, self._settings.lease_s, self._rng, self._loop.time)
        self._leases.append(lease)
        return lease

    def _take(self, task: asyncio.Task[None], lease: Lease) -> bool:
        """Look at a finished attempt; return whether its lease can be used."""
        error = task.exception()
        if isinstance(error, MappingError):
            self._failed(lease.client, error)
            return False
        if error is not None:
            raise error
        return self._judge(lease)

    def _judge(self, lease: Lease) -> bool:
        """Publish a lease's external address, unless it can't be believed."""
        addresses, several_nats = self._seen()
        tcp = lease.tcp
        verdict = judge(tcp.external_ip, self.spot.local_ip, addresses, several_nats)
        if verdict.ip is None:
            self._counters.count("port_mapping_refused")
            self.status.causes[lease.client.name] = verdict.reason
            return False
        self.status.protocol = lease.client.name
        self.status.mappings = lease.mappings
        self.status.note = verdict.reason
        external = verdict.ip, tcp.external_port
        if external != self.status.external:
            self.status.external = external
            self._counters.count("port_mapping_published")
            log.info("port mapping on %s", self.status)
            self._publish(external)
        return True

    def _failed(self, client: Client, error: MappingError) -> None:
        self._counters.count(f"port_mapping_failed_{client.name.lower().replace('-', '')}")
        self.status.causes[client.name] = str(error)

    # Keeping.

    async def _keep(self, lease: Lease) -> None:
        """Renew a lease until it is lost."""
        settings = self._settings
        again: float | None = None  # when to renew after a failure
        if await self._drop_others(lease):
            again = self._loop.time()  # some routers forget more than they were told to
        check_at = self._loop.time() + settings.check_s
        while True:
            renew_at = again or min(mapping.renew_at for mapping in lease.mappings)
            woken = await self._sleep(min(renew_at, check_at) - self._loop.time())
            now = self._loop.time()
            if now >= min(mapping.ends_at for mapping in lease.mappings):
                self.status.causes[lease.client.name] = "the lease ended and could not be renewed"
                return
            renew = now >= renew_at
            if woken or now >= check_at:
                check_at = now + settings.check_s
                renew = renew or self._announced or not await self._is_alive(lease)
                self._announced = False
            if renew:
                again = await self._renew(lease)
            if not self._judge(lease):
                return

    async def _is_alive(self, lease: Lease) -> bool:
        try:
            return await lease.alive()
        except MappingError as error:
            # It may be restarting. What the lease has left decides.
            self._failed(lease.client, error)
            return True

    async def _renew(self, lease: Lease) -> float | None:
        """Renew; return when to try again after a failure: at half of what is left."""
        try:
            await lease.renew()
        except MappingError as error:
            self._failed(lease.client, error)
            now = self._loop.time()
            left = lease.tcp.ends_at - now
            return now + max(min(left / 2, self._settings.retry_s), MIN_RENEW_S)
        self._counters.count("port_mapping_renewed")
        self.status.causes.pop(lease.client.name, None)
        return None

    # The end.

    def _withdraw(self) -> None:
        if self.status.external is not None:
            self.status.external, self.status.mappings = None, ()
            self._counters.count("port_mapping_withdrawn")
            self._publish(None)

    async def _drop_others(self, kept: Lease) -> bool:
        """Remove what other protocols mapped meanwhile, save for what is the kept lease's too.

        Returns:
            Whether there was something to remove.

        """
        ports = {(each.transport, each.external_port) for each in kept.mappings}
        dropped = False
        for lease in self._leases:
            if lease is not kept:
                if lease.client.by_internal_port and kept.client.by_internal_port:
                    lease.held = {}
                held = lease.held.items()
                lease.held = {k: m for k, m in held if (k, m.external_port) not in ports}
                dropped = dropped or bool(lease.held)
                await lease.drop()
        self._leases = [kept]
        for client in self._clients.values():
            if client is not kept.client:
                client.close()
        self._clients = {kept.client.name: kept.client}
        return dropped

    async def _drop_all(self) -> None:
        for lease in self._leases:
            await lease.drop()
        self._leases = []
        self._close_clients()

    def _close_clients(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    async def close(self, timeout_s: float) -> None:
        """Stop, and remove the mappings, within ``timeout_s`` seconds."""
        try:
            if self._task is not None:
                await settle({self._task})
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(lease.drop() for lease in self._leases))
        except TimeoutError:
            self._counters.count("port_mapping_left_behind")
        finally:
            self._leases = []
            self._close_clients()
            if self._announcements is not None:
                self._announcements.close()
                self._announcements = None

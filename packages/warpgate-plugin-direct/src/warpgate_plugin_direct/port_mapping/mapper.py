"""Owns a node's mappings: which there should be, from when on, and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from warpgate.events import Counters
from warpgate.nat.report import NetReport
from warpgate.net.constants import IP4, IP6
from warpgate.net.nic import Interface
from warpgate.protocol.ip import is_link_local, is_private, is_public
from warpgate.protocol.peer_address import PeerAddress
from warpgate_plugin_direct.port_mapping.model import Spot
from warpgate_plugin_direct.port_mapping.settings import Settings
from warpgate_plugin_direct.port_mapping.status import MappingStatus
from warpgate_plugin_direct.port_mapping.tasks import settle

if TYPE_CHECKING:
    from warpgate_plugin_direct.port_mapping.link import LinkMapper

CLOSE_S: Final = 1.5
"""For removing the mappings when the node closes; what is left then ends with its lease."""
MAX_SPOTS: Final = 8
"""Interfaces times families that are mapped."""

log = logging.getLogger("warpgate")

External = tuple[str, int]


class Keys(Protocol):
    """What is needed of the node's identity."""

    def to_bytes(self) -> bytes:
        """Return the secret keys."""


class Network(Protocol):
    """What is needed of ``node.network``."""

    def set_port_mapping(self, af: int, interface: str, external: External | None) -> None:
        """Let the address name the external port."""

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the network has changed; returns what ends it."""


class MappableNode(Protocol):
    """What is needed of a node."""

    @property
    def conf(self) -> Mapping[str, Any]:
        """Its settings."""

    @property
    def stats(self) -> Counters:
        """Its counters."""

    @property
    def identity(self) -> Keys:
        """Its keys."""

    @property
    def network(self) -> Network:
        """Its view of the network."""

    @property
    def net_report(self) -> NetReport | None:
        """What STUN servers said."""

    @property
    def ifs(self) -> Sequence[Interface]:
        """The interfaces that stand in its address, in that order."""

    @property
    def peer_address(self) -> PeerAddress:
        """Its signed address."""

    async def start(self) -> Any:
        """Wait until it is running."""


class Mapper:
    """Maps the node's port on every router that it is behind; closed with the node.

    Args:
        node: the node that is starting.
        settings: how.

    """

    def __init__(self, node: MappableNode, settings: Settings) -> None:
        self._node = node
        self._settings = settings
        self._links: dict[Spot, LinkMapper] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None
        self._publishing = False
        self._closed = False
        self._note = "the node is starting"
        self._task = asyncio.get_running_loop().create_task(self._begin(), name="port mapping")

    @property
    def status(self) -> MappingStatus:
        """What has come of it so far."""
        return MappingStatus((link.status for link in self._links.values()), self._note)

    def __str__(self) -> str:
        return str(self.status)

    async def _begin(self) -> None:
        """Wait until the node listens; then map, and follow the network's changes."""
        try:
            await self._node.start()
        except Exception:  # noqa: BLE001  # whoever started it is told
            self._note = "the node did not start"
            return
        try:
            self._unsubscribe = self._node.network.on_change(self._changed)
            self.resync()
        except Exception:
            self._node.stats.count("port_mapping_errors")
            self._note = "failed to begin; the log has the reason"
            log.exception("port mapping failed to begin")

    def _changed(self) -> None:
        if self._publishing or self._closed:
            return  # it was our own news
        self.resync()
        for link in self._links.values():
            link.poke()

    def resync(self) -> None:
        """Begin with what is new, end what has gone."""
        if self._closed:
            return
        wanted = spots_of(self._node.ifs, self._node.peer_address)
        for spot in [spot for spot in self._links if spot not in wanted]:
            task = asyncio.ensure_future(self._links.pop(spot).close(CLOSE_S))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._publish(spot, None)
        for spot in wanted:
            if spot not in self._links:
                self._links[spot] = link = self._link(spot)
                link.start()
        self._note = "" if wanted else "no interface is behind a router that could map a port"

    def _link(self, spot: Spot) -> LinkMapper:
        # Not at the top: the node's start need not wait for what only a router makes necessary.
        from warpgate_plugin_direct.port_mapping.link import LinkMapper

        return LinkMapper(
            spot,
            self._settings,
            self._node.identity.to_bytes(),
            partial(self._seen, spot),
            partial(self._publish, spot),
            self._node.stats,
        )

    def _seen(self, spot: Spot) -> tuple[tuple[str, ...], bool | None]:
        report = self._node.net_report
        path = None if report is None else report.path(spot.af, spot.interface)
        return ((), None) if path is None else (path.external, path.several_nats)

    def _publish(self, spot: Spot, external: External | None) -> None:
        if self._closed:
            return
        self._publishing = True
        try:
            self._node.network.set_port_mapping(spot.af, spot.interface, external)
        except ValueError as error:
            self._node.stats.count("port_mapping_refused")
            log.warning("port mapping on %s: %s", spot.interface, error)
        finally:
            self._publishing = False

    async def close(self) -> None:
        """Remove every mapping, in 1.5 s at the most; idempotent."""
        self._closed = True
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await settle({self._task})
        links, self._links = list(self._links.values()), {}
        work = {asyncio.ensure_future(link.close(CLOSE_S)) for link in links} | self._ending
        try:
            if work:
                await asyncio.wait(work, timeout=CLOSE_S)
        finally:
            await settle({task for task in work if not task.done()})
        self._note = "the node is closed"


def spots_of(nics: Sequence[Interface], address: PeerAddress) -> list[Spot]:
    """Return what can be mapped: private IPv4 addresses and public IPv6 ones behind a router.

    Args:
        nics: the interfaces, in the order of the address.
        address: the node's own; it tells which addresses the node listens on.

    """
    spots: list[Spot] = []
    for nic, record in zip(nics, address.interfaces, strict=False):
        for endpoint in record.endpoints:
            af, ip = endpoint.af, endpoint.ip
            if nic.loopback or not nic.has_default(af):
                continue
            if af == IP6 and not is_public(ip):
                # The node listens on all of the interface's addresses, or on this one alone.
                ip = (nic.global_ip(IP6) or "") if endpoint.ext_ip is not None else ""
            if af == IP4 and (not is_private(ip) or is_link_local(ip)):
                continue
            if not ip or (af == IP6 and not is_public(ip)):
                continue
            gateway = nic.gateways.get(af)
            if gateway is not None and is_link_local(gateway) and af == IP6 and "%" not in gateway:
                gateway = f"{gateway}%{nic.name}"
            spots.append(Spot(nic.name, nic.index, af, ip, endpoint.port, gateway))
    return spots[:MAX_SPOTS]

"""UPnP Internet Gateway Device, versions 1 and 2: port mappings (IPv4) and pinholes (IPv6).

SSDP and HTTP are ours, descriptions and SOAP are async-upnp-client's (the extra ``[upnp]``). It is
imported when a router has answered, in a thread: with aiohttp it takes half a second.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import socket
from typing import TYPE_CHECKING, Any, ClassVar, Final

from warpgate.net.addresses import canonical_ip
from warpgate.net.constants import IP6, TCP
from warpgate.net.datagram import DatagramSocket
from warpgate_plugin_direct.port_mapping import ssdp
from warpgate_plugin_direct.port_mapping.gateway import DROPPED
from warpgate_plugin_direct.port_mapping.http import Requester
from warpgate_plugin_direct.port_mapping.model import Mapping, MappingError

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate_plugin_direct.port_mapping.model import Spot

LIBRARY: Final = "async_upnp_client"
MISSING: Final = (
    "needs async-upnp-client, which is not installed: pip install 'warpgate-plugin-direct[upnp]'"
)
DESCRIPTION: Final = "warpgate"
SEARCHES_S: Final = (0.0, 0.5, 1.5)
SEARCH_S: Final = 3.0
DESCRIBE_S: Final = 15.0
"""For the description with all services; slow routers need seconds."""

CONNECTIONS: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
FIREWALL: Final = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"

INVALID_ARGS: Final = 402
NO_SUCH_PINHOLE: Final = 704
NO_SUCH_MAPPING: Final = 714
CONFLICT: Final = 718
PERMANENT_ONLY: Final = 725
_ELSEWHERE: Final = (CONFLICT, 501)
"""Errors after which another external port may do; 501 is what some routers say for 718."""
_NO_PINHOLE: Final = (NO_SUCH_PINHOLE, INVALID_ARGS)
"""Errors of UpdatePinhole after which there is none; 402 is what miniupnpd 2.3 says for 704."""


class UpnpClient:
    """The client of one router (see :class:`~warpgate_plugin_direct.port_mapping.clients.Client`).

    Args:
        spot: what is mapped.
        gateway: the router; SSDP answers and descriptions of others are not looked at.
        counters: for what was dropped.
        ssdp_port: where the router listens for searches.

    """

    name: ClassVar[str] = "UPnP"
    by_internal_port: ClassVar[bool] = False

    def __init__(
        self, spot: Spot, gateway: str, counters: Counters, ssdp_port: int = ssdp.PORT
    ) -> None:
        self._spot = spot
        self._gateway = canonical_ip(gateway)
        self._counters = counters
        self._ssdp_port = ssdp_port
        self._location = ""
        self._service: Any = None
        self._requester: Requester | None = None
        self._permanent = False
        self._added = False  # perhaps: asked for
        self._external_ip: str | None = None

    async def probe(self) -> None:
        """See :class:`Client`."""
        if importlib.util.find_spec(LIBRARY) is None:
            raise MappingError(MISSING)
        self._location = await self._search()

    async def _search(self) -> str:
        """Return the URL of the gateway's description."""
        spot = self._spot
        sock = socket.socket(spot.af, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if spot.af == IP6:
                # Not bound: from a link-local address the gateway is asked by the link-local one
                # that we know it by, and answers from that one.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::", 0))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, spot.index)
            else:
                sock.bind((spot.local_ip, 0))
                address = socket.inet_aton(spot.local_ip)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
        except (OSError, ValueError) as error:
            sock.close()
            raise MappingError(f"can't search: {error}") from error
        link = await DatagramSocket.open(sock)
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def receive(data: bytes, addr: tuple[str, int]) -> None:
            if addr[0] != self._gateway:
                self._counters.count(DROPPED)
                return
            try:
                url = ssdp.parse_answer(data, self._gateway)
            except MappingError as error:
                if not found.done():
                    found.set_exception(error)
                return
            if url is None:
                self._counters.count(DROPPED)
            elif not found.done():
                found.set_result(url)

        link.default = receive
        try:
            return await self._ask(link, found)
        finally:
            link.close()
            found.cancel()

    async def _ask(self, link: DatagramSocket, found: asyncio.Future[str]) -> str:
        group = ssdp.group(self._spot.af)
        before = 0.0
        for at in (*SEARCHES_S, SEARCH_S):
            await asyncio.wait({found}, timeout=at - before)
            before = at
            if found.done():
                return found.result()
            for target in ssdp.TARGETS:
                search = ssdp.pack_search(self._spot.af, target)
                link.send_to(search, (group, self._ssdp_port))
                link.send_to(search, (self._gateway, self._ssdp_port))
        raise MappingError("no answer")

    async def _connect(self) -> None:
        """Read the description and choose the service."""
        if not self._location:
            self._location = await self._search()
        library: Any = await asyncio.to_thread(importlib.import_module, f"{LIBRARY}.client_factory")
        self._requester = Requester(self._gateway, self._spot.local_ip, library.HttpResponse)
        factory = library.UpnpFactory(self._requester, non_strict=True)
        try:
            async with asyncio.timeout(DESCRIBE_S):
                device = await factory.async_create_device(self._location)
        except TimeoutError:
            raise MappingError(f"its description took more than {DESCRIBE_S:g} s") from None
        except MappingError:
            raise
        except Exception as error:  # the library raises all kinds on hostile XML
            raise MappingError(f"its description can't be used: {_words(error)}") from error
        services = {
            service.service_type: service
            for each in (device, *device.all_devices)
            for service in each.services.values()
        }
        wanted = (FIREWALL,) if self._spot.af == IP6 else CONNECTIONS
        usable = [services[kind] for kind in wanted if kind in services]
        if not usable:
            kind = "IPv6 firewall" if self._spot.af == IP6 else "connection to the internet"
            raise MappingError(f"its description has no {kind}")
        self._service = usable[0]
        if self._spot.af != IP6 and len(usable) > 1:
            self._service = await self._connected(usable)

    async def _connected(self, services: list[Any]) -> Any:
        """Return the first service with an external address: a router may have several lines."""
        for service in services:
            self._service = service
            try:
                if await self._address() is not None:
                    return service
            except MappingError as error:
                if error.code is None:
                    raise
        return services[0]

    async def _call(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Call an action of the chosen service.

        Raises:
            MappingError: with UPnP's error code where the router gave one.

        """
        if self._service is None:
            await self._connect()
        assert self._requester is not None
        if not self._service.has_action(action):
            raise MappingError(f"does not know {action}", 401)
        self._requester.left = 1
        try:
            found = await self._service.action(action).async_call(**arguments)
        except MappingError:
            self._forget()
            raise
        except Exception as error:  # as above
            code = getattr(error, "error_code", None)
            if code is None:
                self._forget()
                raise MappingError(f"{action}: {_words(error)}") from error
            words = str(getattr(error, "error_desc", None) or "")[:80]
            raise MappingError(
                f"{action}: error {code} {words}".rstrip(), code, conflict=code in _ELSEWHERE
            ) from error
        return dict(found)

    def _forget(self) -> None:
        """Search anew next time: a router that has restarted has other ports and paths."""
        self._service, self._location = None, ""

    async def _address(self) -> str | None:
        found = (await self._call("GetExternalIPAddress")).get("NewExternalIPAddress")
        text = str(found or "").strip()
        return None if text in ("", "0.0.0.0") else text[:64]

    # Mapping.

    async def map(
        self, transport: int, external_port: int, lease_s: float, last: Mapping | None = None
    ) -> Mapping:
        """See :class:`Client`."""
        if self._service is None:
            await self._connect()
        lease = 0 if self._permanent else round(lease_s)
        if self._spot.af == IP6:
            return await self._pinhole(transport, lease, last)
        self._external_ip = await self._address()
        now = asyncio.get_running_loop().time()
        port, lease = await self._add(transport, external_port, lease)
        await self._check_client(transport, port)
        return Mapping(transport, self._spot.port, self._external_ip, port, lease or None, now)

    async def _add(self, transport: int, port: int, lease: int) -> tuple[int, int]:
        """Return external port and lease of a mapping; adding one's own again renews it."""
        arguments = {
            "NewRemoteHost": "",
            "NewExternalPort": port,
            "NewProtocol": _protocol(transport),
            "NewInternalPort": self._spot.port,
            "NewInternalClient": self._spot.local_ip,
            "NewEnabled": True,
            "NewPortMappingDescription": DESCRIPTION,
            "NewLeaseDuration": lease,
        }
        self._added = True
        try:
            await self._call("AddPortMapping", **arguments)
        except MappingError as error:
            if lease and error.code in (PERMANENT_ONLY, INVALID_ARGS):
                self._permanent = True
                return await self._add(transport, port, 0)
            if error.code == CONFLICT and self._service.has_action("AddAnyPortMapping"):
                found = await self._call("AddAnyPortMapping", **arguments)
                return self._reserved(found), lease
            raise
        return port, lease

    def _reserved(self, found: dict[str, Any]) -> int:
        """Return the port that AddAnyPortMapping chose.

        miniupnpd 2.3 describes the argument as NewExternalPort and answers with NewReservedPort, as
        the standard has it; the library leaves out what is not described.
        """
        assert self._requester is not None
        raw = re.search(r"<NewReservedPort>\s*(\d{1,5})\s*</", self._requester.body)
        return _port(found.get("NewReservedPort") or (int(raw[1]) if raw else None))

    async def _check_client(self, transport: int, port: int) -> None:
        """Look whether the mapping leads here, where the router tells."""
        try:
            found = await self._entry(transport, port)
        except MappingError as error:
            if error.code == NO_SUCH_MAPPING:
                raise MappingError("granted a mapping, and does not have it") from error
            return  # it does not tell
        client = str(found.get("NewInternalClient") or "").strip()
        if client and client != self._spot.local_ip:
            raise MappingError("granted a mapping that leads to another host", conflict=True)

    async def _entry(self, transport: int, port: int) -> dict[str, Any]:
        return await self._call(
            "GetSpecificPortMappingEntry",
            NewRemoteHost="",
            NewExternalPort=port,
            NewProtocol=_protocol(transport),
        )

    async def _pinhole(self, transport: int, lease: int, last: Mapping | None) -> Mapping:
        ip, port, now = self._spot.local_ip, self._spot.port, asyncio.get_running_loop().time()
        if last is not None and last.handle:
            try:
                await self._call("UpdatePinhole", UniqueID=int(last.handle), NewLeaseTime=lease)
            except MappingError as error:
                if error.code not in _NO_PINHOLE:
                    raise
            else:
                return Mapping(transport, port, ip, port, lease, now, last.handle)
        allowed = await self._call("GetFirewallStatus")
        if not allowed.get("InboundPinholeAllowed", True):
            raise MappingError("does not allow pinholes")
        self._added = True
        found = await self._call(
            "AddPinhole",
            RemoteHost="",
            RemotePort=0,
            InternalClient=ip,
            InternalPort=port,
            Protocol=6 if transport == TCP else 17,
            LeaseTime=lease,
        )
        handle = str(_port(found.get("UniqueID"), lowest=0))
        return Mapping(transport, port, ip, port, lease, now, handle)

    async def alive(self, mapping: Mapping) -> bool:
        """See :class:`Client`."""
        try:
            if self._spot.af == IP6:
                lease = round(mapping.lease_s or 0)
                await self._call("UpdatePinhole", UniqueID=int(mapping.handle), NewLeaseTime=lease)
                return True
            if await self._address() != mapping.external_ip:
                return False
            found = await self._entry(mapping.transport, mapping.external_port)
        except MappingError as error:
            gone = _NO_PINHOLE if self._spot.af == IP6 else (NO_SUCH_MAPPING,)
            if error.code in gone:
                return False
            if error.code is None:
                raise
            return True  # it answers, and does not tell
        client = str(found.get("NewInternalClient") or "").strip()
        return client in ("", self._spot.local_ip)

    async def unmap(self, mapping: Mapping) -> None:
        """See :class:`Client`; one that has gone already is fine."""
        if not self._added:
            return
        try:
            if self._spot.af == IP6:
                if mapping.handle:
                    await self._call("DeletePinhole", UniqueID=int(mapping.handle))
                return
            await self._call(
                "DeletePortMapping",
                NewRemoteHost="",
                NewExternalPort=mapping.external_port,
                NewProtocol=_protocol(mapping.transport),
            )
        except MappingError as error:
            if error.code not in (NO_SUCH_MAPPING, NO_SUCH_PINHOLE):
                raise

    def close(self) -> None:
        """See :class:`Client`: nothing stays open between calls."""


def _protocol(transport: int) -> str:
    return "TCP" if transport == TCP else "UDP"


def _port(value: Any, lowest: int = 1) -> int:
    if not isinstance(value, int) or not lowest <= value <= 65535:
        raise MappingError(f"answered with the number {str(value)[:20]!r}")
    return value


def _words(error: Exception) -> str:
    return f"{type(error).__name__} {str(error)[:120]}".rstrip()

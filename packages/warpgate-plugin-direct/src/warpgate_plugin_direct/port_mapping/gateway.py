"""Asks one router over UDP, from one local address; and hears its announcements."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, Self

from warpgate.events import Counters
from warpgate.net.addresses import canonical_ip, system_address
from warpgate.net.constants import IP6
from warpgate.net.datagram import DatagramSocket
from warpgate.net.driver import Driver
from warpgate.protocol.ip import split_scope
from warpgate_plugin_direct.port_mapping import pcp
from warpgate_plugin_direct.port_mapping.exchange import Address, Answered, Exchange, Failed

DROPPED: Final = "port_mapping_dropped"
ALL_HOSTS: Final = {False: "224.0.0.1", True: "ff02::1"}  # by "is IPv6"

log = logging.getLogger("warpgate")


class GatewaySocket:
    """One UDP socket towards one server of the router.

    What comes from elsewhere, or is no answer, is dropped and counted as ``port_mapping_dropped``.
    """

    def __init__(self, link: DatagramSocket, server: Address, counters: Counters) -> None:
        self._link = link
        self._server = server
        self._counters = counters
        self._asking: dict[Exchange, Driver] = {}
        link.default = self._receive

    @classmethod
    async def open(cls, af: int, local_ip: str, server: Address, counters: Counters) -> Self:
        """Bind to the local address that is to be mapped.

        Raises:
            OSError: the address is not this machine's any more.

        """
        sock = socket.socket(af, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind(system_address(af, (local_ip, 0)))
        except BaseException:
            sock.close()
            raise
        link = await DatagramSocket.open(sock)
        return cls(link, (canonical_ip(server[0]), server[1]), counters)

    async def ask(self, request: bytes, parse: Callable[[bytes], Any | None]) -> Answered:
        """Return the answer to a request.

        Raises:
            MappingError: the router refused or was silent.

        """
        machine = Exchange(request, self._server, parse)
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()

        def on_event(event: Answered | Failed) -> None:
            if future.done():
                return
            if isinstance(event, Failed):
                future.set_exception(event.error)
            else:
                future.set_result(event)

        driver = Driver(machine, self._send, on_event)
        self._asking[machine] = driver
        try:
            driver.start()
            return await future
        finally:
            driver.close()
            del self._asking[machine]

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(
            OSError
        ):  # the interface has gone; the exchange will end unanswered
            self._link.send_to(data, self._server)

    def _receive(self, data: bytes, addr: Address) -> None:
        # Every exchange looks at it: they tell their answers by what stands in them.
        taken = False
        for machine, driver in list(self._asking.items()):
            before = machine.dropped
            driver.feed(data, addr)
            taken = taken or machine.dropped == before
        if not taken:
            self._counters.count(DROPPED)

    def close(self) -> None:
        """Close it; nobody may be asking any more."""
        self._link.close()


class Announcements:
    """Hears that a router has restarted (RFC 6887 section 14.1, RFC 6886 section 3.2.1).

    Args:
        af: the family.
        server: the router's PCP server, whose word counts.
        interface: the interface's index.
        port: where to listen.
        heard: called when the gateway says that it has restarted, or has another address.
        counters: where datagrams from elsewhere are counted.

    """

    def __init__(
        self,
        af: int,
        server: Address,
        interface: int,
        port: int,
        heard: Callable[[], None],
        counters: Counters,
    ) -> None:
        self._af = af
        self._server = split_scope(canonical_ip(server[0]))[0], server[1]
        self._interface = interface
        self._port = port
        self._heard = heard
        self._counters = counters
        self._link: DatagramSocket | None = None

    async def open(self) -> None:
        """Listen; where another program owns it, hear nothing."""
        sock = socket.socket(self._af, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._af == IP6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                group = socket.inet_pton(self._af, ALL_HOSTS[True])
                member = group + self._interface.to_bytes(4, sys.byteorder)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            # Every host is in 224.0.0.1 already (RFC 1112).
            sock.bind(("", self._port))
        except OSError as error:
            sock.close()
            log.debug("no announcements of routers: %s", error)
            self._counters.count("port_mapping_deaf")
            return
        except BaseException:
            sock.close()
            raise
        self._link = await DatagramSocket.open(sock)
        self._link.default = self._receive

    def _receive(self, data: bytes, addr: Address) -> None:
        known = len(data) >= 4 and data[0] in (0, pcp.VERSION) and data[1] == pcp.RESPONSE
        if (split_scope(addr[0])[0], addr[1]) != self._server or not known:
            self._counters.count(DROPPED)
            return
        self._heard()

    def close(self) -> None:
        """Stop listening."""
        if self._link is not None:
            self._link.close()
            self._link = None

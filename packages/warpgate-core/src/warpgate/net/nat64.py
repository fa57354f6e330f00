"""The way to IPv4 from where only IPv6 leads outside: NAT64 (RFC 6052), found by RFC 7050."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from ..nat.classify import embedded, nat64_prefix, synthesize
from ..nat.report import NetReport
from ..protocol.ip import is_public
from .addresses import Address
from .constants import IP4, IP6
from .resolve import Entry, look_up

NAT64_NAME: Final = "ipv4only.arpa"  # RFC 7050 section 3
LOOKUP_S: Final = 1.0  # an address is held up by no more, where nothing else leads to it
AGAIN_S: Final = 10.0  # that a network has none is believed for so long
ANY_IPV4: Final = "192.0.2.1"  # these stand for the internet; nothing is sent there
ANY_IPV6: Final = "2001:db8::1"


class Nat64:
    """Finds this network's NAT64 prefix when an address is wanted that needs it, not before."""

    def __init__(self) -> None:
        self._prefix: str | None = None
        self._none_until = 0.0
        self._networks = 0

    @property
    def prefix(self) -> str | None:
        """For example ``64:ff9b::/96``; None: none is known."""
        return self._prefix

    def learn(self, report: NetReport) -> None:
        """Take over what a survey has found out about this network."""
        if report.nat64 is not None:
            self._prefix = report.nat64_prefix

    def forget(self) -> None:
        """Start anew: this is another network."""
        self._prefix, self._none_until = None, 0.0
        self._networks += 1

    async def reach(self, ip: str) -> str:
        """Return by which address an address is reached from here.

        That is itself, unless it is a public IPv4 address, no route leads there, and this network
        has NAT64.

        Args:
            ip: an IP address.

        """
        if ":" in ip or not is_public(ip) or has_route(ip):
            return ip
        prefix = await self.find()
        return ip if prefix is None else synthesize(prefix, ip)

    async def way(self, server: Address) -> Address:
        """Return the ``(ip, port)`` by which a server is reached from here; see :meth:`reach`."""
        return await self.reach(server[0]), server[1]

    def native(self, ip: str) -> str:
        """Return the IPv4 address that :meth:`reach` made this one from, else the address itself."""
        return (None if self._prefix is None else embedded(self._prefix, ip)) or ip

    async def find(self, timeout_s: float = LOOKUP_S) -> str | None:
        """Return the prefix; None where there is none, and where IPv4 has a way outside of its own.

        Args:
            timeout_s: how long to wait for the resolver at the most, in seconds.

        """
        loop = asyncio.get_running_loop()
        if self._prefix is not None or loop.time() < self._none_until:
            return self._prefix
        if has_route(ANY_IPV4) or not has_route(ANY_IPV6):
            return None
        network = self._networks
        entries: list[Entry] = []
        try:
            entries = await look_up(
                NAT64_NAME, 0, family=IP6, kind=socket.SOCK_DGRAM, timeout_s=timeout_s
            )
        except TimeoutError:
            if timeout_s < LOOKUP_S:
                return None
        except OSError:  # nobody knows the name: there is no NAT64
            pass
        if network == self._networks and self._prefix is None:
            self._prefix = nat64_prefix(str(entry[4][0]) for entry in entries)
            self._none_until = 0.0 if self._prefix else loop.time() + AGAIN_S
        return self._prefix


def has_route(ip: str) -> bool:
    """Return whether this machine has a route to an IP address; sends nothing."""
    family = IP6 if ":" in ip else IP4
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((ip, 9))
    except OSError:
        return False
    return True

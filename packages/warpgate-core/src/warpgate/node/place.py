"""Where a node listens: its interfaces, its sockets, and what its address says of them."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from warpgate.errors import ConfigError
from warpgate.net.constants import IP6
from warpgate.net.listeners import Listeners
from warpgate.net.nic import Interface, list_interfaces, loopback_interface, own_ips
from warpgate.node.addressing import (
    Facts,
    check_place,
    choose_interfaces,
    interface_records,
    listening_hosts,
)

if TYPE_CHECKING:
    from warpgate.net.datagram import DatagramSocket
    from warpgate.protocol.peer_address import InterfaceRecord

log = logging.getLogger("warpgate")


class ListeningPlace:
    """The interfaces and addresses of a node, as they are now.

    Args:
        ifs, ip, port: what the user gave to ``Node``.

    Attributes:
        nics: the interfaces in use.
        ifs: those that stand in the address, in its order.
        ip: the one address that the node is bound to, or None.
        port: the listening port; 0 before :meth:`open`.
        records: what the address says of ``ifs``.
        own_ips: every address of this machine.

    Raises:
        ConfigError: an argument is of the wrong kind.

    """

    def __init__(self, ifs: object, ip: object, port: object) -> None:
        self._wanted, self._wanted_ip, self._wanted_port = check_place(ifs, ip, port)
        self.nics: list[Interface] = []
        self.ifs: list[Interface] = []
        self.loopback: Interface
        self.ip: str | None = None
        self.port = 0
        self.records: list[InterfaceRecord] = []
        self.own_ips: set[str] = set()
        self.listeners = Listeners()
        self._real: set[str] = set()
        self._found: list[Interface] = []
        self._hosts: set[tuple[int, str]] = set()

    def choose(self) -> None:
        """Choose the interfaces.

        Raises:
            ConfigError: an interface or the address does not exist on this machine.

        """
        self.nics, self.ip = choose_interfaces(self._wanted, self._wanted_ip)
        self.loopback, self.own_ips = loopback_interface(), own_ips()
        given = [nic for nic in self._wanted or () if isinstance(nic, Interface)]
        self._real = {nic.name for nic in given if _exists(nic.name)}

    async def open(self, default_port: int, *, reuse_addr: bool) -> None:
        """Listen, on the next free port when the wanted one is taken, and describe the place.

        Raises:
            OSError: no address could be listened on.

        """
        hosts = listening_hosts(self.nics, self.ip)
        port = default_port if self._wanted_port is None else self._wanted_port
        self.port = await self.listeners.open(hosts, port, reuse_addr=reuse_addr)
        self.describe(lambda _nic, endpoint: endpoint)

    def describe(self, facts: Facts) -> bool:
        """Make the records anew; returns whether they, or the interfaces, are others than before.

        Args:
            facts: adds to each endpoint what is known of its NAT.

        """
        before = self.ifs, self.records
        self.ifs, self.records = interface_records(self.nics, self.ip, self.port, facts)
        return before != (self.ifs, self.records)

    async def refresh(self) -> bool:
        """Look at the machine's interfaces again, and listen on what there is now.

        Call :meth:`describe` afterwards. Sockets of addresses that stayed are not touched.

        Returns:
            Whether anything is different.

        """
        found = list_interfaces()
        if found == self._found and set(self.listeners.hosts) == self._hosts:
            return False
        self._found = found
        ips = own_ips()
        try:
            nics, _ = choose_interfaces(self._current(), self._wanted_ip)
        except ConfigError as error:
            # Its sockets work again when it comes back.
            log.warning("the network has changed, and this node stays as it was: %s", error)
            return False
        hosts = listening_hosts(nics, self.ip)
        self._hosts = set(hosts)
        await self.listeners.update(hosts)
        changed = (nics, ips) != (self.nics, self.own_ips)
        self.nics, self.own_ips = nics, ips
        return changed

    def _current(self) -> list[Interface | str] | None:
        """Return the wanted interfaces as they are now; those that are away now are left out."""
        if self._wanted is None:
            return None
        now = {nic.name: nic for nic in [*list_interfaces(), self.loopback]}
        chosen: list[Interface | str] = []
        for each in self._wanted:
            name = each if isinstance(each, str) else each.name
            if name in now:
                chosen.append(now[name])
            elif isinstance(each, Interface) and name not in self._real:
                chosen.append(each)  # one that the user made up is the user's word
        return chosen

    def socket(self, af: int, local: Interface | str | None) -> DatagramSocket | None:
        """See :meth:`warpgate.Node.listening_socket`."""
        if isinstance(local, str):
            return self.listeners.socket_at(af, local)
        for nic in self.nics if local is None else [local]:
            ip = self.ip if self.ip is not None else outward_ip(nic, af)
            found = None if ip is None else self.listeners.socket_at(af, ip)
            if found is not None:
                return found
        return None

    async def close(self) -> None:
        """Stop listening; accepted pipes stay."""
        await self.listeners.close()


def _exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def outward_ip(nic: Interface, af: int) -> str | None:
    """Return the address that packets to the internet should bear."""
    return (nic.global_ip(af) or nic.local_ip(af)) if af == IP6 else nic.local_ip(af)

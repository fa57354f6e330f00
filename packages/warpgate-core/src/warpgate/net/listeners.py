"""The listening sockets of a node: TCP and UDP on one port, on every address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from warpgate.net.addresses import Address, explained, system_address
from warpgate.net.constants import IP6
from warpgate.net.datagram import DatagramSocket
from warpgate.net.tcp import TcpPipe
from warpgate.protocol.ip import split_scope

log = logging.getLogger("warpgate.listeners")

Host = tuple[int, str]
BACKLOG = 1024
# asyncio accepts as many connections in one turn of the loop. With more, a burst of them would all
# be there before the first byte of any was read, and could only count as silent.
ACCEPTS_PER_TURN = 16
PORT_TRIES = 1000
SYSTEM_TRIES = 20
MAX_PARKED = 4  # vanished addresses whose sockets are kept: most come back, pipes may live on them
FIRST_PORT, LAST_PORT = 10_000, 29_999  # where the default ports are
_TAKEN = {errno.EADDRINUSE} | ({errno.EACCES} if sys.platform == "win32" else set())


class _PortTaken(OSError):
    """Another socket has the port, on one of the addresses at least."""


@dataclass(slots=True)
class _Open:
    """The sockets of one address."""

    server: asyncio.Server
    link: DatagramSocket


class Listeners:
    """Accepts connections and datagrams.

    Attributes:
        on_stream: called with each accepted pipe before any byte of it is read.
        on_datagram: called with ``(socket, data, addr)`` for sources without a pipe of their own.
        port: the port; 0 while closed.

    """

    def __init__(
        self,
        on_stream: Callable[[TcpPipe], None] | None = None,
        on_datagram: Callable[[DatagramSocket, bytes, Address], None] | None = None,
    ) -> None:
        self.on_stream = on_stream
        self.on_datagram = on_datagram
        self.port = 0
        self._open: dict[Host, _Open] = {}
        self._parked: dict[Host, _Open] = {}
        self._closed = False
        self._reuse_addr = False

    @property
    def hosts(self) -> list[Host]:
        """The ``(family, ip)`` that are listened on."""
        return list(self._open)

    @property
    def datagrams(self) -> list[DatagramSocket]:
        """The UDP sockets, one for each of :attr:`hosts`."""
        return [each.link for each in self._open.values()]

    def socket_at(self, af: int, ip: str) -> DatagramSocket | None:
        """Return the UDP socket of one address; a scope may be left out."""
        found = self._open.get((af, ip))
        if found is not None:
            return found.link
        for (family, other), each in self._open.items():
            if family == af and split_scope(other)[0] == ip:
                return each.link
        return None

    async def open(self, hosts: Sequence[Host], port: int, *, reuse_addr: bool = False) -> int:
        """Listen on one port of all the addresses, TCP and UDP.

        Args:
            hosts: ``(family, ip)`` each, a link-local ip with its scope.
            port: the wanted port; the next free one is taken when it is not free. 0 lets the
                system choose.
            reuse_addr: set SO_REUSEADDR on the TCP sockets (not on Windows, where it would share
                the port with anyone).

        Returns:
            The port.

        Raises:
            OSError: none of the addresses can be listened on.

        """
        self._reuse_addr = reuse_addr
        bound = _bind_all(list(dict.fromkeys(hosts)), port, reuse_addr)
        self._closed = False
        try:
            while bound:
                await self._listen(*bound.pop(0))
        except BaseException:
            for _, tcp, udp in bound:
                tcp.close()
                udp.close()
            await self.close()
            raise
        self.port = self.datagrams[0].local[1]
        return self.port

    async def update(self, hosts: Sequence[Host]) -> None:
        """Listen on other addresses from now on, on the same port.

        The sockets of an address that has vanished are kept for a while (``MAX_PARKED``): pipes
        that live on them go on when it comes back. An address that can't be listened on is left
        out, and tried again next time.
        """
        wanted = list(dict.fromkeys(hosts))
        for host in [host for host in self._open if host not in wanted]:
            self._parked[host] = self._open.pop(host)
        for host in wanted:
            if host in self._open or self._closed:
                continue
            if host in self._parked:
                self._open[host] = self._parked.pop(host)
                continue
            try:
                tcp, udp = _bind_host(host, self.port, self._reuse_addr)
            except OSError as error:
                log.warning("not listening on %s port %d: %s", host[1], self.port, error)
                continue
            await self._listen(host, tcp, udp)
        surplus = len(self._parked) - MAX_PARKED
        if surplus > 0:
            await self._stop([self._parked.pop(host) for host in list(self._parked)[:surplus]])

    async def close(self) -> None:
        """Stop listening; pipes that were accepted stay open. Idempotent."""
        self._closed = True
        ends = [*self._open.values(), *self._parked.values()]
        self._open.clear()
        self._parked.clear()
        self.port = 0
        await self._stop(ends)

    async def _listen(self, host: Host, tcp: socket.socket, udp: socket.socket) -> None:
        """Take two bound sockets; they are closed when this raises."""
        loop = asyncio.get_running_loop()
        server: asyncio.Server | None = None
        try:
            server = await loop.create_server(
                lambda: TcpPipe(self._accepted), sock=tcp, backlog=ACCEPTS_PER_TURN
            )
            tcp.listen(BACKLOG)  # what waits in the system may be more
            link = await DatagramSocket.open(udp)
        except BaseException:
            udp.close()
            if server is None:
                tcp.close()
            else:
                server.close()
            raise
        link.default = partial(self._received, link)
        self._open[host] = _Open(server, link)
        if self._closed:  # meanwhile
            await self._stop([self._open.pop(host)])

    async def _stop(self, ends: Sequence[_Open]) -> None:
        for each in ends:
            each.link.close()
        servers = [each.server for each in ends]
        try:
            await _stop_accepting(servers)
        finally:
            for server in servers:
                server.close()

    def _accepted(self, pipe: TcpPipe) -> None:
        pipe.inbound = True
        if self._closed or self.on_stream is None:
            pipe.abort()  # it came in the moment of closing
        else:
            self.on_stream(pipe)

    def _received(self, link: DatagramSocket, data: bytes, addr: Address) -> None:
        if self.on_datagram is not None:
            self.on_datagram(link, data, addr)


async def _stop_accepting(servers: Sequence[asyncio.Server]) -> None:
    """Let connections that were accepted in this turn of the loop get their pipes.

    Closing a server before that makes asyncio forget the sockets, open.
    """
    if not servers:
        return
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows' proactor has no such window
        for server in servers:
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
    await asyncio.sleep(0)


Bound = list[tuple[Host, socket.socket, socket.socket]]


def candidate_ports(port: int) -> Iterator[int]:
    """Yield the ports to try: the wanted one, those after it, then whatever the system gives."""
    if port:
        width = LAST_PORT - FIRST_PORT + 1
        for step in range(PORT_TRIES):
            following = port + step
            if following > 65535 or port <= LAST_PORT < following:
                following = FIRST_PORT + (following - FIRST_PORT) % width
            yield following
    for _ in range(SYSTEM_TRIES):
        yield 0


def _bind_all(hosts: list[Host], port: int, reuse_addr: bool) -> Bound:
    problem: OSError = OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    for candidate in candidate_ports(port):
        try:
            return _bind_port(hosts, candidate, reuse_addr)
        except _PortTaken as error:
            problem = error
    raise explained(problem, f"listen on port {port}")


def _bind_port(hosts: list[Host], port: int, reuse_addr: bool) -> Bound:
    """Bind one port on all addresses; addresses that don't work are left out."""
    bound: Bound = []
    problem = OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    try:
        for host in hosts:
            try:
                pair = _bind_host(host, port, reuse_addr)
            except _PortTaken:
                raise
            except OSError as error:
                problem = explained(error, f"listen on {host[1]} port {port}")
                log.warning("not listening on %s: %s", host[1], error)
                continue
            bound.append((host, *pair))
            port = port or pair[0].getsockname()[1]
        if not bound:
            raise problem
    except BaseException:
        for _, tcp, udp in bound:
            tcp.close()
            udp.close()
        raise
    return bound


def _bind_host(host: Host, port: int, reuse_addr: bool) -> tuple[socket.socket, socket.socket]:
    tcp = _bind_socket(host, socket.SOCK_STREAM, port, reuse_addr)
    try:
        return tcp, _bind_socket(host, socket.SOCK_DGRAM, tcp.getsockname()[1], False)
    except BaseException:
        tcp.close()
        raise


def _bind_socket(host: Host, kind: int, port: int, reuse_addr: bool) -> socket.socket:
    af, ip = host
    sock = socket.socket(af, kind)
    try:
        sock.setblocking(False)
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif reuse_addr:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if af == IP6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(system_address(af, (ip, port)))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)  # only now is it known that nobody else listens
    except OSError as error:
        sock.close()
        if error.errno in _TAKEN:
            raise _PortTaken(error.errno, f"port {port} of {ip} is taken") from error
        raise
    except BaseException:
        sock.close()
        raise
    return sock

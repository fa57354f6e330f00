"""A way out: a family, an interface and the local address to use."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from typing import TYPE_CHECKING, Final

from warpgate.net.addresses import (
    Address,
    SystemAddress,
    explained,
    is_ip,
    system_address,
    user_address,
)
from warpgate.net.constants import IP4, IP6, TCP, af_name, transport_name
from warpgate.net.resolve import look_up
from warpgate.protocol.ip import is_link_local, is_loopback, split_scope

if TYPE_CHECKING:
    from warpgate.net.nic import Interface
    from warpgate.net.pipe import Pipe
    from warpgate.net.udp import UdpPipe

# Linux: bind() leaves the choice of the port to connect(), so that ports can be shared by
# connections to different peers (ip(7)). Python has no name for it before 3.12.
IP_BIND_ADDRESS_NO_PORT = 24
RESOLVE_S: Final = 5.0


class Route:
    """A route by an interface; connects pipes. It holds no socket itself.

    Attributes:
        nic: the interface.
        af: the family, ``IP4`` or ``IP6``.
        ip: the local address to use; None picks one that suits the destination.
        port: the local port; 0 lets the system pick one.
        bound: whether connections leave from this interface's address; otherwise the system
            chooses the interface.

    """

    def __init__(
        self, nic: Interface, af: int, ip: str | None = None, port: int = 0, bound: bool = False
    ) -> None:
        self.nic = nic
        self.af = int(af)
        self.ip = ip
        self.port = port
        self.bound = bound

    def __repr__(self) -> str:
        local = f"{self.ip or 'any address'} port {self.port or 'any'}" if self.bound else "unbound"
        return f"<Route {af_name(self.af)} by {self.nic.name}, {local}>"

    async def bind(self, port: int = 0, ip: str | None = None) -> Route:
        """Return a route that is tied to a local address of the interface.

        No socket is made yet: a wrong address or a port that is taken shows when the route is used.

        Args:
            port: the local port; 0 lets the system pick one on use.
            ip: the local address; None keeps this route's, or picks one that suits the destination.

        Raises:
            ValueError: the address is not of this route's family, or the port is out of range.

        """
        ip = ip if ip is not None else self.ip
        if ip is not None or port:
            system_address(self.af, (ip or ("::" if self.af == IP6 else "0.0.0.0"), port))
        return Route(self.nic, self.af, ip=ip, port=port, bound=True)

    def source_for(self, dest_ip: str | None) -> str | None:
        """Return the local address for a destination; None leaves the choice to the system.

        Args:
            dest_ip: an IP address; None when there is no destination yet.

        Raises:
            OSError: the interface has no address of the family.

        """
        if not self.bound:
            return None
        if self.ip is not None:
            return self._scoped(self.ip)
        own = [address for address in self.nic.addresses if address.af == self.af]
        if dest_ip is not None and is_loopback(dest_ip):
            inside = [address.ip for address in own if address.scope == "loopback"]
            return inside[0] if inside else ("::1" if self.af == IP6 else "127.0.0.1")
        if not own:
            raise OSError(errno.EADDRNOTAVAIL, f"{self.nic.name} has no {af_name(self.af)} address")
        if dest_ip is None:
            best = self.nic.global_ip(self.af) if self.af == IP6 else None
            return best or self.nic.local_ip(self.af)
        if is_link_local(dest_ip):
            scopes = ["link", "private", "global", "loopback"]
        else:
            same = [address.ip for address in own if address.holds(dest_ip)]
            if same:
                return same[0]
            if self.af == IP4:
                return self.nic.local_ip(self.af)
            private = dest_ip.lower().startswith(("fc", "fd"))  # RFC 4193
            scopes = ["private", "global"] if private else ["global", "private"]
            scopes += ["link", "loopback"]
        ranked = sorted(own, key=lambda a: (scopes.index(a.scope), a.deprecated, a.temporary))
        return ranked[0].ip

    async def connect(
        self, dest: Address, transport: object = TCP, timeout: float | None = None
    ) -> Pipe:
        """Connect to a peer.

        Args:
            dest: ``(ip, port)``; a link-local IPv6 address without a scope gets this interface's.
            transport: ``TCP`` or ``UDP`` (or the names); UDP is the same as :meth:`datagram`.
            timeout: seconds; None leaves it to the system.

        Raises:
            OSError: it did not work; the class (``ConnectionRefusedError``, ``TimeoutError``, …)
                says how, the text where to.
            ValueError: ``dest`` or ``transport`` can't be used.

        """
        if transport_name(transport) == "udp":
            return await self.datagram(dest)
        loop = asyncio.get_running_loop()
        doing = f"connect to {dest[0]} port {dest[1]}"
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(timeout):
                target = await self._resolve(dest, socket.SOCK_STREAM)
                sock = self._socket(socket.SOCK_STREAM, target)
                await loop.sock_connect(sock, target)
            if sock.getsockname() == sock.getpeername():
                # The system picked the very port that was dialled: TCP connects to itself.
                raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens there")
            return await _adopt(sock)
        except TimeoutError as error:
            _close(sock)
            after = "" if timeout is None else f" after {timeout:g} s"
            raise TimeoutError(errno.ETIMEDOUT, f"{doing}: timed out{after}") from error
        except OSError as error:
            _close(sock)
            raise explained(error, doing) from error
        except BaseException:
            _close(sock)
            raise

    async def datagram(self, dest: Address | None = None) -> UdpPipe:
        """Open a UDP socket and return the pipe on it.

        Args:
            dest: the ``(ip, port)`` that ``send`` without a destination goes to.

        Raises:
            OSError: the local address can't be used.
            ValueError: ``dest`` is no address of this route's family.

        """
        from warpgate.net.udp import UdpPipe

        sock: socket.socket | None = None
        try:
            target = None if dest is None else await self._resolve(dest, socket.SOCK_DGRAM)
            sock = self._socket(socket.SOCK_DGRAM, target)
            return await UdpPipe.open(sock, None if target is None else user_address(target))
        except OSError as error:
            _close(sock)
            raise explained(error, "open a UDP socket") from error
        except BaseException:
            _close(sock)
            raise

    def _socket(self, kind: int, target: SystemAddress | None) -> socket.socket:
        """Return a non-blocking socket, bound as this route says."""
        source = self.source_for(None if target is None else target[0])
        sock = socket.socket(self.af, kind)
        try:
            sock.setblocking(False)
            if self.af == IP6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            local = source if source is not None else ("::" if self.af == IP6 else "0.0.0.0")
            if kind == socket.SOCK_STREAM:
                if source is None and not self.port:
                    return sock  # connect() binds it
                if self.port:
                    if sys.platform != "win32":  # there it would share the port with anyone
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                elif sys.platform == "linux":
                    sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            try:
                sock.bind(system_address(self.af, (local, self.port)))
            except OSError as error:
                raise explained(error, f"bind {local} port {self.port}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def _resolve(self, dest: Address, kind: int) -> SystemAddress:
        ip, port = dest[0], dest[1]
        if not is_ip(ip):
            found = await look_up(ip, port, family=self.af, kind=kind, timeout_s=RESOLVE_S)
            ip = user_address(found[0][4])[0]
        return system_address(self.af, (self._scoped(ip), port))

    def _scoped(self, ip: str) -> str:
        """Give a link-local IPv6 address this interface's scope when it has none."""
        if self.af == IP6 and is_link_local(ip) and split_scope(ip)[1] is None:
            return f"{ip}%{self.nic.index or self.nic.name}"
        return ip


async def _adopt(sock: socket.socket) -> Pipe:
    from warpgate.net.tcp import TcpPipe

    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = asyncio.get_running_loop()
    _, pipe = await loop.create_connection(TcpPipe, sock=sock)
    return pipe


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()

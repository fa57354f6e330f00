"""Many UDP sockets that each write to one place, and one ear for them all.

A reader of the loop for each would cost twice the processor time: an inner selector has them, and
the loop has that selector's descriptor. Loops that can't watch descriptors get datagram endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import selectors
import socket
from collections.abc import Callable
from typing import Any, Final

from warpgate.net.addresses import Address, SystemAddress, system_address, user_address
from warpgate.net.constants import IP6
from warpgate.net.datagram import DatagramSocket

MAX_DATAGRAM: Final = 2048  # probes and hellos are smaller
MAX_WAKE: Final = 64  # datagrams read before everyone else has a turn
_NO_MORE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Heard = Callable[[bytes, Address, Any], None]


class Fan:
    """The many sockets of a spray.

    Attributes:
        opened: how many sockets there have been.
        failed: packets that the system did not send.
        short: the error that kept further sockets from being opened; None.

    """

    def __init__(self, af: int, ip: str, target: Address, heard: Heard) -> None:
        """Prepare; no socket is opened yet.

        Args:
            af: the family.
            ip: the local address to bind.
            target: where they all write to.
            heard: called with ``(data, addr, member)`` for what comes in; :meth:`answer` and
                :meth:`take` want the ``member``.

        """
        self.opened = 0
        self.failed = 0
        self.short: OSError | None = None
        self._af = af
        self._local = system_address(af, (ip, 0))
        self._target = system_address(af, target)
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._members: dict[Any, None] = {}
        self._selector: selectors.BaseSelector | None = None
        self._watched = -1
        self.closed = False

    @property
    def members(self) -> list[Any]:
        """The sockets, in the order in which they were opened."""
        return list(self._members)

    async def send(self, data: bytes) -> bool:
        """Open one more socket and write from it; False when no more can be opened."""
        if self.closed or self.short is not None:
            return False
        try:
            sock = self._open()
            member = await self._listen(sock)
        except OSError as error:
            if error.errno in _NO_MORE:
                self.short = error
                return False
            self.failed += 1
            return True
        self.opened += 1
        self._members[member] = None
        self._send(member, data, self._target)
        return True

    def again(self, member: Any, data: bytes) -> None:
        """Write once more from one of :attr:`members`, unless it has gone meanwhile."""
        if member in self._members:
            self._send(member, data, self._target)

    def answer(self, member: Any, data: bytes, addr: Address) -> None:
        """Write to where something came from, by the socket to which it came."""
        self._send(member, data, system_address(self._af, addr))

    async def take(self, member: Any) -> DatagramSocket:
        """Give one socket away; it is the caller's to close.

        Raises:
            OSError: it is gone.

        """
        if member not in self._members:
            raise OSError(errno.EBADF, "this socket was closed or given away")
        del self._members[member]
        if isinstance(member, DatagramSocket):
            member.default = None
            return member
        if self._selector is not None:
            self._selector.unregister(member)
        try:
            return await DatagramSocket.open(member)
        except BaseException:
            member.close()
            raise

    def close(self) -> None:
        """Close all sockets that were not given away; idempotent."""
        self.closed = True
        if self._selector is not None:
            self._loop.remove_reader(self._watched)
            self._selector.close()
            self._selector = None
        members, self._members = self._members, {}
        for member in members:
            member.close()

    def _open(self) -> socket.socket:
        sock = socket.socket(self._af, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if self._af == IP6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(self._local)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _listen(self, sock: socket.socket) -> Any:
        if self._watched < 0 and self._selector is None:
            self._begin()
        if self._selector is not None:
            try:
                self._selector.register(sock, selectors.EVENT_READ)
            except BaseException:
                sock.close()
                raise
            return sock
        try:
            link = await DatagramSocket.open(sock)
        except BaseException:
            sock.close()
            raise
        link.default = lambda data, addr: self._heard(data, addr, link)
        return link

    def _begin(self) -> None:
        """Have the loop watch a selector's own descriptor, where there are such things."""
        self._watched = 0
        selector = selectors.DefaultSelector()
        fileno = getattr(selector, "fileno", None)
        try:
            if fileno is not None:
                self._loop.add_reader(fileno(), self._readable)
                self._selector, self._watched = selector, fileno()
                return
        except NotImplementedError:
            pass
        selector.close()

    def _readable(self) -> None:
        if self._selector is None:
            return
        left = MAX_WAKE
        for key, _ in self._selector.select(0):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            while left and sock in self._members:
                left -= 1
                try:
                    data, address = sock.recvfrom(MAX_DATAGRAM)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    continue
                self._heard(data, user_address(address), sock)
            if not left or self._selector is None:
                return

    def _send(self, member: Any, data: bytes, target: SystemAddress) -> None:
        if isinstance(member, DatagramSocket):
            with contextlib.suppress(ValueError):
                member.send_to(data, user_address(target))
            return
        try:
            member.sendto(data, target)
        except OSError:
            self.failed += 1

"""One UDP socket, its reading loop, and who gets what comes in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Self, cast

from warpgate.net.addresses import Address, SystemAddress, system_address, user_address

Receiver = Callable[[bytes, Address], None]

BURST = 64  # datagrams read at one wake-up; then everyone else has a turn
MAX_DATAGRAM = 65535
RECEIVE_BUFFER = 1 << 20  # bytes asked of the system; it may give less
KNOWN_ADDRESSES = 4096  # destinations whose system form is remembered


class DatagramSocket:
    """A UDP socket that several pipes and protocols can share.

    What comes from an address with a route goes to that route's receiver, the rest to
    ``default``. ICMP errors, which the system reports on the next call, are counted and harmless.

    Attributes:
        af: the family.
        local: the ``(ip, port)`` it is bound to.
        default: receives what comes from addresses without a route; None drops it.
        unclaimed: datagrams that nobody wanted.
        errors: errors that the system reported about earlier datagrams.
        closed: whether it is closed.
        meter: asked before every datagram, with its address and size; what it refuses counts as lost
            on the way, in ``metered``.

    """

    def __init__(self, sock: socket.socket) -> None:
        """Take a bound socket; :meth:`open` makes it read."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.af = int(sock.family)
        self.local: Address = user_address(sock.getsockname())
        self.default: Receiver | None = None
        self.unclaimed = 0
        self.errors = 0
        self.closed = False
        self.meter: Callable[[Address, int], bool] | None = None
        self.metered = 0
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._routes: dict[Address, Receiver] = {}
        self._known: dict[Address, SystemAddress] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._on_close: list[Callable[[], None]] = []
        self._endpoint: _Endpoint | None = None

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Return a reading socket of this class that owns the bound socket.

        Raises:
            OSError: the socket can't be used.

        """
        link = cls(sock)
        try:
            link._loop.add_reader(sock.fileno(), link._readable)
        except NotImplementedError:  # the proactor loop of Windows
            try:
                _, link._endpoint = await link._loop.create_datagram_endpoint(
                    lambda: _Endpoint(link), sock=sock
                )
            except BaseException:
                link.close()
                raise
        return link

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<DatagramSocket {self.local[0]} port {self.local[1]}, {state}>"

    def route(self, addr: Address, receiver: Receiver) -> None:
        """Give what comes from ``addr`` to ``receiver`` alone."""
        self._routes[addr] = receiver

    def unroute(self, addr: Address) -> None:
        """Give what comes from ``addr`` to the default receiver again."""
        self._routes.pop(addr, None)

    def routed(self, addr: Address) -> bool:
        """Return whether ``addr`` has a receiver of its own."""
        return addr in self._routes

    def send_to(self, data: bytes, addr: Address) -> bool:
        """Send a datagram without waiting.

        Returns:
            False when the system has no room for it, or this is closed; True when it was taken.
            An error that the system reports counts as a datagram lost on the way.

        Raises:
            ValueError: ``addr`` is no address of this family.

        """
        if self.closed:
            return False
        if self.meter is not None and not self.meter(addr, len(data)):
            self.metered += 1
            return True
        target = self._known.get(addr)
        if target is None:
            target = system_address(self.af, addr)
            if len(self._known) >= KNOWN_ADDRESSES:
                self._known.clear()
            self._known[addr] = target
        if self._endpoint is not None:
            return self._endpoint.send(data, target)
        try:
            self._sock.sendto(data, target)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.errors += 1
        return True

    async def writable(self) -> None:
        """Wait until the system has room again, or this is closed."""
        if self.closed:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        if not self._waiters and self._endpoint is None:
            self._loop.add_writer(self._sock.fileno(), self.wake)
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if not self._waiters and self._endpoint is None and not self.closed:
                self._loop.remove_writer(self._sock.fileno())

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when this is closed."""
        self._on_close.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back an :meth:`on_close`."""
        with contextlib.suppress(ValueError):
            self._on_close.remove(callback)

    def close(self) -> None:
        """Close the socket; what it was given to send has left already. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._endpoint is not None:
            self._endpoint.close()
        elif self._sock.fileno() >= 0:
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(self._sock.fileno())
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
        self.wake()
        self.default = None
        self._routes.clear()
        callbacks, self._on_close = self._on_close, []
        for callback in callbacks:
            callback()

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                data, address = self._sock.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.errors += 1
                continue
            self.received(data, address)
            if self.closed:
                return

    def received(self, data: bytes, address: Any) -> None:
        """Hand on a datagram, whose sender is in the system's form."""
        addr = user_address(address)
        receiver = self._routes.get(addr, self.default)
        if receiver is None:
            self.unclaimed += 1
        else:
            receiver(data, addr)

    def wake(self) -> None:
        """Let those who wait for room try again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Endpoint(asyncio.DatagramProtocol):
    """The way in and out on loops that have no ``add_reader``."""

    def __init__(self, link: DatagramSocket) -> None:
        self._link = link
        self._transport: asyncio.DatagramTransport | None = None
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self._link.closed:
            self._link.received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._link.errors += 1

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._link.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._link.close()

    def send(self, data: bytes, target: SystemAddress) -> bool:
        if self._full or self._transport is None:
            return False
        self._transport.sendto(data, target)
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

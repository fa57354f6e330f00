"""``UdpPipe``: a pipe of datagrams, unordered and lossy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from warpgate.errors import PipeClosed
from warpgate.net.addresses import Address
from warpgate.net.datagram import BURST, DatagramSocket, Receiver
from warpgate.net.pipe import NO_ADDRESS, Pipe, as_bytes
from warpgate.protocol.ip import is_loopback

MAX_PAYLOAD = 65507  # bytes of a UDP datagram over IPv4: RFC 768, RFC 791


class DatagramLink(Protocol):
    """What carries a UDP pipe's datagrams: a :class:`DatagramSocket`, or a relay's channel."""

    default: Receiver | None

    @property
    def local(self) -> Address:
        """The ``(ip, port)`` of this end."""

    def send_to(self, data: bytes, addr: Address) -> bool:
        """Send without waiting; False when there is no room."""

    async def writable(self) -> None:
        """Wait for room, or for the end."""

    def route(self, addr: Address, receiver: Receiver) -> None:
        """Give what comes from ``addr`` to ``receiver``."""

    def unroute(self, addr: Address) -> None:
        """End :meth:`route`."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back when the link is closed."""

    def forget(self, callback: Callable[[], None]) -> None:
        """End :meth:`on_close`."""

    def close(self) -> None:
        """Close the link."""


class UdpPipe(Pipe):
    """A pipe over UDP: datagrams, unordered and lossy; each arrives whole or not at all.

    Attributes:
        only_remote: drop what does not come from ``remote`` (and count it in ``unmatched``).
        last_heard: when something came last, by the loop's clock.
        hello_repeats_s: pauses before the first repeats of the hello's M1, in seconds; empty: the usual.

    """

    transport: ClassVar[str] = "udp"
    reliable: ClassVar[bool] = False
    datagram: ClassVar[bool] = True

    def __init__(
        self, link: DatagramLink, remote: Address | None = None, *, owner: bool = True
    ) -> None:
        """Put a pipe on a link.

        Args:
            link: what carries the datagrams.
            remote: where they go by default.
            owner: the pipe gets everything that comes and closes the link with itself; otherwise
                it gets what comes from ``remote`` and leaves the link open.

        """
        super().__init__()
        self.max_message: int = MAX_PAYLOAD
        self.local = link.local
        self.only_remote = False
        self.hello_repeats_s: tuple[float, ...] = ()
        self.last_heard = asyncio.get_running_loop().time()
        self._link = link
        self._owner = owner
        self._sent = 0  # since everyone else had a turn
        self._remote = remote or NO_ADDRESS
        self.over_loopback = remote is not None and is_loopback(remote[0])
        if owner:
            link.default = self._incoming
        elif remote is None:
            raise ValueError("a pipe on a shared socket needs a remote address")
        else:
            link.route(remote, self._incoming)
        link.on_close(self._link_closed)
        self._settle_ready()

    @classmethod
    async def open(cls, sock: socket.socket, remote: Address | None = None) -> UdpPipe:
        """Return a pipe that owns a bound socket.

        Raises:
            OSError: the socket can't be used.

        """
        return cls(await DatagramSocket.open(sock), remote)

    @property
    def metered(self) -> bool:
        """Whether the link itself bounds what is sent."""
        return getattr(self._link, "meter", None) is not None

    @property
    def remote(self) -> Address:
        """The other end's ``(ip, port)``; ``("", 0)`` while there is none."""
        return self._remote

    @remote.setter
    def remote(self, addr: Address) -> None:
        if not self._owner and not self.closed:
            self._link.unroute(self._remote)
            self._link.route(addr, self._incoming)
        self._remote = addr
        self.over_loopback = is_loopback(addr[0])

    async def send(self, data: Any, dest_tup: Address | None = None) -> int:  # noqa: D102
        payload = as_bytes(data)
        if len(payload) > self.max_message:
            raise ValueError(
                f"{len(payload)} bytes are more than this pipe's max_message, "
                f"{self.max_message} bytes to a datagram"
            )
        dest = self._remote if dest_tup is None else (dest_tup[0], dest_tup[1])
        if dest == NO_ADDRESS:
            raise ValueError("this UDP pipe has no remote address; give send() the (ip, port)")
        if not self._ready:
            await self._writable()
        wire = payload if self._filter is None else self._filter.encode(payload)
        while not self._link.send_to(wire, dest):
            await self._link.writable()
            if self.closed:
                raise PipeClosed from self._cause
        self._sent += 1
        if self._sent >= BURST:
            self._sent = 0
            await asyncio.sleep(0)  # the system rarely says no: give the readers a turn
        return len(payload)

    def write_raw(self, data: bytes, addr: Address | None = None) -> None:  # noqa: D102
        dest = self._remote if addr is None else addr
        if not self._closing and dest != NO_ADDRESS:
            self._link.send_to(data, dest)

    def _incoming(self, data: bytes, addr: Address) -> None:
        self.last_heard = asyncio.get_running_loop().time()
        if self.only_remote and self._receiver is None and addr != self._remote:
            self.unmatched += 1
            return
        super()._incoming(data, addr)

    def _drained(self) -> None:
        """Close after the peer's end, once the handlers have had what it sent."""
        if self._dispatcher is None and not self._lost:
            self._closing = True
            self._leave()
            self._gone()

    def _begin_close(self) -> None:
        if not self._lost:
            self._say_farewell()
            self._stop()
            self._leave()
            self._gone()

    def _abort_transport(self) -> None:
        if not self._lost:
            self._say_farewell()  # a stream's end would show, too
            self._leave()
            self._gone()

    def _say_farewell(self) -> None:
        farewell = b"" if self._filter is None else self._filter.farewell()
        if farewell and self._remote != NO_ADDRESS:
            self._link.send_to(farewell, self._remote)

    def _leave(self) -> None:
        self._link.forget(self._link_closed)
        if self._owner:
            self._link.close()
        else:
            self._link.unroute(self._remote)

    def _link_closed(self) -> None:
        self._closing = True
        self._gone()

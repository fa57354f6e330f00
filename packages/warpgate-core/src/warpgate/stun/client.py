"""Asks STUN servers for mapped addresses, from the very socket that will be used, over UDP or TCP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

from ..events import Counters
from ..net.addresses import canonical_ip, reason, system_address, user_address
from ..net.constants import IP6
from ..net.udp import DatagramLink
from .attributes import Address
from .message import HEADER_BYTES, MAX_MESSAGE_BYTES
from .transaction import GRACE_S, RTO_S, Transaction, Volley

MAX_SERVERS: Final = 8  # asked by one call
LINGER_S: Final = 5.0  # late answers are kept from the socket's other users for so long
TIMEOUT_S: Final = 2.0


class _Demultiplexer:
    """Takes answers out of what comes in at a socket, for all exchanges that are on it."""

    def __init__(self, link: DatagramLink) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._before = link.default
        self._exchanges: list[Exchange] = []
        self._routed: set[Address] = set()
        link.default = self.by_default

    @classmethod
    def on(cls, link: DatagramLink) -> _Demultiplexer:
        """Return the one that is on a socket, or a new one."""
        owner = getattr(link.default, "__self__", None)
        return owner if isinstance(owner, cls) else cls(link)

    def add(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)

    def route(self, server: Address) -> None:
        """Make sure of a server's answers, even when the socket gets another default meanwhile."""
        routed = getattr(self._link, "routed", None)
        # A pipe to that very address keeps its route.
        if server not in self._routed and (routed is None or not routed(server)):
            self._routed.add(server)
            self._link.route(server, self.by_route)

    def remove(self, exchange: Exchange) -> None:
        self._exchanges.remove(exchange)
        if not self._exchanges:
            for server in self._routed:
                self._link.unroute(server)
            self._routed.clear()
            if self._link.default == self.by_default:
                self._link.default = self._before

    def by_default(self, data: bytes, addr: Address) -> None:
        if not self._claim(data, addr) and self._before is not None:
            self._before(data, addr)

    def by_route(self, data: bytes, addr: Address) -> None:
        if not self._claim(data, addr) and self._link.default is not None:
            self._link.default(data, addr)

    def _claim(self, data: bytes, addr: Address) -> bool:
        now = self._loop.time()
        return any(exchange.received(data, addr, now) for exchange in self._exchanges)


class Exchange:
    """A volley on a socket that others use as well; a context manager.

    Answers with the id of one of its requests are taken out; all else reaches whom it would have
    reached, whatever it looks like.

    Args:
        link: the socket.
        volley: the volley; requests may be added while it runs.

    """

    def __init__(self, link: DatagramLink, volley: Volley) -> None:
        self.link = link
        self.volley = volley
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._left = False
        self._timer: asyncio.TimerHandle | None = None
        self._demultiplexer = _Demultiplexer.on(link)
        self._demultiplexer.add(self)
        link.on_close(self._closed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def ask(self, server: Address, change: int = 0) -> Transaction:
        """Add a request; it leaves at the next :meth:`flush` or :meth:`until`."""
        made = self.volley.ask(server, self._loop.time(), change)
        self._demultiplexer.route(server)
        return made

    def flush(self, now: float | None = None) -> None:
        """Send what is due."""
        for data, server in self.volley.datagrams_to_send(
            self._loop.time() if now is None else now
        ):
            self.link.send_to(data, server)

    async def until(self, satisfied: Callable[[], bool], deadline: float) -> None:
        """Send and receive until something is satisfied, all is over, or it is too late.

        Args:
            satisfied: asked after every answer and every timer.
            deadline: by the loop's clock.

        """
        while not self._left:
            now = self._loop.time()
            self.flush(now)
            if satisfied() or now >= deadline:
                return
            timer = self.volley.timer()
            if timer is None:
                return
            wake = min(timer, deadline)
            finish = self.volley.finish_at()
            if finish > now:
                wake = min(wake, finish)
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(wake):
                    await self._news.wait()

    def received(self, data: bytes, addr: Address, now: float) -> bool:
        """Offer a datagram; True when it was this volley's."""
        if not self.volley.receive(data, addr, now):
            return False
        self._news.set()
        return True

    def leave(self) -> None:
        """Stop asking; late answers are swallowed for a while yet. Idempotent."""
        if not self._left:
            self._left = True
            self._news.set()
            self._timer = self._loop.call_later(LINGER_S, self._over)

    def _over(self) -> None:
        self.link.forget(self._closed)
        self._demultiplexer.remove(self)

    def _closed(self) -> None:
        self._left = True
        self._news.set()
        if self._timer is not None:
            self._timer.cancel()


async def mapped_addresses(
    link: DatagramLink,
    servers: Iterable[Address],
    *,
    rto_s: float = RTO_S,
    grace_s: float = GRACE_S,
    timeout_s: float = TIMEOUT_S,
    counters: Counters | None = None,
) -> list[Transaction]:
    """Ask STUN servers how they see a UDP socket, which goes on with whatever it does.

    Args:
        link: the socket; a :class:`~warpgate.net.datagram.DatagramSocket`.
        servers: ``(ip, port)`` of the socket's family; the first ``MAX_SERVERS`` are asked, at once.
        rto_s: the first request is repeated after so many seconds.
        grace_s: the first answer decides; others are waited for so many seconds more.
        timeout_s: for all of it.
        counters: counts what was ignored, as ``stun-…``.

    Returns:
        One transaction per server; those with ``mapped`` first, the quickest first. An ``error``
        says why the others have none.

    Raises:
        ValueError: a server is no address of the socket's family.

    """
    loop = asyncio.get_running_loop()
    volley = Volley(entropy=os.urandom, rto_s=rto_s, grace_s=grace_s, counters=counters)
    with Exchange(link, volley) as exchange:
        for server in _distinct(servers):
            exchange.ask(server)
        deadline = loop.time() + timeout_s
        await exchange.until(lambda: volley.finished(loop.time()), deadline)
    return _sorted(volley)


async def tcp_mapped_addresses(
    local: Address,
    servers: Iterable[Address],
    *,
    grace_s: float = GRACE_S,
    timeout_s: float = TIMEOUT_S,
    counters: Counters | None = None,
    keep: list[socket.socket] | None = None,
) -> list[Transaction]:
    """Ask STUN servers over TCP how they see a local port, from which others may connect as well.

    Args:
        local: the local ``(ip, port)``; hold the port by a socket of :func:`shared_tcp_socket`.
        servers: as for :func:`mapped_addresses`.
        grace_s: as there.
        timeout_s: as there.
        counters: as there.
        keep: receives the connections, which are otherwise aborted: a NAT may drop the mapping with
            its last connection. The caller closes them.

    Returns:
        As for :func:`mapped_addresses`.

    Raises:
        ValueError: an address is none.

    """
    loop = asyncio.get_running_loop()
    volley = Volley(
        entropy=os.urandom, rto_s=timeout_s, last_wait=1, grace_s=grace_s, reliable=True,
        counters=counters,
    )  # fmt: skip
    asked = [(server, volley.ask(server, loop.time())) for server in _distinct(servers)]
    requests = dict(zip([id(each) for _, each in asked], volley.datagrams_to_send(loop.time()),
                        strict=True))  # fmt: skip
    tasks = [
        asyncio.ensure_future(_tcp(local, volley, each, requests[id(each)][0], keep))
        for _, each in asked
    ]
    pending: set[asyncio.Future[None]] = set(tasks)
    deadline = loop.time() + timeout_s
    try:
        while pending and not volley.finished(now := loop.time()) and now < deadline:
            wait = min(volley.finish_at(), deadline) - now
            _, pending = await asyncio.wait(
                pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _sorted(volley)


def shared_tcp_socket(af: int, local: Address) -> socket.socket:
    """Return a non-blocking TCP socket whose bound port others of its kind can use too.

    Args:
        af: ``IP4`` or ``IP6``.
        local: the ``(ip, port)`` to bind; port 0 picks one.

    Raises:
        OSError: it can't be bound.
        ValueError: the address is none of the family.

    """
    sock = socket.socket(af, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform != "win32" and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # BSD wants this one
        if af == IP6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(system_address(af, local))
    except BaseException:
        sock.close()
        raise
    return sock


async def _tcp(
    local: Address,
    volley: Volley,
    it: Transaction,
    request: bytes,
    keep: list[socket.socket] | None,
) -> None:
    loop = asyncio.get_running_loop()
    af = socket.AF_INET6 if ":" in it.server[0] else socket.AF_INET
    sock: socket.socket | None = None
    try:
        sock = shared_tcp_socket(af, local)
        it.started = loop.time()
        await loop.sock_connect(sock, system_address(af, it.server))
        await loop.sock_sendall(sock, request)
        head = await _exactly(sock, HEADER_BYTES)
        length = int.from_bytes(head[2:4], "big")
        if length > MAX_MESSAGE_BYTES:
            volley.counters.count("stun-oversized")
            it.error = "an oversized answer"
        else:
            source = user_address(sock.getpeername())
            if not volley.receive(head + await _exactly(sock, length), source, loop.time()):
                volley.counters.count("stun-wrong-transaction")
                it.error = "an answer to something else"
    except OSError as error:
        it.error = reason(error)
    finally:
        it.over = True
        if sock is not None:
            if keep is not None and it.mapped is not None:
                keep.append(sock)
            else:
                with contextlib.suppress(OSError):  # a reset leaves no TIME_WAIT on the port
                    linger = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise ConnectionResetError("the server closed the connection")
        data += more
    return data


def _distinct(servers: Iterable[Address]) -> Sequence[Address]:
    named = [(canonical_ip(ip), port) for ip, port in servers]
    return list(dict.fromkeys(named))[:MAX_SERVERS]


def _sorted(volley: Volley) -> list[Transaction]:
    rest = [each for each in volley.transactions if each.mapped is None]
    for each in rest:
        each.error = each.error or "no answer"
    return volley.answers + rest

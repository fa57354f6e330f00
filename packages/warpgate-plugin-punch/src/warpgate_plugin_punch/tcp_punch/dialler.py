"""The sockets of a TCP punch: ports that listen and dial at once, SYNs by the clock, what comes of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from warpgate.net.addresses import Address, system_address, user_address
from warpgate.net.budget import SYN_BYTES, PacketBudget
from warpgate.net.constants import IP6
from warpgate.protocol.ip import parse_ip
from warpgate.stun.client import shared_tcp_socket

REPEAT_S: Final = 0.75
"""Systems repeat a SYN after 1 s: a socket lives no longer, unless the budget has room for that."""
REPEATS_BUDGET: Final = 30
RESERVE: Final = 10
"""What is left of the budget, should this process be held up and sockets live too long."""
MAX_ACCEPTED: Final = 32
MAX_CAUSES: Final = 16
BACKLOG: Final = 16
AGAIN_S: Final = 0.05
_RESET: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)


class Dialler:
    """All sockets of one attempt.

    Args:
        af: the family.
        budget: the attempt's; every SYN is counted, the system's own repetitions too.
        on_connected: takes every socket that has connected or was accepted.
        on_error: takes what nobody has foreseen.

    Attributes:
        sent: SYNs.
        accepted: connections from the peer to a listening port.
        connected: sockets that have connected themselves.
        errors: how often which error came, by its name.
        peers: the addresses whose connections are accepted.

    """

    def __init__(
        self,
        af: int,
        budget: PacketBudget,
        on_connected: Callable[[socket.socket], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.af = af
        self.sent = self.accepted = self.connected = 0
        self.errors: Counter[str] = Counter()
        self.peers: set[str] = set()
        self._budget = budget
        self._on_connected = on_connected
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[int, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._held: list[socket.socket] = []
        self._dialling: set[socket.socket] = set()
        self._local: dict[int, Address] = {}
        self.closed = False

    # Ports.

    def open(self, ip: str, port: int = 0) -> int:
        """Bind and listen; returns the port.

        Args:
            ip: the local address.
            port: 0 picks one.

        Raises:
            OSError: it is taken, or the address can't be used.

        """
        sock = shared_tcp_socket(self.af, (ip, port))
        try:
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        number: int = sock.getsockname()[1]
        self._listeners[number] = sock
        self._local[number] = (ip, number)
        self._listen(sock)
        return number

    def hold(self, socks: Iterable[socket.socket]) -> None:
        """Keep connections, to servers that were asked, until the attempt ends."""
        self._held += socks

    def expect(self, ip: str) -> None:
        """Accept connections from an address."""
        self.peers.add(_canonical(ip))

    # SYNs.

    def dial_at(self, delay_s: float, port: int, dest: Address, hops: int | None = None) -> None:
        """Dial after so many seconds; see :meth:`dial`."""
        if delay_s <= 0:
            self.dial(port, dest, hops)
            return

        def due() -> None:
            self._timers.discard(timer)
            self.dial(port, dest, hops)

        timer = self._loop.call_later(delay_s, due)
        self._timers.add(timer)

    def dial(self, port: int, dest: Address, hops: int | None = None) -> bool:
        """Send a SYN from a port that is open, at once; False when it can't be sent.

        Args:
            port: the own port.
            dest: the peer's endpoint.
            hops: how many routers the SYN may cross; None: as many as usual.

        """
        local = self._local.get(port)
        if self.closed or local is None or local == dest:
            return False
        if self._budget.left(dest[0]) <= RESERVE or not self._budget.take(dest[0], 1, SYN_BYTES):
            self.errors["not sent for the limit"] += 1
            return False
        sock: socket.socket | None = None
        try:
            target = system_address(self.af, dest)
            sock = shared_tcp_socket(self.af, local)
            if sys.platform != "win32":  # there only overlapped connects can be waited for
                usual = _set_hops(sock, hops)
                error = sock.connect_ex(target)
                _set_hops(sock, usual)
                if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                    raise OSError(error, "connect")
        except OSError as error:
            if sock is not None:
                sock.close()
            self._note(error)
            return False
        self.sent += 1
        self._dialling.add(sock)
        self._spawn(self._connect(sock, target, dest[0], self._loop.time() + REPEAT_S))
        return True

    def stop_dialling(self) -> None:
        """Send no more SYNs; those that are out may still come to something."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def _connect(self, sock: socket.socket, target: object, ip: str, limit_at: float) -> None:
        done = False
        try:
            async with asyncio.timeout_at(limit_at) as limit:

                def more() -> None:
                    # The system is about to repeat the SYN.
                    room = self._budget.left(ip) >= REPEATS_BUDGET
                    if room and self._budget.take(ip, 1, SYN_BYTES) and not limit.expired():
                        limit.reschedule(limit_at + 1.0)

                timer = self._loop.call_at(limit_at - 0.01, more)
                try:
                    await self._loop.sock_connect(sock, target)  # type: ignore[arg-type]
                except OSError as error:
                    if error.errno != errno.EISCONN:  # it has connected since dial(): BSD says so
                        raise
                finally:
                    timer.cancel()
            if sock.getsockname() == sock.getpeername():
                self.errors["connected to itself"] += 1
                return
            done = True
            self.connected += 1
            self._on_connected(sock)
        except TimeoutError:
            self.errors["no answer"] += 1
        except OSError as error:
            self._note(error)
        finally:
            self._dialling.discard(sock)
            if not done:
                reset(sock)

    def _listen(self, listener: socket.socket) -> None:
        if self.closed:
            return
        try:
            self._loop.add_reader(listener, self._acceptable, listener)
        except NotImplementedError:  # Windows' proactor
            self._spawn(self._accept(listener))

    def _acceptable(self, listener: socket.socket) -> None:
        # Not by sock_accept(): cancelled at the wrong moment, that loses what it has accepted.
        try:
            sock, addr = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # it was reset already; or there are no descriptors left
            self._note(error)
            self._loop.remove_reader(listener)
            self._loop.call_later(AGAIN_S, self._listen, listener)
            return
        self._take(sock, addr)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, addr = await self._loop.sock_accept(listener)
            except OSError as error:
                self._note(error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._take(sock, addr)

    def _take(self, sock: socket.socket, addr: Any) -> None:
        ip = _canonical(user_address(addr)[0])
        if self.closed or ip not in self.peers or self.accepted >= MAX_ACCEPTED:
            self.errors["a stranger's connection"] += 1
            reset(sock)
            return
        self.accepted += 1
        sock.setblocking(False)
        self._on_connected(sock)

    # The rest.

    def _note(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if name in self.errors or len(self.errors) < MAX_CAUSES:
            self.errors[name] += 1

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    def summary(self) -> str:
        """Return what was observed, for people."""
        parts = [f"{self.sent} SYNs sent", f"{self.accepted} connections accepted"]
        names = {"ECONNREFUSED": "answered with RST"}
        parts += [f"{count} {names.get(name, name)}" for name, count in self.errors.items()]
        return ", ".join(parts)

    async def close(self) -> None:
        """End everything at once; idempotent."""
        self.closed = True
        self.stop_dialling()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for sock in self._listeners.values():
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(sock)
            sock.close()
        for sock in [*self._held, *self._dialling]:  # the latter's tasks had not begun
            reset(sock)
        for kept in (self._listeners, self._local, self._held, self._dialling):
            kept.clear()


def _canonical(ip: str) -> str:
    return str(parse_ip(ip) or ip)


def _set_hops(sock: socket.socket, hops: int | None) -> int | None:
    """Set how many routers packets may cross; returns what it was, None where nothing was set."""
    if hops is None:
        return None
    option = (
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        if sock.family == IP6
        else (socket.IPPROTO_IP, socket.IP_TTL)
    )
    before = sock.getsockopt(*option)
    sock.setsockopt(*option, hops)
    return before


def reset(sock: socket.socket) -> None:
    """Close without TIME_WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()

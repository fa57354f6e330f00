"""Connections that a punch has made: which of them are handed over for proof, and when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from warpgate.net.pipe import Pipe
from warpgate.net.tcp import TcpPipe
from warpgate_plugin_punch.tcp_punch.dialler import reset

SPARE_AFTER_S: Final = 0.3
"""When the first connection has not been proven by then, another one is tried as well."""
MAX_SPARES: Final = 8
MAX_SILENT: Final = 32
"""Connections that the responder keeps until the initiator speaks on one."""


class Candidates:
    """The connections of one attempt.

    Several pairs of ports may connect. The initiator hands over the first, and others only when
    that comes to nothing; the responder hands over those on which the initiator speaks.

    Args:
        initiator: whose side this is.
        offer: takes a pipe for proof.
        on_error: takes what nobody has foreseen.

    Attributes:
        handed: a connection has been handed over, and has its time.
        lost: how many were gone before they could be.

    """

    def __init__(
        self,
        initiator: bool,
        offer: Callable[[Pipe], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.handed = False
        self.lost = 0
        self._initiator = initiator
        self._offer = offer
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._spares: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._going: dict[asyncio.Task[None], socket.socket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fresh_until = 0.0

    @property
    def fresh(self) -> bool:
        """Whether one was handed over so lately that its proof may be under way, on either side."""
        return self._loop.time() < self._fresh_until

    def add(self, sock: socket.socket) -> None:
        """Take a connected socket."""
        if not self._initiator:
            self._await_hello(sock)
        elif not self.handed:
            self._hand_over(sock)
            self._arm()
        elif len(self._spares) < MAX_SPARES:
            self._spares.append(sock)
        else:
            reset(sock)

    def _await_hello(self, sock: socket.socket) -> None:
        if len(self._silent) >= MAX_SILENT:
            reset(sock)
            return
        try:
            self._loop.add_reader(sock, self._speaks, sock)
        except NotImplementedError:  # Windows' proactor
            self._hand_over(sock)
        else:
            self._silent.add(sock)

    def _speaks(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        self._silent.discard(sock)
        try:
            if sock.recv(1, socket.MSG_PEEK):
                self._hand_over(sock)
                return
        except OSError:
            pass
        self.lost += 1
        reset(sock)  # the initiator has closed it

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(SPARE_AFTER_S, self._use_spare)

    def _use_spare(self) -> None:
        if self._spares:
            self._hand_over(self._spares.pop(0))
            self._arm()
        else:
            self.handed = False  # the next connection may go at once

    def _hand_over(self, sock: socket.socket) -> None:
        self.handed = True
        self._fresh_until = self._loop.time() + SPARE_AFTER_S
        task = self._loop.create_task(self._adopt(sock))
        self._going[task] = sock
        task.add_done_callback(self._adopted)

    async def _adopt(self, sock: socket.socket) -> None:
        _, pipe = await self._loop.create_connection(TcpPipe, sock=sock)
        self._offer(pipe)

    def _adopted(self, task: asyncio.Task[None]) -> None:
        sock = self._going.pop(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            reset(sock)
            self.lost += 1
        if error is not None and not isinstance(error, OSError):
            self._on_error(error)

    async def close(self) -> None:
        """Close all but what was handed over; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = set(self._going)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for sock in self._silent:
            self._loop.remove_reader(sock)
        for sock in [*self._spares, *self._silent]:
            reset(sock)
        self._spares.clear()
        self._silent.clear()

"""Notices that this machine's network may have changed, or that the machine slept.

Linux tells through a netlink socket (rtnetlink(7)), which costs nothing while nothing happens;
elsewhere the interfaces are compared every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

from warpgate.net.nic import Interface, list_interfaces

DEBOUNCE_S: Final = 0.3  # a change comes in several steps
GAP_S: Final = 1.0  # between two reports, however busy the routing table is
POLL_S: Final = 5.0
CLOCK_S: Final = 10.0
SLEPT_S: Final = 5.0  # the clock has gone on so much further than the timer
NETLINK_BYTES: Final = 1 << 16
NETLINK_READS: Final = 64  # at one wake-up

# linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class NetworkMonitor:
    """Calls back when interfaces, addresses or routes may have changed.

    Args:
        on_change: called with True when the machine slept, else False; at most once in ``GAP_S``.
            On Linux nothing that matters may be different: it is for the caller to look.
        interfaces: what the comparison reads, where there is no netlink.
        wall: the wall clock, in seconds.
        netlink: False: compare even where the system would tell.

    """

    def __init__(
        self,
        on_change: Callable[[bool], None],
        *,
        interfaces: Callable[[], list[Interface]] = list_interfaces,
        wall: Callable[[], float] = time.time,
        netlink: bool = True,
    ) -> None:
        self._on_change = on_change
        self._interfaces = interfaces
        self._wall = wall
        self._netlink = netlink
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._known: list[Interface] = []
        self._earliest = 0.0
        self._ticked = 0.0

    def start(self) -> None:
        """Begin; costs some microseconds."""
        if self._netlink:
            self._sock = self._open()
        if self._sock is None:
            self._timers["poll"] = self._loop.call_later(POLL_S, self._poll)
        self._ticked = self._wall()
        self._timers["clock"] = self._loop.call_later(CLOCK_S, self._tick)

    def close(self) -> None:
        """Stop; idempotent."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _open(self) -> socket.socket | None:
        if not hasattr(socket, "AF_NETLINK"):
            return None
        sock: socket.socket | None = None
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            sock.setblocking(False)
            sock.bind((0, _GROUPS))
            self._loop.add_reader(sock.fileno(), self._readable)
        except (OSError, NotImplementedError):  # a sandbox may forbid it
            if sock is not None:
                sock.close()
            return None
        return sock

    def _readable(self) -> None:
        assert self._sock is not None
        for _ in range(NETLINK_READS):
            try:
                self._sock.recv(NETLINK_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # ENOBUFS: more happened than there was room for
                continue
        if "report" not in self._timers:
            delay = max(DEBOUNCE_S, self._earliest - self._loop.time())
            self._timers["report"] = self._loop.call_later(delay, self._report, False)

    def _report(self, slept: bool) -> None:
        timer = self._timers.pop("report", None)
        if timer is not None:
            timer.cancel()
        self._earliest = self._loop.time() + GAP_S
        self._on_change(slept)

    def _poll(self) -> None:
        self._timers["poll"] = self._loop.call_later(POLL_S, self._poll)
        with contextlib.suppress(OSError):
            found = self._interfaces()
            known, self._known = self._known, found
            if found != known:
                self._report(False)

    def _tick(self) -> None:
        now, before = self._wall(), self._ticked
        self._ticked = now
        self._timers["clock"] = self._loop.call_later(CLOCK_S, self._tick)
        if now - before > CLOCK_S + SLEPT_S:
            self._report(True)

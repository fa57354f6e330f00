"""The engine's loop: descriptors, one timer, no polling while idle (Linux)."""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress

from warpgate_natlab.engine.graph import Graph
from warpgate_natlab.engine.tun import setup

__all__ = ["Loop", "Timer"]

_BATCH = 64  # packets read from one device before the others get their turn
_READ = 65536
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Timer:
    """A timerfd on the monotonic clock: epoll's own time-out is too coarse (milliseconds)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"timerfd_create: {os.strerror(code)}")
        self._armed: float | None = None
        self._spec = _Itimerspec()
        self._pointer = ctypes.byref(self._spec)

    def arm(self, at: float | None) -> None:
        """Become readable at ``at`` (time.monotonic()), or never."""
        if at == self._armed:
            return
        self._armed = at
        spec = self._spec
        if at is None:
            spec.at_s = spec.at_ns = 0
        else:
            spec.at_s = int(at)
            spec.at_ns = max(1, int((at - int(at)) * 1e9))
        self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._pointer, None)

    def clear(self) -> None:
        """Take note that it has fired."""
        self._armed = None
        with suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class Loop:
    """Moves packets between TUN devices and a graph, and calls back for other descriptors.

    Attributes: ``late_max_s``: by how much an event was carried out too late, at worst.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._device_of: dict[int, str] = {}
        self._fd_of: dict[str, int] = {}
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._running = True
        self.late_max_s = 0.0

    def watch(self, fd: int, call: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call ``call(events)`` when ``fd`` is ready; again: with other events."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = call

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def open_devices(self, names: list[str]) -> None:
        """Make the TUN devices of these devices of the graph. Raises TunError."""
        specs = [self.graph.devices[name].spec for name in names]
        for name, fd in zip(names, setup(specs), strict=True):
            self._device_of[fd] = name
            self._fd_of[name] = fd
            self._epoll.register(fd, select.EPOLLIN)

    def close_device(self, name: str) -> None:
        """Close a TUN device: it vanishes."""
        fd = self._fd_of.pop(name, None)
        if fd is not None:
            del self._device_of[fd]
            self._epoll.unregister(fd)
            os.close(fd)

    def stop(self) -> None:
        """Have :meth:`run` return."""
        self._running = False

    def run(self) -> None:
        """Forward until :meth:`stop`."""
        clock, graph, timer = time.monotonic, self.graph, self._timer
        while self._running:
            timer.arm(graph.next_time())
            for fd, events in self._epoll.poll():
                name = self._device_of.get(fd)
                if name is not None:
                    self._read(fd, name)
                elif fd == timer.fd:
                    timer.clear()
                else:
                    call = self._callbacks.get(fd)
                    if call is not None:
                        call(events)
            self._write(clock())

    def _read(self, fd: int, name: str) -> None:
        graph = self.graph
        now = time.monotonic()
        self._write(now)  # what is due comes before what arrives now
        for _ in range(_BATCH):
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                break
            except OSError:  # the namespace, and the device with it, has gone
                graph.devices[name].drop("device-gone")
                self.close_device(name)
                break
            graph.inject(name, data, now)

    def _write(self, now: float) -> None:
        due = self.graph.next_time()
        if due is not None and now - due > self.late_max_s:
            self.late_max_s = now - due
        for name, data in self.graph.advance(now):
            fd = self._fd_of.get(name)
            if fd is None:
                continue
            try:
                os.write(fd, data)
            except OSError:  # the device is down, or its host refuses the packet
                self.graph.devices[name].drop("not-taken")

    def close(self) -> None:
        """Close all devices and the loop's own descriptors."""
        for name in list(self._fd_of):
            self.close_device(name)
        self._timer.close()
        self._epoll.close()

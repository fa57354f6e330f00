"""Runs a PURE state machine: owns its timer, so that no protocol has to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from warpgate.net.addresses import Address


class Machine(Protocol):
    """A protocol without I/O; ``now`` is in seconds, monotonic."""

    def start(self, now: float) -> None:
        """Begin."""

    def receive(self, data: bytes, addr: Address, now: float) -> None:
        """Take what came from ``addr``."""

    def outgoing(self, now: float) -> Iterable[Any]:
        """Return what is to be sent now, and forget it."""

    def next_timeout(self) -> float | None:
        """Return when :meth:`handle_timeout` wants to be called; None: never."""

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""

    def next_event(self) -> Any:
        """Return the next thing that happened, and forget it; None: nothing."""


class Driver:
    """Connects a machine to the world, without a task: calls go in, sends and events come out.

    Whatever the machine, ``send`` or ``on_event`` raise comes out of :meth:`start` and
    :meth:`feed`; from the timer it goes to ``on_error``, or to the loop's exception handler.
    After it the driver is closed.
    """

    def __init__(
        self,
        machine: Machine,
        send: Callable[[Any], None],
        on_event: Callable[[Any], None],
        *,
        on_error: Callable[[Exception], None] | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Prepare; :meth:`start` begins.

        Args:
            machine: the state machine.
            send: called with each item of ``machine.outgoing()``; must not wait.
            on_event: called with each of the machine's events, after what was to be sent before.
            on_error: called with what the timer's call raised.
            now: the clock, in seconds; the loop's when None.

        """
        self.machine = machine
        self.closed = False
        self._send = send
        self._on_event = on_event
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._now = now or self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False

    def start(self) -> None:
        """Start the machine."""
        self._step(lambda: self.machine.start(self._now()))

    def feed(self, data: bytes, addr: Address = ("", 0)) -> None:
        """Give the machine what came in; nothing happens after :meth:`close`."""
        self._step(lambda: self.machine.receive(data, addr, self._now()))

    def call(self, action: Callable[[float], object]) -> None:
        """Do something else with the machine, such as ``nominate``; ``action(now)`` does it."""
        self._step(lambda: action(self._now()))

    def close(self) -> None:
        """Stop the timer; nothing is called any more. Idempotent, and fine from ``on_event``."""
        self.closed = True
        self._stop_timer()

    def _step(self, action: Callable[[], object]) -> None:
        if self.closed:
            return
        try:
            action()
            self._pump()
        except BaseException:
            self.close()
            raise

    def _pump(self) -> None:
        """Carry out what the machine wants, until it wants nothing; set the timer."""
        if self._pumping:
            return  # called from send or on_event: the outer call goes on with it
        self._pumping = True
        try:
            while not self.closed:
                for item in self.machine.outgoing(self._now()):
                    self._send(item)
                event = self.machine.next_event()
                if event is None:
                    break
                if not self.closed:
                    self._on_event(event)
        finally:
            self._pumping = False
        self._stop_timer()
        due = None if self.closed else self.machine.next_timeout()
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - self._now()), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        try:
            self._step(lambda: self.machine.handle_timeout(self._now()))
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

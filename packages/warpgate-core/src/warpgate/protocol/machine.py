"""The shape of a protocol without input and output; ``net/driver.py`` runs any of this shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Out_co = TypeVar("Out_co", covariant=True)
Event_co = TypeVar("Event_co", covariant=True)


class StateMachine(Protocol[Out_co, Event_co]):
    """A protocol as a state machine: bytes and time go in, bytes, a deadline and events come out.

    ``now`` is in seconds of a clock that never goes back; ``Out_co`` is what is to be sent (bytes,
    or bytes with their destination), ``Event_co`` what happened. Nothing here raises on what the
    peer sent: a failure is an event.
    """

    def start(self, now: float) -> None:
        """Begin; call it once, before anything else."""

    def receive(self, data: bytes, addr: tuple[str, int], now: float) -> None:
        """Take a datagram, or what one read of a stream returned, from ``addr``."""

    def outgoing(self, now: float) -> Sequence[Out_co]:
        """Return what is to be sent now, in order, and forget it."""

    def next_timeout(self) -> float | None:
        """Return when to call :meth:`handle_timeout`, in ``now``'s clock; None for never."""

    def handle_timeout(self, now: float) -> None:
        """Do what is due; harmless when nothing is."""

    def next_event(self) -> Event_co | None:
        """Return the next thing that happened, or None; call it until it returns None."""

"""One question to a router over UDP, repeated until it is answered, and its epoch; PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from warpgate_plugin_direct.port_mapping.model import MappingError

FIRST_WAIT_S: Final = 0.25
"""RFC 6886 section 3.1; RFC 6887's 3 s would let one lost packet cost that much."""
DEADLINE_S: Final = 8.0
"""How long an answer is waited for; the last copy of the question leaves at 3.75 s."""
MAX_SENDS: Final = 5
MAX_ANSWER_BYTES: Final = 1100
"""RFC 6887 section 7; NAT-PMP has 16 bytes at most."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Answered:
    """The router's answer, as the parser made it, and when it came."""

    value: Any
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The router refused, or did not answer."""

    error: MappingError


class Exchange:
    """Asks once, and again with doubled waits, until an answer is accepted.

    Args:
        request: the bytes.
        server: where they go; nothing from elsewhere is looked at.
        parse: returns what an answer says, None for a datagram that is none to this request;
            raises :class:`MappingError` for a refusal.
        deadline_s: seconds until it fails.

    """

    def __init__(
        self,
        request: bytes,
        server: Address,
        parse: Callable[[bytes], Any | None],
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.request = request
        self.server = server
        self.dropped = 0
        self._parse = parse
        self._deadline_s = deadline_s
        self._ends = float("inf")
        self._next: float | None = None
        self._wait = FIRST_WAIT_S
        self._sends = 0
        self._due = False
        self._event: Answered | Failed | None = None
        self._done = False

    def start(self, now: float) -> None:
        """Ask for the first time."""
        self._ends = now + self._deadline_s
        self._send(now)

    def _send(self, now: float) -> None:
        self._due = True
        self._sends += 1
        self._next = now + self._wait if self._sends < MAX_SENDS else self._ends
        self._wait *= 2

    def receive(self, data: bytes, addr: Address, now: float) -> None:
        """Take a datagram; one that is no answer to this question is dropped and counted."""
        if self._done:
            return
        if addr != self.server or len(data) > MAX_ANSWER_BYTES:
            self.dropped += 1
            return
        try:
            value = self._parse(data)
        except MappingError as error:
            self._finish(Failed(error))
            return
        if value is None:
            self.dropped += 1
        else:
            self._finish(Answered(value, now))

    def _finish(self, event: Answered | Failed) -> None:
        self._done, self._event, self._next, self._due = True, event, None, False

    def outgoing(self, now: float) -> list[bytes]:
        """Return what is to be sent now."""
        due, self._due = self._due, False
        return [self.request] if due else []

    def next_timeout(self) -> float | None:
        """Return when to call :meth:`handle_timeout`; None when it is over."""
        return None if self._next is None else min(self._next, self._ends)

    def handle_timeout(self, now: float) -> None:
        """Ask again, or give up."""
        if self._done or self._next is None or now < min(self._next, self._ends):
            return
        if now >= self._ends:
            self._finish(Failed(MappingError("no answer")))
        else:
            self._send(now)

    def next_event(self) -> Answered | Failed | None:
        """Return what happened, once."""
        event, self._event = self._event, None
        return event


class Epoch:
    """Tells from a router's seconds-since-boot whether it has lost its mappings.

    Both checks are RFC 6887 section 8.5's, which is also stricter than RFC 6886 section 3.6.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def lost(self, epoch: int, now: float) -> bool:
        """Take an answer's epoch; return whether the router has forgotten since the last one.

        Args:
            epoch: the router's seconds.
            now: when the answer came, in seconds.

        """
        before, self._last = self._last, (epoch, now)
        if before is None:
            return False
        if epoch < before[0] - 1:
            return True
        theirs, ours = epoch - before[0], now - before[1]
        return ours + 2 < theirs - theirs / 16 or theirs + 2 < ours - ours / 16

"""Consent freshness and keep-alive on a datagram pipe (RFC 7675): a machine without I/O.

A side goes on sending only while the other one shows that it wants it: it answers the nonce that it
was sent, or (on a sealed pipe) any of its datagrams proves to be its own. The checks double as the
keep-alive of every NAT on the way.

::

    request  1 ‖ nonce(8)
    answer   2 ‖ nonce(8)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

REQUEST = 1
ANSWER = 2
NONCE_SIZE = 8

# RFC 7675, section 5.1.
INTERVAL_S = 5.0
JITTER = 0.2
EXPIRY_S = 30.0
# Some carrier NATs drop a mapping that has seen one packet after 15 s: a second one early prevents it.
FIRST_S = 1.0

MAX_PENDING = 8  # more than are sent within EXPIRY_S: 30 / (5 * 0.8) is 7.5
ANSWER_BURST = 8
ANSWERS_PER_S = 2.0  # ten times what a peer needs


@dataclass(frozen=True, slots=True)
class Expired:
    """The peer has not shown its consent for ``EXPIRY_S``: nothing more may be sent to it."""


class Consent:
    """One side's consent checks, and its answers to the other side's.

    Args:
        entropy: returns that many random bytes; 8 are drawn for each request.
        uniform: returns a random number in [0, 1), for the times between requests.

    Attributes:
        heard: when the peer last showed its consent, in seconds; set it to renew the consent.
        refused: control messages that were not answered or not understood.

    """

    def __init__(self, entropy: Callable[[int], bytes], uniform: Callable[[], float]) -> None:
        self.heard = 0.0
        self.refused = 0
        self._entropy = entropy
        self._uniform = uniform
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._outgoing: list[bytes] = []
        self._check_at: float | None = None
        self._expired = False
        self._told = False
        self._credit = float(ANSWER_BURST)
        self._credit_at = 0.0

    def start(self, now: float) -> None:
        """Begin at ``now``, in seconds: the hello was the first sign of consent."""
        self.heard = self._credit_at = now
        self._check_at = now + self._spread(FIRST_S)

    def receive(self, data: bytes, addr: object, now: float) -> None:
        """Take a control message's kind and what follows it; ``addr`` was checked before."""
        kind, nonce = data[:1], data[1:]
        if len(nonce) == NONCE_SIZE and not self._expired:
            if kind == b"\x01" and self._may_answer(now):
                self._outgoing.append(b"\x02" + nonce)
                return
            if kind == b"\x02" and nonce in self._pending:
                while self._pending.popleft() != nonce:  # what older requests asked is known
                    pass
                self.heard = max(self.heard, now)
                return
        self.refused += 1

    def outgoing(self, now: float) -> list[bytes]:
        """Return the control messages that are to be sent now, and forget them."""
        sent, self._outgoing = self._outgoing, []
        return sent

    def next_timeout(self) -> float | None:
        """Return when ``handle_timeout`` is to be called, None for never."""
        if self._check_at is None:
            return None
        return min(self._check_at, self.heard + EXPIRY_S)

    def handle_timeout(self, now: float) -> None:
        """Ask again, or find that the consent has expired; too early a call does nothing."""
        if self._check_at is None:
            return
        if now >= self.heard + EXPIRY_S:
            self._expired = True
            self._check_at = None
            self._outgoing.clear()
        elif now >= self._check_at:
            nonce = self._entropy(NONCE_SIZE)
            self._pending.append(nonce)
            self._outgoing.append(b"\x01" + nonce)
            self._check_at = now + self._spread(INTERVAL_S)

    def next_event(self) -> Expired | None:
        """Return ``Expired``, once; None before and after."""
        if not self._expired or self._told:
            return None
        self._told = True
        return Expired()

    def _spread(self, seconds: float) -> float:
        return seconds * (1 - JITTER + 2 * JITTER * self._uniform())

    def _may_answer(self, now: float) -> bool:
        """Whoever asks more often than a peer would, gets no more packets out of us than these."""
        earned = (now - self._credit_at) * ANSWERS_PER_S
        self._credit = min(ANSWER_BURST, self._credit + max(0.0, earned))
        self._credit_at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

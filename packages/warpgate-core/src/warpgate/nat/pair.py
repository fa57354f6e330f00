"""What the NATs of two peers mean for each other; PURE.

Facts come from the two signed addresses (types of NAT and port deltas, 0 where nothing is known), so
that a plan can tell what can't work before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from warpgate.net.constants import DeltaType, NATType

UNKNOWN: Final = 0
FILTERED: Final = frozenset(
    {
        NATType.SYMMETRIC_UDP_FIREWALL,
        NATType.RESTRICTED,
        NATType.PORT_RESTRICTED,
        NATType.SYMMETRIC,
    }
)
"""Types that keep out connections nobody behind them has asked for."""
BY_PORT: Final = frozenset(
    {NATType.SYMMETRIC_UDP_FIREWALL, NATType.PORT_RESTRICTED, NATType.SYMMETRIC}
)
"""Types that let in only the very endpoints that were written to."""
CLOSED: Final = FILTERED | {NATType.BLOCKED}
"""Types that let nobody dial in: who blocks UDP does not leave TCP open either."""


@dataclass(frozen=True, slots=True)
class NatPair:
    """Both sides' facts in one family.

    Attributes:
        local, remote: types of NAT (``NATType``), 0 where not known.
        local_delta, remote_delta: port deltas (``DeltaType``), 0 where not known.

    """

    local: int = UNKNOWN
    local_delta: int = UNKNOWN
    remote: int = UNKNOWN
    remote_delta: int = UNKNOWN

    @property
    def local_closed(self) -> bool:
        """Whether nobody can dial this machine."""
        return self.local in CLOSED

    @property
    def remote_closed(self) -> bool:
        """Whether nobody can dial the peer."""
        return self.remote in CLOSED

    @property
    def udp_blocked(self) -> str | None:
        """Whose UDP is blocked, as a text; None where that is not known of either side."""
        sides = [
            name
            for name, kind in (("this machine's", self.local), ("the peer's", self.remote))
            if kind == NATType.BLOCKED
        ]
        return " and ".join(sides) or None

    @property
    def symmetric_sides(self) -> int:
        """How many sides are known to map every destination to another port."""
        return [self.local, self.remote].count(NATType.SYMMETRIC)

    @property
    def unpredictable_sides(self) -> int:
        """How many symmetric sides are not known to count their ports upwards or downwards."""
        sides = ((self.local, self.local_delta), (self.remote, self.remote_delta))
        return sum(
            kind == NATType.SYMMETRIC and delta != DeltaType.INDEPENDENT for kind, delta in sides
        )

    @property
    def guessed_over_tcp(self) -> bool:
        """Whether one side's UDP is blocked and the other's ports are not to be foretold over TCP."""
        return self.udp_blocked is not None and self.unpredictable_sides > 0

    @property
    def needs_guesses(self) -> bool:
        """Whether a port must be guessed: one side's is not to be foretold, the other filters by port.

        Sides that are not known count as friendly.
        """
        if not self.unpredictable_sides:
            return False
        if self.symmetric_sides == 2:
            return True
        other = self.remote if self.local == NATType.SYMMETRIC else self.local
        return other in BY_PORT

"""The configured servers: in which order they are tried, and which of them are bad for a while; PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from warpgate.server_urls import TurnServer

BAD_S: Final = 60.0  # a server that failed is tried last for so long
LACKING_S: Final = 600.0  # one that has no relays of a family is believed to have none for so long
STREAM_PENALTY_S: Final = 0.02  # a datagram that is lost on TCP holds up those behind it
HTTPS_PORT: Final = 443
_TRANSPORTS: Final = {"udp": 0, "tcp": 1, "tls": 2}


@dataclass(slots=True, eq=False)
class ServerState:
    """One configured server over one transport.

    Attributes:
        server: as configured.
        place: its number in the configuration.
        rtt_s: the latest round trip; None: not measured yet.
        bad_until: by the caller's clock.
        why_bad: what went wrong.

    """

    server: TurnServer
    place: int
    rtt_s: float | None = None
    bad_until: float = 0.0
    why_bad: str = ""

    def failed(self, why: str, now: float) -> None:
        """Note that it did not work."""
        self.bad_until = now + BAD_S
        self.why_bad = why

    def worked(self, rtt_s: float) -> None:
        """Note that it did."""
        self.rtt_s = rtt_s
        self.bad_until = 0.0
        self.why_bad = ""


class ServerList:
    """The servers of one node.

    Attributes:
        https_only: the network is known to let out nothing but TCP to port 443.

    """

    def __init__(self, servers: Sequence[TurnServer]) -> None:
        self.https_only = False
        self.states = [ServerState(server, place) for place, server in enumerate(servers)]
        self._lacking: dict[tuple[str, int], float] = {}

    def __bool__(self) -> bool:
        return bool(self.states)

    def forgive(self) -> None:
        """Forget which servers are bad, and how far they are: the network is another one."""
        for state in self.states:
            state.rtt_s, state.bad_until, state.why_bad = None, 0.0, ""

    def note_lack(self, server: TurnServer, family: int, now: float) -> None:
        """Note that a server has no relays of a family, whichever way it is reached."""
        self._lacking[server.host, family] = now + LACKING_S

    def lacks(self, server: TurnServer, family: int, now: float) -> bool:
        """Return whether a server is known to have no relays of a family."""
        return now < self._lacking.get((server.host, family), 0.0)

    def lacking(self, family: int, now: float) -> int:
        """Return how many entries are known to have no relays of a family."""
        return sum(self.lacks(state.server, family, now) for state in self.states)

    def ordered(self, now: float, *, udp_blocked: bool = False) -> list[ServerState]:
        """Return the servers in the order in which to try them.

        Bad ones come last. Before them stand those whose round trip was measured, the nearest
        first; then the rest, over UDP first (last where UDP is known to be blocked), as configured.
        Where only TCP to port 443 gets out, all that needs more comes after what does not.

        Args:
            now: the time, in seconds.
            udp_blocked: UDP is known not to get through.

        """

        def rank(state: ServerState) -> tuple[bool, bool, bool, bool, float, int, int]:
            transport = state.server.transport
            udp = transport == "udp"
            rtt = state.rtt_s
            penalised = 0.0 if rtt is None else rtt + (0.0 if udp else STREAM_PENALTY_S)
            return (
                now < state.bad_until,
                self.https_only and (udp or state.server.port != HTTPS_PORT),
                udp_blocked and udp,
                rtt is None,
                penalised,
                _TRANSPORTS.get(transport, 3),
                state.place,
            )

        return sorted(self.states, key=rank)

"""One TCP connection as a translator sees it (RFC 6146 section 3.5.2; RFC 7857 section 2)."""

from __future__ import annotations

from enum import IntEnum

from warpgate_natlab.engine.packet import ACK, FIN, RST, SYN
from warpgate_natlab.engine.policy import Timers

__all__ = ["TcpSession", "TcpState"]


class TcpState(IntEnum):
    """The states of RFC 6146; "out" is its V6 side, "in" its V4 side."""

    OUT_INIT = 1
    IN_INIT = 2
    ESTABLISHED = 3
    OUT_FIN = 4
    IN_FIN = 5
    BOTH_FIN = 6
    TRANS = 7


_LIVELY = (TcpState.ESTABLISHED, TcpState.OUT_FIN, TcpState.IN_FIN)


class TcpSession:
    """State and expiry of one connection through a mapping.

    Args:
        outward: the first segment went out.
        established: it was no SYN: a connection picked up in the middle.
        now: seconds.
        timers: how long what lives.
    """

    __slots__ = ("expires", "state", "syn_out_at")

    def __init__(self, *, outward: bool, established: bool, now: float, timers: Timers) -> None:
        self.syn_out_at: float | None = now if outward and not established else None
        if established:
            self.state = TcpState.ESTABLISHED
            self.expires = now + timers.tcp_established_s
        else:
            self.state = TcpState.OUT_INIT if outward else TcpState.IN_INIT
            self.expires = now + timers.tcp_transitory_s

    def segment(self, flags: int, *, outward: bool, now: float, timers: Timers) -> None:
        """Take in one more segment. Simultaneous open: SYN out, SYN in, is established."""
        state = self.state
        if outward and flags & (SYN | ACK) == SYN:
            self.syn_out_at = now
        if state in (TcpState.OUT_INIT, TcpState.IN_INIT):
            if flags & SYN and not flags & RST:
                if outward == (state is TcpState.OUT_INIT):
                    self.expires = now + timers.tcp_transitory_s
                else:
                    self.state = TcpState.ESTABLISHED
                    self.expires = now + timers.tcp_established_s
        elif state in _LIVELY:
            self._lively(flags, outward=outward, now=now, timers=timers)
        elif flags & (SYN | ACK | RST) == SYN:  # the endpoints use the ports for a new connection
            self.state = TcpState.OUT_INIT if outward else TcpState.IN_INIT
            self.expires = now + timers.tcp_transitory_s
        elif state is TcpState.TRANS and not flags & RST:
            self.state = TcpState.ESTABLISHED
            self.expires = now + timers.tcp_established_s

    def _lively(self, flags: int, *, outward: bool, now: float, timers: Timers) -> None:
        if flags & RST:
            self.state = TcpState.TRANS
            self.expires = now + timers.tcp_transitory_s
            return
        self.expires = now + timers.tcp_established_s
        if not flags & FIN:
            return
        own, other = TcpState.OUT_FIN, TcpState.IN_FIN
        if not outward:
            own, other = other, own
        if self.state is other:
            self.state = TcpState.BOTH_FIN
            self.expires = now + timers.tcp_transitory_s
        elif self.state is TcpState.ESTABLISHED:
            self.state = own

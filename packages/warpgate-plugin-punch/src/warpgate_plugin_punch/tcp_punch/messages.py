"""What the two sides of a TCP punch tell each other; PURE."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, Field

from warpgate import ConMsg
from warpgate_plugin_punch.common.facts import SideFacts

MAX_PORTS: Final = 16
MAX_ROUNDS: Final = 4
MAX_IP: Final = 45  # characters: the longest text of an IPv6 address
MAX_MS: Final = 60_000
MAX_CLOCK_MS: Final = 2**48

Port = Annotated[int, Field(ge=1, le=65535)]


class Round(BaseModel):
    """One side's part of a round.

    Attributes:
        round: its number, from 1.
        ip: the sender's external address, where a server has just told it; else empty.
        ports: where the sender's SYNs come from, as the receiver will see them: of a NAT that counts,
            the next ones in order.
        facts: the sender's NAT, for TCP.
        hold_ms: how long the sender had the message that this one answers.
        clock_ms: the sender's time by NTP when it sent this, in Unix milliseconds; 0 when not known.
        way_ms: how long the message that this one answers was on its way, by both clocks; 0: not known.
        opener: the receiver's SYNs are to die before they reach the sender's NAT.

    """

    round: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    ip: Annotated[str, Field(max_length=MAX_IP)] = ""
    ports: Annotated[list[Port], Field(max_length=MAX_PORTS)] = []
    facts: SideFacts = SideFacts()
    hold_ms: Annotated[int, Field(ge=0, le=MAX_MS)] = 0
    clock_ms: Annotated[int, Field(ge=0, le=MAX_CLOCK_MS)] = 0
    way_ms: Annotated[int, Field(ge=0, le=MAX_MS)] = 0
    opener: bool = False


class TcpOffer(ConMsg):
    """The initiator begins a round."""

    Payload = Round


class TcpAnswer(ConMsg):
    """The responder says where its SYNs come from in this round."""

    Payload = Round

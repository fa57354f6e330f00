"""What the two sides of a spray tell each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from warpgate import ConMsg
from warpgate_plugin_punch.common.facts import Port, SideFacts
from warpgate_plugin_punch.common.probes import KEY_SIZE
from warpgate_plugin_punch.random_probe.odds import MAX_PACKETS

MAX_IP = 64
MAX_REASON = 240
MAX_SOCKETS = 1024
MAX_STRIDE = 128

Count = Annotated[int, Field(ge=0, le=MAX_PACKETS)]


class SideNumbers(BaseModel):
    """One side, as it is for this attempt.

    Attributes:
        facts: its NAT.
        ip: its address outside.
        port: of its one endpoint, where that serves all destinations; otherwise the one among its
            random ports that the peer should aim at, when both sides have such.
        low, high, stride: its ports lie between these, so far apart; 0 where ``port`` is certain.
        sockets: how many it can open.
        packets: how many it may send.

    """

    model_config = ConfigDict(frozen=True)

    facts: SideFacts = SideFacts()
    ip: Annotated[str, Field(max_length=MAX_IP)] = ""
    port: Port = 0
    low: Port = 0
    high: Port = 0
    stride: Annotated[int, Field(ge=1, le=MAX_STRIDE)] = 1
    sockets: Annotated[int, Field(ge=0, le=MAX_SOCKETS)] = 0
    packets: Count = 0


class SprayOffer(ConMsg):
    """The initiator's word: who I am behind which NAT, and the key of both sides' probes."""

    class Payload(BaseModel):
        """``key``: of the probes' tags."""

        side: SideNumbers = SideNumbers()
        key: Annotated[bytes, Field(max_length=KEY_SIZE)] = b""


class SprayAnswer(ConMsg):
    """The responder's: who it is, and what both do, or why nobody does anything."""

    class Payload(BaseModel):
        """``first``, ``second``: ports or sockets, of the initiator and of the responder."""

        side: SideNumbers = SideNumbers()
        mode: Literal["few", "guess", "sweep", "none"] = "none"
        first: Count = 0
        second: Count = 0
        odds: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
        reason: Annotated[str, Field(max_length=MAX_REASON)] = ""

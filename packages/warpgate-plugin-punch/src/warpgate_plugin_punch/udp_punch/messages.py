"""What the two sides of a UDP punch tell each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from warpgate.protocol.ip import parse_ip
from warpgate.protocol.proto_msg import ConMsg
from warpgate_plugin_punch.common.facts import Port, SideFacts

MAX_ENDPOINTS = 4
MAX_ROUNDS = 3


def _is_ip(text: str) -> str:
    if "%" in text or parse_ip(text) is None:
        raise ValueError("not an IP address")
    return text


Ip = Annotated[str, Field(max_length=45), AfterValidator(_is_ip)]
Endpoint = tuple[Ip, Annotated[int, Field(ge=1, le=65535)]]


class Punch(ConMsg):
    """The initiator's offer, and the responder's answer to it."""

    class Payload(BaseModel):
        """Where the sender can be reached, and how its NAT works.

        Attributes:
            number: of the round, from 0; the answer bears the offer's.
            endpoints: where to write to, the likeliest first; none: only the sender's IP is known.
            counter: the external port that the sender's NAT has given last, where it counts and
                the next ones matter; 0: they don't.
            facts: of the sender's NAT.

        """

        number: Annotated[int, Field(ge=0, lt=MAX_ROUNDS)] = 0
        endpoints: Annotated[list[Endpoint], Field(max_length=MAX_ENDPOINTS)] = []
        counter: Port = 0
        facts: SideFacts = SideFacts()

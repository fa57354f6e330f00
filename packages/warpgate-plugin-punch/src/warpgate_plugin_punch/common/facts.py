"""What one side tells the other of its NAT, and what follows from it; PURE.

The words are those of RFC 4787, shortened: ``ei`` endpoint-independent, ``ad`` address-dependent,
``apd`` address-and-port-dependent. An empty word means not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from warpgate.net.constants import DeltaType, NATType, transport_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warpgate.nat.report import PathReport

MAX_STEP = 128
"""The greatest step of a counting NAT that is believed."""

MappingWord = Literal["", "none", "ei", "ad", "apd"]
FilteringWord = Literal["", "ei", "ad", "apd"]
AllocationWord = Literal["", "none", "preserving", "shifted", "sequential", "block", "random"]
Port = Annotated[int, Field(ge=0, le=65535)]

_SHORT: dict[str, Literal["none", "ei", "ad", "apd"]] = {
    "none": "none",
    "endpoint-independent": "ei",
    "address-dependent": "ad",
    "address-and-port-dependent": "apd",
}
_BY_TYPE: dict[int, tuple[MappingWord, FilteringWord]] = {
    NATType.OPEN: ("none", "ei"),
    NATType.SYMMETRIC_UDP_FIREWALL: ("none", "apd"),
    NATType.FULL_CONE: ("ei", "ei"),
    NATType.RESTRICTED: ("ei", "ad"),
    NATType.PORT_RESTRICTED: ("ei", "apd"),
    NATType.SYMMETRIC: ("apd", "apd"),
}
_BY_DELTA: dict[int, AllocationWord] = {
    DeltaType.NOT_APPLICABLE: "none",
    DeltaType.EQUAL: "preserving",
    DeltaType.PRESERVING: "shifted",
    DeltaType.INDEPENDENT: "sequential",
    DeltaType.RANDOM: "random",
}


class SideFacts(BaseModel):
    """One side's NAT, as far as it is known.

    Attributes:
        mapping, filtering: how ports are shown and who gets in.
        kind: how ports are chosen.
        step: between one new mapping and the next; the shift where ports are shifted.
        low, high: the bounds of a block or of random ports; 0 where not known.
        blocked: the transport does not get through at all.

    """

    model_config = ConfigDict(frozen=True)

    mapping: MappingWord = ""
    filtering: FilteringWord = ""
    kind: AllocationWord = ""
    step: Annotated[int, Field(ge=-65535, le=65535)] = 0
    low: Port = 0
    high: Port = 0
    blocked: bool = False

    @property
    def easy(self) -> bool:
        """Whether one port serves all destinations; what is not known counts as friendly."""
        return self.mapping in ("", "none", "ei")

    @property
    def counting(self) -> bool:
        """Whether every destination gets another port, and they are counted."""
        return not self.easy and self.kind == "sequential" and 0 < abs(self.step) <= MAX_STEP

    @property
    def hard(self) -> bool:
        """Whether every destination gets a port that can only be guessed."""
        return not (self.easy or self.counting)

    @property
    def keeps_port(self) -> bool:
        """Whether the outer port follows from the local one; what is not known counts as yes."""
        return self.easy and self.kind in ("", "none", "preserving", "shifted")

    @property
    def lets_anyone_in(self) -> bool:
        """Whether packets from places that were never written to come in."""
        return self.filtering == "ei"

    @property
    def by_port(self) -> bool:
        """Whether only the very endpoints that were written to get in; not known counts as yes."""
        return self.filtering in ("", "apd")

    @property
    def block(self) -> tuple[int, int] | None:
        """The least and the greatest port to expect, where they are known."""
        known = self.kind in ("block", "random") and 0 < self.low <= self.high
        return (self.low, self.high) if known else None

    def outer_port(self, local: int) -> int | None:
        """Return the port outside for a local one, None where it can't be foretold."""
        if not self.keeps_port:
            return None
        port = local + (self.step if self.kind == "shifted" else 0)
        return port if 0 < port <= 65535 else None


DIRECT = SideFacts(mapping="none", filtering="ei", kind="none")
"""No NAT and no firewall: on one machine, or on one link."""


def from_report(path: PathReport | None, transport: object) -> SideFacts:
    """Return what a node's report says of one interface and family.

    Args:
        path: the report; None: nothing is known.
        transport: ``TCP`` or ``UDP``, or the names.

    """
    if path is None:
        return SideFacts()
    tcp = transport_name(transport) == "tcp"
    mapping = path.tcp_mapping if tcp else path.mapping
    allocation = path.tcp_allocation if tcp else path.allocation
    return SideFacts(
        mapping="" if mapping is None else _SHORT[mapping.value],
        filtering="" if path.filtering is None else _filtering(path.filtering.value),
        kind="" if allocation is None else allocation.kind.value,
        step=0 if allocation is None else allocation.step,
        low=0 if allocation is None else allocation.low,
        high=0 if allocation is None else allocation.high,
        blocked=(path.tcp if tcp else path.udp) is False,
    )


def from_types(nat: Mapping[str, int] | None) -> SideFacts:
    """Return what the types in a signed address say: ``src_info["nat"]`` or ``dest_info["nat"]``."""
    kind, delta = (nat or {}).get("type", 0), (nat or {}).get("delta", 0)
    mapping, filtering = _BY_TYPE.get(kind, ("", ""))
    word = _BY_DELTA.get(delta, "")
    return SideFacts(
        mapping=mapping,
        filtering=filtering,
        kind=word,
        step=1 if word == "sequential" else 0,  # the address does not say; most count by one
        blocked=kind == NATType.BLOCKED,
    )


def _filtering(value: str) -> FilteringWord:
    word = _SHORT[value]
    return "ei" if word == "none" else word

"""NAT behaviour in the words of RFC 4787, and the older words derived from it; PURE.

A fact that may not have been tested is True, False or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..net.constants import DeltaType, NATType


class Mapping(Enum):
    """How the external endpoint depends on the destination (RFC 4787 section 4.1)."""

    NONE = "none"  # nothing is translated
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Filtering(Enum):
    """Whose packets come in by a mapping (RFC 4787 section 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Allocation(Enum):
    """How external ports are chosen (RFC 4787 section 4.2)."""

    NONE = "none"  # nothing is translated
    PRESERVING = "preserving"  # the internal port
    SHIFTED = "shifted"  # the internal port and a constant
    SEQUENTIAL = "sequential"  # the last one and a step
    BLOCK = "block"  # at random from a contiguous block
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class PortAllocation:
    """How external ports are chosen, with numbers.

    Attributes:
        kind: in a word.
        step: between one new mapping and the next, or the shift; 0 where there is none.
        low: the least port to expect, for a block and for random ports; else 0.
        high: the greatest one.
        samples: the mappings this was told from.

    """

    kind: Allocation
    step: int = 0
    low: int = 0
    high: int = 0
    samples: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": self.kind.value, "step": self.step, "low": self.low, "high": self.high,
                "samples": self.samples}  # fmt: skip

    def __str__(self) -> str:
        if self.kind in (Allocation.SEQUENTIAL, Allocation.SHIFTED):
            return f"{self.kind.value} {self.step:+d}"
        if self.kind in (Allocation.BLOCK, Allocation.RANDOM):
            return f"{self.kind.value} {self.low}-{self.high}"
        return str(self.kind.value)


def nat_type(
    udp: bool | None, mapping: Mapping | None, filtering: Filtering | None
) -> NATType | None:
    """Return the classic type; None when too little is known.

    Filtering that was not tested counts as the strictest: who trusts in that does no worse.
    """
    if udp is False:
        return NATType.BLOCKED
    if mapping is None:
        return None
    if mapping is Mapping.NONE:
        unfiltered = filtering is Filtering.ENDPOINT_INDEPENDENT
        return NATType.OPEN if unfiltered else NATType.SYMMETRIC_UDP_FIREWALL
    if mapping is not Mapping.ENDPOINT_INDEPENDENT:
        return NATType.SYMMETRIC
    return {
        Filtering.ENDPOINT_INDEPENDENT: NATType.FULL_CONE,
        Filtering.ADDRESS_DEPENDENT: NATType.RESTRICTED,
    }.get(filtering or Filtering.ADDRESS_AND_PORT_DEPENDENT, NATType.PORT_RESTRICTED)


def delta_type(allocation: PortAllocation | None) -> DeltaType | None:
    """Return the classic port delta; None when too little is known.

    ``DEPENDENT`` is never told: no test here varies the internal port by a known step.
    """
    if allocation is None:
        return None
    return {
        Allocation.NONE: DeltaType.NOT_APPLICABLE,
        Allocation.PRESERVING: DeltaType.EQUAL,
        Allocation.SHIFTED: DeltaType.PRESERVING,
        Allocation.SEQUENTIAL: DeltaType.INDEPENDENT,
        Allocation.BLOCK: DeltaType.RANDOM,
        Allocation.RANDOM: DeltaType.RANDOM,
    }[allocation.kind]

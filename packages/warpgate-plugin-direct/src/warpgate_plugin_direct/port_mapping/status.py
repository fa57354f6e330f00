"""What port mapping has come to, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from warpgate.net.constants import IP6
from warpgate_plugin_direct.port_mapping.model import Mapping, transport_word

if TYPE_CHECKING:
    from warpgate_plugin_direct.port_mapping.model import Spot


@dataclass(slots=True)
class SpotStatus:
    """One family of one interface.

    Attributes:
        spot: what is to be mapped.
        external: the published address; None: none.
        protocol: by which it was mapped; "" before that.
        mappings: what the router granted.
        causes: why not, by protocol.
        note: what else is to be said.

    """

    spot: Spot
    external: tuple[str, int] | None = None
    protocol: str = ""
    mappings: tuple[Mapping, ...] = ()
    causes: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "interface": self.spot.interface,
            "af": "IPv6" if self.spot.af == IP6 else "IPv4",
            "external": None if self.external is None else list(self.external),
            "protocol": self.protocol,
            "transports": [transport_word(mapping.transport) for mapping in self.mappings],
            "lease_s": min((m.lease_s for m in self.mappings if m.lease_s), default=None),
            "causes": dict(self.causes),
            "note": self.note,
        }

    def __str__(self) -> str:
        family = "IPv6" if self.spot.af == IP6 else "IPv4"
        title = f"{self.spot.interface}, {family} {self.spot.local_ip} port {self.spot.port}"
        note = f"; {self.note}" if self.note else ""
        if self.external is not None:
            kinds = " and ".join(transport_word(mapping.transport) for mapping in self.mappings)
            leases = [mapping.lease_s for mapping in self.mappings if mapping.lease_s is not None]
            life = f"for {min(leases):g} s at a time" if leases else "until it is removed"
            ip, port = self.external
            return (
                f"{title}: {ip} port {port} leads here ({kinds}, by {self.protocol}, {life}){note}"
            )
        if not self.causes and not self.note:
            return f"{title}: asking the router"
        causes = "; ".join(f"{name}: {cause}" for name, cause in self.causes.items())
        return f"{title}: not mapped{': ' if causes else ''}{causes}{note}"


class MappingStatus:
    """All of a node; ``str()`` of it is for people, ``as_dict()`` for programs."""

    def __init__(self, spots: Iterable[SpotStatus], note: str = "") -> None:
        self.spots = list(spots)
        self.note = note

    @property
    def mapped(self) -> bool:
        """Whether anything is mapped."""
        return any(spot.external is not None for spot in self.spots)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"note": self.note, "spots": [spot.as_dict() for spot in self.spots]}

    def __str__(self) -> str:
        lines = [f"port mapping: {self.note}"] if self.note else []
        return "\n".join(lines + [f"port mapping on {spot}" for spot in self.spots])

"""What is known about the NATs of this machine, for programs and for people; PURE."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..net.constants import DeltaType, NATType, af_name
from .behaviour import Filtering, Mapping, PortAllocation, delta_type, nat_type

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PathReport:
    """One interface in one family. Facts are True, False or None: not tested.

    Attributes:
        interface: its name.
        af: the family, ``IP4`` or ``IP6``.
        local_ip: its own address.
        nat64: the facts are about IPv4 through NAT64.
        udp: UDP to the internet and back gets through.
        tcp: TCP does.
        external: the addresses that servers see, over UDP and TCP.
        mapping: for UDP.
        filtering: for UDP.
        allocation: of ports, for UDP.
        tcp_mapping: for TCP.
        tcp_allocation: for TCP.
        hairpin: the NAT turns packets round that are for its own external address.
        firewall: packets nobody asked for are kept out (where nothing is translated).
        several_nats: more than one NAT is in the way.
        rtt_s: to the nearest server, in seconds.
        taken: external UDP ports that the probe itself took: a NAT with few has the fewer left.

    """

    interface: str
    af: int
    local_ip: str
    nat64: bool = False
    udp: bool | None = None
    tcp: bool | None = None
    external: tuple[str, ...] = ()
    mapping: Mapping | None = None
    filtering: Filtering | None = None
    allocation: PortAllocation | None = None
    tcp_mapping: Mapping | None = None
    tcp_allocation: PortAllocation | None = None
    hairpin: bool | None = None
    firewall: bool | None = None
    several_nats: bool | None = None
    rtt_s: float | None = None
    taken: tuple[int, ...] = ()

    @property
    def nat_type(self) -> NATType | None:
        """The classic type of NAT; None when too little is known."""
        return nat_type(self.udp, self.mapping, self.filtering)

    @property
    def delta_type(self) -> DeltaType | None:
        """The classic port delta; None when too little is known."""
        return delta_type(self.allocation or self.tcp_allocation)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        plain = asdict(
            replace(self, mapping=None, filtering=None, allocation=None, tcp_mapping=None,
                    tcp_allocation=None)
        )  # fmt: skip
        for name in ("mapping", "filtering", "tcp_mapping"):
            value = getattr(self, name)
            plain[name] = None if value is None else value.value
        for name in ("allocation", "tcp_allocation"):
            value = getattr(self, name)
            plain[name] = None if value is None else value.as_dict()
        plain["af"] = af_name(self.af)
        plain["external"], plain["taken"] = list(self.external), list(self.taken)
        kind, delta = self.nat_type, self.delta_type
        plain["nat_type"] = None if kind is None else kind.name.lower()
        plain["delta_type"] = None if delta is None else delta.name.lower()
        return plain

    def lines(self) -> list[str]:
        """Return the lines for people."""
        title = f"{self.interface}, {af_name(self.af)} {self.local_ip}"
        if self.nat64:
            title = f"{self.interface}, IPv4 through NAT64"
        if self.udp is None and self.tcp is None:
            return [title, "  nothing tested: UDP, TCP, mapping and filtering are not known"]
        kind, delta = self.nat_type, self.delta_type
        rows = [
            ("external address", ", ".join(self.external) or "not known"),
            ("UDP", _fact(self.udp, "gets through", "blocked")),
            ("mapping", _word(self.mapping)),
            ("filtering", _word(self.filtering)),
            ("ports", "not tested" if self.allocation is None else str(self.allocation)),
            ("TCP", _fact(self.tcp, "gets through", "blocked")),
            ("TCP mapping", _word(self.tcp_mapping)),
            (
                "TCP ports",
                "not tested" if self.tcp_allocation is None else str(self.tcp_allocation),
            ),
            ("hairpin", _fact(self.hairpin)),
            ("firewall", _fact(self.firewall)),
            ("several NATs", _fact(self.several_nats)),
            ("type", "not known" if kind is None else kind.name.lower().replace("_", " ")),
            ("port delta", "not known" if delta is None else delta.name.lower().replace("_", " ")),
            ("round trip", "not known" if self.rtt_s is None else f"{self.rtt_s * 1000:.0f} ms"),
        ]
        return [title, *(f"  {name:<17}{value}" for name, value in rows)]


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One STUN server.

    Attributes:
        server: as it was configured.
        answered: over UDP or TCP; None: it was not asked.
        rtt_s: of the quickest answer, in seconds.
        filtering_test: it has a second address (RFC 5780).
        software: what it calls itself.
        error: why it did not answer; or ``ALTERNATE-SERVER …``.

    """

    server: str
    answered: bool | None = None
    rtt_s: float | None = None
    filtering_test: bool | None = None
    software: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class NetReport:
    """All that one probe found.

    Attributes:
        paths: by interface and family, the most promising interface first.
        servers: the STUN servers.
        nat64_prefix: for example ``64:ff9b::/96``; None where there is none or it was not found.
        nat64: whether there is NAT64; None: not tested.
        missing: what kept facts from being tested, with the mend.
        seconds: how long the probe took.

    """

    paths: tuple[PathReport, ...] = ()
    servers: tuple[ServerReport, ...] = ()
    nat64_prefix: str | None = None
    nat64: bool | None = None
    missing: tuple[str, ...] = ()
    seconds: float = 0.0

    def path(self, af: int, interface: str | None = None) -> PathReport | None:
        """Return the facts of a family, of the best interface or of a certain one."""
        for each in self.paths:
            if each.af == af and not each.nat64 and interface in (None, each.interface):
                return each
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "paths": [each.as_dict() for each in self.paths],
            "servers": [asdict(each) for each in self.servers],
            "nat64": self.nat64,
            "nat64_prefix": self.nat64_prefix,
            "missing": list(self.missing),
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """Return the report for people."""
        lines: list[str] = []
        for each in self.paths:
            lines += each.lines()
        if not self.paths:
            lines.append("no interface with an address that leads anywhere")
        lines.append(f"NAT64 prefix       {self.nat64_prefix or _fact(self.nat64)}")
        for server in self.servers:
            detail = server.error or "no answer"
            if server.answered:
                trip = "" if server.rtt_s is None else f"{server.rtt_s * 1000:.0f} ms"
                tests = ", can test filtering" if server.filtering_test else ""
                detail = f"{trip}{tests}{', ' + server.software if server.software else ''}"
            elif server.answered is None:
                detail = server.error or "not asked"
            lines.append(f"STUN {server.server}: {detail}")
        lines += [f"missing: {each}" for each in self.missing]
        lines.append(f"took {self.seconds:.2f} s")
        return "\n".join(lines)


def _fact(value: bool | None, yes: str = "yes", no: str = "no") -> str:
    return "not tested" if value is None else yes if value else no


def _word(value: Mapping | Filtering | None) -> str:
    return "not tested" if value is None else value.value

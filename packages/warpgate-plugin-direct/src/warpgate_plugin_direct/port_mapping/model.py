"""What a mapping is, why there is none, and whether its external address can be believed; PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from warpgate.net.constants import TCP
from warpgate.protocol.ip import is_public, split_scope

LEASE_S: Final = 7200.0
"""The lease asked for, in seconds (RFC 6886 section 3.3)."""
MAX_LEASE_S: Final = 86400.0
"""A longer lease counts as this: a router may forget it sooner (RFC 6887 section 15)."""
MIN_LEASE_S: Final = 10.0
"""A mapping that is granted for less is worth nothing."""
MIN_RENEW_S: Final = 4.0
"""Never renew sooner than after so many seconds, whatever a router says (RFC 6887 section 11.2.1)."""


class MappingError(Exception):
    """A router did not do what it was asked.

    Args:
        reason: the cause, in words for people.
        code: the protocol's own number, None when there was no answer.
        conflict: another port may do.

    """

    def __init__(self, reason: str, code: int | None = None, *, conflict: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.conflict = conflict


@dataclass(frozen=True, slots=True)
class Spot:
    """What is mapped where: one family of one interface.

    Attributes:
        interface, index: its name and number.
        af: the family.
        local_ip: the address to map, without a scope.
        port: the listening port.
        gateway: the router's address, link-local ones with their scope; None: to be found out.

    """

    interface: str
    index: int
    af: int
    local_ip: str
    port: int
    gateway: str | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """One port that a router lets in.

    Attributes:
        transport: ``TCP`` or ``UDP``.
        internal_port: this node's.
        external_ip: the address by the router's word; None: it has none to tell.
        external_port: the port at that address.
        lease_s: how long it lasts, in seconds from ``made``; None: until it is removed.
        made: when, on the monotonic clock, in seconds.
        handle: the router's own name for it (a UPnP pinhole's ``UniqueID``).

    """

    transport: int
    internal_port: int
    external_ip: str | None
    external_port: int
    lease_s: float | None
    made: float
    handle: str = ""

    @property
    def renew_at(self) -> float:
        """When to renew it: at half of its life."""
        if self.lease_s is None:
            return float("inf")
        return self.made + max(min(self.lease_s, MAX_LEASE_S) / 2, MIN_RENEW_S)

    @property
    def ends_at(self) -> float:
        """When it ends by itself."""
        return float("inf") if self.lease_s is None else self.made + self.lease_s


def transport_word(transport: int) -> str:
    """Return ``"TCP"`` or ``"UDP"``."""
    return "TCP" if transport == TCP else "UDP"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to make of a router's external address.

    Attributes:
        ip: the address to publish; None: none.
        reason: why none, or why not the router's; empty when the router is believed.

    """

    ip: str | None
    reason: str = ""


def judge(
    claimed: str | None,
    own_ip: str,
    seen: Sequence[str] = (),
    several_nats: bool | None = None,
) -> Verdict:
    """Decide which external address a mapping really has.

    Args:
        claimed: what the router says.
        own_ip: the mapped local address; an IPv6 pinhole changes nothing about it.
        seen: the addresses that STUN servers see; empty: not known.
        several_nats: whether another NAT is known to be in the way; None: not known.

    """
    bare = None if claimed is None else split_scope(claimed)[0]
    if bare == own_ip and is_public(own_ip):
        return Verdict(own_ip)
    public = [ip for ip in seen if is_public(ip)]
    if public:
        if bare in public:
            return Verdict(bare)
        said = bare or "no external address"
        if several_nats is False:
            return Verdict(public[0], f"the router says {said}, servers see {public[0]}")
        return Verdict(
            None,
            f"the router says {said}, but servers see {public[0]}: "
            "another NAT is in the way, or the router is wrong",
        )
    if bare is None:
        return Verdict(None, "the router has no external address; is its line up?")
    if not is_public(bare):
        return Verdict(
            None, f"the router's external address {bare} is not public: another NAT is in the way"
        )
    return Verdict(bare)

"""What a peer's word can make this node dial (WIRE section 5; RFC 8445, section 19.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from warpgate.protocol.ip import is_loopback, is_private, is_public
from warpgate.traversal.report import SkipReason


class Link(Protocol):
    """What must be known of a local interface."""

    def on_link(self, ip: str) -> bool:
        """Return whether it is directly on the address's network."""


def refuse_dial(
    ip: str, links: Sequence[Link], own_ips: frozenset[str] | set[str], over_loopback: bool
) -> SkipReason | None:
    """Decide whether a responder may dial an address that a peer has named.

    Args:
        ip: the address.
        links: the node's interfaces.
        own_ips: the addresses of this machine.
        over_loopback: whether the peer's signal itself came over loopback or in-process.

    Returns:
        None when it may, else the reason for the refusal.

    """
    if is_loopback(ip):
        return None if over_loopback else SkipReason.PEER_CHOSE_LOOPBACK
    if is_public(ip):
        return None
    if not is_private(ip):
        return SkipReason.PEER_CHOSE_UNUSABLE
    if (over_loopback and ip in own_ips) or any(link.on_link(ip) for link in links):
        return None
    return SkipReason.PEER_CHOSE_PRIVATE

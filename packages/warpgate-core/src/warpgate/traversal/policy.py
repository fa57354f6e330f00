"""What a peer's word can make this node dial (WIRE section 5; RFC 8445, section 19.5.1)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from ..protocol.ip import is_loopback, is_private, split_scope
from .report import SkipReason


class Link(Protocol):
    """What must be known of a local interface."""

    def on_link(self, ip: str) -> bool: ...


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
    try:
        address = ipaddress.ip_address(split_scope(ip)[0])
    except ValueError:
        return SkipReason.PEER_CHOSE_UNUSABLE
    if address.is_multicast or address.is_unspecified or ip == "255.255.255.255":
        return SkipReason.PEER_CHOSE_UNUSABLE
    if is_loopback(ip):
        return None if over_loopback else SkipReason.PEER_CHOSE_LOOPBACK
    if not is_private(ip) or (ip in own_ips and over_loopback):
        return None
    if any(link.on_link(ip) for link in links):
        return None
    return SkipReason.PEER_CHOSE_PRIVATE

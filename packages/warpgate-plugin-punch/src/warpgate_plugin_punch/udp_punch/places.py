"""Which of the addresses that a peer names may be written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from warpgate.net.constants import IP6
from warpgate.protocol.ip import is_link_local
from warpgate_plugin_punch.udp_punch.aims import Address, usable

if TYPE_CHECKING:
    from warpgate.plugin import Plugin


def permitted(plugin: Plugin, endpoints: Sequence[Address], limit: int) -> list[Address]:
    """Return the endpoints of the attempt's family that may be written to (WIRE.md section 5).

    Args:
        plugin: the attempt.
        endpoints: what the peer has named, or where something came from.
        limit: how many at most; the others are left out.

    """
    allowed: list[Address] = []
    for ip, port in usable(endpoints, plugin.af == IP6, limit):
        if plugin.af == IP6 and is_link_local(ip) and "%" not in ip:
            ip = f"{ip}%{plugin.nic.name}"
        planned = plugin.initiator and ip == plugin.dest_info["ip"]
        if planned or plugin.refuses(ip) is None:
            allowed.append((ip, port))
        else:
            plugin.node.stats.count("punch_targets_refused")
    return allowed

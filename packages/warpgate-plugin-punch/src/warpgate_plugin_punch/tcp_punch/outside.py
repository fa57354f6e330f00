"""How the own ports look from outside: known, or asked of STUN servers over TCP from those very ports."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warpgate.stun.client import tcp_mapped_addresses
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.sockets import crosses_nat, stun_servers
from warpgate_plugin_punch.tcp_punch.schedule import foretold

if TYPE_CHECKING:
    from warpgate.net.addresses import Address
    from warpgate.plugin import Plugin
    from warpgate_plugin_punch.tcp_punch.dialler import Dialler

ASK_S: Final = 0.8
ASK_SERVERS: Final = 2


@dataclass(frozen=True, slots=True)
class Outside:
    """Where the peer sees SYNs come from.

    Attributes:
        ports: for each own port; of a NAT that counts, the next ones.
        ip: the external address, where a server has told it; else empty.
        note: what went wrong, for people.

    """

    ports: list[int]
    ip: str = ""
    note: str = ""


def external(plugin: Plugin) -> str:
    """Return this node's address as servers see it; its own where that is not known."""
    report = plugin.node.net_report
    path = None if report is None else report.path(plugin.af, plugin.nic.name)
    return path.external[0] if path is not None and path.external else str(plugin.src_info["ext"])


async def look_outside(
    plugin: Plugin, mine: SideFacts, local_ip: str, own: list[int], sockets: Dialler
) -> Outside:
    """Return how the peer will see the own ports.

    Args:
        plugin: the attempt.
        mine: the own NAT.
        local_ip: the ports' address.
        own: the ports.
        sockets: keeps the connections to servers, and with them the NAT's mappings.

    """
    if not crosses_nat(plugin) or mine.hard:
        return Outside(own)
    if mine.keeps_port:
        return Outside([mine.outer_port(port) or port for port in own])
    servers = stun_servers(plugin.node, plugin.af)[:ASK_SERVERS]
    if not servers:
        return Outside(own, note="no STUN server to ask how the NAT shows this side's ports")
    if mine.counting:
        return await _counter(mine, local_ip, own, servers, sockets)
    seen = await asyncio.gather(*(_ask((local_ip, port), servers, sockets) for port in own))
    found = [mapped for mapped in seen if mapped]
    if not found:
        return Outside(own, note="no STUN server answered over TCP")
    return Outside([mapped[1] for mapped in found], found[0][0])


async def _counter(
    mine: SideFacts, local_ip: str, own: list[int], servers: list[Address], sockets: Dialler
) -> Outside:
    """Ask one server after the other: each connection takes a port."""
    extra = sockets.open(local_ip)
    for server in servers:
        mapped = await _ask((local_ip, extra), [server], sockets)
        if mapped is not None:
            return Outside(foretold([mapped[1]], mine.step), mapped[0])
    return Outside(own, note="no STUN server answered over TCP")


async def _ask(local: Address, servers: list[Address], sockets: Dialler) -> Address | None:
    kept: list[socket.socket] = []
    try:
        answers = await tcp_mapped_addresses(local, servers, grace_s=0, timeout_s=ASK_S, keep=kept)
    finally:
        sockets.hold(kept)
    return answers[0].mapped if answers else None

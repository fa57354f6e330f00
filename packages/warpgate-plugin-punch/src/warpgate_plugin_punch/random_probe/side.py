"""Works out what one side tells the other of itself."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from warpgate.errors import TraversalError
from warpgate.net.constants import af_name
from warpgate.protocol.ip import is_public, split_scope
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.common.sockets import foretold, mapped
from warpgate_plugin_punch.random_probe.machine import aim, ports_of
from warpgate_plugin_punch.random_probe.messages import SideNumbers

if TYPE_CHECKING:
    from warpgate.net.datagram import DatagramSocket
    from warpgate.plugin import Plugin

_UNKNOWN_PORTS = SideFacts(mapping="apd", filtering="apd", kind="random")


def gateway(plugin: Plugin) -> str:
    """Return the name of what an attempt's packets go through, for the gate of sprays."""
    return f"{plugin.nic.name} {af_name(plugin.af)}"


async def numbers(
    plugin: Plugin, link: DatagramSocket, facts: SideFacts, sockets: int, packets: int
) -> SideNumbers:
    """Return this side's numbers.

    Args:
        plugin: the attempt.
        link: its one socket, which is asked about.
        facts: this side's NAT.
        sockets, packets: how many it may have and send.

    Raises:
        TraversalError: the address outside is not known, and no STUN server says it.

    """
    facts, ip, port, counter = await _outside(plugin, link, facts)
    if facts.easy:
        return SideNumbers(facts=facts, ip=ip, port=port, sockets=sockets, packets=packets)
    low, high, stride = ports_of(facts, counter)
    return SideNumbers(
        facts=facts, ip=ip, low=low, high=high, stride=stride, sockets=sockets, packets=packets,
        port=aim(low, high, stride, _taken(plugin), random.Random()),
    )  # fmt: skip


async def _outside(
    plugin: Plugin, link: DatagramSocket, facts: SideFacts
) -> tuple[SideFacts, str, int, int | None]:
    """Return the facts, mended if a server contradicts them, address, port and counter."""
    known = foretold(plugin, facts, link.local)
    if known is not None and known[0] == split_scope(link.local[0])[0]:
        return facts, *known, None  # nothing is translated
    external = str(plugin.src_info["ext"])
    if not facts.easy and not facts.counting and is_public(external):
        return facts, external, 0, None
    seen = await mapped(plugin, link, every=not facts.easy)
    if seen is None:
        if known is None:
            raise TraversalError(
                "no STUN server answered, so the port outside this NAT is not known"
            )
        return facts, *known, None
    if facts.easy and seen.independent is False:
        facts = _UNKNOWN_PORTS  # this network is not the one that the report was about
    counter = seen.counter(facts.step) if facts.counting else None
    return facts, *seen.endpoint, counter


def _taken(plugin: Plugin) -> set[int]:
    """Return ports outside that other mappings of this machine are known to have."""
    report = plugin.node.net_report
    path = None if report is None else report.path(plugin.af, plugin.nic.name)
    return set() if path is None else set(path.taken)

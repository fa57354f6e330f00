"""In which family a relay serves a peer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from warpgate.errors import RelayError
from warpgate.net.constants import IP4, IP6

if TYPE_CHECKING:
    from warpgate_plugin_turn.allocation import Allocation
    from warpgate_plugin_turn.pool import Pool


async def serving(pool: Pool, af: int, *, udp_blocked: bool = False) -> Allocation:
    """Allocate a relay of a peer's family; for IPv6, where a server has none, else one of IPv4.

    An IPv6 host may reach that through NAT64.

    Args:
        pool: whose servers.
        af: the peer's family.
        udp_blocked: UDP is known not to get out.

    Raises:
        RelayError: no server gave one; the text says why of each.

    """
    servers, loop = pool.servers, asyncio.get_running_loop()
    if af == IP6 and 0 < len(servers.states) == servers.lacking(IP6, loop.time()):
        return await pool.allocate(IP4, udp_blocked=udp_blocked)
    try:
        return await pool.allocate(af, udp_blocked=udp_blocked)
    except RelayError as error:
        if af != IP6 or not servers.lacking(IP6, loop.time()):
            raise
        try:
            return await pool.allocate(IP4, udp_blocked=udp_blocked)
        except RelayError:
            raise error from None

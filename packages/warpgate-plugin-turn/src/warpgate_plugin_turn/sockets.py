"""Plain UDP sockets towards a peer's relay, and how the world sees them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from warpgate.net.addresses import Address, canonical_ip, system_address, user_address
from warpgate.net.budget import MAX_SYNS, SYN_BYTES, PacketBudget
from warpgate.net.constants import IP4, IP6
from warpgate.net.datagram import DatagramSocket
from warpgate.net.resolve import look_up
from warpgate.stun.client import mapped_addresses, tcp_mapped_addresses

MAX_OWN_STUN: Final = 2
STUN_RTO_S: Final = 0.25
STUN_S: Final = 0.9
STUN_PACKETS: Final = 3  # that one query sends at most in its time
STUN_BYTES: Final = 28
RESOLVE_S: Final = 3.0


def local_ip_towards(dest: Address) -> str | None:
    """Return the local address from which a destination is reached; None: nothing leads there."""
    af = IP6 if ":" in dest[0] else IP4
    with socket.socket(af, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(system_address(af, dest))  # sends nothing
        except OSError:
            return None
        return canonical_ip(user_address(probe.getsockname())[0])


async def open_towards(dest: Address) -> DatagramSocket:
    """Return a UDP socket, bound to the local address from which a destination is reached.

    Raises:
        OSError: nothing leads there.

    """
    af = IP6 if ":" in dest[0] else IP4
    sock = socket.socket(af, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        with socket.socket(af, socket.SOCK_DGRAM) as probe:
            probe.connect(system_address(af, dest))  # sends nothing
            local = user_address(probe.getsockname())[0]
        sock.bind(system_address(af, (local, 0)))
        return await DatagramSocket.open(sock)
    except BaseException:
        sock.close()
        raise


async def mapped_ips(
    sock: DatagramSocket, beside: Address | None, own: Sequence[Address], budget: PacketBudget
) -> set[str]:
    """Return the IP addresses that a socket's packets come from, as STUN servers see them.

    Args:
        sock: the socket, which may have a pipe already.
        beside: the server next to the peer's relay, whose word counts most; None: there is none.
        own: this node's own servers.
        budget: counts what goes to the peer's server.

    """
    servers = [each for each in own if (":" in each[0]) == (sock.af == IP6)][:MAX_OWN_STUN]
    family = beside is not None and (":" in beside[0]) == (sock.af == IP6)
    if beside is not None and family and budget.take(beside[0], STUN_PACKETS, STUN_BYTES):
        servers.insert(0, beside)
    if not servers:
        return set()
    answers = await mapped_addresses(sock, servers, rto_s=STUN_RTO_S, timeout_s=STUN_S)
    return {canonical_ip(each.mapped[0]) for each in answers if each.mapped is not None}


async def tcp_mapped_ips(af: int, beside: Address | None, budget: PacketBudget) -> set[str]:
    """Return the IP address that this machine's TCP connections come from, where UDP tells nothing.

    Args:
        af: the family.
        beside: the server next to the peer's relay; None: there is none.
        budget: counts what goes there.

    """
    if (
        beside is None
        or (":" in beside[0]) != (af == IP6)
        or not budget.take(beside[0], MAX_SYNS, SYN_BYTES)
    ):
        return set()
    local = ("::" if af == IP6 else "0.0.0.0", 0)
    answers = await tcp_mapped_addresses(local, [beside], timeout_s=STUN_S)
    return {canonical_ip(each.mapped[0]) for each in answers if each.mapped is not None}


async def resolved(servers: Sequence[Address]) -> list[Address]:
    """Return the addresses of servers given by name or address; what can't be resolved is left out."""
    lookups = [
        look_up(host, port, kind=socket.SOCK_DGRAM, timeout_s=RESOLVE_S) for host, port in servers
    ]
    entries = await asyncio.gather(*lookups, return_exceptions=True)
    found = [user_address(e[4]) for each in entries if isinstance(each, list) for e in each]
    return list(dict.fromkeys(found))

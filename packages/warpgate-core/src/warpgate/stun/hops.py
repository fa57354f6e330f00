"""The addresses of the first routers on a way, which tell a home's NAT from a carrier's behind it.

Linux alone hands ICMP errors to those who are not privileged (ip(7), IP_RECVERR); elsewhere, and
over IPv6, nothing is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Final

from ..net.addresses import system_address
from ..net.constants import IP4
from .attributes import Address

HOPS: Final = 3
HOPS_S: Final = 0.25
MAX_ERRORS: Final = 16  # read from one socket
IP_RECVERR: Final = 11  # linux/in.h; the socket module has no names for these
MSG_ERRQUEUE: Final = 0x2000
SO_EE_ORIGIN_ICMP: Final = 2  # linux/errqueue.h: struct sock_extended_err, then the offender
EXTENDED_ERROR_BYTES: Final = 16
ICMP_TIME_EXCEEDED: Final = 11


async def first_hops(
    af: int, local_ip: str, server: Address, payload: bytes, seconds: float = HOPS_S
) -> tuple[str | None, ...]:
    """Return the addresses of the first routers towards a server; None for the silent ones.

    Args:
        af: the family; only ``IP4`` finds something.
        local_ip: from where.
        server: to where; a packet reaches it when it is nearer than ``HOPS`` routers.
        payload: what is sent, for example a STUN request.
        seconds: how long to wait.

    """
    if sys.platform != "linux" or af != IP4:
        return ()
    loop = asyncio.get_running_loop()
    found: dict[int, str] = {}
    news = asyncio.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(OSError, NotImplementedError))
        for ttl in range(1, HOPS + 1):
            sock = stack.enter_context(socket.socket(af, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.bind(system_address(af, (local_ip, 0)))
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            loop.add_reader(sock.fileno(), _readable, sock, ttl, found, news)
            stack.callback(loop.remove_reader, sock.fileno())
            sock.sendto(payload, system_address(af, server))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not {1, 2} <= set(found):  # the third one is often silent
                    news.clear()
                    await news.wait()
    return tuple(found.get(ttl) for ttl in range(1, HOPS + 1))


def _readable(sock: socket.socket, ttl: int, found: dict[int, str], news: asyncio.Event) -> None:
    for _ in range(MAX_ERRORS):
        try:
            _, ancillary, _, _ = sock.recvmsg(0, 512, MSG_ERRQUEUE)
        except OSError:
            break
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
                offender = offender_of(data)
                if offender is not None:
                    found[ttl] = offender
                    news.set()
    with contextlib.suppress(OSError):  # an answer, or the error once more
        sock.recv(1)


def offender_of(data: bytes) -> str | None:
    """Return who sent a time exceeded, from Linux's ``sock_extended_err`` and the address behind it."""
    if len(data) < EXTENDED_ERROR_BYTES + 8:
        return None
    if (data[4], data[5]) != (SO_EE_ORIGIN_ICMP, ICMP_TIME_EXCEEDED):
        return None
    return socket.inet_ntoa(data[EXTENDED_ERROR_BYTES + 4 : EXTENDED_ERROR_BYTES + 8])

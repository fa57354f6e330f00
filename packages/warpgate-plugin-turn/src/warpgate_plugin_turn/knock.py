"""Knocks: small datagrams with a secret that open a way to a peer's relay.

A relay shows only by the first packet which port a symmetric NAT has chosen. So that nobody else's
packet is taken for it, the packet holds what the peer's signal named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from warpgate.net.udp import UdpPipe

PREFIX: Final = b"\x7fwg-knock"  # neither a hello nor a pipe's data begins like this
PAUSES_S: Final = (*(0.02,) * 6, *(0.05,) * 4, *(0.1,) * 4, *(0.5,) * 4)
HELLO_REPEATS_S: Final = (*(0.05,) * 4, *(0.1,) * 4, *(0.3,) * 4)
"""When M1 is repeated towards a relay, which lets it in at an unknown moment. Together with the knocks and
a TCP connection it must stay within the 50 packets of an attempt (WIRE.md section 5)."""


class Knocker:
    """Sends a knock until something comes back on the pipe, or enough have been sent.

    Args:
        pipe: the pipe to the relay.
        secret: what the peer's signal named.
        send: sends one datagram; may refuse to.

    """

    def __init__(self, pipe: UdpPipe, secret: bytes, send: Callable[[bytes], None]) -> None:
        self._pipe = pipe
        self._before = pipe.last_heard
        self._message = knock(secret)
        self._send = send
        self._pauses = list(PAUSES_S)
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def _next(self) -> None:
        self._timer = None
        if self._pipe.closed or self._pipe.last_heard != self._before:
            return
        self._send(self._message)
        if self._pauses:
            pause = self._pauses.pop(0)
            self._timer = asyncio.get_running_loop().call_later(pause, self._next)

    def stop(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def knock(secret: bytes) -> bytes:
    """Return the datagram."""
    return PREFIX + secret

"""The byte in front of every datagram of a proven UDP pipe (WIRE section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe

DATA = 0
CONTROL = 1
HELLO_FLOOR = 0x80
CONTROL_CLOSE = 0


class DatagramFraming:
    """Tells data from control and from late hello datagrams.

    The close message carries the attempt's id, which only the two peers know, so that nobody off
    the path can end a pipe.
    """

    overhead = 1

    def __init__(
        self,
        plugin_id: str,
        pipe: Pipe,
        hello: Callable[[bytes, tuple[str, int]], None],
    ) -> None:
        self._close = bytes((CONTROL, CONTROL_CLOSE)) + plugin_id.encode("ascii")
        self._pipe = pipe
        self._hello = hello

    def encode(self, data: bytes) -> bytes:
        """Return a datagram that carries ``data``."""
        return b"\x00" + data

    def decode(self, data: bytes, addr: tuple[str, int]) -> list[bytes]:
        """Return the user's message in a datagram, or nothing when it was for the core."""
        kind = data[0] if data else -1
        if kind == DATA:
            return [data[1:]]
        if kind >= HELLO_FLOOR:
            self._hello(data, addr)
        elif data == self._close:
            self._pipe.peer_ended()
        else:
            self._pipe.counters.count("unknown_control")
        return []

    def farewell(self) -> bytes:
        """Return the datagram that tells the peer that this side has closed."""
        return self._close

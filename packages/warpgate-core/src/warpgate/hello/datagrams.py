"""What stands around a user's datagrams on a proven UDP pipe (WIRE section 3).

::

    00 ‖ data     01 ‖ control     0x80 and above: a late datagram of the hello

On a sealed pipe everything behind the first byte is sealed: see ``records``. A control message is a
kind (close, consent request, consent answer) and what belongs to it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from warpgate.hello import consent
from warpgate.hello.consent import Consent
from warpgate.hello.records import DATAGRAM_OVERHEAD
from warpgate.net.driver import Driver

if TYPE_CHECKING:
    from warpgate.hello.records import DatagramSeal
    from warpgate.net.udp import UdpPipe

DATA = 0
CONTROL = 1
HELLO_FLOOR = 0x80
CONTROL_CLOSE = 0

EXPIRED = f"the peer has not answered for {consent.EXPIRY_S:g} s (consent expired, RFC 7675)"


class DatagramFraming:
    """Tells data from control and from late hello datagrams, and keeps consent fresh.

    The close message carries the attempt's id, which only the two peers know, so that nobody off
    the path can end a pipe.

    Args:
        plugin_id: the attempt's id.
        pipe: the pipe, whose filter this becomes.
        hello: takes late datagrams of the hello.

    """

    overhead = 1

    def __init__(
        self, plugin_id: str, pipe: UdpPipe, hello: Callable[[bytes, tuple[str, int]], None]
    ) -> None:
        self._close = bytes((CONTROL_CLOSE,)) + plugin_id.encode("ascii")
        self._pipe = pipe
        self._hello = hello
        self._consent = Consent(os.urandom, random.random)
        self._driver = Driver(self._consent, self._send_control, self._expired)

    def start(self) -> None:
        """Begin to check consent, until the pipe closes."""
        self._driver.start()
        self._pipe.add_close_callback(lambda _pipe: self._driver.close())

    def encode(self, data: bytes) -> bytes:
        """Return a datagram that carries ``data``."""
        return b"\x00" + data

    def decode(self, data: bytes, addr: tuple[str, int]) -> Sequence[bytes]:
        """Return the user's message in a datagram, or nothing when it was for the core."""
        kind = data[0] if data else -1
        if kind == DATA:
            return (data[1:],)
        if kind == CONTROL:
            self._control(data[1:], addr)
        else:
            self._other(data, addr)
        return ()

    def farewell(self) -> bytes:
        """Return the datagram that tells the peer that this side has closed."""
        return self._framed(self._close)

    def _framed(self, control: bytes) -> bytes:
        return b"\x01" + control

    def _control(self, body: bytes, addr: tuple[str, int]) -> None:
        if body == self._close:
            self._pipe.peer_ended()
        elif body[:1] in (b"\x01", b"\x02"):
            before = self._consent.refused
            self._driver.feed(body, addr)
            if self._consent.refused != before:
                self._pipe.counters.count("consent_refused")
        else:
            self._pipe.counters.count("unknown_control")

    def _other(self, data: bytes, addr: tuple[str, int], refused: str = "unknown_control") -> None:
        if data and data[0] >= HELLO_FLOOR:
            self._hello(data, addr)
        else:
            self._pipe.counters.count(refused)

    def _send_control(self, body: bytes) -> None:
        self._pipe.write_raw(self._framed(body))

    def _expired(self, _event: object) -> None:
        self._pipe.counters.count("consent_expired")
        self._pipe.abort(TimeoutError(EXPIRED))


class SealedFraming(DatagramFraming):
    """The same with everything behind the first byte sealed: nobody on the path can end a pipe.

    Args:
        plugin_id: the attempt's id.
        pipe: the pipe, whose filter this becomes.
        hello: takes late datagrams of the hello.
        seal: seals and opens.

    """

    overhead = DATAGRAM_OVERHEAD

    def __init__(
        self,
        plugin_id: str,
        pipe: UdpPipe,
        hello: Callable[[bytes, tuple[str, int]], None],
        seal: DatagramSeal,
    ) -> None:
        super().__init__(plugin_id, pipe, hello)
        self._seal = seal
        self._open = seal.open
        self.encode = seal.seal  # type: ignore[method-assign]  # one call less for a datagram

    def decode(self, data: bytes, addr: tuple[str, int]) -> Sequence[bytes]:
        """Return the user's message in a datagram, or nothing when it was for the core."""
        body = self._open(data)
        if body is None:
            self._other(data, addr, "datagrams_refused")
            return ()
        self._consent.heard = self._pipe.last_heard  # nobody else can have sealed it
        if data[0] == DATA:
            return (body,)
        self._control(body, addr)
        return ()

    def _framed(self, control: bytes) -> bytes:
        return self._seal.seal(control, CONTROL)

"""This machine's clock by NTP: a second opinion on how long a signal took; never waited for."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from warpgate.server_urls import parse_host_port

if TYPE_CHECKING:
    from warpgate.plugin import Plugin

NTP_PORT: Final = 123
ASK_S: Final = 1.0
ASK_SERVERS: Final = 3
AGAIN_S: Final = 1800.0


class NtpClock:
    """Asks NTP servers in a thread of its own; needs the extra ``[ntp]``, knows nothing without.

    Args:
        servers: ``host[:port]``.

    """

    def __init__(self, servers: Sequence[str]) -> None:
        self._servers = [parse_host_port(text, NTP_PORT) for text in servers[:ASK_SERVERS]]
        self._offset_s: float | None = None
        self._asked_s = -AGAIN_S
        self._usable = importlib.util.find_spec("ntplib") is not None

    def refresh(self) -> threading.Thread | None:
        """Ask again if it is time to; returns the thread that does, which nobody need wait for."""
        now = time.monotonic()
        if not (self._usable and self._servers) or now - self._asked_s < AGAIN_S:
            return None
        self._asked_s = now
        thread = threading.Thread(target=self._ask, name="warpgate ntp", daemon=True)
        thread.start()
        return thread

    def now_ms(self) -> int:
        """Return the time in Unix milliseconds, 0 when no server has answered."""
        offset = self._offset_s
        return 0 if offset is None else int((time.time() + offset) * 1000)

    def _ask(self) -> None:
        import ntplib

        for host, port in self._servers:
            try:
                answer = ntplib.NTPClient().request(host, port=port, timeout=ASK_S)
            except (OSError, ntplib.NTPException):
                continue  # it is only a second opinion
            self._offset_s = answer.offset
            return


class Factory:
    """Makes the attempts of a node; they share its clock."""

    def __init__(self, cls: type[Plugin], clock: NtpClock) -> None:
        self._cls = cls
        self._clock = clock

    def build_plugin(self) -> Plugin:
        """Return a new attempt."""
        plugin = self._cls()
        plugin.clock = self._clock  # type: ignore[attr-defined]
        return plugin

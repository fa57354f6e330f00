"""Permissions and channels of an allocation, and their renewal; PURE (RFC 8656 sections 9 and 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from warpgate.errors import AllocationExpired, RelayError
from warpgate.stun.attributes import Address
from warpgate.stun.message import Message
from warpgate_plugin_turn.errors import ServerUnreachable
from warpgate_plugin_turn.machine_events import Event, Permitted, Refused
from warpgate_plugin_turn.requests import Requests
from warpgate_plugin_turn.wire import (
    CHANNEL_BIND,
    CHANNEL_NUMBER,
    CREATE_PERMISSION,
    FIRST_CHANNEL,
    XOR_PEER_ADDRESS,
)

PERMISSION_LIFETIME_S: Final = 300.0  # RFC 8656 section 9
CHANNEL_LIFETIME_S: Final = 600.0  # RFC 8656 section 12
RENEW_AT: Final = 0.6  # of a lifetime: more than one further try fits into the rest
MAX_PERMISSIONS: Final = 16
MAX_CHANNELS: Final = 16


@dataclass(slots=True)
class _Channel:
    number: int
    renew_at: float = 0.0
    bound: bool = False
    asked: bool = False


@dataclass(slots=True)
class _Permission:
    renew_at: float = 0.0
    granted: bool = False
    asked: bool = False


class Grants:
    """Whom the server lets through to us.

    Args:
        requests: how the server is asked.
        tell: takes the events ``Permitted`` and ``Refused``, and the time.
        lost: told of an answer, or the lack of one, that may mean that there is no allocation any
            more; returns whether that is so.
        permission_s, channel_s: the server's lifetimes, in seconds.

    """

    def __init__(
        self,
        requests: Requests,
        tell: Callable[[Event, float], None],
        lost: Callable[[RelayError, float], bool],
        permission_s: float = PERMISSION_LIFETIME_S,
        channel_s: float = CHANNEL_LIFETIME_S,
    ) -> None:
        self._requests = requests
        self._tell = tell
        self._lost = lost
        self._permission_s = permission_s
        self._channel_s = channel_s
        self._permissions: dict[str, _Permission] = {}
        self._channels: dict[Address, _Channel] = {}
        self._peers: dict[int, Address] = {}

    def permit(self, ip: str, now: float) -> bool:
        """Ask for a permission, unless there is one; False when there are too many."""
        known = self._permissions.get(ip)
        if known is None:
            if len(self._permissions) >= MAX_PERMISSIONS:
                self._requests.counters.count("turn_permissions_limit")
                return False
            self._permissions[ip] = _Permission()
            self._ask_permission([ip], now)
        return True

    def bind(self, peer: Address, now: float) -> bool:
        """Ask for a channel, unless there is one; False when there are too many."""
        if peer not in self._channels:
            if len(self._channels) >= MAX_CHANNELS:
                self._requests.counters.count("turn_channels_limit")
                return False
            number = FIRST_CHANNEL + len(self._channels)
            self._channels[peer] = _Channel(number)
            self._peers[number] = peer
            self._ask_channel(peer, now)
        return True

    def channel_of(self, peer: Address) -> int | None:
        """Return a peer's channel, once it is bound."""
        channel = self._channels.get(peer)
        return channel.number if channel is not None and channel.bound else None

    def peer_of(self, number: int) -> Address | None:
        """Return a channel's peer."""
        return self._peers.get(number)

    def next_timeout(self) -> float | None:
        """Return when the next renewal is due."""
        grants: list[_Permission | _Channel] = [
            *self._permissions.values(),
            *self._channels.values(),
        ]
        return min((each.renew_at for each in grants if not each.asked), default=None)

    def handle_timeout(self, now: float) -> None:
        """Renew what is due."""
        due = [ip for ip, p in self._permissions.items() if not p.asked and now >= p.renew_at]
        if due:
            self._ask_permission(due, now)
        for peer, channel in self._channels.items():
            if not channel.asked and now >= channel.renew_at:
                self._ask_channel(peer, now)

    def _ask_permission(self, ips: Iterable[str], now: float) -> None:
        asked = list(ips)
        for ip in asked:
            self._permissions[ip].asked = True

        def answered(result: Message | RelayError, now: float) -> None:
            if self._fatal(result, now):
                return
            for ip in asked:
                permission = self._permissions[ip]
                permission.asked = False
                if not isinstance(result, RelayError):
                    permission.renew_at = now + self._permission_s * RENEW_AT
                    if not permission.granted:
                        self._tell(Permitted(ip), now)
                    permission.granted = True
                elif len(asked) > 1:
                    self._ask_permission([ip], now)  # each on its own: one of them is to blame
                else:
                    del self._permissions[ip]
                    self._tell(Refused(ip, result), now)

        # RFC 8656 section 9.1: the port is of no importance.
        peers: list[tuple[int, Any]] = [(XOR_PEER_ADDRESS, (ip, 0)) for ip in asked]
        self._requests.ask(CREATE_PERMISSION, "CreatePermission", peers, answered, now)

    def _ask_channel(self, peer: Address, now: float) -> None:
        channel = self._channels[peer]
        channel.asked = True

        def answered(result: Message | RelayError, now: float) -> None:
            if self._fatal(result, now):
                return
            channel.asked = False
            # What fails leaves us with indications, which are as good and larger; and is tried again.
            channel.bound = not isinstance(result, RelayError)
            channel.renew_at = now + self._channel_s * RENEW_AT
            if not channel.bound:
                self._requests.counters.count("turn_channel_refused")

        wanted: list[tuple[int, Any]] = [(CHANNEL_NUMBER, channel.number), (XOR_PEER_ADDRESS, peer)]
        self._requests.ask(CHANNEL_BIND, "ChannelBind", wanted, answered, now)

    def _fatal(self, result: Message | RelayError, now: float) -> bool:
        return isinstance(result, AllocationExpired | ServerUnreachable) and self._lost(result, now)

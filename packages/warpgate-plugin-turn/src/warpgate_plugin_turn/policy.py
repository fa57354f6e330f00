"""Which of the addresses that a peer names our relay is opened for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from warpgate import IP4, IP6, Plugin
from warpgate.net.addresses import Address, canonical_ip
from warpgate.protocol.ip import is_loopback, is_public
from warpgate_plugin_turn.messages import MAX_MAPPED

MAX_PEER_IPS: Final = 8


class PeerPolicy:
    """What one attempt's peer may make this side and its relay do.

    Attributes:
        trusted: the addresses of our own relay's server: its operator is one whom we trust.
        mapped: where the peer says that its packets come from, so far as a relay may be opened for it.

    """

    def __init__(self, plugin: Plugin) -> None:
        self.trusted: set[str] = set()
        self.mapped: set[str] = set()
        self._plugin = plugin

    def signed_ips(self, public: bool = False) -> set[str]:
        """Return the addresses that stand in the peer's signed address; with ``public`` those only."""
        peer = self._plugin.manager.attempt_of(self._plugin).peer
        endpoints = [endpoint for nic in peer.interfaces for endpoint in nic.endpoints]
        found = {ip for endpoint in endpoints for ip in (endpoint.ip, endpoint.ext_ip) if ip}
        return {ip for ip in found if is_public(ip)} if public else found

    def hear(self, mapped: Sequence[str]) -> None:
        """Take the addresses that the peer says to come from."""
        for ip in mapped[:MAX_MAPPED]:
            if self.may_permit(ip) and len(self.mapped) < MAX_PEER_IPS:
                self.mapped.add(canonical_ip(ip))

    def peer_ips(self, family: int) -> set[str]:
        """Return the addresses of a family that the peer's packets may come from over the internet."""
        return {ip for ip in self.signed_ips(public=True) | self.mapped if family_of(ip) == family}

    def may_permit(self, ip: str) -> bool:
        """Whether our relay may be opened for an address that the peer says to come from.

        It may for public ones, and for private ones that the peer's address names under its
        signature; for loopback only where the peer is on this very machine.
        """
        if is_loopback(ip):
            return self._plugin.refuses(ip) is None
        return is_public(ip) or ip in self.signed_ips()

    def may_relay(self, ip: str) -> bool:
        """Whether our relay may write to a relay that the peer names."""
        return ip in self.trusted or self.may_permit(ip)

    def may_connect(self, relay: Address) -> bool:
        """Whether our relay may connect over TCP to a relay that the peer names.

        To private addresses only where they stand in the peer's signed address, to loopback never:
        but for the server that our own relay is on.
        """
        ip = relay[0]
        return ip in self.trusted or (not is_loopback(ip) and self.may_permit(ip))

    def refusal(self, ip: str) -> str | None:
        """Say why this side may not write to a server that the peer names, or None."""
        return None if ip in self.trusted else self._plugin.refuses(ip)


def family_of(ip: str) -> int:
    """Return an IP address's family; a relay serves those of its own."""
    return IP6 if ":" in ip else IP4

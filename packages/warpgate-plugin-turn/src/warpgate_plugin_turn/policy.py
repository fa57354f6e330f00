"""Which of the addresses that a peer names our relay is opened for."""

from __future__ import annotations

from warpgate import IP6, Plugin
from warpgate.protocol.ip import is_loopback, is_public


class PeerPolicy:
    """What one attempt's peer may make this side and its relay do.

    Attributes:
        trusted: the addresses of our own relay's server: its operator is one whom we trust.

    """

    def __init__(self, plugin: Plugin) -> None:
        self.trusted: set[str] = set()
        self._plugin = plugin

    def signed_ips(self, public: bool = False) -> set[str]:
        """Return the addresses that stand in the peer's signed address; with ``public`` those only."""
        plugin = self._plugin
        peer = plugin.manager.attempt_of(plugin).peer
        found = {
            ip
            for nic in peer.interfaces
            for endpoint in nic.endpoints
            if endpoint.af == plugin.dest_info["af"]
            for ip in (endpoint.ip, endpoint.ext_ip)
            if ip
        }
        return {ip for ip in found if is_public(ip)} if public else found

    def may_permit(self, ip: str) -> bool:
        """Whether our relay may be opened for an address that the peer says to come from.

        It may for public ones, and for private ones that the peer's address names under its
        signature; for loopback only where the peer is on this very machine.
        """
        if not self.family(ip):
            return False
        if is_loopback(ip):
            return self._plugin.refuses(ip) is None
        return is_public(ip) or ip in self.signed_ips()

    def may_relay(self, ip: str) -> bool:
        """Whether our relay may write to a relay that the peer names."""
        return self.family(ip) and (ip in self.trusted or self.may_permit(ip))

    def refusal(self, ip: str) -> str | None:
        """Say why this side may not write to a server that the peer names, or None."""
        return None if ip in self.trusted else self._plugin.refuses(ip)

    def family(self, ip: str) -> bool:
        """Whether an address is of the peer's family, in which our relay serves it."""
        return (":" in ip) == bool(self._plugin.dest_info["af"] == IP6)

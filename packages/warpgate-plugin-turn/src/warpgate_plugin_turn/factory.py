"""What all attempts of one node share: the pool of relays, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import ConfigError
from warpgate.events import Counters
from warpgate.net.addresses import Address
from warpgate.net.constants import IP4
from warpgate.server_urls import STUN_PORT, TurnServer, parse_host_port
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.pool import Pool, tls_context
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.sockets import resolved
from warpgate_plugin_turn.standby import Standby

if TYPE_CHECKING:
    from warpgate import Node
    from warpgate_plugin_turn.strategy import Turn

OPTIONS: Final = ("permission_lifetime_s", "channel_lifetime_s", "probe_s", "give_up_s")
"""Settings in ``plugin_conf["turn"]`` that are passed to every allocation, in seconds."""
UDP_SILENT_S: Final = 60.0
SWITCHES: Final = ("streams", "standby")
KNOWN: Final = ("ca_file", *SWITCHES, "stagger_s", "warm_s", *OPTIONS)


class TurnFactory:
    """Makes the attempts of a node; closed with it.

    Attributes:
        pool: the node's allocations.
        standby: keeps relays ready in networks that let out nothing but the web.
        streams: whether relays for TCP may be used (RFC 6062).
        stun_servers: the node's STUN servers, as addresses.

    """

    def __init__(self, node: Node) -> None:
        """Read the node's settings.

        Raises:
            ConfigError: ``plugin_conf["turn"]`` has an unknown key or a value that can't be used.

        """
        conf = settings(node.conf)
        self._nat64 = node.network.nat64
        self.pool = make_pool(
            node.conf["turn_servers"], conf, node.stats, unix_time=node.unix_time, way=self.way
        )
        self.streams: bool = conf.get("streams", True)
        self.standby = Standby(node, self.pool, conf.get("standby"))
        self.stun_servers: tuple[Address, ...] = ()
        self._udp_silent_until = 0.0
        self._turns: dict[tuple[str, int], asyncio.Event] = {}
        self._stun = [parse_host_port(text, STUN_PORT) for text in node.conf["stun_servers"]]
        self._resolving = asyncio.get_running_loop().create_task(self._resolve())
        node.network.on_arrival(self._arrived)

    async def _resolve(self) -> None:
        self.stun_servers = tuple(await resolved(self._stun))

    def _arrived(self) -> None:
        """Forget what the network before this one did, or this one before its login."""
        self._udp_silent_until = 0.0
        self.pool.servers.forgive()
        self.pool.warm.renew()
        self._resolving.cancel()
        self._resolving = asyncio.get_running_loop().create_task(self._resolve())

    def build_plugin(self) -> Turn:
        """Return a new attempt."""
        from warpgate_plugin_turn.strategy import Turn

        return Turn(self)

    def prepare(self, af: int = IP4, *, udp_blocked: bool = False) -> None:
        """Allocate a relay in the background, because a call is likely to need one.

        Args:
            af: the family of the relayed address.
            udp_blocked: UDP is known not to get out.

        """
        self.pool.prepare(af, udp_blocked=udp_blocked)

    async def way(self, server: Address) -> Address:
        """Return by which address a server is reached from here: NAT64 may be in between."""
        return await self._nat64.way(server)

    async def my_turn(self, key: tuple[str, int]) -> asyncio.Event:
        """Wait until no other attempt of this node at the same peer holds a relay.

        Route types don't matter to a relay, so a second attempt would only take a second one.

        Args:
            key: the peer's node id and the family.

        Returns:
            What the caller sets when its attempt has ended.

        """
        while (held := self._turns.get(key)) is not None and not held.is_set():
            await held.wait()
        mine = self._turns[key] = asyncio.Event()
        self._turns = {other: event for other, event in self._turns.items() if not event.is_set()}
        return mine

    def udp_was(self, heard: bool) -> None:
        """Note whether plain UDP got an answer: while it gets none, relays need not wait for it."""
        now = asyncio.get_running_loop().time()
        self._udp_silent_until = 0.0 if heard else now + UDP_SILENT_S

    @property
    def udp_silent(self) -> bool:
        """Whether plain UDP got no answer the last time, not long ago."""
        return asyncio.get_running_loop().time() < self._udp_silent_until

    def stun_beside(self, allocation: Allocation) -> Address:
        """Return the STUN server that a relay's server is as well, by which a peer can ask it."""
        ip, port = self._nat64.native(allocation.address[0]), allocation.address[1]
        if allocation.server.transport == "udp":
            return ip, port
        for state in self.pool.servers.states:
            server = state.server
            same = server.host in (allocation.server.host, allocation.address[0])
            if same and server.transport == "udp":
                return ip, server.port
        # Servers have one port for UDP and TCP, and another one for TLS.
        tcp = allocation.server.transport == "tcp"
        return ip, port if tcp else STUN_PORT

    async def close(self) -> None:
        """Delete what is allocated."""
        self.standby.close()
        self._resolving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self._resolving])
        await self.pool.close()


def make_pool(
    servers: Sequence[TurnServer], conf: Mapping[str, Any], counters: Counters, **options: Any
) -> Pool:
    """Return a pool for some servers.

    Args:
        servers: the servers.
        conf: what :func:`settings` returned.
        counters: the node's.
        **options: for :class:`Pool`.

    Raises:
        ConfigError: the file of authorities can't be used.

    """
    return Pool(
        ServerList(servers),
        counters,
        tls=tls_context(conf.get("ca_file")),
        options={key: conf[key] for key in OPTIONS if key in conf},
        **{key: conf[key] for key in ("stagger_s", "warm_s") if key in conf},
        **options,
    )


def settings(node_conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``plugin_conf["turn"]`` of a node's settings.

    Raises:
        ConfigError: it has an unknown key or a value that can't be used.

    """
    conf = node_conf["plugin_conf"].get("turn", {})
    if not isinstance(conf, dict):
        raise ConfigError(f'plugin_conf["turn"] is a {type(conf).__name__}; expected a dict')
    for key, value in conf.items():
        if key not in KNOWN:
            raise ConfigError(f'plugin_conf["turn"] has {key!r}; the keys are {", ".join(KNOWN)}')
        if key == "ca_file":
            if not isinstance(value, str):
                raise ConfigError(f'plugin_conf["turn"]["ca_file"] = {value!r}; expected a path')
        elif key in SWITCHES:
            if not isinstance(value, bool):
                raise ConfigError(f'plugin_conf["turn"][{key!r}] = {value!r}; expected a bool')
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(
                f'plugin_conf["turn"][{key!r}] = {value!r}; expected a number of seconds above 0'
            )
    return dict(conf)

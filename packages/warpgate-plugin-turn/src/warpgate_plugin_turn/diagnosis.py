"""What ``warpgate doctor`` asks of TURN servers: a relay of each, which is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from warpgate import Plugin
from warpgate.errors import ConfigError, RelayError
from warpgate.events import Counters
from warpgate.findings import Finding
from warpgate.net.constants import IP4, IP6
from warpgate.net.nat64 import Nat64
from warpgate.protocol.ip import is_public
from warpgate.server_urls import TurnServer, join_host_port
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import (
    CapacityReached,
    CertificateRefused,
    CredentialsExpired,
    NotSupported,
    QuotaReached,
    Redirected,
    ServerUnreachable,
    WrongCredentials,
)
from warpgate_plugin_turn.factory import make_pool, settings
from warpgate_plugin_turn.pool import Pool

DEADLINE_S: Final = 7.0
"""For one server; with the farewell it ends before the core cuts the check off."""
SUBJECT: Final = "TURN servers"
MENDS: Final[tuple[tuple[type[RelayError], str], ...]] = (
    (CredentialsExpired, "get a new user name from whoever makes them; check this machine's clock"),
    (
        WrongCredentials,
        (
            "check user name and password (':', '@', '/' and '%' percent-encoded); a shared secret "
            "is given as turn::secret@host"
        ),
    ),
    (QuotaReached, "close relays of this user, or raise user-quota on the server"),
    (CapacityReached, "name another server, or raise total-quota on this one"),
    (
        CertificateRefused,
        (
            "name the host as in its certificate; for an authority of your own set "
            'plugin_conf["turn"]["ca_file"] or SSL_CERT_FILE'
        ),
    ),
    (NotSupported, "give the server a relay-ip of IPv4 or IPv6"),
    (Redirected, "name the server that it sends to"),
)
OTHERWISE: Final = "the server's log says more"
WAYS: Final = {
    "udp": "check its name and port, that it runs, and that UDP gets there; TLS on 443 gets furthest",
    "tcp": "check its name and port, that it runs, and that TCP gets there; TLS on 443 gets furthest",
    "tls": "check its name and port, that it runs and speaks TLS there",
}


class Diagnosed(Plugin):
    """The part of a strategy that ``warpgate doctor`` asks."""

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        """Get a relay from every configured server, and give it back."""
        return await diagnose(conf)


async def diagnose(conf: Mapping[str, Any]) -> list[Finding]:
    """Get a relay from every configured server, all at once.

    Args:
        conf: a node's settings.

    Returns:
        A finding for each server, or one about the settings.

    """
    if not conf["enable_turn"]:
        return [Finding("ok", SUBJECT, "switched off (enable_turn is False)")]
    servers: Sequence[TurnServer] = conf["turn_servers"]
    if not servers:
        return [
            Finding("ok", SUBJECT, "none configured; those of peers are used, where they have some")
        ]
    try:
        own = settings(conf)
        way = Nat64().way
        pools = [make_pool([server], own, Counters(), way=way) for server in servers]
    except ConfigError as error:
        return [Finding("fail", SUBJECT, str(error), "correct the setting")]
    return list(await asyncio.gather(*map(_ask, servers, pools)))


async def _ask(server: TurnServer, pool: Pool) -> Finding:
    subject = f"TURN {join_host_port(server.host, server.port)} over {server.transport.upper()}"
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(DEADLINE_S):
            allocation = await _relay(pool)
        took = loop.time() - started
    except TimeoutError:
        return Finding("fail", subject, f"no relay within {DEADLINE_S:g} s", WAYS[server.transport])
    except RelayError as error:
        return Finding("fail", subject, str(error), _mend(error, server))
    finally:
        await pool.close()
    relayed = join_host_port(*allocation.relayed)
    if is_public(allocation.address[0]) and not is_public(allocation.relayed[0]):
        text = f"its relay {relayed} is at a private address, where no peer outside reaches it"
        return Finding("fail", subject, text, "set external-ip=<public>/<private> on the server")
    return Finding("ok", subject, f"a relay at {relayed} in {took * 1000:.1f} ms")


async def _relay(pool: Pool) -> Allocation:
    try:
        return await pool.allocate(IP4)
    except NotSupported:
        return await pool.allocate(IP6)


def _mend(error: RelayError, server: TurnServer) -> str:
    if isinstance(error, ServerUnreachable):
        return WAYS[server.transport]
    return next((mend for kind, mend in MENDS if isinstance(error, kind)), OTHERWISE)

"""The configuration of coturn that docs/deploy.md recommends does what it says there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warpgate import IP4, IP6, NODE_TEST_CONF
from warpgate.events import Counters
from warpgate.server_urls import parse_turn
from warpgate.testing.coturn import Coturn, free_port
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import Forbidden, NotSupported, QuotaReached
from warpgate_plugin_turn.pool import Pool, tls_context
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.wire import TCP_PROTOCOL

CONFIGURATION = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "turnserver.conf"
SECRET = "not the one in the file"  # of a server that nobody else reaches
GUARD_S = 10.0
# What stands for this very machine is put in by the fixture.
REPLACED = ("listening-ip", "relay-ip", "listening-port", "tls-listening-port", "cert", "pkey",
            "static-auth-secret", "log-file", "no-cli", "no-dtls", "no-multicast-peers", "realm",
            "fingerprint", "simple-log")  # fmt: skip

pytestmark = [
    pytest.mark.coturn,
    pytest.mark.skipif(not CONFIGURATION.exists(), reason="the repository's docs are not here"),
]


def lines() -> list[str]:
    text = CONFIGURATION.read_text("utf-8")
    kept = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line for line in kept if line.partition("=")[0] not in REPLACED]


@pytest.fixture
def server(coturn: Callable[..., Coturn]) -> Coturn:
    """Run it on loopback, where only its addresses, ports, certificate and secret differ."""
    secret = f"static-auth-secret={SECRET}"
    return coturn(*lines(), secret, accounts=(), hosts=("127.0.0.1", "::1"))


def pool(server: Coturn, transport: str, certificates: Any) -> Pool:
    url = server.url(transport, login=f":{SECRET}".replace(" ", "%20"))
    context = tls_context(str(certificates[0]))
    return Pool(ServerList([parse_turn(url)]), Counters(), tls=context)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_it_relays_over_every_transport(
    server: Coturn, certificates: Any, transport: str
) -> None:
    mine = pool(server, transport, certificates)
    allocation = await mine.take()
    assert allocation.relayed[0] == "127.0.0.1"
    await mine.close()


async def verdict(allocation: Allocation, ip: str) -> Exception | None:
    """Ask for a permission; return the refusal."""
    refused: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    allocation.on_refused = lambda _ip, error: refused.set_result(error)
    allocation.permit(ip)
    granted = allocation._machine.grants._permissions[ip]
    async with asyncio.timeout(GUARD_S):
        while not (refused.done() or granted.granted):  # noqa: ASYNC110  # grants are not told
            await asyncio.sleep(0.002)
    return refused.result() if refused.done() else None


DENIED = {
    IP4: ["0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1",
          "172.31.255.255", "192.0.0.1", "192.168.1.1", "198.18.0.1", "240.0.0.1"],
    IP6: ["::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1", "fc00::1", "fd00::1",
          "fe80::1"],
}  # fmt: skip
ALLOWED = {IP4: ["203.0.113.9", "8.8.8.8", "172.32.0.1"], IP6: ["2001:db8::9", "2606:4700::1"]}


@pytest.mark.parametrize("af", [IP4, IP6])
async def test_no_peer_may_be_inside(server: Coturn, certificates: Any, af: int) -> None:
    mine = pool(server, "udp", certificates)
    allocation = await mine.take(af)
    for ip in ALLOWED[af]:
        assert await verdict(allocation, ip) is None, ip
    for ip in DENIED[af]:
        assert isinstance(await verdict(allocation, ip), Forbidden), ip
    await mine.close()


async def test_no_tcp_is_relayed(server: Coturn, certificates: Any) -> None:
    mine = pool(server, "tcp", certificates)
    mine._options["protocol"] = TCP_PROTOCOL
    with pytest.raises(NotSupported):
        await mine.take()
    await mine.close()


async def test_a_user_s_relays_are_limited(server: Coturn, certificates: Any) -> None:
    (limit,) = [int(line[11:]) for line in lines() if line.startswith("user-quota=")]
    mine = pool(server, "udp", certificates)
    mine._unix_time = lambda: 2_000_000_000.0  # the same user name each time
    for _ in range(limit):
        await mine.allocate()
    with pytest.raises(QuotaReached):
        await mine.allocate()
    await mine.close()


def test_nothing_secret_or_local_stands_in_it() -> None:
    text = CONFIGURATION.read_text("utf-8")
    assert "static-auth-secret=CHANGE-ME" in text
    assert re.search(r"^listening-ip=192\.0\.2\.", text, re.MULTILINE)
    assert NODE_TEST_CONF["enable_turn"] is True
    assert free_port() > 0

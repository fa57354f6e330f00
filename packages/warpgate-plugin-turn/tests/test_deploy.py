"""The configuration of coturn that docs/deploy.md recommends does what it says there."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from warpgate import IP4, IP6, NODE_TEST_CONF
from warpgate.events import Counters
from warpgate.server_urls import parse_turn
from warpgate.testing import LeakCheck
from warpgate.testing.coturn import Coturn, free_port
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import Forbidden, NotSupported, QuotaReached
from warpgate_plugin_turn.grants import MAX_PERMISSIONS
from warpgate_plugin_turn.pool import Pool, tls_context
from warpgate_plugin_turn.servers import ServerList
from warpgate_plugin_turn.tcp_relay import connect
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


@pytest_asyncio.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Wait until connections to servers are closed, which takes a moment longer than the farewell."""
    async with LeakCheck():
        yield


@pytest.fixture
def server(coturn: Callable[..., Coturn]) -> Coturn:
    """Run it on loopback, where only its addresses, ports, certificate and secret differ."""
    secret = f"static-auth-secret={SECRET}"
    return coturn(*lines(), secret, accounts=(), hosts=("127.0.0.1", "::1"))


def pool(server: Coturn, transport: str, certificates: Any) -> Pool:
    url = server.url(transport, login=f":{SECRET}".replace(" ", "%20"))
    context = tls_context(str(certificates[0]))
    return Pool(ServerList([parse_turn(url)]), Counters(), tls=context)


async def test_an_account_by_the_recipe(server: Coturn) -> None:
    """As docs/deploy.md tells a web service to make it, and docs/turn.md how to write it in a URL."""
    user = f"{int(time.time()) + 3600}:alice"
    signed = hmac.new(SECRET.encode(), user.encode(), "sha1").digest()
    password = base64.b64encode(signed).decode()
    login = ":".join(
        text.replace("%", "%25").replace(":", "%3A").replace("/", "%2F")
        for text in (user, password)
    )
    relays = Pool(ServerList([parse_turn(server.url(login=login))]), Counters())
    allocation = await relays.allocate()
    assert allocation.relayed[0] == "127.0.0.1"
    await relays.close()


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


# IANA's registries of special-purpose addresses, without what is globally reachable; multicast; what
# leads to IPv4 addresses; site-local addresses (RFC 3879); what is not given to anybody of IPv6.
SPECIAL = {
    IP4: [
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    ],
    IP6: [
        "::/128", "::/8", "::1/128", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
        "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
        "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "4000::/2", "8000::/2",
    ],
}  # fmt: skip
PUBLIC = {
    IP4: ["1.1.1.1", "8.8.8.8", "192.0.1.1", "192.31.196.1", "223.255.255.255"],
    IP6: ["2000::1", "2001:200::1", "2001:4860:4860::8888", "2606:4700::1", "3ffe::1"],
}
INSIDE = {
    IP4: ["169.254.169.254", "192.168.178.1", "100.100.100.200", "10.1.2.3", "127.0.0.53"],
    IP6: [
        "::ffff:10.0.0.1",
        "::ffff:10.0.1.0",
        "::10.0.1.0",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "fd00:ec2::254",
    ],
}


def special(af: int) -> list[Any]:
    return [ip_network(text) for text in SPECIAL[af]]


def beside(af: int) -> list[str]:
    """Return the public addresses right before and behind the special ranges, and some others."""
    nets = special(af)
    last = ip_address("255.255.255.255" if af == IP4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    edges = [net.network_address - 1 for net in nets if int(net.network_address)]
    edges += [net.broadcast_address + 1 for net in nets if net.broadcast_address != last]
    given = ip_network("2000::/3") if af == IP6 else ip_network("0.0.0.0/0")
    found = [ip for ip in edges if ip in given and not any(ip in net for net in nets)]
    return sorted({*map(str, found), *PUBLIC[af]})


@pytest.mark.parametrize("af", [IP4, IP6])
async def test_no_peer_may_be_inside(server: Coturn, certificates: Any, af: int) -> None:
    mine = pool(server, "udp", certificates)
    allocation = await mine.take(af)
    ends = [ip for net in special(af) for ip in (net.network_address, net.broadcast_address)]
    # coturn compares IPv6 addresses byte by byte, so no line may rely on another byte than its own.
    single = [IPv6Address(1 << 8 * byte) for byte in range(16)] if af == IP6 else []
    for ip in [*dict.fromkeys(map(str, [*ends, *single])), *INSIDE[af]]:
        error = await verdict(allocation, ip)
        assert isinstance(error, Forbidden), (ip, error)
        assert "403" in str(error)
    await mine.close()


@pytest.mark.parametrize("af", [IP4, IP6])
async def test_every_public_peer_may_be_reached(server: Coturn, certificates: Any, af: int) -> None:
    mine = pool(server, "udp", certificates)
    public = beside(af)
    assert len(public) > 8
    for start in range(0, len(public), MAX_PERMISSIONS):
        allocation = await mine.take(af)
        for ip in public[start : start + MAX_PERMISSIONS]:
            assert await verdict(allocation, ip) is None, ip
    await mine.close()


async def test_a_channel_is_no_way_round(server: Coturn, certificates: Any) -> None:
    mine = pool(server, "udp", certificates)
    allocation = await mine.take()
    for number, ip in enumerate(["10.1.2.3", "127.0.0.1"], 1):
        allocation._driver.call(lambda now, ip=ip: allocation._machine.bind((ip, 80), now))
        async with asyncio.timeout(GUARD_S):
            while allocation.counters["turn_channel_refused"] < number:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    await mine.close()


async def test_no_tcp_is_relayed(server: Coturn, certificates: Any) -> None:
    mine = pool(server, "tcp", certificates)
    mine._options["protocol"] = TCP_PROTOCOL
    with pytest.raises(NotSupported):
        await mine.take()
    await mine.close()


async def test_with_tcp_relays_nothing_inside_is_reached_either(
    coturn: Callable[..., Coturn], certificates: Any
) -> None:
    kept = [line for line in lines() if line != "no-tcp-relay"]
    secret = f"static-auth-secret={SECRET}"
    opened = coturn(*kept, secret, accounts=(), hosts=("127.0.0.1", "::1"))
    mine = pool(opened, "tcp", certificates)
    for af, denied in INSIDE.items():
        allocation = await mine.allocate(af, streams=True)
        for ip in denied:
            with pytest.raises(Forbidden):
                await connect(allocation, (ip, 50000))
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

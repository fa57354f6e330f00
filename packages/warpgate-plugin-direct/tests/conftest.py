"""Routers in user space on the loopback interface, that do what a test tells them to."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from warpgate import IP4
from warpgate.events import Counters
from warpgate_plugin_direct.port_mapping.link import LinkMapper
from warpgate_plugin_direct.port_mapping.model import Spot
from warpgate_plugin_direct.port_mapping.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for igd_router

from igd_router import UpnpRouter

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
NODE_PORT = 12345
GUARD_S = 20.0

Mappings = dict[tuple[str, int], int]


class UdpRouter(asyncio.DatagramProtocol):
    """A PCP and NAT-PMP server.

    Attributes:
        pcp, nat_pmp: whether it speaks them.
        external_ip: what it claims.
        lease_s: what it grants, whatever is asked for.
        epoch: its seconds since boot.
        taken: external ports that it gives to nobody, by (transport, port).
        results: result codes to refuse the next requests with, by (protocol, operation).
        mappings: (transport, internal port) → external port.
        log: (protocol, operation, transport, lease) of each request.
        silent: it hears, and says nothing.

    """

    def __init__(self) -> None:
        self.pcp = self.nat_pmp = True
        self.external_ip = PUBLIC
        self.lease_s = 7200
        self.epoch = 1000
        self.taken: set[tuple[str, int]] = set()
        self.results: dict[tuple[str, str], int] = {}
        self.mappings: Mappings = {}
        self.nonces: dict[tuple[str, int], bytes] = {}
        self.log: list[tuple[str, str, str, int]] = []
        self.silent = False
        self.before_answer: Callable[[Any], None] | None = None
        self.transport: Any = None
        self.news = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    @property
    def port(self) -> int:
        return int(self.transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.silent:
            self.news.set()
            return
        if self.before_answer is not None:
            self.before_answer(addr)
        if data[0] == 0:
            self._nat_pmp(data, addr)
        elif data[0] == 2:
            self._pcp(data, addr)
        self.news.set()

    def reboot(self, *, announce_to: int | None = None) -> None:
        """Forget everything; tell so to a port of this machine."""
        self.mappings.clear()
        self.nonces.clear()
        self.epoch = 0
        if announce_to is not None:
            data = struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, self.epoch)
            self.transport.sendto(data, (LOCAL, announce_to))

    def _grant(self, kind: str, internal: int, wish: int, lease: int) -> int:
        if lease == 0:
            self.mappings.pop((kind, internal), None)
            self.nonces.pop((kind, internal), None)
            return 0
        external = wish or internal
        used = {(k, e) for (k, i), e in self.mappings.items() if i != internal}
        while (kind, external) in self.taken | used:
            external += 1
        self.mappings[kind, internal] = external
        return external

    def _nat_pmp(self, data: bytes, addr: Any) -> None:
        if not self.nat_pmp:
            return
        if data == b"\0\0":
            self.log.append(("nat-pmp", "address", "", 0))
            result = self.results.get(("nat-pmp", "address"), 0)
            ip = ipaddress.IPv4Address(self.external_ip).packed
            answer = struct.pack("!BBHI4s", 0, 128, result, self.epoch, ip)
        else:
            op, internal, wish, lease = struct.unpack("!xBxxHHI", data)
            kind = "tcp" if op == 2 else "udp"
            self.log.append(("nat-pmp", "map", kind, lease))
            result = self.results.get(("nat-pmp", "map"), 0)
            external = 0 if result else self._grant(kind, internal, wish, lease)
            granted = self.lease_s if lease else 0
            answer = struct.pack(
                "!BBHIHHI", 0, 128 | op, result, self.epoch, internal, external, granted
            )
        self.transport.sendto(answer, addr)

    def _pcp(self, data: bytes, addr: Any) -> None:
        if not self.pcp:
            if self.nat_pmp:  # as RFC 6886 section 3.5 has it
                self.transport.sendto(struct.pack("!BBHI", 0, 128, 1, self.epoch), addr)
            return
        op, lease = struct.unpack_from("!xBxxI", data)
        if op == 0:
            self.log.append(("pcp", "announce", "", 0))
            result = self.results.get(("pcp", "announce"), 0)
            self.transport.sendto(
                struct.pack("!BBBBII12x", 2, 0x80, 0, result, 0, self.epoch), addr
            )
            return
        nonce, protocol, internal, wish = struct.unpack_from("!12sB3xHH", data, 24)
        kind = "tcp" if protocol == 6 else "udp"
        self.log.append(("pcp", "map", kind, lease))
        result = self.results.get(("pcp", "map"), 0)
        if self.nonces.get((kind, internal), nonce) != nonce:
            result = 2
        external = 0 if result else self._grant(kind, internal, wish, lease)
        if external:
            self.nonces[kind, internal] = nonce
        granted = self.lease_s if lease else 0
        ip = ipaddress.ip_address(self.external_ip)
        packed = ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
        head = struct.pack("!BBBBII12x", 2, 0x81, 0, result, granted, self.epoch)
        body = struct.pack("!12sB3xHH16s", nonce, protocol, internal, external, packed)
        self.transport.sendto(head + body, addr)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so, looking after each request."""
        async with asyncio.timeout(GUARD_S):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Harness:
    """A LinkMapper, and what it publishes."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**{"ssdp_port": 1, "announce_port": 0, **settings})
        self.published: list[tuple[str, int] | None] = []
        self.counters = Counters()
        self.seen: tuple[tuple[str, ...], bool | None] = ((), None)
        self.news = asyncio.Event()
        spot = Spot("lo", 1, IP4, LOCAL, NODE_PORT, LOCAL)
        self.link = LinkMapper(
            spot, self.settings, b"secret", lambda: self.seen, self._publish, self.counters
        )

    def _publish(self, external: tuple[str, int] | None) -> None:
        self.published.append(external)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so; polls, since failures announce themselves nowhere."""
        async with asyncio.timeout(GUARD_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def mapped(self) -> tuple[str, int]:
        """Wait until an address is published."""
        async with asyncio.timeout(GUARD_S):
            while not self.published or self.published[-1] is None:
                self.news.clear()
                await self.news.wait()
        found = self.published[-1]
        assert found is not None
        return found

    async def failed(self) -> str:
        """Wait until the first round is over without a mapping; return the status."""
        await self.until(lambda: self.counters["port_mapping_failures"] > 0)
        return str(self.link.status)


Start = Callable[..., Awaitable[Harness]]


@pytest_asyncio.fixture
async def router() -> AsyncIterator[UdpRouter]:
    """A router that speaks PCP and NAT-PMP."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(UdpRouter, local_addr=(LOCAL, 0))
    yield protocol
    transport.close()


@pytest_asyncio.fixture
async def start(router: UdpRouter) -> AsyncIterator[Start]:
    """Return a function that starts a mapper against the router; PCP and NAT-PMP when not told."""
    made: list[Harness] = []

    async def begin(**settings: Any) -> Harness:
        settings.setdefault("protocols", ("pcp", "nat-pmp"))
        prepare = settings.pop("prepare", None)
        harness = Harness(pcp_port=router.port, **settings)
        if prepare is not None:
            prepare(harness)
        made.append(harness)
        harness.link.start()
        return harness

    yield begin
    for harness in made:
        await harness.link.close(1.5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let leases be short and the pauses with them."""
    from warpgate_plugin_direct.port_mapping import link, model

    monkeypatch.setattr(model, "MIN_LEASE_S", 0.1)
    monkeypatch.setattr(model, "MIN_RENEW_S", 0.02)
    monkeypatch.setattr(link, "MIN_RENEW_S", 0.02)
    monkeypatch.setattr(link, "WAKE_GAP_S", 0.02)


@pytest_asyncio.fixture
async def igd() -> AsyncIterator[UpnpRouter]:
    """A UPnP router."""
    router = UpnpRouter()
    await router.open()
    yield router
    await router.close()


@pytest.fixture
def begin(igd: UpnpRouter, start: Any, monkeypatch: Any) -> Any:
    """Return a function that starts a mapper against it."""
    from warpgate_plugin_direct.port_mapping import upnp

    monkeypatch.setattr(upnp, "SEARCHES_S", (0.0, 0.1))
    monkeypatch.setattr(upnp, "SEARCH_S", 0.3)

    async def run(**settings: Any) -> Any:
        return await start(protocols=("upnp",), ssdp_port=igd.ssdp_port, **settings)

    return run

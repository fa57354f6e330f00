"""Several protocols at once: what the slower ones leave is removed, and never the winner's."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from igd_router import UpnpRouter

from warpgate_plugin_direct.port_mapping import link

pytest_plugins = ["warpgate.testing.pytest_plugin"]

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
PORT = 12345
BOTH = {("tcp", PORT): PORT, ("udp", PORT): PORT}

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("async_upnp_client") is None, reason="needs async-upnp-client"
)


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


@pytest.fixture(autouse=True)
def _no_head_start(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(link, "STAGGER_S", 0.01)


def slow_down(router: Any, slow: str) -> None:
    """Let one protocol map and not say so; the other one answers when that has happened."""
    answer = router.transport.sendto
    late: list[tuple[bytes, Any]] = []
    seen = False

    class Transport:
        get_extra_info = router.transport.get_extra_info

        def sendto(self, data: bytes, addr: Any) -> None:
            nonlocal seen
            mapped = data[1] in (0x81, 0x82)  # NAT-PMP's 0x81 is UDP, PCP's is any
            lease = data[12:16] if data[0] == 0 else data[4:8]
            if not mapped or not any(lease):
                answer(data, addr)
            elif (data[0] == 2) == (slow == "pcp"):
                seen = True
                for each in late:
                    answer(*each)
                late.clear()
            elif seen:
                answer(data, addr)
            else:
                late.append((data, addr))

    router.transport = Transport()


async def kept(router: Any, harness: Any, protocol: str) -> None:
    """Wait until the mapper has cleaned up and looks at the router again."""

    def looks() -> int:
        wanted = (protocol, "announce" if protocol == "pcp" else "address")
        return sum(entry[:2] == wanted for entry in router.log)

    await harness.mapped()
    before = looks()
    await router.until(lambda: looks() > before)


@pytest.mark.parametrize("taken", [set(), {("tcp", PORT), ("udp", PORT)}], ids=["same", "other"])
@pytest.mark.parametrize(("slow", "quick_one"), [("nat-pmp", "pcp"), ("pcp", "nat-pmp")])
async def test_the_slower_protocol_takes_nothing_from_the_winner(
    router: Any, start: Any, slow: str, quick_one: str, taken: set[tuple[str, int]]
) -> None:
    router.taken = taken
    slow_down(router, slow)
    harness = await start(check_s=0.05)
    _, port = await harness.mapped()
    await kept(router, harness, quick_one)
    assert {entry[0] for entry in router.log if entry[1] == "map"} == {"pcp", "nat-pmp"}
    assert harness.link.status.protocol.lower() == quick_one
    assert router.mappings == {("tcp", PORT): port, ("udp", PORT): port}
    assert [entry for entry in router.log if entry[1] == "map" and not entry[3]] == []
    await harness.link.close(1.5)
    assert router.mappings == {}


@needs_library
@pytest.mark.usefixtures("begin")
async def test_upnp_takes_nothing_from_the_winner(router: Any, igd: UpnpRouter, start: Any) -> None:
    adding, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        adding.set()
        await release.wait()

    async def answer(data: bytes, addr: Any) -> None:
        await adding.wait()
        send(data, addr)

    igd.before_adding = hold
    send = router.transport.sendto
    tasks = set()

    class Transport:
        get_extra_info = router.transport.get_extra_info

        def sendto(self, data: bytes, addr: Any) -> None:
            if data[1] != 0x81:
                send(data, addr)
            else:
                tasks.add(asyncio.ensure_future(answer(data, addr)))

    router.transport = Transport()
    harness = await start(protocols=("pcp", "upnp"), ssdp_port=igd.ssdp_port, check_s=0.05)
    assert await harness.mapped() == (PUBLIC, PORT)
    await kept(router, harness, "pcp")
    release.set()
    assert router.mappings == BOTH
    assert "DeletePortMapping" not in igd.names()  # on a real router it is one table
    await asyncio.gather(*tasks)


@needs_library
@pytest.mark.usefixtures("begin")
async def test_what_the_slower_protocol_mapped_elsewhere_is_removed(
    router: Any, igd: UpnpRouter, start: Any
) -> None:
    igd.others = {PORT}  # UPnP gets another port than PCP, which is slow
    slow_down(router, "pcp")
    harness = await start(protocols=("pcp", "upnp"), ssdp_port=igd.ssdp_port, check_s=0.05)
    _, port = await harness.mapped()
    assert port != PORT
    await router.until(lambda: router.mappings == {} and ("pcp", "map", "tcp", 0) in router.log)
    assert igd.mappings == {("TCP", port): PORT, ("UDP", port): PORT}


@needs_library
@pytest.mark.usefixtures("begin")
async def test_a_router_that_forgets_more_than_it_was_told_to(
    router: Any, igd: UpnpRouter, start: Any
) -> None:
    igd.others = {PORT}
    slow_down(router, "nat-pmp")
    grant: Callable[..., int] = router._grant

    def forget(kind: str, internal: int, wish: int, lease: int) -> int:
        if lease == 0:
            igd.mappings.clear()
        return grant(kind, internal, wish, lease)

    router._grant = forget
    harness = await start(protocols=("nat-pmp", "upnp"), ssdp_port=igd.ssdp_port, check_s=3600)
    _, port = await harness.mapped()
    await router.until(lambda: ("nat-pmp", "map", "tcp", 0) in router.log)
    await harness.until(lambda: harness.counters["port_mapping_renewed"] == 1)
    assert igd.mappings == {("TCP", port): PORT, ("UDP", port): PORT}
    assert harness.published == [(PUBLIC, port)]


@pytest.mark.usefixtures("begin")
async def test_silent_protocols_cost_the_others_nothing(
    router: Any, igd: UpnpRouter, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_pcp", lambda _data, _addr: None)
    monkeypatch.setattr(igd, "datagram_received", lambda _data, _addr: None)
    harness = await start(protocols=("pcp", "nat-pmp", "upnp"), ssdp_port=igd.ssdp_port)
    assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.link.status.protocol == "NAT-PMP"
    assert harness.link.status.causes == {}  # it did not wait for them: nobody has given up yet

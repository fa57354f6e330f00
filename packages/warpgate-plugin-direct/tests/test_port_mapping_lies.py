"""PCP and NAT-PMP against routers that restart, lie, stammer or are somebody else."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

pytest_plugins = ["warpgate.testing.pytest_plugin"]

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
PORT = 12345
BOTH = {("tcp", PORT): PORT, ("udp", PORT): PORT}


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCAL, 0))
        return int(sock.getsockname()[1])


@pytest.mark.usefixtures("quick")
async def test_a_router_that_announces_its_reboot(router: Any, start: Any) -> None:
    port = free_port()
    harness = await start(protocols=("pcp",), check_s=3600, announce_port=port)
    await harness.mapped()
    router.reboot(announce_to=port)
    await router.until(lambda: router.mappings == BOTH)


@pytest.mark.usefixtures("quick")
async def test_an_announcement_counts_whatever_the_epoch_says(router: Any, start: Any) -> None:
    port = free_port()
    harness = await start(protocols=("pcp",), check_s=3600, announce_port=port)
    await harness.mapped()
    epoch = router.epoch
    router.reboot(announce_to=port)
    router.epoch = epoch  # the machine's uptime, say
    await router.until(lambda: router.mappings == BOTH)


@pytest.mark.usefixtures("quick")
async def test_announcements_of_others_are_dropped(router: Any, start: Any) -> None:
    port = free_port()
    harness = await start(protocols=("pcp",), check_s=3600, announce_port=port)
    await harness.mapped()
    asked = len(router.log)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCAL, 0))
        sock.sendto(bytes.fromhex("0280000000000000") + bytes(16), (LOCAL, port))
    router.transport.sendto(b"\xff" * 2000, (LOCAL, port))
    await harness.until(lambda: harness.counters["port_mapping_dropped"] >= 2)
    assert len(router.log) == asked


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
@pytest.mark.parametrize("claimed", ["192.168.178.2", "100.64.3.4", "0.0.0.0", "127.0.0.1"])
async def test_a_private_external_address_is_refused(
    router: Any, start: Any, protocol: str, claimed: str
) -> None:
    router.external_ip = claimed
    harness = await start(protocols=(protocol,))
    text = await harness.failed()
    assert "not public" in text or "no external address" in text
    assert harness.published == []
    assert harness.counters["port_mapping_refused"] == 1
    assert router.mappings == {}  # it is of no use


async def test_servers_that_see_another_address_are_believed(router: Any, start: Any) -> None:
    def prepare(harness: Any) -> None:
        harness.seen = (("198.51.100.1",), None)

    harness = await start(prepare=prepare, protocols=("pcp",))
    assert "the router says 203.0.113.7, but servers see 198.51.100.1" in await harness.failed()
    assert harness.published == []


async def test_a_router_that_is_mistaken_about_itself(router: Any, start: Any) -> None:
    router.external_ip = "10.0.0.1"

    def prepare(harness: Any) -> None:
        harness.seen = (("198.51.100.1",), False)

    harness = await start(prepare=prepare, protocols=("pcp",))
    assert await harness.mapped() == ("198.51.100.1", PORT)


@pytest.mark.usefixtures("quick")
async def test_what_servers_say_later_counts_too(router: Any, start: Any) -> None:
    harness = await start(protocols=("pcp",))
    await harness.mapped()
    harness.seen = (("198.51.100.1",), True)
    harness.link.poke()
    await harness.until(lambda: harness.published[-1] is None)
    await harness.failed()
    assert router.mappings == {}


@pytest.mark.usefixtures("quick")
async def test_a_change_of_the_network_ends_the_wait_after_a_failure(
    router: Any, start: Any
) -> None:
    router.results["pcp", "map"] = 7
    harness = await start(protocols=("pcp",), retry_s=3600)
    await harness.failed()
    router.results.clear()
    harness.link.poke()
    await harness.mapped()


async def test_slow_answers_are_waited_for(router: Any, start: Any) -> None:
    loop = asyncio.get_running_loop()
    answer = router.transport.sendto

    class Slow:
        get_extra_info = router.transport.get_extra_info

        def sendto(self, data: bytes, addr: Any) -> None:
            loop.call_later(0.4, answer, data, addr)

    router.transport = Slow()
    harness = await start(protocols=("pcp",))
    assert await harness.mapped() == (PUBLIC, PORT)
    await asyncio.sleep(0.5)  # what was repeated meanwhile is answered too: nobody must mind


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one loopback address")
async def test_answers_from_other_hosts_are_dropped(router: Any, start: Any) -> None:
    forged = bytes.fromhex("0080000000000001c0000201")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.2", 0))

        def lie(addr: Any) -> None:
            for data in (forged, forged[:5], bytes(1200), b"\xff" * 60):
                sock.sendto(data, addr)

        router.before_answer = lie
        harness = await start(protocols=("nat-pmp",))
        assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.counters["port_mapping_dropped"] >= 4


async def test_malformed_and_oversize_answers_of_the_router_are_dropped(
    router: Any, start: Any
) -> None:
    def stammer(addr: Any) -> None:
        for data in (
            b"",
            b"\x02",
            b"\x02\x81" + bytes(2000),
            b"\x02\x81" + bytes(58),
            b"\x02" * 61,
        ):
            router.transport.sendto(data, addr)

    router.before_answer = stammer
    harness = await start(protocols=("pcp",))
    assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.counters["port_mapping_dropped"] >= 5


async def test_a_mapping_of_a_few_seconds_is_refused(router: Any, start: Any) -> None:
    router.lease_s = 3
    harness = await start(protocols=("pcp",))
    assert "maps for 3 s only" in await harness.failed()
    assert router.mappings == {}

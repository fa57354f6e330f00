"""PCP and NAT-PMP against routers in user space, honest and otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from warpgate_plugin_direct.port_mapping import exchange

pytest_plugins = ["warpgate.testing.pytest_plugin"]

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
PORT = 12345
BOTH = {("tcp", PORT): PORT, ("udp", PORT): PORT}


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_it_maps_publishes_and_removes(router: Any, start: Any, protocol: str) -> None:
    harness = await start(protocols=(protocol,))
    assert await harness.mapped() == (PUBLIC, PORT)
    assert router.mappings == BOTH
    status = harness.link.status
    assert status.protocol.lower() == protocol
    assert "203.0.113.7 port 12345 leads here (TCP and UDP" in str(status)
    began = asyncio.get_running_loop().time()
    await harness.link.close(1.5)
    assert asyncio.get_running_loop().time() - began < 2
    assert router.mappings == {}
    assert harness.published == [(PUBLIC, PORT)]  # the node is closing: its address is of no use


async def test_the_lease_of_two_hours_is_asked_for(router: Any, start: Any) -> None:
    await (await start()).mapped()
    assert {entry[3] for entry in router.log if entry[1] == "map"} == {7200}


async def test_pcp_comes_first_where_both_are_spoken(router: Any, start: Any) -> None:
    harness = await start()
    await harness.mapped()
    assert harness.link.status.protocol in ("PCP", "NAT-PMP")
    assert len({entry[0] for entry in router.log if entry[1] == "map"}) == 1


async def test_an_old_router_gets_nat_pmp(router: Any, start: Any) -> None:
    router.pcp = False
    harness = await start()
    await harness.mapped()
    assert harness.link.status.protocol == "NAT-PMP"
    assert harness.link.status.causes["PCP"] == "speaks NAT-PMP only"


async def test_a_refusal_leaves_it_to_the_other_protocol(router: Any, start: Any) -> None:
    router.results["pcp", "map"] = 2
    harness = await start()
    await harness.mapped()
    assert harness.link.status.protocol == "NAT-PMP"
    assert "not authorized" in harness.link.status.causes.get("PCP", "not authorized")


async def test_refused_by_everything(router: Any, start: Any) -> None:
    router.results.update({("pcp", "map"): 10, ("nat-pmp", "map"): 4})
    text = await (await start()).failed()
    assert "PCP: this host's quota is used up (10)" in text
    assert "NAT-PMP: no resources left (4)" in text


async def test_nobody_is_there(monkeypatch: Any, router: Any, start: Any) -> None:
    monkeypatch.setattr(exchange.Exchange.__init__, "__kwdefaults__", {"deadline_s": 0.3})
    router.silent = True
    harness = await start()
    assert (await harness.failed()).endswith("not mapped: PCP: no answer; NAT-PMP: no answer") or (
        await harness.failed()
    ).endswith("not mapped: NAT-PMP: no answer; PCP: no answer")
    assert harness.counters["port_mapping_failed_pcp"] == 1
    assert harness.published == []


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_a_taken_port_moves_both(router: Any, start: Any, protocol: str) -> None:
    router.taken = {("tcp", PORT)}
    harness = await start(protocols=(protocol,))
    ip, port = await harness.mapped()
    assert (ip, router.mappings) == (PUBLIC, {("tcp", PORT): port, ("udp", PORT): port})
    assert port == PORT + 1


async def test_ports_that_differ_are_tried_again(router: Any, start: Any) -> None:
    router.taken = {("udp", PORT)}
    harness = await start(protocols=("pcp",))
    _, port = await harness.mapped()
    assert port != PORT
    assert router.mappings == {("tcp", PORT): port, ("udp", PORT): port}


async def test_tcps_port_counts_where_they_cant_be_the_same(router: Any, start: Any) -> None:
    router.taken = {("udp", port) for port in range(65536)} - {("udp", 70_000)}
    original = router._grant
    router._grant = lambda kind, *args: 7 if kind == "udp" and args[2] else original(kind, *args)
    harness = await start(protocols=("pcp",))
    _, port = await harness.mapped()
    assert router.mappings["tcp", PORT] == port != 7
    assert [m.external_port for m in harness.link.status.mappings] == [port, 7]


async def test_a_router_that_maps_tcp_alone(router: Any, start: Any) -> None:
    original = router._pcp

    def refuse_udp(data: bytes, addr: Any) -> None:
        router.results["pcp", "map"] = 9 if data[1] == 1 and data[36] == 17 else 0
        original(data, addr)

    router._pcp = refuse_udp
    harness = await start(protocols=("pcp",))
    assert await harness.mapped() == (PUBLIC, PORT)
    assert router.mappings == {("tcp", PORT): PORT}
    assert "(TCP, by PCP" in str(harness.link.status)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_it_renews_at_half_life_by_the_same_ports(
    router: Any, start: Any, protocol: str
) -> None:
    router.lease_s = 2
    loop = asyncio.get_running_loop()
    harness = await start(protocols=(protocol,))
    await harness.mapped()
    began = loop.time()
    await router.until(lambda: sum(entry[1:3] == ("map", "udp") for entry in router.log) >= 2)
    assert loop.time() - began > 0.9
    assert router.mappings == BOTH
    await harness.until(lambda: harness.counters["port_mapping_renewed"] == 1)
    assert harness.published == [(PUBLIC, PORT)]  # it was in time: nothing was withdrawn


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_a_renewal_asks_for_the_port_that_was_granted(
    router: Any, start: Any, protocol: str
) -> None:
    router.lease_s, router.taken = 1, {("tcp", PORT), ("udp", PORT)}
    harness = await start(protocols=(protocol,))
    ip, port = await harness.mapped()
    assert port != PORT
    router.mappings.clear()  # so that the wish alone decides
    router.taken.clear()
    await router.until(lambda: len(router.mappings) == 2)
    assert router.mappings == {("tcp", PORT): port, ("udp", PORT): port}
    assert harness.published == [(ip, port)]


@pytest.mark.usefixtures("quick")
async def test_a_renewal_that_failed_is_tried_again_in_time(router: Any, start: Any) -> None:
    router.lease_s = 3
    harness = await start(protocols=("pcp",), check_s=3600)
    await harness.mapped()
    router.results["pcp", "map"] = 8  # no resources
    await harness.until(lambda: harness.counters["port_mapping_failed_pcp"] == 1)
    router.results.clear()
    await harness.until(lambda: harness.counters["port_mapping_renewed"] == 1)
    assert harness.published == [(PUBLIC, PORT)]


@pytest.mark.usefixtures("quick")
async def test_a_renewal_that_moves_the_port_is_published(router: Any, start: Any) -> None:
    router.lease_s = 1
    harness = await start(protocols=("pcp",))
    await harness.mapped()
    router.reboot()
    router.taken = {("tcp", PORT), ("udp", PORT)}
    await harness.until(lambda: len(harness.published) == 2)
    assert harness.published[-1] == (PUBLIC, PORT + 1)


@pytest.mark.usefixtures("quick")
async def test_a_lease_that_cant_be_renewed_is_withdrawn(
    monkeypatch: Any, router: Any, start: Any
) -> None:
    monkeypatch.setattr(exchange.Exchange.__init__, "__kwdefaults__", {"deadline_s": 0.2})
    router.lease_s = 1
    harness = await start(protocols=("pcp",), retry_s=0.1)
    await harness.mapped()
    router.silent = True
    await harness.until(lambda: harness.published[-1] is None)
    assert harness.counters["port_mapping_withdrawn"] == 1
    router.silent = False
    assert await harness.mapped() == (PUBLIC, PORT)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
async def test_a_rebooted_router_is_noticed_by_its_epoch(
    router: Any, start: Any, protocol: str
) -> None:
    harness = await start(protocols=(protocol,), check_s=0.05)
    await harness.mapped()
    router.reboot()
    await router.until(lambda: router.mappings == BOTH)
    await harness.until(lambda: harness.counters["port_mapping_renewed"] == 1)
    assert harness.counters["port_mapping_router_restarts"] == 1
    assert harness.published == [(PUBLIC, PORT)]


@pytest.mark.usefixtures("quick")
async def test_another_external_address_is_noticed_by_nat_pmp(router: Any, start: Any) -> None:
    harness = await start(protocols=("nat-pmp",), check_s=0.05)
    await harness.mapped()
    router.external_ip = "203.0.113.99"
    await harness.until(lambda: len(harness.published) == 2)
    assert harness.published[-1] == ("203.0.113.99", PORT)


async def test_the_same_node_may_renew_after_a_crash(router: Any, start: Any) -> None:
    harness = await start(protocols=("pcp",))
    await harness.mapped()
    again = await start(protocols=("pcp",))  # the first one never removed anything
    assert await again.mapped() == (PUBLIC, PORT)


async def test_closing_while_it_maps_leaves_nothing(router: Any, start: Any) -> None:
    harness = await start(protocols=("pcp",))
    answer = router.transport.sendto
    seen = asyncio.Event()

    class Late:
        get_extra_info = router.transport.get_extra_info

        def sendto(self, data: bytes, addr: Any) -> None:
            if data[1] == 0x81 and not seen.is_set():
                seen.set()  # the router has made the mapping; the answer is lost
            else:
                answer(data, addr)

    router.transport = Late()
    await asyncio.wait_for(seen.wait(), 5)
    assert router.mappings
    await harness.link.close(1.5)
    assert router.mappings == {}


async def test_closing_takes_no_longer_than_it_may(router: Any, start: Any) -> None:
    harness = await start(protocols=("pcp",))
    await harness.mapped()
    router.silent = True
    began = asyncio.get_running_loop().time()
    await harness.link.close(0.3)
    assert asyncio.get_running_loop().time() - began < 1.0
    assert harness.counters["port_mapping_left_behind"] == 1


async def test_an_unexpected_error_is_counted_and_survived(
    monkeypatch: Any, caplog: Any, router: Any, start: Any
) -> None:
    from warpgate_plugin_direct.port_mapping.link import LinkMapper

    original = LinkMapper._judge
    failures = [ZeroDivisionError("a fault of ours")]

    def judge(self: Any, lease: Any) -> bool:
        if failures:
            raise failures.pop()
        return original(self, lease)

    monkeypatch.setattr(LinkMapper, "_judge", judge)
    harness = await start(protocols=("pcp",), retry_s=0.05)
    assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.counters["port_mapping_errors"] == 1
    assert "port mapping on lo failed" in caplog.text

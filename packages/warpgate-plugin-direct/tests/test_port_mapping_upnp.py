"""UPnP IGD against a router in user space."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import pytest
from igd_router import ACTIONS, ADD, BOTH, LOCAL, PORT, PUBLIC, WAN1, WAN2, UpnpRouter

from warpgate_plugin_direct.port_mapping import ssdp, upnp

pytest_plugins = ["warpgate.testing.pytest_plugin"]

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("async_upnp_client") is None, reason="needs async-upnp-client"
)


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


@needs_library
@pytest.mark.parametrize("service", [WAN1, WAN2, "urn:schemas-upnp-org:service:WANPPPConnection:1"])
async def test_it_maps_publishes_and_removes(igd: UpnpRouter, begin: Any, service: str) -> None:
    igd.service = service
    harness = await begin()
    assert await harness.mapped() == (PUBLIC, PORT)
    assert igd.mappings == BOTH
    added = next(given for name, given in igd.calls if name == "AddPortMapping")
    assert added["NewLeaseDuration"] == "7200"
    assert added["NewPortMappingDescription"] == "warpgate"
    assert "by UPnP, for 7200 s at a time" in str(harness.link.status)
    await harness.link.close(1.5)
    assert igd.mappings == {}


@needs_library
async def test_permanent_leases_only(igd: UpnpRouter, begin: Any) -> None:
    igd.permanent_only = True
    harness = await begin()
    assert await harness.mapped() == (PUBLIC, PORT)
    assert igd.mappings == BOTH
    assert "until it is removed" in str(harness.link.status)
    assert igd.names().count("AddPortMapping") == 3  # the second one knew
    await harness.link.close(1.5)
    assert igd.mappings == {}


@needs_library
async def test_a_router_that_calls_leases_invalid(igd: UpnpRouter, begin: Any) -> None:
    igd.errors["AddPortMapping"] = [402]
    harness = await begin()
    assert await harness.mapped() == (PUBLIC, PORT)
    assert "until it is removed" in str(harness.link.status)


@needs_library
async def test_a_port_that_is_anothers(igd: UpnpRouter, begin: Any) -> None:
    igd.others = {PORT}
    harness = await begin()
    ip, port = await harness.mapped()
    assert (ip, port != PORT) == (PUBLIC, True)
    assert igd.mappings == {("TCP", port): PORT, ("UDP", port): PORT}


@needs_library
@pytest.mark.parametrize(
    "described", ["NewReservedPort", "NewExternalPort"]
)  # miniupnpd's is wrong
async def test_version_2_finds_a_port_itself(
    igd: UpnpRouter, begin: Any, monkeypatch: Any, described: str
) -> None:
    monkeypatch.setitem(ACTIONS, "AddAnyPortMapping", (ADD, [described]))
    igd.service, igd.actions, igd.others = WAN2, list(ACTIONS), {PORT}
    harness = await begin()
    assert await harness.mapped() == (PUBLIC, PORT + 1)
    assert igd.mappings == {("TCP", PORT + 1): PORT, ("UDP", PORT + 1): PORT}


@needs_library
@pytest.mark.parametrize("code", [606, 402, 501])
async def test_errors_are_told(igd: UpnpRouter, begin: Any, code: int) -> None:
    igd.errors["AddPortMapping"] = [code] * 20
    harness = await begin()
    assert f"UPnP: AddPortMapping: error {code} E" in await harness.failed()
    assert harness.published == []
    assert harness.counters["port_mapping_failed_upnp"] == 1


@needs_library
async def test_an_error_501_may_be_a_conflict(igd: UpnpRouter, begin: Any) -> None:
    igd.errors["AddPortMapping"] = [501]
    harness = await begin()
    _, port = await harness.mapped()
    assert port != PORT


@needs_library
@pytest.mark.parametrize("claimed", ["192.168.178.2", "0.0.0.0", "", "not an address"])
async def test_an_external_address_that_is_none(igd: UpnpRouter, begin: Any, claimed: str) -> None:
    igd.external_ip = claimed
    harness = await begin()
    text = await harness.failed()
    assert "not public" in text or "no external address" in text
    assert harness.published == []
    assert igd.mappings == {}


@needs_library
async def test_a_mapping_that_leads_elsewhere(igd: UpnpRouter, begin: Any) -> None:
    igd.client = "127.0.0.66"
    harness = await begin()
    assert "leads to another host" in await harness.failed()
    assert harness.published == []


@needs_library
@pytest.mark.usefixtures("quick")
async def test_a_mapping_that_vanished_is_made_again(igd: UpnpRouter, begin: Any) -> None:
    harness = await begin(check_s=0.1)
    await harness.mapped()
    igd.mappings.clear()
    await harness.until(lambda: igd.mappings == BOTH)
    assert harness.published == [(PUBLIC, PORT)]


@needs_library
@pytest.mark.usefixtures("quick")
async def test_another_external_address_is_noticed(igd: UpnpRouter, begin: Any) -> None:
    harness = await begin(check_s=0.1)
    await harness.mapped()
    igd.external_ip = "203.0.113.99"
    await harness.until(lambda: len(harness.published) == 2)
    assert harness.published[-1] == ("203.0.113.99", PORT)


@needs_library
@pytest.mark.usefixtures("quick")
async def test_it_is_removed_though_the_router_has_just_failed(igd: UpnpRouter, begin: Any) -> None:
    harness = await begin(check_s=0.3)
    await harness.mapped()
    igd.override["/ctl"] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone"
    await harness.until(lambda: harness.counters["port_mapping_failed_upnp"] == 1)
    igd.override.clear()
    await harness.link.close(1.5)
    assert igd.mappings == {}


@needs_library
@pytest.mark.usefixtures("quick")
async def test_a_router_that_restarts_elsewhere_is_found_again(igd: UpnpRouter, begin: Any) -> None:
    igd.permanent_only = True
    harness = await begin(check_s=0.1)
    await harness.mapped()
    igd.server.close()
    igd.mappings.clear()
    igd.server = await asyncio.start_server(igd._serve, LOCAL, 0)
    igd.location = f"http://{LOCAL}:{igd.server.sockets[0].getsockname()[1]}/root.xml"
    await harness.until(lambda: igd.mappings == BOTH)
    assert harness.published == [(PUBLIC, PORT)]


@needs_library
@pytest.mark.usefixtures("quick")
async def test_it_renews_at_half_life(igd: UpnpRouter, begin: Any) -> None:
    harness = await begin(lease_s=1)
    await harness.mapped()
    before = igd.names().count("AddPortMapping")
    assert before == 2
    await harness.until(lambda: igd.names().count("AddPortMapping") == 4)
    assert igd.mappings == BOTH


async def test_without_the_library_the_status_says_how_to_get_it(
    begin: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(upnp, "LIBRARY", "async_upnp_client_that_is_not_there")
    text = await (await begin()).failed()
    assert "pip install 'warpgate-plugin-direct[upnp]'" in text


@needs_library
async def test_nobody_answers(igd: UpnpRouter, begin: Any) -> None:
    igd.udp.close()
    assert "UPnP: no answer" in await (await begin()).failed()


def test_searches_name_both_versions() -> None:
    assert [target[-1] for target in ssdp.TARGETS] == ["2", "1"]

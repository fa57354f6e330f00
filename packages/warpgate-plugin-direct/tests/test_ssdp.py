from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate import IP4, IP6
from warpgate_plugin_direct.port_mapping import ssdp
from warpgate_plugin_direct.port_mapping.model import MappingError

GATEWAY = "192.168.1.1"
ST = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
URL = "http://192.168.1.1:5000/rootDesc.xml"


def answer(location: str = URL, kind: str = ST, status: str = "HTTP/1.1 200 OK") -> bytes:
    return (
        f"{status}\r\nCACHE-CONTROL: max-age=120\r\nST: {kind}\r\nEXT:\r\n"
        f"LOCATION:  {location} \r\nSERVER: x\r\n\r\n"
    ).encode()


def test_the_search_is_the_architectures() -> None:
    assert ssdp.pack_search(IP4, ST) == (
        b"M-SEARCH * HTTP/1.1\r\n"
        b"HOST: 239.255.255.250:1900\r\n"
        b'MAN: "ssdp:discover"\r\n'
        b"MX: 1\r\n"
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    assert b"HOST: [ff02::c]:1900\r\n" in ssdp.pack_search(IP6, ST)


def test_an_answer_names_the_description() -> None:
    assert ssdp.parse_answer(answer(), GATEWAY) == URL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\r\n",
        b"HTTP/1.1",
        answer(status="HTTP/1.1 404 No"),
        answer(status="NOTIFY * HTTP/1.1"),
        answer(kind="upnp:rootdevice"),
        b"HTTP/1.1 200 OK\r\nST: " + ST.encode() + b"\r\n\r\n",
        answer("http://192.168.1.1/" + "x" * 3000),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    assert ssdp.parse_answer(data, GATEWAY) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.9:5000/d.xml",
        "http://127.0.0.1:5000/d.xml",
        "http://169.254.169.254/latest",
        "http://router.example/d.xml",
        "https://192.168.1.1/d.xml",
        "file:///etc/passwd",
        "http://192.168.1.1:0/d.xml",
        "http://192.168.1.1:99999/d.xml",
        "http://[fe80::1/d.xml",
        "http://192.168.1.1/" + "x" * 600,
        "",
    ],
)
def test_urls_that_lead_elsewhere(url: str) -> None:
    with pytest.raises(MappingError, match="URL"):
        ssdp.parse_answer(answer(url), GATEWAY)


def test_an_ipv6_router_may_name_another_of_its_addresses() -> None:
    url = "http://[2001:db8::1]:5000/d.xml"
    assert ssdp.check_location(url, "fe80::1%eth0") == url


@given(st.binary(max_size=3000), st.booleans())
def test_nothing_else_comes_out(data: bytes, headed: bool) -> None:
    with contextlib.suppress(MappingError):
        ssdp.parse_answer(b"HTTP/1.1 200 OK\r\n" + data if headed else data, GATEWAY)

"""UPnP IGD against routers, and others, that lie, stammer and stall."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from typing import Any

import pytest
from igd_router import LOCAL, PORT, PUBLIC, UpnpRouter

from warpgate_plugin_direct.port_mapping import http

pytest_plugins = ["warpgate.testing.pytest_plugin"]

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("async_upnp_client") is None, reason="needs async-upnp-client"
)


@pytest.fixture(autouse=True)
def _leaks(leak_check: Any) -> None:
    """Nothing may be left."""


@needs_library
@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:80/root.xml", "http://example.org/root.xml", "file:///etc/passwd"],
)
async def test_a_description_on_another_host_is_refused(
    igd: UpnpRouter, begin: Any, location: str
) -> None:
    igd.location = location
    harness = await begin()
    assert "URL" in await harness.failed()
    assert igd.gets == 0


@needs_library
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one loopback address")
async def test_answers_of_other_hosts_are_dropped(igd: UpnpRouter, begin: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.2", 0))

        def lie(addr: Any) -> None:
            sock.sendto(igd.answer("http://127.0.0.2:1/root.xml"), addr)

        igd.before_answer = lie
        harness = await begin()
        assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.counters["port_mapping_dropped"] >= 1


@needs_library
async def test_malformed_answers_are_dropped(igd: UpnpRouter, begin: Any) -> None:
    def stammer(addr: Any) -> None:
        for data in (b"HTTP/1.1 200 OK\xff\r\n", b"\xff" * 5000, b"HTTP/1.1"):
            igd.udp.sendto(data, addr)

    igd.before_answer = stammer
    harness = await begin()
    assert await harness.mapped() == (PUBLIC, PORT)
    assert harness.counters["port_mapping_dropped"] >= 3


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 or str()};" * 10}">' for n in range(1, 10))
    + "]><root>&a9;</root>"
)


def page(text: str | bytes, status: str = "200 OK", **fields: str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + data


@needs_library
@pytest.mark.parametrize(
    "raw",
    [
        page("<root"),
        page(BOMB),
        page("<root/>"),
        page("<device>" * 20_000),
        page(b"\xff\xfe\0"),
        page("x" * (http.MAX_BODY_BYTES + 10)),
        page("", Content_Length=str(10**12)),
        page("", Content_Length="-5"),
        page("", Content_Length="x"),
        page("fffffffff\r\n", Transfer_Encoding="chunked"),
        page("xyz\r\n", Transfer_Encoding="chunked"),
        page("", status="302 Found", Location="http://127.0.0.2/"),
        page("", status="OK"),
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 100_000,
        b"",
    ],
)
@pytest.mark.parametrize("path", ["/root.xml", "/scpd.xml", "/ctl"])
async def test_hostile_answers_end_in_a_cause(
    igd: UpnpRouter, begin: Any, caplog: Any, raw: bytes, path: str
) -> None:
    igd.override[path] = raw
    harness = await begin()
    text = await harness.failed()
    assert "not mapped: UPnP: " in text
    assert len(text) < 400
    assert harness.counters["port_mapping_errors"] == 0
    assert harness.published == []


@needs_library
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (page("x", Content_Length=str(10**12)), "an answer of 1000000000000 bytes"),
        (page("", Content_Length="-5"), "an answer of -5 bytes"),
        (page("x" * (http.MAX_BODY_BYTES + 1)), "an answer of more than 262144 bytes"),
        (page("40001\r\n", Transfer_Encoding="chunked"), "a chunk that is too long"),
        (page(("ffff\r\n" + "x" * 65535 + "\r\n") * 5, Transfer_Encoding="chunked"), "more than"),
        (b"SSH-2.0-OpenSSH x\r\n\r\n", "not HTTP"),
        (b"x" * 100_000, "Separator is not found"),
    ],
)
async def test_answers_are_bounded(igd: UpnpRouter, begin: Any, raw: bytes, words: str) -> None:
    igd.override["/root.xml"] = raw
    harness = await begin()
    assert words in await harness.failed()


@needs_library
async def test_a_description_of_a_thousand_services(igd: UpnpRouter, begin: Any) -> None:
    root = igd._root()
    service = root[root.index("<service>") : root.index("</serviceList>")]
    igd.override["/root.xml"] = page(root.replace(service, service * 500))
    harness = await begin()
    assert "more than 40 requests" in await harness.failed()
    assert igd.gets < 45


@needs_library
async def test_chunked_answers(igd: UpnpRouter, begin: Any) -> None:
    root = igd._root()
    half = len(root) // 2
    chunks = "".join(f"{len(part):x};x=y\r\n{part}\r\n" for part in (root[:half], root[half:]))
    igd.override["/root.xml"] = page(chunks + "0\r\n\r\n", Transfer_Encoding="chunked")
    assert await (await begin()).mapped() == (PUBLIC, PORT)


@needs_library
async def test_a_router_that_stalls(igd: UpnpRouter, begin: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(http.Requester.__init__, "__defaults__", (0.3,))
    igd.override["/ctl"] = b"HTTP/1.1 200 OK\r\n"

    async def hold(reader: Any, writer: Any) -> None:
        await reader.read()
        writer.close()

    igd.server.close()
    igd.server = await asyncio.start_server(hold, LOCAL, igd.http_port)
    assert "no answer from its port" in await (await begin()).failed()

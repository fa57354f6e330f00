"""The example of a resolver in docs/examples, against a DNS server on loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import struct
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from warpgate.errors import InvalidAddressError, KeyChangedError, UnknownPeerError
from warpgate.identity import Identity
from warpgate.names.rules import fingerprint
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.node.resolve import resolve

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "dns_names.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the documents are not here")


def module():
    spec = importlib.util.spec_from_file_location("dns_names", EXAMPLE)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def txt(text):
    data = text.encode()
    parts = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts)


def answer(query, records, *, flags=0x8180, number=None):
    """Return the answer that a server gives: the question, a CNAME, then TXT records."""
    head = struct.pack(
        ">HH", struct.unpack_from(">H", query)[0] if number is None else number, flags
    )
    question = query[12:]
    body = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, 2) + b"\xc0\x0c"
    for record in records:
        body += b"\x01x\xc0\x0c" + struct.pack(">HHIH", 16, 1, 60, len(record)) + record
    return head + struct.pack(">4H", 1, len(records) + 1, 0, 0) + question + body


@asynccontextmanager
async def dns(respond):
    """A DNS server; ``respond(query)`` returns the answer's bytes."""
    queries = []

    async def serve(reader, writer):
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        queries.append(await reader.readexactly(length))
        data = respond(queries[-1])
        if data is not None:
            writer.write(struct.pack(">H", len(data)) + data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], queries
    await asyncio.sleep(0.01)


async def asked(respond, name="alice.example.org"):
    async with dns(respond) as (port, queries):
        found = await module().DnsNames("127.0.0.1", port).warpgate_resolve_address(name)
    return found, queries


async def test_the_record_of_a_name(make_address):
    address = make_address(["10.0.0.1"])
    for value in (address.node_id, address.to_text()):
        records = [txt("v=spf1 -all"), txt(f"warpgate={value}"), txt(f"warpgate={value}")]
        found, (query,) = await asked(lambda q, r=records: answer(q, r), "Alice.Example.org")
        assert found == value
        assert query[12:] == (
            b"\x09_warpgate\x05alice\x07example\x03org\x00" + struct.pack(">HH", 16, 1)
        )


@pytest.mark.parametrize(
    "respond",
    [
        lambda q: answer(q, []),
        lambda q: answer(q, [txt("something else")]),
        lambda q: answer(q, [txt("warpgate=x")], flags=0x8183),
        lambda q: answer(q, [txt("warpgate=x")], flags=0x0180),
        lambda q: answer(
            q, [txt("warpgate=x")], number=(struct.unpack_from(">H", q)[0] + 1) % 65536
        ),
        lambda q: answer(q, [txt("warpgate=x")])[:-3],
        lambda q: answer(q, [b"\x05\xff\xff"]),
        lambda q: b"",
        lambda q: q,
        lambda q: None,
    ],
)
async def test_no_usable_answer_leaves_the_name_to_others(respond):
    assert (await asked(respond))[0] is None


async def test_names_that_are_none_of_dns_and_no_server():
    names = module().DnsNames("127.0.0.1", 1)
    for name in ("alice", b"alice.example.org", "alice@example.org", "-a.example.org", "a..b.org"):
        assert await names.warpgate_resolve_address(name) is None
    assert await names.warpgate_resolve_address("alice.example.org") is None
    assert await module().DnsNames("").warpgate_resolve_address("alice.example.org") is None


async def test_contradicting_records():
    records = [txt("warpgate=one"), txt("warpgate=two")]
    with pytest.raises(InvalidAddressError, match="2 different"):
        await asked(lambda q: answer(q, records))


async def test_as_a_drop_in_of_a_node(tmp_path, monkeypatch, make_address):
    shutil.copy(EXAMPLE, tmp_path / "dns_names.py")
    alice = make_address(["10.0.0.1"])
    told = [alice]
    async with dns(lambda q: answer(q, [txt(f"warpgate={told[0].to_text()}")])) as (port, _queries):
        monkeypatch.setenv("WARPGATE_DNS", "127.0.0.1")
        monkeypatch.setenv("WARPGATE_DNS_PORT", str(port))
        conf = {**NODE_TEST_CONF, "plugin_dirs": [tmp_path]}
        async with Node(ip="127.0.0.1", conf=conf) as node:
            assert node.traversal.rejected == []
            assert await resolve(node, "alice.example.org") == alice
            node.trust.pins.accept("alice.example.org", fingerprint(alice.key))
            told[0] = make_address(["10.0.0.2"], identity=Identity.generate())
            with pytest.raises(KeyChangedError):
                await resolve(node, "alice.example.org")
            with pytest.raises(UnknownPeerError):
                await resolve(node, "alice")

"""Names of nodes as far as they go without a broker."""

from __future__ import annotations

import pytest

from warpgate.errors import ConfigError, KeyChangedError, SignallingError, UnknownPeerError
from warpgate.events import NamePinned
from warpgate.hookspecs import hookimpl
from warpgate.names.rules import fingerprint
from warpgate.net.constants import LOOPBACK_BIND, TCP
from warpgate.node.auto_connect import auto_connect, connect
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.plugin import Plugin

CLOSED = "mqtt://127.0.0.1:1"


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


class Book:
    """A plugin's resolver."""

    def __init__(self, **known):
        self.known = known
        self.pinned = []

    @hookimpl
    async def warpgate_resolve_address(self, address):
        return self.known.get(address)

    @hookimpl
    def warpgate_event(self, event):
        if isinstance(event, NamePinned):
            self.pinned.append((event.name, event.peer_id))


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        ({}, "no broker is configured"),
        ({"brokers": [CLOSED], "sig_pipe_no": 1}, "switched off here .enable_nickname"),
        (
            {"brokers": [CLOSED], "sig_pipe_no": 1, "enable_nickname": True},
            f"no broker accepted it within 0.1 s .{CLOSED}",
        ),
    ],
)
async def test_why_a_name_can_not_be_published(start, monkeypatch, conf, why):
    monkeypatch.setattr("warpgate.node.rendezvous.PUBLISH_S", 0.1)
    node = await start(conf=conf)
    with pytest.raises(SignallingError, match=f"'alice' c.*{why}"):
        await node.nickname("Alice")
    assert node.rendezvous.nicknames == {}


@pytest.mark.parametrize("name", ["", "al ice", "x" * 64, "\u0430lice", 5, None, b"alice"])
async def test_what_is_no_name(start, name):
    node = await start()
    with pytest.raises(ConfigError):
        await node.nickname(name)


async def test_a_node_that_does_not_run():
    node = Node(conf=NODE_TEST_CONF)
    with pytest.raises(SignallingError, match="the node is not running"):
        await node.nickname("alice")
    await node.close()


async def test_there_is_an_end_to_names(start):
    node = await start(conf={"brokers": [CLOSED], "sig_pipe_no": 1, "enable_nickname": True})
    node.rendezvous.nicknames = dict.fromkeys(map(str, range(15)), False)
    with pytest.raises(ConfigError, match="at most 15 names"):
        await node.nickname("alice")


async def test_without_brokers_a_name_is_unknown(start):
    node = await start(Dial)
    assert await auto_connect(node, "alice") == (None, None)
    error = node.last_report.error
    assert isinstance(error, UnknownPeerError)
    assert "nobody here knows 'alice': no broker is configured here" in str(error)


async def test_the_address_book_leads_to_a_node_and_pins_it(start, tmp_path):
    alice = await start()
    bob = await start(Dial, conf={"install_path": str(tmp_path)})
    bob.hooks.register(book := Book())
    entry = tmp_path / "address_book"
    entry.write_text(f"Alice {alice.peer_address.to_text()}\n")
    async with await connect(bob, "alice") as pipe:
        assert pipe.peer_id == alice.node_id
    assert book.pinned == [("alice", alice.node_id)]
    line = (tmp_path / "known_names").read_text().splitlines()[-1].split()
    assert line[:2] == ["alice", fingerprint(alice.identity.public_key)]
    # Another node of the same user knows the pin, and sees that the entry has changed.
    eve, carol = await start(), await start(Dial, conf={"install_path": str(tmp_path)})
    entry.write_text(f"alice {eve.peer_address.to_text()}\n")
    with pytest.raises(KeyChangedError) as error:
        await auto_connect(carol, "alice")
    assert f'trust --install-path "{tmp_path}" accept alice@' in str(error.value)
    assert carol.last_report.error is error.value
    carol.trust.pins.accept("alice", fingerprint(eve.identity.public_key))
    async with await connect(carol, "alice") as pipe:
        assert pipe.peer_id == eve.node_id
    (tmp_path / "known_names").write_text("damage\n")
    with pytest.raises(ConfigError, match="known_names, line 1 is damaged"):
        await auto_connect(carol, "alice")


@pytest.mark.parametrize("way", ["auto_connect", "node.connect"])
async def test_of_two_first_connections_at_once_one_holds(start, way):
    """While this node connects, another process pins the name to another key."""

    class Slow(Dial):
        async def run(self, reply=None):
            self.node.trust.pins.accept("alice", "e" * 32)
            await super().run(reply)

    alice, bob = await start(), await start(Slow)
    bob.hooks.register(book := Book(alice=alice.address()))
    if way == "auto_connect":
        with pytest.raises(KeyChangedError, match="e" * 32):
            await auto_connect(bob, "alice")
    else:
        plugin = await bob.connect(None, LOOPBACK_BIND, "alice", "dial")
        assert (await plugin.result).closed
    assert book.pinned == []
    assert bob.trust.pins.get("alice").fingerprint == "e" * 32


async def test_addresses_and_node_ids_make_no_pins(start):
    alice, bob = await start(), await start(Dial)
    bob.hooks.register(book := Book(**{alice.node_id: alice.address()}))
    for dest in (alice.address(), alice.peer_address, alice.peer_address.to_text(), alice.node_id):
        async with await connect(bob, dest) as pipe:
            assert pipe.peer_id == alice.node_id
    assert book.pinned == bob.trust.pins.all() == []

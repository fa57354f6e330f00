"""Names between whole nodes over real brokers that squatters flood, or that lie."""

# ruff: noqa: ASYNC110, SIM117  # what a broker shows has no event

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from itertools import cycle

import pytest

from warpgate.errors import KeyChangedError, UnknownPeerError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.names import finder
from warpgate.names.record import name_topic, pack_record
from warpgate.names.retained import LIFE_S, RetainedNames
from warpgate.names.rules import fingerprint
from warpgate.net.constants import TCP
from warpgate.node.auto_connect import auto_connect, connect
from warpgate.node.resolve import resolve
from warpgate.plugin import Plugin
from warpgate.protocol.peer_address import pack_address
from warpgate.signalling.broker_policy import topic_hash
from warpgate.testing import started_nodes
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto

pytest_plugins = ["warpgate.testing.pytest_plugin"]
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    pytest.mark.usefixtures("leak_check"),
]


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(finder, "FIND_S", 1.5)
    monkeypatch.setattr(finder, "PINNED_S", 0.3)
    monkeypatch.setattr(finder, "LOOK_AGAIN_S", 0.02)


@pytest.fixture
def brokers(tmp_path):
    """Two mosquittos that know nothing of each other."""
    with Mosquitto(_folder(tmp_path, "one")) as one, Mosquitto(_folder(tmp_path, "two")) as two:
        yield one, two


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(_folder(tmp_path, "one")) as one:
        yield one


def _folder(parent, name):
    (parent / name).mkdir()
    return parent / name


@asynccontextmanager
async def running(*urls, **conf):
    """A node that uses these brokers."""
    conf |= {"brokers": list(urls), "sig_pipe_no": len(urls), "enable_nickname": True}
    async with started_nodes(1, conf=conf, strategies=[Dial], memory=False) as [node]:
        async with asyncio.timeout(10):
            while not all(each.state == "connected" for each in node.rendezvous.mqtt.status()):
                await asyncio.sleep(0.01)
        yield node


async def put(node, name, identity, *, life_s=LIFE_S, sequence=None, topic=None, raw=None):
    """Let the node's brokers retain a record of somebody else; returns it."""
    sequence = node.unix_time() if sequence is None else sequence
    address = pack_address(
        identity, machine=b"m" * 16, sequence=sequence, brokers=(), interfaces=()
    )
    record = pack_record(
        identity,
        name=name,
        address=address,
        sequence=sequence,
        expires_s=node.unix_time() + life_s,
    )
    await give(node, topic or name_topic(name, identity.public_key), raw or record.raw)
    return record


async def give(node, topic, payload):
    """Publish past the node's own book-keeping, on each of its brokers."""
    for link in node.rendezvous.mqtt._kept.values():
        await link.publish_retained(topic, payload, LIFE_S)


async def test_no_pin_without_a_hello(broker):
    async with running(broker.url) as bob:
        await put(bob, "alice", Identity.generate())
        assert await auto_connect(bob, "alice", 5) == (None, None)
        assert bob.trust.pins.all() == []


async def test_a_squatter(broker, caplog):
    eve = Identity.generate()
    async with running(broker.url) as alice, running(broker.url) as bob:
        await put(bob, "alice", eve)
        with caplog.at_level(logging.WARNING, "warpgate"):
            full = await alice.nickname("alice")
        assert f"also claimed by {fingerprint(eve.public_key)}" in caplog.text
        assert alice.stats["names_contested"] == 1
        with pytest.raises(UnknownPeerError) as error:
            await resolve(bob, "alice")
        # Whoever is told learns whom there is to choose from, and how.
        for text in (
            full,
            f"alice@{fingerprint(eve.public_key)}",
            "node.trust.pins.accept('alice', ",
        ):
            assert text in str(error.value)
        async with await connect(bob, full) as pipe:
            assert pipe.peer_id == alice.node_id
        # Now it is pinned, and what Eve says is of no consequence.
        assert await resolve(bob, "alice") == alice.peer_address
        await alice.withdraw_nickname("alice")
        with pytest.raises(KeyChangedError) as changed:
            await auto_connect(bob, "alice")
        for key in (alice.identity.public_key, eve.public_key):
            assert fingerprint(key) in str(changed.value)
        assert f"pins.accept('alice', '{fingerprint(eve.public_key)}')" in str(changed.value)
        assert bob.last_report.error is changed.value
        # In full her name still leads to her, and the pin stays.
        assert (await resolve(bob, f"alice@{fingerprint(eve.public_key)}")).key == eve.public_key
        assert bob.trust.pins.get("alice").fingerprint == fingerprint(alice.identity.public_key)


async def test_a_replayed_record(broker):
    async with running(broker.url) as alice, running(broker.url) as bob:
        old = await put(bob, "alice", alice.identity, sequence=5)
        full = await alice.nickname("alice")
        topic = name_topic("alice", alice.identity.public_key)
        async with await connect(bob, "alice"):
            pass
        await give(bob, topic, old.raw)
        with pytest.raises(UnknownPeerError):
            await resolve(bob, "alice")
        assert bob.stats["names_replayed"] > 0
        # A node that starts anew knows from its pin, and one that has none can't know.
        fresh = RetainedNames(bob.rendezvous.mqtt, bob.identity, stats := Counters())
        with pytest.raises(UnknownPeerError):
            await finder.find_name(fresh, bob.trust, full)
        assert stats["names_replayed"] > 0
        assert (await fresh.lookup("alice"))[0].sequence == 5


async def test_a_flood_of_garbage_hides_nothing(broker):
    async with running(broker.url) as alice, running(broker.url) as bob:
        level = topic_hash(b"alice")
        for number in range(20):
            await give(bob, f"wg/1/n/{level}/{number}", b"garbage %d" % number)
        await put(bob, "alice", Identity.generate(), life_s=-1)
        await put(bob, "bob", eve := Identity.generate(), topic=name_topic("alice", eve.public_key))
        await give(bob, f"wg/1/n/{level}/large", bytes(3500))
        await alice.nickname("alice")
        assert await resolve(bob, "alice") == alice.peer_address
        for counter in ("names_forged", "names_stale", "names_misplaced", "names_oversize"):
            assert bob.stats[counter] > 0


async def test_a_flood_of_claims_hides_no_pinned_and_no_full_name(broker):
    async with running(broker.url) as alice, running(broker.url) as bob:
        for _ in range(100):
            await put(bob, "alice", Identity.generate())
        full = await alice.nickname("alice")
        with pytest.raises(UnknownPeerError, match="8 nodes claim the name 'alice'"):
            await resolve(bob, "alice")
        async with await connect(bob, full) as pipe:
            assert pipe.peer_id == alice.node_id
        assert await resolve(bob, "alice") == alice.peer_address


async def test_a_broker_that_lies_can_only_hide(brokers):
    """One shows an old record and a stranger's claim, the other the truth."""
    liar, honest = brokers
    eve = Identity.generate()
    async with running(liar.url) as accomplice, running(liar.url, honest.url) as bob:
        async with running(honest.url) as alice:
            await put(accomplice, "alice", alice.identity, sequence=5)
            full = await alice.nickname("alice")
            # The newest wins, whichever broker is heard first.
            for _ in range(5):
                assert await resolve(bob, full) == alice.peer_address
            async with await connect(bob, "alice") as pipe:
                assert pipe.peer_id == alice.node_id
            await give(accomplice, name_topic("alice", alice.identity.public_key), b"")
            await put(accomplice, "alice", eve)
            for number in range(80):
                topic = f"wg/1/n/{topic_hash(b'alice')}/{number}"
                await give(accomplice, topic, b"garbage")
            assert await resolve(bob, "alice") == alice.peer_address
            await give(accomplice, name_topic("alice", alice.identity.public_key), b"garbage")
            assert await resolve(bob, "alice") == alice.peer_address


@asynccontextmanager
async def two_faced(*ports):
    """One broker by its address, which leads each connection to another one in turn."""
    turns, served, copying = cycle(ports), [], set()

    async def serve(reader, writer):
        there = await asyncio.open_connection("127.0.0.1", next(turns))
        served.extend((writer, there[1]))
        ways = [copy(reader, there[1]), copy(there[0], writer)]
        copying.update(asyncio.ensure_future(way) for way in ways)

    async def copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in served:
            writer.close()
        await asyncio.gather(*copying, return_exceptions=True)


async def test_a_broker_that_shows_different_peers_different_things(brokers):
    """Carol is shown the truth, Bob another one's claim: he may not notice, but no pin is fooled."""
    real, false = brokers
    eve = Identity.generate()
    async with running(false.url) as accomplice, running(real.url) as alice:
        full = await alice.nickname("alice")
        await put(accomplice, "alice", eve)
        async with two_faced(real.port, false.port) as url:
            async with running(url) as carol, running(url) as bob:
                assert await resolve(carol, "alice") == alice.peer_address
                assert (await resolve(bob, "alice")).key == eve.public_key
                # It is not Eve who proves it, so she isn't pinned; a full name never leads to her.
                assert await auto_connect(bob, "alice", 1) == (None, None)
                with pytest.raises(UnknownPeerError):
                    await resolve(bob, full)
                assert bob.trust.pins.all() == []
                bob.trust.pins.accept("alice", fingerprint(alice.identity.public_key))
                with pytest.raises(KeyChangedError):
                    await resolve(bob, "alice")

"""Names between whole nodes over real brokers."""

# ruff: noqa: ASYNC110, SIM117  # what a broker shows has no event

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from warpgate.errors import ConfigError, SignallingError, UnknownPeerError
from warpgate.events import NamePinned
from warpgate.hookspecs import hookimpl
from warpgate.names import finder, retained
from warpgate.names.retained import LIFE_S
from warpgate.names.rules import fingerprint
from warpgate.net.constants import LOOPBACK_BIND, TCP
from warpgate.node.auto_connect import auto_connect, connect
from warpgate.node.resolve import resolve
from warpgate.plugin import Plugin
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


async def test_a_name_leads_to_its_node_and_is_pinned(broker):
    pinned = []

    class Observer:
        @hookimpl
        def warpgate_event(self, event):
            if isinstance(event, NamePinned):
                pinned.append((event.name, event.peer_id))

    async with running(broker.url) as alice, running(broker.url) as bob:
        bob.hooks.register(Observer())
        full = await alice.nickname("Alice")
        assert full == f"alice@{fingerprint(alice.identity.public_key)}"
        for dest in ("alice", "ALICE", full, f"alice@{alice.node_id}"):
            async with await connect(bob, dest) as pipe:
                assert pipe.peer_id == alice.node_id
        assert pinned == [("alice", alice.node_id)]
        pin = bob.trust.pins.get("alice")
        assert (pin.fingerprint, pin.sequence) == (
            fingerprint(alice.identity.public_key),
            alice.peer_address.sequence,
        )


async def test_node_connect_pins_too(broker):
    async with running(broker.url) as alice, running(broker.url) as bob:
        await alice.nickname("alice")
        plugin = await bob.connect(None, LOOPBACK_BIND, "alice", "dial")
        assert bob.trust.pins.all() == []
        assert (await plugin.result).peer_id == alice.node_id
        assert bob.trust.pins.get("alice").fingerprint == fingerprint(alice.identity.public_key)


async def test_a_name_nobody_has(broker):
    async with running(broker.url) as bob:
        assert await auto_connect(bob, "nobody") == (None, None)
        error = bob.last_report.error
        assert isinstance(error, UnknownPeerError)
        assert "nobody here knows 'nobody': its brokers have no valid record" in str(error)
        broker.kill()
        assert await auto_connect(bob, "nobody") == (None, None)
        assert "can't be asked" in str(bob.last_report.error)
        with pytest.raises(UnknownPeerError, match="mixes letters of several scripts"):
            await resolve(bob, "\u0430lice")
        with pytest.raises(ConfigError, match="can't be a name"):
            await bob.nickname("al ice")


async def test_nobody_accepts_a_name(broker, monkeypatch):
    monkeypatch.setattr("warpgate.node.rendezvous.PUBLISH_S", 0.2)
    async with running(broker.url) as alice:
        broker.kill()
        while alice.rendezvous.mqtt.status()[0].state == "connected":
            await asyncio.sleep(0.01)
        with pytest.raises(SignallingError, match=r"no broker accepted it within 0\.2 s"):
            await alice.nickname("alice")
        broker.start()
        # What failed is not published behind the caller's back.
        async with running(broker.url) as bob:
            with pytest.raises(UnknownPeerError):
                await resolve(bob, "alice")


async def test_published_again_after_a_reconnection_and_a_new_address(broker):
    async with running(broker.url) as alice, running(broker.url) as bob:
        await alice.nickname("alice")
        broker.kill()  # what it retained is gone
        broker.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    found = await resolve(bob, "alice")
                    break
                except UnknownPeerError:
                    continue
        assert found == alice.peer_address
        alice.sign_address()
        assert alice.peer_address.sequence > found.sequence
        async with asyncio.timeout(10):
            while (await resolve(bob, "alice")) != alice.peer_address:
                await asyncio.sleep(0.02)


async def test_renewed_before_it_expires(broker, monkeypatch):
    monkeypatch.setattr(retained, "RENEW_S", 0.05)
    async with running(broker.url) as alice, running(broker.url) as bob:
        await alice.nickname("alice")
        names = bob.rendezvous.names
        (first,) = await names.lookup("alice")
        ahead = alice.unix_time() + 5
        alice.rendezvous.names._clock = lambda: ahead
        async with asyncio.timeout(10):
            while (await names.lookup("alice"))[0].expires_s != ahead + LIFE_S:
                await asyncio.sleep(0.02)
        assert first.expires_s < ahead + LIFE_S


@pytest.mark.parametrize("how", ["on close", "at once", "not"])
async def test_withdrawn_when_asked(broker, how):
    async with running(broker.url) as bob:
        async with running(broker.url) as alice:
            await alice.nickname("alice", withdraw_on_close=how == "on close")
            assert await resolve(bob, "alice") == alice.peer_address
            if how == "at once":
                await alice.withdraw_nickname("Alice")
                with pytest.raises(ConfigError, match="no name of this node; its names: none"):
                    await alice.withdraw_nickname("alice")
            address = alice.peer_address
        if how == "not":
            assert await resolve(bob, "alice") == address
        else:
            with pytest.raises(UnknownPeerError):
                await resolve(bob, "alice")


async def test_a_name_on_one_of_two_brokers(brokers):
    one, two = brokers
    async with running(two.url) as alice, running(one.url, two.url) as bob:
        await alice.nickname("alice")
        assert await resolve(bob, "alice") == alice.peer_address
        # One that hangs costs the grace and no more.
        one.pause()
        began = asyncio.get_running_loop().time()
        assert await resolve(bob, "alice") == alice.peer_address
        took = asyncio.get_running_loop().time() - began
        one.resume()
        assert took < 1.0


async def test_bridged_brokers(tmp_path, broker):
    lines = [
        "allow_anonymous true",
        "connection other",
        f"address 127.0.0.1:{broker.port}",
        "topic wg/1/i/+ both 1",
        "topic wg/1/n/+/+ both 1",
    ]
    with Mosquitto(_folder(tmp_path, "other"), lines) as other:
        async with running(other.url) as alice, running(broker.url) as bob:
            await alice.nickname("alice")
            async with asyncio.timeout(20):
                while not await bob.rendezvous.names.lookup("alice"):
                    await asyncio.sleep(0.02)
            async with await connect(bob, "alice") as pipe:
                assert pipe.peer_id == alice.node_id


async def test_the_embedded_broker():
    pytest.importorskip("amqtt")
    from warpgate.signalling.broker import EmbeddedBroker

    async with EmbeddedBroker() as broker:
        async with running(broker.url) as alice, running(broker.url) as bob:
            await alice.nickname("alice", withdraw_on_close=True)
            async with await connect(bob, "alice") as pipe:
                assert pipe.peer_id == alice.node_id

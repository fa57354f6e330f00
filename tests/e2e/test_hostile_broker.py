"""A broker that drops, replays, reorders, corrupts, duplicates and mixes up: it can only hold up.

The nodes have no other way for their signals, and connect by ``reverse_connect``, which needs one.
"""

# ruff: noqa: ASYNC110  # counters have no event to wait for

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from lying_broker import Delivery, LyingBroker

from warpgate import NIC_BIND, NODE_TEST_CONF, Node, auto_connect
from warpgate.signalling.broker_policy import inbox_topic
from warpgate.testing import LeakCheck, echo
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
CALLS = 4


class Scene:
    """Three nodes at a broker that lies."""

    def __init__(self, broker: LyingBroker, nodes: list[Node]) -> None:
        self.broker = broker
        self.alice, self.bob, self.carol = self.nodes = nodes
        self.rng = random.Random(5)
        self.inbound: list[tuple[str | None, str | None]] = []
        for node in nodes:

            def seen(_msg: bytes, _addr: Any, pipe: Any, here: Node = node) -> None:
                self.inbound.append((here.node_id, pipe.peer_id))

            node.add_msg_cb(seen)
            node.add_msg_cb(echo)

    async def call(self, timeout_s: float = 10.0) -> bool:
        """Let alice call bob; True when it worked. It is bob in any case."""
        pipe, _ = await auto_connect(
            self.alice,
            self.bob.address(),
            timeout_s,
            plugins=["reverse_connect"],
            route_types=[NIC_BIND],
            afs=self.alice.supported()[:1],
        )
        if pipe is None:
            assert self.alice.last_report.outcomes
            return False
        async with pipe:
            assert (pipe.peer_id, pipe.sealed) == (self.bob.node_id, True)
            await pipe.send(b"there and back")
            assert await pipe.recv_n(14, timeout=10) == b"there and back"
        return True

    async def calls(self) -> int:
        """Return how many of some calls worked; each that did reached bob once, and nobody else."""
        worked = sum([await self.call() for _ in range(CALLS)])
        wanted = (self.bob.node_id, self.alice.node_id)
        assert self.inbound == [wanted] * worked
        return worked

    def count(self, *names: str) -> int:
        """Return what the nodes have counted."""
        return sum(node.stats[name] for node in self.nodes for name in names)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    with Mosquitto(tmp_path, ("allow_anonymous true",)) as mosquitto:
        async with LeakCheck(grace_s=3.0), AsyncExitStack() as stack:
            broker = await stack.enter_async_context(LyingBroker(mosquitto.port))
            conf = {**NODE_TEST_CONF, "brokers": [broker.url], "sig_pipe_no": 1}
            nodes = [Node(conf=conf) for _ in range(3)]
            for node in nodes:
                node._direct_targets = lambda _peer: []
                await stack.enter_async_context(node)
            async with asyncio.timeout(10):
                while not all(node.peer_address.brokers for node in nodes):
                    await asyncio.sleep(0.01)
            yield Scene(broker, nodes)


def is_signal(delivery: Delivery) -> bool:
    return delivery.topic.startswith(b"wg/1/i/")


async def test_it_drops_half(scene: Scene) -> None:
    scene.broker.lie = lambda it: [it] if scene.rng.random() < 0.5 else []
    assert await scene.calls() >= CALLS - 1
    assert scene.broker.deliveries > CALLS


async def test_it_duplicates_replays_and_reorders(scene: Scene) -> None:
    kept: list[Delivery] = []

    def lie(it: Delivery) -> list[Delivery]:
        kept.append(it)
        out = [it, it, *scene.rng.choices(kept, k=4)]
        scene.rng.shuffle(out)
        loop = asyncio.get_running_loop()
        for late in scene.rng.choices(kept, k=2):
            loop.call_later(scene.rng.random() / 2, scene.broker.put, late)
        return out

    scene.broker.lie = lie
    assert await scene.calls() == CALLS
    # What the copies' filter has forgotten is a replay to the router: nothing comes of it either.
    for node in scene.nodes:
        node.rendezvous.mqtt._inbox._seen.clear()
    received = scene.count("signals_received")
    for it in [one for one in kept if is_signal(one)]:
        scene.broker.put(it)
    async with asyncio.timeout(10):
        while not scene.count("signals_duplicate"):
            await asyncio.sleep(0.01)
    assert scene.count("mqtt_copies") > CALLS
    assert scene.count("signals_received") == received
    assert not any(node.traversal.plugins for node in scene.nodes)


async def test_it_corrupts_half(scene: Scene) -> None:
    def lie(it: Delivery) -> list[Delivery]:
        if scene.broker.deliveries % 2:
            data = bytearray(it.payload)
            data[scene.rng.randrange(len(data))] ^= 1 << scene.rng.randrange(8)
            it = it.bearing(bytes(data))
        return [it]

    scene.broker.lie = lie
    assert await scene.calls() >= CALLS - 1
    dropped = ("signals_BadSignature", "mqtt_garbage", "signals_RemoteProtocolError")
    assert scene.count(*dropped) >= CALLS / 2


async def test_it_shows_everyone_something_else(scene: Scene) -> None:
    """Half of what is bob's comes to carol as hers, and some of hers and of alice's to bob."""
    topics = [inbox_topic(node.identity.public_key).encode() for node in scene.nodes]
    clients: dict[bytes, int] = {}
    mixed = 0

    def lie(it: Delivery) -> list[Delivery]:
        nonlocal mixed
        if not is_signal(it):
            return [it]
        clients[it.topic] = it.client
        out = [it]
        for topic in topics:
            if topic in clients and topic != it.topic:
                out.append(Delivery(clients[topic], it.flags, topic, it.properties, it.payload))
                mixed += 1
        return out[1:] if len(out) > 1 and scene.rng.random() < 0.5 else out

    scene.broker.lie = lie
    for node in (scene.bob, scene.carol):  # each has had a signal: the broker knows who is who
        await auto_connect(
            scene.alice, node.address(), 5, plugins=["reverse_connect"], route_types=[NIC_BIND]
        )
    assert set(scene.inbound) <= {
        (scene.bob.node_id, scene.alice.node_id),
        (scene.carol.node_id, scene.alice.node_id),
    }
    scene.inbound.clear()
    assert await scene.calls() >= CALLS - 1
    assert mixed > CALLS
    assert scene.count("signals_BadSignature") > CALLS

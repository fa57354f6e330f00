"""Whole nodes that meet through real brokers, and what becomes of that when brokers or others misbehave.

The nodes here never signal directly (``meeting_point`` takes the means away), and connect by
``reverse_connect``, which needs the peer to hear of it: a connection proves that a signal has passed.
"""

# ruff: noqa: ASYNC110, ASYNC221, SIM117  # other processes and counters have no event to wait for

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from support import ROOT, process

from warpgate import NIC_BIND, NODE_TEST_CONF, ConMsg, Node, auto_connect
from warpgate.identity import Identity
from warpgate.protocol.codec import encode_body
from warpgate.protocol.envelope import seal_signal
from warpgate.server_urls import parse_broker
from warpgate.signalling import mqtt, mqtt_transport
from warpgate.signalling.broker import EmbeddedBroker
from warpgate.signalling.broker_policy import inbox_topic
from warpgate.signalling.mqtt import open_session
from warpgate.testing import LeakCheck, echo
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto, free_port

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

FLOOD = Path(__file__).resolve().parent / "flood.py"
BENCH = ROOT / "tools" / "bench" / "fleet.py"
FLOOD_PER_S = 10_000
FLOOD_S = 40
FLOODED_CONNECTS = 8
KEPT_MIB = 16
"""How much the process may grow under a flood; two seconds of it, kept, would be more."""
YEAR_S = 365 * 24 * 3600


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with LeakCheck(grace_s=3.0), AsyncExitStack() as opened:
        yield opened


@contextmanager
def broker(folder: Path, lines: tuple[str, ...] = ("allow_anonymous true",)) -> Iterator[Mosquitto]:
    place = folder / f"broker{len(list(folder.iterdir()))}"
    place.mkdir()
    with Mosquitto(place, lines) as mosquitto:
        yield mosquitto


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker(tmp_path) as mosquitto:
        yield mosquitto


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker(tmp_path) as mosquitto:
        yield mosquitto


async def meeting_point(
    stack: AsyncExitStack, *brokers: str, keep: int = 2, direct: bool = False
) -> Node:
    """Start a node that signals through these brokers only, and echoes."""
    conf: dict[str, Any] = {"brokers": brokers, "sig_pipe_no": keep, "enable_nickname": True}
    node = Node(conf={**NODE_TEST_CONF, **conf})
    if not direct:
        node._direct_targets = lambda _peer: []
    await stack.enter_async_context(node)
    node.add_msg_cb(echo)
    return node


async def meet(alice: Node, bob: Node, dest: bytes | str = b"", timeout_s: float = 15) -> None:
    """Connect by one signal, and use the pipe."""
    before = bob.stats["signals_by_mqtt"]
    pipe, plugin = await auto_connect(
        alice,
        dest or bob.address(),
        timeout_s,
        plugins=["reverse_connect"],
        route_types=[NIC_BIND],
        afs=alice.supported()[:1],
    )
    assert pipe is not None, (
        f"{alice.last_report}\n{alice.stats}\n{bob.stats}\n{states(alice, bob)}"
    )
    assert plugin.name == "reverse_connect"
    async with pipe:
        assert pipe.peer_id == bob.node_id
        await pipe.send(b"there and back")
        assert await pipe.recv_n(14, timeout=10) == b"there and back"
    assert bob.stats["signals_by_mqtt"] == before + 1


def states(*nodes: Node) -> list[Any]:
    return [node.rendezvous.mqtt.status() for node in nodes]


async def connected(*nodes: Node, count: int = 1) -> None:
    """Wait until each node is connected to so many brokers."""
    async with asyncio.timeout(20):
        while not all(
            sum(each.state == "connected" for each in status) >= count for status in states(*nodes)
        ):
            await asyncio.sleep(0.02)


# Brokers that die.


async def test_killed_and_restarted(stack: AsyncExitStack, one: Mosquitto) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, one.url)
    await meet(alice, bob)
    one.kill()
    one.start()
    await meet(alice, bob)
    one.kill()
    while any(status[0].state == "connected" for status in states(alice, bob)):
        await asyncio.sleep(0.01)
    meeting = asyncio.ensure_future(meet(alice, bob))
    await asyncio.sleep(0.1)
    one.start()
    await meeting
    # Its record went with the broker's memory, and came back with the node.
    await meet(bob, alice, alice.node_id)


async def test_either_of_two_may_die(stack: AsyncExitStack, one: Mosquitto, two: Mosquitto) -> None:
    urls = one.url, two.url
    alice, bob = await meeting_point(stack, *urls), await meeting_point(stack, *urls)
    for victim in (one, two):
        await connected(alice, bob, count=2)
        victim.kill()
        await meet(alice, bob)
        await meet(bob, alice, alice.node_id)
        victim.start()


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """Accept and never answer."""
    writers = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(-1)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    yield f"mqtt://127.0.0.1:{free_port()}"


@asynccontextmanager
async def unresolvable() -> AsyncIterator[str]:
    """A name whose resolution never ends."""
    answer, plain = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host == "broker.invalid":
            answer.wait(60)
        return plain(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        try:
            yield "mqtt://broker.invalid"
        finally:
            answer.set()


@pytest.mark.parametrize("bad", [silent, refusing, unresolvable])
async def test_a_hopeless_broker_costs_nothing(one: Mosquitto, bad: Any) -> None:
    # The first time-out that such a broker could cost is CONNACK_TIMEOUT_S: all ends before.
    async with LeakCheck(grace_s=3.0), bad() as url:
        async with asyncio.timeout(mqtt.CONNACK_TIMEOUT_S), AsyncExitStack() as opened:
            alice = await meeting_point(opened, url, one.url)
            bob = await meeting_point(opened, url, one.url)
            await meet(alice, bob)
            await meet(bob, alice, alice.node_id)


@pytest.mark.parametrize("bad", [silent, refusing, unresolvable])
async def test_nothing_but_a_hopeless_broker(bad: Any) -> None:
    async with LeakCheck(grace_s=3.0), bad() as url:
        async with asyncio.timeout(mqtt.CONNACK_TIMEOUT_S), AsyncExitStack() as opened:
            alice = await meeting_point(opened, url, direct=True)
            bob = await meeting_point(opened, url, direct=True)
            for names in (None, ["reverse_connect"]):
                pipe, _ = await auto_connect(alice, bob.address(), 5, plugins=names)
                assert pipe is not None
                await pipe.close()
            assert bob.stats["signals_by_direct"]


# Different brokers.


async def test_on_demand_from_our_own_list(
    stack: AsyncExitStack, one: Mosquitto, two: Mosquitto
) -> None:
    alice = await meeting_point(stack, one.url, two.url, keep=1)
    bob = await meeting_point(stack, two.url)
    assert set(alice.peer_address.brokers).isdisjoint(bob.peer_address.brokers)
    await meet(alice, bob)
    assert [each.url for each in states(alice)[0] if each.on_demand] == [two.url]


async def test_on_demand_by_the_peers_word(
    stack: AsyncExitStack, one: Mosquitto, two: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, two.url)
    await connected(alice, bob)
    # These brokers are on loopback, where no peer may send us.
    pipe, _ = await auto_connect(alice, bob.address(), 10, plugins=["reverse_connect"])
    assert pipe is None
    assert "word" in str(alice.last_report)
    monkeypatch.setattr(mqtt_transport, "may_dial", lambda *_args: True)
    await meet(alice, bob)
    await meet(bob, alice)


async def test_bridged_brokers(stack: AsyncExitStack, one: Mosquitto, tmp_path: Path) -> None:
    lines = (
        "allow_anonymous true",
        "connection other",
        f"address 127.0.0.1:{one.port}",
        "topic wg/1/i/+ both 1",
        "topic wg/1/n/+/+ both 1",
    )
    with broker(tmp_path, lines) as two:
        alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, two.url)
        await connected(alice, bob)
        await meet(alice, bob, bob.node_id)
        await meet(bob, alice, alice.node_id)
        for node in (alice, bob):  # the other one's broker is on loopback: not to be dialled
            assert [each.state for each in states(node)[0] if each.on_demand] in ([], ["closed"])
        await stack.aclose()


async def test_peers_that_know_only_the_id(stack: AsyncExitStack, one: Mosquitto) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, one.url)
    await meet(alice, bob, bob.node_id)
    await meet(bob, alice, alice.node_id.upper())
    nobody = Identity.generate().node_id
    assert await auto_connect(alice, nobody, 5) == (None, None)
    assert "nobody here knows" in str(alice.last_report.error)


# Clocks.


def set_clock(node: Node, ahead_s: float) -> None:
    """Let a node's clock be wrong, in its signals as well as in its name record."""

    def clock() -> float:
        return time.time() + ahead_s

    node.router._clock = clock
    node.rendezvous.names._clock = clock
    node.unix_time = lambda: int(clock())
    node.sign_address()


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(0, YEAR_S), (0, -YEAR_S), (YEAR_S, 0), (-YEAR_S, YEAR_S), (YEAR_S, YEAR_S)],
)
async def test_clocks_wrong_by_a_year(
    stack: AsyncExitStack, one: Mosquitto, mine: int, theirs: int
) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, one.url)
    set_clock(alice, mine)
    set_clock(bob, theirs)
    wrong = int(mine != theirs)
    await meet(alice, bob, bob.node_id)
    assert alice.stats["clock_corrections"] == bob.stats["signals_stale"] == wrong
    assert bob.stats["clock_corrections"] == alice.stats["signals_stale"] == 0
    await meet(alice, bob)  # the offset is known from now on
    assert alice.stats["clock_corrections"] == wrong
    await meet(bob, alice, alice.node_id)
    assert bob.stats["clock_corrections"] == wrong


# Kinds of brokers.


@pytest.mark.skipif(importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed")
async def test_the_embedded_broker(stack: AsyncExitStack) -> None:
    embedded = await stack.enter_async_context(EmbeddedBroker())
    alice, bob = [await meeting_point(stack, embedded.url) for _ in range(2)]
    await meet(alice, bob, bob.node_id)
    await meet(bob, alice)
    assert [status[0].version for status in states(alice, bob)] == ["3.1.1", "3.1.1"]


async def test_accounts_and_tls(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    # As an operator would whose authority is not one of the system's.
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(tmp_path / "ca.pem"))
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    for user in ("alice", "bob"):
        command = ["mosquitto_passwd", "-b", str(passwords), user, f"{user}:p@ss/word"]
        subprocess.run(command, check=True, capture_output=True)
    lines = (
        f"certfile {tmp_path / 'cert.pem'}",
        f"keyfile {tmp_path / 'key.pem'}",
        "allow_anonymous false",
        f"password_file {passwords}",
    )
    with broker(tmp_path, lines) as mosquitto:
        bare = mosquitto.url.replace("mqtt:", "mqtts:")
        alice, bob = [
            await meeting_point(stack, bare.replace("//", f"//{user}:{user}%3Ap%40ss%2Fword@"))
            for user in ("alice", "bob")
        ]
        await meet(alice, bob, bob.node_id)
        await meet(bob, alice)
        assert [status[0].tls for status in states(alice, bob)] == [True, True]
        assert bob.peer_address.brokers == (bare,)
        stranger = await meeting_point(stack, bare)
        pipe, _ = await auto_connect(stranger, bob.address(), 3, plugins=["reverse_connect"])
        assert pipe is None
        await stack.aclose()


# Hostile clients.


class Eve:
    """A client of the broker that listens to an inbox and publishes what she likes to it."""

    def __init__(self, url: str, victim: Node) -> None:
        self.url = parse_broker(url)
        self.topic = inbox_topic(victim.identity.public_key)
        self.heard: list[bytes] = []

    async def __aenter__(self) -> Self:
        self.session = await open_session(
            self.url,
            version=5,
            on_message=lambda _topic, payload, _retained: self.heard.append(payload),
            permit=lambda _ip: True,
        )
        await self.session.subscribe(self.topic)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.session.close()

    async def put(self, payload: bytes) -> None:
        await self.session.publish(self.topic, payload)


def forge(signer: Identity, receiver: Any, msg: ConMsg, name: str = "") -> bytes:
    return seal_signal(
        signer,
        receiver.public_key,
        receiver.exchange_key,
        wire_name=name or type(msg).WIRE_NAME,
        body=encode_body(msg),
        sent_ms=int(time.time() * 1000),
        ttl_s=20,
        msg_id=os.urandom(16),
    )


async def until(node: Node, **counts: int) -> None:
    async with asyncio.timeout(10):
        while any(node.stats[name] < count for name, count in counts.items()):
            await asyncio.sleep(0.01)


async def test_a_hostile_client_on_the_same_broker(stack: AsyncExitStack, one: Mosquitto) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, one.url)
    await connected(alice, bob)
    eve = await stack.enter_async_context(Eve(one.url, bob))
    for _ in range(3):
        await meet(alice, bob)
    async with asyncio.timeout(10):
        while len(eve.heard) < 3:
            await asyncio.sleep(0.01)
    genuine, own = eve.heard[:3], Identity.generate()
    got = bob.stats["signals_received"]
    # Garbage, and what is too large.
    await eve.put(b"garbage")
    await eve.put(b"\x01" + bytes(9000))
    await eve.put(b"\x01" + os.urandom(500))
    # Replayed and reordered; and when the first line of defence has forgotten them, too.
    for envelope in reversed(genuine):
        await eve.put(envelope)
    await until(bob, mqtt_copies=3)
    bob.rendezvous.mqtt._inbox._seen.clear()
    for envelope in reversed(genuine):
        await eve.put(envelope)
    # Altered, sealed to another, and signed by another than the address in it.
    await eve.put(genuine[0][:-1] + bytes([genuine[0][-1] ^ 1]))
    msg = ConMsg()
    msg.meta.plugin_name, msg.meta.pipe_id = "direct_connect", "a" * 15
    msg.meta.src_buf = alice.address()
    await eve.put(forge(own, Identity.generate(), msg))
    await eve.put(forge(own, bob.identity, msg))
    msg.meta.src_buf = b"no address"
    await eve.put(forge(own, bob.identity, msg))
    await eve.put(forge(own, bob.identity, msg, "no_such.Message"))
    await until(
        bob,
        mqtt_garbage=1,
        mqtt_oversize=1,
        mqtt_copies=3,
        signals_duplicate=3,
        signals_BadSignature=3,
        signals_RemoteProtocolError=1,
        signals_InvalidAddressError=1,
        signals_UnknownMessage=1,
    )
    assert bob.stats["signals_received"] == got
    assert not bob.traversal.plugins
    await meet(alice, bob)
    await meet(bob, alice)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("qos", ["0", "1"])
async def test_right_connects_pass_a_flood(stack: AsyncExitStack, one: Mosquitto, qos: str) -> None:
    alice, bob = await meeting_point(stack, one.url), await meeting_point(stack, one.url)
    await meet(alice, bob)
    topic = inbox_topic(bob.identity.public_key)
    command = [
        sys.executable,
        str(FLOOD),
        str(one.port),
        topic,
        str(FLOOD_PER_S),
        str(FLOOD_S),
        qos,
    ]
    with process(command) as flood:
        assert await asyncio.to_thread(flood.stdout.readline) == "flooding\n"
        await until(bob, signals_BadSignature=FLOOD_PER_S // 5)
        memory = psutil.Process().memory_info().rss
        connects = flooded = 0
        while connects < FLOODED_CONNECTS or flooded <= FLOOD_PER_S:
            await meet(alice, bob, timeout_s=25)
            connects += 1
            # What was dropped unopened, and what was opened in vain.
            flooded = bob.stats["mqtt_flooded"] + bob.stats["signals_BadSignature"]
            assert flood.poll() is None, f"the flood was over too early: {flooded} messages came"
        grown = psutil.Process().memory_info().rss - memory
    assert grown < KEPT_MIB * 2**20, f"{grown / 2**20:.1f} MiB"
    await meet(alice, bob)


# Many nodes.


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_fleet_on_one_broker() -> None:
    command = [sys.executable, str(BENCH), "--json", "--sizes", "5", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    figures = json.loads(done.stdout)
    assert figures["connected"], figures["fleets"]
    assert done.returncode == (0 if figures["met"] else 1)  # how long it took is the bench's matter
    assert [each["nodes"] for each in figures["fleets"]] == [5, 30]
    for each in figures["fleets"]:
        for way in ("reverse_connect", "auto_connect"):
            assert each[way]["connects"] == each["nodes"]
        assert each["signals_by_mqtt"] >= each["nodes"]

"""Brokers that die, hang, refuse or lie, and clients that abuse them."""

# ruff: noqa: ASYNC110  # what another process or a counter shows has no event to wait for

from __future__ import annotations

import asyncio
import os
import socket
import threading
import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from warpgate.errors import SignallingError, WarpgateError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.protocol.envelope import open_signal, seal_signal
from warpgate.protocol.peer_address import pack_address
from warpgate.server_urls import parse_broker
from warpgate.signalling import mqtt, mqtt_transport
from warpgate.signalling.broker_policy import inbox_topic
from warpgate.signalling.mqtt import open_session
from warpgate.signalling.mqtt_transport import MqttTransport
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto, free_port

pytest_plugins = ["warpgate.testing.pytest_plugin"]
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    pytest.mark.usefixtures("leak_check"),
]


class Peer:
    """A transport with its keys and the bodies that it has received."""

    def __init__(self, brokers, keep=2, **options):
        self.identity = Identity.generate()
        self.counters = Counters()
        self.transport = MqttTransport(self.identity, brokers, keep, self.counters, **options)
        self.received = asyncio.Queue()
        self.rejected = 0
        self.address = pack_address(
            self.identity,
            machine=b"m" * 16,
            sequence=1,
            brokers=self.transport.brokers(),
            interfaces=[],
        )

    def envelope(self, dest, body=b"hello"):
        return seal_signal(
            self.identity,
            dest.identity.public_key,
            dest.identity.exchange_key,
            wire_name="Test",
            body=body,
            sent_ms=1_790_000_000_000,
            ttl_s=20,
            msg_id=os.urandom(16),
        )

    async def send(self, dest, body=b"hello"):
        await self.transport.send(dest.address, self.envelope(dest, body))

    def deliver(self, envelope, origin):
        try:
            self.received.put_nowait(open_signal(self.identity, envelope).body)
        except WarpgateError:
            self.rejected += 1

    async def get(self):
        async with asyncio.timeout(10):
            return await self.received.get()

    async def __aenter__(self):
        await self.transport.start(self.deliver)
        return self

    async def __aexit__(self, *error):
        await self.transport.close()

    async def connected(self):
        async with asyncio.timeout(10):
            while not any(each.state == "connected" for each in self.transport.status()):
                await asyncio.sleep(0.005)

    async def all_connected(self):
        async with asyncio.timeout(10):
            while not all(each.state == "connected" for each in self.transport.status()):
                await asyncio.sleep(0.005)

    def state(self, url):
        return next(each for each in self.transport.status() if each.url == url)


@pytest.fixture
def mosquitto(tmp_path):
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def second(tmp_path):
    (tmp_path / "second").mkdir()
    with Mosquitto(tmp_path / "second") as broker:
        yield broker


@asynccontextmanager
async def server(answer):
    """Serve ``answer(reader, writer)`` on loopback; gives its port and what it has seen."""
    seen = []

    async def serve(reader, writer):
        seen.append(writer)
        try:
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1], seen
    finally:
        listening.close()
        for writer in seen:
            writer.close()
        await listening.wait_closed()
        await asyncio.sleep(0.01)


async def silent(reader, _writer):
    await reader.read(-1)


async def test_the_next_signal_goes_through_after_a_restart(mosquitto):
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await a.send(b, b"before")
        assert await b.get() == b"before"
        mosquitto.kill()
        sending = asyncio.ensure_future(a.send(b, b"meanwhile"))
        await asyncio.sleep(0.1)
        mosquitto.start()
        await sending
        assert await b.get() == b"meanwhile"
        await b.send(a, b"after")
        assert await a.get() == b"after"


@pytest.mark.parametrize("victim", [0, 1])
async def test_of_two_brokers_either_may_die(mosquitto, second, victim):
    brokers = [mosquitto, second]
    urls = [broker.url for broker in brokers]
    async with Peer(urls) as a, Peer(urls) as b:
        await a.all_connected()
        await b.all_connected()
        brokers[victim].kill()
        for number in range(3):
            await a.send(b, b"%d" % number)
            assert await b.get() == b"%d" % number
        assert b.received.empty()
        assert a.transport.brokers() == b.transport.brokers() == tuple(urls)
        brokers[victim].start()
        await a.all_connected()
        await b.all_connected()


async def test_a_broker_that_hangs_costs_nothing_when_another_lives(mosquitto, second):
    urls = [mosquitto.url, second.url]
    async with Peer(urls) as a, Peer(urls) as b:
        await a.all_connected()
        await b.all_connected()
        mosquitto.pause()
        # Each send ends before the hanging broker's acknowledgement could time out.
        async with asyncio.timeout(mqtt.ACK_TIMEOUT_S):
            for number in range(5):
                await a.send(b, b"%d" % number)
                assert await b.get() == b"%d" % number
        # The link notices by itself, and comes back when the broker does.
        async with asyncio.timeout(10):
            while a.state(mosquitto.url).state == "connected":
                await asyncio.sleep(0.02)
        mosquitto.resume()
        await a.all_connected()


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_accept_and_silence_costs_nothing(mosquitto, scheme):
    async with server(silent) as (port, seen):
        urls = [f"{scheme}://127.0.0.1:{port}", mosquitto.url]
        async with asyncio.timeout(mqtt.CONNACK_TIMEOUT_S), Peer(urls) as a, Peer(urls) as b:
            await a.send(b)
            await b.get()
            assert a.transport.status()[0].state == "connecting"
        assert len(seen) >= 2


async def test_a_broker_that_refuses_costs_nothing(mosquitto):
    urls = [f"mqtt://127.0.0.1:{free_port()}", mosquitto.url]
    async with Peer(urls) as a, Peer(urls) as b:
        await a.send(b)
        await b.get()
        assert "Connection refused" in a.transport.status()[0].error


async def test_a_broker_whose_name_is_unknown_costs_nothing(mosquitto, monkeypatch):
    answer, plain = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host, *args, **options):
        if host == "broker.invalid":
            answer.wait(60)
        return plain(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    urls = ["mqtt://broker.invalid", mosquitto.url]
    try:
        async with Peer(urls) as a, Peer(urls) as b:
            await a.send(b)
            await b.get()
    finally:
        answer.set()


async def test_a_broker_after_a_time_without_any_is_a_return(mosquitto):
    returned = asyncio.Event()
    port = free_port()
    async with Peer([f"mqtt://127.0.0.1:{port}", mosquitto.url], on_return=returned.set) as a:
        await a.connected()
        while a.transport.status()[0].state != "waiting":
            await asyncio.sleep(0.01)
        with Mosquitto(mosquitto._folder, port=port):
            while a.transport.status()[0].state != "connected":
                await asyncio.sleep(0.01)
        assert not returned.is_set()  # one of two was always there
    async with Peer([f"mqtt://127.0.0.1:{port}"], on_return=returned.set) as a:
        while a.transport.status()[0].state != "waiting":
            await asyncio.sleep(0.01)
        with Mosquitto(mosquitto._folder, port=port):
            async with asyncio.timeout(20):
                await returned.wait()


async def test_a_spare_broker_is_found_soon_where_the_first_ones_are_silent(mosquitto):
    changed = asyncio.Event()
    async with server(silent) as (port, _):
        urls = (f"mqtt://127.0.0.1:{port}", mosquitto.url)
        async with Peer(urls, keep=1, on_change=changed.set) as a:
            assert a.transport.brokers() == urls[:1]
            async with asyncio.timeout(mqtt_transport.SUBSTITUTE_AFTER_S / 2):
                await changed.wait()
                await a.connected()
            assert a.transport.brokers() == urls


async def test_a_broker_by_another_port_carries_signals(tmp_path):
    # What firewalls let through of a broker differs: for one side it is another URL.
    (tmp_path / "two").mkdir()
    second = free_port()
    lines = ["allow_anonymous true", f"listener {second} 127.0.0.1", "allow_anonymous true"]
    with Mosquitto(tmp_path / "two", lines) as broker:
        async with server(silent) as (port, _):
            dead, other = f"mqtt://127.0.0.1:{port}", f"mqtt://127.0.0.1:{second}"
            async with Peer([dead, other]) as a, Peer([dead, broker.url]) as b:
                b.address = replace(b.address, brokers=(dead,))
                await a.connected()
                await b.connected()
                await a.send(b)
                assert await b.get() == b"hello"


async def test_close_does_not_wait_for_a_hung_broker(mosquitto):
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await a.connected()
        mosquitto.pause()
        sending = asyncio.ensure_future(a.send(b))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1.0):
            await a.transport.close()
        with pytest.raises((SignallingError, asyncio.CancelledError)):
            await sending
        async with asyncio.timeout(1.0):
            await a.transport.close()  # idempotent
        mosquitto.resume()


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws"])
async def test_close_while_connecting_to_a_silent_broker(scheme):
    async with server(silent) as (port, seen), Peer([f"{scheme}://127.0.0.1:{port}"]) as a:
        while not seen:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(1.0):
            await a.transport.close()


async def test_start_and_close_at_once(mosquitto):
    for _ in range(5):
        async with Peer([mosquitto.url, f"mqtt://127.0.0.1:{free_port()}"]):
            pass


async def test_all_failing_says_why_for_each(monkeypatch):
    monkeypatch.setattr(mqtt_transport, "SEND_S", 1.5)
    monkeypatch.setattr(mqtt, "CONNACK_TIMEOUT_S", 0.2)
    async with server(silent) as (port, _):
        urls = [f"mqtt://127.0.0.1:{free_port()}", f"mqtt://127.0.0.1:{port}"]
        async with Peer(urls) as a, Peer(urls) as b:
            with pytest.raises(SignallingError) as caught:
                await a.send(b)
        assert "Connection refused" in str(caught.value)
        assert "does not answer" in str(caught.value)
        assert all(url in str(caught.value) for url in urls)


CONNACK5 = b"\x20\x03\x00\x00\x00"


def connack_3(code):
    return b"\x20\x02\x00" + bytes([code])


@pytest.mark.parametrize("manner", ["refuse", "close", "hang"])
async def test_an_mqtt_3_broker_is_found_out_and_remembered(manner, monkeypatch):
    monkeypatch.setattr(mqtt, "CONNACK_TIMEOUT_S", 0.3)
    levels = []

    async def old(reader, writer):
        header = await reader.readexactly(2)
        packet = await reader.readexactly(header[1])
        levels.append(packet[6])
        if packet[6] == 5:
            if manner == "refuse":
                writer.write(connack_3(1))
            elif manner == "hang":
                await reader.read(-1)
            return
        writer.write(connack_3(0))
        while True:
            kind, length = await reader.readexactly(2)
            packet = await reader.readexactly(length)
            if kind == 0x82:
                writer.write(b"\x90\x03" + packet[:2] + b"\x01")
                if levels.count(4) == 1:
                    return  # and the connection ends; the next one knows the version

    async with server(old) as (port, _), Peer([f"mqtt://127.0.0.1:{port}"]) as a:
        async with asyncio.timeout(10):
            while levels.count(4) < 2:
                await asyncio.sleep(0.01)
        await a.connected()
        assert levels == [5, 4, 4]
        assert a.transport.status()[0].version == "3.1.1"


async def test_a_wrong_password_is_not_tried_with_another_version():
    levels = []

    async def strict(reader, writer):
        header = await reader.readexactly(2)
        levels.append((await reader.readexactly(header[1]))[6])
        writer.write(b"\x20\x03\x00\x86\x00")
        await reader.read(-1)

    async with server(strict) as (port, _):
        with pytest.raises(SignallingError, match="user name"):
            await open_session(
                parse_broker(f"mqtt://127.0.0.1:{port}"),
                version=5,
                on_message=lambda *args: None,
                permit=lambda ip: True,
            )
        async with Peer([f"mqtt://127.0.0.1:{port}"]) as a:
            while not a.transport.status()[0].error:
                await asyncio.sleep(0.01)
        assert set(levels) == {5}


@pytest.mark.parametrize(
    "packet",
    [
        b"\x30\xff\xff\xff\x7f" + b"x" * 100,  # a message of 256 MB
        b"\x30\xff\xff\xff\xff\xff",  # a length that never ends
        b"\x30\x02\x00\xff",  # a topic beyond the packet
        b"\xf0\x00",
        b"\x90\x03\x00\x63\x01",  # an acknowledgement of nothing
        b"\x40\x02\x00\x63",
        os.urandom(64),
    ],
    ids=["huge", "endless", "short", "auth", "suback", "puback", "random"],
)
async def test_a_lying_broker_harms_nobody(mosquitto, packet):
    subscribed = asyncio.Event()

    async def lying(reader, writer):
        header = await reader.readexactly(2)
        await reader.readexactly(header[1])
        writer.write(CONNACK5)
        _, length = await reader.readexactly(2)
        request = await reader.readexactly(length)
        writer.write(b"\x90\x04" + request[:2] + b"\x00\x01")
        writer.write(packet)
        subscribed.set()
        await reader.read(-1)

    async with server(lying) as (port, _):
        urls = [f"mqtt://127.0.0.1:{port}", mosquitto.url]
        async with Peer(urls) as a, Peer(urls) as b:
            await subscribed.wait()
            await a.send(b)
            await b.get()
            assert a.received.empty()


class Hostile:
    """A client that publishes what it likes."""

    def __init__(self, url, victim):
        self.url = parse_broker(url)
        self.topic = inbox_topic(victim.identity.public_key)

    async def __aenter__(self):
        self.session = await open_session(
            self.url, version=5, on_message=lambda *args: None, permit=lambda ip: True
        )
        return self

    async def __aexit__(self, *error):
        await self.session.close()

    async def put(self, payload, retain=False):
        await self.session.publish(self.topic, payload, retain=retain)


async def until(counters, name, value):
    async with asyncio.timeout(10):
        while counters[name] < value:
            await asyncio.sleep(0.005)


async def test_a_hostile_client_is_counted_and_changes_nothing(mosquitto):
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await a.connected()
        await b.connected()
        async with Hostile(mosquitto.url, b) as eve:
            await eve.put(b"garbage")
            await eve.put(b"\x02" * 500)
            await eve.put(b"\x01" * 8193)
            replayed = a.envelope(b, b"once")
            for _ in range(3):
                await eve.put(replayed)
            forged = bytearray(a.envelope(b))
            forged[-1] ^= 1
            await eve.put(bytes(forged))
            await a.send(b, b"right")
            await until(b.counters, "mqtt_copies", 2)
            assert [await b.get(), await b.get()] == [b"once", b"right"]
            assert b.rejected == 1
            assert b.counters == {"mqtt_garbage": 2, "mqtt_oversize": 1, "mqtt_copies": 2}
            # What is larger than a packet may be never arrives (MQTT 5), and cuts nobody off.
            await eve.put(bytes(17 * 1024))
            await a.send(b, b"still here")
            assert await b.get() == b"still here"
            # A retained message in an inbox greets everyone who connects, and is ignored.
            await eve.put(a.envelope(b), retain=True)
            await b.get()
            mosquitto_link = b.transport._kept[mosquitto.url]
            mosquitto_link.session.abort()
            await until(b.counters, "mqtt_retained", 1)
            assert b.received.empty()


async def test_topics_that_nobody_asked_for_are_dropped(mosquitto):
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await b.connected()
        await b.transport._kept[mosquitto.url].session.subscribe("foreign/#")
        async with Hostile(mosquitto.url, b) as eve:
            eve.topic = "foreign/topic"
            await eve.put(a.envelope(b))
        await until(b.counters, "mqtt_foreign", 1)
        assert b.received.empty()


async def test_right_signals_pass_a_flood_and_memory_stays_flat(mosquitto):
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await a.connected()
        await b.connected()
        right = 0
        turns = 0

        async def turning():
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async def flood(eve, payload):
            while True:
                await asyncio.gather(*(eve.put(payload()) for _ in range(20)))

        async with Hostile(mosquitto.url, b) as first, Hostile(mosquitto.url, b) as other:
            garbage = a.envelope(b)
            floods = [
                asyncio.ensure_future(flood(first, lambda: garbage)),  # replays: cheap to refuse
                asyncio.ensure_future(flood(other, lambda: b"\x01" + os.urandom(400))),
                asyncio.ensure_future(turning()),
            ]
            await b.get()  # the garbage's first copy is well-formed
            tracemalloc.start()
            try:
                await until(b.counters, "mqtt_copies", 300)
                before = tracemalloc.get_traced_memory()[0]
                copies = b.counters["mqtt_copies"]
                while right < 5 or b.counters["mqtt_copies"] < copies + 1000:
                    await a.send(b, b"right %d" % right)
                    assert await b.get() == b"right %d" % right
                    right += 1
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
        assert b.rejected > 0
        assert turns > 100
        # Queue, digests and sockets' buffers are bounded; a thousand messages kept would be more.
        assert grown < 1_000_000


async def test_a_flood_of_sending_is_bounded(mosquitto, monkeypatch):
    monkeypatch.setattr(mqtt_transport, "MAX_SENDING", 5)
    async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
        await a.connected()
        await b.connected()
        sends = [a.send(b, b"%d" % number) for number in range(20)]
        results = await asyncio.gather(*sends, return_exceptions=True)
        refused = [result for result in results if isinstance(result, SignallingError)]
        assert len(refused) == 15
        assert a.counters["mqtt_unsent"] == 15
        for _ in range(5):
            await b.get()


async def test_a_link_that_is_dropped_in_the_moment_of_closing_ends_too(mosquitto):
    """The task that closes it has not begun yet when everything is cancelled."""
    async with Peer([mosquitto.url]) as a:
        await a.connected()
        a.transport._leave(a.transport._kept.pop(mosquitto.url))

# ruff: noqa: ASYNC110, ASYNC221  # what another process or a counter shows has no event; mosquitto_passwd is quick

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
from pathlib import Path

import pytest

from warpgate.errors import ConfigError, SignallingError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.names.retained import RetainedNames
from warpgate.protocol.envelope import open_signal, seal_signal
from warpgate.protocol.peer_address import pack_address
from warpgate.server_urls import parse_broker
from warpgate.signalling import mqtt_transport
from warpgate.signalling.broker_policy import inbox_topic, topic_hash
from warpgate.signalling.mqtt import MQTT_3_1_1, VersionRefused, open_session
from warpgate.signalling.mqtt_transport import MqttTransport
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto, free_port

pytest_plugins = ["warpgate.testing.pytest_plugin"]

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
broker_tier = [pytest.mark.broker, needs_mosquitto, pytest.mark.usefixtures("leak_check")]
DEPLOY = Path(__file__).resolve().parents[3] / "docs" / "deploy"
PASSWORD = "s:e@c/ret"
QUOTED = "s%3Ae%40c%2Fret"
# mosquitto 2.0.11 ends when all of its listeners speak websockets.
SECOND_LISTENER = f"listener {free_port()} 127.0.0.1"


class Peer:
    """A transport with its keys and what it has received."""

    def __init__(self, brokers, keep=2, identity=None, **options):
        self.identity = identity or Identity.generate()
        self.counters = Counters()
        self.transport = MqttTransport(self.identity, brokers, keep, self.counters, **options)
        self.received = asyncio.Queue()

    @property
    def address(self):
        return pack_address(
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

    async def get(self, within_s=10):
        async with asyncio.timeout(within_s):
            envelope, origin = await self.received.get()
        return open_signal(self.identity, envelope).body, origin

    async def __aenter__(self):
        await self.transport.start(lambda *args: self.received.put_nowait(args))
        return self

    async def __aexit__(self, *error):
        await self.transport.close()

    async def connected(self):
        async with asyncio.timeout(10):
            await self.transport.wait_connected()
        return self


@pytest.fixture
def mosquitto(tmp_path):
    with Mosquitto(tmp_path) as broker:
        yield broker


async def exchange(a, b):
    """Send both ways; the answer takes the way that the request came by."""
    await a.send(b, b"question")
    body, origin = await b.get()
    assert body == b"question"
    await origin.reply(b.envelope(a, b"answer"), a.address)
    assert (await a.get())[0] == b"answer"
    return origin


# Without a broker.


async def test_brokers_stand_in_the_address_before_any_is_connected():
    urls = ["mqtt://user:pw@One.example", "mqtt://two.example:1884", "ws://three.example"]
    transport = MqttTransport(Identity.generate(), urls, 2, Counters())
    assert transport.brokers() == ("mqtt://one.example:1883", "mqtt://two.example:1884")


def test_urls_that_cant_be_used_are_named_without_their_secrets():
    identity = Identity.generate()
    for url in ("http://user:secret@x", "mqtt://user:secret@" + "x" * 130):
        with pytest.raises(ConfigError) as caught:
            MqttTransport(identity, [url], 1, Counters())
        assert "secret" not in str(caught.value)


async def test_without_a_common_broker_and_any_of_the_peers_the_cause_is_told():
    async with Peer([]) as a, Peer([]) as b:
        with pytest.raises(SignallingError, match="no broker to meet at"):
            await a.send(b)
        with pytest.raises(SignallingError, match="no broker is configured"):
            await a.transport.read_retained("wg/1/n/x/y", timeout_s=0.01)


class TestWithMosquitto:
    pytestmark = broker_tier

    async def test_signals_both_ways(self, mosquitto):
        async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
            origin = await exchange(a, b)
            assert (origin.transport, origin.loopback, origin.remote) == (
                "mqtt",
                False,
                mosquitto.url,
            )
            (status,) = a.transport.status()
            assert (status.url, status.state, status.version, status.tls) == (
                mosquitto.url,
                "connected",
                "5",
                False,
            )
            assert status.latency_s > 0
            assert a.counters == b.counters == {}

    async def test_the_first_signal_needs_no_wait_for_either_side(self, mosquitto):
        async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
            await a.send(b)
            await b.get()

    async def test_a_peer_that_comes_a_little_later_still_gets_it(self, mosquitto):
        async with Peer([mosquitto.url]) as a:
            b = Peer([mosquitto.url])
            await a.connected()
            sending = asyncio.ensure_future(a.send(b))
            await asyncio.sleep(0.05)
            async with b:
                await sending
                await b.get()

    async def test_an_absent_peer_is_an_error_that_says_so(self, mosquitto, monkeypatch):
        monkeypatch.setattr(mqtt_transport, "SEND_S", 1.2)
        async with Peer([mosquitto.url]) as a:
            with pytest.raises(SignallingError, match="not connected to this broker"):
                await a.send(Peer([mosquitto.url]))

    async def test_largest_envelope(self, mosquitto):
        async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
            spare = 8192 - len(a.envelope(b, bytes(7000)))
            await a.send(b, bytes(7000 + spare))
            assert len((await b.get())[0]) == 7000 + spare

    async def test_user_and_password(self, tmp_path):
        passwords = tmp_path / "passwords"
        passwords.touch(mode=0o600)
        command = ["mosquitto_passwd", "-b", str(passwords), "alice", PASSWORD]
        subprocess.run(command, check=True, capture_output=True)
        lines = ["allow_anonymous false", f"password_file {passwords}"]
        with Mosquitto(tmp_path, lines) as broker:
            good = broker.url.replace("//", f"//alice:{QUOTED}@")
            async with Peer([good]) as a, Peer([good]) as b:
                await exchange(a, b)
                assert a.transport.brokers() == (broker.url,)
                assert QUOTED not in str(a.transport.status())
            bad = broker.url.replace("//", "//alice:wrong@")
            async with Peer([bad]) as a:
                while not a.transport.status()[0].error:
                    await asyncio.sleep(0.01)
                assert re.search("refused|uthori", a.transport.status()[0].error)

    @pytest.mark.parametrize("scheme", ["mqtts", "wss"])
    async def test_tls(self, tmp_path, scheme):
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        lines = [
            "protocol websockets" if scheme == "wss" else "protocol mqtt",
            f"certfile {tmp_path / 'cert.pem'}",
            f"keyfile {tmp_path / 'key.pem'}",
            "allow_anonymous true",
            SECOND_LISTENER,
        ]
        with Mosquitto(tmp_path, lines) as broker:
            url = broker.url.replace("mqtt:", scheme + ":")
            async with (
                Peer([url], tls_context=context) as a,
                Peer([url], tls_context=context) as b,
            ):
                await exchange(a, b)
                assert a.transport.status()[0].tls
            async with Peer([url]) as a:  # whose authorities are the system's
                while not a.transport.status()[0].error:
                    await asyncio.sleep(0.01)
                assert "certificate" in a.transport.status()[0].error.lower()

    async def test_websockets(self, tmp_path):
        with Mosquitto(
            tmp_path, ["protocol websockets", "allow_anonymous true", SECOND_LISTENER]
        ) as broker:
            url = broker.url.replace("mqtt:", "ws:")
            async with Peer([url]) as a, Peer([url + "/mqtt"]) as b:
                await exchange(a, b)

    async def test_every_session_ends_cleanly_by_itself_too(self, mosquitto):
        url = parse_broker(mosquitto.url)
        got = asyncio.Queue()
        session = await open_session(
            url,
            version=MQTT_3_1_1,
            on_message=lambda *args: got.put_nowait(args),
            permit=lambda ip: True,
        )
        await session.subscribe("a/b")
        assert await session.publish("a/b", b"x")
        assert await got.get() == ("a/b", b"x", False)
        await session.close()
        assert session.ended.done()
        with pytest.raises(SignallingError):
            await session.publish("a/b", b"x")

    async def test_a_refused_subscription_is_an_error(self, tmp_path):
        acl = tmp_path / "acl"
        acl.write_text("topic read nothing\n")
        acl.chmod(0o600)
        lines = ["allow_anonymous true", f"acl_file {acl}"]
        with Mosquitto(tmp_path, lines) as broker:
            session = await open_session(
                parse_broker(broker.url),
                version=5,
                on_message=lambda *args: None,
                permit=lambda ip: True,
            )
            with pytest.raises(SignallingError, match="refused the message"):
                await session.publish("a", b"x")
            await session.close()

    async def test_on_demand_to_the_peers_broker(self, tmp_path, mosquitto, monkeypatch):
        # The peer's word opens no loopback broker, so this test's policy lets it pass.
        monkeypatch.setattr(mqtt_transport, "may_dial", lambda ip, peer_ips, on_link: True)
        monkeypatch.setattr(mqtt_transport, "TICK_S", 0.5)
        (tmp_path / "other").mkdir()
        with Mosquitto(tmp_path / "other") as other:
            async with Peer([mosquitto.url]) as a, Peer([other.url]) as b:
                await exchange(a, b)
                status = {each.url: each for each in a.transport.status()}
                assert status[other.url].on_demand
                assert not status[mosquitto.url].on_demand
                assert a.transport.brokers() == (mosquitto.url,)
                monkeypatch.setattr(mqtt_transport, "IDLE_S", 0.05)
                while len(a.transport.status()) > 1:
                    await asyncio.sleep(0.05)

    async def test_a_peers_word_opens_no_loopback_broker(self, mosquitto):
        async with Peer([]) as a, Peer([mosquitto.url]) as b:
            with pytest.raises(SignallingError, match="word"):
                await a.send(b)

    async def test_our_own_configuration_does(self, mosquitto):
        unused = [f"mqtt://127.0.0.1:{free_port()}" for _ in range(2)]
        async with Peer([*unused, mosquitto.url]) as a, Peer([mosquitto.url]) as b:
            assert mosquitto.url not in a.transport.brokers()
            await exchange(a, b)

    async def test_on_demand_links_are_few(self, mosquitto, monkeypatch):
        monkeypatch.setattr(mqtt_transport, "may_dial", lambda ip, peer_ips, on_link: True)
        monkeypatch.setattr(mqtt_transport, "SEND_S", 0.2)
        async with Peer([]) as a:
            for _ in range(3):
                dead = [f"mqtt://127.0.0.1:{free_port()}" for _ in range(4)]
                with pytest.raises(SignallingError):
                    await a.send(Peer(dead, keep=4))
                assert len(a.transport.status()) <= mqtt_transport.MAX_ON_DEMAND
            async with Peer([mosquitto.url]) as b:
                monkeypatch.setattr(mqtt_transport, "SEND_S", 5.0)
                await exchange(a, b)

    async def test_a_substitute_stands_in_for_a_broker_that_is_down(self, mosquitto, monkeypatch):
        monkeypatch.setattr(mqtt_transport, "TICK_S", 0.02)
        monkeypatch.setattr(mqtt_transport, "SUBSTITUTE_AFTER_S", 0.1)
        changed = asyncio.Event()
        dead = f"mqtt://127.0.0.1:{free_port()}"
        async with Peer([dead, mosquitto.url], keep=1, on_change=changed.set) as a:
            assert a.transport.brokers() == (dead,)
            async with asyncio.timeout(10):
                await changed.wait()
            assert a.transport.brokers() == (dead, mosquitto.url)
            await a.connected()
            monkeypatch.setattr(mqtt_transport, "LINGER_S", 0.1)
            with Mosquitto(mosquitto._folder, port=parse_broker(dead).port):
                while a.transport.brokers() != (dead,):
                    await asyncio.sleep(0.02)

    async def test_names_by_retained_messages(self, mosquitto):
        async with Peer([mosquitto.url]) as a, Peer([mosquitto.url]) as b:
            names_a = RetainedNames(a.transport, a.identity, a.counters)
            names_b = RetainedNames(b.transport, b.identity, b.counters)
            # Published before any broker is connected: it is there once one is.
            await names_a.publish(a.identity.node_id, a.address)
            await a.connected()
            while (found := await names_b.lookup_node(a.identity.node_id)) is None:
                await asyncio.sleep(0.01)
            assert found == a.address
            many = [names_b.lookup_node(a.identity.node_id) for _ in range(8)]
            assert await asyncio.gather(*many) == [a.address] * 8
            assert await names_b.lookup_node(b.identity.node_id) is None
            # The broker forgets; the reconnection tells it again.
            mosquitto.kill()
            mosquitto.start()
            while await names_b.lookup_node(a.identity.node_id) is None:
                await asyncio.sleep(0.01)
            assert a.counters == b.counters == {}
            await names_a.close()
            await names_b.close()

    async def test_what_is_retained_beyond_the_limit_is_dropped(self, mosquitto):
        async with Peer([mosquitto.url]) as a:
            await a.connected()
            for number in range(12):
                await a.transport.publish_retained(f"wg/1/n/x/{number}", b"record %d" % number)
            found = await a.transport.read_retained("wg/1/n/x/+", limit=8)
            assert len(found) == 8
            assert await a.transport.read_retained("wg/1/n/x/11") == [("wg/1/n/x/11", b"record 11")]
            assert await a.transport.read_retained("wg/1/n/y/+") == []
            with pytest.raises(SignallingError, match="bytes"):
                await a.transport.publish_retained("wg/1/n/x/1", bytes(5000))

    async def test_two_bridged_brokers(self, tmp_path, mosquitto):
        (tmp_path / "other").mkdir()
        lines = [
            "allow_anonymous true",
            "connection other",
            f"address 127.0.0.1:{mosquitto.port}",
            "topic wg/1/i/+ both 1",
            "topic wg/1/n/+/+ both 1",
        ]
        with Mosquitto(tmp_path / "other", lines) as other:
            async with Peer([mosquitto.url]) as a, Peer([other.url]) as b:
                await a.connected()
                await b.connected()
                # Each only knows its own broker; the bridge carries signals between them.
                topic = inbox_topic(b.identity.public_key)
                link = a.transport._kept[mosquitto.url]
                data = a.envelope(b, b"over the bridge")
                while b.received.empty():
                    await link.session.publish(topic, data)
                    await asyncio.sleep(0.02)
                assert (await b.get())[0] == b"over the bridge"
                names = RetainedNames(b.transport, b.identity, b.counters)
                await names.publish(b.identity.node_id, b.address)
                looking = RetainedNames(a.transport, a.identity, a.counters)
                while await looking.lookup_node(b.identity.node_id) is None:
                    await asyncio.sleep(0.02)
                await names.close()


@pytest.mark.skipif(not DEPLOY.is_dir(), reason="the documents are not here")
class TestDeploy:
    """The configuration that docs/deploy.md recommends."""

    pytestmark = broker_tier

    def conf(self, tmp_path, name):
        """Return the published lines, with this test's paths and port."""
        text = (DEPLOY / name).read_text()
        for line in re.findall(r"/etc/mosquitto/\S+", text):
            source = DEPLOY / Path(line).name
            target = tmp_path / Path(line).name
            if source.exists():
                target.write_text(source.read_text())
                target.chmod(0o600)
            text = text.replace(line, str(target))
        return [line for line in text.splitlines() if not line.startswith("listener ")]

    async def test_accounts_and_tls(self, tmp_path):
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "privkey.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        identities = [Identity.generate() for _ in range(3)]
        passwords = tmp_path / "passwords"
        passwords.touch(mode=0o600)
        for identity in identities:
            name = topic_hash(identity.public_key)
            command = ["mosquitto_passwd", "-b", str(passwords), name, PASSWORD]
            subprocess.run(command, check=True, capture_output=True)
        with Mosquitto(tmp_path, self.conf(tmp_path, "mosquitto.conf")) as broker:
            plain = broker.url.replace("mqtt:", "mqtts:")
            a, b, eve = (
                Peer(
                    [plain.replace("//", f"//{topic_hash(each.public_key)}:{QUOTED}@")],
                    identity=each,
                    tls_context=context,
                )
                for each in identities
            )
            async with a, b, eve:
                await exchange(a, b)
                await eve.connected()
                session = eve.transport._kept[plain].session
                # What is subscribed to is not delivered: neither one inbox nor all of them.
                await session.subscribe(inbox_topic(b.identity.public_key))
                await session.subscribe("wg/1/i/+")
                await session.subscribe("#")
                await exchange(a, b)
                await a.send(eve, b"for you")
                assert (await eve.get())[0] == b"for you"
                assert eve.counters["mqtt_foreign"] == 0
                # Names stand under their owner's fingerprint only.
                names = RetainedNames(a.transport, a.identity, a.counters)
                await names.publish(a.identity.node_id, a.address)
                looking = RetainedNames(b.transport, b.identity, b.counters)
                assert await looking.lookup_node(a.identity.node_id) == a.address
                await names.close()
                mine = topic_hash(a.identity.public_key)
                with pytest.raises(SignallingError, match="refused"):
                    await session.publish(f"wg/1/n/x/{mine}", b"x", retain=True)
                with pytest.raises(SignallingError, match="refused"):
                    await session.publish("other/topic", b"x")
            with pytest.raises(SignallingError):
                await open_session(
                    parse_broker(plain),
                    version=5,
                    on_message=lambda *args: None,
                    permit=lambda ip: True,
                    context=context,
                )

    async def test_open(self, tmp_path):
        with Mosquitto(tmp_path, self.conf(tmp_path, "open.conf")) as broker:
            async with Peer([broker.url]) as a, Peer([broker.url]) as b:
                await exchange(a, b)
                session = a.transport._kept[broker.url].session
                with pytest.raises(SignallingError, match="refused"):
                    await session.publish("other/topic", b"x")
                with pytest.raises(SignallingError):
                    await session.publish(inbox_topic(b.identity.public_key), bytes(16 * 1024 + 1))


def test_a_refused_version_is_told_apart():
    assert issubclass(VersionRefused, SignallingError)

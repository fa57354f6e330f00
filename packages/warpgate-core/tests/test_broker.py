# ruff: noqa: ASYNC110  # what another process or a counter shows has no event to wait for

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from warpgate.cli import main
from warpgate.errors import ConfigError, SignallingError
from warpgate.events import Counters
from warpgate.identity import Identity
from warpgate.names.retained import RetainedNames
from warpgate.protocol.envelope import open_signal, seal_signal
from warpgate.protocol.peer_address import pack_address
from warpgate.signalling.broker import EmbeddedBroker
from warpgate.signalling.mqtt_transport import MqttTransport

needs_amqtt = pytest.mark.skipif(
    importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed"
)
broker_tier = [pytest.mark.broker, needs_amqtt]


class Peer:
    def __init__(self, url):
        self.identity = Identity.generate()
        self.counters = Counters()
        self.transport = MqttTransport(self.identity, [url], 1, self.counters)
        self.received = asyncio.Queue()
        self.address = pack_address(
            self.identity,
            machine=b"m" * 16,
            sequence=1,
            brokers=self.transport.brokers(),
            interfaces=[],
        )

    async def __aenter__(self):
        await self.transport.start(lambda *args: self.received.put_nowait(args))
        async with asyncio.timeout(10):
            await self.transport.wait_connected()
        return self

    async def __aexit__(self, *error):
        await self.transport.close()

    def envelope(self, dest, body):
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

    async def get(self):
        async with asyncio.timeout(10):
            envelope, origin = await self.received.get()
        return open_signal(self.identity, envelope).body, origin


def test_without_amqtt_the_cause_names_the_mend(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(ConfigError, match=r"pip install warpgate-core\[broker\]"):
        asyncio.run(EmbeddedBroker().start())
    assert main(["broker", "--port", "0"]) == 2
    assert "warpgate-core[broker]" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_the_command_refuses_what_is_no_port(port, capsys):
    assert main(["broker", "--port", port]) == 2
    assert "--port" in capsys.readouterr().err


class TestEmbedded:
    pytestmark = broker_tier

    async def test_signals_both_ways(self):
        async with EmbeddedBroker() as broker:
            assert re.fullmatch(r"mqtt://127\.0\.0\.1:\d+", broker.url)
            async with Peer(broker.url) as a, Peer(broker.url) as b:
                for number in range(20):
                    body = b"%d" % number
                    await a.transport.send(b.address, a.envelope(b, body))
                    got, origin = await b.get()
                    assert got == body
                    await origin.reply(b.envelope(a, body), a.address)
                    assert (await a.get())[0] == body
                (status,) = a.transport.status()
                assert status.version == "3.1.1"
                assert a.counters == b.counters == {}

    async def test_a_node_is_found_by_its_id(self):
        async with EmbeddedBroker() as broker, Peer(broker.url) as a, Peer(broker.url) as b:
            names = RetainedNames(a.transport, a.identity, a.counters)
            await names.publish(a.identity.node_id, a.address)
            looking = RetainedNames(b.transport, b.identity, b.counters)
            assert await looking.lookup_node(a.identity.node_id) == a.address
            assert await looking.lookup_node(b.identity.node_id) is None
            # It leaks retained messages of other topics to new clients: nobody asked for those.
            async with Peer(broker.url) as c:
                await a.transport.send(c.address, a.envelope(c, b"right"))
                assert (await c.get())[0] == b"right"
                assert c.received.empty()
            await names.close()

    async def test_two_in_one_process_and_two_lives_of_one(self):
        first, second = EmbeddedBroker(), EmbeddedBroker()
        async with first, second:
            assert first.port != second.port
        async with first, Peer(first.url):
            pass
        await first.close()

    async def test_a_taken_port_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(SignallingError, match=str(port)):
                await EmbeddedBroker(port=port).start()
        with pytest.raises(SignallingError, match=r"192\.0\.2\.1"):
            await EmbeddedBroker("192.0.2.1").start()

    async def test_close_ends_with_clients_connected(self):
        async with EmbeddedBroker() as broker, Peer(broker.url) as peer:
            async with asyncio.timeout(3):
                await broker.close()
                while peer.transport.status()[0].state == "connected":
                    await asyncio.sleep(0.01)

    @pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
    async def test_the_command(self):
        command = [sys.executable, "-m", "warpgate", "broker", "--host", "127.0.0.1", "--port", "0"]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Whoever runs the tests in the background of a shell has SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            async with asyncio.timeout(20):
                url = (await process.stdout.readline()).decode().strip()
            async with Peer(url):
                pass
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 130
        assert errors == b""

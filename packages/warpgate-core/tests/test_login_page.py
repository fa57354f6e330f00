"""A network that wants a login: a portal answers in everybody's stead, with a web page."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from warpgate.cli import checks
from warpgate.errors import RemoteProtocolError, SignallingError
from warpgate.events import Counters
from warpgate.hello.wire import PREFIX, Deframer, NotAHello
from warpgate.identity import Identity
from warpgate.net.constants import IP4, NIC_BIND
from warpgate.node import auto_connect as auto_connect_module
from warpgate.node.auto_connect import auto_connect
from warpgate.plugin import Plugin
from warpgate.protocol.peer_address import pack_address
from warpgate.protocol.web_page import is_web_page, what_speaks
from warpgate.signalling import direct as direct_module
from warpgate.signalling import mqtt, mqtt_link, mqtt_transport
from warpgate.signalling.mqtt_transport import MqttTransport

pytestmark = pytest.mark.usefixtures("leaks")

GUARD_S = 20
PAGE = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def portal(answer=PAGE, context=None, port=0, seen=lambda: None):
    """Answer every connection once its client has said something."""
    tasks = set()

    async def serve(reader, writer):
        seen()
        tasks.add(asyncio.current_task())
        try:
            await reader.read(4096)
            writer.write(answer)
            await writer.drain()
            writer.write_eof() if writer.can_write_eof() else None
            await reader.read()
        except OSError:  # the client has gone, or its TLS did not want the certificate
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for _ in range(10):  # what was accepted just now begins
            await asyncio.sleep(0)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=1)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)


@pytest.fixture
def stranger(tmp_path):
    """Return a TLS context with a certificate that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "portal")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    return context


@asynccontextmanager
async def signalling(*brokers):
    identity = Identity.generate()
    transport = MqttTransport(identity, brokers, len(brokers), Counters())
    await transport.start(lambda *_: None)
    try:
        yield (
            transport,
            pack_address(
                identity, machine=bytes(16), sequence=1, brokers=transport.brokers(), interfaces=[]
            ),
        )
    finally:
        await transport.close()


# What such a page looks like.


def test_what_a_web_server_says() -> None:
    for data in (PAGE, b"HTTP/1.0 511", b"<!DOCTYPE html>", b"<html>", b"<HTML>"):
        assert is_web_page(data)
        assert "a web page" in what_speaks(data)
    for data in (b"", b"HTT", b"\x20\x02\0\0", PREFIX, b"\x01\x01\0\0"):
        assert not is_web_page(data)
    assert "TLS" in what_speaks(b"\x15\x03\x03\0\x02\x02\x28")
    assert "magic" in what_speaks(b"\x15\x09")


def test_a_stream_on_which_nobody_speaks_the_protocol() -> None:
    deframer = Deframer()
    deframer.feed(PAGE)
    with pytest.raises(NotAHello, match="a web page came"):
        deframer.next()
    assert issubclass(NotAHello, RemoteProtocolError)


# Brokers.


@pytest.mark.parametrize(
    ("scheme", "who", "text"),
    [
        ("mqtt", "web page", "a web page came instead of MQTT"),
        ("mqtts", "stranger", "TLS is not what is spoken there"),
        ("ws", "stranger", "a web page came instead of a websocket"),
        ("wss", "stranger", "TLS is not what is spoken there"),
    ],
)
async def test_a_page_in_a_brokers_stead(scheme, who, text, monkeypatch) -> None:
    monkeypatch.setattr(mqtt_transport, "SEND_S", 10 * GUARD_S)
    async with portal() as port, signalling(f"{scheme}://127.0.0.1:{port}") as (transport, own):
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(SignallingError, match=text):  # it waits for no time-out
                await transport.send(own, b"signal")
        (status,) = transport.status()
        assert status.answered_by == who
        assert text in status.error
        assert "a login page" in status.error


async def test_a_strangers_certificate(stranger, monkeypatch) -> None:
    monkeypatch.setattr(mqtt_transport, "SEND_S", 10 * GUARD_S)
    async with (
        portal(context=stranger) as port,
        signalling(f"mqtts://127.0.0.1:{port}") as (transport, own),
    ):
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(SignallingError, match="the certificate is refused: self-signed"):
                await transport.send(own, b"signal")
        assert transport.status()[0].answered_by == "stranger"


async def test_it_is_tried_often_until_the_login(monkeypatch) -> None:
    monkeypatch.setattr(mqtt_link, "LOGIN_CAP_S", 0.05)
    monkeypatch.setattr(mqtt_link, "BACKOFF_CAP_S", 600.0)
    tries = asyncio.Semaphore(0)
    async with portal(seen=tries.release) as port, signalling(f"mqtt://127.0.0.1:{port}"):
        async with asyncio.timeout(GUARD_S):  # a back-off that doubles would take minutes
            for _ in range(12):
                await tries.acquire()


async def test_what_lasts_is_no_login_that_is_waited_for(monkeypatch) -> None:
    """A broker's own certificate may be wrong: it is not dialled every few seconds for ever."""
    monkeypatch.setattr(mqtt_link, "LOGIN_S", 0.0)
    monkeypatch.setattr(mqtt_link, "LOGIN_CAP_S", 0.0)
    monkeypatch.setattr(mqtt_link, "BACKOFF_BASE_S", 0.01)
    tries = asyncio.Semaphore(0)

    async def ten() -> None:
        for _ in range(10):  # the back-off, which doubles, lasts for 2.5 s and more
            await tries.acquire()

    async with portal(seen=tries.release) as port, signalling(f"mqtt://127.0.0.1:{port}"):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ten(), 0.5)


async def test_a_broker_that_is_gone_is_no_login_page() -> None:
    async with portal() as port:
        pass
    async with signalling(f"mqtt://127.0.0.1:{port}") as (transport, _):
        async with asyncio.timeout(GUARD_S):
            while not transport.status()[0].error:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        assert transport.status()[0].answered_by == ""


async def test_another_failure_is_no_login_page_either(monkeypatch) -> None:
    async with portal() as port, signalling(f"mqtt://127.0.0.1:{port}") as (transport, _):
        async with asyncio.timeout(GUARD_S):
            while not transport.status()[0].answered_by:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)

            async def broken(*_args, **_options):
                raise RuntimeError("broken")

            monkeypatch.setattr(mqtt, "open_session", broken)
            while "broken" not in transport.status()[0].error:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert transport.status()[0].answered_by == ""


async def test_the_doctor_says_to_log_in() -> None:
    async with portal() as port:
        (finding,) = await checks.brokers([f"mqtt://127.0.0.1:{port}"], 1)
    assert finding.level == "fail"
    assert "a web page came instead of MQTT" in finding.text
    assert "open a web browser and log in" in finding.mend


# Peers.


class Dials(Plugin):
    """Dials the peer's port, and nothing else."""

    name, transport, phase = "dials", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        self.result.set_result(await route.connect((self.dest_info["ip"], self.dest_info["port"])))
        self.result.set_result(None)


async def test_a_call_names_the_login_and_has_met_nobody(start, monkeypatch) -> None:
    bob = await start(Dials)
    address, port = bob.address(), bob.port
    await bob.close()
    async with portal() as broker, portal(port=port):
        conf = {"brokers": [f"mqtt://127.0.0.1:{broker}"], "sig_pipe_no": 1}
        alice = await start(Dials, conf=conf)
        async with asyncio.timeout(GUARD_S):
            while alice.rendezvous.login_wanted() == "":  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        # Of a broker that only a peer has named nobody knows whether it is there at all.
        (own,) = alice.rendezvous.mqtt.status()
        of_a_peer = replace(own, on_demand=True, answered_by="", error="no answer")
        with monkeypatch.context() as patch:
            patch.setattr(alice.rendezvous.mqtt, "status", lambda: [own, of_a_peer])
            assert alice.rendezvous.login_wanted()
            patch.setattr(alice.rendezvous.mqtt, "status", lambda: [of_a_peer])
            assert not alice.rendezvous.login_wanted()
        pipe, _ = await auto_connect(alice, address, GUARD_S)
        assert pipe is None
        report = alice.last_report
        head = str(report.error).partition("\n")[0]
        assert f"open a web browser and log in (in place of mqtt://127.0.0.1:{broker}" in head
        assert report.outcomes
        assert all(each.status == "failed" for each in report.outcomes)
        assert all("a web page came, and not the peer" in each.cause for each in report.outcomes)
        await alice.close()

        # Without a broker there is no proof of a portal: the port may be another program's now.
        alice = await start(Dials)
        pipe, _ = await auto_connect(alice, address, GUARD_S)
        assert pipe is None
        assert "which answered no signal and no dial" in str(alice.last_report.error)


class Waits(Plugin):
    """Waits for a peer that never comes, as a dial does whose packets are dropped."""

    name, transport, phase = "waits", "tcp", "direct"

    async def run(self, reply=None):
        await asyncio.Event().wait()


async def test_a_call_into_silence_ends_when_all_brokers_are_strangers(start, monkeypatch) -> None:
    monkeypatch.setattr(auto_connect_module, "LOGIN_AFTER_S", 0.05)
    bob = await start(Waits)
    async with portal() as broker:
        conf = {"brokers": [f"mqtt://127.0.0.1:{broker}"], "sig_pipe_no": 1}
        alice = await start(Waits, conf=conf)
        async with asyncio.timeout(GUARD_S):
            while alice.rendezvous.login_wanted() == "":  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        pipe, _ = await auto_connect(alice, bob.address(), 10 * GUARD_S)
        assert pipe is None
        report = alice.last_report
        assert "open a web browser and log in" in str(report.error)
        assert {each.status for each in report.outcomes} == {"failed"}
        assert all("nothing but a login page" in each.cause for each in report.outcomes)
        await alice.close()


@pytest.mark.parametrize("field", ["heard", "proven"])
def test_a_call_that_has_met_the_peer_goes_on(field) -> None:
    """A pipe may be proven without a signal, and wait for a better one just then."""
    ended = []
    node = SimpleNamespace(rendezvous=SimpleNamespace(login_wanted=lambda: "log in"))
    race = SimpleNamespace(heard=False, proven=False, give_up=ended.append)
    setattr(race, field, True)
    auto_connect_module._look_for_login(node, race)
    assert ended == []
    setattr(race, field, False)
    auto_connect_module._look_for_login(node, race)
    assert len(ended) == 1


@pytest.mark.parametrize("answer", [PAGE, b""], ids=["page", "end"])
async def test_a_signal_that_a_portal_took_is_not_sent(start, answer, monkeypatch) -> None:
    bob, alice = await start(Dials), await start(Dials)
    monkeypatch.setattr(alice.traversal, "has_called", lambda _peer: True)
    address, port = bob.peer_address, bob.port
    await bob.close()
    async with portal(answer, port=port):
        # A private address is the peer's own: no portal stands on the way there.
        await alice._direct.send(address, b"signal")
        monkeypatch.setattr(direct_module, "is_public", lambda _ip: True)
        monkeypatch.setattr(direct_module, "MAX_DOUBT_S", GUARD_S)
        monkeypatch.setattr(direct_module, "DOUBT_S", GUARD_S)
        for pipe in list(alice._direct._connections):
            pipe.abort()
        cause = "a web page came" if answer else "the connection ended at once"
        with pytest.raises(SignallingError, match=cause):
            await alice._direct.send(address, b"signal")


async def test_a_signal_that_the_peer_took_is_sent(start, monkeypatch) -> None:
    monkeypatch.setattr(direct_module, "is_public", lambda _ip: True)
    bob, alice = await start(Dials), await start(Dials)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "dials")
    async with asyncio.timeout(GUARD_S):
        await alice._direct.send(bob.peer_address, _envelope(alice, bob))
    assert bob.stats["signal_garbage"] == 0
    plugin.result.cancel()


def _envelope(sender, receiver):
    from warpgate.protocol.envelope import seal_signal

    return seal_signal(
        sender.identity,
        receiver.identity.public_key,
        receiver.identity.exchange_key,
        wire_name="Test",
        body=b"",
        sent_ms=0,
        ttl_s=20,
        msg_id=bytes(16),
    )

"""The hello on real pipes: proof, nomination, late repeats, framing and the end of UDP pipes."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from pydantic import BaseModel

from warpgate.errors import LocalProtocolError
from warpgate.hello.machine import Initiator, NonceCache, Responder
from warpgate.hello.messages import M1, M2, M3, PREFIX
from warpgate.hello.seal import offered
from warpgate.hello.shell import MAX_PROVEN_DATAGRAM, Handshake
from warpgate.identity import Identity
from warpgate.net.constants import IP4, NIC_BIND, UDP
from warpgate.net.tcp import TcpPipe
from warpgate.net.udp import UdpPipe
from warpgate.plugin import Plugin, new_plugin_id
from warpgate.protocol.proto_msg import ConMsg

pytestmark = pytest.mark.usefixtures("leaks")

KINDS = {PREFIX + bytes([M1]): "M1", PREFIX + bytes([M2]): "M2", PREFIX + bytes([M3]): "M3"}


def kind_of(data):
    return KINDS.get(bytes(data[:8]), "data")


class Link:
    """One end of an in-memory datagram path; ``lose(data)`` decides what gets lost."""

    def __init__(self, local):
        self.local, self.peer, self.default = local, None, None
        self.sent, self.closed, self._callbacks = [], False, []
        self.lose = lambda data: False

    def send_to(self, data, addr):
        self.sent.append(kind_of(data))
        if not self.lose(data) and self.peer.default and not self.peer.closed:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: self.peer.default and self.peer.default(data, self.local))
        return True

    async def writable(self):
        pass

    def on_close(self, callback):
        self._callbacks.append(callback)

    def forget(self, callback):
        self._callbacks.remove(callback)

    def close(self):
        self.closed, self.default = True, None


class Owner:
    """Notes what it is told; nominates at once unless told to wait."""

    def __init__(self, nominate=True):
        self.nominate, self.log = nominate, []
        self.over = asyncio.get_running_loop().create_future()

    def handshake_proven(self, handshake):
        self.log.append("proven")
        if self.nominate:
            handshake.nominate()

    def handshake_nominated(self, handshake):
        self.log.append("nominated")
        self.over.set_result("nominated")

    def handshake_failed(self, handshake):
        self.log.append("failed")
        self.over.set_result("failed")


class Ends:
    """Both ends of a hello over a pair of pipes."""

    capabilities = ()

    def __init__(self, pipes, nominate=True):
        self.alice, self.bob = Identity.generate(), Identity.generate()
        self.plugin_id = new_plugin_id()
        self.near, self.far = pipes
        datagram = isinstance(self.near, UdpPipe)
        common = {"entropy": os.urandom, "datagram": datagram, "plugin_id": self.plugin_id}
        common["capabilities"] = self.capabilities
        initiator = Initiator(
            identity=self.alice, peer=self.bob.public_key, nonces=NonceCache(), **common
        )
        responder = Responder(
            identity=self.bob,
            peer=None,
            nonces=NonceCache(),
            allow=lambda peer, plugin_id: True,
            **common,
        )
        self.near_owner, self.far_owner = Owner(nominate), Owner()
        self.initiator = Handshake(self.near, initiator, self.near_owner)
        self.responder = Handshake(self.far, responder, self.far_owner)

    def start(self):
        self.responder.start()
        self.initiator.start()

    async def finish(self):
        self.start()
        return await self.near_owner.over, await self.far_owner.over


@pytest.fixture(params=["plain", "sealed"], autouse=True)
def sealed(request, monkeypatch):
    """Run every test with both kinds of pipes."""
    sealed = request.param == "sealed"
    monkeypatch.setattr(Ends, "capabilities", offered("require" if sealed else "off", aes=True))
    return sealed


@pytest.fixture
async def links():
    near, far = Link(("192.0.2.1", 1)), Link(("192.0.2.2", 2))
    near.peer, far.peer = far, near
    return near, far


@pytest.fixture
async def udp(links):
    near, far = links
    pipes = UdpPipe(near, far.local), UdpPipe(far, near.local)
    yield pipes
    for pipe in pipes:
        await pipe.close()


@pytest.fixture
async def tcp():
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    pipes = [(await loop.create_connection(TcpPipe, sock=sock))[1] for sock in (ours, theirs)]
    yield pipes
    for pipe in pipes:
        pipe.abort()
        await pipe.wait_closed()


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


@pytest.fixture(params=["tcp", "udp"])
def pipes(request):
    return request.getfixturevalue(request.param)


async def test_both_sides_know_the_other_when_it_is_over(pipes):
    ends = Ends(pipes)
    assert await ends.finish() == ("nominated", "nominated")
    assert (ends.near.peer_id, ends.far.peer_id) == (ends.bob.node_id, ends.alice.node_id)
    assert ends.initiator.peer == ends.bob.public_key
    assert ends.responder.plugin_id == ends.plugin_id
    assert ends.near_owner.log == ["proven", "nominated"]
    for handshake in (ends.initiator, ends.responder):
        with pytest.raises(LocalProtocolError):  # nothing keeps them once the pipe has them
            _ = handshake.machine.keys
    await ends.near.send(b"there")
    assert await ends.far.recv() == b"there"
    await ends.far.send(b"and back")
    assert await ends.near.recv() == b"and back"


async def test_nobody_sends_before_the_nomination(pipes):
    ends = Ends(pipes, nominate=False)
    ends.start()
    sending = [asyncio.create_task(pipe.send(b"patience")) for pipe in pipes]
    await until(lambda: ends.initiator.state == "proven")
    await turns()
    assert not any(task.done() for task in sending)
    assert ends.responder.state == "running"
    ends.initiator.nominate()
    assert [await task for task in sending] == [8, 8]
    assert await ends.far.recv() == b"patience"
    assert await ends.near.recv() == b"patience"


async def test_cancelling_closes_the_pipe_without_a_word_to_the_owner(pipes):
    ends = Ends(pipes, nominate=False)
    ends.start()
    await until(lambda: ends.initiator.state == "proven")
    ends.initiator.cancel()
    ends.initiator.nominate()
    assert ends.near.closed
    assert ends.near_owner.log == ["proven"]
    assert ends.initiator.state == "failed"
    ends.responder.cancel()


async def test_a_pipe_that_ends_fails_the_hello(tcp):
    ends = Ends(tcp, nominate=False)
    ends.start()
    tcp[1].abort()
    assert await ends.near_owner.over == "failed"
    assert "ended during the hello" in str(ends.initiator.cause)


async def test_both_ends_know_why_they_can_not_have_a_pipe(tcp, sealed):
    ends = Ends(tcp)
    ends.responder.machine._capabilities = offered("off" if sealed else "require", aes=True)
    assert await ends.finish() == ("failed", "failed")
    for handshake in (ends.initiator, ends.responder):
        assert 'conf["seal"]' in str(handshake.cause)


async def test_a_pipe_that_has_ended_fails_it_at_once(tcp):
    tcp[0].abort()
    await tcp[0].wait_closed()
    ends = Ends(tcp)
    ends.initiator.start()
    assert ends.near_owner.log == ["failed"]


@pytest.mark.parametrize("subscribed", [False, True])
async def test_what_was_received_before_the_hand_over_is_the_hellos(pipes, subscribed):
    """The peer was faster: its M1 stands in the pipe already, or in a subscription."""
    ends = Ends(pipes)
    if subscribed:
        ends.far.subscribe()
    ends.initiator.start()
    await until(lambda: ends.far.has_unread)
    ends.responder.start()
    assert await ends.far_owner.over == "nominated"


async def test_data_that_comes_with_m3_is_the_users(tcp, sealed):
    ends = Ends(tcp, nominate=False)
    ends.start()
    await until(lambda: ends.initiator.state == "proven")
    ends.initiator.nominate()
    data = ends.near._filter.encode(b"at once") if sealed else b"at once"
    ends.near.write_raw(data)  # in the same segment
    assert await ends.far.recv() == b"at once"


# Datagrams.


async def test_m1_is_repeated_until_m2_comes(udp, links):
    near, _ = links
    lost = []
    near.lose = lambda data: kind_of(data) == "M1" and len(lost) < 1 and not lost.append(data)
    ends = Ends(udp)
    assert await ends.finish() == ("nominated", "nominated")
    assert near.sent.count("M1") >= 2


async def test_when_m3_is_lost_the_responder_keeps_the_data_until_it_comes(udp, links):
    near, far = links
    lost = []
    near.lose = lambda data: kind_of(data) == "M3" and len(lost) < 1 and not lost.append(data)
    ends = Ends(udp)
    ends.start()
    assert await ends.near_owner.over == "nominated"
    for number in range(3):
        await ends.near.send(b"\x00\x01 early %d" % number)
    await turns()
    assert ends.responder.state == "running"
    assert ends.far.peer_id is None
    # The responder repeats M2, and the initiator answers that with M3.
    assert await ends.far_owner.over == "nominated"
    assert far.sent.count("M2") >= 2
    for number in range(3):
        assert await ends.far.recv() == b"\x00\x01 early %d" % number
    await ends.near.send(b"late")
    assert await ends.far.recv() == b"late"


async def test_an_end_that_comes_before_m3_ends_the_pipe_after_its_data(udp, links):
    near, _ = links
    held = []

    def lose(data):
        if kind_of(data) == "M3":
            held.append(data)
        return kind_of(data) == "M3"

    near.lose = lose
    ends = Ends(udp)
    ends.start()
    assert await ends.near_owner.over == "nominated"
    await ends.near.send(b"last words")
    await ends.near.close()
    await turns()
    ends.far._incoming(held[0], near.local)
    assert await ends.far_owner.over == "nominated"
    assert ends.far.closed
    assert await ends.far.recv() == b"last words"
    assert await ends.far.recv() is None


async def test_a_repeated_m2_is_answered_after_the_nomination(udp, links):
    near, far = links
    copies = []
    far.lose = lambda data: kind_of(data) == "M2" and bool(copies.append(data))
    ends = Ends(udp)
    await ends.finish()
    before = near.sent.count("M3")
    near.default(copies[0], far.local)
    assert near.sent.count("M3") == before + 1
    assert ends.near.unmatched == 0
    near.default(PREFIX + bytes([M2]) + b"forged", far.local)
    assert near.sent.count("M3") == before + 1
    assert not ends.near.closed


async def test_max_message_is_what_crosses_every_path(udp):
    ends = Ends(udp)
    await ends.finish()
    assert ends.near.max_message == ends.far.max_message == MAX_PROVEN_DATAGRAM
    await ends.near.send(bytes(MAX_PROVEN_DATAGRAM))
    assert len(await ends.far.recv()) == MAX_PROVEN_DATAGRAM
    with pytest.raises(ValueError, match="max_message"):
        await ends.near.send(bytes(MAX_PROVEN_DATAGRAM + 1))
    await ends.near.send(b"")
    assert await ends.far.recv() == b""


async def test_the_peers_close_is_noticed(udp):
    ends = Ends(udp)
    await ends.finish()
    await ends.near.send(b"bye")
    await ends.near.close()
    await ends.far.wait_closed()
    assert await ends.far.recv() == b"bye"
    assert await ends.far.recv() is None


async def test_callbacks_hear_what_came_before_the_close(udp):
    ends = Ends(udp)
    heard = []
    await ends.finish()
    ends.far.subscribe(handler=lambda msg, tup, pipe: heard.append(msg))
    for data in (b"one", b"two"):
        await ends.near.send(data)
    await ends.near.close()
    await ends.far.wait_closed()
    assert heard == [b"one", b"two"]


@pytest.mark.parametrize("data", [b"\x01\x00" + b"A" * 15, b"\x01", b"\x01\x07x", b"\x02x", b""])
async def test_control_that_makes_no_sense_is_counted(udp, links, sealed, data):
    ends = Ends(udp)
    await ends.finish()
    links[1].default(data, links[0].local)
    assert dict(ends.far.counters) == {"datagrams_refused" if sealed else "unknown_control": 1}
    assert not ends.far.closed


async def test_datagrams_of_others_do_not_get_in(udp, links):
    _, far = links
    ends = Ends(udp, nominate=False)
    mallory = ("203.0.113.6", 6)
    ends.start()
    far.default(b"\x00forged during the hello", mallory)
    await until(lambda: ends.initiator.state == "proven")
    far.default(b"\x00forged before M3", mallory)
    ends.initiator.nominate()
    await ends.far_owner.over
    far.default(b"\x00forged", mallory)
    far.default(b"\x01\x00" + ends.plugin_id.encode(), mallory)
    await ends.near.send(b"true")
    assert await ends.far.recv() == b"true"
    assert ends.far.unmatched == 4
    assert not ends.far.closed


async def test_a_hello_from_elsewhere_is_not_answered(udp, links):
    _, far = links
    ends = Ends(udp)
    mallory = Ends(udp)
    mallory.bob = ends.bob
    machine = Initiator(
        identity=mallory.alice,
        peer=ends.bob.public_key,
        plugin_id=ends.plugin_id,
        datagram=True,
        entropy=os.urandom,
        nonces=NonceCache(),
    )
    machine.start(0.0)
    ends.responder.start()
    far.default(machine.outgoing(0.0)[0], ("203.0.113.6", 6))
    assert far.sent == []
    ends.initiator.start()
    assert await ends.far_owner.over == "nominated"


async def test_a_pipe_without_a_remote_learns_it_from_the_first_hello(links):
    near, far = links
    pipes = UdpPipe(near, far.local), UdpPipe(far)
    ends = Ends(pipes)
    ends.responder.start()
    far.default(b"\x00noise", ("203.0.113.6", 6))
    ends.initiator.start()
    assert await ends.far_owner.over == "nominated"
    assert ends.far.remote == near.local
    await ends.far.send(b"found you")
    assert await ends.near.recv() == b"found you"
    for pipe in pipes:
        await pipe.close()


async def test_a_closed_pipe_leaves_no_timer(udp, links):
    ends = Ends(udp)
    await ends.finish()
    assert ends.initiator._driver._timer is not None  # it answers repeats for 30 s
    await ends.near.close()
    assert ends.initiator._driver._timer is None


# A strategy over UDP, on real nodes.


class Ports(ConMsg):
    class Payload(BaseModel):
        port: int = 0


class UdpPair(Plugin):
    """Both sides bind a socket and tell each other its port."""

    name, transport, phase = "udp_pair", "udp", "spray"
    proto_messages = ((Ports, 7, 5),)

    async def run(self, reply=None):
        if reply is None or not self.initiator:
            route = await self.bind()
            self.pipe = await route.connect((self.dest_info["ip"], 9), UDP)
        if reply is not None:
            self.pipe.remote = (self.dest_info["ip"], reply.payload.port)
        if reply is None or not self.initiator:
            msg = Ports(payload={"port": self.pipe.local[1]})
            await self.send_signal_msg(msg)
        if reply is not None:
            self.result.set_result(self.pipe)


async def test_a_udp_strategy_connects_two_nodes(start):
    alice, bob = await start(UdpPair), await start(UdpPair)
    plugin = await alice.connect(IP4, NIC_BIND, bob.address(), "udp_pair")
    pipe = await plugin.result
    there = await bob.accept()
    assert (pipe.transport, pipe.peer_id, there.peer_id) == ("udp", bob.node_id, alice.node_id)
    assert (pipe.local, pipe.remote) == (there.remote, there.local)
    assert (pipe.inbound, there.inbound) == (False, True)
    assert "lossy" in repr(pipe)
    await pipe.send(b"ping", pipe.remote)
    assert await there.recv(full=True) == [there.remote, b"ping"]
    await there.send(b"pong")
    assert await pipe.recv() == b"pong"
    with pytest.raises(TypeError, match='transport="tcp"'):
        await pipe.recv_n(4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\x00forged", ("127.0.0.1", there.local[1]))
    await pipe.send(b"true")
    assert await there.recv() == b"true"
    await pipe.close()
    await there.wait_closed()

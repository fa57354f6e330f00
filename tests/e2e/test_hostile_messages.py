"""Altered messages through a live node: nothing raised, nobody let in, memory bounded.

WARPGATE_TEST_MESSAGES=1000000 sends a million, which takes minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
from collections.abc import Callable, Iterator

import psutil
import pytest

from warpgate import NODE_TEST_CONF, Node, auto_connect
from warpgate.hello.machine import Initiator, NonceCache
from warpgate.hello.messages import M0, M2, M3, PROBE, SIGNAL, frame, message, pack_m0
from warpgate.identity import Identity
from warpgate.net.constants import IP4
from warpgate.protocol.codec import encode_body
from warpgate.protocol.envelope import seal_signal
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.signalling.transport import SignalOrigin

PLUGIN_ID = "abcDEF012345678"
TOTAL = int(os.environ.get("WARPGATE_TEST_MESSAGES", "200000"))
SHARES = {"datagrams": 0.88, "envelopes": 0.08, "signed": 0.02, "streams": 0.02}
GROWTH_BYTES = 96 << 20
BREATHE = 500
ORIGIN = SignalOrigin("test", False, None, "a stranger")


class Mutator:
    """Alters real messages: flips, cuts, repeats, joins."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def __call__(self, data: bytes) -> bytes:
        chance, altered = self.chance, bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 6))):
            at = chance.randrange(len(altered) + 1)
            kind = chance.randrange(4)
            if kind == 0 and at < len(altered):
                altered[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del altered[at : at + chance.randint(1, 40)]
            elif kind == 2:
                altered[at:at] = chance.randbytes(chance.randint(1, 12))
            else:
                altered += altered[at : at + 60]
        return bytes(altered)


def m1(node: Node, mallory: Identity, datagram: bool) -> bytes:
    machine = Initiator(
        identity=mallory, peer=node.identity.public_key, plugin_id=PLUGIN_ID,
        datagram=datagram, entropy=os.urandom, nonces=NonceCache(),
    )  # fmt: skip
    machine.start(0.0)
    return b"".join(machine.outgoing(0.0))


def address(mallory: Identity, node: Node) -> bytes:
    nic = InterfaceRecord(1, (Endpoint(IP4, "127.0.0.1", 9, None, None, 0, 0),))
    return pack_address(
        mallory, machine=node.peer_address.machine, sequence=1, brokers=(), interfaces=[nic]
    ).raw


def datagrams(node: Node, mallory: Identity, mutate: Mutator) -> Callable[[], None]:
    link = node.listening_socket(IP4, "127.0.0.1")
    assert link is not None
    real = [
        m1(node, mallory, datagram=True),
        message(M0, pack_m0(PLUGIN_ID)),
        message(M2, os.urandom(250)),
        message(M3, os.urandom(64)),
        message(PROBE, os.urandom(16)),
        message(SIGNAL, os.urandom(400)),
        b"\x00data",
        b"\x01\x01" + os.urandom(8),
        bytes.fromhex("000100002112a442") + os.urandom(12),
    ]
    chance = mutate.chance

    def send() -> None:
        link.received(mutate(chance.choice(real)), (f"127.0.{chance.randrange(9)}.1", 4000))

    return send


def envelopes(node: Node, mallory: Identity, mutate: Mutator) -> Callable[[], None]:
    real = sealed(node, mallory, encode_body(ConMsg()))
    return lambda: (node.router.deliver(mutate(real), ORIGIN), None)[1]


def sealed(node: Node, mallory: Identity, body: bytes, name: str = "ConMsg") -> bytes:
    return seal_signal(
        mallory, node.identity.public_key, node.identity.exchange_key, wire_name=name, body=body,
        sent_ms=node.unix_time() * 1000, ttl_s=20, msg_id=os.urandom(16),
    )  # fmt: skip


def signed(node: Node, mallory: Identity, mutate: Mutator) -> Callable[[], None]:
    """What a peer with good keys and bad intentions says to every strategy."""
    names = [*node.traversal.messages, "ConMsg"]
    own = address(mallory, node)

    def send() -> None:
        name = mutate.chance.choice(names)
        msg = ConMsg()
        msg.meta.src_buf, msg.meta.pipe_id = own, PLUGIN_ID
        msg.meta.plugin_name = name.partition(".")[0]
        node.router.deliver(sealed(node, mallory, mutate(encode_body(msg)), name), ORIGIN)

    return send


async def streams(node: Node, mallory: Identity, mutate: Mutator, count: int) -> None:
    real = [
        m1(node, mallory, datagram=False),
        frame(M0, pack_m0(PLUGIN_ID)),
        frame(SIGNAL, bytes(99)),
    ]

    async def one() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(mutate(mutate.chance.choice(real)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    for _ in range(0, count, 50):
        await asyncio.gather(*(one() for _ in range(min(50, count))))


@contextlib.contextmanager
def loud(errors: list[str]) -> Iterator[None]:
    """Collect what is logged as an error, and what reaches the loop's handler."""
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: errors.append(str(context)))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_altered_messages_do_nothing() -> None:
    mallory = Identity.generate()
    errors: list[str] = []
    conf = {**NODE_TEST_CONF, "accept_plain": False}
    async with Node(conf=conf) as node, Node(conf=NODE_TEST_CONF) as alice:
        mutate = Mutator(1)
        inbound: list[object] = []
        node.add_msg_cb(lambda msg, client, pipe: inbound.append((msg, pipe)))
        kinds = {"datagrams": datagrams, "envelopes": envelopes, "signed": signed}
        with loud(errors):
            before = 0
            for round_number in range(2):  # the first tenth fills the bounded tables
                part = TOTAL * (0.1 if round_number == 0 else 0.9)
                for kind, make in kinds.items():
                    send = make(node, mallory, mutate)
                    for number in range(int(part * SHARES[kind])):
                        send()
                        if number % BREATHE == 0:
                            await asyncio.sleep(0)
                await streams(node, mallory, mutate, int(part * SHARES["streams"]))
                gc.collect()
                if round_number == 0:
                    before = psutil.Process().memory_info().rss
            grown = psutil.Process().memory_info().rss - before
            pipe, _ = await auto_connect(alice, node.address())
            assert pipe is not None, str(alice.last_report)
            assert pipe.peer_id == node.node_id
            theirs = await node.accept()
            assert theirs.peer_id == alice.node_id
            await pipe.close()
        assert errors == []
        assert inbound == []
        assert grown < GROWTH_BYTES, f"{grown >> 20} MiB"

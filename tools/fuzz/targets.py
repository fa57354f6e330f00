"""Every parser of bytes from outside, as a function that must end quietly or by its declared error.

In here every signature counts as good: what stands behind the checks is fuzzed, too. A target's
seeds are real messages; ``run.py --seeds`` writes them into ``corpus/``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tools.fuzz.plugin_targets import PLUGIN_TARGETS

from warpgate.errors import InvalidAddressError, RemoteProtocolError
from warpgate.hello import initiator as hello_initiator
from warpgate.hello import responder as hello_responder
from warpgate.hello.machine import Initiator, NonceCache, Responder
from warpgate.hello.messages import Deframer, frame, message, pack_m0, parse_datagram
from warpgate.identity import Identity
from warpgate.names import record as name_record
from warpgate.net.constants import IP4
from warpgate.protocol import envelope, peer_address
from warpgate.protocol.codec import decode_body, encode_body
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address, parse_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.server_urls import parse_broker, parse_host_port, parse_turn
from warpgate.signalling.mqtt_packets import take_publish
from warpgate.stun.message import MessageClass, decode, encode
from warpgate.stun.transaction import Volley

PLUGIN_ID: Final = "abcDEF012345678"
MINE: Final = Identity.from_bytes(bytes(range(64)))
PEER: Final = Identity.from_bytes(bytes(range(64, 128)))
ADDR: Final = ("198.51.100.1", 3478)


@dataclass(frozen=True)
class Target:
    """One parser: what to call, and real inputs to begin with."""

    run: Callable[[bytes], Any]
    seeds: Callable[[], Iterable[bytes]]


def _entropy() -> Callable[[int], bytes]:
    count = 0

    def more(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha512(count.to_bytes(4, "big")).digest()[:size]

    return more


def trust_signatures() -> None:
    """Let every signature count as good in this process."""
    yes: Any = lambda *_: True  # noqa: E731
    modules: list[Any] = [peer_address, envelope, name_record]
    for module in modules:
        module.verify = yes
    machines: list[Any] = [hello_initiator, hello_responder]
    for module in machines:
        module.signature_holds = yes


def _an_address(signer: Identity = PEER) -> Any:
    endpoint = Endpoint(IP4, "192.168.1.2", 10001, "198.51.100.7", 10001, 5, 2)
    nic = InterfaceRecord(2, (endpoint,))
    return pack_address(
        signer, machine=bytes(16), sequence=7, brokers=("mqtt://192.0.2.1:1883",), interfaces=[nic]
    )


def _address(data: bytes) -> None:
    with contextlib.suppress(InvalidAddressError):
        parse_address(data)


def _name(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        name_record.unpack_record(data)


def _a_name() -> bytes:
    address = _an_address()
    return name_record.pack_record(
        PEER, name="alice", address=address, sequence=3, expires_s=2_000_000_000
    ).raw


def _signal(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        envelope.unpack_content(MINE.public_key, data)


def _a_signal() -> bytes:
    body = encode_body(ConMsg())
    signal = envelope.Signal(PEER.public_key, bytes(16), 1_700_000_000_000, 20, "ConMsg", body)
    return envelope.pack_content(PEER, MINE.public_key, signal)


def _sealed(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        envelope.open_signal(MINE, data)


def _a_sealed() -> bytes:
    return envelope.seal_signal(
        PEER, MINE.public_key, MINE.exchange_key, wire_name="ConMsg", body=b"", ttl_s=20,
        sent_ms=1_700_000_000_000, msg_id=bytes(16),
    )  # fmt: skip


def _body(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_body(ConMsg, data)


def _frames(data: bytes) -> None:
    deframer = Deframer()
    try:
        for at in range(0, len(data), 7):
            deframer.feed(data[at : at + 7])
            while deframer.next() is not None:
                pass
    except RemoteProtocolError:
        pass


def _datagram(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse_datagram(data)


def _machine(initiator: bool, datagram: bool) -> Initiator | Responder:
    common: dict[str, Any] = {"datagram": datagram, "entropy": _entropy(), "nonces": NonceCache()}
    if initiator:
        return Initiator(identity=MINE, peer=PEER.public_key, plugin_id=PLUGIN_ID, **common)
    return Responder(
        identity=MINE, peer=None, plugin_id=None, allow=lambda _peer, _id: True, **common
    )


def _hello(initiator: bool, datagram: bool) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        machine = _machine(initiator, datagram)
        machine.start(0.0)
        pieces = data.split(b"\xff\x00\xff") if datagram else [data[:11], data[11:]]
        for now, piece in enumerate(pieces):
            machine.receive(piece, ADDR, 0.01 * now)
            machine.outgoing(0.01 * now)
            while machine.next_event() is not None:
                pass
        machine.handle_timeout(10.0)

    return run


def _hello_seeds(initiator: bool, datagram: bool) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        """What the other side says in a whole hello."""
        common: dict[str, Any] = {"datagram": datagram, "nonces": NonceCache()}
        one = Initiator(
            identity=PEER, peer=MINE.public_key, plugin_id=PLUGIN_ID, entropy=_entropy(), **common
        )
        two = Responder(
            identity=MINE, peer=None, plugin_id=None, entropy=_entropy(),
            allow=lambda _peer, _id: True, **common,
        )  # fmt: skip
        said: list[list[bytes]] = [[], []]
        one.start(0.0)
        two.start(0.0)
        for _ in range(3):
            for number, (speaker, hearer) in enumerate(((one, two), (two, one))):
                for data in speaker.outgoing(0.0):
                    said[number].append(data)
                    hearer.receive(data, ADDR, 0.0)
            if one.state.name == "PROVEN":
                one.nominate(0.0)
        heard = said[1] if initiator else said[0]
        m0 = message(0, pack_m0(PLUGIN_ID)) if datagram else frame(0, pack_m0(PLUGIN_ID))
        return [(b"\xff\x00\xff" if datagram else b"").join(heard), m0]

    return seeds


def _stun(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(data)
    volley = Volley(entropy=_entropy())
    volley.ask(ADDR, 0.0)
    volley.datagrams_to_send(0.0)
    volley.receive(data, ADDR, 0.01)


def _stun_seeds() -> list[bytes]:
    return [
        bytes.fromhex("0101000c2112a442" + "00" * 12 + "002000080001a147e112a643"),
        encode(1, MessageClass.REQUEST, bytes(12), []),
    ]


def _urls(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    parsers: list[Callable[[str], Any]] = [
        parse_broker, parse_turn, lambda value: parse_host_port(value, 3478),
    ]  # fmt: skip
    for parse in parsers:
        with contextlib.suppress(ValueError):
            parse(text)


def _publish(data: bytes) -> None:
    for mqtt5 in (False, True):
        take_publish(memoryview(data), mqtt5, 10_000)


TARGETS: Final[dict[str, Target]] = {
    "address": Target(_address, lambda: [_an_address().raw, _an_address().to_text().encode()]),
    "name_record": Target(_name, lambda: [_a_name()]),
    "signal_content": Target(_signal, lambda: [_a_signal()]),
    "signal_envelope": Target(_sealed, lambda: [_a_sealed()]),
    "message_body": Target(_body, lambda: [encode_body(ConMsg())]),
    "hello_frames": Target(_frames, lambda: [frame(1, bytes(40)) + frame(16, bytes(9))]),
    "hello_datagrams": Target(_datagram, lambda: [message(1, bytes(40)), message(8, bytes(16))]),
    **{
        f"{'initiator' if role else 'responder'}_{'datagram' if kind else 'stream'}": Target(
            _hello(role, kind), _hello_seeds(role, kind)
        )
        for role in (True, False)
        for kind in (True, False)
    },
    "stun": Target(_stun, _stun_seeds),
    "server_urls": Target(
        _urls, lambda: [b"mqtts://a:b@host:8883", b"turns:u:p@host:5349?transport=tcp"]
    ),
    "mqtt_publish": Target(
        _publish, lambda: [b"\x30\x07\x00\x01ahel", b"\x32\x06\x00\x01a\x00\x01h"]
    ),
    **{name: Target(*pair) for name, pair in PLUGIN_TARGETS.items()},
}

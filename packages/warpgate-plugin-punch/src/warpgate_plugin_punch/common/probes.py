"""The small datagrams of a punch: authenticated probes, and M0; PURE.

A probe is ``magic ‖ kind 8 ‖ number (4 bytes) ‖ tag (16 bytes)``, 28 bytes in all: WIRE.md section 5
allows 64. The tag is HMAC-SHA256, cut to 16 bytes, by a key that only the two peers know.
"""

from __future__ import annotations

import hashlib
import hmac

from warpgate.errors import RemoteProtocolError
from warpgate.hello.messages import (
    M0,
    M1,
    PROBE,
    message,
    pack_m0,
    parse_datagram,
    unpack_m0,
    unpack_m1,
)

KEY_SIZE = 32
TAG_SIZE = 16
NUMBER_SIZE = 4
PROBE_SIZE = 28
M0_SIZE = 25
INITIATOR = b"I"
RESPONDER = b"R"
_CONTEXT = b"warpgate probe v1"


def probe(key: bytes, role: bytes, plugin_id: str, n: int = 0) -> bytes:
    """Return a probe.

    Args:
        key: what only the two peers know, 16 to 64 bytes from a signal.
        role: of the sender, ``INITIATOR`` or ``RESPONDER``; a probe that comes back is none.
        plugin_id: the attempt's.
        n: a number of the sender's choice, below 2**32.

    """
    number = n.to_bytes(NUMBER_SIZE, "big")
    return message(PROBE, number + _tag(key, role, plugin_id, number))


def check(data: bytes, key: bytes, role: bytes, plugin_id: str) -> int | None:
    """Return the number of the probe that ``role`` sent, None when it is none of theirs."""
    if len(data) != PROBE_SIZE:
        return None
    try:
        kind, body = parse_datagram(data)
    except RemoteProtocolError:
        return None
    number, tag = body[:NUMBER_SIZE], body[NUMBER_SIZE:]
    if kind != PROBE or not hmac.compare_digest(tag, _tag(key, role, plugin_id, number)):
        return None
    return int.from_bytes(number, "big")


def m0(plugin_id: str) -> bytes:
    """Return the M0 of an attempt, a datagram of 25 bytes: the responder's probe."""
    return message(M0, pack_m0(plugin_id))


def is_m0(data: bytes, plugin_id: str) -> bool:
    """Return whether a datagram is the M0 of this attempt.

    Its id was sealed in the signal, so that nobody off the path can make one.
    """
    try:
        kind, body = parse_datagram(data)
        return kind == M0 and hmac.compare_digest(unpack_m0(body), plugin_id)
    except RemoteProtocolError:
        return False


def is_m1(data: bytes, plugin_id: str) -> bool:
    """Return whether a datagram claims to be the M1 of this attempt; the hello finds out."""
    try:
        kind, body = parse_datagram(data)
        return kind == M1 and hmac.compare_digest(unpack_m1(body).plugin_id, plugin_id)
    except RemoteProtocolError:
        return False


def attempt_key(plugin_id: str) -> bytes:
    """Return the key of an attempt's probes: its id, which the signals carry sealed."""
    return hashlib.sha256(_CONTEXT + plugin_id.encode("ascii")).digest()


def _tag(key: bytes, role: bytes, plugin_id: str, number: bytes) -> bytes:
    text = _CONTEXT + role + plugin_id.encode("ascii") + number
    return hmac.new(key, text, hashlib.sha256).digest()[:TAG_SIZE]

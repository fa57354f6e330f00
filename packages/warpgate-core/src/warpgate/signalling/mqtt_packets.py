"""Reads the one MQTT packet that floods consist of, without a library's 60 µs. PURE.

Only a whole, plain PUBLISH is read here: no duplicate flag, not retained, QoS 0 or 1, no properties
(MQTT 5.0 section 3.3, MQTT 3.1.1 section 3.3). All else, and all that is malformed, is left to paho.
"""

from __future__ import annotations

from typing import Final

QOS_0: Final = 0x30
QOS_1: Final = 0x32
MAX_LENGTH_BYTES: Final = 4

Published = tuple[str, bytes, int | None, int]
"""Topic, payload, packet identifier (QoS 1), and the packet's size in bytes."""


def take_publish(data: memoryview, mqtt5: bool, max_bytes: int) -> Published | None:
    """Return what a plain PUBLISH packet at the beginning of ``data`` holds, or None.

    Args:
        data: bytes as they came, beginning with a packet.
        mqtt5: whether they are MQTT 5's, where the properties stand before the payload.
        max_bytes: how large the packet may be, its first bytes not counted.

    """
    if len(data) < 2 or data[0] not in (QOS_0, QOS_1):
        return None
    size = shift = 0
    at = 1
    while True:
        if at >= len(data) or at > MAX_LENGTH_BYTES:
            return None
        byte = data[at]
        at += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    end = at + size
    if size < 2 or size > max_bytes or end > len(data):
        return None
    topic_end = at + 2 + (data[at] << 8 | data[at + 1])
    payload_at = topic_end
    number = None
    if data[0] == QOS_1:
        payload_at += 2
        if payload_at > end:
            return None
        number = data[topic_end] << 8 | data[topic_end + 1]
    if mqtt5:
        payload_at += 1
        if payload_at > end or data[payload_at - 1]:
            return None
    if payload_at > end or topic_end == at + 2 or number == 0:
        return None
    try:
        topic = str(data[at + 2 : topic_end], "utf-8")
    except UnicodeDecodeError:
        return None
    return topic, bytes(data[payload_at:end]), number, end

"""Floods an inbox from a process of its own: ``flood.py PORT TOPIC PER_SECOND SECONDS [QOS]``.

It speaks just enough MQTT 3.1.1, over one socket, to be faster than any library. The messages have
the form of signals, so that the receiver has to open them to find out that they are none. It says
``flooding`` when it begins, ``N sent`` when it is done, and sends no more than asked for.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from itertools import count

BATCHES_PER_S = 100
PAYLOAD = 400


def packet(kind: int, body: bytes) -> bytes:
    length, size = b"", len(body)
    while True:
        size, low = size >> 7, size & 127
        length += bytes([low | 128 if size else low])
        if not size:
            return bytes([kind]) + length + body


def text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def main(port: int, topic: str, per_second: int, seconds: float, qos: int = 0) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(packet(0x10, text("MQTT") + b"\x04\x02\x00\x3c" + text(f"flood{os.getpid()}")))
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        print("flooding", flush=True)
        numbers, sent = count(1), 0
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            due = int(now * per_second) - sent
            batch = b"".join(
                packet(
                    0x30 | qos << 1,
                    text(topic)
                    + (((next(numbers) % 65535) + 1).to_bytes(2, "big") if qos else b"")
                    + b"\x01"
                    + os.urandom(PAYLOAD),
                )
                for _ in range(min(due, per_second // BATCHES_PER_S))
            )
            sent += min(due, per_second // BATCHES_PER_S)
            sock.sendall(batch)
            if qos:  # the acknowledgements, so that the broker can go on
                sock.setblocking(False)
                try:
                    sock.recv(65536)
                except BlockingIOError:
                    pass
                sock.setblocking(True)
            if due <= per_second // BATCHES_PER_S:
                time.sleep(1 / BATCHES_PER_S)
        print(f"{sent} sent", flush=True)


if __name__ == "__main__":
    main(
        int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *map(int, sys.argv[5:])
    )

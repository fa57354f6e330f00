"""A man in the middle: a bump in a laboratory's access link; every packet goes through a function."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .lab import Lab
from .namespaces import inside

TCP, UDP = 6, 17
Change = Callable[["Datagram", bool], "list[bytes]"]


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Datagram:
    """An IPv4 packet with TCP or UDP in it."""

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        self.protocol = packet[9] if packet[0] == 0x45 else 0
        if self.protocol == UDP:
            start = 28
        elif self.protocol == TCP:
            start = 20 + (packet[32] >> 4) * 4
        else:
            start = len(packet)
        self.start = start
        self.payload = packet[start:]

    def bearing(self, payload: bytes) -> bytes:
        """Return the packet with another payload, checksums right; of another size only in UDP."""
        assert self.protocol == UDP or len(payload) == len(self.payload)
        head, rest = bytearray(self.packet[:20]), bytearray(self.packet[20 : self.start])
        rest += payload
        at = 6 if self.protocol == UDP else 16
        if self.protocol == UDP:
            rest[4:6] = struct.pack("!H", len(rest))
        rest[at : at + 2] = b"\0\0"
        pseudo = bytes(head[12:20]) + struct.pack("!BBH", 0, self.protocol, len(rest))
        rest[at : at + 2] = struct.pack("!H", checksum(pseudo + rest) or 0xFFFF)
        head[2:4] = struct.pack("!H", 20 + len(rest))
        head[10:12] = b"\0\0"
        head[10:12] = struct.pack("!H", checksum(bytes(head)))
        return bytes(head + rest)


class Middle:
    """Sits in host b's access link of a laboratory; a context manager.

    Attributes:
        change: ``(packet, whether it goes to b)`` -> the packets that go on instead.
        passed: how many packets with a payload came by.

    """

    def __init__(self, lab: Lab) -> None:
        self.change: Change = relay
        self.passed = 0
        link = lab.topology.engine["links"]["access_b"]
        lab.engine.ask("remove", link="access_b")
        devices = {name: {"netns": lab.net.name, "name": name} for name in ("outer", "inner")}
        links = {
            "to_outer": {"a": "outer", "b": link["b"]},
            "to_inner": {"a": link["a"], "b": "inner"},
        }
        lab.engine.ask("add", devices=devices, links=links)
        self._socks = []
        with inside(lab.net.name):
            for name in devices:
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
                sock.bind((name, 0x0800))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                self._socks.append(sock)
        self._over = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over:
            for sock in select.select(self._socks, [], [], 0.2)[0]:
                packet, address = sock.recvfrom(65535)
                if address[2] == socket.PACKET_OUTGOING:
                    continue
                to_b = sock is self._socks[0]
                name = "inner" if to_b else "outer"
                datagram = Datagram(packet)
                self.passed += bool(datagram.payload)
                for data in self.change(datagram, to_b):
                    self._socks[to_b].sendto(data, (name, 0x0800))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._thread.join()
        for sock in self._socks:
            sock.close()


def relay(datagram: Datagram, _to_b: bool) -> list[bytes]:
    """Let a packet by."""
    return [datagram.packet]

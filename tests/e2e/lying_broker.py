"""A broker that lies: a proxy before a real one, which does as it likes with what is delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

PUBLISH, PUBACK, RETAIN = 0x30, 0x40, 0x01


@dataclass(frozen=True)
class Delivery:
    """One message on its way from the broker to a client (MQTT 5.0 section 3.3).

    Attributes:
        client: the number of the client's connection, from 0.
        flags: of the fixed header: only ``RETAIN`` is left.
        topic, properties, payload: as they are; the properties with their length before them.

    """

    client: int
    flags: int
    topic: bytes
    properties: bytes
    payload: bytes

    def bearing(self, payload: bytes) -> Delivery:
        """Return it with another payload."""
        return replace(self, payload=payload)

    def packet(self) -> bytes:
        """Return a PUBLISH of QoS 0."""
        topic = len(self.topic).to_bytes(2, "big") + self.topic
        body = topic + self.properties + self.payload
        return bytes([PUBLISH | self.flags]) + length(len(body)) + body


Lie = Callable[[Delivery], "list[Delivery]"]


def length(number: int) -> bytes:
    """Return a variable byte integer (MQTT 5.0 section 1.5.5)."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


async def read_length(reader: asyncio.StreamReader) -> int:
    """Read a variable byte integer."""
    number = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number


class LyingBroker:
    """A context manager; the honest broker stands behind it on loopback.

    Args:
        port: the honest broker's.

    Attributes:
        lie: makes of a delivery what is delivered instead, to whichever clients; honest at first.
        url: of this one.
        deliveries: how many it has seen.

    """

    def __init__(self, port: int) -> None:
        self.lie: Lie = lambda delivery: [delivery]
        self.deliveries = 0
        self._port = port
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"mqtt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number = len(self._clients)
        self._clients.append(writer)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        up = asyncio.ensure_future(self._up(reader, back))
        down = asyncio.ensure_future(self._down(number, there, back, writer))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (up, down):
                each.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for end in (back, writer):
                end.close()

    async def _up(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            back.write(data)

    async def _down(
        self,
        number: int,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        while True:
            first = (await there.readexactly(1))[0]
            body = await there.readexactly(await read_length(there))
            if first & 0xF0 != PUBLISH:
                client.write(bytes([first]) + length(len(body)) + body)
                continue
            end = 2 + int.from_bytes(body[:2], "big")
            at = end
            if first & 0x06:  # it is acknowledged whatever becomes of it
                back.write(bytes([PUBACK, 2]) + body[end : end + 2])
                at += 2
            payload_at = at + 1 + body[at]  # here properties are always shorter than 128 bytes
            self.deliveries += 1
            delivery = Delivery(
                number, first & RETAIN, body[2:end], body[at:payload_at], body[payload_at:]
            )
            for lie in self.lie(delivery):
                self.put(lie)

    def put(self, delivery: Delivery) -> None:
        """Deliver, unless the client is gone."""
        writer = self._clients[delivery.client]
        if not writer.is_closing():
            writer.write(delivery.packet())

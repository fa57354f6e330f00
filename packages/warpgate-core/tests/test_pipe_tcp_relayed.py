"""Streams over something that closes both connections when one end has sent its last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Self

import pytest

from warpgate.errors import PipeClosed, RemoteProtocolError
from warpgate.hello.records import StreamSeal
from warpgate.hello.seal import CHACHA20_POLY1305
from warpgate.net import tcp
from warpgate.net.constants import IP4
from warpgate.net.nic import loopback_interface
from warpgate.net.tcp import TcpPipe

GUARD_S = 10.0
ONE, OTHER = bytes(32), bytes([1]) * 32


class Relay:
    """Carries bytes, slowly; at the first end it drops both connections with what they still hold."""

    def __init__(self) -> None:
        self.ends: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.Queue()
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.goes_on = asyncio.Event()  # carries nothing while this is not set
        self.goes_on.set()

    async def __aenter__(self) -> Self:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.ends.put_nowait((reader, writer))
            self.writers.append(writer)

        self.server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        return self

    async def dial(self) -> TcpPipe:
        route = await loopback_interface().route(IP4).bind()
        pipe = await route.connect(self.server.sockets[0].getsockname()[:2])
        assert isinstance(pipe, TcpPipe)
        pipe.half_closes = False
        return pipe

    async def pair(self, sealed: bool = True) -> tuple[TcpPipe, TcpPipe]:
        a = await self.dial()
        first = await self.ends.get()
        b = await self.dial()
        second = await self.ends.get()
        if sealed:
            a.set_filter(StreamSeal(CHACHA20_POLY1305, ONE, OTHER))
            b.set_filter(StreamSeal(CHACHA20_POLY1305, OTHER, ONE))
        for (reader, _), (_, writer) in ((first, second), (second, first)):
            carry = self.carry(reader, writer, (first[1], second[1]))
            self.tasks.append(asyncio.create_task(carry))
        return a, b

    async def carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await reader.read(65536):
                await self.goes_on.wait()
                writer.write(data)
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        for each in both:
            each.transport.abort()

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as made:
        yield made


async def rest(pipe: TcpPipe) -> bytes:
    received = bytearray()
    async for data in pipe:
        received += data
        if len(received) < 1 << 19:
            await asyncio.sleep(0.005)
    return bytes(received)


async def test_what_was_sent_before_the_close_arrives(relay: Relay) -> None:
    a, b = await relay.pair()
    data = bytes(range(256)) * 4096 * 16
    async with asyncio.timeout(GUARD_S):
        await a.send(data)
        closing = asyncio.create_task(a.close())
        await asyncio.sleep(0.05)
        assert await rest(b) == data
        await b.wait_closed()
        await closing
    assert b.cause is None


async def test_a_reader_may_take_its_time(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "LINGER_S", 0.02)
    a, b = await relay.pair()
    async with asyncio.timeout(GUARD_S):
        await a.send(bytes(1 << 24))
        closing = asyncio.create_task(a.close())
        await asyncio.sleep(0.3)  # many times what a peer that is just gone gets
        assert len(await rest(b)) == 1 << 24
        await closing


async def test_with_a_half_close_it_does_not(relay: Relay) -> None:
    """Else the test above would show nothing."""
    a, b = await relay.pair()
    a.half_closes = True
    async with asyncio.timeout(GUARD_S):
        await a.send(bytes(1 << 24))  # more than fits between the relay and a reader that waits
        await a.close()
        with pytest.raises(PipeClosed):
            await rest(b)


async def test_both_ends_close_at_once(relay: Relay) -> None:
    a, b = await relay.pair()
    relay.goes_on.clear()
    closing = asyncio.gather(a.close(), b.close())
    await asyncio.sleep(0)
    relay.goes_on.set()
    async with asyncio.timeout(GUARD_S):
        await closing


async def test_what_comes_with_the_hello_may_be_the_last(relay: Relay) -> None:
    a, b = await relay.pair()
    async with asyncio.timeout(GUARD_S):
        b.take_over(lambda _data, _addr: None)
        records = a._filter
        assert isinstance(records, StreamSeal)
        b.hand_back([records.encode(b"all of it") + records.farewell()])
        assert await b.recv() == b"all of it"
        assert await b.recv(timeout=GUARD_S) is None
        await b.wait_closed()
        await a.close()


async def test_a_cut_is_no_end(relay: Relay) -> None:
    a, b = await relay.pair()
    async with asyncio.timeout(GUARD_S):
        b.subscribe()
        a.abort()
        await b.wait_closed()
    with pytest.raises(PipeClosed) as caught:
        await b.recv_n(1)
    assert isinstance(caught.value.__cause__, RemoteProtocolError)


async def test_a_peer_that_reads_nothing_does_not_hold_the_end_up(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "LINGER_S", 0.05)
    monkeypatch.setattr(tcp, "FLUSH_STALL_S", 0.2)
    a, b = await relay.pair()
    relay.goes_on.clear()
    async with asyncio.timeout(GUARD_S):
        await a.send(b"never read")
        await a.close()
    relay.goes_on.set()
    b.abort()


async def test_a_plain_stream_just_ends(relay: Relay) -> None:
    a, b = await relay.pair(sealed=False)
    async with asyncio.timeout(GUARD_S):
        await a.send(b"all")
        assert await b.recv_n(3) == b"all"
        await a.close()
        await b.wait_closed()


async def test_what_closes_already_is_not_closed_again() -> None:
    """After a second ``close`` asyncio's TLS transports raise when they are asked for their state."""
    closed = []
    stream: Any = SimpleNamespace(
        get_extra_info=lambda _name: None,
        set_write_buffer_limits=lambda **_: None,
        is_closing=lambda: True,
        close=lambda: closed.append(1),
        get_write_buffer_size=lambda: 0,
    )
    pipe = TcpPipe()
    pipe.connection_made(stream)
    pipe.peer_ended()
    assert closed == []
    pipe.connection_lost(None)

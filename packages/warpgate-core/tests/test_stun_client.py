from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from warpgate.events import Counters
from warpgate.net.datagram import DatagramSocket
from warpgate.net.udp import UdpPipe
from warpgate.stun import attributes as att
from warpgate.stun import client
from warpgate.stun.client import mapped_addresses, shared_tcp_socket, tcp_mapped_addresses
from warpgate.stun.message import BINDING, MessageClass, decode, encode

Address = tuple[str, int]
HOSTS = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


async def open_socket(af: int = socket.AF_INET, ip: str = "127.0.0.1") -> DatagramSocket:
    sock = socket.socket(af, socket.SOCK_DGRAM)
    sock.bind((ip, 0))
    return await DatagramSocket.open(sock)


def reply(request: bytes, source: Address) -> bytes:
    transaction = decode(request).transaction_id
    return encode(BINDING, MessageClass.SUCCESS, transaction, [(att.XOR_MAPPED_ADDRESS, source)])


class Server:
    """A STUN server; ``script`` may send anything."""

    def __init__(
        self, link: DatagramSocket, script: Callable[[Server, bytes, Address], None]
    ) -> None:
        self.link = link
        self.asked: list[Address] = []
        self.script = script
        link.default = self.received

    @property
    def address(self) -> Address:
        return self.link.local

    def received(self, data: bytes, source: Address) -> None:
        self.asked.append(source)
        self.script(self, data, source)


def honest(server: Server, data: bytes, source: Address) -> None:
    server.link.send_to(reply(data, source), source)


def silent(server: Server, data: bytes, source: Address) -> None:
    pass


async def start(
    script: Callable[[Server, bytes, Address], None] = honest,
    af: int = socket.AF_INET,
    ip: str = "127.0.0.1",
) -> Server:
    return Server(await open_socket(af, ip), script)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0)


@pytest.mark.parametrize(("af", "ip"), HOSTS)
async def test_the_mapped_address_is_that_of_the_very_socket(af: int, ip: str) -> None:
    server, link = await start(honest, af, ip), await open_socket(af, ip)
    (found,) = await mapped_addresses(link, [server.address])
    assert found.mapped == link.local
    assert server.asked == [link.local]
    server.link.close()
    link.close()


async def test_a_silent_server_is_not_waited_for() -> None:
    dead, live, link = await start(silent), await start(), await open_socket()
    loop = asyncio.get_running_loop()
    before = loop.time()
    found = await mapped_addresses(link, [dead.address, live.address], rto_s=30, timeout_s=30)
    assert [each.mapped for each in found] == [link.local, None]
    assert found[1].error == "no answer"
    assert loop.time() - before < 20  # not the 30 s that the silent one would take
    for each in (dead.link, live.link, link):
        each.close()


async def test_a_lost_request_is_repeated() -> None:
    def second(server: Server, data: bytes, source: Address) -> None:
        if len(server.asked) == 2:
            honest(server, data, source)

    server, link = await start(second), await open_socket()
    (found,) = await mapped_addresses(link, [server.address], rto_s=0.02)
    assert found.mapped == link.local
    assert found.sent == 2
    server.link.close()
    link.close()


async def test_user_data_is_never_eaten() -> None:
    lookalikes = [
        b"plain",
        encode(BINDING, MessageClass.SUCCESS, b"another's id", [(att.XOR_MAPPED_ADDRESS, ("1.1.1.1", 1))]),
        encode(BINDING, MessageClass.REQUEST, b"someone else"),
        bytes(28),
    ]  # fmt: skip

    def chatty(server: Server, data: bytes, source: Address) -> None:
        for text in lookalikes:
            server.link.send_to(text, source)
        honest(server, data, source)

    server, stranger, link = await start(chatty), await open_socket(), await open_socket()
    pipe = UdpPipe(link)
    pipe.subscribe()
    stranger.send_to(lookalikes[1], link.local)
    (found,) = await mapped_addresses(link, [server.address])
    assert found.mapped == link.local
    got = [await pipe.recv(timeout=5) for _ in range(5)]
    assert sorted(map(bytes, got)) == sorted([*lookalikes, lookalikes[1]])
    # Afterwards too, from the server's own address.
    server.link.send_to(b"later", link.local)
    assert await pipe.recv(timeout=5) == b"later"
    await pipe.close()
    server.link.close()
    stranger.close()


async def test_a_pipe_made_meanwhile_gets_data_and_no_answers() -> None:
    gate = asyncio.Event()
    link = await open_socket()
    pipes: list[UdpPipe] = []

    def late(server: Server, data: bytes, source: Address) -> None:
        if not pipes:
            pipes.append(UdpPipe(link))
            pipes[0].subscribe()
        server.link.send_to(b"data", source)
        honest(server, data, source)
        gate.set()

    server = await start(late)
    (found,) = await mapped_addresses(link, [server.address])
    assert gate.is_set()
    assert found.mapped == link.local
    assert await pipes[0].recv(timeout=5) == b"data"
    server.link.send_to(b"end", link.local)
    assert await pipes[0].recv(timeout=5) == b"end"
    await pipes[0].close()
    server.link.close()


async def test_late_answers_and_later_volleys_share_the_socket() -> None:
    kept: list[tuple[bytes, Address]] = []
    slow = await start(lambda server, data, source: kept.append((data, source)))
    quick, link = await start(), await open_socket()
    seen: list[bytes] = []

    def keep(data: bytes, _source: Address) -> None:
        seen.append(data)

    link.default = keep
    await mapped_addresses(link, [slow.address, quick.address], grace_s=0)
    again = await mapped_addresses(link, [quick.address])  # while the first one lingers
    assert again[0].mapped == link.local
    slow.link.send_to(reply(*kept[0]), link.local)
    slow.link.send_to(b"mine", link.local)
    await until(lambda: b"mine" in seen)
    assert seen == [b"mine"]
    for each in (slow.link, quick.link, link):
        each.close()


async def test_the_socket_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LINGER_S", 0)
    server, link = await start(), await open_socket()

    def keep(data: bytes, _source: Address) -> None:
        pass

    link.default = keep
    for _ in range(3):
        await mapped_addresses(link, [server.address])
    await until(lambda: not link.routed(server.address) and link.default is keep)
    assert link._on_close == []
    server.link.close()
    link.close()


async def test_hostile_answers_are_counted() -> None:
    other = await open_socket()

    def hostile(server: Server, data: bytes, source: Address) -> None:
        other.send_to(reply(data, ("203.0.113.66", 66)), source)
        server.link.send_to(data, source)
        server.link.send_to(reply(data, ("203.0.113.66", 66)) + bytes(4000), source)
        honest(server, data, source)

    server, link = await start(hostile), await open_socket()
    counters = Counters()
    (found,) = await mapped_addresses(link, [server.address], counters=counters)
    assert found.mapped == link.local
    assert counters["stun-reflected"] == 1
    assert counters["stun-oversized"] == 1
    await until(lambda: bool(counters["stun-wrong-source"]))
    for each in (server.link, link, other):
        each.close()


async def test_a_socket_that_closes_ends_the_wait() -> None:
    server, link = await start(silent), await open_socket()
    task = asyncio.create_task(mapped_addresses(link, [server.address], timeout_s=30))
    await until(lambda: bool(server.asked))
    link.close()
    async with asyncio.timeout(5):
        (found,) = await task
    assert found.mapped is None
    server.link.close()


@pytest.mark.parametrize(("af", "ip"), HOSTS)
async def test_tcp_from_one_port_to_several_servers(af: int, ip: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(20)
        data = reply(request, writer.get_extra_info("peername")[:2])
        writer.write(data[:7])
        await writer.drain()
        writer.write(data[7:])
        await reader.read()
        writer.close()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    servers = [await asyncio.start_server(each, ip, 0) for each in (serve, serve, refuse)]
    addresses = [each.sockets[0].getsockname()[:2] for each in servers]
    with shared_tcp_socket(af, (ip, 0)) as holder:
        local = holder.getsockname()[:2]
        keep: list[socket.socket] = []
        found = await tcp_mapped_addresses(local, addresses, grace_s=5, keep=keep)
        assert [each.mapped for each in found] == [local, local, None]
        assert found[2].error
        assert {sock.getpeername()[:2] for sock in keep} == set(addresses[:2])
        for sock in keep:
            sock.close()
        again = await tcp_mapped_addresses(local, addresses[2:], grace_s=5)
        assert again[0].mapped is None
    for each in servers:
        each.close()


async def test_tcp_answers_of_strangers_are_refused() -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(20)
        writer.write(encode(BINDING, MessageClass.SUCCESS, b"x" * 12))
        writer.close()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(20)
        writer.write(request[:2] + b"\xff\xfc" + request[4:] + bytes(100))
        writer.close()

    servers = [await asyncio.start_server(each, "127.0.0.1", 0) for each in (lie, flood)]
    counters = Counters()
    found = await tcp_mapped_addresses(
        ("127.0.0.1", 0), [each.sockets[0].getsockname() for each in servers], counters=counters
    )
    assert [each.error for each in found] == ["an answer to something else", "an oversized answer"]
    assert counters == {"stun-wrong-transaction": 1, "stun-oversized": 1}
    for each in servers:
        each.close()

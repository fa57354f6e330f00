from __future__ import annotations

import asyncio
import errno
import socket
import sys

import pytest

from warpgate.net.constants import IP4, IP6
from warpgate.net.datagram import DatagramSocket
from warpgate.net.listeners import (
    FIRST_PORT,
    LAST_PORT,
    MAX_PARKED,
    PORT_TRIES,
    Listeners,
    _Open,
    candidate_ports,
)
from warpgate.net.nic import loopback_interface
from warpgate.net.pipe import Pipe
from warpgate.net.tcp import TcpPipe

HOSTS = [(IP4, "127.0.0.1"), (IP6, "::1")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_tcp_and_udp_on_one_port_of_every_address() -> None:
    pipes: asyncio.Queue[Pipe] = asyncio.Queue()
    datagrams: asyncio.Queue[tuple[DatagramSocket, bytes, tuple[str, int]]] = asyncio.Queue()
    listeners = Listeners(pipes.put_nowait, lambda *args: datagrams.put_nowait(args))
    port = await listeners.open(HOSTS, 0)
    assert port == listeners.port
    assert listeners.hosts == HOSTS
    for af, ip in HOSTS:
        route = await loopback_interface().route(af).bind()
        async with await route.connect((ip, port)) as pipe:
            await pipe.send(b"tcp")
            async with await pipes.get() as accepted:
                assert accepted.inbound
                assert not pipe.inbound
                assert await accepted.recv() == b"tcp"
        async with await route.datagram((ip, port)) as udp:
            await udp.send(b"udp")
            link, data, addr = await datagrams.get()
            assert (data, addr) == (b"udp", udp.local)
            link.send_to(b"answer", addr)
            assert await udp.recv(full=True) == [(ip, port), b"answer"]
    await listeners.close()
    await listeners.close()
    assert listeners.port == 0
    with pytest.raises(ConnectionRefusedError):
        await (await loopback_interface().route(IP4).bind()).connect(("127.0.0.1", port))


async def test_on_stream_is_called_before_a_byte_is_read() -> None:
    seen: list[bytes] = []
    waiting = asyncio.Event()

    def on_stream(pipe: Pipe) -> None:
        def receiver(data: bytes, addr: tuple[str, int]) -> None:
            seen.append(data)
            waiting.set()

        pipe.take_over(receiver)
        pipes.append(pipe)

    pipes: list[Pipe] = []
    listeners = Listeners(on_stream)
    port = await listeners.open(HOSTS[:1], 0)
    route = await loopback_interface().route(IP4).bind()
    async with await route.connect(("127.0.0.1", port)) as pipe:
        await pipe.send(b"first")
        await waiting.wait()
    assert seen == [b"first"]
    await pipes[0].wait_closed()
    await listeners.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_the_next_free_port_is_taken(kind: int) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET6, kind) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::1", port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        listeners = Listeners()
        got = await listeners.open(HOSTS, port)
        assert got != port
        assert got in list(candidate_ports(port)) or got
        assert listeners.hosts == HOSTS
        await listeners.close()
    with socket.create_server(("127.0.0.1", port)):
        pass  # the half that could be bound was given back


@pytest.mark.parametrize("reuse_addr", [False, True])
async def test_two_on_one_machine(reuse_addr: bool) -> None:
    one, two = Listeners(), Listeners()
    port = await one.open(HOSTS, 0, reuse_addr=reuse_addr)
    assert await two.open(HOSTS, port, reuse_addr=reuse_addr) != port
    await one.close()
    await two.close()


def test_the_ports_that_are_tried() -> None:
    ports = list(candidate_ports(29_998))
    assert ports[:4] == [29_998, 29_999, FIRST_PORT, FIRST_PORT + 1]
    assert len(ports) > PORT_TRIES
    assert ports[PORT_TRIES:] == [0] * (len(ports) - PORT_TRIES)
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports[:PORT_TRIES])
    assert list(candidate_ports(65_535))[:2] == [
        65_535,
        FIRST_PORT + (65_536 - FIRST_PORT) % 20_000,
    ]
    assert set(candidate_ports(0)) == {0}
    assert list(candidate_ports(40_000))[:2] == [40_000, 40_001]


async def test_an_address_that_vanished_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    listeners = Listeners()
    await listeners.open([(IP4, "203.0.113.7"), (IP4, "127.0.0.1")], 0)
    assert listeners.hosts == [(IP4, "127.0.0.1")]
    assert "203.0.113.7" in caplog.text
    await listeners.close()


async def test_without_any_address_it_is_an_error() -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.7") as caught:
        await Listeners().open([(IP4, "203.0.113.7")], 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(OSError, match="no address"):
        await Listeners().open([], 0)


async def test_an_unclaimed_connection_is_closed() -> None:
    listeners = Listeners()
    port = await listeners.open(HOSTS[:1], 0)
    route = await loopback_interface().route(IP4).bind()
    async with await route.connect(("127.0.0.1", port)) as pipe:
        assert await pipe.recv(timeout=5) is None
        assert pipe.closed
    await listeners.close()


async def test_a_connection_in_the_moment_of_closing_is_closed() -> None:
    accepted: list[Pipe] = []
    listeners = Listeners(accepted.append)
    port = await listeners.open(HOSTS[:1], 0)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        await listeners.close()
        for _ in range(10):
            await asyncio.sleep(0)
        sock.settimeout(5)
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
    assert not accepted


async def test_close_leaves_accepted_pipes_open() -> None:
    accepted: asyncio.Queue[Pipe] = asyncio.Queue()
    listeners = Listeners(accepted.put_nowait)
    port = await listeners.open(HOSTS[:1], 0)
    route = await loopback_interface().route(IP4).bind()
    async with await route.connect(("127.0.0.1", port)) as a, await accepted.get() as b:
        async with asyncio.timeout(5):
            await listeners.close()
        await a.send(b"still here")
        assert await b.recv() == b"still here"


async def test_cancelling_open_leaves_nothing() -> None:
    port = free_port()
    for turns in range(6):
        listeners = Listeners()
        task = asyncio.create_task(listeners.open(HOSTS, port))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await listeners.close()
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_small_messages_leave_at_once_from_both_ends():
    accepted = asyncio.get_running_loop().create_future()
    listeners = Listeners(accepted.set_result)
    port = await listeners.open([(IP4, "127.0.0.1")], 0)
    loop = asyncio.get_running_loop()
    transport, dialled = await loop.create_connection(TcpPipe, "127.0.0.1", port)
    try:
        pipe = await accepted
        for end in (dialled, pipe):
            sock = end._stream.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await dialled.close()
        await pipe.wait_closed()
    finally:
        transport.abort()
        await listeners.close()


def opens(port: int, ip: str) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((ip, port)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
async def test_addresses_come_and_go_on_one_port() -> None:
    hosts = [(IP4, f"127.0.1.{number}") for number in range(1, MAX_PARKED + 4)]
    listeners = Listeners()
    port = await listeners.open(hosts[:1], 0)
    first = listeners.datagrams[0]
    await listeners.update(hosts)
    assert listeners.hosts == hosts
    assert {link.local for link in listeners.datagrams} == {(ip, port) for _, ip in hosts}
    assert listeners.socket_at(*hosts[0]) is first
    links = [listeners.socket_at(*host) for host in hosts]
    await listeners.update([])
    assert listeners.hosts == []
    assert listeners.port == port
    # The newest ones are kept for addresses that come back.
    assert [link.closed for link in links if link] == [True] * 3 + [False] * MAX_PARKED
    assert not opens(port, "127.0.1.1")
    await listeners.update([hosts[0], hosts[-1]])
    assert listeners.socket_at(*hosts[-1]) is links[-1]
    assert listeners.socket_at(*hosts[0]) not in (links[0], None)
    assert opens(port, "127.0.1.1")
    await listeners.close()
    assert all(link.closed for link in links if link)
    assert not opens(port, hosts[-1][1])


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
async def test_an_address_that_can_t_be_listened_on_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listeners = Listeners()
    port = await listeners.open([(IP4, "127.0.1.1")], 0)
    with socket.create_server(("127.0.1.2", port)):
        await listeners.update([(IP4, "127.0.1.1"), (IP4, "127.0.1.2"), (IP4, "203.0.113.7")])
        assert listeners.hosts == [(IP4, "127.0.1.1")]
        assert "127.0.1.2" in caplog.text
        assert "203.0.113.7" in caplog.text
    await listeners.update([(IP4, "127.0.1.1"), (IP4, "127.0.1.2")])
    assert opens(port, "127.0.1.2")
    await listeners.close()


async def test_a_scope_may_be_left_out_when_asking_for_a_socket() -> None:
    listeners = Listeners()
    link = DatagramSocket(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    listeners._open[IP6, "fe80::1%eth0"] = _Open(server, link)
    assert listeners.socket_at(IP6, "fe80::1%eth0") is link
    assert listeners.socket_at(IP6, "fe80::1") is link
    assert listeners.socket_at(IP6, "fe80::2") is None
    assert listeners.socket_at(IP4, "fe80::1") is None
    await listeners.close()

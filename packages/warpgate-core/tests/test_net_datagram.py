from __future__ import annotations

import asyncio
import socket

import pytest

from warpgate.net.datagram import BURST, KNOWN_ADDRESSES, DatagramSocket


async def opened() -> DatagramSocket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return await DatagramSocket.open(sock)


async def until(condition: object) -> None:
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def test_routes_and_the_default() -> None:
    a, b = await opened(), await opened()
    routed: list[bytes] = []
    other: list[tuple[bytes, tuple[str, int]]] = []
    a.send_to(b"nobody asked", b.local)
    await until(lambda: b.unclaimed == 1)
    b.default = lambda data, addr: other.append((data, addr))
    b.route(a.local, lambda data, addr: routed.append(data))
    assert b.routed(a.local)
    assert a.send_to(b"1", b.local)
    await until(lambda: routed == [b"1"])
    b.unroute(a.local)
    a.send_to(b"2", b.local)
    await until(lambda: other == [(b"2", a.local)])
    a.close()
    b.close()


async def test_one_wake_up_reads_a_bounded_number() -> None:
    a, b = await opened(), await opened()
    count = 0
    turns: list[int] = []

    def receive(data: bytes, addr: object) -> None:
        nonlocal count
        count += 1

    b.default = receive
    for _ in range(2 * BURST + 5):
        assert a.send_to(b"x", b.local)
    while count < 2 * BURST + 5:
        before = count
        await asyncio.sleep(0)
        turns.append(count - before)
    assert max(turns) == BURST
    a.close()
    b.close()


async def test_a_full_socket_says_so_and_can_be_waited_for() -> None:
    a = await opened()

    class Full:
        def __init__(self, sock: socket.socket, times: int) -> None:
            self.sock, self.times = sock, times

        def sendto(self, data: bytes, address: tuple[str, int]) -> int:
            if self.times:
                self.times -= 1
                raise BlockingIOError
            return self.sock.sendto(data, address)

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    a._sock = Full(a._sock, 1)  # type: ignore[assignment]
    assert a.send_to(b"x", a.local) is False
    async with asyncio.timeout(5):
        await asyncio.gather(a.writable(), a.writable())
    assert a.send_to(b"x", a.local) is True
    waiting = asyncio.create_task(a.writable())
    await asyncio.sleep(0)
    waiting.cancel()
    assert (await asyncio.gather(waiting, return_exceptions=True))[0] is not None
    a.close()
    await a.writable()
    assert a.send_to(b"x", a.local) is False


async def test_errors_are_counted() -> None:
    a = await opened()

    class Refusing:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def sendto(self, *args: object) -> int:
            raise ConnectionRefusedError

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    a._sock = Refusing(a._sock)  # type: ignore[assignment]
    assert a.send_to(b"x", ("127.0.0.1", 9)) is True
    assert a.errors == 1
    a.close()


async def test_icmp_errors_do_not_stop_a_connected_socket() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    address = peer.getsockname()
    sock.connect(address)  # only connected sockets are told
    link = await DatagramSocket.open(sock)
    got: list[bytes] = []
    link.default = lambda data, addr: got.append(data)
    peer.close()
    link._sock.send(b"x")
    await until(lambda: link.errors == 1)
    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    again.bind(address)
    again.sendto(b"back", link.local)
    await until(lambda: got == [b"back"])
    again.close()
    link.close()


async def test_known_addresses_are_bounded() -> None:
    a = await opened()
    for port in range(1, KNOWN_ADDRESSES + 100):
        a._known[("127.0.0.1", port)] = ("127.0.0.1", port)
        if len(a._known) >= KNOWN_ADDRESSES:
            break
    a.send_to(b"x", a.local)
    assert len(a._known) <= KNOWN_ADDRESSES
    a.close()


async def test_close_tells_who_asked() -> None:
    a = await opened()
    told: list[str] = []

    def first() -> None:
        told.append("first")

    a.on_close(first)
    a.on_close(lambda: told.append("second"))
    a.forget(first)
    a.forget(first)
    a.close()
    a.close()
    assert told == ["second"]
    assert repr(a).endswith("closed>")


async def test_without_add_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proactor loop of Windows has no add_reader."""
    loop = asyncio.get_running_loop()

    def no_reader(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(loop, "add_reader", no_reader)
    a, b = await opened(), await opened()
    got: list[tuple[bytes, tuple[str, int]]] = []
    b.default = lambda data, addr: got.append((data, addr))
    assert a.send_to(b"x", b.local)
    monkeypatch.undo()
    await until(lambda: got == [(b"x", a.local)])
    a._endpoint.pause_writing()  # type: ignore[union-attr]
    assert a.send_to(b"y", b.local) is False
    waiting = asyncio.create_task(a.writable())
    await asyncio.sleep(0)
    a._endpoint.resume_writing()  # type: ignore[union-attr]
    await waiting
    assert a.send_to(b"y", b.local)
    await until(lambda: len(got) == 2)
    a.close()
    b.close()
    await asyncio.sleep(0)
    assert a.send_to(b"z", b.local) is False


async def test_a_meter_decides_what_leaves() -> None:
    a, b = await opened(), await opened()
    came: list[bytes] = []
    b.default = lambda data, addr: came.append(data)
    asked: list[tuple[tuple[str, int], int]] = []

    def meter(addr: tuple[str, int], size: int) -> bool:
        asked.append((addr, size))
        return len(asked) != 2

    a.meter = meter
    assert all(a.send_to(data, b.local) for data in (b"1", b"2", b"3"))
    await until(lambda: came == [b"1", b"3"])
    assert (a.metered, asked) == (1, [(b.local, 1)] * 3)
    a.close()
    b.close()

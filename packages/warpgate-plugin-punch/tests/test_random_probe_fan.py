"""Many sockets behind one ear."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from warpgate.net.constants import IP4
from warpgate.net.datagram import DatagramSocket
from warpgate.testing import LeakCheck
from warpgate_plugin_punch.random_probe.fan import Fan

LOCAL = "127.0.0.1"


@pytest.fixture(params=["a selector in the loop", "a loop that watches no descriptors"])
def loop_kind(request, monkeypatch):
    if request.param.startswith("a loop"):
        loop = asyncio.selector_events.BaseSelectorEventLoop

        def refuse(*_):
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_reader", refuse)
        monkeypatch.setattr(loop, "remove_reader", refuse)
        monkeypatch.setattr(loop, "remove_writer", refuse)
    return request.param


@pytest.fixture
def far_end():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCAL, 0))
        sock.setblocking(False)
        yield sock


def received(sock):
    found = []
    while True:
        try:
            found.append(sock.recvfrom(100))
        except BlockingIOError:
            return found


class Ear:
    def __init__(self):
        self.heard = asyncio.Queue()

    def __call__(self, *what):
        self.heard.put_nowait(what)


async def test_each_writes_from_another_port_and_hears(loop_kind, far_end):
    async with LeakCheck():
        ear = Ear()
        fan = Fan(IP4, LOCAL, far_end.getsockname(), ear)
        for _ in range(20):
            assert await fan.send(b"probe")
        await asyncio.sleep(0)
        first = received(far_end)
        assert [data for data, _ in first] == [b"probe"] * 20
        ports = [addr[1] for _, addr in first]
        assert len(set(ports)) == 20 == fan.opened
        for member in fan.members:
            fan.again(member, b"again")
        await asyncio.sleep(0)
        assert [addr[1] for _, addr in received(far_end)] == ports

        far_end.sendto(b"hit", (LOCAL, ports[7]))
        async with asyncio.timeout(5):
            data, addr, member = await ear.heard.get()
        assert (data, addr) == (b"hit", far_end.getsockname())
        fan.answer(member, b"answer", addr)
        link = await fan.take(member)
        assert isinstance(link, DatagramSocket)
        assert link.local[1] == ports[7]
        with pytest.raises(OSError, match="given away"):
            await fan.take(member)
        fan.again(member, b"not any more")
        fan.close()
        fan.close()
        assert not await fan.send(b"too late")
        assert not link.closed
        await asyncio.sleep(0)
        assert [data for data, _ in received(far_end)] == [b"answer"]
        came = asyncio.get_running_loop().create_future()
        link.default = lambda data, _: came.set_result(data)
        far_end.sendto(b"to its new owner", (LOCAL, ports[7]))
        async with asyncio.timeout(5):
            assert await came == b"to its new owner"
        link.close()


async def test_a_burst_leaves_others_a_turn_and_loses_nothing(far_end):
    ear = Ear()
    fan = Fan(IP4, LOCAL, far_end.getsockname(), ear)
    for _ in range(3):
        await fan.send(b"probe")
    ports = [addr[1] for _, addr in received(far_end)]
    for number in range(120):
        far_end.sendto(b"%d" % number, (LOCAL, ports[number % 3]))
    async with asyncio.timeout(5):
        found = {(await ear.heard.get())[0] for _ in range(120)}
    assert len(found) == 120
    fan.close()


async def test_without_descriptors_it_is_short_and_says_why(far_end, monkeypatch):
    fan = Fan(IP4, LOCAL, far_end.getsockname(), Ear())
    assert await fan.send(b"probe")

    def fail(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Fan, "_open", fail)
    assert not await fan.send(b"probe")
    assert fan.short is not None
    assert fan.opened == 1
    fan.close()


async def test_one_socket_that_fails_is_passed_over(far_end, monkeypatch):
    fan = Fan(IP4, LOCAL, far_end.getsockname(), Ear())
    real = Fan._open
    errors = [OSError(errno.EADDRINUSE, "Address in use")]
    monkeypatch.setattr(
        Fan, "_open", lambda self: real(self) if not errors else (_ for _ in ()).throw(errors.pop())
    )
    assert await fan.send(b"probe")
    assert await fan.send(b"probe")
    assert (fan.opened, fan.failed, fan.short) == (1, 1, None)
    fan.close()

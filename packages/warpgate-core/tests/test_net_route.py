from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from warpgate.net import route as route_module
from warpgate.net.constants import IP4, IP6, TCP, UDP
from warpgate.net.nic import Interface, InterfaceAddress, loopback_interface, scope_of
from warpgate.net.udp import UdpPipe


def nic(*ips: str, name: str = "x0") -> Interface:
    addresses = [
        InterfaceAddress(
            IP6 if ":" in ip else IP4,
            ip.removesuffix("!"),
            64 if ":" in ip else 24,
            scope_of(ip.removesuffix("!").partition("%")[0]),
            temporary=ip.endswith("!"),
        )
        for ip in ips
    ]
    return Interface(name, 7, tuple(addresses))


@pytest.mark.parametrize(
    ("af", "dest", "source"),
    [
        (IP4, "127.0.0.1", "127.0.0.1"),
        (IP4, "203.0.113.5", "10.0.0.5"),
        (IP4, "192.168.7.9", "192.168.7.5"),
        (IP4, None, "10.0.0.5"),
        (IP6, "::1", "::1"),
        (IP6, "2001:db8:9::1", "2001:db8::5"),
        (IP6, "fd00::9", "fd00::5"),
        (IP6, "fd99::9", "fd00::5"),
        (IP6, "fe80::9", "fe80::5%x0"),
        (IP6, None, "2001:db8::5"),
    ],
)
async def test_the_source_suits_the_destination(af: int, dest: str | None, source: str) -> None:
    x0 = nic("10.0.0.5", "192.168.7.5", "fe80::5%x0", "2001:db8::aaaa!", "2001:db8::5", "fd00::5")
    assert (await x0.route(af).bind()).source_for(dest) == source


async def test_a_given_source_wins() -> None:
    x0 = nic("10.0.0.5", "10.0.0.6", "fe80::5%x0")
    route = await x0.route(IP4).bind(port=5000, ip="10.0.0.6")
    assert (route.ip, route.port, route.bound) == ("10.0.0.6", 5000, True)
    assert route.source_for("127.0.0.1") == "10.0.0.6"
    assert (await x0.route(IP4, ip="10.0.0.6").bind()).source_for(None) == "10.0.0.6"
    assert (await x0.route(IP6).bind(ip="fe80::5")).source_for(None) == "fe80::5%7"
    unbound = x0.route(IP4)
    assert not unbound.bound
    assert unbound.source_for("203.0.113.5") is None
    assert "10.0.0.6 port 5000" in repr(route)


async def test_bind_makes_a_new_route_and_checks_what_it_can() -> None:
    x0 = nic("10.0.0.5")
    route = x0.route(IP4)
    assert await route.bind() is not route
    with pytest.raises(ValueError, match="IPv4"):
        await route.bind(ip="::1")
    with pytest.raises(ValueError, match="70000"):
        await route.bind(port=70000)
    lonely = route_module.Route(x0, IP6, bound=True)
    with pytest.raises(OSError, match="x0 has no IPv6 address"):
        lonely.source_for("2001:db8::1")


@pytest.mark.parametrize("af", [IP4, IP6])
async def test_connect(af: int) -> None:
    host = "127.0.0.1" if af == IP4 else "::1"
    family = socket.AF_INET if af == IP4 else socket.AF_INET6
    with socket.create_server((host, 0), family=family) as listener:
        address = listener.getsockname()[:2]
        for bound in (False, True):
            route = loopback_interface().route(af)
            if bound:
                route = await route.bind()
            async with await route.connect(address, TCP) as pipe:
                other, peer = listener.accept()
                with other:
                    assert pipe.remote == address
                    assert pipe.local == peer[:2]
                    assert pipe.local[0] == host
                    sock = pipe._stream.get_extra_info("socket")  # type: ignore[attr-defined]
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connect_from_a_given_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    route = await loopback_interface().route(IP4).bind(port=port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with await route.connect(listener.getsockname()) as pipe:
            assert pipe.local == ("127.0.0.1", port)
            other, peer = listener.accept()
            other.close()
            assert peer == ("127.0.0.1", port)
    async with await route.datagram() as udp:
        assert udp.local == ("127.0.0.1", port)


async def test_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def resolver(name: str, port: int, family: int, kind: int) -> list[object]:
        asked.append((name, family))
        return [(IP4, kind, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        route = await loopback_interface().route(IP4).bind()
        async with await route.connect(("peer.example", listener.getsockname()[1])) as pipe:
            assert pipe.remote == listener.getsockname()
    assert asked == [("peer.example", IP4)]


async def test_errors_keep_their_class_and_say_where_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    route = await loopback_interface().route(IP4).bind()
    with pytest.raises(ConnectionRefusedError, match=rf"connect to 127\.0\.0\.1 port {port}"):
        await route.connect(("127.0.0.1", port))
    with pytest.raises(ValueError, match="IPv4"):
        await route.connect(("::1", port))
    with pytest.raises(ValueError, match="sctp"):
        await route.connect(("127.0.0.1", port), transport="sctp")
    wrong = await loopback_interface().route(IP4).bind(ip="203.0.113.7")
    for use in (wrong.connect(("127.0.0.1", port)), wrong.datagram()):
        with pytest.raises(OSError, match=r"bind 203\.0\.113\.7 port 0") as caught:
            await use
        assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = []
        for _ in range(4):  # until the backlog is full, and Linux answers no more
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        route = await loopback_interface().route(IP4).bind()
        with pytest.raises(TimeoutError, match=r"timed out after 0.05 s"):
            await route.connect(address, timeout=0.05)
        for filler in fillers:
            filler.close()


async def test_a_socket_that_connects_to_itself_is_refused() -> None:
    """TCP's simultaneous open works with itself when both ports are the same."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    route = await loopback_interface().route(IP4).bind(port=port)
    with pytest.raises(ConnectionRefusedError):
        await route.connect(("127.0.0.1", port))


async def test_cancelling_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    connecting = asyncio.Event()
    original = route_module.Route._socket

    def remembered(self: route_module.Route, *args: object) -> socket.socket:
        made.append(original(self, *args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(route_module.Route, "_socket", remembered)
    loop = asyncio.get_running_loop()
    never = loop.create_future()

    async def hang(*_: object) -> None:
        connecting.set()
        await never

    monkeypatch.setattr(loop, "sock_connect", hang)
    route = await loopback_interface().route(IP4).bind()
    task = asyncio.create_task(route.connect(("127.0.0.1", 9)))
    await connecting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made[0].fileno() == -1


async def test_datagrams_with_and_without_a_destination() -> None:
    route = await loopback_interface().route(IP4).bind()
    async with await route.datagram() as one, await route.datagram(one.local) as two:
        assert isinstance(two, UdpPipe)
        assert two.remote == one.local
        await two.send(b"x")
        assert await one.recv() == b"x"
    async with await route.connect(("127.0.0.1", 9), UDP) as three:
        assert three.transport == "udp"
    unbound = loopback_interface().route(IP4)
    async with await unbound.datagram() as four:
        assert four.local[0] == "0.0.0.0"


async def test_a_link_local_destination_gets_the_scope() -> None:
    x0 = nic("fe80::5%x0")
    route = await x0.route(IP6).bind()
    assert await route._resolve(("fe80::9", 80), socket.SOCK_STREAM) == ("fe80::9", 80, 0, 7)
    assert await route._resolve(("fe80::9%3", 80), socket.SOCK_STREAM) == ("fe80::9", 80, 0, 3)
    assert await route._resolve(("2001:db8::9", 80), socket.SOCK_STREAM) == (
        "2001:db8::9",
        80,
        0,
        0,
    )

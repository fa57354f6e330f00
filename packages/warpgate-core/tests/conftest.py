"""Fixtures of the core's tests: nodes on loopback that have no strategy but the test's own."""

from __future__ import annotations

import asyncio
import selectors
import socket
from contextlib import AsyncExitStack, suppress

import pytest
import pytest_asyncio

from warpgate.identity import Identity
from warpgate.net.constants import IP4, IP6, TCP, UDP
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.protocol.peer_address import Endpoint, InterfaceRecord, pack_address
from warpgate.testing import LeakCheck, Stage


@pytest_asyncio.fixture
async def leaks():
    """Fail the test when it leaves something behind, or the loop's exception handler is called."""
    errors = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    check = LeakCheck()
    check.begin()
    yield check
    await check.check()
    assert errors == []


@pytest_asyncio.fixture
async def start(leaks):
    """Return an async function that starts a node on 127.0.0.1 with the given strategies."""
    async with AsyncExitStack() as stack:
        stack.enter_context(Stage(isolated=True))

        async def start_node(*strategies, ip="127.0.0.1", conf=None, **arguments):
            node = Node(ip=ip, conf={**NODE_TEST_CONF, **(conf or {})}, **arguments)
            stack.push_async_callback(node.close)
            await node.start()
            for cls in strategies:
                node.traversal.install_plugin(cls.name, {"class": cls})
            return node

        yield start_node


@pytest.fixture
def make_address():
    """Return a function that signs an address: ``make_address(["10.0.0.1"], ["fd00::1"], …)``."""

    def make(
        *interfaces,
        machine=b"a machine",
        identity=None,
        sequence=1,
        ext=None,
        port=4000,
        nat=0,
        delta=0,
    ):
        records = [
            InterfaceRecord(
                index,
                tuple(
                    Endpoint(
                        IP6 if ":" in ip else IP4,
                        ip,
                        port,
                        (ext or {}).get(ip),
                        nat=nat,
                        delta=delta,
                    )
                    for ip in ips
                ),
            )
            for index, ips in enumerate(interfaces, start=1)
        ]
        return pack_address(
            identity or Identity.generate(),
            machine=machine,
            sequence=sequence,
            brokers=(),
            interfaces=records,
        )

    return make


@pytest.fixture
def make_nic():
    """Return a function that makes an interface: ``make_nic("eth0", 1, "10.0.0.1/24", …)``."""

    def make(name, index, *addresses, default=True, **attributes):
        found = []
        for text in addresses:
            ip, _, prefix = text.partition("/")
            af = IP6 if ":" in ip else IP4
            found.append(InterfaceAddress(af, ip, int(prefix or 24), "private"))
        families = {address.af for address in found}
        gateways = dict.fromkeys(families) if default else {}
        return Interface(name, index, tuple(found), gateways=gateways, **attributes)

    return make


class VirtualSelector(selectors.SelectSelector):
    """When the loop would wait, its clock jumps to where it would wait until."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        events = super().select(0)
        if not events:
            assert timeout is not None, "nothing will ever happen any more"
            self.now += max(timeout, 0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.clock = VirtualSelector()
        super().__init__(self.clock)
        self._clock_resolution = 1e-9

    def time(self):
        return self.clock.now


@pytest.fixture
def virtual():
    """Return a function that runs a coroutine in virtual time.

    It is for what waits for time alone: the clock does not wait for sockets.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        yield runner.run


class Middle:
    """A man in the middle on loopback: ``change(data, to_bob)`` returns what is passed on.

    Streams: bytes as they come, None cuts the connection off. Datagrams: a list of datagrams.
    """

    def __init__(self, transport, target):
        self.transport, self.target = transport, target
        self.change = (lambda data, to_bob: data) if transport == TCP else self.unchanged
        self.seen = []
        self.tasks, self.writers = set(), []

    @staticmethod
    def unchanged(data, to_bob):
        return [data]

    async def open(self):
        if self.transport == TCP:
            self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
            self.address = self.server.sockets[0].getsockname()
            return self
        loop = asyncio.get_running_loop()
        self.alice = None
        self.socks = []
        for _ in range(2):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            self.socks.append(sock)
        self.near, self.far = self.socks
        self.address = self.near.getsockname()
        loop.add_reader(self.near, self.readable, self.near, True)
        loop.add_reader(self.far, self.readable, self.far, False)
        return self

    def readable(self, sock, to_bob):
        with suppress(BlockingIOError):
            while True:
                data, addr = sock.recvfrom(65535)
                if to_bob:
                    self.alice = addr
                self.seen.append(data)
                for passed in self.change(data, to_bob):
                    self.inject(passed, to_bob)

    def inject(self, data, to_bob):
        if to_bob:
            self.far.sendto(data, self.target)
        else:
            self.near.sendto(data, self.alice)

    async def accept(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self.writers += [writer, far_writer]
        pumps = [self.pump(reader, far_writer, True), self.pump(far_reader, writer, False)]
        for pump in pumps:
            task = asyncio.create_task(pump)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def pump(self, reader, writer, to_bob):
        with suppress(OSError):
            while data := await reader.read(65536):
                self.seen.append(data)
                passed = self.change(data, to_bob)
                if passed is None:
                    self.cut()
                    return
                writer.write(passed)
                await writer.drain()
            writer.write_eof()

    def cut(self):
        for writer in self.writers:
            writer.close()

    async def close(self):
        if self.transport == UDP:
            for sock in self.socks:
                asyncio.get_running_loop().remove_reader(sock)
                sock.close()
            return
        self.server.close()
        self.cut()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest_asyncio.fixture
async def middle():
    """Return an async function that puts a man in the middle: ``await middle(TCP, target)``."""
    async with AsyncExitStack() as stack:

        async def make(transport, target):
            made = await Middle(transport, target).open()
            stack.push_async_callback(made.close)
            return made

        yield make

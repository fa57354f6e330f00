"""Fixtures of the core's tests: nodes on loopback that have no strategy but the test's own."""

from __future__ import annotations

import asyncio
import selectors
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from warpgate.identity import Identity
from warpgate.net.constants import IP4, IP6
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

"""Fixtures: real TURN servers, and nodes that have nothing but the strategy ``turn``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from warpgate import NODE_TEST_CONF, Node
from warpgate.stun.attributes import (
    ERROR_CODE,
    NONCE,
    REALM,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    ErrorCode,
)
from warpgate.stun.message import Message, MessageClass, decode, encode, long_term_key
from warpgate.testing import LeakCheck, Stage
from warpgate.testing.coturn import Coturn, find_coturn, make_certificates
from warpgate_plugin_turn import wire
from warpgate_plugin_turn.machine import TurnMachine
from warpgate_plugin_turn.machine_events import Allocated
from warpgate_plugin_turn.strategy import Turn


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The paths of an authority's certificate, a server's for 127.0.0.1 and turn.test, and its key."""
    return make_certificates(
        tmp_path_factory.mktemp("certificates"), "127.0.0.1", "::1", "turn.test"
    )


@pytest.fixture
def coturn(
    tmp_path: Path, certificates: tuple[Path, Path, Path]
) -> Iterator[Callable[..., Coturn]]:
    """Return a function that starts a TURN server with further lines of configuration."""
    if find_coturn() is None:
        pytest.skip("coturn is not installed")
    with ExitStack() as stack:

        def start(*lines: str, **options: Any) -> Coturn:
            options.setdefault("certificate", certificates[1:])
            return stack.enter_context(Coturn(tmp_path, lines, **options))

        yield start


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Callable[..., Any]]:
    """Return an async function that starts two nodes on loopback, given their TURN servers."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with LeakCheck(), AsyncExitStack() as stack:
        stage = stack.enter_context(Stage(memory=True))
        stage.install(Turn)

        async def start(
            first: list[str], second: list[str], *, ip: str = "127.0.0.1", **settings: Any
        ) -> tuple[Node, Node]:
            nodes = []
            for servers in (first, second):
                conf = {
                    **NODE_TEST_CONF,
                    "turn_servers": servers,
                    "plugin_conf": {"turn": settings},
                }
                node = Node(ip=ip, conf=conf)
                nodes.append(await stack.enter_async_context(node))
            return nodes[0], nodes[1]

        yield start
    assert errors == []


# A server of a few lines, for the machine without a socket or a clock.

RELAYED, MAPPED = ("192.0.2.20", 50000), ("198.51.100.10", 4000)
KEY = long_term_key("user", "realm", "secret")


class Server:
    """Answers requests as RFC 8656 has it; ``errors`` maps a method to the error it gets."""

    def __init__(self, machine: TurnMachine) -> None:
        self.machine = machine
        self.now = 0.0
        self.nonce = "one"
        self.lifetime = 600
        self.errors: dict[int, ErrorCode] = {}
        self.extra: list[tuple[int, Any]] = []
        self.key = KEY
        self.deaf = False
        self.lose: Callable[[], bool] = lambda: False
        self.asked: list[Message] = []
        self.events: list[Any] = []
        self.channels: dict[int, Any] = {}

    def step(self) -> None:
        """Carry everything there and back."""
        for _ in range(50):
            sent = self.machine.outgoing(self.now)
            if not sent:
                break
            for data in sent:
                if wire.is_channel_data(data) or self.lose():
                    continue
                answer = self.answer(decode(data, wire.TURN_ATTRIBUTES))
                if answer is not None and not self.lose():
                    self.machine.receive(answer, ("", 0), self.now)
        while (event := self.machine.next_event()) is not None:
            self.events.append(event)

    def run(self, until: float) -> None:
        """Let time pass, from timer to timer."""
        while (due := self.machine.next_timeout()) is not None and due <= until:
            self.now = max(self.now, due)
            self.machine.handle_timeout(self.now)
            self.step()
        self.now = until

    def answer(self, request: Message) -> bytes | None:
        if request.message_class != MessageClass.REQUEST or self.deaf:
            return None
        self.asked.append(request)
        if request.get(USERNAME) is None:
            return self.reply(request, ErrorCode(401, "Unauthorized"), challenge=True, key=None)
        if not request.authenticated(self.key):
            return self.reply(request, ErrorCode(401, "Unauthorized"), challenge=True, key=None)
        if request.get(NONCE) != self.nonce:
            return self.reply(request, ErrorCode(438, "Stale Nonce"), challenge=True, key=None)
        if request.method in self.errors:
            return self.reply(request, self.errors[request.method])
        return self.reply(request)

    def reply(
        self,
        request: Message,
        error: ErrorCode | None = None,
        *,
        challenge: bool = False,
        key: bytes | None = KEY,
    ) -> bytes:
        attributes: list[tuple[int, Any]] = [] if error is None else [(ERROR_CODE, error)]
        if challenge:
            attributes += [(REALM, "realm"), (NONCE, self.nonce)]
        if error is None and request.method == wire.ALLOCATE:
            attributes += [
                (wire.XOR_RELAYED_ADDRESS, RELAYED),
                (XOR_MAPPED_ADDRESS, MAPPED),
                (wire.LIFETIME, self.lifetime),
            ]
        if error is None and request.method == wire.REFRESH:
            attributes.append((wire.LIFETIME, min(request.get(wire.LIFETIME), self.lifetime)))
        kind = MessageClass.SUCCESS if error is None else MessageClass.ERROR
        return encode(
            request.method, kind, request.transaction_id, [*attributes, *self.extra],
            key=key, table=wire.TURN_ATTRIBUTES,
        )  # fmt: skip

    def count(self, method: int) -> int:
        return sum(request.method == method for request in self.asked)


def make_machine(**options: Any) -> Server:
    settings = {"username": "user", "password": "secret", "server": "turn.test", **options}
    machine = TurnMachine(entropy=random.Random(1).randbytes, **settings)
    server = Server(machine)
    machine.start(0.0)
    return server


def make_allocated(**options: Any) -> Server:
    server = make_machine(**options)
    server.step()
    assert server.events == [Allocated(RELAYED, MAPPED, 600.0)]
    server.events.clear()
    return server


@pytest.fixture(scope="session")
def make() -> Callable[..., Server]:
    """Return a function that makes a server and a machine that has asked it for an allocation."""
    return make_machine


@pytest.fixture(scope="session")
def allocated() -> Callable[..., Server]:
    """Return a function that makes a server and a machine that has its allocation."""
    return make_allocated

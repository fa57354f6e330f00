"""Runs one of the documents' programs in a process of its own: ``runner.py <names from> <program>``.

``<names from>`` is ``aionetiface`` (as printed) or ``warpgate`` (its imports say warpgate instead).
aionetiface's test module replaces the event loop policy and more, which is why this is a process.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import types
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATTERN = re.compile(r"<!-- block: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)
BLOCKS = {
    name: text
    for page in ("writing_a_plugin.md", "connections.md")
    for name, text in PATTERN.findall((HERE / page).read_text("utf-8"))
}

Program = Callable[[], Awaitable[None]]
PROGRAMS: dict[str, Program] = {}

names_from = "aionetiface"


def covers(*blocks: str) -> Callable[[Program], Program]:
    """Mark a program, with the blocks that it runs."""

    def mark(program: Program) -> Program:
        PROGRAMS[program.__name__] = program
        COVERED.update(blocks)
        return program

    return mark


COVERED: set[str] = set()


def text_of(name: str) -> str:
    """Return a block, importing from where this run wants the names."""
    text = BLOCKS[name]
    if names_from == "warpgate":
        text = text.replace("from aionetiface", "from warpgate")
        assert "aionetiface" not in text
    return text


async def run(source: str, names: dict[str, Any]) -> None:
    """Execute source that may await at its top level."""
    names.setdefault("__name__", "__main__")
    code = compile(source, "<printed>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


def module(name: str, source: str, **names: Any) -> Any:
    """Make a module of source, as a file on the Python path would."""
    made = types.ModuleType(name)
    vars(made).update(names)
    made.__package__ = name.rpartition(".")[0]
    sys.modules[name] = made
    exec(compile(source, f"<{name}>", "exec"), vars(made))
    return made


class Pair:
    """Two started nodes; the second one sends everything back when ``echo``."""

    def __init__(self, echo: bool = False, **conf: Any) -> None:
        from warpgate import NODE_TEST_CONF, Node

        self.nodes = [Node(conf={**NODE_TEST_CONF, **conf}) for _ in range(2)]
        if echo:
            self.nodes[1].add_msg_cb(send_back)

    async def __aenter__(self) -> list[Any]:
        for node in self.nodes:
            await node.start()
        return self.nodes

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.close()


async def send_back(msg: bytes, client_tup: Any, pipe: Any) -> None:
    await pipe.send(msg, client_tup)


def only(nodes: list[Any], **strategies: Any) -> None:
    """Narrow nodes down, as the document does."""
    for node in nodes:
        node.traversal.plugin_loaders.clear()
        for name, cls in strategies.items():
            node.traversal.install_plugin(name, {"class": cls})


@covers("direct_tcp")
async def direct_tcp() -> None:
    from warpgate import auto_connect

    module("dropped_in", BLOCKS["direct_tcp"])  # imported before start: found by itself
    async with Pair(echo=True) as (alice, bob):
        pipe, plugin = await auto_connect(alice, bob.address(), plugins=["direct_tcp"])
        assert pipe is not None, alice.last_report
        assert plugin.name == pipe.plugin_name == "direct_tcp"
        await pipe.send(b"hello")
        assert await pipe.recv() == b"hello"


@covers("result")
async def result() -> None:
    from warpgate import Plugin

    success, fail_fast, implicit = BLOCKS["result"].splitlines()
    outcomes = {}
    for name, line in (("success", success), ("fast", fail_fast), ("implicit", implicit)):
        source = f"async def run(self, reply=None):\n    pipe = await dial(self)\n    {line}\n"
        if name != "success":
            source = source.replace("    pipe = await dial(self)\n", "")
        names: dict[str, Any] = {"dial": dial}
        exec(source, names)
        body = {"name": name, "transport": "tcp", "phase": "direct", "run": names["run"]}
        async with Pair() as (alice, bob):
            only([alice, bob])
            spec = {"class": type("Printed", (Plugin,), body), "timeout": 0.3}
            alice.traversal.install_plugin(name, spec)
            attempt = await alice.connect(pnp_addr=bob.address(), plugin_name=name)
            outcomes[name] = await asyncio.wait_for(attempt.result, 10)
    assert outcomes["success"] is not None
    assert outcomes["fast"] is None
    assert outcomes["implicit"] is None


async def dial(plugin: Any) -> Any:
    route = await plugin.bind()
    return await route.connect((plugin.dest_info["ip"], plugin.dest_info["port"]))


@covers("reverse_connect")
async def reverse_connect() -> None:
    from warpgate import auto_connect
    from warpgate_plugin_direct.direct_connect import DirectConnect

    printed = module("printed", BLOCKS["reverse_connect"]).ReverseConnect
    async with Pair() as (alice, bob):
        only([alice, bob], reverse_connect=printed, direct_connect=DirectConnect)
        pipe, plugin = await auto_connect(alice, bob.address(), plugins=["reverse_connect"])
        assert pipe is not None, alice.last_report
        assert isinstance(plugin, printed)
        assert pipe.local[1] == alice.port  # the peer dialled
        inbound = await asyncio.wait_for(bob.accept(), 10)
        assert inbound.peer_id == alice.node_id
        await pipe.send(b"over there")
        assert await inbound.recv() == b"over there"
        await inbound.send(b"and back")
        assert await pipe.recv() == b"and back"


@covers("my_handshake")
async def my_handshake() -> None:
    proto = (
        "from pydantic import BaseModel\nfrom warpgate.protocol.proto_msg import ConMsg\n"
        "class MyHandshakeMsg(ConMsg):\n    class Payload(BaseModel):\n        word: str = 'knock'\n"
    )
    module("my_handshake", "")
    message = module("my_handshake.proto", proto).MyHandshakeMsg
    printed = module("my_handshake.main", BLOCKS["my_handshake"], pipe=None).MyHandshake
    calls: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
    original = printed.run

    async def watched(self: Any, reply: Any = None) -> None:
        calls.put_nowait((self.initiator, reply))
        await original(self, reply)

    printed.run = watched
    async with Pair() as (alice, bob):
        assert message.WIRE_NAME == "my_handshake.MyHandshakeMsg"
        attempt = await alice.connect(pnp_addr=bob.address(), plugin_name="my_handshake")
        assert await asyncio.wait_for(calls.get(), 10) == (True, None)
        initiator, reply = await asyncio.wait_for(calls.get(), 10)
        assert not initiator
        assert isinstance(reply, message)
        assert reply.payload.word == "knock"
        assert reply.meta.pipe_id == attempt.plugin_id
        assert message.unpack(reply.pack()).payload == reply.payload
        # An answer re-enters the initiator's instance; the printed run() then resolves it.
        back = await bob.connect(pnp_addr=alice.address(), plugin_name="my_handshake")
        assert await asyncio.wait_for(calls.get(), 10) == (True, None)
        assert (await asyncio.wait_for(calls.get(), 10))[1].meta.pipe_id == back.plugin_id
        assert not attempt.result.done()
        attempt.result.cancel()
        back.result.cancel()


@covers("turn_relay")
async def turn_relay() -> None:
    from warpgate import Plugin, register

    made: list[Any] = []

    class TURNFactory:
        def __init__(self, node: Any) -> None:
            self.node, self.closed = node, False
            made.append(self)

        def build_plugin(self) -> Any:
            plugin = printed()
            plugin.factory = self
            return plugin

        async def close(self) -> None:
            self.closed = True

    names = {"register": register, "Plugin": Plugin, "TURNFactory": TURNFactory}
    printed = module("printed", BLOCKS["turn_relay"], **names).TURNRelay
    from warpgate.testing import Stage

    with Stage(isolated=True) as stage:
        stage.install(printed)
        async with Pair() as (alice, bob):
            assert [factory.node for factory in made] == [alice, bob]
            attempt = await alice.connect(pnp_addr=bob.address(), plugin_name="turn")
            assert isinstance(attempt, printed)
            assert attempt.factory is made[0]
            attempt.result.cancel()
        assert all(factory.closed for factory in made)
        async with Pair(enable_turn=False) as nodes:
            assert all("turn" not in node.traversal.plugin_loaders for node in nodes)
        assert len(made) == 2


@covers("narrow")
async def narrow() -> None:
    from warpgate import Plugin, auto_connect

    class MyPlugin(Plugin):
        name = "my_plugin"
        transport = "tcp"
        phase = "direct"

        async def run(self, reply: Any = None) -> None:
            self.result.set_result(await dial(self))

    async with Pair(echo=True) as (alice, bob):
        await run(BLOCKS["narrow"], {"alice": alice, "bob": bob, "MyPlugin": MyPlugin})
        pipe, plugin = await auto_connect(alice, bob.address())
        assert isinstance(plugin, MyPlugin)
        assert list(alice.traversal.plugin_loaders) == ["my_plugin"]
        assert {outcome.strategy for outcome in pipe.report.outcomes} == {"my_plugin"}


@covers("auto_connect", "subscribe", "subscribe_filtered", "send", "send_none", "recv", "close")
async def pipe_api() -> None:
    async with Pair(echo=True) as (alice, bob):
        names: dict[str, Any] = {"node": alice, "dest_addr": bob.address(), "dest_tup": None}
        await run(text_of("auto_connect"), names)
        pipe = names["pipe"]
        assert names["plugin"].name == "direct_connect"
        await run(text_of("subscribe"), names)
        for block in ("send", "send_none", "send"):
            await run(text_of(block), names)
            echoed = await pipe.recv(names["SUB_ALL"])
            assert echoed == b"hello world"
        # Three messages, each by a form of recv.
        reader = asyncio.ensure_future(run(text_of("recv"), names))
        seen: list[bytes] = []
        while not reader.done():
            await run(text_of("send"), names)
            await asyncio.wait([reader], timeout=0.05)
        await reader
        assert names["data"].startswith(b"hello world")
        address, data = names["tup"]
        assert address == pipe.remote
        assert data.startswith(b"hello world")

        async def my_async_func(msg: bytes, client_tup: Any, which: Any) -> None:
            seen.append(msg)
            heard.set()

        heard = asyncio.Event()
        names["my_async_func"] = my_async_func
        await run(text_of("subscribe_filtered"), names)
        await pipe.send(b"HELLO there")
        assert await pipe.recv((b"^HELLO", None)) == b"HELLO there"
        await asyncio.wait_for(heard.wait(), 10)
        assert b"".join(seen).endswith(b"HELLO there")
        offset = pipe.subscribe((b"^OTHER", None))
        assert isinstance(offset, int)
        pipe.unsubscribe(offset)
        assert not pipe.closed
        await run(text_of("close"), names)
        assert pipe.closed


@covers("node_connect", "recv_n")
async def node_connect() -> None:
    async with Pair(echo=True) as (alice, bob):
        names: dict[str, Any] = {"node": alice, "dest_addr": bob.address(), "asyncio": asyncio}
        await run(text_of("subscribe").splitlines()[0], names)
        await run(text_of("node_connect"), names)
        assert names["plugin"].name == "direct_connect"
        assert names["pipe"].peer_id == bob.node_id
        block = bytes(range(256)) * 4
        await names["pipe"].send(block + b"rest")
        await run(text_of("recv_n"), names)
        assert names["data"] == block
        assert await names["pipe"].recv_n(4) == b"rest"


@covers("server", "ping_pong", "streaming", "broadcast")
async def patterns() -> None:
    from warpgate import SUB_ALL, auto_connect

    async with Pair() as (alice, bob), Pair() as (carol, dave):
        await run(text_of("server"), {"node": bob})
        pipe, _ = await auto_connect(alice, bob.address())
        await pipe.send(b"12345")
        assert await pipe.recv() == b"got it"

        sender, receiver = text_of("ping_pong").split("# Receiver side:\n")
        await run(receiver, {"node": carol})
        pipe, _ = await auto_connect(alice, carol.address())
        names = {"pipe": pipe, "dest": None, "SUB_ALL": SUB_ALL}
        await run(sender, names)
        assert names["resp"] == b"pong"

        sender, receiver = text_of("streaming").split("# Receiver accumulates with recv_n:\n")
        pipe, _ = await auto_connect(alice, dave.address())
        chunks = [bytes([number]) * 50_000 for number in range(40)]
        inbound = await asyncio.wait_for(dave.accept(), 10)
        names = {"pipe": inbound, "total_size": 2_000_000, "SUB_ALL": SUB_ALL}
        sending = run(sender, {"pipe": pipe, "dest": None, "data_chunks": chunks})
        await asyncio.gather(sending, run(receiver, names))
        assert names["full_data"] == b"".join(chunks)

    async with Pair() as (alice, bob), Pair() as (carol, dave):
        others = (bob, carol, dave)
        names = {"node": alice, "peer_addresses": [node.address() for node in others]}
        await run(text_of("broadcast"), {"auto_connect": auto_connect, **names})
        for node in others:
            inbound = await asyncio.wait_for(node.accept(), 10)
            assert await inbound.recv() == b"broadcast message"


@covers("inbound")
async def inbound() -> None:
    from warpgate import auto_connect

    async with Pair() as (alice, bob):
        names: dict[str, Any] = {"node": bob, "asyncio": asyncio}
        waiting = asyncio.ensure_future(run(text_of("inbound"), names))
        pipe, _ = await auto_connect(alice, bob.address())
        await pipe.send(b"CONNECT:my-session-id")
        await waiting
        assert names["inbound_pipe"].peer_id == alice.node_id
        await names["inbound_pipe"].send(b"welcome")
        assert await pipe.recv() == b"welcome"


@covers("test_case")
async def test_case() -> None:
    names: dict[str, Any] = {"__name__": "printed"}
    await run(text_of("test_case"), names)
    case = names["TestMyPlugin"]("test_connects")
    assert type(case).__mro__[1].__module__.partition(".")[0] in ("warpgate", "unittest")
    outcome = unittest.TestResult()
    await asyncio.to_thread(case.run, outcome)  # it has a loop of its own
    assert outcome.testsRun == 1
    assert outcome.wasSuccessful(), outcome.failures + outcome.errors


async def check(program: Program) -> None:
    """Run a program; what it leaves behind is an error of its own."""
    from warpgate.testing import LeakCheck

    loop = asyncio.get_running_loop()
    escaped: list[Any] = []
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    async with LeakCheck():
        await asyncio.wait_for(program(), 40)
    assert not escaped, escaped


def main(argv: list[str]) -> None:
    """Run what the command line names."""
    global names_from
    names_from, name = argv
    if names_from == "aionetiface":
        import aionetiface.testing

        asyncio.get_event_loop_policy()
        assert aionetiface.IP4 == __import__("warpgate").IP4
    asyncio.run(check(PROGRAMS[name]))
    print("ran", name)


if __name__ == "__main__":
    main(sys.argv[1:])

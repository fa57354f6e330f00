"""Every strategy, family and route type between nodes in two processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from warpgate import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND, Node
from warpgate.protocol.peer_address import parse_address

pytest_plugins = ["warpgate.testing.pytest_plugin"]

GUARD_S = 30
PEER = """
import asyncio, sys
from warpgate import NODE_TEST_CONF, Node

async def main():
    async def echo(msg, client_tup, pipe):
        await pipe.send(pipe.peer_id.encode() + b" " + msg, client_tup)

    async with Node(conf=NODE_TEST_CONF) as node:
        node.add_msg_cb(echo)
        print(node.peer_address.to_text(), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def peer() -> AsyncIterator[str]:
    """Run a node in another process; give its address."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    child = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", PEER, **pipes)
    try:
        async with asyncio.timeout(GUARD_S):
            yield (await child.stdout.readline()).decode().strip()
            child.stdin.close()
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.usefixtures("leak_check")
async def test_all_ways(make_node) -> None:
    node: Node = await make_node()
    async with peer() as text:
        shared = parse_address(text).families() & set(node.supported())
        assert shared
        for af in sorted(shared & {IP4, IP6}):
            for route_type in (NIC_BIND, EXT_BIND, LOOPBACK_BIND):
                for name in ("direct_connect", "reverse_connect"):
                    attempt = await node.connect(af, route_type, text, name)
                    pipe = await attempt.result
                    assert pipe is not None, (af, route_type, name)
                    assert (pipe.plugin_name, ":" in pipe.remote[0]) == (name, af == IP6)
                    async with pipe:
                        await pipe.send(b"over here")
                        expected = f"{node.node_id} over here".encode()
                        assert await pipe.recv_n(len(expected)) == expected

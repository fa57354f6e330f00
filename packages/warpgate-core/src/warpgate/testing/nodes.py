"""Started nodes for a test, closed afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from warpgate.net.pipe import Pipe
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.plugin import Plugin
from warpgate.testing.stage import Stage


@asynccontextmanager
async def started_nodes(
    count: int = 2,
    *,
    conf: Mapping[str, Any] | None = None,
    strategies: Sequence[type[Plugin]] | None = None,
    memory: bool = True,
) -> AsyncIterator[list[Node]]:
    """Start nodes with ``NODE_TEST_CONF``, and close them at the end.

    Args:
        count: how many.
        conf: settings that differ.
        strategies: what they have; None leaves it to the installed distributions (or to the
            :class:`Stage` around this).
        memory: signals also travel within the process, besides directly.

    """
    with Stage(isolated=strategies is not None, memory=memory) as stage:
        for cls in strategies or ():
            stage.install(cls)
        async with AsyncExitStack() as stack:
            nodes = [Node(conf={**NODE_TEST_CONF, **(conf or {})}) for _ in range(count)]
            for node in nodes:
                stack.push_async_callback(node.close)
            await asyncio.gather(*(node.start() for node in nodes))
            yield nodes


async def echo(msg: bytes, client_tup: tuple[str, int], pipe: Pipe) -> None:
    """Send every message back to where it came from; for ``node.add_msg_cb``."""
    await pipe.send(msg, client_tup)

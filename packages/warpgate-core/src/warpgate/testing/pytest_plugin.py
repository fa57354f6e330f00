"""Fixtures: ``pytest_plugins = ["warpgate.testing.pytest_plugin"]`` in a test module or a conftest.

- ``leak_check``: the test fails when it, and the fixtures below, leave a task, socket or file
  descriptor behind. It is set up before them, in whichever order a test names them.
- ``isolated_plugins``: nodes that start in the test discover nothing; ``install(MyPlugin)`` gives
  it to each of them.
- ``make_node``: ``await make_node(conf={…})`` starts a node with ``NODE_TEST_CONF``.
- ``node_pair``: two such nodes.

The nodes' signals travel within the process besides directly, and they are closed after the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.testing.leaks import LeakCheck
from warpgate.testing.stage import Stage

MakeNode: TypeAlias = Callable[..., Awaitable[Node]]

_FIRST = ("leak_check", "isolated_plugins")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the fixtures that surround others be set up first."""
    names: list[str] = getattr(item, "fixturenames", [])
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


@pytest_asyncio.fixture
async def leak_check() -> AsyncIterator[LeakCheck]:
    """Fail the test when it leaves something behind."""
    check = LeakCheck()
    check.begin()
    yield check
    await check.check()


@pytest.fixture
def isolated_plugins() -> Iterator[Stage]:
    """Discover nothing; ``isolated_plugins.install(MyPlugin)`` installs on the test's nodes."""
    with Stage(isolated=True) as stage:
        yield stage


@pytest_asyncio.fixture
async def make_node() -> AsyncIterator[MakeNode]:
    """Return an async function that starts a node; keyword arguments are those of ``Node``."""
    async with AsyncExitStack() as stack:
        stage = stack.enter_context(Stage(isolated=False, memory=True))

        async def make(**arguments: Any) -> Node:
            conf = {**NODE_TEST_CONF, **arguments.pop("conf", {})}
            node = Node(**arguments, conf=conf)
            stack.push_async_callback(node.close)
            await node.start()
            assert node in stage.nodes
            return node

        yield make


@pytest_asyncio.fixture
async def node_pair(make_node: MakeNode) -> tuple[Node, Node]:
    """Two started nodes."""
    return await make_node(), await make_node()

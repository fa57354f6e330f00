from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module
from typing import ClassVar

import pytest

from warpgate import NODE_TEST_CONF, Node, Plugin, PluginDefinitionError, auto_connect
from warpgate.testing import Stage, echo, started_nodes

AUXILIARIES = {"get_addr", "return_addr", "fan_out"}


class Dial(Plugin):
    # Not registered: nodes of other tests would find it.
    phase = "direct"
    name = "test_stage_dial"
    transport = "tcp"

    async def run(self, reply=None):
        route = await self.nic.route(self.af).bind()
        pipe = await route.connect((self.dest_info["ip"], self.dest_info["port"]))
        self.result.set_result(pipe)


class WithSetup(Plugin):
    phase = "relay"
    name = "test_stage_setup"
    transport = "tcp"
    nodes: ClassVar[list[Node]] = []

    @classmethod
    async def setup(cls, node):
        cls.nodes.append(node)
        return cls

    async def run(self, reply=None):
        self.result.set_result(None)


async def test_isolated_nodes_have_what_was_installed_and_no_more() -> None:
    with Stage() as stage:
        stage.install(Dial)
        async with Node(conf=NODE_TEST_CONF) as node:
            assert set(node.traversal.plugin_loaders) == {"test_stage_dial", *AUXILIARIES}
            assert stage.nodes == [node]
            assert node.traversal.rejected == []


def test_stages_nest_and_end() -> None:
    module = import_module("warpgate.node.node")
    before = module.load
    with Stage(isolated=True) as outer:
        outer.install(Dial)
        with Stage(isolated=False) as inner:
            inner.install(WithSetup)
            assert [s.cls for s in module.load().strategies] == [Dial, WithSetup]
        assert [s.cls for s in module.load().strategies] == [Dial]
    assert module.load is before


async def test_running_nodes_get_it_too() -> None:
    with Stage() as stage:
        async with Node(conf=NODE_TEST_CONF) as node:
            stage.install(Dial)
            assert "test_stage_dial" in node.traversal.plugin_loaders
            with pytest.raises(PluginDefinitionError, match=r"setup\(\)"):
                stage.install(WithSetup)


async def test_setup_is_called_on_nodes_that_start() -> None:
    async with started_nodes(1, strategies=[WithSetup]) as (node,):
        assert WithSetup.nodes.count(node) == 1
        assert "test_stage_setup" in node.traversal.plugin_loaders


def test_a_broken_class_is_refused() -> None:
    class Nameless(Plugin):
        transport = "tcp"

    with Stage() as stage, pytest.raises(PluginDefinitionError, match="no name"):
        stage.install(Nameless)


async def test_signals_travel_in_memory() -> None:
    async with started_nodes(2, strategies=[Dial]) as (alice, bob):
        assert {transport.name for transport in alice.router._transports} == {"direct", "memory"}
        await asyncio.gather(alice._direct.close(), bob._direct.close())
        plugin = await alice.connect(pnp_addr=bob.address(), plugin_name="get_addr")
        assert (await plugin.result).node_id == bob.node_id


async def test_started_nodes_connect_and_are_closed() -> None:
    async with started_nodes(2, strategies=[Dial]) as (alice, bob):
        bob.add_msg_cb(echo)
        pipe, plugin = await auto_connect(alice, bob.address())
        assert (plugin.name, pipe.peer_id) == ("test_stage_dial", bob.node_id)
        await pipe.send(b"x")
        assert await pipe.recv() == b"x"
    assert pipe.closed
    assert not alice.running


def test_pytest_is_imported_by_its_two_modules_alone() -> None:
    code = (
        "import sys, warpgate.testing as t; t.AsyncTestCase; assert 'pytest' not in sys.modules; "
        "t.StrategyConformance; assert 'pytest' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

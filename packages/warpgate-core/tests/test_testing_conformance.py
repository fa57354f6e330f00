"""The conformance class passes a good strategy and finds what is wrong with bad ones."""

from __future__ import annotations

import re

import pytest

pytest_plugins = ["pytester"]

MODULE = """
import asyncio, socket
import pytest
from warpgate import Plugin
from warpgate.testing import LeakCheck
from warpgate.testing.conformance import StrategyConformance

pytest_plugins = ["warpgate.testing.pytest_plugin"]
LeakCheck.__init__.__defaults__ = (0.1,)  # what is planted here never goes away
HELD = []


class Dial(Plugin):
    phase = "direct"
    name = "dial"
    transport = "tcp"

    async def dial(self):
        route = await self.nic.route(self.af).bind()
        return await route.connect((self.dest_info["ip"], self.dest_info["port"]))

    async def run(self, reply=None):
        self.result.set_result(await self.dial())


class TestGood(StrategyConformance):
    strategy = Dial


class TestNoMachine(StrategyConformance):
    strategy = Dial
    connects = False


class TestSyncRun(StrategyConformance):
    class strategy(Dial):
        phase = "direct"

        def run(self, reply=None):
            self.result.set_result(None)


class TestKeepsASocket(StrategyConformance):
    class strategy(Dial):
        phase = "direct"

        async def run(self, reply=None):
            HELD.append(socket.socket())
            self.result.set_result(await self.dial())


class TestLeavesATask(StrategyConformance):
    class strategy(Dial):
        phase = "direct"

        async def run(self, reply=None):
            pipe = await self.dial()
            HELD.append(asyncio.create_task(asyncio.sleep(30)))
            self.result.set_result(pipe)


class TestOrphansAPipe(StrategyConformance):
    class strategy(Dial):
        phase = "direct"

        async def run(self, reply=None):
            pipe = await self.dial()
            await asyncio.sleep(0.001)  # cancelled here, nobody has the pipe
            self.result.set_result(pipe)


class TestRaisesOutside(StrategyConformance):
    class strategy(Dial):
        phase = "direct"

        async def run(self, reply=None):
            asyncio.get_running_loop().call_soon(lambda: self.nic.name)
            self.result.set_result(await self.dial())


class TestNeverConnects(StrategyConformance):
    class strategy(Dial):
        phase = "direct"
        route_types = (1,)
        conf = {"timeout": 0.1}

        async def run(self, reply=None):
            pass


class TestFixtures:
    @pytest.mark.asyncio
    async def test_leak(self, node_pair, leak_check):
        HELD.append(socket.socket())

    @pytest.mark.asyncio
    async def test_clean(self, node_pair, isolated_plugins, leak_check):
        alice, bob = node_pair
        assert not [l for l in alice.traversal.plugin_loaders.values() if l.info().phase]
        isolated_plugins.install(Dial)
        plugin = await alice.connect(pnp_addr=bob.address(), plugin_name="dial")
        assert (await plugin.result).peer_id == bob.node_id

    @pytest.mark.asyncio
    async def test_make_node(self, make_node, leak_check):
        node = await make_node(ip="127.0.0.1", conf={"accept_plain": False})
        assert node.running and node.conf["accept_plain"] is False
"""

CONNECTS = "test_connects_by_every_family_and_route_type"
BYTES = "test_bytes_both_ways"
SWEEP = "test_cancelled_anywhere_leaves_nothing"

# Per class: the tests to run (all when there are none), and those of them that must fail.
DEFECTS = {
    "TestSyncRun": ("test_class_contract",),
    "TestKeepsASocket": (CONNECTS, BYTES, SWEEP),
    "TestLeavesATask": (CONNECTS, BYTES),
    "TestOrphansAPipe": (SWEEP,),
    "TestRaisesOutside": ("test_exceptions_stay_inside",),
    "TestNeverConnects": (CONNECTS, BYTES),
}


def test_it_passes_what_is_good_and_finds_what_is_not(pytester: pytest.Pytester) -> None:
    # In a process of its own, for the sockets and tasks that are planted.
    pytester.makepyfile(test_planted=MODULE)
    wanted = [
        "test_planted.py::TestGood",
        "test_planted.py::TestNoMachine",
        "test_planted.py::TestFixtures",
    ]
    wanted += [
        f"test_planted.py::{cls}::{test}" for cls, tests in DEFECTS.items() for test in tests
    ]
    options = ["-v", "-p", "no:cacheprovider", "-W", "ignore", "-o", "asyncio_mode=strict"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = pytester.runpytest_subprocess(*options, *wanted, timeout=50)
    found: dict[str, dict[str, str]] = {}
    for line in done.outlines:
        match = re.match(r"test_planted\.py::(\w+)::(\w+) (\w+)", line)
        if match:
            outcomes = found.setdefault(match[1], {})
            if outcomes.get(match[2]) != "FAILED":  # an ERROR of the same test may follow
                outcomes[match[2]] = match[3]

    assert set(found["TestGood"].values()) == {"PASSED"}
    assert len(found["TestGood"]) == 11
    assert sorted(found["TestNoMachine"].values()) == ["PASSED"] * 6 + ["SKIPPED"] * 5
    for cls, tests in DEFECTS.items():
        assert found[cls] == dict.fromkeys(tests, "FAILED"), cls
    assert found["TestFixtures"] == {
        "test_leak": "ERROR",  # the check is the fixture's
        "test_clean": "PASSED",
        "test_make_node": "PASSED",
    }
    done.stdout.fnmatch_lines(["*left behind after*"])

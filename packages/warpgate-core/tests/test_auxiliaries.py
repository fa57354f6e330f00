"""``return_addr``: what a node does that is asked for its address before it knows its NAT.

Time is virtual here (see conftest).
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from warpgate.net.constants import EXT_BIND, IP4
from warpgate.traversal.auxiliary import return_addr
from warpgate.traversal.auxiliary.return_addr import SURVEY_S, ReturnAddr
from warpgate.traversal.paths import Path
from warpgate.traversal.plan import Combination, Plan


class Network:
    """Its first survey takes so long; None: there is none."""

    def __init__(self, survey_s):
        self.ends = None if survey_s is None else survey_s

    @property
    def pending(self):
        return self.ends is not None and asyncio.get_running_loop().time() < self.ends

    async def ready(self, timeout_s):
        left = (self.ends or 0) - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0, min(left, timeout_s)))


@pytest.fixture
def answered(virtual, monkeypatch):
    """Return a function: when the answer goes out, and when a relay is prepared."""

    def run(survey_s, relay="last"):
        async def main():
            loop = asyncio.get_running_loop()
            path = Path(IP4, EXT_BIND, 0, 0, "198.51.100.2", 4000, 2, False, False)
            prepared, sent, asked = [], [], []

            def plan_for(peer, options):
                asked.append((peer, options.relay))
                return Plan((Combination("turn", "relay", "relay", path),))

            def prepare(manager, chosen, *, anyway):
                prepared.append((loop.time(), chosen.combinations[0].strategy, anyway))

            async def send(plugin, msg):
                sent.append((loop.time(), msg.meta.plugin_name))

            monkeypatch.setattr(return_addr, "prepare_relays", prepare)
            plugin = ReturnAddr()
            plugin.initiator = False
            plugin.result = loop.create_future()
            plugin.node = SimpleNamespace(network=Network(survey_s), conf={"relay": relay})
            plugin.manager = SimpleNamespace(
                plan_for=plan_for,
                attempt_of=lambda _: SimpleNamespace(peer="the peer"),
                send_signal=send,
            )
            await plugin.run()
            assert plugin.result.result() is None
            return sent, prepared, asked

        return virtual(main())

    return run


@pytest.mark.parametrize("survey_s", [None, 0])
def test_who_knows_its_nat_or_never_will_answers_at_once(answered, survey_s):
    assert answered(survey_s) == ([(0, "get_addr")], [], [])


def test_a_first_survey_is_waited_for_and_a_relay_prepared_meanwhile(answered):
    sent, prepared, asked = answered(0.9, relay="never")
    assert sent == [(pytest.approx(0.9), "get_addr")]
    assert prepared == [(0, "turn", True)]
    assert asked == [("the peer", "never")]


def test_a_survey_that_does_not_end_is_not_waited_for(answered):
    sent, _, _ = answered(60)
    assert sent == [(pytest.approx(SURVEY_S), "get_addr")]

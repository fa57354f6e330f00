"""``random_probe`` passes what every strategy should; on one machine no port has to be guessed."""

from __future__ import annotations

from contextlib import asynccontextmanager

from warpgate.testing.conformance import StrategyConformance
from warpgate.testing.nodes import echo, started_nodes
from warpgate_plugin_punch.random_probe.strategy import RandomProbe


class TestRandomProbe(StrategyConformance):
    strategy = RandomProbe
    sweep_step = 3

    @asynccontextmanager
    async def nodes(self, count=2):
        """Signals go straight to the peer alone: then no second connection is kept for answers."""
        async with started_nodes(count, strategies=[RandomProbe], memory=False) as nodes:
            nodes[-1].add_msg_cb(echo)
            yield nodes

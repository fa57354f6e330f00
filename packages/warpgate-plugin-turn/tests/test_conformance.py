"""``turn`` passes what every strategy should, over a real TURN server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from warpgate import NODE_TEST_CONF, Node
from warpgate.testing.conformance import StrategyConformance
from warpgate.testing.coturn import Coturn, find_coturn
from warpgate_plugin_turn.strategy import Turn

pytestmark = pytest.mark.coturn


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a TURN server for both families."""
    if find_coturn() is None:
        pytest.skip("coturn is not installed")
    folder: Path = tmp_path_factory.mktemp("coturn")
    with Coturn(folder, hosts=("127.0.0.1", "::1")) as coturn:
        # A relay that was prepared for a call that was cancelled is kept for the next one, usually.
        settings = {"plugin_conf": {"turn": {"warm_s": 0.5}}}
        TestTurn.conf = {**NODE_TEST_CONF, "turn_servers": [coturn.url()], **settings}
        yield


class TestTurn(StrategyConformance):
    strategy = Turn
    sweep_step = 7
    responders_s = 0.0

    @asynccontextmanager
    async def nodes(self, count: int = 2) -> AsyncIterator[list[Node]]:
        async with super().nodes(count) as nodes:
            for node in nodes[1:] if self.responders_s else ():
                node.traversal.plugin_loaders["turn"].timeout = self.responders_s
            yield nodes

    async def test_cancelled_anywhere_leaves_nothing(self) -> None:
        # Nobody tells the peer that the caller has cancelled: its side ends with its time.
        self.responders_s = 0.6
        await super().test_cancelled_anywhere_leaves_nothing()

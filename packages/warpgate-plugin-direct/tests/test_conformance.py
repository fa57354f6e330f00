"""Both strategies pass what every strategy should."""

from __future__ import annotations

from warpgate.testing.conformance import StrategyConformance
from warpgate_plugin_direct.direct_connect import DirectConnect
from warpgate_plugin_direct.reverse_connect import ReverseConnect


class TestDirectConnect(StrategyConformance):
    strategy = DirectConnect


class TestReverseConnect(StrategyConformance):
    strategy = ReverseConnect
    companions = (DirectConnect,)  # what the peer dials back with

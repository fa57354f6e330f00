"""tcp_punch passes what every strategy should."""

from __future__ import annotations

from warpgate.testing.conformance import StrategyConformance
from warpgate_plugin_punch.tcp_punch.strategy import TcpPunch


class TestTcpPunch(StrategyConformance):
    strategy = TcpPunch
    sweep_step = 7

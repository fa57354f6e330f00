"""``udp_punch`` passes what every strategy should."""

from __future__ import annotations

from warpgate.testing.conformance import StrategyConformance
from warpgate_plugin_punch.udp_punch.strategy import UdpPunch


class TestUdpPunch(StrategyConformance):
    strategy = UdpPunch

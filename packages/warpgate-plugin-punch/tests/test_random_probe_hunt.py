"""What a search for a way through makes of what comes in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from warpgate.events import Counters
from warpgate.hello.messages import M1, HelloFields, message, pack_m1
from warpgate.net.constants import IP4
from warpgate.net.udp import UdpPipe
from warpgate_plugin_punch.common.probes import INITIATOR, KEY_SIZE, probe
from warpgate_plugin_punch.common.sockets import bound_udp
from warpgate_plugin_punch.random_probe import hunt
from warpgate_plugin_punch.random_probe.hunt import Hunt
from warpgate_plugin_punch.random_probe.strategy import RandomProbe

KEY = bytes(KEY_SIZE)
PEER = ("127.0.0.1", 9)


def m1(plugin_id: str) -> bytes:
    fields = HelloFields(plugin_id, *(bytes([n]) * 32 for n in range(4)), ())
    return message(M1, pack_m1(fields, datagram=True))


@pytest.mark.parametrize("authentic", [False, True])
async def test_only_what_is_authentic_lifts_the_limit(
    monkeypatch: pytest.MonkeyPatch, authentic: bool
) -> None:
    """An M1 is not: whoever sees one on its way can write any address on a copy."""
    monkeypatch.setattr(hunt, "crosses_nat", lambda _plugin: True)
    plugin = RandomProbe()
    plugin.initiator = False
    plugin.node = SimpleNamespace(stats=Counters())  # type: ignore[assignment]
    link = await bound_udp(IP4, ("127.0.0.1", 0))
    search = Hunt(plugin, link, KEY)
    name = plugin.plugin_id
    link.received(probe(KEY, INITIATOR, name) if authentic else m1(name), PEER)
    assert search.heard == 1
    assert isinstance(plugin.result.result(), UdpPipe)
    assert plugin.budget.take(PEER[0], 51) is authentic
    plugin.result.result().abort()
    search.close()
    assert link.closed

"""What a broker's connection does when the network has changed."""

from __future__ import annotations

from types import SimpleNamespace

from warpgate.server_urls import parse_broker
from warpgate.signalling.mqtt_link import BrokerLink


async def test_only_a_connection_whose_address_has_gone_is_ended() -> None:
    ended = []
    link = BrokerLink(parse_broker("mqtt://192.0.2.1"), topics=(), on_message=lambda *_: None)
    link.nudge({"10.0.0.1"})
    assert link._nudged.is_set()
    link._session = SimpleNamespace(local_ip="192.168.1.2", abort=ended.append)
    link.nudge({"192.168.1.2", "10.0.0.1"})
    assert ended == []
    link.nudge({"10.0.0.1"})
    assert ended == ["the network has changed"]

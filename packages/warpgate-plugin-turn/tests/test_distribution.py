"""What the distribution offers."""

from __future__ import annotations

from importlib import metadata

import pytest

import warpgate_plugin_turn
from warpgate import EXT_BIND, LOOPBACK_BIND, NIC_BIND, NODE_TEST_CONF, ConfigError, Node
from warpgate.testing import Stage
from warpgate_plugin_turn.strategy import Turn


def test_the_distribution_offers_turn() -> None:
    (point,) = metadata.entry_points(group="warpgate.strategies", name="turn")
    assert point.load() is Turn
    assert point.dist is not None
    assert point.dist.name == "warpgate-plugin-turn"
    assert point.dist.version == warpgate_plugin_turn.__version__


def test_its_class() -> None:
    assert (Turn.name, Turn.phase, Turn.transport) == ("turn", "relay", "udp")
    assert set(Turn.route_types) == {NIC_BIND, EXT_BIND, LOOPBACK_BIND}


@pytest.mark.parametrize(
    ("conf", "installed"),
    [({}, True), ({"turn_servers": ["turn:u:p@192.0.2.1"]}, True), ({"enable_turn": False}, False)],
)
async def test_it_is_installed_unless_switched_off(conf: dict, installed: bool) -> None:
    with Stage() as stage:
        stage.install(Turn)
        async with Node(ip="127.0.0.1", conf={**NODE_TEST_CONF, **conf}) as node:
            assert ("turn" in node.traversal.plugin_loaders) is installed
            assert node.traversal.rejected == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probe": 1}, "the keys are"),
        ({"probe_s": 0}, "seconds above 0"),
        ({"ca_file": "/does/not/exist"}, "no file of certificates"),
        ({"ca_file": 7}, "expected a path"),
        ("probe_s", "expected a dict"),
    ],
)
async def test_wrong_settings_are_rejected_with_the_mend(settings: object, words: str) -> None:
    with Stage() as stage:
        stage.install(Turn)
        conf = {**NODE_TEST_CONF, "plugin_conf": {"turn": settings}}
        async with Node(ip="127.0.0.1", conf=conf) as node:
            (failure,) = node.traversal.rejected
            assert words in str(failure)
            assert isinstance(failure.error, ConfigError)

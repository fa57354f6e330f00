"""Relays are prepared where little else is left."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from warpgate.events import Counters
from warpgate.nat.report import NetReport, PathReport
from warpgate.net.constants import EXT_BIND, IP4, IP6
from warpgate.traversal.paths import Path
from warpgate.traversal.plan import Combination, Plan
from warpgate.traversal.prepare import prepare_relays


def combination(
    strategy: str, group: str, peer_af: int = 0, transport: str | None = None
) -> Combination:
    path = Path(IP4, EXT_BIND, 0, 0, "203.0.113.1", 4000, 2, False, False, peer_af)
    return Combination(strategy, group, group, path, transport=transport)


class Factory:
    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def prepare(self, af: int, *, udp_blocked: bool) -> None:
        self.asked.append((af, udp_blocked))


def manager(factory: object, report: NetReport | None = None) -> SimpleNamespace:
    info = SimpleNamespace(transport="udp")
    turn = SimpleNamespace(factory=factory, info=lambda: info)
    loaders = {"turn": turn, "plain": SimpleNamespace(factory=None)}
    node = SimpleNamespace(net_report=report)
    return SimpleNamespace(node=node, plugin_loaders=loaders, stats=Counters())


def test_each_family_is_prepared_once() -> None:
    factory = Factory()
    both = (combination("turn", "relay"), combination("turn", "relay"))
    plan = Plan((*both, combination("turn", "relay", IP6), combination("plain", "relay")))
    prepare_relays(manager(factory), plan)
    assert factory.asked == [(IP4, False), (IP6, False)]


def test_it_is_told_that_udp_is_blocked() -> None:
    factory = Factory()
    report = NetReport((PathReport("eth0", IP4, "10.0.0.1", udp=False),))
    prepare_relays(manager(factory, report), Plan((combination("turn", "relay"),)))
    assert factory.asked == [(IP4, True)]


def test_nothing_is_prepared_while_something_else_has_a_chance() -> None:
    factory = Factory()
    plan = Plan((combination("udp_punch", "spray"), combination("turn", "relay")))
    prepare_relays(manager(factory), plan)
    assert factory.asked == []


def test_nothing_is_prepared_for_a_call_that_wants_the_other_transport() -> None:
    factory = Factory()
    prepare_relays(manager(factory), Plan((combination("turn", "relay", transport="tcp"),)))
    assert factory.asked == []
    prepare_relays(manager(factory), Plan((combination("turn", "relay", transport="udp"),)))
    assert factory.asked == [(IP4, False)]


def test_a_factory_that_raises_is_counted(caplog) -> None:
    def prepare(af: int, *, udp_blocked: bool) -> None:
        raise RuntimeError("a defect")

    found = manager(SimpleNamespace(prepare=prepare))
    with caplog.at_level(logging.ERROR):
        prepare_relays(found, Plan((combination("turn", "relay"),)))
    assert found.stats["prepare_errors"] == 1


def test_it_is_prepared_all_the_same_when_asked_to() -> None:
    factory = Factory()
    plan = Plan((combination("udp_punch", "spray"), combination("turn", "relay")))
    prepare_relays(manager(factory), plan, anyway=True)
    assert factory.asked == [(IP4, False)]

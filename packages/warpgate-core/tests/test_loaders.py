"""How an installed strategy's attempts are made."""

from __future__ import annotations

from typing import ClassVar

import pytest

from warpgate.errors import PluginDefinitionError
from warpgate.net.constants import NIC_BIND, ROUTE_TYPES, TCP
from warpgate.plugin import Plugin
from warpgate.traversal.loaders import make_loader


class Good(Plugin):
    name, transport, phase = "good", "udp", "spray"
    conf: ClassVar = {"timeout": 3, "set_bind": True, "after_punching": True}

    async def run(self, reply=None):
        pass


class Factory:
    def __init__(self, build):
        self.build_plugin = build


def test_a_class_makes_an_instance_per_attempt_that_bears_the_installed_name():
    loader = make_loader("renamed", {"class": Good})
    first, second = loader.build(), loader.build()
    assert type(first) is Good
    assert first is not second
    assert first.name == "renamed"
    assert Good.name == "good"
    assert first.plugin_id != second.plugin_id


def test_timeout_and_set_bind_come_from_the_class_unless_given():
    loader = make_loader("good", {"class": Good})
    assert (loader.timeout, loader.set_bind, loader.build().timeout) == (3, True, 3)
    loader = make_loader("good", {"class": Good, "timeout": 0.5, "set_bind": False})
    assert (loader.timeout, loader.set_bind, loader.build().timeout) == (0.5, False, 0.5)


def test_the_plan_learns_what_it_must_know():
    info = make_loader("good", {"class": Good}).info()
    assert (info.name, info.phase, info.transport) == ("good", "spray", "udp")
    assert (info.route_types, info.after_punching) == (ROUTE_TYPES, True)


def test_a_strategy_may_make_the_other_transport_too():
    both = type("Both", (Good,), {"transports": ("udp", TCP)})
    info = make_loader("both", {"class": both}).info()
    assert (info.transport, info.transports) == ("udp", ("udp", "tcp"))
    assert [info.makes(each) for each in (None, "udp", "tcp")] == [True, True, True]
    only = make_loader("good", {"class": Good}).info()
    assert [only.makes(each) for each in (None, "udp", "tcp")] == [True, True, False]


def test_the_constant_tcp_is_a_transport_too():
    class Numbered(Good):
        transport, route_types = TCP, [NIC_BIND]

    info = make_loader("good", {"class": Numbered}).info()
    assert (info.transport, info.route_types) == ("tcp", (NIC_BIND,))


def test_a_factory_is_asked_for_every_attempt():
    loader = make_loader("made", {"class": Factory(Good)})
    assert isinstance(loader.build(), Good)
    assert loader.info().phase == "spray"
    assert loader.timeout == 3
    assert loader.cls is Good


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, '"class" is None'),
        ({"class": object}, "expected a Plugin subclass or an object with build_plugin"),
        ({"class": Good, "timeout": 0}, "timeout 0"),
        ({"class": Good, "timeout": "long"}, "timeout 'long'"),
        ({"class": Factory(lambda: 7)}, "returned 7; expected a Plugin instance"),
        ({"class": Factory(lambda: 1 / 0)}, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_installed(spec, text):
    with pytest.raises(PluginDefinitionError, match=text):
        make_loader("bad", spec)


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("transport", "sctp", "sctp"),
        ("transport", None, "transport"),
        ("phase", "sideways", "sideways"),
        ("route_types", (99,), "99"),
        ("transports", ("udp", "sctp"), "sctp"),
        ("transports", None, "not iterable"),
    ],
)
def test_so_is_a_class_with_a_wrong_attribute(attribute, value, text):
    bad = type("Bad", (Good,), {attribute: value})
    with pytest.raises(PluginDefinitionError, match=text):
        make_loader("bad", {"class": bad})


def test_an_init_without_super_is_told_how_to_mend_it():
    class Hasty(Good):
        def __init__(self):
            pass

    with pytest.raises(PluginDefinitionError, match=r"must call super\(\).__init__\(\)"):
        make_loader("hasty", {"class": Hasty}).build()


def test_a_factory_may_not_return_an_instance_that_is_in_use():
    one = Good()
    loader = make_loader("one", {"class": Factory(lambda: one)})
    loader.build().manager = object()
    with pytest.raises(PluginDefinitionError, match="in use"):
        loader.build()

"""The five hooks, their arguments and colours, and their documentation."""

from __future__ import annotations

import inspect

import pluggy
import pytest

from warpgate import hookspecs
from warpgate.hook_contract import SPECS, arguments_of, is_async

EXPECTED = {
    "warpgate_register_strategies": (("register",), False),
    "warpgate_node_starting": (("node",), True),
    "warpgate_signal_transport": (("node",), False),
    "warpgate_resolve_address": (("node", "address"), True),
    "warpgate_event": (("node", "event"), False),
}


def test_there_are_exactly_these_hooks():
    assert {name: (arguments_of(name), is_async(name)) for name in SPECS} == EXPECTED


def test_pluggy_knows_them_as_specifications():
    manager = pluggy.PluginManager("warpgate")
    manager.add_hookspecs(hookspecs)
    assert all(getattr(manager.hook, name).has_spec() for name in EXPECTED)
    assert {name for name in vars(manager.hook) if name.startswith("warpgate_")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_hook_says_when_it_fires_and_what_each_argument_is(name):
    text = inspect.getdoc(SPECS[name])
    assert "Fires" in text
    arguments = text.partition("Args:")[2]
    assert all(f"{argument}: " in arguments for argument in arguments_of(name))


def test_the_marker_marks_for_this_project():
    @hookspecs.hookimpl(tryfirst=True)
    def warpgate_event(event):
        pass

    assert warpgate_event.warpgate_impl["tryfirst"] is True

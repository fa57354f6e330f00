"""The Plugin base class: defaults, helpers, and the class contract."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import pytest

from warpgate import (
    EXT_BIND,
    IP4,
    LOOPBACK_BIND,
    NIC_BIND,
    TCP,
    UDP,
    ConMsg,
    Plugin,
    ProtoMsg,
    register,
)
from warpgate.contract import check_api, check_strategy
from warpgate.errors import LocalProtocolError, PluginDefinitionError, PluginIncompatibleError


@pytest.fixture(autouse=True)
def _restored():
    from warpgate import plugin_registry

    before = list(plugin_registry)
    yield
    plugin_registry[:] = before


class Message(ConMsg):
    """A message of the strategy below."""


class Bare(ProtoMsg):
    """A message that is no ConMsg."""


async def run(self, reply=None):
    """Fail at once."""
    self.result.set_result(None)


def make(**attributes):
    """Return a complete strategy with some attributes replaced, or left out with ``...``."""
    complete = {"name": "mine", "transport": "tcp", "run": run, "phase": "direct", **attributes}
    return type("Mine", (Plugin,), {k: v for k, v in complete.items() if v is not ...})


# Defaults.


def test_the_defaults_of_the_class():
    assert Plugin.route_types == (NIC_BIND, EXT_BIND, LOOPBACK_BIND)
    assert Plugin.conf == {"timeout": 10, "set_bind": False}
    assert Plugin.proto_messages == ()
    assert Plugin.phase is None
    assert not hasattr(Plugin, "name")
    assert not hasattr(Plugin, "transport")


def test_an_instance_has_an_id_of_its_own_and_its_timeout():
    ids = {make()().plugin_id for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("[A-Za-z0-9]{15}", plugin_id) for plugin_id in ids)
    assert make(conf={"timeout": 3})().timeout == 3
    assert make(conf={})().timeout == 10
    plugin = make()()
    assert (plugin.af, plugin.initiator, plugin.same_machine) == (IP4, True, False)


async def test_without_a_manager_the_result_is_a_plain_future():
    plugin = make()()
    assert type(plugin.result) is type(asyncio.get_running_loop().create_future())
    assert plugin.result is plugin.result
    await plugin.run()
    assert await plugin.result is None
    other = asyncio.get_running_loop().create_future()
    plugin.result = other
    assert plugin.result is other


def test_an_instance_can_be_made_without_a_loop():
    assert make()().name == "mine"


async def test_the_usual_setup_gives_the_class_and_the_usual_run_says_what_is_missing():
    cls = make(run=...)
    assert await cls.setup(None) is cls
    with pytest.raises(PluginDefinitionError, match="Mine does not override run"):
        await cls().run()


# Helpers.


class Manager:
    def __init__(self):
        self.calls = []

    def register_inbound(self, plugin):
        self.calls.append(("register_inbound", plugin))

    async def wait_for_inbound(self, plugin):
        self.calls.append(("wait_for_inbound", plugin))
        return "pipe"

    async def send_signal(self, plugin, msg):
        self.calls.append(("send_signal", plugin, msg))


async def test_the_helpers_ask_the_manager():
    plugin, message = make()(), Message()
    plugin.manager = manager = Manager()
    assert plugin.register_inbound() is None
    assert manager.calls == [("register_inbound", plugin)]
    assert await plugin.wait_for_inbound() == "pipe"
    await plugin.send_signal_msg(message)
    assert manager.calls[1:] == [("wait_for_inbound", plugin), ("send_signal", plugin, message)]
    assert await plugin.close() is None


async def test_without_a_manager_the_helpers_say_what_is_missing():
    plugin = make()()
    with pytest.raises(LocalProtocolError, match="not created by a node"):
        plugin.register_inbound()
    for call in (plugin.wait_for_inbound(), plugin.send_signal_msg(Message())):
        with pytest.raises(LocalProtocolError, match="not created by a node"):
            await call


class Route:
    def __init__(self, af):
        self.af = af

    async def bind(self, port, ip):
        return (self.af, port, ip)


@pytest.mark.parametrize(
    ("source", "ip"),
    [("10.0.0.2", "10.0.0.2"), ("203.0.113.9", "10.0.0.1"), (None, "10.0.0.1")],
)
async def test_bind_takes_an_address_that_the_interface_bears(source, ip):
    plugin = make()()
    plugin.nic = SimpleNamespace(
        addresses=[SimpleNamespace(ip="10.0.0.1"), SimpleNamespace(ip="10.0.0.2")],
        route=Route,
    )
    plugin.src_info = {"ip": source, "nic": "10.0.0.1"}
    assert await plugin.bind(port=5000) == (IP4, 5000, ip)


# The class contract.


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"phase": None},
        {"transport": "UDP"},
        {"transport": TCP},
        {"transport": UDP},
        {"name": "x" * 64},
        {"name": "My-Strategy_2"},
        {"route_types": [NIC_BIND]},
        {"transports": ("udp", TCP)},
        {"route_types": (), "phase": None},
        {"conf": {}},
        {"conf": {"timeout": 0.5, "set_bind": True, "own": object()}},
        {"proto_messages": ((Message, 99, 18), (Bare, 0, 0.5))},
        {"proto_messages": [[Message, 99, 18]]},
    ],
    ids=str,
)
def test_what_keeps_the_contract(attributes):
    check_strategy(make(**attributes))


LOOKALIKE = type("Message", (ConMsg,), {})


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"name": ...}, "has no name"),
        ({"name": None}, "has no name"),
        ({"name": ""}, "name ''"),
        ({"name": 5}, "name 5"),
        ({"name": "two words"}, "'two words'"),
        ({"name": "a,b"}, "'a,b'"),
        ({"name": "a.b"}, "'a.b'"),
        ({"name": "x" * 65}, "xxx"),
        ({"name": "umläut"}, "umläut"),
        ({"name": "line\n"}, "name"),
        ({"transport": ...}, "has no transport"),
        ({"transport": "sctp"}, "'sctp'"),
        ({"transport": 99}, "99"),
        ({"transport": None}, "None"),
        ({"phase": "later"}, "phase 'later'"),
        ({"phase": ...}, "has no phase"),
        ({"route_types": ()}, "route_types ()"),
        ({"route_types": (77,)}, "77"),
        ({"transports": "udp"}, "transports is a str"),
        ({"transports": ("udp", "sctp")}, "sctp"),
        ({"transports": ("udp",)}, "lacks its transport tcp"),
        ({"route_types": NIC_BIND}, "route_types"),
        ({"route_types": ("NIC_BIND",)}, "route_types"),
        ({"conf": None}, "conf"),
        ({"conf": {"timeout": 0}}, "timeout 0"),
        ({"conf": {"timeout": -1}}, "timeout -1"),
        ({"conf": {"timeout": "10"}}, "timeout '10'"),
        ({"conf": {"timeout": True}}, "timeout True"),
        ({"conf": {"timeout": float("inf")}}, "timeout inf"),
        ({"conf": {"timeout": float("nan")}}, "timeout nan"),
        ({"conf": {"set_bind": 1}}, "set_bind 1"),
        ({"proto_messages": None}, "proto_messages"),
        ({"proto_messages": (Message, 99, 18)}, "proto_messages"),
        ({"proto_messages": ((Message, 99),)}, "proto_messages"),
        ({"proto_messages": ((dict, 99, 18),)}, "class dict"),
        ({"proto_messages": ((Message(), 99, 18),)}, "a Message"),
        ({"proto_messages": ((Message, "99", 18),)}, "'99'"),
        ({"proto_messages": ((Message, 99, 0),)}, "ttl 0"),
        ({"proto_messages": ((Message, 99, 18), (LOOKALIKE, 98, 18))}, "called Message"),
        (
            {"proto_messages": ((type("M" * 120, (ConMsg,), {}), 99, 18),), "name": "x" * 20},
            "128 bytes",
        ),
        ({"run": ...}, "has no run"),
        ({"run": lambda self, reply=None: None}, "no coroutine function"),
        ({"run": None}, "no coroutine function"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_breaks_the_contract_is_named_with_its_mend(attributes, text):
    with pytest.raises(PluginDefinitionError) as caught:
        check_strategy(make(**attributes))
    assert "Mine" in str(caught.value)
    assert text in str(caught.value)
    assert caught.value.__notes__


async def _no_reply(self):
    """Take no reply."""


async def _needs_reply(self, reply):
    """Take a reply that the first call does not have."""


async def _needs_more(self, reply, more):
    """Take what nobody gives."""


@pytest.mark.parametrize("bad", [_no_reply, _needs_reply, _needs_more])
def test_run_must_accept_both_calls(bad):
    with pytest.raises(PluginDefinitionError, match="can't be called with a reply"):
        check_strategy(make(run=bad))


def test_an_asynchronous_generator_is_no_coroutine_function():
    async def generator(self, reply=None):
        yield

    with pytest.raises(PluginDefinitionError, match="no coroutine function"):
        check_strategy(make(run=generator))


def test_a_factory_may_leave_run_to_the_class_that_it_builds():
    async def setup(cls, node):
        return None

    check_strategy(make(run=..., setup=classmethod(setup)))
    with pytest.raises(PluginDefinitionError, match="setup is no asynchronous class method"):
        check_strategy(make(setup=setup))
    with pytest.raises(PluginDefinitionError, match="setup is no asynchronous class method"):
        check_strategy(make(setup=classmethod(lambda cls, node: None)))


def test_register_completes_a_class_and_a_subclass_inherits_its_phase():
    cls = register(phase="punch")(make(phase=...))
    check_strategy(cls)
    check_strategy(type("Derived", (cls,), {"name": "derived"}))


@pytest.mark.parametrize("thing", [object, SimpleNamespace(), "text", None, int])
def test_what_is_no_plugin(thing):
    with pytest.raises(PluginDefinitionError, match="is not a Plugin subclass"):
        check_strategy(thing)


@pytest.mark.parametrize("wanted", [0, 2])
def test_another_version_of_the_interface_is_incompatible(wanted):
    with pytest.raises(PluginIncompatibleError, match=f"version {wanted} .* has 1"):
        check_api(make(api=wanted), 1)
    check_api(make(api=1), 1)
    check_api(make(), 1)

"""Calling hooks: order, guarding, awaiting, and the refusal of what does not fit."""

from __future__ import annotations

import asyncio
import types

import pytest

from warpgate import hookimpl
from warpgate.errors import KeyChangedError, PluginDefinitionError
from warpgate.events import Counters, Dropped
from warpgate.hooks import HOOK_ERRORS, Hooks, LoadedObject

EVENT = Dropped("some", "thing")
NODE = object()


def module(name="a_module", **functions):
    made = types.ModuleType(name)
    for key, function in functions.items():
        function.__module__ = name
        setattr(made, key, function)
    return made


class Recorder:
    """Answers every hook and notes who was asked."""

    def __init__(self, name, calls, answer=None):
        self.name, self.calls, self.answer = name, calls, answer

    @hookimpl
    def warpgate_register_strategies(self, register):
        self.calls.append((self.name, register))

    @hookimpl
    async def warpgate_node_starting(self, node):
        await asyncio.sleep(0)
        self.calls.append((self.name, node))
        return self.answer

    @hookimpl
    def warpgate_signal_transport(self, node):
        self.calls.append((self.name, node))
        return self.answer

    @hookimpl
    async def warpgate_resolve_address(self, node, address):
        await asyncio.sleep(0)
        self.calls.append((self.name, node, address))
        return self.answer

    @hookimpl
    def warpgate_event(self, node, event):
        self.calls.append((self.name, node, event))


class Raiser:
    """Raises from every hook."""

    def __init__(self, error):
        self.error = error

    @hookimpl
    async def warpgate_node_starting(self):
        raise self.error

    @hookimpl
    def warpgate_signal_transport(self):
        raise self.error

    @hookimpl
    async def warpgate_resolve_address(self):
        raise self.error

    @hookimpl
    def warpgate_event(self):
        raise self.error


def three(answers=(None, None, None)):
    calls = []
    return calls, [
        Recorder(name, calls, answer) for name, answer in zip("abc", answers, strict=True)
    ]


def test_notify_reaches_every_observer_with_node_and_event():
    calls, recorders = three()
    Hooks(recorders).notify(NODE, EVENT)
    assert calls == [(name, NODE, EVENT) for name in "cba"]


def test_a_raising_observer_is_counted_and_keeps_no_other_from_being_called(caplog):
    calls, (first, *others) = three()
    counters = Counters()
    hooks = Hooks([first, Raiser(ValueError("observer's own")), *others], counters)
    hooks.notify(NODE, EVENT)
    assert [name for name, *_ in calls] == ["c", "b", "a"]
    assert counters == {HOOK_ERRORS: 1}
    assert "observer's own" in caplog.text
    assert "warpgate_event" in caplog.text


def test_tryfirst_and_trylast_order_implementations():
    order = []

    def observer(name, **options):
        @hookimpl(**options)
        def warpgate_event():
            order.append(name)

        return module(name, warpgate_event=warpgate_event)

    hooks = Hooks(
        [
            observer("first", tryfirst=True),
            observer("a"),
            observer("b"),
            observer("last", trylast=True),
        ]
    )
    hooks.notify(NODE, EVENT)
    assert order == ["first", "b", "a", "last"]


def test_implementations_may_take_fewer_arguments_in_any_order():
    seen = []

    @hookimpl
    def warpgate_event(event):
        seen.append(event)

    @hookimpl(specname="warpgate_event")
    def swapped(event, node, extra="default"):
        seen.append((event, node, extra))

    Hooks([module("m", warpgate_event=warpgate_event, swapped=swapped)]).notify(NODE, EVENT)
    assert sorted(map(repr, seen)) == sorted(map(repr, [EVENT, (EVENT, NODE, "default")]))


async def test_first_awaits_in_turn_and_stops_at_a_result():
    calls, recorders = three(("from a", "from b", None))
    result = await Hooks(recorders).first("warpgate_resolve_address", node=NODE, address="alice")
    assert result == "from b"
    assert calls == [("c", NODE, "alice"), ("b", NODE, "alice")]


async def test_first_without_a_result_is_none():
    assert await Hooks().first("warpgate_resolve_address", node=NODE, address="x") is None
    calls, recorders = three()
    assert await Hooks(recorders).first("warpgate_resolve_address", node=NODE, address="x") is None
    assert len(calls) == 3


async def test_first_passes_over_a_failure_but_not_over_an_error_raised_on_purpose():
    calls, recorders = three((b"address", None, None))
    counters = Counters()
    hooks = Hooks([*recorders, Raiser(OSError("down"))], counters)
    assert await hooks.first("warpgate_resolve_address", node=NODE, address="x") == b"address"
    assert counters == {HOOK_ERRORS: 1}
    hooks = Hooks([*recorders, Raiser(KeyChangedError("other key"))], counters)
    with pytest.raises(KeyChangedError):
        await hooks.first("warpgate_resolve_address", node=NODE, address="x")
    assert len(calls) == 3


async def test_each_awaits_all_in_turn_and_passes_over_failures():
    calls, recorders = three((1, None, 3))
    counters = Counters()
    hooks = Hooks([*recorders, Raiser(KeyChangedError("even this"))], counters)
    assert await hooks.each("warpgate_node_starting", node=NODE) == [3, 1]
    assert calls == [(name, NODE) for name in "cba"]
    assert counters == {HOOK_ERRORS: 1}


@pytest.mark.parametrize("method", ["first", "each"])
async def test_a_cancellation_is_not_swallowed(method):
    reached = asyncio.Event()

    @hookimpl
    async def warpgate_node_starting():
        reached.set()
        await asyncio.Event().wait()

    hooks = Hooks([module("m", warpgate_node_starting=warpgate_node_starting)])
    task = asyncio.create_task(getattr(hooks, method)("warpgate_node_starting", node=NODE))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hooks.counters == {}


def test_first_sync_stops_at_a_result_and_passes_over_failures():
    calls, recorders = three(("from a", "from b", None))
    hooks = Hooks([*recorders, Raiser(OSError("down"))])
    assert hooks.first_sync("warpgate_signal_transport", node=NODE) == "from b"
    assert calls == [("c", NODE), ("b", NODE)]
    assert hooks.counters == {HOOK_ERRORS: 1}
    hooks.register(Raiser(KeyChangedError("on purpose")))
    with pytest.raises(KeyChangedError):
        hooks.first_sync("warpgate_signal_transport", node=NODE)


def test_register_strategies_implementations_can_be_walked_with_their_owner():
    calls, recorders = three()
    walked = list(Hooks(recorders).implementations("warpgate_register_strategies"))
    assert [implementation.plugin.name for implementation in walked] == ["c", "b", "a"]
    assert [implementation.argnames for implementation in walked] == [("register",)] * 3
    walked[0].function(print)
    assert calls == [("c", print)]


def test_the_same_object_counts_once():
    calls, (recorder, *_) = three()
    loaded = LoadedObject(recorder, "dist", "1.0", "point")
    Hooks([loaded, recorder, loaded]).notify(NODE, EVENT)
    assert len(calls) == 1


def test_a_loaded_object_is_known_by_its_provenance():
    _, (recorder, *_) = three()
    hooks = Hooks([LoadedObject(recorder, "dist", "1.0", "point")])
    assert hooks.pm.get_name(recorder) == "dist:point"


def test_two_nodes_hooks_are_apart():
    calls, (recorder, *_) = three()
    Hooks([recorder])
    Hooks().notify(NODE, EVENT)
    assert calls == []


def _wrong():
    @hookimpl
    def warpgate_evnt(event):
        pass

    @hookimpl
    def node_starting(node):
        pass

    @hookimpl
    def warpgate_event(evnt):
        pass

    @hookimpl(specname="warpgate_event")
    def other_argument(quite_different):
        pass

    @hookimpl(specname="warpgate_event")
    async def asynchronous(event):
        pass

    @hookimpl(specname="warpgate_node_starting")
    def synchronous(node):
        pass

    @hookimpl(specname="warpgate_event", wrapper=True)
    def wrapper(event):
        yield

    @hookimpl(specname="warpgate_event")
    def keyword_only(*, event):
        pass

    def warpgate_resolve_adress(node):
        pass

    def warpgate_node_starting(node):
        pass

    return [
        ("warpgate_evnt", warpgate_evnt, "did you mean warpgate_event?"),
        ("node_starting", node_starting, "did you mean warpgate_node_starting?"),
        ("warpgate_event", warpgate_event, "did you mean 'event'?"),
        ("other", other_argument, "the hook is warpgate_event(node, event)"),
        ("asynchronous", asynchronous, "write def warpgate_event"),
        ("synchronous", synchronous, "write async def warpgate_node_starting"),
        ("wrapper", wrapper, "wrappers are not supported"),
        ("keyword_only", keyword_only, "drop the *"),
        (
            "warpgate_resolve_adress",
            warpgate_resolve_adress,
            "did you mean warpgate_resolve_address?",
        ),
        (
            "warpgate_node_starting",
            warpgate_node_starting,
            "put @hookimpl on warpgate_node_starting",
        ),
    ]


@pytest.mark.parametrize(("name", "function", "mend"), _wrong(), ids=[w[0] for w in _wrong()])
def test_what_does_not_fit_is_refused(name, function, mend):
    hooks = Hooks()
    with pytest.raises(PluginDefinitionError) as caught:
        hooks.register(module("m", **{name: function}))
    assert mend in caught.value.__notes__[0]
    assert not hooks.pm.get_plugins()


def test_unmarked_functions_of_other_modules_and_other_things_are_left_alone():
    def warpgate_utility():
        pass

    made = module("m")
    made.warpgate_utility = warpgate_utility
    made.warpgate_plugin_something = types.ModuleType("warpgate_plugin_something")
    made.warpgate_setting = 5
    Hooks([made])


def test_an_optional_hook_may_be_unknown():
    @hookimpl(optionalhook=True)
    def warpgate_of_a_later_version(node):
        pass

    Hooks([module("m", warpgate_of_a_later_version=warpgate_of_a_later_version)]).notify(
        NODE, EVENT
    )


def test_static_and_class_methods_are_implementations_too():
    seen = []

    class Watcher:
        @staticmethod
        @hookimpl
        def warpgate_event(event):
            seen.append(event)

        @hookimpl(specname="warpgate_event")
        @classmethod
        def also(cls, event):
            seen.append(cls)

    Hooks([Watcher()]).notify(NODE, EVENT)
    assert sorted(map(str, seen)) == sorted(map(str, [EVENT, Watcher]))


def test_properties_are_not_run_while_looking_for_hooks():
    class Careful:
        @property
        def warpgate_something(self):
            raise AssertionError("evaluated")

        @hookimpl
        def warpgate_event(self):
            pass

    Hooks([Careful()]).notify(NODE, EVENT)

"""``auto_connect``: from an address to a proven pipe, or to the reason why there is none."""

from __future__ import annotations

import asyncio
import socket

import pytest

from warpgate.errors import (
    ConfigError,
    InvalidAddressError,
    KeyChangedError,
    NoPathError,
    NoSharedFamilyError,
    UnknownPeerError,
)
from warpgate.events import ConnectFinished, ConnectStarted
from warpgate.hookspecs import hookimpl
from warpgate.net.constants import EXT_BIND, IP4, IP6, LOOPBACK_BIND, NIC_BIND, TCP, UDP
from warpgate.node import auto_connect as auto_connect_module
from warpgate.node.auto_connect import auto_connect, connect
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.plugin import Plugin
from warpgate.protocol.proto_msg import ConMsg
from warpgate.testing import LeakCheck, Stage, open_descriptors
from warpgate.traversal.report import SkipReason

MARGIN_S = 0.050


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


class Ask(Plugin):
    """Asks the peer to dial this node."""

    name, transport, phase = "ask", "tcp", "direct"

    async def run(self, reply=None):
        self.register_inbound()
        msg = ConMsg()
        msg.meta.plugin_name = "dial"
        await self.send_signal_msg(msg)
        self.result.set_result(await self.wait_for_inbound())


class Refuse(Plugin):
    name, transport, phase = "refuse", "tcp", "direct"

    async def run(self, reply=None):
        raise ConnectionRefusedError("nobody is at home")


class Hang(Plugin):
    """Pends, with a socket in its hands."""

    name, transport, phase = "hang", "udp", "direct"

    async def run(self, reply=None):
        pipe = await (await self.bind()).datagram()
        try:
            await asyncio.Event().wait()
        finally:
            await pipe.close()


def variant(base, name, **attributes):
    return type(name.title(), (base,), {"name": name, **attributes})


async def loopback_pair(*strategies, conf=None):
    """Start two nodes outside of the fixtures, for virtual time."""
    nodes = []
    for _ in range(2):
        node = Node(ip="127.0.0.1", conf={**NODE_TEST_CONF, **(conf or {})})
        await node.start()
        for cls in strategies:
            node.traversal.install_plugin(cls.name, {"class": cls})
        nodes.append(node)
    return nodes


def timed(virtual, *strategies, conf=None, **arguments):
    """Run ``auto_connect`` in virtual time; return how long it took, its result and its report."""

    async def main():
        alice, bob = await loopback_pair(*strategies, conf=conf)
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await auto_connect(alice, bob.address(), **arguments)
        took = loop.time() - began
        report = alice.last_report
        await alice.close()
        await bob.close()
        return took, found, report

    with Stage():
        return virtual(main())


# Success.


async def test_it_returns_a_proven_pipe_and_the_plugin(start):
    alice, bob = await start(Dial), await start()
    pipe, plugin = await auto_connect(alice, bob.address())
    assert isinstance(plugin, Dial)
    assert (pipe.peer_id, pipe.plugin_name, pipe.path) == (bob.node_id, "dial", "direct")
    assert (pipe.sealed, pipe.inbound) == (True, False)
    assert pipe.report is alice.last_report
    assert alice.last_report.winner.strategy == "dial"
    assert alice.last_report.error is None
    assert alice.last_report.peer_id == bob.node_id
    assert str(alice.last_report).startswith("connected by dial")
    assert (await bob.accept()).peer_id == alice.node_id


@pytest.mark.parametrize("form", ["bytes", "text", "object", "nickname"])
async def test_every_form_of_a_destination(start, form):
    class Names:
        @hookimpl
        async def warpgate_resolve_address(self, node, address):
            return bob.address() if address == "bob" else None

    alice, bob = await start(Dial), await start()
    alice.hooks.register(Names())
    address = bob.peer_address
    dest = {"bytes": address.raw, "text": address.to_text(), "object": address, "nickname": "bob"}
    pipe, _ = await auto_connect(alice, dest[form])
    assert pipe.peer_id == bob.node_id


async def test_connect_returns_the_pipe(start):
    alice, bob = await start(Dial), await start()
    pipe = await connect(alice, bob.address(), transport="tcp")
    assert pipe.peer_id == bob.node_id


async def test_a_pipe_of_phase_relay_has_the_path_relay(start):
    alice, bob = await start(variant(Dial, "relayed", phase="relay")), await start()
    pipe, _ = await auto_connect(alice, bob.address())
    assert pipe.path == "relay"


async def test_the_peer_may_dial(start):
    alice, bob = await start(Ask), await start(Dial)
    pipe, plugin = await auto_connect(alice, bob.address())
    assert (plugin.name, pipe.plugin_name, pipe.inbound) == ("ask", "ask", False)
    there = await bob.accept()
    assert (there.peer_id, there.inbound) == (alice.node_id, True)
    await pipe.send(b"hello")
    assert await there.recv() == b"hello"


async def test_both_sides_may_call_at_once(start):
    alice, bob = await start(Dial, Ask), await start(Dial, Ask)
    (one, _), (two, _) = await asyncio.gather(
        auto_connect(alice, bob.address()), auto_connect(bob, alice.address())
    )
    assert (one.peer_id, two.peer_id) == (bob.node_id, alice.node_id)
    for pipe, node in ((one, bob), (two, alice)):
        there = await node.accept()
        await pipe.send(b"each its own")
        assert await there.recv() == b"each its own"


async def test_many_at_once(start):
    alice, bob = await start(Dial), await start()
    found = await asyncio.gather(*(auto_connect(alice, bob.address()) for _ in range(40)))
    assert {pipe.peer_id for pipe, _ in found} == {bob.node_id}
    for pipe, _ in found:
        await pipe.close()


async def test_observers_hear_of_begin_and_end(start):
    events = []

    class Observer:
        @hookimpl
        def warpgate_event(self, node, event):
            events.append(event)

    alice, bob = await start(Dial), await start()
    alice.hooks.register(Observer())
    await auto_connect(alice, bob.address())
    started = next(event for event in events if isinstance(event, ConnectStarted))
    assert (started.peer_id, started.combinations) == (bob.node_id, 1)
    (finished,) = [event for event in events if isinstance(event, ConnectFinished)]
    assert (finished.peer_id, finished.strategy) == (bob.node_id, "dial")


# The losers.


async def test_when_it_returns_every_loser_has_ended(start):
    log = []

    class Loser(Plugin):
        name, transport, phase = "loser", "tcp", "direct"

        async def run(self, reply=None):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                log.append("run ended")

        async def close(self):
            await asyncio.sleep(0)
            log.append("closed")

    alice, bob = await start(Loser, Dial), await start()
    await auto_connect(alice, bob.address())
    assert log == ["run ended", "closed"]
    assert alice.traversal.plugins == {}
    assert [o.status for o in alice.last_report.outcomes] == ["lost", "won"]


async def test_and_its_sockets_are_closed(start):
    alice, bob = await start(Hang, Dial), await start()
    before = set(open_descriptors())
    pipe, _ = await auto_connect(alice, bob.address())
    there = await bob.accept()
    await asyncio.sleep(0)
    new = {key: text for key, text in open_descriptors().items() if key not in before}
    ends = {pipe.local, there.local}
    assert all(any(str(end) in text for end in ends) for text in new.values()), new
    assert len(new) == 2


def test_a_close_over_30_ms_moves_to_the_reaper_which_node_close_awaits(virtual):
    closed = []

    class Slow(Refuse):
        name = "slow"

        async def close(self):
            await asyncio.sleep(1.5)
            closed.append(asyncio.get_running_loop().time())

    async def main():
        alice, bob = await loopback_pair(Slow)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await auto_connect(alice, bob.address()) == (None, None)
        took = loop.time() - began
        assert alice.stats["closes_reaped"] == 1
        assert not closed
        await alice.close()
        assert closed == [pytest.approx(began + 1.5)]
        await bob.close()
        return took

    with Stage():
        assert virtual(main()) == pytest.approx(0.030, abs=0.001)


# Time.


@pytest.mark.parametrize("timeout_s", [0, 0.2, 1, 5])
def test_it_returns_by_its_time_out_whatever_happens(virtual, timeout_s):
    async def stuck(self):
        await asyncio.Event().wait()

    stubborn = variant(Hang, "stubborn", close=stuck)
    took, found, report = timed(virtual, Hang, stubborn, timeout=timeout_s)
    assert found == (None, None)
    assert timeout_s <= took <= timeout_s + MARGIN_S
    assert isinstance(report.error, NoPathError)
    assert f"{timeout_s:g} s were up" in str(report.error)


def test_a_peer_that_swallows_everything_is_no_exception(virtual):
    async def main():
        hole = socket.socket()
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = []
        for _ in range(3):
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(hole.getsockname())

        class IntoTheHole(Dial):
            async def run(self, reply=None):
                route = await self.bind()
                self.result.set_result(await route.connect(hole.getsockname(), TCP))

        alice, bob = await loopback_pair(IntoTheHole)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with LeakCheck():
            assert await auto_connect(alice, bob.address(), timeout=2) == (None, None)
            took = loop.time() - began
        await alice.close()
        await bob.close()
        for sock in (hole, *fillers):
            sock.close()
        return took

    with Stage():
        assert 2 <= virtual(main()) <= 2 + MARGIN_S


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_resolver_that_clings_does_not_hold_it_up(virtual, cancelled):
    class Clings:
        cancellations = 0

        @hookimpl
        async def warpgate_resolve_address(self, node, address):
            while self.cancellations < 2:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancellations += 1

    async def main():
        alice, bob = await loopback_pair(Dial)
        clings = Clings()
        alice.hooks.register(clings)
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = asyncio.create_task(auto_connect(alice, "somebody", timeout=1))
        if cancelled:
            loop.call_later(1, call.cancel)
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            assert await call == (None, None)
            assert "not resolved within 1 s" in str(alice.last_report.error)
        took = loop.time() - began
        assert clings.cancellations == 1
        assert alice.stats["resolvers_stuck"] == 1
        async with LeakCheck():
            await alice.close()
        assert clings.cancellations == 2
        await bob.close()
        return took

    with Stage():
        assert 1 <= virtual(main()) <= 1 + MARGIN_S


async def test_a_resolver_that_cancels_itself_is_a_reason(start):
    class Cancels:
        @hookimpl
        async def warpgate_resolve_address(self, node, address):
            raise asyncio.CancelledError

    alice = await start(Dial)
    alice.hooks.register(Cancels())
    await fails(alice, "somebody", NoPathError, "cancelled from within")


def test_a_resolver_that_hangs_does_not_hold_it_up(virtual):
    class Slow:
        @hookimpl
        async def warpgate_resolve_address(self, node, address):
            await asyncio.Event().wait()

    async def main():
        alice, bob = await loopback_pair(Dial)
        alice.hooks.register(Slow())
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await auto_connect(alice, "somebody", timeout=1) == (None, None)
        took = loop.time() - began
        assert "'somebody' was not resolved within 1 s" in str(alice.last_report.error)
        await alice.close()
        await bob.close()
        return took

    with Stage():
        assert virtual(main()) <= 1 + MARGIN_S


def test_the_phases_begin_after_their_head_starts(virtual):
    hang = {
        "direct": variant(Hang, "a_direct"),
        "punch": variant(Hang, "a_punch", phase="punch", transport="tcp"),
        "spray": variant(Hang, "a_spray", phase="spray"),
        "late": variant(Hang, "a_probe", phase="spray", conf={"after_punching": True}),
        "relay": variant(Hang, "a_relay", phase="relay"),
    }
    _, _, report = timed(virtual, *reversed(hang.values()), timeout=5, route_types=[LOOPBACK_BIND])
    assert {o.strategy: round(o.started_s, 3) for o in report.outcomes} == {
        "a_direct": 0,
        "a_punch": 0.05,
        "a_spray": 0.35,
        "a_relay": 3,
    }
    assert {s.strategy for s in report.skips if s.reason is SkipReason.NO_TIME} == {"a_probe"}


def test_nobody_waits_for_phases_that_have_ended(virtual):
    strategies = [
        variant(Refuse, "a_direct"),
        variant(Refuse, "a_punch", phase="punch"),
        variant(Refuse, "a_spray", phase="spray"),
        variant(Refuse, "a_relay", phase="relay"),
    ]
    took, _, report = timed(virtual, *strategies, timeout=5)
    assert took < MARGIN_S
    assert [o.strategy for o in report.outcomes] == ["a_direct", "a_punch", "a_spray", "a_relay"]


def test_relay_after(virtual):
    strategies = [Hang, variant(Hang, "a_relay", phase="relay")]
    _, _, report = timed(virtual, *strategies, conf={"relay_after": 1.5}, timeout=2)
    assert round(report.outcomes[1].started_s, 3) == 1.5


def test_relay_never(virtual):
    strategies = [Refuse, variant(Hang, "a_relay", phase="relay")]
    took, _, report = timed(virtual, *strategies, conf={"relay": "never"}, timeout=9)
    assert took < MARGIN_S
    assert {o.strategy for o in report.outcomes} == {"refuse"}
    assert SkipReason.RELAY_NEVER in {s.reason for s in report.skips if s.strategy == "a_relay"}


def test_relay_prefer(virtual):
    strategies = [Hang, variant(Hang, "a_relay", phase="relay")]
    _, _, report = timed(virtual, *strategies, conf={"relay": "prefer"}, timeout=4)
    assert [(o.strategy, round(o.started_s)) for o in report.outcomes] == [
        ("a_relay", 0),
        ("hang", 3),
    ]


def test_turn_limit(virtual):
    relay = variant(Refuse, "a_relay", phase="relay")
    for limit, made in ((0, 0), (1, 1)):
        _, _, report = timed(virtual, relay, turn_limit=limit, timeout=4)
        assert len(report.outcomes) == made
        assert SkipReason.RELAY_LIMIT in {s.reason for s in report.skips} or limit


# What the caller narrows.


async def test_the_caller_narrows_what_is_tried(start):
    alice, bob = await start(Refuse, Hang), await start()
    await auto_connect(alice, bob.address(), plugins=["refuse"], route_types=[LOOPBACK_BIND])
    assert [(o.strategy, o.route_type) for o in alice.last_report.outcomes] == [
        ("refuse", LOOPBACK_BIND)
    ]
    for transport in ("tcp", TCP):
        await auto_connect(alice, bob.address(), transport=transport)
        assert {o.strategy for o in alice.last_report.outcomes} == {"refuse"}
    await auto_connect(alice, bob.address(), transport=UDP, timeout=0.01)
    assert {o.strategy for o in alice.last_report.outcomes} == {"hang"}
    await auto_connect(alice, bob.address(), afs=(IP4,), plugins=("refuse",))
    assert {o.af for o in alice.last_report.outcomes} == {IP4}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"plugins": ["dail"]}, "'dail' is not installed; installed: dial, fan_out"),
        ({"plugins": "dial"}, "no list"),
        ({"plugins": [7]}, "7"),
        ({"transport": "sctp"}, "sctp"),
        ({"afs": [99]}, "99"),
        ({"afs": IP4}, "no list"),
        ({"afs": ["IPv4"]}, "'IPv4'"),
        ({"route_types": [NIC_BIND, 4]}, "4; expected some of"),
        ({"route_types": EXT_BIND}, "no list"),
        ({"afs": []}, "afs is empty"),
        ({"route_types": ()}, "route_types is empty"),
        ({"plugins": []}, "plugins is empty"),
        *[({"timeout": v}, "timeout=") for v in (None, "5", -1, float("nan"), True)],
        *[({"turn_limit": v}, "turn_limit=") for v in (None, "3", -1, 1.5, True)],
    ],
)
async def test_unknown_names_are_config_errors(start, arguments, text):
    alice, bob = await start(Dial), await start()
    with pytest.raises(ConfigError, match=text) as caught:
        await auto_connect(alice, bob.address(), **arguments)
    assert alice.last_report.error is caught.value


async def test_auxiliaries_are_never_dispatched(start):
    alice, bob = await start(), await start()
    found = await auto_connect(alice, bob.address(), plugins=["get_addr", "fan_out"])
    assert found == (None, None)
    assert alice.last_report.outcomes == []


# Failure.


@pytest.mark.parametrize("dest", [b"", b"nonsense", "wg1_nonsense", "", None])
async def test_what_is_not_an_address_raises(start, dest):
    alice = await start(Dial)
    with pytest.raises(InvalidAddressError):
        await auto_connect(alice, dest)
    assert isinstance(alice.last_report.error, InvalidAddressError)


async def test_a_changed_key_raises(start):
    class Pins:
        @hookimpl
        async def warpgate_resolve_address(self, node, address):
            raise KeyChangedError("another key than the pinned one")

    alice = await start(Dial)
    alice.hooks.register(Pins())
    with pytest.raises(KeyChangedError):
        await auto_connect(alice, "bob")
    assert isinstance(alice.last_report.error, KeyChangedError)


async def fails(alice, dest, error, text, **arguments):
    """Check that there is no pipe for the reason given, and that ``connect`` raises it."""
    assert await auto_connect(alice, dest, **arguments) == (None, None)
    assert type(alice.last_report.error) is error
    assert text in str(alice.last_report.error)
    with pytest.raises(error):
        await connect(alice, dest, **arguments)


async def test_an_unknown_nickname(start):
    await fails(await start(Dial), "nobody", UnknownPeerError, "nobody")


async def test_no_shared_family(start, make_address):
    alice = await start(Dial)
    six = make_address(["::1"])
    await fails(alice, six, NoSharedFamilyError, "here IPv4, there IPv6")
    bob = await start()
    await fails(alice, bob.address(), NoSharedFamilyError, "asked for IPv6", afs=[IP6])


async def test_no_strategy_installed(start):
    alice, bob = await start(), await start()
    await fails(alice, bob.address(), NoPathError, "pip install warpgate-plugin-direct")


async def test_its_own_address(start):
    alice = await start(Dial)
    await fails(alice, alice.address(), NoPathError, "own address")


async def test_no_path_has_one_line_per_attempt(start):
    alice, bob = await start(Refuse, variant(Refuse, "also")), await start()
    await fails(alice, bob.address(), NoPathError, "nobody is at home")
    lines = str(alice.last_report.error).splitlines()
    attempts = [line for line in lines if "ConnectionRefusedError: nobody is at home" in line]
    assert len(attempts) == len(alice.last_report.outcomes) == 2 * 1
    for name in ("refuse", "also"):
        line = next(line for line in attempts if line.strip().startswith(name))
        assert "IPv4 LOOPBACK_BIND" in line
        assert "direct" in line
        assert "ms" in line


async def test_a_node_that_does_not_run(start):
    bob = await start()
    alice = Node(conf=NODE_TEST_CONF)
    with pytest.raises(ConfigError, match="not running") as caught:
        await auto_connect(alice, bob.address())
    assert alice.last_report.error is caught.value
    await alice.close()


async def test_a_peer_that_is_gone(start):
    alice, bob = await start(Dial, Ask), await start()
    await bob.close()
    await fails(alice, bob.address(), NoPathError, "ConnectionRefusedError")
    assert "ask" in str(alice.last_report.error)


async def test_another_node_in_the_peers_place_is_not_the_peer(start):
    bob = await start(port=0)
    address, port = bob.address(), bob.port
    await bob.close()
    mallory = await start(port=port)
    assert mallory.port == port
    alice = await start(Dial)
    assert await auto_connect(alice, address, timeout=0.3) == (None, None)
    assert mallory.stats["hello_failed"] == 1


async def test_a_strategy_that_cannot_be_built_is_one_failed_attempt(start, caplog):
    class Moody:
        built = 0

        def build_plugin(self):
            self.built += 1
            if self.built > 1:
                raise RuntimeError("not today")
            return Refuse()

    alice, bob = await start(), await start()
    alice.traversal.install_plugin("moody", {"class": Moody()})
    await fails(alice, bob.address(), NoPathError, "not today")


async def test_closing_the_node_ends_it(start):
    alice, bob = await start(Hang), await start()
    connecting = asyncio.create_task(auto_connect(alice, bob.address()))
    await until(lambda: alice.traversal.plugins)
    await alice.close()
    assert await connecting == (None, None)
    assert "the node is closing" in str(alice.last_report.error)


# Cancellation.


async def test_cancelled_at_every_turn_it_leaves_nothing(start):
    alice, bob = await start(Ask, Dial, Hang), await start(Dial)
    turns = 0
    completed = 0
    while completed < 3:
        turns += 1
        async with LeakCheck():
            task = asyncio.create_task(auto_connect(alice, bob.address()))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                completed += 1
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                for _ in range(3):
                    await asyncio.sleep(0)
                assert len(alice._pipes) == 0
            else:
                await task.result()[0].close()
            # What is not auto_connect's: the kept signal connection and what bob was given.
            for node in (alice, bob):
                for pipe in [*node._direct._connections, *node._pipes._pipes]:
                    pipe.abort()
                for attempt in list(node.traversal._attempts.values()):
                    assert node is bob
                    attempt.lose()
            while bob._mailbox._unaccepted:
                await bob.accept()
        assert alice.traversal.plugins == {}
        assert alice.traversal.inbound._waiters == {}
        assert alice.traversal.inbound._announced == {}


async def test_a_time_out_of_the_callers_own(start):
    alice, bob = await start(Hang), await start()
    async with LeakCheck():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await auto_connect(alice, bob.address())
    assert alice.last_report.outcomes[0].cause == "the call was cancelled"


class Knock(Plugin):
    """Sends a signal, and gives up."""

    name, transport, phase = "knock", "udp", "spray"

    async def run(self, reply=None):
        if reply is None:
            await self.send_signal_msg(ConMsg())
            await asyncio.sleep(0.1)
        elif not self.initiator:
            await self.send_signal_msg(ConMsg())
        self.result.set_result(None)


async def test_a_silent_peer_is_said_to_be_silent(start):
    alice, bob = await start(Refuse), await start()
    await auto_connect(alice, bob.address())
    assert "answered no signal" in str(alice.last_report.error)


async def test_a_peer_that_answers_is_not_called_silent(start):
    alice, bob = await start(Knock), await start(Knock)
    await auto_connect(alice, bob.address())
    text = str(alice.last_report.error)
    assert "no path to the peer" in text
    assert "answered no signal" not in text


def test_relay_prefer_whatever_worked_last(virtual):
    async def main():
        strategies = [Hang, variant(Hang, "a_relay", phase="relay")]
        alice, bob = await loopback_pair(*strategies, conf={"relay": "prefer"})
        network = auto_connect_module._network(alice)
        worked = ("hang", IP4, LOOPBACK_BIND)
        alice.traversal.history.worked(bob.node_id, network, worked)
        await auto_connect(alice, bob.address(), timeout=1)
        await alice.close()
        await bob.close()
        return [outcome.strategy for outcome in alice.last_report.outcomes]

    with Stage():
        assert virtual(main()) == ["a_relay"]

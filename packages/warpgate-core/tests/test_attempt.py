"""One attempt: the result contract, the proofs of pipes, re-entry, clean-up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from warpgate.errors import LocalProtocolError, PipeClosed
from warpgate.net.constants import IP4, NIC_BIND, TCP
from warpgate.net.nic import loopback_interface
from warpgate.plugin import Plugin
from warpgate.protocol.proto_msg import ConMsg
from warpgate.testing import LeakCheck
from warpgate.traversal import attempt as attempt_module
from warpgate.traversal.attempt import MAX_PROOFS, MAX_RUNS

pytestmark = pytest.mark.usefixtures("leaks")


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


def scripted(run, close=None, **attributes):
    """Return a strategy whose ``run`` is the given coroutine function."""

    class Scripted(Plugin):
        name, transport, phase = "scripted", "tcp", "direct"

    Scripted.run = run
    if close is not None:
        Scripted.close = close
    for key, value in attributes.items():
        setattr(Scripted, key, value)
    return Scripted


async def dial(plugin):
    route = await plugin.bind()
    return await route.connect((plugin.dest_info["ip"], plugin.dest_info["port"]), TCP)


async def direct(self, reply=None):
    self.result.set_result(await dial(self))


async def nothing(self, reply=None):
    pass


@pytest.fixture
def pair(start):
    async def make(run, close=None, **attributes):
        cls = scripted(run, close, **attributes)
        return await start(cls), await start(cls)

    return make


async def begin(alice, bob, name="scripted"):
    return await alice.connect(IP4, NIC_BIND, bob.address(), name)


def outcome_of(plugin):
    return plugin.test_outcome


async def connect(alice, bob):
    """Start the strategy and return it with its attempt."""
    plugin = await begin(alice, bob)
    return plugin, alice.traversal.attempt_of(plugin)


class Silent:
    """A listener that accepts and never says anything."""

    async def __aenter__(self):
        self.writers = []
        self.eof = asyncio.Queue()
        self.server = await asyncio.start_server(self.accepted, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def accepted(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
            while await reader.read(4096):
                pass
        self.eof.put_nowait(writer)
        writer.close()

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.writers:
            writer.close()
        for writer in self.writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def pipe(self):
        route = await loopback_interface().route(IP4).bind(ip="127.0.0.1")
        return await route.connect(("127.0.0.1", self.port), TCP)


# What a strategy may do with its future.


@pytest.mark.parametrize("wanted", ["tcp", "udp", None])
async def test_only_a_pipe_of_the_wanted_transport_is_taken(pair, wanted):
    async def run(self, reply=None):
        self.wanted_transport = wanted
        self.pipe = await dial(self)
        self.result.set_result(self.pipe)
        if wanted == "udp":
            self.result.set_result(None)

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    pipe = await plugin.result
    if wanted == "udp":
        assert pipe is None
        assert attempt.outcome.cause == "the pipe's transport is tcp, not udp as asked for"
        assert plugin.pipe.closed
        assert alice.stats["pipes_of_other_transport"] == 1
    else:
        assert pipe is plugin.pipe


async def test_a_proven_pipe_of_another_transport_is_not_taken_either(pair):
    """What ``wait_for_inbound`` returns is proven already."""

    async def run(self, reply=None):
        if not self.initiator:
            self.result.set_result(await dial(self))
            return
        self.wanted_transport = "udp"
        self.register_inbound()
        await self.send_signal_msg(ConMsg())
        self.pipe = await self.wait_for_inbound()
        self.result.set_result(self.pipe)
        self.result.set_result(None)

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.cause == "the pipe's transport is tcp, not udp as asked for"
    assert plugin.pipe.closed


async def test_a_pipe_resolves_only_after_the_hello(pair):
    seen = []

    async def run(self, reply=None):
        pipe = await dial(self)
        self.result.set_result(pipe)
        seen.append((self.result.done(), pipe.peer_id))

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    pipe = await plugin.result
    assert seen == [(False, None)]
    assert pipe.peer_id == bob.node_id
    assert pipe.plugin_name == "scripted"
    assert (pipe.path, pipe.sealed, pipe.inbound) == ("direct", True, False)
    assert attempt.outcome.status == "won"
    assert attempt.outcome.pipe == "a stream (tcp), direct"
    inbound = await bob.accept()
    assert inbound.peer_id == alice.node_id
    assert inbound.inbound


async def test_the_path_that_a_strategy_has_set_stays(pair):
    async def run(self, reply=None):
        pipe = await dial(self)
        pipe.path = "by pigeon"
        self.result.set_result(pipe)

    alice, bob = await pair(run)
    pipe = await (await begin(alice, bob)).result
    assert pipe.path == "by pigeon"


async def test_several_pipes_are_proven_in_parallel_and_the_first_wins(pair):
    pipes = []
    async with Silent() as silent:

        async def run(self, reply=None):
            for _ in range(3):
                pipes.append(await silent.pipe())
            pipes.append(await dial(self))
            for pipe in pipes:
                self.result.set_result(pipe)

        alice, bob = await pair(run)
        plugin = await begin(alice, bob)
        assert await plugin.result is pipes[3]
        for pipe in pipes[:3]:
            await pipe.wait_closed()
        assert not pipes[3].closed


async def test_the_ninth_pipe_is_closed_and_counted(pair):
    pipes = []
    async with Silent() as silent:

        async def run(self, reply=None):
            for _ in range(MAX_PROOFS + 1):
                pipes.append(await silent.pipe())
            for pipe in pipes:
                self.result.set_result(pipe)

        alice, bob = await pair(run)
        plugin = await begin(alice, bob)
        await until(lambda: len(pipes) > MAX_PROOFS)
        await pipes[-1].wait_closed()
        assert alice.stats["proofs_refused"] == 1
        assert not any(pipe.closed for pipe in pipes[:-1])
        plugin.result.cancel()
        for pipe in pipes:
            await pipe.wait_closed()


async def test_a_late_pipe_is_closed(pair):
    late = []

    async def run(self, reply=None):
        first, second = await dial(self), await dial(self)
        self.result.set_result(first)
        await until(lambda: self.result.done())
        self.result.set_result(second)
        late.append(second)

    alice, bob = await pair(run)
    plugin = await begin(alice, bob)
    pipe = await plugin.result
    await until(lambda: late)
    await late[0].wait_closed()
    assert not pipe.closed
    assert bob.stats["hello_second_pipe"] == 0


async def test_the_winner_handed_over_again_stays_open(pair):
    again = asyncio.Event()

    async def run(self, reply=None):
        pipe = await dial(self)
        self.result.set_result(pipe)
        self.result.set_result(pipe)
        await self.result
        self.result.set_result(pipe)
        again.set()

    alice, bob = await pair(run)
    pipe = await (await begin(alice, bob)).result
    await again.wait()
    await asyncio.sleep(0)
    assert not pipe.closed


async def test_a_failed_proof_leaves_the_result_pending(pair):
    async def run(self, reply=None):
        async with Silent() as silent:
            pipe = await silent.pipe()
            self.result.set_result(pipe)
            await until(lambda: silent.writers)
            silent.writers[0].write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await pipe.wait_closed()
            assert not self.result.done()
        self.result.set_result(await dial(self))

    alice, bob = await pair(run)
    plugin = await begin(alice, bob)
    assert (await plugin.result).peer_id == bob.node_id
    assert alice.stats["hello_failed"] == 1


async def test_a_pipe_to_another_node_fails_its_proof(pair, start):
    mallory = await start()

    async def run(self, reply=None):
        route = await self.bind()
        self.result.set_result(await route.connect(("127.0.0.1", mallory.port), TCP))

    alice, bob = await pair(run, conf={"timeout": 0.2})
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.status == "timeout"
    assert mallory.stats["hello_failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "status", "cause"),
    [
        (("the call's 5 s were up", "timeout"), "timeout", "the call's 5 s were up; last: "),
        (("the call was cancelled",), "lost", "the call was cancelled; last: "),
        ((), "lost", "another attempt won"),
    ],
)
async def test_what_went_wrong_last_is_told_unless_another_one_won(pair, arguments, status, cause):
    async def run(self, reply=None):
        async with Silent() as silent:
            pipe = await silent.pipe()
            await pipe.close()
            self.result.set_result(pipe)
        await asyncio.Event().wait()

    alice, bob = await pair(run)
    _, attempt = await connect(alice, bob)
    await until(lambda: attempt._last_cause)
    attempt.lose(*arguments)
    last = "the pipe had ended before it was handed over" if cause.endswith("last: ") else ""
    assert (attempt.outcome.status, attempt.outcome.cause) == (status, cause + last)
    await attempt.cleanup


async def test_none_fails_fast(pair):
    async def run(self, reply=None):
        self.result.set_result(None)
        await asyncio.Event().wait()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert (attempt.outcome.status, attempt.outcome.cause) == ("failed", "the strategy gave up")


async def test_none_waits_for_a_proof_that_is_running(pair):
    async def run(self, reply=None):
        self.result.set_result(await dial(self))
        self.result.set_result(None)

    alice, bob = await pair(run)
    assert (await (await begin(alice, bob)).result).peer_id == bob.node_id


async def test_none_holds_as_soon_as_the_last_proof_has_failed(pair):
    async def run(self, reply=None):
        async with Silent() as silent:
            pipe = await silent.pipe()
            self.result.set_result(pipe)
            self.result.set_result(None)
            assert not self.result.done()
            await until(lambda: silent.writers)
            silent.writers[0].write(b"not the magic")
            await pipe.wait_closed()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.status == "failed"
    assert "magic" in attempt.outcome.cause


async def test_a_plain_return_leaves_it_pending_until_the_time_out(pair):
    returned = asyncio.Event()

    async def run(self, reply=None):
        returned.set()

    alice, bob = await pair(run, conf={"timeout": 0.05})
    plugin, attempt = await connect(alice, bob)
    await returned.wait()
    await asyncio.sleep(0)
    assert not plugin.result.done()
    assert await plugin.result is None
    assert attempt.outcome.status == "timeout"
    assert "0.05 s" in attempt.outcome.cause


async def test_a_background_task_may_resolve_it_later(pair):
    tasks = []

    async def run(self, reply=None):
        tasks.append(asyncio.create_task(direct(self)))

    alice, bob = await pair(run)
    assert (await (await begin(alice, bob)).result).peer_id == bob.node_id
    await tasks[0]


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
        (ValueError("odd"), "ValueError: odd"),
        (KeyError(), "KeyError"),
        (Unspeakable(), "Unspeakable"),
        (SystemExit(3), "SystemExit: 3"),
        (ExceptionGroup("several", [OSError("a")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_exception_fails_it_at_once_and_is_recorded(pair, error, cause):
    async def run(self, reply=None):
        raise error

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert (attempt.outcome.status, attempt.outcome.cause) == ("failed", cause)


async def test_an_exception_ends_a_running_proof_too(pair):
    async def run(self, reply=None):
        self.result.set_result(await silent.pipe())
        raise OSError("after the hand-over")

    async with Silent() as silent:
        alice, bob = await pair(run)
        assert await (await begin(alice, bob)).result is None
        await silent.eof.get()


async def test_set_exception_fails_it_with_the_cause(pair):
    async def run(self, reply=None):
        self.result.set_exception(OSError("told"))

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.cause == "OSError: told"


async def test_a_cancellation_from_within_fails_it(pair):
    async def run(self, reply=None):
        raise asyncio.CancelledError

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.status == "failed"
    assert "cancelled from within" in attempt.outcome.cause


async def test_a_result_of_another_type_fails_it(pair):
    async def run(self, reply=None):
        self.result.set_result("no pipe")

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.cause == "TypeError: result must be a Pipe or None, got str"


async def test_an_auxiliarys_result_may_be_anything(pair):
    async def run(self, reply=None):
        self.result.set_result({"any": "thing"})

    alice, bob = await pair(run, phase=None)
    assert await (await begin(alice, bob)).result == {"any": "thing"}


async def test_cancelling_the_result_cancels_the_attempt(pair):
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def run(self, reply=None):
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    await running.wait()
    assert plugin.result.cancel()
    await attempt.cleanup
    assert cancelled.is_set()
    assert attempt.outcome.status == "cancelled"
    assert alice.traversal.plugins == {}


async def test_wait_fors_time_out_cancels_the_attempt(pair):
    async def run(self, reply=None):
        await asyncio.Event().wait()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(plugin.result, 0.01)
    assert attempt.outcome.status == "cancelled"
    await attempt.cleanup


async def test_wait_for_gives_the_pipe(pair):
    alice, bob = await pair(direct)
    plugin = await begin(alice, bob)
    pipe = await asyncio.wait_for(plugin.result, 5)
    assert pipe.peer_id == bob.node_id


async def test_a_pipe_that_has_ended_is_not_proven(pair):
    async def run(self, reply=None):
        pipe = await dial(self)
        await pipe.close()
        self.result.set_result(pipe)

    alice, bob = await pair(run, conf={"timeout": 0.05})
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert "had ended before it was handed over" in attempt.outcome.cause


async def test_a_proven_pipe_of_another_peer_is_not_taken(pair, start):
    bystander = await start(scripted(direct))
    taken = []

    async def run(self, reply=None):
        self.result.set_result(taken[0])

    alice, bob = await pair(run, conf={"timeout": 0.05})
    other = await bystander.connect(IP4, NIC_BIND, alice.address(), "scripted")
    await other.result
    taken.append(await alice.accept())
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert "another peer" in attempt.outcome.cause
    assert not taken[0].closed


async def test_a_pipe_under_proof_elsewhere_is_left_alone(pair):
    shared = []

    async def run(self, reply=None):
        if not shared:
            shared.append(await silent.pipe())
        self.result.set_result(shared[0])

    async with Silent() as silent:
        alice, bob = await pair(run, conf={"timeout": 0.05})
        first = await begin(alice, bob)
        await until(lambda: shared)
        second, attempt = await connect(alice, bob)
        assert await second.result is None
        assert "another attempt" in attempt.outcome.cause
        assert await first.result is None


# Before run().


async def test_what_is_set_before_run(pair):
    seen = {}

    async def run(self, reply=None):
        seen.update(vars(self), reply=reply, live=dict(self.manager.plugins))
        self.result.set_result(None)

    alice, bob = await pair(run, conf={"timeout": 7})
    plugin = await begin(alice, bob)
    await plugin.result
    assert seen["plugin_id"].isalnum()
    assert len(seen["plugin_id"]) == 15
    assert (seen["af"], seen["route_type"], seen["same_machine"]) == (IP4, NIC_BIND, True)
    assert (seen["timeout"], seen["initiator"], seen["reply"]) == (7, True, None)
    assert seen["manager"] is alice.traversal
    assert seen["node"] is alice
    assert seen["nic"] is alice.ifs[0]
    assert seen["dest_info"]["node_id"] == bob.node_id
    assert seen["src_info"]["node_id"] == alice.node_id
    assert (seen["dest_info"]["ip"], seen["dest_info"]["port"]) == ("127.0.0.1", bob.port)
    assert seen["live"] == {(bob.node_id, plugin.plugin_id): plugin}


async def test_set_bind_binds_before_run(pair):
    routes = []

    async def run(self, reply=None):
        routes.append(self.route)
        self.result.set_result(None)

    alice, bob = await pair(run, conf={"set_bind": True})
    await (await begin(alice, bob)).result
    assert (routes[0].bound, routes[0].ip) == (True, "127.0.0.1")


async def test_without_set_bind_nothing_is_bound(pair):
    routes = []

    async def run(self, reply=None):
        routes.append(self.route)
        self.result.set_result(None)

    alice, bob = await pair(run)
    await (await begin(alice, bob)).result
    assert routes == [None]


# Re-entry.


async def signal(plugin, name="scripted", **meta):
    msg = ConMsg()
    msg.meta.plugin_name = name
    await plugin.send_signal_msg(msg)


async def test_a_signal_creates_the_responder_and_the_answer_re_enters(pair):
    calls = []

    async def run(self, reply=None):
        calls.append((self.initiator, reply is not None, self.plugin_id))
        if not self.initiator or reply is None:
            await signal(self)
        else:
            self.result.set_result(await dial(self))

    alice, bob = await pair(run)
    plugin = await begin(alice, bob)
    pipe = await plugin.result
    assert pipe.peer_id == bob.node_id
    key = plugin.plugin_id
    assert calls == [(True, False, key), (False, True, key), (True, True, key)]


async def test_replies_are_taken_in_order_and_may_overlap(pair):
    log, go = [], asyncio.Event()

    async def run(self, reply=None):
        if not self.initiator:
            for _ in range(3):
                await signal(self)
        elif reply is None:
            await signal(self)
        else:
            number = len(log)
            log.append(f"enter {number}")
            await go.wait()
            log.append(f"leave {number}")
            if number == 2:
                self.result.set_result(None)

    alice, bob = await pair(run)
    plugin = await begin(alice, bob)
    await until(lambda: len(log) >= 3)
    go.set()
    await plugin.result
    assert log == ["enter 0", "enter 1", "enter 2", "leave 0", "leave 1", "leave 2"]


async def test_the_ninth_pending_run_is_dropped_and_counted(pair):
    entered = []

    async def run(self, reply=None):
        if not self.initiator:
            entered.append(self)
            await asyncio.Event().wait()
        elif reply is None:
            for _ in range(MAX_RUNS + 1):
                await signal(self)

    alice, bob = await pair(run, conf={"timeout": 1})
    plugin = await begin(alice, bob)
    await until(lambda: bob.stats["signals_too_many_pending"])
    assert len(entered) == MAX_RUNS
    assert bob.stats["signals_too_many_pending"] == 1
    plugin.result.cancel()


async def test_the_responders_pipe_is_proven_and_delivered(pair):
    async def run(self, reply=None):
        if self.initiator:
            self.register_inbound()
            await signal(self)
            self.result.set_result(await self.wait_for_inbound())
        else:
            self.result.set_result(await dial(self))

    alice, bob = await pair(run)
    pipe = await (await begin(alice, bob)).result
    assert (pipe.peer_id, pipe.inbound) == (bob.node_id, False)
    there = await bob.accept()
    assert (there.peer_id, there.inbound) == (alice.node_id, True)
    assert there.plugin_name == "scripted"
    await pipe.send(b"over the pipe that the other side dialled")
    assert await there.recv() == b"over the pipe that the other side dialled"


async def test_waiting_without_registering_is_the_strategys_mistake(pair):
    async def run(self, reply=None):
        await self.wait_for_inbound()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    assert attempt.outcome.cause.startswith(LocalProtocolError.__name__)


async def test_waiting_ends_with_the_attempts_time(pair):
    waited = []

    async def run(self, reply=None):
        self.register_inbound()
        self.timeout = 0.02
        pipe = await self.wait_for_inbound()
        waited.append(pipe)
        self.result.set_result(pipe)

    alice, bob = await pair(run)
    assert await (await begin(alice, bob)).result is None
    assert waited == [None]


# The end.


async def test_close_is_called_once_after_every_run_has_ended(pair):
    log = []

    async def run(self, reply=None):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("run ended")

    async def close(self):
        log.append("closed")

    alice, bob = await pair(run, close)
    plugin, attempt = await connect(alice, bob)
    await asyncio.sleep(0)
    plugin.result.cancel()
    attempt.lose()
    await attempt.cleanup
    assert log == ["run ended", "closed"]


async def test_close_is_called_for_a_winner_too(pair):
    closed = asyncio.Event()

    async def close(self):
        closed.set()

    alice, bob = await pair(direct, close)
    pipe = await (await begin(alice, bob)).result
    await closed.wait()
    assert not pipe.closed


@pytest.mark.parametrize("kind", ["raising", "sync", "exiting"])
async def test_a_bad_close_harms_nothing(pair, kind):
    async def raising(self):
        raise OSError("can't")

    def sync(self):
        pass

    def exiting(self):
        raise SystemExit(1)

    alice, bob = await pair(direct, locals()[kind])
    plugin, attempt = await connect(alice, bob)
    assert (await plugin.result).peer_id == bob.node_id
    await attempt.cleanup
    assert alice.stats["close_errors"] == (kind != "sync")


async def test_a_close_that_hangs_is_ended_and_counted(pair, monkeypatch):
    monkeypatch.setattr(attempt_module, "REAP_S", 0.01)

    async def close(self):
        await asyncio.Event().wait()

    alice, bob = await pair(nothing, close)
    plugin, attempt = await connect(alice, bob)
    plugin.result.cancel()
    await attempt.cleanup
    assert alice.stats["closes_timed_out"] == 1


async def test_a_run_that_outlives_its_cancellation_does_not_keep_close_from_being_called(
    pair, monkeypatch
):
    monkeypatch.setattr(attempt_module, "REAP_S", 0.01)
    closed, release = asyncio.Event(), asyncio.Event()

    async def run(self, reply=None):
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async def close(self):
        closed.set()

    alice, bob = await pair(run, close)
    plugin, attempt = await connect(alice, bob)
    await asyncio.sleep(0)
    plugin.result.cancel()
    await attempt.cleanup
    assert closed.is_set()
    assert alice.stats["runs_stuck"] == 1
    release.set()


async def test_a_run_that_goes_on_after_giving_up_is_ended(pair, monkeypatch):
    monkeypatch.setattr(attempt_module, "CLOSE_GRACE_S", 0.001)
    ended = asyncio.Event()

    async def run(self, reply=None):
        self.result.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    assert await plugin.result is None
    await attempt.cleanup
    assert ended.is_set()


async def test_a_run_that_returns_after_its_hand_over_is_not_cancelled(pair):
    log = []

    async def run(self, reply=None):
        self.result.set_result(await dial(self))
        await self.result
        await asyncio.sleep(0)
        log.append("finished")

    alice, bob = await pair(run)
    plugin, attempt = await connect(alice, bob)
    await plugin.result
    await attempt.cleanup
    assert log == ["finished"]


async def test_signals_still_on_their_way_end_with_the_attempt(pair):
    class Slow:
        name = "slow"

        async def start(self, deliver):
            pass

        def brokers(self):
            return ()

        async def send(self, dest, envelope):
            sending.set()
            await asyncio.Event().wait()

        async def close(self):
            pass

    sending = asyncio.Event()

    async def run(self, reply=None):
        if self.initiator:
            await signal(self)

    alice, bob = await pair(run)
    alice.router._transports.append(Slow())
    async with LeakCheck(0.2):
        plugin, attempt = await connect(alice, bob)
        await sending.wait()
        plugin.result.cancel()
        await attempt.cleanup
        for node in (alice, bob):  # the kept signal connection and bob's attempt are no leak
            for live in list(node.traversal._attempts.values()):
                live.lose()
                await live.cleanup
            for pipe in list(node._direct._connections):
                pipe.abort()


async def test_an_attempt_that_is_over_can_signal_nobody(pair):
    alice, bob = await pair(nothing)
    plugin = await begin(alice, bob)
    plugin.result.cancel()
    with pytest.raises(LocalProtocolError, match="has ended"):
        await plugin.send_signal_msg(ConMsg())
    with pytest.raises(LocalProtocolError, match="has ended"):
        plugin.register_inbound()


async def test_the_winners_pipe_is_closed_with_the_node(pair):
    alice, bob = await pair(direct)
    pipe = await (await begin(alice, bob)).result
    await alice.close()
    assert pipe.closed
    with pytest.raises(PipeClosed):
        await pipe.send(b"too late")

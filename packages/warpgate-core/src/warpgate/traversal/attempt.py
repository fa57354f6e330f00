"""One attempt: a plugin instance, its tasks, the proofs of its pipes, its outcome."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from warpgate.errors import AttemptSkipped, RemoteProtocolError, TraversalError
from warpgate.hello.wire import NotAHello
from warpgate.net.pipe import Pipe
from warpgate.traversal.combine import refresh
from warpgate.traversal.report import AttemptOutcome, Skip, SkipReason
from warpgate.traversal.result import ResultFuture

if TYPE_CHECKING:
    from warpgate.hello.shell import Handshake
    from warpgate.plugin import Plugin
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.protocol.proto_msg import ConMsg
    from warpgate.signalling.transport import SignalOrigin
    from warpgate.traversal.manager import TraversalManager
    from warpgate.traversal.paths import Path

log = logging.getLogger("warpgate")

MAX_PROOFS = 8
"""Pipes of one attempt that may be under proof at once (contract, section 2)."""
MAX_RUNS = 8
"""Calls of ``run`` of one attempt that may be pending at once."""
CLOSE_GRACE_S = 0.030
"""A ``close()`` that takes longer moves to the node's reaper."""
OTHER_WON = "another attempt won"
REAP_S = 2.0
"""How long the reaper waits for a cancelled ``run``, and then for ``close()``."""


class Attempt:
    """The manager's side of one :class:`~warpgate.Plugin` instance.

    Attributes:
        plugin: the instance.
        key: (peer id, plugin_id), what tells this attempt from all others.
        peer: the peer's newest signed address.
        outcome: what the report will say.
        skip: what it will say instead, when the strategy found nothing to try.
        origin: by which way the peer's latest signal came.
        winner: the nominated pipe, once there is one.
        heard: how many signals of the peer have come.
        met: whether a stream was connected to somebody who may be the peer.
        sends: signals on their way, and their copies; they end with the attempt.
        on_candidate: asked when a pipe of ours is proven; calls :meth:`nominate` on the winner.
        on_end: called once when the attempt has ended.
        on_news: called when a signal has brought a newer address of the peer.

    """

    def __init__(
        self,
        manager: TraversalManager,
        plugin: Plugin,
        peer: PeerAddress,
        outcome: AttemptOutcome,
    ) -> None:
        self.manager = manager
        self.plugin = plugin
        self.peer = peer
        self.outcome = outcome
        self.outcome.notes = plugin.notes
        self.skip: Skip | None = None
        self.path: Path
        self.origin: SignalOrigin | None = None
        self.on_candidate: Callable[[Attempt, Handshake], None] | None = None
        self.on_end: Callable[[Attempt], None] | None = None
        self.on_news: Callable[[], None] | None = None
        self.key = (peer.node_id, plugin.plugin_id)
        self.ended = False
        self.winner: Pipe | None = None
        self.heard = 0
        self.met = False
        self.sends: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.cleanup: asyncio.Task[None] | None = None
        self._gave_up = False
        self._runs: set[asyncio.Task[None]] = set()
        self._proofs: set[Handshake] = set()
        self._last_cause = ""
        self._timer: asyncio.TimerHandle | None = None
        plugin.result = ResultFuture(self, self.loop)

    @property
    def busy(self) -> bool:
        """Whether a ``run`` or a proof is under way."""
        return bool(self._runs or self._proofs)

    @property
    def proving(self) -> bool:
        """Whether a pipe is under proof."""
        return bool(self._proofs)

    def start(self, reply: ConMsg | None = None) -> None:
        """Arm the time-out and call ``run``."""
        self.started = self.loop.time()
        self._timer = self.loop.call_later(self.plugin.timeout, self._expire)
        self.reenter(reply)

    def reenter(self, reply: ConMsg | None) -> bool:
        """Call ``run(reply)`` in a task of its own; False when too many are pending."""
        if self.ended or len(self._runs) >= MAX_RUNS:
            return False
        name = f"warpgate {self.plugin.name} {self.plugin.plugin_id}"
        task = self.loop.create_task(self._run(reply), name=name)
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        return True

    async def _run(self, reply: ConMsg | None) -> None:
        plugin = self.plugin
        try:
            if self.manager.set_bind(plugin) and plugin.route is None:
                plugin.route = await plugin.bind()
            await plugin.run(reply)
        except asyncio.CancelledError:
            if not self.ended:
                # The strategy cancelled itself: nothing else will resolve it.
                self.failed(TraversalError("run() was cancelled from within"))
            raise
        except (Exception, SystemExit) as error:  # whatever a strategy raises ends its attempt only
            log.debug("%s: run() raised", plugin.name, exc_info=True)
            self.failed(error)

    def told(self, peer: PeerAddress) -> None:
        """Take over the peer's newer address, and for the strategy what it says of its NAT."""
        self.peer = peer
        refresh(self.plugin.dest_info, peer)

    # What the strategy does with its future.

    def offered(self, value: Any) -> None:
        """Take what ``set_result`` was called with."""
        if isinstance(value, Pipe):
            self._offer_pipe(value)
        elif self.ended:
            return
        elif value is None:
            if self._proofs:
                self._gave_up = True
            else:
                self._end("failed", self._last_cause or "the strategy gave up")
        elif self.plugin.phase is None:
            self._end("won", "", value)
        else:
            self.failed(TypeError(f"result must be a Pipe or None, got {type(value).__name__}"))

    def failed(self, cause: BaseException) -> None:
        """End with an error as the cause."""
        name = type(cause).__name__
        try:
            text = str(cause)
        except Exception:  # noqa: BLE001  # the exception's own defect
            text = ""
        if isinstance(cause, AttemptSkipped) and not self.ended:
            reason = cause.reason if isinstance(cause.reason, SkipReason) else None
            self.skip = Skip(
                self.outcome.strategy,
                reason or SkipReason.NOTHING_TO_TRY,
                self.outcome.af,
                self.outcome.route_type,
                str(cause.detail),
            )
            self._end("skipped", text)
        else:
            self._end("failed", f"{name}: {text}" if text else name)

    def cancelled(self) -> None:
        """End because somebody cancelled ``result``."""
        self._end("cancelled", "cancelled")

    def lose(self, cause: str = OTHER_WON, status: str = "lost") -> None:
        """End because another attempt won or the call is over.

        Args:
            cause: for the report; unless another attempt won, what went wrong last is appended.
            status: ``"timeout"`` when the call's time was up.

        """
        self._end(status, cause if cause == OTHER_WON else self._with_last(cause))

    def _expire(self) -> None:
        self._end("timeout", self._with_last(f"no result within {self.plugin.timeout:g} s"))

    def _with_last(self, cause: str) -> str:
        drops = (handshake.machine.last_drop for handshake in self._proofs)
        last = self._last_cause or next((str(drop) for drop in drops if drop is not None), "")
        return f"{cause}; last: {last}" if last else cause

    # Proof of the pipes that were handed over.

    def _offer_pipe(self, pipe: Pipe) -> None:
        self.met = self.met or pipe.transport == "tcp"
        wanted = self.plugin.wanted_transport
        if wanted not in (None, pipe.transport) and not self.ended:
            self._refuse_pipe(
                pipe, f"the pipe's transport is {pipe.transport}, not {wanted} as asked for"
            )
            return
        handshake = pipe.handshake
        if self.ended:
            if pipe is not self.winner:
                pipe.abort()
        elif handshake in self._proofs:
            if handshake.state == "proven":
                self._candidate(handshake)
        elif handshake is not None and handshake.state == "nominated":
            if handshake.peer == self.peer.key:
                self._won(handshake)
            else:
                self._last_cause = "the pipe leads to another peer"
        elif pipe.closed:
            pipe.abort()
            self._last_cause = "the pipe had ended before it was handed over"
        elif handshake is not None:
            self._last_cause = "the pipe is under proof for another attempt"
        elif len(self._proofs) >= MAX_PROOFS:
            self.manager.stats.count("proofs_refused")
            pipe.abort()
        else:
            self.manager.proofs.prove(self, pipe)

    def _refuse_pipe(self, pipe: Pipe, cause: str) -> None:
        self.manager.stats.count("pipes_of_other_transport")
        if pipe.handshake in self._proofs:
            self._proofs.discard(pipe.handshake)
            pipe.handshake.cancel()
        pipe.abort()
        self._last_cause = cause
        if self._gave_up and not self._proofs:
            self._end("failed", cause)

    def watch(self, handshake: Handshake) -> None:
        """Own a handshake that is about to start or was started for this attempt by a listener."""
        self._proofs.add(handshake)

    def handshake_proven(self, handshake: Handshake) -> None:
        """A pipe of this initiator is proven; who arbitrates decides whether it is nominated."""
        self._candidate(handshake)

    def _candidate(self, handshake: Handshake) -> None:
        if self.on_candidate is None:
            handshake.nominate()
        else:
            self.on_candidate(self, handshake)

    def handshake_nominated(self, handshake: Handshake) -> None:
        """M3 was sent or has come: this is the pipe."""
        if self.ended:
            handshake.pipe.abort()
            return
        self._won(handshake)

    def handshake_failed(self, handshake: Handshake) -> None:
        """A proof failed; the attempt goes on unless the strategy had given up."""
        self._proofs.discard(handshake)
        self._last_cause = str(handshake.cause)
        if isinstance(handshake.cause, NotAHello):
            self.met = False  # a portal, or another program that has the port now
        if isinstance(handshake.cause, RemoteProtocolError):
            self.manager.stats.count("hello_failed")
        if self._gave_up and not self._proofs and not self.ended:
            self._end("failed", self._last_cause)

    def _won(self, handshake: Handshake) -> None:
        pipe = handshake.pipe
        self._proofs.discard(handshake)
        pipe.plugin_name = pipe.plugin_name or self.plugin.name
        pipe.inbound = not self.plugin.initiator
        if pipe.path is None:
            pipe.path = "relay" if self.plugin.phase == "relay" else "direct"
        self.winner = pipe
        kind = "a stream" if pipe.reliable else "datagrams"
        self.outcome.pipe = f"{kind} ({pipe.transport}), {pipe.path}"
        self.plugin.budget.proven(pipe.remote[0])
        self._end("won", "", pipe)
        self.manager.attempt_won(self, pipe)

    # The end.

    def _end(self, status: str, cause: str, value: Any = None) -> None:
        if self.ended:
            return
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self.outcome.status = status
        self.outcome.cause = cause
        self.outcome.seconds = self.loop.time() - self.started
        for handshake in list(self._proofs):
            handshake.cancel()
        self._proofs.clear()
        result = self.plugin.result
        if isinstance(result, ResultFuture):
            result.resolve(value)
        # The run() that won, or that brought about the end itself, may return by itself.
        current = asyncio.current_task()
        leaving = {task for task in self._runs if status == "won" or task is current}
        _cancel(self._runs - leaving)
        if self.plugin.phase is not None:  # an auxiliary's last word is for the peer: let it go out
            _cancel(self.sends)
        tasks = self._runs | {task for task in self.sends if task.cancelling()}
        self.cleanup = self.loop.create_task(
            self._clean_up(leaving, tasks), name="warpgate attempt clean-up"
        )
        self.manager.attempt_ended(self)
        if self.on_end is not None:
            self.on_end(self)

    async def _clean_up(
        self, leaving: set[asyncio.Task[None]], tasks: set[asyncio.Task[None]]
    ) -> None:
        if leaving:
            await asyncio.wait(leaving, timeout=CLOSE_GRACE_S)
            _cancel(leaving)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=REAP_S)
            if stuck:
                log.error("%s: run() goes on after it was cancelled", self.plugin.name)
                self.manager.stats.count("runs_stuck", len(stuck))
        try:
            async with asyncio.timeout(REAP_S) as limit:
                closing: Any = self.plugin.close()
                if inspect.isawaitable(closing):
                    await closing
        except (Exception, SystemExit):
            late = limit.expired()
            log.exception("%s: close() %s", self.plugin.name, "took too long" if late else "raised")
            self.manager.stats.count("closes_timed_out" if late else "close_errors")


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()

"""The way to one broker: connects, reconnects, re-subscribes, publishes."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import SignallingError
from warpgate.signalling.broker_policy import normalise
from warpgate.signalling.mqtt_dial import NotPermitted, Permit, Reach, WrongServer

if TYPE_CHECKING:
    from warpgate.server_urls import BrokerURL
    from warpgate.signalling.mqtt import Session

log = logging.getLogger("warpgate")

BACKOFF_BASE_S: Final = 0.2
BACKOFF_CAP_S: Final = 30.0
LOGIN_CAP_S: Final = 3.0
"""The back-off's cap while somebody else answers: after the login the broker is there at once."""
LOGIN_S: Final = 600.0
"""After so long it is no login that is waited for."""
STEADY_S: Final = 10.0
"""A connection that held this long resets the back-off."""
PATIENCE_S: Final = 0.3
"""How long a broker may think about MQTT 5 before 3.1.1 is tried beside it."""
RESEND_S: Final = 0.25
"""How soon to publish again when the broker said that nobody was subscribed."""

_V5, _V3 = 5, 4


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of a broker.

    Attributes:
        url: without user name and password.
        state: ``connecting``, ``connected``, ``waiting`` (for the next try) or ``closed``.
        since: when the state began, in the event loop's time (seconds).
        error: the last failure's cause, empty when there was none.
        latency_s: how long the last acknowledged message took, seconds; None before the first.
        version: ``"5"`` or ``"3.1.1"``, empty before the first connection.
        tls: whether the connection is encrypted.
        on_demand: dialled for the sake of a peer, not configured.
        answered_by: who answered in the broker's stead the last time: ``"web page"``, ``"stranger"``
            (in TLS), or empty: nobody.

    """

    url: str
    state: str
    since: float
    error: str
    latency_s: float | None
    version: str
    tls: bool
    on_demand: bool
    answered_by: str = ""


class BrokerLink:
    """Keeps a session with one broker until it is closed.

    ``refused`` is set when none of the broker's addresses may be dialled: the link does nothing then.
    ``was_away`` is set while the broker can't be reached, and until ``on_connected`` was called;
    ``was_up`` once there has been a connection.

    Args:
        url: the broker.
        topics: what to subscribe to on every connection.
        on_message: called with this link, topic, payload and whether it was retained.
        permit: whether an IP address of the broker may be dialled.
        reach: by which address an IP address is reached.
        on_demand: it was a peer that named the broker.
        context: for TLS; None takes the system's certificate authorities.
        on_connected: called after every (re)connection, subscriptions included.

    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        topics: tuple[str, ...],
        on_message: Callable[[BrokerLink, str, bytes, bool], None],
        permit: Permit = lambda _ip: True,
        reach: Reach | None = None,
        on_demand: bool = False,
        context: ssl.SSLContext | None = None,
        on_connected: Callable[[BrokerLink], None] = lambda _link: None,
    ) -> None:
        self.name = normalise(url)
        self.on_demand = on_demand
        self.last_used = 0.0
        self.refused = False
        self.was_away = self.was_up = False
        self._wrong: WrongServer | None = None
        self._wrong_at = 0.0
        self._url, self._topics = url, topics
        self._on_message = on_message
        self._permit, self._reach = permit, reach
        self._context, self._on_connected = context, on_connected
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._version = 0
        self._state = "connecting"
        self._since = self._down_at = 0.0
        self._publishing = 0
        self._error = ""
        self._latency_s: float | None = None
        self._up = asyncio.Event()
        self._nudged = asyncio.Event()

    # Life.

    def start(self) -> None:
        """Begin to connect; returns at once."""
        loop = asyncio.get_running_loop()
        self._since = self.last_used = self._down_at = loop.time()
        self._task = loop.create_task(self._run())

    async def close(self) -> None:
        """Disconnect; takes at most a second, whatever the broker does."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        self._set("closed")

    def nudge(self, own_ips: Collection[str]) -> None:
        """Try again at once if this waits, or if this machine's end has lost its address.

        Args:
            own_ips: the addresses that this machine has now.

        """
        self._nudged.set()
        if self._session is not None and self._session.local_ip not in own_ips:
            self._session.abort("the network has changed")

    async def _run(self) -> None:
        delay = BACKOFF_BASE_S
        loop = asyncio.get_running_loop()
        while True:
            self._set("connecting")
            began = loop.time()
            try:
                session = await self._open()
            except NotPermitted as error:
                self._error = str(error)
                self.refused = True
                self._set("closed")
                self._up.set()
                return
            except WrongServer as error:
                self._error, self._wrong, self._wrong_at = str(error), error, loop.time()
                self._up.set()  # who waits for this broker need not go on
            except SignallingError as error:
                self._error, self._wrong = str(error), None
            except Exception as error:  # noqa: BLE001  # the link outlives whatever a broker provokes
                self._error, self._wrong = repr(error), None
            else:
                delay = await self._hold(session, delay)
            self._set("waiting")
            self.was_away = True
            if self._wrong is not None and self.down_for() < LOGIN_S:
                delay = min(delay, LOGIN_CAP_S)
            log.debug("broker %s: %s; again in %.1f s", self.name, self._error, delay)
            self._nudged.clear()
            earliest = BACKOFF_BASE_S - (loop.time() - began)
            if earliest > 0:
                await asyncio.sleep(earliest)
            try:
                async with asyncio.timeout(delay * random.uniform(0.5, 1.0)):
                    await self._nudged.wait()
            except TimeoutError:
                delay = min(delay * 2, BACKOFF_CAP_S)
            else:
                delay = BACKOFF_BASE_S  # somebody waits for this broker

    async def _hold(self, session: Session, delay: float) -> float:
        """Stay with a session until it ends; returns the back-off to go on with."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._session, self._wrong = session, None
        self.was_up = True
        self._set("connected")
        self._up.set()
        try:
            self._on_connected(self)
            self.was_away = False
            await asyncio.wait([session.ended])  # to await it would be to cancel it
            self._error = session.ended.result()
        finally:
            self._up.clear()
            self._session = None
            self._down_at = loop.time()
            await session.close()
        return BACKOFF_BASE_S if loop.time() - began >= STEADY_S else delay

    async def _open(self) -> Session:
        """Connect, by the newest version of MQTT that the broker speaks.

        Some MQTT 3.1.1 brokers refuse version 5, some close the connection, some say nothing at
        all: so the older version gets its try after a moment, beside the first.
        """
        from warpgate.signalling.mqtt import VersionRefused

        loop = asyncio.get_running_loop()
        reached: asyncio.Future[None] = loop.create_future()
        versions = [self._version] if self._version else [_V5, _V3]
        tries = [loop.create_task(self._try(versions[0], reached))]
        errors: list[str] = []
        try:
            first: list[asyncio.Future[Any]] = [tries[0], reached]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if len(versions) > 1:
                await asyncio.wait(tries, timeout=PATIENCE_S)
            for version in versions[1:]:
                if not tries[0].done() or isinstance(tries[0].exception(), VersionRefused):
                    tries.append(loop.create_task(self._try(version, None)))
            pending = set(tries)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        session = task.result()
                        tries.remove(task)
                        self._version = session.version
                        return session
                    if not isinstance(error, VersionRefused):
                        raise error
                    errors.append(str(error))
        finally:
            await _give_up(tries)
        self._version = 0  # it may be another broker the next time
        raise SignallingError("; ".join(dict.fromkeys(errors)))

    async def _try(self, version: int, reached: asyncio.Future[None] | None) -> Session:
        from warpgate.signalling import mqtt

        session = await mqtt.open_session(
            self._url,
            version=version,
            on_message=self._received,
            permit=self._permit,
            reach=self._reach,
            context=self._context,
            reached=reached,
        )
        try:
            for topic in self._topics:
                await session.subscribe(topic)
        except BaseException:
            session.abort()
            raise
        return session

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        self._on_message(self, topic, payload, retained)

    # Use.

    @property
    def connected(self) -> bool:
        """Whether the broker can be used right now."""
        return self._session is not None and not self._session.ended.done()

    @property
    def tells_receivers(self) -> bool:
        """Whether there is a connection by MQTT 5, which tells when nobody receives a message."""
        return self.connected and self._version == _V5

    @property
    def session(self) -> Session | None:
        """The open session, if there is one."""
        return self._session

    def down_for(self) -> float:
        """Return the seconds for which there has been no connection, 0 when there is one."""
        return 0.0 if self.connected else asyncio.get_running_loop().time() - self._down_at

    @property
    def idle_for(self) -> float:
        """The seconds since the last message was sent; 0 while one is being sent."""
        return 0.0 if self._publishing else asyncio.get_running_loop().time() - self.last_used

    async def publish(self, topic: str, payload: bytes, until: float) -> None:
        """Publish a message for a subscriber that should be there.

        Waits for the connection, and publishes again when the connection broke meanwhile or the
        broker said that nobody was subscribed (the receiver may be reconnecting just now).

        Args:
            topic: where to.
            payload: the message.
            until: the deadline, in the event loop's time.

        Raises:
            SignallingError: not taken by then; the text names the broker and the cause.

        """
        self._publishing += 1
        try:
            await self._publish(topic, payload, until)
        finally:
            self._publishing -= 1
            self.last_used = asyncio.get_running_loop().time()

    async def _publish(self, topic: str, payload: bytes, until: float) -> None:
        loop = asyncio.get_running_loop()
        cause, asked = "", loop.time()
        while (left := until - loop.time()) > 0:
            session = self._session
            if self.refused or (self._wrong is not None and self._wrong_at > asked):
                break
            if session is None or session.ended.done():
                await self._connect_within(left)
                continue
            began = loop.time()
            try:
                async with asyncio.timeout(left):
                    if await session.publish(topic, payload):
                        self._latency_s = loop.time() - began
                        return
                cause = "the peer is not connected to this broker"
            except TimeoutError:
                cause = cause or "the broker did not acknowledge the message"
            except SignallingError as error:
                cause = str(error)
                if loop.time() - began >= 1.0:
                    # A broker that no longer acknowledges is as good as gone.
                    session.abort(cause)
            await asyncio.sleep(min(RESEND_S, max(until - loop.time(), 0)))
        raise SignallingError(f"{self.name}: {cause or self._error or 'not connected yet'}")

    async def publish_retained(self, topic: str, payload: bytes, expiry_s: int) -> None:
        """Publish a message that the broker is to keep, once.

        Raises:
            SignallingError: not connected, refused or not acknowledged.

        """
        session = self._session
        if session is None:
            raise SignallingError(f"{self.name}: {self._error or 'not connected yet'}")
        try:
            await session.publish(topic, payload, retain=True, expiry_s=expiry_s)
        except SignallingError as error:
            raise SignallingError(f"{self.name}: {error}") from None

    async def _connect_within(self, seconds: float) -> None:
        """Wait for a connection, trying one now where the last try failed."""
        self._nudged.set()
        self._up.clear()  # still set when a session has ended this very moment
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError:
            pass

    # Diagnosis.

    def status(self) -> BrokerStatus:
        """Return what is known of the broker."""
        return BrokerStatus(
            url=self.name,
            state=self._state,
            since=self._since,
            error=self._error,
            latency_s=self._latency_s,
            version={_V5: "5", _V3: "3.1.1"}.get(self._version, ""),
            tls=self._url.scheme in ("mqtts", "wss"),
            on_demand=self.on_demand,
            answered_by=self._wrong.who if self._wrong is not None else "",
        )

    def _set(self, state: str) -> None:
        now = asyncio.get_running_loop().time()
        if state != self._state:
            self._state, self._since = state, now


async def _give_up(tries: list[asyncio.Task[Session]]) -> None:
    """End what is still connecting, and what connected too late."""
    for task in tries:
        task.cancel()
    if tries:
        await asyncio.wait(tries)
    for task in tries:
        if not task.cancelled() and task.exception() is None:
            task.result().abort()

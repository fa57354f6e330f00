"""Signals through MQTT brokers (WIRE.md section 2).

The node stays connected to some of its configured brokers and receives on its inbox topic there. A
signal is published on every broker that both addresses name; where there is none, or none that
works, the sender connects to one of the peer's. aiomqtt is loaded with the first connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import SignallingError
from warpgate.net.nat64 import Nat64
from warpgate.protocol.peer_address import MAX_BROKERS
from warpgate.server_urls import BrokerURL, parse_broker
from warpgate.signalling.broker_policy import configured, inbox_topic, may_dial, names_of
from warpgate.signalling.mqtt_inbox import Inbox
from warpgate.signalling.mqtt_link import RESEND_S, BrokerLink, BrokerStatus
from warpgate.signalling.mqtt_race import Race
from warpgate.signalling.mqtt_retained import MARK, Retained
from warpgate.signalling.transport import Deliver, SignalOrigin

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.protocol.peer_address import PeerAddress, Signer

SEND_S: Final = 5.0
"""How long a signal may take to be accepted by a broker."""
COMMON_S: Final = 1.0
"""How long the common brokers have before the peer's others are dialled too."""
BRIDGES_S: Final = 0.1
"""How long a broker of ours has to say that a bridge takes a signal for a peer that is elsewhere."""
CLOSE_S: Final = 1.0
MAX_ON_DEMAND: Final = 4
IDLE_S: Final = 60.0
MAX_SENDING: Final = 512
"""Publications under way, over all signals and brokers."""
SUBSTITUTE_AFTER_S: Final = 10.0
FIRST_S: Final = 1.0
"""Within this a broker that can be reached at all is connected: the next one is tried beside it."""
LINGER_S: Final = 300.0
"""How long a substitute stays once the broker that it stands in for is back: addresses name it."""
TICK_S: Final = 2.0


class MqttTransport:
    """The core's own signal transport.

    Args:
        identity: whose inbox to receive on.
        brokers: URLs of the configured brokers, best first; credentials stay in this process.
        keep: how many of them to stay connected to, 1 to 4.
        counters: where drops are counted.
        on_link: whether an IP address lies on a subnet that this node is directly connected to.
        tls_context: for ``mqtts`` and ``wss``; None takes the system's certificate authorities.
        on_change: called when :meth:`brokers` has changed, so that the address is signed anew.
        on_return: called when a broker is reached after a time when none could be.
        nat64: the way to brokers of IPv4 from where only IPv6 leads outside; None: one of its own.

    Raises:
        ConfigError: a broker's URL can't be used.

    """

    name = "mqtt"

    def __init__(
        self,
        identity: Signer,
        brokers: Sequence[str],
        keep: int,
        counters: Counters,
        *,
        on_link: Callable[[str], bool] = lambda _ip: False,
        tls_context: ssl.SSLContext | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_return: Callable[[], None] = lambda: None,
        nat64: Nat64 | None = None,
    ) -> None:
        self._configured: dict[str, BrokerURL] = {}
        for name, url in map(configured, brokers):
            self._configured.setdefault(name, url)
        self._keep, self._counters = min(keep, MAX_BROKERS), counters
        self._on_link, self._tls_context = on_link, tls_context
        self._on_change, self._on_return, self._nat64 = on_change, on_return, nat64 or Nat64()
        self._inbox_topic = inbox_topic(identity.public_key)
        self._inbox = Inbox(counters, self._hand_over)
        self._retained = Retained(self._inbox_topic, counters)
        self._deliver: Deliver | None = None
        self._kept: dict[str, BrokerLink] = {}
        self._on_demand: dict[str, BrokerLink] = {}
        self._restored: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()  # those of them that close links
        self._sending = 0
        self._some_up = asyncio.Event()

    # Life.

    async def start(self, deliver: Deliver) -> None:
        """Begin to connect; waits for no broker."""
        self._deliver = deliver
        for name in list(self._configured)[: self._keep]:
            self._open_kept(name)
        self._spawn(self._inbox.run())
        self._spawn(self._look_after())

    async def close(self) -> None:
        """Disconnect from every broker, within a second whatever they do."""
        self._deliver = None
        links = [*self._kept.values(), *self._on_demand.values()]
        self._on_demand.clear()
        tasks = set(self._tasks)
        for task in tasks - self._leaving:
            task.cancel()
        tasks |= {asyncio.ensure_future(link.close()) for link in links}
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    def brokers(self) -> tuple[str, ...]:
        """Return the brokers for the node's address, without credentials, in configured order."""
        if self._deliver is None and not self._kept:
            return tuple(self._configured)[: self._keep]
        return tuple(name for name in self._configured if name in self._kept)[:MAX_BROKERS]

    def status(self) -> list[BrokerStatus]:
        """Return what is known of every broker in use, the configured ones first."""
        return [link.status() for link in [*self._kept.values(), *self._on_demand.values()]]

    def nudge(self, own_ips: Collection[str]) -> None:
        """Look after the connections to brokers at once: the network has changed."""
        for link in self._kept.values():
            link.nudge(own_ips)

    async def wait_connected(self) -> None:
        """Wait until a broker is connected."""
        while not any(link.connected for link in self._kept.values()):
            self._some_up.clear()
            await self._some_up.wait()

    # Sending.

    async def send(self, dest: PeerAddress, envelope: bytes) -> None:
        """Publish to a peer's inbox; return when one broker has accepted it.

        Raises:
            SignallingError: none did within 5 s; the text has each broker's cause.

        """
        await self._send(dest, envelope, None)

    async def _send(self, dest: PeerAddress, envelope: bytes, came_by: BrokerLink | None) -> None:
        now = asyncio.get_running_loop().time()
        for refused in [link for link in self._on_demand.values() if link.refused]:
            self._drop_on_demand(refused)  # another peer's word may be good enough
        theirs = names_of(dest.brokers)
        links = {
            name: link
            for name in theirs
            if (link := self._kept.get(name) or self._on_demand.get(name)) is not None
        }
        if came_by is not None and self._alive(came_by):
            links[came_by.name] = came_by
        race = Race(self._publisher(dest, envelope, now + SEND_S))
        try:
            race.add(links.values())
            # A broker of ours may be bridged with the peer's, or be the same by another port; MQTT 5
            # tells whether anybody is there. A bridge always is, so the dials go on nevertheless.
            if not any(link.connected for link in links.values()):
                ours = [link for link in self._kept.values() if link.tells_receivers]
                within_s = COMMON_S if links else BRIDGES_S
                race.add(ours, self._publisher(dest, envelope, now + within_s))
            if links and await race.won(COMMON_S):
                return
            others = [name for name in theirs if name not in links]
            race.add(self._dial_for(dest, others, race.errors))
            if not await race.won(None):
                race.errors = race.errors or ["this node and the peer have no broker to meet at"]
                raise SignallingError("; ".join(race.errors))
        finally:
            race.end(spare_dials=not links)

    def _publisher(
        self, dest: PeerAddress, envelope: bytes, until: float
    ) -> Callable[[BrokerLink], asyncio.Task[None]]:
        topic = inbox_topic(dest.key)

        async def publish(link: BrokerLink) -> None:
            if self._sending >= MAX_SENDING:
                self._counters.count("mqtt_unsent")
                raise SignallingError("too many signals are being sent at once")
            self._sending += 1
            try:
                await link.publish(topic, envelope, until)
            finally:
                self._sending -= 1

        return lambda link: self._spawn(publish(link))

    def _alive(self, link: BrokerLink) -> bool:
        return link in (self._kept.get(link.name), self._on_demand.get(link.name))

    # Brokers on demand.

    def _dial_for(
        self, dest: PeerAddress, names: Sequence[str], errors: list[str]
    ) -> list[BrokerLink]:
        """Open links to a peer's brokers that this node is not connected to."""
        links = []
        for name in names:
            if self._deliver is None:
                break
            if len(self._on_demand) >= MAX_ON_DEMAND and not self._make_room():
                self._counters.count("mqtt_on_demand_refused")
                errors.append(f"{name}: too many brokers are connected on demand")
                continue
            link = self._on_demand[name] = self._link_for(dest, name)
            link.start()
            links.append(link)
        return links

    def _link_for(self, dest: PeerAddress, name: str) -> BrokerLink:
        ours = self._configured.get(name)
        if ours is not None:
            return self._link(ours, on_demand=True)
        peer_ips = [endpoint.ip for each in dest.interfaces for endpoint in each.endpoints]
        return self._link(
            parse_broker(name),
            on_demand=True,
            permit=lambda ip: may_dial(self._nat64.native(ip), peer_ips, self._on_link),
        )

    def _make_room(self) -> bool:
        idle = [link for link in self._on_demand.values() if link.idle_for > 0]
        if idle:
            self._drop_on_demand(max(idle, key=lambda link: link.idle_for))
        return bool(idle)

    def _drop_on_demand(self, link: BrokerLink) -> None:
        self._leave(self._on_demand.pop(link.name))

    # Brokers kept.

    def _open_kept(self, name: str) -> None:
        if name in self._on_demand:
            self._drop_on_demand(self._on_demand[name])
        link = self._kept[name] = self._link(self._configured[name])
        link.start()

    def _link(self, url: BrokerURL, **options: Any) -> BrokerLink:
        return BrokerLink(
            url,
            topics=(self._inbox_topic,),
            on_message=self._received,
            context=self._tls_context,
            on_connected=self._connected,
            reach=self._nat64.reach,
            **options,
        )

    def _connected(self, link: BrokerLink) -> None:
        self._some_up.set()
        others = [each for each in self._kept.values() if each is not link and each.connected]
        if link.was_away and not others:
            self._on_return()
        if not link.on_demand:
            self._spawn(self._retained.republish(link))

    async def _look_after(self) -> None:
        pause_s = FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = TICK_S
            for link in list(self._on_demand.values()):
                if link.idle_for >= IDLE_S:
                    self._drop_on_demand(link)
            before = self.brokers()
            self._substitute()
            if self.brokers() != before:
                self._on_change()

    def _substitute(self) -> None:
        """Stand in for brokers that are down for long; retire stand-ins no longer needed."""
        now = asyncio.get_running_loop().time()
        patience = {True: SUBSTITUTE_AFTER_S, False: FIRST_S}
        working = [each for each in self._kept.values() if each.down_for() < patience[each.was_up]]
        if len(working) < self._keep:
            spare = next((name for name in self._configured if name not in self._kept), None)
            if spare is not None and len(self._kept) < MAX_BROKERS:
                self._open_kept(spare)
        regular = list(self._configured)[: self._keep]
        regulars_work = all(self._kept[name].connected for name in regular if name in self._kept)
        for name in [name for name in self._kept if name not in regular]:
            if not regulars_work:
                self._restored.pop(name, None)
            elif now - self._restored.setdefault(name, now) >= LINGER_S:
                del self._restored[name]
                self._leave(self._kept.pop(name))

    # Receiving.

    def _received(self, link: BrokerLink, topic: str, payload: bytes, retained: bool) -> None:
        if topic == self._inbox_topic:
            if not (payload.startswith(MARK) and self._retained.take_mark(link, payload)):
                self._inbox.put(link, payload, retained)
        elif not self._retained.take(link, topic, payload):
            self._counters.count("mqtt_foreign")

    def _hand_over(self, envelope: bytes, link: BrokerLink) -> None:
        if self._deliver is None:
            return

        async def reply(answer: bytes, dest: PeerAddress) -> None:
            await self._send(dest, answer, link)

        self._deliver(envelope, SignalOrigin(self.name, False, reply, link.name))

    # Retained messages, for names.

    async def publish_retained(self, topic: str, payload: bytes, expiry_s: int = 3600) -> int:
        """Let every kept broker retain a message, now and after each reconnection.

        Args:
            topic: where; the caller's namespace.
            payload: at most 4 KiB; empty withdraws what was published.
            expiry_s: how long it is good for; MQTT 5 brokers drop it then.

        Returns:
            How many brokers have accepted it so far; 0 when none is connected.

        Raises:
            SignallingError: every broker that is connected refused, or too much is retained.

        """
        return await self._retained.publish(list(self._kept.values()), topic, payload, expiry_s)

    async def read_retained(
        self,
        topic_filter: str,
        limit: int = 8,
        timeout_s: float = 2.0,
        *,
        accept: Callable[[str, bytes], bool] = lambda _topic, _payload: True,
    ) -> list[tuple[str, bytes]]:
        """Return retained messages as (topic, payload), from every connected broker.

        Args:
            topic_filter: a topic; ``+`` stands for any one level.
            limit: how many to take; what comes beyond is dropped and counted.
            timeout_s: for everything, the wait for a connection included.
            accept: says of each topic and payload whether it is worth anything; the first that is
                ends the wait for the other brokers but for a short grace.

        Raises:
            SignallingError: no broker is connected, or none answers.

        """
        if not self._kept:
            raise SignallingError("no broker is configured")
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        causes = ""
        while (left := until - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.wait_connected()
            links = [link for link in self._kept.values() if link.connected]
            if links:
                try:
                    left = max(until - loop.time(), 0)
                    return await self._retained.read(links, topic_filter, limit, left, accept)
                except SignallingError as error:  # a connection that broke meanwhile comes back
                    causes = str(error)
            await asyncio.sleep(min(RESEND_S, max(until - loop.time(), 0)))
        states = [f"{link.name}: {link.status().error}" for link in self._kept.values()]
        raise SignallingError(causes or "; ".join(states))

    def _leave(self, link: BrokerLink) -> None:
        task = self._spawn(link.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

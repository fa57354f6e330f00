"""Names by messages that brokers retain (WIRE.md section 6).

A broker that retains records can withhold them or show old ones; it can't make any up. A node
publishes its own node id as a name, so that whoever knows the id finds the address, and the names
that its user has chosen.

Several brokers are asked at once. The first valid record ends the wait for the others but for a short
grace, so a broker that hangs or serves garbage costs nothing and hides nothing that another one shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from warpgate.errors import MessageTooLarge, RemoteProtocolError, SignallingError
from warpgate.identity import node_id_bytes
from warpgate.names.record import (
    NameRecord,
    name_filter,
    name_topic,
    normal_name,
    pack_record,
    unpack_record,
)

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.protocol.peer_address import PeerAddress, Signer

log = logging.getLogger("warpgate")

LIFE_S: Final = 3600
"""For how long a record is good."""
RENEW_S: Final = LIFE_S / 3
LOOK_S: Final = 60.0
"""How often to look whether a record must be renewed: a machine may have slept over it."""
MAX_CONSIDERED: Final = 8
"""Valid records of one name."""
MAX_SEEN: Final = 256
"""Topics whose highest sequence number is remembered, against replays."""
LOOKUP_S: Final = 2.0

K = TypeVar("K", bound=Hashable)


class RetainingTransport(Protocol):
    """What is needed of a transport; :class:`~warpgate.signalling.mqtt_transport.MqttTransport`."""

    async def publish_retained(self, topic: str, payload: bytes, expiry_s: int = ...) -> int:
        """Let every broker retain a message, now and after each reconnection."""

    async def read_retained(
        self,
        topic_filter: str,
        limit: int = ...,
        timeout_s: float = ...,
        *,
        accept: Callable[[str, bytes], bool] = ...,
    ) -> list[tuple[str, bytes]]:
        """Return what the brokers retain for a filter and ``accept`` takes."""


class RetainedNames:
    """Publishes this node's names and looks up others'.

    Args:
        transport: whose brokers retain the records.
        identity: the node's keys.
        counters: where drops are counted.
        clock: Unix time in seconds; tests inject one that is wrong.

    """

    def __init__(
        self,
        transport: RetainingTransport,
        identity: Signer,
        counters: Counters,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._identity = identity
        self._counters = counters
        self._clock = clock
        self._names: dict[str, tuple[PeerAddress, int]] = {}
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._renewal: asyncio.Task[None] | None = None

    async def publish(self, name: str, address: PeerAddress) -> int:
        """Publish a name for this node and keep it alive; again after every change of the address.

        Args:
            name: the name; the node's id makes it findable by its id.
            address: the node's own address.

        Returns:
            How many brokers have accepted it so far; the others get it when they connect.

        Raises:
            ConfigError: not a possible name.
            SignallingError: every connected broker refused it.

        """
        now = int(self._clock())
        record = pack_record(
            self._identity,
            name=name,
            address=address,
            sequence=address.sequence,
            expires_s=now + LIFE_S,
        )
        self._names[record.name] = (address, now)
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())
        return await self._transport.publish_retained(
            name_topic(record.name, record.key), record.raw, LIFE_S
        )

    async def withdraw(self, name: str) -> None:
        """Take a name back from the brokers that are connected."""
        self._names.pop(normal_name(name), None)
        await self._transport.publish_retained(name_topic(name, self._identity.public_key), b"", 0)

    async def lookup(
        self,
        name: str,
        timeout_s: float = LOOKUP_S,
        *,
        fingerprint: str | None = None,
        sequence: int = 0,
    ) -> list[NameRecord]:
        """Return the valid records of a name, one for each key, the newest of each.

        Args:
            name: the name.
            timeout_s: for everything, in seconds.
            fingerprint: look for the record of this key only; nothing else can crowd it out.
            sequence: with ``fingerprint``, the lowest sequence number that is not a replay.

        Raises:
            SignallingError: no broker is connected, or none answers.

        """
        topic = name_filter(name)
        if fingerprint is not None:
            topic = topic.removesuffix("+") + fingerprint
        return list((await self._read(name, topic, timeout_s, sequence)).fresh.values())

    async def lookup_node(self, node_id: str, timeout_s: float = LOOKUP_S) -> PeerAddress | None:
        """Return the address of the node with an id, or None when no broker knows it.

        The record's key must be the id, so a stranger's record can't be mistaken for it. A record
        that has expired by this node's clock still serves when there is no other: a clock may be
        wrong by a year, and a stale address costs an attempt, nothing else.

        Raises:
            ValueError: not a node id.
            SignallingError: no broker is connected, or none answers.

        """
        key = node_id_bytes(node_id)
        reading = await self._read(node_id, name_topic(node_id, key), timeout_s, 0)
        best = reading.fresh.get(key) or reading.expired.get(key)
        return None if best is None else best.address

    async def close(self) -> None:
        """Stop renewing; what brokers retain expires by itself."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            await asyncio.wait([renewal])

    async def _read(
        self, name: str, topic_filter: str, timeout_s: float, sequence: int
    ) -> _Reading:
        reading = _Reading(name, self._clock(), sequence, self._seen, self._counters)
        await self._transport.read_retained(
            topic_filter, MAX_CONSIDERED, timeout_s, accept=reading.accept
        )
        for topic, best in reading.newest.items():
            self._seen[topic] = max(best.sequence, self._seen.get(topic, 0))
            self._seen.move_to_end(topic)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return reading

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, RENEW_S) * random.uniform(0.8, 1.0))
            now, earliest = self._clock(), RENEW_S * random.uniform(0.8, 1.0)
            for name, (address, published) in list(self._names.items()):
                if name in self._names and not 0 <= now - published < earliest:
                    with contextlib.suppress(SignallingError):
                        await self.publish(name, address)


class _Reading:
    """Judges what brokers retain for one name."""

    def __init__(
        self,
        name: str,
        now: float,
        sequence: int,
        seen: Mapping[str, int],
        counters: Counters,
    ) -> None:
        self.fresh: dict[bytes, NameRecord] = {}
        self.expired: dict[bytes, NameRecord] = {}
        self.newest: dict[str, NameRecord] = {}
        self._name = name
        self._now = now
        self._sequence = sequence
        self._seen = seen
        self._counters = counters

    def accept(self, topic: str, payload: bytes) -> bool:
        """Take a record; returns whether it is a valid one of a key that had none yet."""
        try:
            record = unpack_record(payload)
        except MessageTooLarge:
            return self._refuse("names_oversize", topic)
        except RemoteProtocolError as error:
            return self._refuse("names_forged", str(error))
        if {topic} != {name_topic(each, record.key) for each in (self._name, record.name)}:
            return self._refuse("names_misplaced", topic)
        if record.sequence < max(self._sequence, self._seen.get(topic, 0)):
            return self._refuse("names_replayed", f"sequence {record.sequence}")
        _keep(self.newest, topic, record)
        if record.expires_s <= self._now:
            _keep(self.expired, record.key, record)
            return self._refuse("names_stale", f"expired at {record.expires_s}")
        return _keep(self.fresh, record.key, record)

    def _refuse(self, counter: str, why: str) -> bool:
        self._counters.count(counter)
        log.debug("a record for %r dropped: %s: %s", self._name, counter, why)
        return False


def _keep(kept: dict[K, NameRecord], key: K, record: NameRecord) -> bool:
    """Keep the newest record; returns whether there was none."""
    other = kept.get(key)
    if other is None or (record.sequence, record.expires_s) > (other.sequence, other.expires_s):
        kept[key] = record
    return other is None

"""Names by messages that brokers retain (WIRE.md section 6).

A broker that retains records can withhold them or show old ones; it can't make any up. For now a
node publishes its own node id as a name, so that whoever knows the id finds the address; records of
chosen names take the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from warpgate.errors import RemoteProtocolError, SignallingError
from warpgate.identity import node_id_bytes
from warpgate.names.record import NameRecord, name_filter, name_topic, pack_record, unpack_record

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.protocol.peer_address import PeerAddress, Signer

log = logging.getLogger("warpgate")

LIFE_S: Final = 3600
"""For how long a record is good."""
RENEW_S: Final = LIFE_S / 3
MAX_CONSIDERED: Final = 8
LOOKUP_S: Final = 2.0


class RetainingTransport(Protocol):
    """What is needed of a transport; :class:`~warpgate.signalling.mqtt_transport.MqttTransport`."""

    async def publish_retained(self, topic: str, payload: bytes, expiry_s: int = ...) -> int:
        """Let every broker retain a message, now and after each reconnection."""

    async def read_retained(
        self, topic_filter: str, limit: int = ..., timeout_s: float = ...
    ) -> list[tuple[str, bytes]]:
        """Return what the brokers retain for a filter."""


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
        self._names: dict[str, PeerAddress] = {}
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
        self._names[record.name] = address
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())
        return await self._transport.publish_retained(
            name_topic(record.name, record.key), record.raw, LIFE_S
        )

    async def withdraw(self, name: str) -> None:
        """Take a name back from the brokers that are connected."""
        self._names.pop(name, None)
        await self._transport.publish_retained(name_topic(name, self._identity.public_key), b"", 0)

    async def lookup(self, name: str, timeout_s: float = LOOKUP_S) -> list[NameRecord]:
        """Return the valid records of a name, one for each key, the newest of each.

        Raises:
            SignallingError: no broker is connected, or none answers.

        """
        found = await self._read(name, name_filter(name), timeout_s)
        now = self._clock()
        fresh = [record for record in found if record.expires_s > now]
        self._drop("names_stale", len(found) - len(fresh))
        return list(_newest(fresh).values())

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
        found = await self._read(node_id, name_topic(node_id, key), timeout_s)
        mine = [record for record in found if record.key == key]
        self._drop("names_forged", len(found) - len(mine))
        now = self._clock()
        fresh = [record for record in mine if record.expires_s > now]
        self._drop("names_stale", len(mine) - len(fresh))
        best = _newest(fresh or mine).get(key)
        return None if best is None else best.address

    async def close(self) -> None:
        """Stop renewing; what brokers retain expires by itself."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            await asyncio.wait([renewal])

    async def _read(self, name: str, topic_filter: str, timeout_s: float) -> list[NameRecord]:
        records = []
        for topic, payload in await self._transport.read_retained(
            topic_filter, MAX_CONSIDERED, timeout_s
        ):
            try:
                record = unpack_record(payload)
            except RemoteProtocolError as error:
                self._counters.count("names_forged")
                log.debug("a record for %r dropped: %s", name, error)
                continue
            if (
                name_topic(name, record.key) != topic
                or name_topic(record.name, record.key) != topic
            ):
                self._counters.count("names_misplaced")
                continue
            records.append(record)
        return records

    def _drop(self, counter: str, n: int) -> None:
        if n:
            self._counters.count(counter, n)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S * random.uniform(0.8, 1.0))
            for name, address in list(self._names.items()):
                with contextlib.suppress(SignallingError):
                    await self.publish(name, address)


def _newest(records: list[NameRecord]) -> dict[bytes, NameRecord]:
    newest: dict[bytes, NameRecord] = {}
    for record in records:
        other = newest.get(record.key)
        if other is None or (record.sequence, record.expires_s) > (other.sequence, other.expires_s):
            newest[record.key] = record
    return newest

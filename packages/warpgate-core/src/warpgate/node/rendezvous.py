"""The core's own way through brokers: MQTT signals, peers by node id or name, and this node's names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from warpgate.errors import ConfigError, SignallingError, WarpgateError
from warpgate.hookspecs import hookimpl
from warpgate.names.finder import find_name, find_node, unknown
from warpgate.names.rules import clean_name, fingerprint, full_name, is_node_id, shown
from warpgate.protocol.web_page import LOG_IN

if TYPE_CHECKING:
    from collections.abc import Collection

    from warpgate.names.retained import RetainedNames
    from warpgate.node.node import Node
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.signalling.mqtt_transport import MqttTransport

log = logging.getLogger("warpgate")

PUBLISH_S = 5.0
"""How long a broker has to accept a new name."""
AGAIN_S = 0.25
WITHDRAW_S = 1.0
MAX_NICKNAMES = 15
"""The transport keeps 16 records: these, and that of the node's id."""


class Rendezvous:
    """The last implementations of the hooks that bring two nodes together.

    Attributes:
        mqtt: the transport, when the node uses brokers and no plugin brought another one.
        names: this node's records on those brokers.
        nicknames: the names that this node has published, and whether to withdraw each on close.

    """

    def __init__(self) -> None:
        self.mqtt: MqttTransport | None = None
        self.names: RetainedNames | None = None
        self.nicknames: dict[str, bool] = {}
        self._publishing: asyncio.Task[None] | None = None
        self._again = False

    @hookimpl(trylast=True)
    def warpgate_signal_transport(self, node: Node) -> Any:
        """Return the MQTT transport for the node's brokers, if it has any."""
        brokers, keep = node.conf["brokers"], node.conf["sig_pipe_no"]
        if not brokers or not keep:
            return None
        from warpgate.names.retained import RetainedNames
        from warpgate.signalling.mqtt_transport import MqttTransport

        self.mqtt = MqttTransport(
            node.identity,
            brokers,
            keep,
            node.stats,
            on_link=lambda ip: any(nic.on_link(ip) for nic in node.ifs),
            on_change=node.sign_address,
            on_return=node.network.back_online,
            nat64=node.network.nat64,
        )
        if node.conf["enable_nickname"]:
            self.names = RetainedNames(self.mqtt, node.identity, node.stats)
        return self.mqtt

    @hookimpl(trylast=True)
    async def warpgate_resolve_address(
        self, node: Node, address: bytes | str
    ) -> PeerAddress | str | None:
        """Look a name up in the address book, then a name or a node id on the brokers.

        Raises:
            UnknownPeerError: it could not be found; the text says why.
            KeyChangedError: only others claim a name that is pinned.
            ConfigError: the pins or the address book can't be read.

        """
        if not isinstance(address, str):
            return None
        by_id = is_node_id(address)
        if not by_id:
            with contextlib.suppress(ValueError):
                written = node.trust.book.find(clean_name(address))
                if written is not None:
                    return written
        if self.names is None:
            raise unknown(address, self._why_no_names(node))
        if by_id:
            return await find_node(self.names, address.lower())
        return await find_name(self.names, node.trust, address)

    def _why_no_names(self, node: Node) -> str:
        if not node.conf["brokers"] or not node.conf["sig_pipe_no"]:
            return "no broker is configured here to look it up on"
        if self.mqtt is None:
            return "a plugin's signal transport took the brokers' place"
        return "names and node ids are switched off here (enable_nickname is False)"

    # This node's own names.

    async def nickname(self, node: Node, name: str, withdraw_on_close: bool) -> str:
        """See :meth:`warpgate.Node.nickname`."""
        if not isinstance(name, str):
            raise ConfigError(f"{name!r} is no name: expected text")
        try:
            name = clean_name(name)
        except ValueError as error:
            raise ConfigError(f"{shown(name)} can't be a name, because {error}") from None
        if self.names is None or not node.running:
            why = self._why_no_names(node) if node.running else "the node is not running"
            raise SignallingError(f"{shown(name)} can't be published: {why}")
        if name not in self.nicknames and len(self.nicknames) >= MAX_NICKNAMES:
            raise ConfigError(f"a node has at most {MAX_NICKNAMES} names; withdraw one first")
        before = self.nicknames.get(name)
        self.nicknames[name] = withdraw_on_close  # so that a new address meanwhile counts too
        try:
            await self._publish_first(self.names, node, name)
        except BaseException:
            if before is not None:
                self.nicknames[name] = before
            else:
                await self._withdraw([name])
            raise
        await self._look_for_others(self.names, node, name)
        return full_name(name, node.identity.public_key)

    async def _publish_first(self, names: RetainedNames, node: Node, name: str) -> None:
        """Publish until one broker has it; the transport tells the others when they connect."""
        assert self.mqtt is not None
        cause = ""
        try:
            async with asyncio.timeout(PUBLISH_S):
                while True:
                    try:
                        if await names.publish(name, node.peer_address):
                            return
                        await self.mqtt.wait_connected()
                    except SignallingError as error:
                        cause = str(error)
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            states = "; ".join(f"{each.url}: {each.error}" for each in self.mqtt.status())
            raise SignallingError(
                f"{shown(name)} could not be published: no broker accepted it within "
                f"{PUBLISH_S:g} s ({cause or states})"
            ) from None

    async def _look_for_others(self, names: RetainedNames, node: Node, name: str) -> None:
        own = node.identity.public_key
        others: list[str] = []
        with contextlib.suppress(SignallingError):
            records = await names.lookup(name)
            others = [fingerprint(record.key) for record in records if record.key != own]
        if others:
            node.stats.count("names_contested")
            log.warning(
                "the name %s is also claimed by %s: peers that have not pinned it need %s",
                shown(name),
                ", ".join(others),
                full_name(name, own),
            )

    async def withdraw_nickname(self, name: str) -> None:
        """See :meth:`warpgate.Node.withdraw_nickname`."""
        with contextlib.suppress(ValueError):
            name = clean_name(name)
        if name not in self.nicknames:
            known = ", ".join(map(shown, self.nicknames)) or "none"
            raise ConfigError(f"{name!r} is no name of this node; its names: {known}")
        await self._withdraw([name])

    async def _withdraw(self, nicknames: Sequence[str]) -> None:
        """Take names back from the brokers that are connected; a broker that hangs is not waited for."""
        assert self.names is not None
        for name in nicknames:
            self.nicknames.pop(name, None)
        tasks = [asyncio.ensure_future(self.names.withdraw(name)) for name in nicknames]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=WITHDRAW_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def publish(self, node: Node) -> None:
        """Let the brokers retain the node's newest address under its id and names, in the background."""
        if self.names is None:
            return
        self._again = True
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.get_running_loop().create_task(self._publish(node))

    async def _publish(self, node: Node) -> None:
        assert self.names is not None
        while self._again:
            self._again = False
            for name in (node.node_id, *self.nicknames):
                if name != node.node_id and name not in self.nicknames:
                    continue  # withdrawn meanwhile
                try:
                    await self.names.publish(name, node.peer_address)
                except WarpgateError as error:
                    node.stats.count("names_unpublished")
                    log.warning("%s could not be published: %s", shown(name), error)

    def connected(self) -> bool:
        """Return whether a broker is connected."""
        return self.mqtt is not None and any(
            each.state == "connected" for each in self.mqtt.status()
        )

    def login_wanted(self) -> str:
        """Return why this network seems to want a login, in words; empty when it does not.

        It does where each of its own brokers is answered for by somebody else.
        """
        states = [] if self.mqtt is None else self.mqtt.status()
        states = [each for each in states if not each.on_demand]  # those are a peer's word
        if not states or not all(each.answered_by for each in states):
            return ""
        names = ", ".join(each.url for each in states)
        if any(each.answered_by == "web page" for each in states):
            return f"this network wants a login: {LOG_IN} (in place of {names} a web page came)"
        return f"somebody else answers in place of {names} ({states[0].error}); if so, {LOG_IN}"

    def nudge(self, own_ips: Collection[str]) -> None:
        """Look after the connections to brokers at once: the network has changed."""
        if self.mqtt is not None:
            self.mqtt.nudge(own_ips)

    async def close(self) -> None:
        """Stop publishing, and withdraw what is to be withdrawn; the rest expires by itself."""
        if self._publishing is not None and not self._publishing.done():
            self._publishing.cancel()
            await asyncio.wait([self._publishing])
        if self.names is None:
            return
        await self.names.close()
        await self._withdraw([name for name, withdraw in self.nicknames.items() if withdraw])

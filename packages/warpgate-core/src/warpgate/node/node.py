"""A node: one running endpoint with its identity, listeners, strategies and pipes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from warpgate.errors import ConfigError, PipeClosed, SignallingError, TraversalError
from warpgate.events import Counters, Event, InboundPipe
from warpgate.hooks import Hooks
from warpgate.identity import default_port, load_or_create, machine_id, stack_id
from warpgate.loading import load
from warpgate.net.constants import IP4, IP6, NIC_BIND, route_type_name
from warpgate.net.listeners import Listeners
from warpgate.net.nic import loopback_interface, own_ips
from warpgate.node.addressing import (
    check_place,
    choose_interfaces,
    direct_targets,
    interface_records,
    listening_hosts,
)
from warpgate.node.config import make_config
from warpgate.node.install import install_strategies
from warpgate.node.mailbox import Mailbox
from warpgate.node.pipes import OpenPipes
from warpgate.node.rendezvous import Rendezvous
from warpgate.node.resolve import resolve
from warpgate.node.slots import IdentitySlot
from warpgate.protocol.peer_address import PeerAddress, pack_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.resources import Resources
from warpgate.signalling.direct import DirectTransport
from warpgate.signalling.router import SignalRouter
from warpgate.traversal.manager import TraversalManager
from warpgate.traversal.plan import Combination
from warpgate.traversal.policy import refuse_dial

if TYPE_CHECKING:
    from warpgate.hello.messages import Deframer
    from warpgate.identity import Identity
    from warpgate.net.nic import Interface
    from warpgate.net.pipe import Pipe
    from warpgate.net.subscription import MsgCallback
    from warpgate.net.tcp import TcpPipe
    from warpgate.plugin import Plugin
    from warpgate.traversal.report import Report

log = logging.getLogger("warpgate")

CLOSE_S = 2.0
"""How long ``close()`` waits for farewells, in each of its steps."""


class Node:
    """One endpoint: start it, give its address to peers, connect to theirs.

    Args:
        ifs: the interfaces to use (objects or names), None for all.
        ip: the one local address to listen on, None for all.
        port: the port to listen on, None for one derived from the machine; the next free one when taken.
        conf: settings, merged over ``NODE_CONF``.

    Raises:
        ConfigError: a setting is unknown or has a value that can't be used.

    """

    def __init__(
        self,
        ifs: Sequence[Interface | str] | Mapping[str, Any] | None = None,
        ip: str | None = None,
        port: int | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(ifs, Mapping):
            ifs, conf = None, ifs
        self.conf = make_config(conf, os.environ)
        self.stats = Counters()
        self.resources = Resources(self.stats)
        self.last_report: Report | None = None
        self.ifs: list[Interface] = []
        self.loopback: Interface
        self._own_ips: set[str] = set()
        self.port = 0
        self.identity: Identity
        self.hooks = Hooks(counters=self.stats)
        self.traversal: TraversalManager
        self.router: SignalRouter
        self.peer_address: PeerAddress
        self.running = False
        self._wanted = check_place(ifs, ip, port)
        self._slot: IdentitySlot | None = None
        self._listeners: Listeners | None = None
        self._direct: DirectTransport | None = None
        self.rendezvous = Rendezvous()
        self._mailbox = Mailbox(self.stats)
        self._pipes = OpenPipes(self.stats)
        self._sequence = 0
        self._starting: asyncio.Task[Node] | None = None
        self._closing: asyncio.Task[None] | None = None

    # Life cycle.

    async def start(self) -> Node:
        """Start listening, signalling and the strategies; idempotent.

        Returns:
            This node.

        Raises:
            ConfigError: an interface, address, key file or strategy name can't be used.
            OSError: no address could be listened on.

        """
        if self._closing is not None:
            raise TraversalError("this node has been closed; make a new one")
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        # Not awaited itself: its cancellation by close() must not look like the caller's.
        await asyncio.wait([self._starting])
        if self._starting.cancelled():
            raise TraversalError("this node was closed while it was starting")
        return self._starting.result()

    async def _start(self) -> Node:
        try:
            await self._open()
        except BaseException:
            await self._shut_down()
            raise
        return self

    async def _open(self) -> None:
        ifs, ip, port = self._wanted
        self.identity = load_or_create(self._identity_folder())
        report = load(self.conf, os.environ)
        # What is registered first is called last: a plugin's own transport or resolver wins.
        self.hooks = Hooks([self.rendezvous, *report.objects], self.stats)
        await self.hooks.each("warpgate_node_starting", node=self)
        nics, ip = choose_interfaces(ifs, ip)
        self.loopback, self._own_ips = loopback_interface(), own_ips()
        self.traversal = TraversalManager(self)
        self.traversal.messages.add(ConMsg)
        self.router = SignalRouter(
            self.identity, self.traversal.messages, self.stats, self.traversal.signals.on_signal
        )
        self._listeners = Listeners(
            self.traversal.inbound.accept_stream, self.traversal.inbound.accept_datagram
        )
        self.port = await self._listeners.open(
            listening_hosts(nics, ip),
            port if port is not None else default_port(machine_id()),
            reuse_addr=self.conf["reuse_addr"],
        )
        self.ifs, self._records = interface_records(nics, ip, self.port)
        self._direct = DirectTransport(self._direct_targets, self.stats)
        extra = self.hooks.first_sync("warpgate_signal_transport", node=self)
        await self.router.start([self._direct] if extra is None else [self._direct, extra])
        self.sign_address()
        await install_strategies(self, report)
        self.running = True
        self.rendezvous.publish(self)
        log.info("node %s listens on port %d", self.node_id, self.port)

    def _identity_folder(self) -> Path | None:
        path = self.conf["install_path"]
        if path == ":memory:":
            return None
        self._slot = IdentitySlot(Path(path))
        if self._slot.number > 1:
            log.warning(
                "another node is running on install_path %s; this one has a key of its own in %s",
                path,
                self._slot.folder,
            )
        return self._slot.folder

    async def close(self) -> None:
        """End every attempt and pipe, free everything; idempotent, a few seconds at the most."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._starting is not None and not self._starting.cancelled():
            self._starting.exception()  # whoever called start() has seen it, if anyone still waited
        await self._shut_down()

    async def _shut_down(self) -> None:
        self.running = False
        if self._listeners is not None:
            await self._listeners.close()
        if hasattr(self, "traversal"):
            await self.traversal.close(CLOSE_S)
        await self._pipes.close(CLOSE_S)
        await self.rendezvous.close()
        if hasattr(self, "router"):
            await self.router.close()
        await self.resources.close(CLOSE_S)
        self._mailbox.close(PipeClosed("the node has been closed"))
        if self._slot is not None:
            self._slot.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Address.

    @property
    def node_id(self) -> str:
        """The node's id: its public key, 52 characters."""
        self._check_started()
        return self.identity.node_id

    def address(self) -> bytes:
        """Return the node's signed address: give it to peers."""
        self._check_started("peer_address")
        return self.peer_address.raw

    def _check_started(self, made: str = "identity") -> None:
        if not hasattr(self, made):
            raise ConfigError("the node is not running; await node.start() first")

    def sign_address(self) -> None:
        """Sign the address anew; its sequence number grows with time, also over restarts."""
        self._sequence = max(self._sequence + 1, self.unix_time())
        self.peer_address = pack_address(
            self.identity,
            machine=stack_id(),
            sequence=self._sequence,
            brokers=self.router.brokers(),
            interfaces=self._records,
        )
        if self.running:
            self.rendezvous.publish(self)

    def supported(self) -> list[int]:
        """Return the address families that this node has an interface for."""
        self._check_started("peer_address")
        families = self.peer_address.families()
        return [af for af in (IP4, IP6) if af in families]

    def own_ips(self) -> set[str]:
        """Return every address that this machine had when the node started."""
        return self._own_ips

    def unix_time(self) -> int:
        """Return the Unix time in seconds."""
        return int(time.time())

    async def nickname(self, name: str) -> str:
        """Publish a name for this node's address: not in this version, so raise SignallingError."""
        raise SignallingError(
            f"{name!r}: publishing nicknames is not part of this version; "
            "give peers this node's id or address"
        )

    # Connecting.

    async def connect(
        self,
        af: int | None = None,
        route_type: int = NIC_BIND,
        pnp_addr: bytes | str | PeerAddress = b"",
        plugin_name: str | None = None,
    ) -> Plugin:
        """Start one strategy against a peer.

        Args:
            af: the address family; None takes the first that both share.
            route_type: ``NIC_BIND``, ``EXT_BIND`` or ``LOOPBACK_BIND``.
            pnp_addr: the peer's address or nickname.
            plugin_name: the strategy's name; None races all of them (``fan_out``).

        Returns:
            The attempt's plugin; await its ``result``.

        Raises:
            ConfigError: an unknown strategy; the text lists those installed.
            InvalidAddressError, UnknownPeerError, KeyChangedError: as the resolution found.
            NoSharedFamilyError: the peers do not share the family.
            TraversalError: the route type leads nowhere, or is not the strategy's; the address is
                this node's own; the node is closing.

        """
        from warpgate.node.auto_connect import check_options
        from warpgate.traversal.auxiliary.fan_out import FanOut
        from warpgate.traversal.loaders import Loader

        check_options(self)
        if plugin_name is None:
            loader = self.traversal.plugin_loaders.get("fan_out") or Loader(
                "fan_out", FanOut, timeout=FanOut.conf["timeout"]
            )
        else:
            loader = self.traversal.loader(plugin_name)
        peer = await resolve(self, pnp_addr)
        if peer.key == self.identity.public_key:
            raise TraversalError("that is this node's own address")
        path = self.traversal.find_path(peer, af, route_type)
        strategy = loader.info()
        if route_type not in strategy.route_types:
            raise TraversalError(
                f"{loader.name} does not support the route type {route_type_name(route_type)}"
            )
        combination = Combination(loader.name, strategy.phase, strategy.group, path)
        attempt = self.traversal.create_attempt(combination, peer, loader=loader)
        if attempt is None:
            raise TraversalError("the node is closing")
        attempt.start()
        return attempt.plugin

    # Inbound.

    def add_msg_cb(self, cb: MsgCallback) -> None:
        """Call ``cb(msg, (ip, port), pipe)`` for every message on every inbound pipe.

        ``cb`` may be a coroutine function; it is awaited before the pipe's next message.
        """
        self._mailbox.add_callback(cb)

    def del_msg_cb(self, cb: MsgCallback) -> None:
        """Stop calling ``cb``."""
        self._mailbox.remove_callback(cb)

    async def accept(self) -> Pipe:
        """Wait for the next inbound pipe.

        Raises:
            PipeClosed: the node was closed meanwhile.

        """
        return await self._mailbox.accept()

    def pipe_future(self, pipe_id: str) -> asyncio.Future[Pipe]:
        """Return a future for an inbound pipe under an id of your choice."""
        return self._mailbox.future(pipe_id)

    def pipe_ready(self, pipe_id: str, pipe: Pipe) -> None:
        """Resolve :meth:`pipe_future` of the same id."""
        self._mailbox.ready(pipe_id, pipe)

    # For the traversal layer.

    def track(self, pipe: Pipe) -> bool:
        """Close a pipe with the node, if nobody has before; False when the node is closed already."""
        return self._pipes.add(pipe)

    def deliver(self, pipe: Pipe) -> None:
        """Show an inbound pipe to the user."""
        if self.track(pipe):
            self.notify(InboundPipe(pipe.peer_id, pipe.plugin_name, pipe.remote))
            self._mailbox.deliver(pipe)

    def accept_signals(self, pipe: TcpPipe, deframer: Deframer, body: bytes) -> None:
        """Take over an inbound connection that carries signals."""
        if self._direct is None:
            pipe.abort()
        else:
            self._direct.accept(pipe, deframer, body)

    def notify(self, event: Event) -> None:
        """Tell the observers."""
        self.hooks.notify(self, event)

    def _direct_targets(self, peer: PeerAddress) -> list[tuple[Interface, int, str, int]]:
        targets = direct_targets(self.peer_address, peer, self.ifs, self.loopback)
        if self.traversal.has_called(peer.node_id):
            return targets
        # We only answer this peer: its address is its word alone (WIRE section 5).
        own, near = self.own_ips(), self.traversal.is_called_over_loopback(peer.node_id)
        allowed = [t for t in targets if refuse_dial(t[2], self.ifs, own, near) is None]
        if len(allowed) < len(targets):
            self.stats.count("dials_refused", len(targets) - len(allowed))
        return allowed

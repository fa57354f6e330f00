"""A node: one running endpoint with its identity, listeners, strategies and pipes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from warpgate.errors import ConfigError, PipeClosed, TraversalError
from warpgate.events import Counters, Event, InboundPipe
from warpgate.hooks import Hooks
from warpgate.identity import default_port, load_or_create, machine_id, stack_id
from warpgate.loading import load
from warpgate.names.trust import Trust
from warpgate.net.constants import IP4, IP6, NIC_BIND
from warpgate.node.addressing import signal_targets
from warpgate.node.config import make_config
from warpgate.node.install import install_strategies
from warpgate.node.mailbox import Mailbox
from warpgate.node.network import NetworkWatch
from warpgate.node.pipes import OpenPipes
from warpgate.node.place import ListeningPlace
from warpgate.node.rendezvous import Rendezvous
from warpgate.node.slots import IdentitySlot, next_sequence, take_slot
from warpgate.protocol.peer_address import PeerAddress, pack_address
from warpgate.protocol.proto_msg import ConMsg
from warpgate.resources import Resources
from warpgate.signalling.direct import DirectTransport
from warpgate.signalling.router import SignalRouter
from warpgate.traversal.manager import TraversalManager

if TYPE_CHECKING:
    from warpgate.hello.messages import Deframer
    from warpgate.identity import Identity
    from warpgate.nat.report import NetReport
    from warpgate.net.datagram import DatagramSocket
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
        self.trust = Trust(self.conf.folder, self.stats)
        self.resources = Resources(self.stats)
        self.last_report: Report | None = None
        self.place = ListeningPlace(ifs, ip, port)
        self.network = NetworkWatch(self)
        self.identity: Identity
        self.hooks = Hooks(counters=self.stats)
        self.traversal: TraversalManager
        self.router: SignalRouter
        self.peer_address: PeerAddress
        self.running = False
        self._slot: IdentitySlot | None = None
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
        self._slot = take_slot(self.conf["install_path"])
        self.identity = load_or_create(self._slot.folder if self._slot else None)
        report = load(self.conf, os.environ)
        # What is registered first is called last: a plugin's own transport or resolver wins.
        self.hooks = Hooks([self.rendezvous, *report.objects], self.stats)
        await self.hooks.each("warpgate_node_starting", node=self)
        self.place.choose()
        self.traversal = TraversalManager(self)
        self.traversal.messages.add(ConMsg)
        self.router = SignalRouter(
            self.identity, self.traversal.messages, self.stats, self.traversal.signals.on_signal
        )
        self.place.listeners.on_stream = self.traversal.inbound.accept_stream
        self.place.listeners.on_datagram = self.traversal.inbound.accept_datagram
        await self.place.open(default_port(machine_id()), reuse_addr=self.conf["reuse_addr"])
        self._direct = DirectTransport(self._direct_targets, self.stats)
        extra = self.hooks.first_sync("warpgate_signal_transport", node=self)
        await self.router.start([self._direct] if extra is None else [self._direct, extra])
        self.sign_address()
        await install_strategies(self, report)
        self.running = True
        self.rendezvous.publish(self)
        self.network.start()
        log.info("node %s listens on port %d", self.node_id, self.port)

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
        await self.network.close()
        await self.place.close()
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
        self._sequence = next_sequence(self._slot, max(self._sequence + 1, self.unix_time()))
        self.peer_address = pack_address(
            self.identity,
            machine=stack_id(),
            sequence=self._sequence,
            brokers=self.router.brokers(),
            interfaces=self.place.records,
        )
        if self.running:
            self.rendezvous.publish(self)

    def supported(self) -> list[int]:
        """Return the address families that this node has an interface for."""
        self._check_started("peer_address")
        families = self.peer_address.families()
        return [af for af in (IP4, IP6) if af in families]

    @property
    def ifs(self) -> list[Interface]:
        """The interfaces that stand in the address, in its order."""
        return self.place.ifs

    @property
    def loopback(self) -> Interface:
        """The loopback interface."""
        return self.place.loopback

    @property
    def port(self) -> int:
        """The listening port; 0 before the start."""
        return self.place.port

    def own_ips(self) -> set[str]:
        """Return every address that this machine has."""
        return self.place.own_ips

    @property
    def net_report(self) -> NetReport | None:
        """What is known of the NATs; see :attr:`network` for more."""
        return self.network.report

    def listening_socket(
        self, af: int, local: Interface | str | None = None
    ) -> DatagramSocket | None:
        """Return the UDP socket of the listening port, whose mapping the NAT keeps.

        Args:
            af: ``IP4`` or ``IP6``.
            local: a local ip, as in ``src_info["nic"]``; or an interface: the socket of the address
                that leads outside from there; None: from the best interface.

        """
        return self.place.socket(af, local)

    def unix_time(self) -> int:
        """Return the Unix time in seconds."""
        return int(time.time())

    async def nickname(self, name: str, *, withdraw_on_close: bool = False) -> str:
        """Publish a name for this node on its brokers, and keep it fresh until the node closes.

        Args:
            name: 1 to 63 letters, digits, ``.``, ``-``, ``_``; docs/names.md has the rules.
            withdraw_on_close: take it back when the node closes; else it expires within the hour.

        Returns:
            The full name, ``name@fingerprint``, which leads to this node whoever else claims the name.

        Raises:
            ConfigError: not a possible name.
            SignallingError: there is no broker to publish it on, or none accepted it within 5 s.

        """
        return await self.rendezvous.nickname(self, name, withdraw_on_close)

    async def withdraw_nickname(self, name: str) -> None:
        """Take a name back from the connected brokers; ConfigError when it is none of this node's."""
        await self.rendezvous.withdraw_nickname(name)

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
            pnp_addr: the peer's address, node id or nickname.
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
        from warpgate.node.dial import dial

        return await dial(self, af, route_type, pnp_addr, plugin_name)

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
        return signal_targets(self, peer)

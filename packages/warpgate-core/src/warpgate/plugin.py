"""The base class of every traversal strategy."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from warpgate.errors import LocalProtocolError, PluginDefinitionError
from warpgate.net.budget import PacketBudget
from warpgate.net.constants import EXT_BIND, IP4, LOOPBACK_BIND, NIC_BIND
from warpgate.protocol.con_id import PLUGIN_ID_ALPHABET, PLUGIN_ID_LENGTH

if TYPE_CHECKING:
    from warpgate.findings import Finding
    from warpgate.nat.pair import NatPair
    from warpgate.net.nic import Interface
    from warpgate.net.pipe import Pipe
    from warpgate.net.route import Route
    from warpgate.node.node import Node
    from warpgate.protocol.proto_msg import ConMsg
    from warpgate.traversal.manager import TraversalManager

DEFAULT_TIMEOUT_S = 10
MAX_NOTES = 16
MAX_NOTE_CHARS = 500


def new_plugin_id() -> str:
    """Return a fresh id for an attempt: 15 characters of ``[A-Za-z0-9]`` from ``secrets``."""
    return "".join(secrets.choice(PLUGIN_ID_ALPHABET) for _ in range(PLUGIN_ID_LENGTH))


class Plugin:
    """One attempt to produce a :class:`~warpgate.Pipe` to a peer; subclass it to write a strategy.

    A subclass sets ``name`` and ``transport``, is marked with :func:`~warpgate.register` and
    overrides :meth:`run`. Everything else has a default. The manager fills the instance
    attributes before it calls :meth:`run`; without a manager (in a unit test) ``result`` is a
    plain future.

    ``transport`` is what its pipes are where the caller doesn't mind; ``transports`` all that it can
    make, where that is more. ``wanted_transport`` then says what the call asked for: ``"tcp"``,
    ``"udp"`` or None. The peer's attempt does not know it; it may set it from the first signal.
    The core closes a pipe of another transport.
    """

    name: ClassVar[str]
    transport: ClassVar[Any]
    transports: ClassVar[tuple[Any, ...]] = ()
    phase: ClassVar[str | None] = None
    route_types: ClassVar[tuple[int, ...]] = (NIC_BIND, EXT_BIND, LOOPBACK_BIND)
    conf: ClassVar[dict[str, Any]] = {"timeout": DEFAULT_TIMEOUT_S, "set_bind": False}
    proto_messages: ClassVar[tuple[tuple[Any, int, float], ...]] = ()

    def __init__(self) -> None:
        self.plugin_id: str = new_plugin_id()
        self.af: int = IP4
        self.nic: Interface = None  # type: ignore[assignment]  # the manager sets it before run()
        self.src_info: dict[str, Any] = {}
        self.dest_info: dict[str, Any] = {}
        self.route_type: int = NIC_BIND
        self.same_machine: bool = False
        self.timeout: float = float(self.conf.get("timeout", DEFAULT_TIMEOUT_S))
        self.initiator: bool = True
        self.wanted_transport: str | None = None
        self.manager: TraversalManager = None  # type: ignore[assignment]
        self.node: Node = None  # type: ignore[assignment]
        self.route: Route | None = None
        self.budget = PacketBudget()
        self.notes: list[str] = []
        self._result: asyncio.Future[Any] | None = None

    @property
    def result(self) -> asyncio.Future[Any]:
        """The future of this attempt: set it to a pipe, or to None for failure."""
        if self._result is None:
            self._result = asyncio.get_running_loop().create_future()
        return self._result

    @result.setter
    def result(self, future: asyncio.Future[Any]) -> None:
        self._result = future

    @classmethod
    async def setup(cls, node: Node) -> Any:
        """Prepare state that all attempts on a node share.

        Override it to return an object whose ``build_plugin()`` makes one :class:`Plugin` per
        attempt, or None when the strategy should not be installed on this node. The default is
        the class itself: one instance per attempt.
        """
        return cls

    @classmethod
    def impossible(cls, pair: NatPair) -> str | None:
        """Say why this strategy can't connect two peers over the internet, None where it may.

        Override it where the types of NAT alone can tell; it must be pure and quick. It is not
        asked for peers on one machine or one link. What is not known counts as possible.

        Args:
            pair: what is known of both sides' NATs.

        """
        return None

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        """Look whether what this strategy relies on outside of the node is there, for ``warpgate doctor``.

        Override it where the strategy has servers or the like. No node is running; what is asked
        for is given back. It is cut off after 10 s.

        Args:
            conf: the settings that a node of this environment would have.

        """
        return ()

    async def run(self, reply: ConMsg | None = None) -> None:
        """Try to connect; resolve ``self.result``.

        Args:
            reply: the peer's signal that caused this call, None on the initiator's first call.

        Any exception ends the attempt; returning leaves the result pending for a background task
        or a later call, until the attempt's time-out.

        """
        raise PluginDefinitionError(
            f"{type(self).__name__} does not override run(); every strategy must"
        )

    def register_inbound(self) -> None:
        """Claim the connections that carry this attempt's id; call it before signalling the peer.

        Raises:
            LocalProtocolError: no node has created this attempt.

        """
        self._manager().register_inbound(self)

    async def wait_for_inbound(self) -> Pipe | None:
        """Wait for the pipe that :meth:`register_inbound` claimed.

        Returns:
            The pipe, whose other end has proven to be the peer; None when the attempt's time is up.

        Raises:
            LocalProtocolError: ``register_inbound`` was not called, or no node has created this attempt.

        """
        return await self._manager().wait_for_inbound(self)

    async def send_signal_msg(self, msg: ConMsg) -> None:
        """Send a message to the peer's instance of the strategy named in ``msg.meta.plugin_name``.

        ``meta`` and ``routing`` are filled in (id, family, own address, route type); an empty
        ``plugin_name`` becomes this strategy's own, and ``payload`` goes as it is.

        Raises:
            SignallingError: no signal transport could carry it.
            LocalProtocolError: no node has created this attempt.
            MessageTooLarge: the packed message exceeds the cap of 8 KiB.

        """
        await self._manager().send_signal(self, msg)

    def note(self, text: str) -> None:
        """Add to what the report says of this attempt, however it ends.

        For what the cause of a failure can't tell, such as a server that failed before another one
        worked. The first ``MAX_NOTES`` different ones are kept, cut at ``MAX_NOTE_CHARS``.

        Args:
            text: one line; what can't be printed is left out.

        """
        text = "".join(char for char in " ".join(text.split()) if char.isprintable())
        text = text[:MAX_NOTE_CHARS]
        if text and text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    def refuses(self, ip: str) -> str | None:
        """Say why nothing may be sent to an address that only the peer's message names, or None.

        An initiator may write to public addresses and to those that stand in the peer's signed
        address; a responder to what WIRE.md section 5 allows on a peer's word.

        Args:
            ip: the address, as text.

        Raises:
            LocalProtocolError: no node has created this attempt.

        """
        return self._manager().refuses(self, ip)

    def _manager(self) -> TraversalManager:
        if self.manager is None:
            raise LocalProtocolError(
                f"this attempt of {type(self).__name__} was not created by a node, so it has "
                "no peer; let auto_connect() or node.connect() create it"
            )
        return self.manager

    async def bind(self, port: int = 0) -> Route:
        """Return a route bound to the local address chosen for this attempt.

        Args:
            port: the local port; 0 lets the system pick one when the route is used.

        Raises:
            OSError: the address can't be bound.

        """
        ip = self.src_info.get("ip")
        if ip not in {address.ip for address in self.nic.addresses}:
            ip = self.src_info.get("nic")  # the address for the route type is a NAT's, not ours
        return await self.nic.route(self.af).bind(port=port, ip=ip)

    async def close(self) -> None:
        """Free what this attempt holds; called once when it has ended. Override as needed."""

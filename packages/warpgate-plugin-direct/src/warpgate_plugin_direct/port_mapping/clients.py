"""PCP and NAT-PMP against one router."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from warpgate_plugin_direct.port_mapping import nat_pmp, pcp
from warpgate_plugin_direct.port_mapping.exchange import Epoch
from warpgate_plugin_direct.port_mapping.gateway import GatewaySocket
from warpgate_plugin_direct.port_mapping.model import Mapping, MappingError, Spot

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate_plugin_direct.port_mapping.exchange import Answered


class Client(Protocol):
    """One protocol, spoken with one router.

    Attributes:
        name: the protocol's, for people.
        by_internal_port: removing goes by the internal port, and may hit what another such protocol
            has mapped: it is the same server of the router.

    """

    name: ClassVar[str]
    by_internal_port: ClassVar[bool]

    async def probe(self) -> None:
        """Return when the router speaks the protocol; raises MappingError when it does not."""

    async def map(
        self, transport: int, external_port: int, lease_s: float, last: Mapping | None = None
    ) -> Mapping:
        """Map the port, or renew the mapping ``last``; raises MappingError."""

    async def alive(self, mapping: Mapping) -> bool:
        """Return whether the router still has it, at the same address; raises MappingError."""

    async def unmap(self, mapping: Mapping) -> None:
        """Remove it; raises MappingError."""

    def close(self) -> None:
        """Free the sockets."""


class UdpClient:
    """What PCP and NAT-PMP have in common."""

    name: ClassVar[str]
    by_internal_port: ClassVar[bool] = True

    def __init__(self, spot: Spot, gateway: str, counters: Counters, port: int = pcp.PORT) -> None:
        self._spot = spot
        self._server = (gateway, port)
        self._counters = counters
        self._socket: GatewaySocket | None = None
        self._epoch = Epoch()

    async def _ask(self, request: bytes, parse: Any) -> Answered:
        if self._socket is None:
            try:
                self._socket = await GatewaySocket.open(
                    self._spot.af, self._spot.local_ip, self._server, self._counters
                )
            except (OSError, ValueError) as error:
                raise MappingError(f"can't ask the router: {error}") from error
        return await self._socket.ask(request, parse)

    def _lost(self, answer: Answered) -> bool:
        lost = self._epoch.lost(answer.value.epoch, answer.at)
        if lost:
            self._counters.count("port_mapping_router_restarts")
        return lost

    def close(self) -> None:
        """Free the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class PcpClient(UdpClient):
    """Port Control Protocol: IPv4 mappings and IPv6 pinholes.

    Args:
        spot: what is mapped.
        gateway: the router.
        secret: makes the nonces: the same node asks with the same ones after a crash, since a
            router refuses to renew a mapping to anyone else (RFC 6887 section 11.3).
        counters: for what was dropped.
        port: of the server.

    """

    name: ClassVar[str] = "PCP"

    def __init__(
        self,
        spot: Spot,
        gateway: str,
        secret: bytes,
        counters: Counters,
        port: int = pcp.PORT,
    ) -> None:
        super().__init__(spot, gateway, counters, port)
        self._secret = secret

    def _nonce(self, transport: int) -> bytes:
        text = f"warpgate PCP nonce {self._spot.local_ip} {self._spot.port} {transport}"
        return hashlib.blake2b(
            text.encode(), key=self._secret[:64], digest_size=pcp.NONCE_BYTES
        ).digest()

    async def probe(self) -> None:
        """See :class:`Client`."""
        answer = await self._ask(pcp.pack_announce(self._spot.local_ip), pcp.parse_announce)
        self._lost(answer)

    async def map(
        self, transport: int, external_port: int, lease_s: float, last: Mapping | None = None
    ) -> Mapping:
        """See :class:`Client`."""
        spot, nonce = self._spot, self._nonce(transport)
        request = pcp.pack_map(
            spot.local_ip, nonce, transport, spot.port, external_port, round(lease_s)
        )
        answer = await self._ask(
            request, lambda data: pcp.parse_map(data, nonce, transport, spot.port)
        )
        self._lost(answer)
        made: pcp.MapAnswer = answer.value
        if not made.lease_s or not made.external_port:
            raise MappingError("granted a mapping without a port or a life")
        return Mapping(
            transport, spot.port, made.external_ip, made.external_port, made.lease_s, answer.at
        )

    async def alive(self, mapping: Mapping) -> bool:
        """See :class:`Client`; a router with another external address starts a new epoch."""
        answer = await self._ask(pcp.pack_announce(self._spot.local_ip), pcp.parse_announce)
        return not self._lost(answer)

    async def unmap(self, mapping: Mapping) -> None:
        """See :class:`Client`."""
        transport, port = mapping.transport, mapping.internal_port
        nonce = self._nonce(transport)
        await self._ask(
            pcp.pack_map(self._spot.local_ip, nonce, transport, port),
            lambda data: pcp.parse_map(data, nonce, transport, port),
        )


class NatPmpClient(UdpClient):
    """NAT Port Mapping Protocol; it knows IPv4 only."""

    name: ClassVar[str] = "NAT-PMP"

    def __init__(self, spot: Spot, gateway: str, counters: Counters, port: int = pcp.PORT) -> None:
        super().__init__(spot, gateway, counters, port)
        self._external_ip: str | None = None

    async def probe(self) -> None:
        """See :class:`Client`."""
        await self._address()

    async def _address(self) -> bool:
        """Ask for the external address; return whether the router has kept its mappings."""
        answer = await self._ask(nat_pmp.pack_address_request(), nat_pmp.parse_address)
        self._external_ip = answer.value.external_ip
        return not self._lost(answer)

    async def map(
        self, transport: int, external_port: int, lease_s: float, last: Mapping | None = None
    ) -> Mapping:
        """See :class:`Client`."""
        port = self._spot.port
        request = nat_pmp.pack_map(transport, port, external_port, round(lease_s))
        answer = await self._ask(request, lambda data: nat_pmp.parse_map(data, transport, port))
        self._lost(answer)
        made: nat_pmp.MapAnswer = answer.value
        if not made.lease_s or not made.external_port:
            raise MappingError("granted a mapping without a port or a life")
        return Mapping(
            transport, port, self._external_ip, made.external_port, made.lease_s, answer.at
        )

    async def alive(self, mapping: Mapping) -> bool:
        """See :class:`Client`."""
        return await self._address() and mapping.external_ip == self._external_ip

    async def unmap(self, mapping: Mapping) -> None:
        """See :class:`Client`."""
        transport, port = mapping.transport, mapping.internal_port
        await self._ask(
            nat_pmp.pack_map(transport, port), lambda data: nat_pmp.parse_map(data, transport, port)
        )

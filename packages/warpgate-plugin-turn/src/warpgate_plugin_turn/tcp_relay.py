"""Connections through a relay (RFC 6062): a stream where UDP does not get through to it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast

from warpgate.errors import RelayError, RemoteProtocolError
from warpgate.net.addresses import Address
from warpgate.net.tcp import TcpPipe
from warpgate.stun.message import Message
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.errors import ConnectionLost
from warpgate_plugin_turn.requests import Requests
from warpgate_plugin_turn.server_links import connect_stream
from warpgate_plugin_turn.wire import CONNECTION_BIND, CONNECTION_ID, StreamSplitter

BIND_S: Final = 5.0


class _DataConnection(asyncio.Protocol):
    """Joins a new connection to the server with the one that a peer has made to the relay."""

    def __init__(self, connection_id: int, requests: Requests) -> None:
        self.bound: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._connection_id = connection_id
        self._requests = requests
        self._splitter = StreamSplitter()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        now = asyncio.get_running_loop().time()
        # Signed from the start: coturn closes what has to be challenged first.
        wanted = [(CONNECTION_ID, self._connection_id)]
        self._requests.ask(CONNECTION_BIND, "ConnectionBind", wanted, self._answered, now)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Read answers, one by one: behind the last one the peer's bytes begin."""
        now = asyncio.get_running_loop().time()
        while not self.bound.done():
            try:
                messages = self._splitter.feed(data, most=1)
            except RemoteProtocolError as error:
                self._fail(ConnectionLost(f"the TURN server broke the protocol: {error}"))
                return
            if not messages:
                return
            data = b""
            message = self._requests.read(messages[0])
            if message is not None:
                self._requests.respond(message, now)
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            ConnectionLost(f"the TURN server closed the connection to the peer: {exc or ''}")
        )

    def _answered(self, result: Message | RelayError, _now: float) -> None:
        if isinstance(result, RelayError):
            self._fail(result)
        elif not self.bound.done():
            self._transport.pause_reading()
            self.bound.set_result(self._splitter.leftover())

    def _flush(self) -> None:
        out, self._requests.out = self._requests.out, []
        for message in out:
            self._transport.write(message)

    def _fail(self, error: RelayError) -> None:
        if not self.bound.done():
            self.bound.set_exception(error)


class _TlsPipe(TcpPipe):
    """Over TLS there is no half of a connection to keep open after the peer's end."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


async def accept(
    allocation: Allocation, connection_id: int, peer: Address, tls: ssl.SSLContext | None
) -> TcpPipe:
    """Return the pipe to a peer that has connected to the relayed address.

    Args:
        allocation: it lives until the pipe has closed.
        connection_id: what the server calls the connection.
        peer: the peer's address, as the server sees it.
        tls: checks the server's certificate, where TLS is spoken with it.

    Raises:
        RelayError: it could not be joined.

    """
    server, name = allocation.server, allocation.name
    context = tls if server.transport == "tls" else None
    transport, protocol = await connect_stream(
        lambda: _DataConnection(connection_id, allocation.requests_beside()),
        allocation.dialled, name, context, server.host,
    )  # fmt: skip
    joined = cast("_DataConnection", protocol)
    try:
        async with asyncio.timeout(BIND_S):
            leftover = await joined.bound
    except TimeoutError as error:
        transport.abort()  # type: ignore[attr-defined]
        raise RelayError(f"TURN server {name} did not join the peer's connection") from error
    except BaseException:
        if joined.bound.done() and not joined.bound.cancelled():
            joined.bound.exception()
        transport.abort()  # type: ignore[attr-defined]
        raise
    stream = cast("asyncio.Transport", transport)
    pipe = _TlsPipe() if context is not None else TcpPipe()
    stream.set_protocol(pipe)
    pipe.connection_made(stream)
    pipe.local, pipe.remote, pipe.path = allocation.relayed, peer, "relay"
    allocation.attach(pipe)
    if leftover:
        pipe.get_buffer(-1)[: len(leftover)] = leftover
        pipe.buffer_updated(len(leftover))
    stream.resume_reading()
    return pipe

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
CONNECT_S: Final = 5.0


class DataConnection(asyncio.Protocol):
    """A further connection to a server, to be joined with the one between the relay and a peer."""

    def __init__(self) -> None:
        self.bound: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self._requests: Requests | None = None
        self._splitter = StreamSplitter()

    def bind(self, connection_id: int, requests: Requests) -> None:
        """Ask the server to join it; ``bound`` gets what the peer has said by then, or an error."""
        self._requests = requests
        now = asyncio.get_running_loop().time()
        # Signed from the start: coturn closes what has to be challenged first.
        wanted = [(CONNECTION_ID, connection_id)]
        requests.ask(CONNECTION_BIND, "ConnectionBind", wanted, self._answered, now)
        self._flush(requests)

    def close(self) -> None:
        """Close it, unless a pipe has it."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connected transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read answers, one by one: behind the last one the peer's bytes begin."""
        now, requests = asyncio.get_running_loop().time(), self._requests
        if requests is None:  # nobody has asked for anything
            self.transport.abort()
            return
        while not self.bound.done():
            try:
                messages = self._splitter.feed(data, most=1)
            except RemoteProtocolError as error:
                self._fail(ConnectionLost(f"the TURN server broke the protocol: {error}"))
                return
            if not messages:
                return
            data = b""
            message = requests.read(messages[0])
            if message is not None:
                requests.respond(message, now)
            self._flush(requests)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._fail(
            ConnectionLost(f"the TURN server closed the connection to the peer: {exc or ''}")
        )

    def _answered(self, result: Message | RelayError, _now: float) -> None:
        if isinstance(result, RelayError):
            self._fail(result)
        elif not self.bound.done():
            self.transport.pause_reading()
            self.bound.set_result(self._splitter.leftover())

    def _flush(self, requests: Requests) -> None:
        out, requests.out = requests.out, []
        for message in out:
            self.transport.write(message)

    def _fail(self, error: RelayError) -> None:
        if not self.bound.done():
            self.bound.set_exception(error)
            self.bound.exception()  # nobody may be waiting for it


class _TlsPipe(TcpPipe):
    """Over TLS there is no half of a connection to keep open after the peer's end."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


async def connect(allocation: Allocation, peer: Address) -> int:
    """Let a relay connect to a peer (RFC 6062 section 4.3).

    Returns:
        What the server calls the connection, for :func:`join`.

    Raises:
        RelayError: nothing answers there, or the server forbids it.

    """
    answer: asyncio.Future[int | RelayError] = asyncio.get_running_loop().create_future()

    def answered(result: int | RelayError) -> None:
        if not answer.done():
            answer.set_result(result)

    allocation.connect(peer, answered)
    try:
        async with asyncio.timeout(CONNECT_S):
            result = await answer
    except TimeoutError:
        slow = f"TURN server {allocation.name} did not connect to {peer[0]} port {peer[1]} in time"
        raise allocation.failure or RelayError(slow) from None
    if isinstance(result, RelayError):
        raise result
    return result


async def open_beside(allocation: Allocation, tls: ssl.SSLContext | None) -> DataConnection:
    """Connect to an allocation's server once more.

    Args:
        allocation: whose server.
        tls: checks the server's certificate, where TLS is spoken with it.

    Raises:
        RelayError: it can't be reached any more.

    """
    server = allocation.server
    context = tls if server.transport == "tls" else None
    _, connection = await connect_stream(
        DataConnection, allocation.dialled, allocation.name, context, server.host
    )
    return cast("DataConnection", connection)


async def join(
    allocation: Allocation, connection_id: int, peer: Address, connection: DataConnection
) -> TcpPipe:
    """Return the pipe over a connection that the server has with a peer (RFC 6062 section 4.4).

    Args:
        allocation: it lives until the pipe has closed.
        connection_id: what the server calls the connection.
        peer: the peer's address, as the server sees it.
        connection: what :func:`open_beside` returned; it is the pipe's, or closed.

    Raises:
        RelayError: it could not be joined.

    """
    name, stream = allocation.name, connection.transport
    try:
        connection.bind(connection_id, allocation.requests_beside())
        async with asyncio.timeout(BIND_S):
            leftover = await connection.bound
    except TimeoutError as error:
        stream.abort()
        raise RelayError(f"TURN server {name} did not join the peer's connection") from error
    except BaseException:
        stream.abort()
        raise
    if stream.is_closing():
        raise RelayError(f"TURN server {name}: the peer's connection has ended already")
    pipe = _TlsPipe() if allocation.server.transport == "tls" else TcpPipe()
    stream.set_protocol(pipe)
    pipe.connection_made(stream)
    pipe.local, pipe.remote, pipe.path = allocation.relayed, peer, "relay"
    pipe.half_closes = False
    allocation.attach(pipe)
    if leftover:
        pipe.get_buffer(-1)[: len(leftover)] = leftover
        pipe.buffer_updated(len(leftover))
    stream.resume_reading()
    return pipe

"""Connections to a TURN server: a UDP socket, a TCP connection, or TLS over one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from warpgate.errors import RelayError, RemoteProtocolError
from warpgate.net.addresses import Address, reason
from warpgate.net.constants import IP4, IP6
from warpgate.net.datagram import DatagramSocket
from warpgate.protocol.web_page import LOGIN_HINT, is_web_page
from warpgate_plugin_turn.errors import CertificateRefused, ConnectionLost, ServerUnreachable
from warpgate_plugin_turn.wire import StreamSplitter

CONNECT_S: Final = 5.0
FLUSH_S: Final = 0.3
"""How long a connection that is being closed may take to send the rest, and TLS's own farewell."""
WRITE_HIGH_WATER: Final = 256 * 1024

MessageHandler = Callable[[bytes], None]
LostHandler = Callable[[RelayError], None]


class ServerLink(Protocol):
    """A connection to a server: messages go out and come in."""

    reliable: bool

    def send(self, message: bytes) -> bool:
        """Send without waiting; False when there is no room."""

    async def writable(self) -> None:
        """Wait for room, or for the end."""

    def close(self) -> None:
        """Close; what was sent still goes out, within ``FLUSH_S``."""

    async def wait_closed(self) -> None:
        """Wait until nothing is left of a connection that is being closed."""


class UdpServerLink:
    """Over UDP; only what comes from the server's address is taken."""

    reliable = False

    def __init__(self, sock: DatagramSocket, server: Address, on_message: MessageHandler) -> None:
        self._sock = sock
        self._server = server
        sock.route(server, lambda data, _addr: on_message(data))

    def send(self, message: bytes) -> bool:
        """See :class:`ServerLink`."""
        return self._sock.send_to(message, self._server)

    async def writable(self) -> None:
        """See :class:`ServerLink`."""
        await self._sock.writable()

    def close(self) -> None:
        """See :class:`ServerLink`."""
        self._sock.close()

    async def wait_closed(self) -> None:
        """See :class:`ServerLink`."""


class StreamServerLink(asyncio.Protocol):
    """Over TCP or TLS."""

    reliable = True

    def __init__(self, name: str, on_message: MessageHandler, on_lost: LostHandler) -> None:
        self._name = name
        self._on_message = on_message
        self._on_lost = on_lost
        self._splitter = StreamSplitter()
        self._stream: asyncio.Transport | None = None
        self._full = False
        self._fresh = True
        self._waiters: set[asyncio.Future[None]] = set()
        self._closing = False
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connected transport."""
        self._stream = cast("asyncio.Transport", transport)
        self._stream.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into messages."""
        if self._fresh and is_web_page(data):
            self._end(ServerUnreachable(f"TURN server {self._name} spoke HTTP: {LOGIN_HINT}"))
            return
        self._fresh = False
        try:
            messages = self._splitter.feed(data)
        except RemoteProtocolError as error:
            self._end(ConnectionLost(f"TURN server {self._name} broke the protocol: {error}"))
            return
        for message in messages:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        if self._flushing is not None:
            self._flushing.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        why = f": {exc}" if exc is not None else ""
        self._end(ConnectionLost(f"TURN server {self._name} closed the connection{why}"))

    def pause_writing(self) -> None:
        """Note that there is no room."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that there is room."""
        self._full = False
        self._wake()

    def send(self, message: bytes) -> bool:
        """See :class:`ServerLink`."""
        if self._stream is None or self._stream.is_closing():
            return True  # as lost as a datagram can be; the end is told otherwise
        if self._full:
            return False
        self._stream.write(message)
        return True

    async def writable(self) -> None:
        """See :class:`ServerLink`."""
        if not self._full or self._stream is None:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """See :class:`ServerLink`."""
        self._closing = True
        stream, self._stream = self._stream, None
        self._wake()
        if stream is not None:
            stream.close()
            # A server that reads nothing, or never answers TLS's farewell, must not keep it.
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_S, stream.abort)

    async def wait_closed(self) -> None:
        """See :class:`ServerLink`."""
        await asyncio.wait([self._gone])

    def _end(self, error: RelayError) -> None:
        already, self._closing = self._closing, True
        stream, self._stream = self._stream, None
        self._wake()
        if stream is not None:
            stream.abort()
        if not already:
            self._on_lost(error)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


async def open_udp(server: Address, on_message: MessageHandler) -> UdpServerLink:
    """Open a UDP socket towards a server.

    Raises:
        ServerUnreachable: this machine has no such socket.

    """
    af = IP6 if ":" in server[0] else IP4
    sock = socket.socket(af, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(("::" if af == IP6 else "0.0.0.0", 0))
        return UdpServerLink(await DatagramSocket.open(sock), server, on_message)
    except OSError as error:
        sock.close()
        raise ServerUnreachable(f"no UDP socket for TURN server {server[0]}: {error}") from error
    except BaseException:
        sock.close()
        raise


async def connect_stream(
    make: Callable[[], asyncio.BaseProtocol],
    server: Address,
    name: str,
    tls: ssl.SSLContext | None,
    host: str,
    timeout_s: float = CONNECT_S,
) -> tuple[asyncio.BaseTransport, Any]:
    """Connect to a server over TCP, with TLS where there is a context for it.

    Args:
        make: makes the protocol.
        server: the server's ``(ip, port)``.
        name: its name, for texts.
        tls: checks the server's certificate; None: no TLS.
        host: the name that must stand in the certificate.
        timeout_s: for all of it.

    Raises:
        CertificateRefused: the certificate is not signed as it should, or is for another name.
        ServerUnreachable: anything else that goes wrong.

    """
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {} if tls is None else {"ssl": tls, "server_hostname": host}
    kind = "TLS" if tls is not None else "TCP"
    doing = f"TURN server {name} over {kind}"
    try:
        async with asyncio.timeout(timeout_s):
            return await loop.create_connection(make, server[0], server[1], **options)
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefused(
            f"{doing}: its certificate is refused: {error.verify_message.rstrip('.')}; use the name "
            "that stands in it, or name the authority's file in "
            'plugin_conf["turn"]["ca_file"] or SSL_CERT_FILE; or '
            f"{LOGIN_HINT}"
        ) from error
    except TimeoutError as error:
        raise ServerUnreachable(f"{doing}: no connection within {timeout_s:g} s") from error
    except (OSError, ssl.SSLError) as error:
        raise ServerUnreachable(f"{doing}: {reason(error)}") from error


async def open_stream(
    server: Address,
    name: str,
    tls: ssl.SSLContext | None,
    host: str,
    on_message: MessageHandler,
    on_lost: LostHandler,
) -> StreamServerLink:
    """Connect to a server; the arguments and errors are those of :func:`connect_stream`."""
    _, link = await connect_stream(
        lambda: StreamServerLink(name, on_message, on_lost), server, name, tls, host
    )
    return cast("StreamServerLink", link)

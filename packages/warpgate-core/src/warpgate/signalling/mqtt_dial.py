"""Sockets to brokers: every wait has a deadline and can be cancelled without leaving anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

from warpgate.errors import SignallingError
from warpgate.net.addresses import reason, system_address
from warpgate.net.constants import IP6
from warpgate.net.resolve import look_up
from warpgate.protocol.ip import parse_ip
from warpgate.protocol.web_page import LOGIN_HINT
from warpgate.server_urls import BrokerURL

MAX_ADDRESSES: Final = 4
"""Addresses of a broker's name that are tried."""
CONNECT_TIMEOUT_S: Final = 1.5
"""For one TCP connection; twice that for its name, and for TLS."""


_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
"""What OpenSSL calls an answer that is not TLS."""
Permit = Callable[[str], bool]
Reach = Callable[[str], Awaitable[str]]


class NotPermitted(SignallingError):
    """No address of the broker may be dialled; trying again changes nothing."""


class WrongServer(SignallingError):
    """Somebody else answers in the broker's stead, and will the next time.

    Attributes:
        who: ``"web page"``, or ``"stranger"`` where that is not certain.

    """

    def __init__(self, text: str, who: str = "stranger") -> None:
        super().__init__(text)
        self.who = who


def web_page() -> WrongServer:
    """Return the error for a broker in whose stead a web server has answered."""
    return WrongServer(f"a web page came instead of MQTT: {LOGIN_HINT}", "web page")


def no_websocket() -> WrongServer:
    """Return the error for a web server that does not let a websocket begin."""
    return WrongServer(f"a web page came instead of a websocket: a wrong path, or {LOGIN_HINT}")


async def connect_socket(
    url: BrokerURL, permit: Permit, reach: Reach | None = None
) -> socket.socket:
    """Return a connected non-blocking TCP socket.

    Args:
        url: the broker.
        permit: whether an IP address that the broker's name resolves to may be dialled; what it was
            asked about is what is dialled.
        reach: by which address an IP address is reached, where a broker has IPv4 only.

    Raises:
        NotPermitted: none of its addresses is permitted.
        SignallingError: the name is unknown, or no address answers.

    """
    loop = asyncio.get_running_loop()
    found: list[Any]
    try:
        if parse_ip(url.host) is not None:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        else:
            found = await look_up(
                url.host, url.port, kind=socket.SOCK_STREAM, timeout_s=2 * CONNECT_TIMEOUT_S
            )
    except (OSError, TimeoutError) as error:
        raise SignallingError(f"{url.host} is not found: {error or 'no answer'}") from None
    allowed = [entry for entry in found if permit(str(entry[4][0]))]
    if not allowed:
        raise NotPermitted("a peer's word is not enough to dial this broker's address")
    if reach is not None and all(entry[0] != IP6 for entry in allowed):
        allowed = [await _translated(entry, reach) for entry in allowed[:MAX_ADDRESSES]]
    errors = []
    for family, kind, protocol, _, address in allowed[:MAX_ADDRESSES]:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine lacks
            errors.append(str(error))
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            errors.append(reason(error) if error.errno else "no answer")
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise SignallingError("; ".join(dict.fromkeys(errors)))


async def context_for(scheme: str, context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return what checks a broker's certificate, by default the system's authorities; None: no TLS."""
    if scheme not in ("mqtts", "wss"):
        return None
    if context is None:  # reads the system's certificate authorities from disk
        loop = asyncio.get_running_loop()
        context = await loop.run_in_executor(None, ssl.create_default_context)
    return context


async def _translated(entry: Any, reach: Reach) -> Any:
    """Return a result of ``getaddrinfo``, with the address by which that one is reached."""
    _, kind, protocol, name, address = entry
    ip = await reach(str(address[0]))
    if ip == address[0]:
        return entry
    return IP6, kind, protocol, name, system_address(IP6, (ip, address[1]))


async def tls_handshake(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Do a TLS handshake as client on a socket of :func:`connect_socket`; takes the socket over.

    Raises:
        WrongServer: the certificate is not good for the host, or it is no TLS that is spoken there.
        SignallingError: anything else that goes wrong.

    """
    loop = asyncio.get_running_loop()
    try:
        tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:
        sock.close()
        raise SignallingError(f"TLS: {error}") from None
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
            while True:
                try:
                    tls.do_handshake()
                    return tls
                except ssl.SSLWantReadError:
                    await _ready(loop.add_reader, loop.remove_reader, tls)
                except ssl.SSLWantWriteError:
                    await _ready(loop.add_writer, loop.remove_writer, tls)
    except ssl.SSLCertVerificationError as error:
        tls.close()
        raise WrongServer(
            f"TLS: the certificate is refused: {error.verify_message.rstrip('.')}; {LOGIN_HINT}"
        ) from None
    except (OSError, TimeoutError, ssl.CertificateError) as error:
        tls.close()
        if getattr(error, "reason", None) in _NO_TLS:
            raise WrongServer(f"TLS is not what is spoken there: {LOGIN_HINT}") from None
        raise SignallingError(f"TLS: {error or 'no answer'}") from None
    except BaseException:
        tls.close()
        raise


async def _ready(add: Callable[..., Any], remove: Callable[..., Any], sock: socket.socket) -> None:
    """Wait until the loop finds the socket ready; ``add`` and ``remove`` are the loop's."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    descriptor = sock.fileno()

    def found() -> None:
        if not ready.done():
            ready.set_result(None)

    add(descriptor, found)
    try:
        await ready
    finally:
        remove(descriptor)


def discard(twin: socket.socket) -> None:
    """End a connection for all copies of its socket, and close this one."""
    with contextlib.suppress(OSError):
        twin.shutdown(socket.SHUT_RDWR)
    twin.close()

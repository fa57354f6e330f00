"""Socket addresses, between the 2-tuples that users see and the forms that the system wants."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from warpgate.net.constants import IP6, af_name
from warpgate.protocol.ip import split_scope

Address = tuple[str, int]

# What a system call wants: (ip, port), or (ip, port, flow, scope id) for IPv6.
SystemAddress = tuple[str, int] | tuple[str, int, int, int]

MAX_PORT = 65535
ASYNCIO_SAYS = "Connect call failed"


def scope_name(index: int) -> str:
    """Return the interface's name for a scope id, or the number as text where it has none."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return str(index)


def scope_index(scope: str) -> int:
    """Return the number of a scope given by name or by number.

    Raises:
        OSError: this machine has no such interface.

    """
    if scope.isdecimal():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError as error:
        raise OSError(error.errno, f"no interface is called {scope!r}") from error


def user_address(address: Any) -> Address:
    """Return the ``(ip, port)`` for what the system reports; a scope id goes inside the ip."""
    if len(address) == 4 and address[3] and "%" not in address[0]:
        return f"{address[0]}%{scope_name(address[3])}", address[1]
    return address[0], address[1]


def system_address(af: int, address: Address) -> SystemAddress:
    """Return the form of ``(ip, port)`` that the system wants, without ever asking a resolver.

    Raises:
        ValueError: the ip is not one of the family, or the port is out of range.
        OSError: the scope names an interface that this machine has not.

    """
    ip, port = address[0], address[1]
    bare, scope = split_scope(ip)
    kind = ipaddress.IPv6Address if af == IP6 else ipaddress.IPv4Address
    try:
        kind(bare)
    except ValueError as error:
        raise ValueError(f"{ip!r} is no {af_name(af)} address") from error
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"port {port} is not between 0 and {MAX_PORT}")
    if af == IP6:
        return bare, port, 0, 0 if scope is None else scope_index(scope)
    return bare, port


def is_ip(text: str) -> bool:
    """Return whether the text is an IP address, with or without a scope."""
    try:
        ipaddress.ip_address(split_scope(text)[0])
    except ValueError:
        return False
    return True


def canonical_ip(ip: str) -> str:
    """Return the one spelling of an address that the system uses, its scope by name.

    Raises:
        ValueError: the text is no IP address.

    """
    bare, scope = split_scope(ip)
    text = str(ipaddress.ip_address(bare))
    if scope is None:
        return text
    return f"{text}%{scope_name(int(scope)) if scope.isdecimal() else scope}"


def reason(error: OSError) -> str:
    """Return in the system's words why a call failed: ``Connection refused``.

    asyncio puts ``Connect call failed`` and the address in their place, which says nothing.
    """
    text = error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno) if error.errno and text.startswith(ASYNCIO_SAYS) else text


def explained(error: OSError, doing: str) -> OSError:
    """Return an error of the same class whose text says what was being done.

    Args:
        error: what a system call raised.
        doing: for example ``connect to 192.0.2.1 port 80``.

    """
    if error.errno is None:
        return type(error)(f"{doing}: {error}")
    if isinstance(error, socket.gaierror):
        return socket.gaierror(error.errno, f"{doing}: {error.strerror}")
    return OSError(error.errno, f"{doing}: {reason(error)}")  # the errno picks the subclass

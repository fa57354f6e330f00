"""Plain sockets for probing: dialling, waiting, and naming what was seen."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Final

from .profiles import AD, APD, EI

Address = tuple[str, int]

WAIT_S: Final = 0.35
"""How long to wait for a packet; it is under way for 50 ms at the most, there and back."""


def reaction(error: int) -> str:
    """Name what became of a SYN, given how the connection ended."""
    if error == 0:
        return "accept"
    return "rst" if error == errno.ECONNREFUSED else "drop"


def accept(listener: socket.socket) -> tuple[socket.socket, Address]:
    """Take a connection that is about to arrive; BlockingIOError when it does not."""
    for _ in range(50):
        try:
            sock, source = listener.accept()
        except BlockingIOError:
            time.sleep(0.005)
        else:
            return sock, (source[0], source[1])
    raise BlockingIOError


def readable(stream: socket.socket) -> bool:
    """Wait for bytes on a connection."""
    stream.settimeout(WAIT_S)
    try:
        return bool(stream.recv(64))
    except OSError:  # nothing in time, or it was reset
        return False


def classify(seen: Sequence[Address | None], local: Address) -> str:
    """Name the mapping, from the sources that (ip1, p1), (ip1, p2), (ip2, p1), (ip2, p2) saw."""
    if all(source is None for source in seen):
        return "blocked"
    if any(source is None for source in seen):
        return "unreliable"
    if all(source == local for source in seen):
        return "none"
    if len(set(seen)) == 1:
        return EI
    if seen[0] == seen[1] and seen[2] == seen[3]:
        return AD
    return APD


def receive(
    socks: Sequence[socket.socket], seconds: float, count: int
) -> list[tuple[socket.socket, bytes, Address]]:
    """Return what arrives on some sockets, until there are ``count`` datagrams or time is over."""
    came: list[tuple[socket.socket, bytes, Address]] = []
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        while len(came) < count and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    while True:
                        data, source = sock.recvfrom(2048)
                        came.append((sock, data, (source[0], source[1])))
    return came


def dial(sock: socket.socket, address: Address, seconds: float) -> int:
    """Connect a TCP socket; return 0 or the error's number."""
    sock.setblocking(False)
    error = sock.connect_ex(address)
    if error not in (errno.EINPROGRESS, 0):
        return error
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        if not selector.select(seconds):
            return errno.ETIMEDOUT
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

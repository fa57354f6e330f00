from __future__ import annotations

import asyncio
import errno
import socket
import ssl

import pytest

from warpgate.net.addresses import (
    canonical_ip,
    explained,
    is_ip,
    reason,
    scope_index,
    scope_name,
    system_address,
    user_address,
)
from warpgate.net.constants import IP4, IP6

LOOPBACK = socket.if_nameindex()[0]


def test_system_addresses() -> None:
    index, name = LOOPBACK
    assert system_address(IP4, ("192.0.2.1", 80)) == ("192.0.2.1", 80)
    assert system_address(IP6, ("::1", 80)) == ("::1", 80, 0, 0)
    assert system_address(IP6, (f"fe80::1%{name}", 80)) == ("fe80::1", 80, 0, index)
    assert system_address(IP6, ("fe80::1%77", 80)) == ("fe80::1", 80, 0, 77)


@pytest.mark.parametrize(
    ("af", "address"),
    [
        (IP4, ("::1", 80)),
        (IP6, ("192.0.2.1", 80)),
        (IP4, ("localhost", 80)),
        (IP4, ("192.0.2.1", 65536)),
        (IP4, ("192.0.2.1", -1)),
        (IP4, ("", 80)),
    ],
)
def test_what_is_no_address_of_the_family(af: int, address: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        system_address(af, address)


def test_unknown_scopes() -> None:
    with pytest.raises(OSError, match="nosuch0"):
        system_address(IP6, ("fe80::1%nosuch0", 80))
    assert scope_name(4_000_000) == "4000000"


def test_user_addresses_are_pairs() -> None:
    index, name = LOOPBACK
    assert user_address(("192.0.2.1", 80)) == ("192.0.2.1", 80)
    assert user_address(("2001:db8::1", 80, 0, 0)) == ("2001:db8::1", 80)
    assert user_address(("fe80::1", 80, 0, index)) == (f"fe80::1%{name}", 80)
    assert user_address((f"fe80::1%{name}", 80, 0, index)) == (f"fe80::1%{name}", 80)
    assert scope_index(name) == index


def test_canonical() -> None:
    index, name = LOOPBACK
    assert canonical_ip("0:0:0:0:0:0:0:1") == "::1"
    assert canonical_ip(f"FE80::1%{index}") == f"fe80::1%{name}"
    assert canonical_ip("192.0.2.1") == "192.0.2.1"
    with pytest.raises(ValueError, match="nonsense"):
        canonical_ip("nonsense")
    assert is_ip("fe80::1%eth0")
    assert not is_ip("localhost")


def test_explained_errors_keep_their_class() -> None:
    error = explained(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connect to x")
    assert type(error) is ConnectionRefusedError
    assert error.errno == errno.ECONNREFUSED
    assert "connect to x: refused" in str(error)
    assert type(explained(TimeoutError("late"), "connect to x")) is TimeoutError
    lookup = explained(socket.gaierror(socket.EAI_NONAME, "unknown"), "connect to x")
    assert type(lookup) is socket.gaierror
    assert "connect to x" in str(lookup)


async def test_the_reason_is_the_system_s_and_not_asyncio_s() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError) as caught:
            await loop.sock_connect(sock, ("127.0.0.1", 9))
    assert reason(caught.value) == "Connection refused"
    assert str(explained(caught.value, "connect to x")).endswith("connect to x: Connection refused")
    assert reason(OSError(errno.EHOSTUNREACH, "No route to host")) == "No route to host"
    assert reason(ssl.SSLError(1, "wrong version number")) == "wrong version number"
    assert reason(TimeoutError()) == "TimeoutError"

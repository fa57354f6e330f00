"""A tiny DNS server with DNS64 (RFC 6147), for hosts that have IPv6 only.

It knows the laboratory's servers as ``<name>.lab`` and ``ipv4only.arpa`` (RFC 7050). A name with an
IPv6 address of its own gets that; ``<name>.v4.lab`` has IPv4 only, so its AAAA is synthesised. It is
a program of its own, on the standard library: ``python dns64.py PREFIX ADDRESS…``.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import struct
import sys

WELL_KNOWN = "64:ff9b::/96"
A, AAAA, ANY = 1, 28, 255
TTL_S = 60
HOSTS = {
    "broker1.lab": 10, "broker2.lab": 11, "stun.lab": 20, "stun2.lab": 21, "ntp.lab": 30,
    "dns.lab": 53, "probe1.lab": 100, "probe2.lab": 101,
}  # fmt: skip
ZONE: dict[str, tuple[list[str], list[str]]] = {
    "ipv4only.arpa": (["192.0.0.170", "192.0.0.171"], []),
    **{
        name: ([f"192.0.2.{number}"], [f"2001:db8:100::{number}"]) for name, number in HOSTS.items()
    },
    **{name.replace(".", ".v4.", 1): ([f"192.0.2.{number}"], []) for name, number in HOSTS.items()},
}


def answer(query: bytes, prefix: str = WELL_KNOWN) -> bytes | None:
    """Return the answer to a DNS query; None: it is not one.

    Args:
        query: the datagram.
        prefix: NAT64's, of 96 bits.

    """
    try:
        number, flags, questions = struct.unpack_from("!HHH", query)
        if flags & 0x8000 or questions != 1:
            return None
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
            at += 1 + length
        kind, _ = struct.unpack_from("!HH", query, at + 1)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    question = query[12 : at + 5]
    found = ZONE.get(".".join(labels))
    answers = _data(found, kind, int(ipaddress.IPv6Network(prefix).network_address))
    records = b"".join(
        struct.pack("!HHHIH", 0xC00C, record, 1, TTL_S, len(data)) + data
        for record, data in answers
    )
    count = len(answers)
    code = 3 if found is None else 0  # name error
    # Response, recursion available, authoritative; recursion desired as it was asked.
    header = struct.pack("!HHHHHH", number, 0x8480 | flags & 0x0100 | code, 1, count, 0, 0)
    return header + question + records


def _data(
    found: tuple[list[str], list[str]] | None, kind: int, prefix: int
) -> list[tuple[int, bytes]]:
    if found is None:
        return []
    four, six = found
    records = []
    if kind in (A, ANY):
        records += [(A, ipaddress.IPv4Address(ip).packed) for ip in four]
    if kind in (AAAA, ANY):
        own = [int(ipaddress.IPv6Address(ip)) for ip in six]
        own = own or [prefix | int(ipaddress.IPv4Address(ip)) for ip in four]
        records += [(AAAA, number.to_bytes(16, "big")) for number in own]
    return records


def main(prefix: str, addresses: list[str]) -> None:
    """Serve on UDP port 53 of these addresses, with this NAT64 prefix."""
    selector = selectors.DefaultSelector()
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, 53))
        selector.register(sock, selectors.EVENT_READ, sock)
    while True:
        for key, _ in selector.select():
            sock = key.data
            query, source = sock.recvfrom(2048)
            reply = answer(query, prefix)
            if reply is not None:
                sock.sendto(reply, source)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

"""Peers by DNS names: ``auto_connect(node, "alice.example.org")``.

The owner of a domain writes a TXT record under ``_warpgate`` and the name, with a node id (which brokers
lead to the address of) or a whole address::

    _warpgate.alice.example.org.  300  IN  TXT  "warpgate=ur7jhq6cuptbir2un…"

Make this module an entry point of the group ``warpgate.strategies``, or put the file into a folder of
``conf["plugin_dirs"]``, and name a DNS server's IP address in ``WARPGATE_DNS`` (and its port, when it is
not 53, in ``WARPGATE_DNS_PORT``). DNS answers can be forged on the way: like any other name, this one is
pinned to its key by the first connection. It needs the standard library only, and speaks DNS over TCP
(RFC 1035, RFC 7766), since a TXT record with a whole address does not fit into a datagram.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import struct

from warpgate import InvalidAddressError, PeerAddress, hookimpl

PREFIX = "warpgate="
TIMEOUT_S = 3.0
MAX_ANSWERS = 32
TXT, IN = 16, 1

_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")


class DnsNames:
    """A resolver of names.

    Args:
        server: the DNS server's IP address; without one, no name is resolved.
        port: its port.

    """

    def __init__(self, server: str, port: int = 53) -> None:
        self.server = server
        self.port = port

    @hookimpl
    async def warpgate_resolve_address(self, address: bytes | str) -> PeerAddress | str | None:
        """Return what the name's TXT record says; None when this is no DNS name or has none.

        Raises:
            InvalidAddressError: several records contradict one another.

        """
        if not self.server or not isinstance(address, str) or not _NAME.fullmatch(address.lower()):
            return None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                texts = await self._ask(f"_warpgate.{address.lower()}")
        except (OSError, EOFError, TimeoutError, ValueError, struct.error, IndexError):
            return None  # no answer that can be read: let other resolvers try
        found = {text.removeprefix(PREFIX) for text in texts if text.startswith(PREFIX)}
        if len(found) > 1:
            raise InvalidAddressError(f"{address!r} has {len(found)} different warpgate records")
        return found.pop() if found else None

    async def _ask(self, name: str) -> list[str]:
        reader, writer = await asyncio.open_connection(self.server, self.port)
        try:
            number = secrets.randbits(16)
            labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
            question = labels + b"\0" + struct.pack(">HH", TXT, IN)
            query = struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + question
            writer.write(struct.pack(">H", len(query)) + query)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            return _texts(await reader.readexactly(length), number, question)
        finally:
            writer.close()


def _texts(answer: bytes, number: int, question: bytes) -> list[str]:
    """Return the TXT records of an answer; each one's strings are joined."""
    identity, flags, questions, answers = struct.unpack_from(">4H", answer)
    asked = answer[12 : 12 + len(question)]
    if identity != number or questions != 1 or asked.lower() != question or not flags & 0x8000:
        raise ValueError("an answer to another question")
    if flags & 0x000F:  # such as 3: there is no such name
        return []
    found, at = [], 12 + len(question)
    for _ in range(min(answers, MAX_ANSWERS)):
        at = _after_name(answer, at)
        kind, _class, _ttl, length = struct.unpack_from(">HHIH", answer, at)
        data = answer[at + 10 : at + 10 + length]
        if len(data) != length:
            raise ValueError("an answer that is cut short")
        at += 10 + length
        if kind == TXT:
            found.append(_joined(data).decode("ascii"))
    return found


def _after_name(answer: bytes, at: int) -> int:
    while length := answer[at]:
        if length >= 0xC0:  # a pointer ends the name
            return at + 2
        at += 1 + length
    return at + 1


def _joined(data: bytes) -> bytes:
    text, at = b"", 0
    while at < len(data):
        text += data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return text


_names = DnsNames(
    os.environ.get("WARPGATE_DNS", ""), int(os.environ.get("WARPGATE_DNS_PORT", "53"))
)
warpgate_resolve_address = _names.warpgate_resolve_address

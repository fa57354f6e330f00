"""From what a caller names a peer by to the peer's signed address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warpgate.errors import InvalidAddressError, UnknownPeerError
from warpgate.protocol.peer_address import ADDRESS_TEXT_PREFIX, PeerAddress, parse_address

if TYPE_CHECKING:
    from warpgate.node.node import Node

MAX_NAME = 255


async def resolve(node: Node, dest: bytes | str | PeerAddress) -> PeerAddress:
    """Return a peer's address.

    Args:
        node: whose resolvers to ask.
        dest: address bytes, the text form of an address, a nickname, or a ``PeerAddress``.

    Raises:
        InvalidAddressError: neither an address nor a possible name.
        UnknownPeerError: a nickname that no resolver knows, or a node id that was not found.
        KeyChangedError: a resolver found another key than the pinned one.

    """
    if isinstance(dest, PeerAddress):
        return dest
    if isinstance(dest, bytes | bytearray | memoryview):
        return parse_address(bytes(dest))
    if not isinstance(dest, str):
        raise InvalidAddressError(
            f"{dest!r} is not an address; expected address bytes, its text form, or a nickname"
        )
    if dest.startswith(ADDRESS_TEXT_PREFIX):
        return parse_address(dest)
    if not dest or len(dest) > MAX_NAME or not dest.isprintable() or dest != dest.strip():
        raise InvalidAddressError(
            f"{dest[:80]!r} is neither an address nor a name (1 to {MAX_NAME} printable characters)"
        )
    found = await node.hooks.first("warpgate_resolve_address", node=node, address=dest)
    if found is None:
        raise UnknownPeerError(
            f"nobody here knows {dest!r}; give the peer's address, or install a resolver that knows the name"
        )
    return found if isinstance(found, PeerAddress) else parse_address(found)

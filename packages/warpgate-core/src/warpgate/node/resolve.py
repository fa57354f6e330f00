"""From what a caller names a peer by to the peer's signed address."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from warpgate.errors import InvalidAddressError, KeyChangedError, UnknownPeerError
from warpgate.events import NamePinned
from warpgate.names.rules import is_node_id, shown, split_full_name
from warpgate.protocol.peer_address import ADDRESS_TEXT_PREFIX, PeerAddress, parse_address

if TYPE_CHECKING:
    from warpgate.node.node import Node
    from warpgate.traversal.attempt import Attempt

log = logging.getLogger("warpgate")

MAX_NAME = 255


async def resolve(node: Node, dest: bytes | str | PeerAddress) -> PeerAddress:
    """Return a peer's address.

    Args:
        node: whose resolvers to ask.
        dest: address bytes, the text form of an address, a node id, a nickname, a nickname in its
            full form (``name@fingerprint``), or a ``PeerAddress``.

    Raises:
        InvalidAddressError: neither an address nor a possible name.
        UnknownPeerError: a nickname that no resolver knows, or a node id that was not found.
        KeyChangedError: a resolver found another key than the pinned one.
        ConfigError: the pins or the address book can't be read.

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
    found = await _ask(node, dest)
    if isinstance(found, str) and (is_node_id(found) or split_full_name(found)[1] is not None):
        # A resolver may know who is meant, and leave it to others where that is.
        found = _expect(found, await _ask(node, found))
    peer = found if isinstance(found, PeerAddress) else parse_address(found)
    if is_node_id(dest):
        return _expect(dest, peer)
    node.trust.check(dest, peer.key)
    return peer


async def _ask(node: Node, dest: str) -> Any:
    found = await node.hooks.first("warpgate_resolve_address", node=node, address=dest)
    if found is None:
        raise UnknownPeerError(
            f"nobody here knows {shown(dest)}; give the peer's address, or install a resolver that "
            "knows the name"
        )
    return found


def _expect(asked: str, found: Any) -> PeerAddress:
    """Check that what was found for a node id or a full name is the node that this names."""
    peer = found if isinstance(found, PeerAddress) else parse_address(found)
    fingerprint = split_full_name(f"-@{asked}" if is_node_id(asked) else asked)[1]
    if fingerprint != split_full_name(f"-@{peer.node_id}")[1]:
        raise KeyChangedError(f"{asked} was resolved to another node, {peer.node_id}")
    return peer


def pin(node: Node, dest: object, peer: PeerAddress, attempt: Attempt) -> None:
    """Pin the name by which a peer was called, if an attempt has proven the peer's key.

    Args:
        node: whose pins.
        dest: what the peer was called by.
        peer: what that was resolved to.
        attempt: it has ended.

    Raises:
        KeyChangedError: the name was pinned to another key meanwhile; the pipe has been closed.

    """
    if attempt.winner is None:
        return
    try:
        name = node.trust.proven(dest, peer)
    except KeyChangedError:
        attempt.winner.abort()
        raise
    if name is not None:
        node.notify(NamePinned(name, peer.node_id))


def pin_quietly(node: Node, dest: object, peer: PeerAddress, attempt: Attempt) -> None:
    """Do as :func:`pin` does; of a pinned key that is another one now only the log tells."""
    try:
        pin(node, dest, peer, attempt)
    except KeyChangedError as error:
        log.warning("%s", error)

"""What two nodes must agree on about brokers, and which of a peer's brokers may be dialled. PURE.

WIRE.md section 2 fixes the inbox topic. A broker stands in an address as a URL of the form
``scheme://host:port[/path]``: without user name and password, the host in lower case (an IP address
in its shortest form), the port always there, and the path for websockets only (``/mqtt`` by default).
So two nodes that mean the same broker write the same text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from warpgate.errors import ConfigError
from warpgate.protocol.ip import is_link_local, is_loopback, is_private, is_public, parse_ip
from warpgate.protocol.peer_address import MAX_BROKER_BYTES
from warpgate.server_urls import BrokerURL, join_host_port, parse_broker, redact

INBOX_PREFIX: Final = "wg/1/i/"
TOPIC_HASH_BYTES: Final = 20
WEBSOCKET_PATH: Final = "/mqtt"


def topic_hash(data: bytes) -> str:
    """Return the first 20 bytes of SHA-256 as base32: 32 lower-case characters, no padding."""
    digest = hashlib.sha256(data).digest()[:TOPIC_HASH_BYTES]
    return base64.b32encode(digest).decode("ascii").lower()


def inbox_topic(key: bytes) -> str:
    """Return the topic on which the node with this public key (32 bytes) receives signals."""
    return INBOX_PREFIX + topic_hash(key)


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Return whether a topic matches a filter without ``#``; ``+`` stands for one level."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


def normalise(broker: str | BrokerURL) -> str:
    """Return the text by which a broker stands in an address.

    Raises:
        ValueError: not a broker's URL.

    """
    url = parse_broker(broker) if isinstance(broker, str) else broker
    address = parse_ip(url.host)
    host = str(address) if address is not None else url.host.lower().rstrip(".")
    path = ""
    if url.scheme in ("ws", "wss"):
        path = url.path if url.path.strip("/") else WEBSOCKET_PATH
    return f"{url.scheme}://{join_host_port(host, url.port)}{path}"


def configured(text: str) -> tuple[str, BrokerURL]:
    """Return the name and the URL of a broker of this node's settings.

    Raises:
        ConfigError: it is not a broker's URL, or too long for an address.

    """
    try:
        url = parse_broker(text)
        name = normalise(url)
    except ValueError as error:
        raise ConfigError(f"brokers: {error}") from None
    if len(name.encode()) > MAX_BROKER_BYTES:
        raise ConfigError(
            f"brokers: {redact(text)!r} is longer than the {MAX_BROKER_BYTES} bytes an address holds"
        )
    return name, url


def names_of(brokers: Iterable[str]) -> list[str]:
    """Return a peer's brokers in our own form, without those that are none."""
    names: dict[str, None] = {}
    for broker in brokers:
        with suppress(ValueError):
            names[normalise(broker)] = None
    return list(names)


def may_dial(ip: str, peer_ips: Iterable[str], on_link: Callable[[str], bool]) -> bool:
    """Decide whether to connect to a broker on a peer's word alone (WIRE.md sections 2 and 5).

    A broker of our own configuration is never asked about.

    Args:
        ip: the broker's address, resolved.
        peer_ips: the local addresses that stand in the peer's address.
        on_link: whether an address lies on a subnet that this node is directly connected to.

    Returns:
        True for a public address; for a private one only when it is on one of our subnets and the
        peer has a private address on one of them too; never for loopback or anything else.

    """
    if is_public(ip):
        return True
    if is_loopback(ip) or not is_private(ip) or not on_link(ip):
        return False
    # Every machine has a link-local address, so the peer's having one means nothing.
    return any(is_private(peer) and not is_link_local(peer) and on_link(peer) for peer in peer_ips)

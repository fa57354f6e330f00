"""Finding a router's UPnP description: SSDP as bytes (UPnP Device Architecture 1.1); PURE.

async-upnp-client has SSDP as well. Its protocol lets a datagram that is no UTF-8 raise into the
event loop, can't be bound to one address on Linux, and waits for the whole time even when the
router answers at once; so these few lines are ours, and descriptions and SOAP are the library's.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from warpgate.net.constants import IP6
from warpgate.protocol.ip import parse_ip, split_scope
from warpgate_plugin_direct.port_mapping.model import MappingError

PORT: Final = 1900
GROUPS: Final = {False: "239.255.255.250", True: "ff02::c"}  # by "is IPv6"
MAX_ANSWER_BYTES: Final = 2048
MAX_URL: Final = 512
TARGETS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
)


def group(af: int) -> str:
    """Return the multicast address that routers listen on."""
    return GROUPS[af == IP6]


def pack_search(af: int, target: str) -> bytes:
    """Return an M-SEARCH request (section 1.3.2) for a device type."""
    host = f"[{group(af)}]" if af == IP6 else group(af)
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: {host}:{PORT}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
        f"ST: {target}\r\n\r\n"
    ).encode()


def parse_answer(data: bytes, gateway: str) -> str | None:
    """Return the URL of the description that a search answer names; None when it is no answer.

    Args:
        data: the datagram, which has come from the gateway.
        gateway: its address.

    Raises:
        MappingError: the URL leads elsewhere than to the gateway, or nowhere.

    """
    if len(data) > MAX_ANSWER_BYTES or not data.startswith(b"HTTP/1."):
        return None
    head, *lines = data.decode("latin-1").splitlines()
    if head.split(" ")[1:2] != ["200"]:
        return None
    fields = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in lines)
        if colon
    }
    if "InternetGatewayDevice" not in fields.get("st", "") or "location" not in fields:
        return None
    return check_location(fields["location"], gateway)


def check_location(url: str, gateway: str) -> str:
    """Return the URL if it is one on the gateway.

    An IPv6 router answers from its link-local address and may name another of its addresses: the
    connection is made to the gateway all the same, so that any literal will do.

    Raises:
        MappingError: it is not.

    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    address = parse_ip(host)
    if parts.scheme != "http" or address is None or port == 0 or len(url) > MAX_URL:
        raise MappingError(f"the description's URL {url[:80]!r} can't be used")
    if address.version == 4 and host != split_scope(gateway)[0]:
        raise MappingError(f"the description's URL names another host, {host}")
    return url

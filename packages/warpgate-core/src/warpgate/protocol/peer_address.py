"""A node's address: a signed, versioned, compact record, as bytes and as text.

::

    record  = magic(3) version(1) length(2) fields signature(64)
    fields  = msgpack [key, exchange_key, machine, sequence, [broker, ...], [interface, ...]]
    interface = [index, [endpoint, ...]]
    endpoint  = [ip, port, ext_ip, ext_port, nat, delta]

``length`` is the whole record's. The signature is Ed25519 by ``key`` over the domain string and
everything before the signature. IPs are 4 or 16 raw bytes; an external ip or port is nil where it
is not known and true where it equals the local one. Elements beyond these, at every level, are
signed and ignored: they are for the future. The text form is ``wg1_`` and, in unpadded base64url,
the record and the first 4 bytes of its SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol

from warpgate.errors import ConfigError, InvalidAddressError
from warpgate.identity import KEY_LENGTH, SIGNATURE_LENGTH, node_id_text, verify
from warpgate.net.constants import IP4, IP6, DeltaType, NATType
from warpgate.protocol import strict
from warpgate.protocol.ip import split_scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ADDRESS_MAGIC: Final = b"\xf7WG"  # no UTF-8 text begins like this
ADDRESS_VERSION: Final = 1
ADDRESS_TEXT_PREFIX: Final = "wg1_"
MAX_ADDRESS_BYTES: Final = 2048
MAX_INTERFACES: Final = 16
MAX_ENDPOINTS: Final = 4  # of one interface
MAX_BROKERS: Final = 4
MAX_BROKER_BYTES: Final = 128
MAX_MACHINE_BYTES: Final = 32
MAX_SEQUENCE: Final = 2**63 - 1

_DOMAIN: Final = b"warpgate address v1"
_CHECK_LENGTH: Final = 4
_LENGTH_AT: Final = len(ADDRESS_MAGIC) + 1
_HEADER_LENGTH: Final = _LENGTH_AT + 2
_MAX_TEXT: Final = len(ADDRESS_TEXT_PREFIX) + (MAX_ADDRESS_BYTES + _CHECK_LENGTH) * 4 // 3 + 1
_MAX_INDEX: Final = 2**32 - 1
_MAX_PORT: Final = 65535
_BROADCAST: Final = IPv4Address("255.255.255.255")


class Signer(Protocol):
    """Who signs an address or a signal; :class:`~warpgate.identity.Identity` is one."""

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""

    @property
    def exchange_key(self) -> bytes:
        """The X25519 public key, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature of ``data``, 64 bytes."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One family of one interface: where it listens, and what its NAT makes of that.

    ``ip`` bears no scope: a scope means something on its own machine only. ``port`` is 0 where
    nothing listens. ``ext_ip`` and ``ext_port`` are None where not known. ``nat`` and ``delta`` are
    :class:`~warpgate.NATType` and :class:`~warpgate.DeltaType` values, 0 where not known.
    """

    af: int
    ip: str
    port: int
    ext_ip: str | None = None
    ext_port: int | None = None
    nat: int = 0
    delta: int = 0


@dataclass(frozen=True, slots=True)
class InterfaceRecord:
    """One interface; ``index`` is the system's if_index on the node's machine."""

    index: int
    endpoints: tuple[Endpoint, ...]

    def endpoint(self, af: int) -> Endpoint | None:
        """Return the (first) endpoint of a family, or None."""
        return next((endpoint for endpoint in self.endpoints if endpoint.af == af), None)


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A verified address. ``raw`` is the signed record, ``interfaces`` are ranked, best first."""

    key: bytes
    exchange_key: bytes
    machine: bytes
    sequence: int
    brokers: tuple[str, ...]
    interfaces: tuple[InterfaceRecord, ...]
    raw: bytes

    @property
    def node_id(self) -> str:
        """The key as text."""
        return node_id_text(self.key)

    def families(self) -> set[int]:
        """Return the address families that some interface has."""
        return {endpoint.af for endpoint in self._endpoints()}

    def ports(self) -> set[int]:
        """Return every listening port, local and external."""
        found = {port for each in self._endpoints() for port in (each.port, each.ext_port)}
        return {port for port in found if port}

    def to_text(self) -> str:
        """Return the text form, which :func:`parse_address` reads."""
        content = base64.urlsafe_b64encode(self.raw + _checksum(self.raw))
        return ADDRESS_TEXT_PREFIX + content.decode("ascii").rstrip("=")

    def _endpoints(self) -> Iterable[Endpoint]:
        return (endpoint for record in self.interfaces for endpoint in record.endpoints)


def pack_address(
    signer: Signer,
    *,
    machine: bytes,
    sequence: int,
    brokers: Sequence[str],
    interfaces: Sequence[InterfaceRecord],
) -> PeerAddress:
    """Make and sign an address.

    Args:
        signer: the node's keys.
        machine: the network stack's id, up to 32 bytes.
        sequence: grows with every change; of two addresses of a key the higher one holds.
        brokers: MQTT brokers where the node listens, at most 4 of at most 128 bytes.
        interfaces: ranked, best first; the last ones are left out where they don't fit.

    Returns:
        The address as a peer will see it: normalised, without scopes, only what fitted.

    Raises:
        ConfigError: a value that no address can hold.

    """
    ranked = [_normal(record) for record in interfaces[:MAX_INTERFACES]]
    keys = [signer.public_key, signer.exchange_key]
    try:
        while True:
            packed = [_pack_interface(record) for record in ranked]
            fields = [*keys, machine, sequence, list(brokers), packed]
            body = strict.pack(fields)
            size = _HEADER_LENGTH + len(body) + SIGNATURE_LENGTH
            if size <= MAX_ADDRESS_BYTES or not ranked:
                break
            ranked.pop()
        address = _from_fields(fields, b"")  # a peer's own checks
    except ValueError as error:
        raise ConfigError(f"no address can say this: {error}") from None
    record = ADDRESS_MAGIC + bytes([ADDRESS_VERSION]) + size.to_bytes(2, "big") + body
    return replace(address, raw=record + signer.sign(_DOMAIN + record))


def unpack_address(data: bytes) -> PeerAddress:
    """Read a binary address and verify its signature.

    Raises:
        InvalidAddressError: the text says which: not an address, wrong version, oversize,
            truncated, unsigned, altered or malformed.

    """
    if not data.startswith(ADDRESS_MAGIC[: len(data)]) or not data:
        raise InvalidAddressError("not an address: it does not begin with an address's magic bytes")
    if len(data) > MAX_ADDRESS_BYTES:
        raise InvalidAddressError(
            f"oversize address: {len(data)} bytes, at most {MAX_ADDRESS_BYTES} are allowed"
        )
    if len(data) >= _LENGTH_AT and data[_LENGTH_AT - 1] != ADDRESS_VERSION:
        raise InvalidAddressError(
            f"wrong version of address: {data[_LENGTH_AT - 1]}, this side reads {ADDRESS_VERSION}"
        )
    if len(data) < _HEADER_LENGTH:
        raise InvalidAddressError(f"truncated address: only {len(data)} bytes")
    size = int.from_bytes(data[_LENGTH_AT:_HEADER_LENGTH], "big")
    if len(data) == size - SIGNATURE_LENGTH:
        raise InvalidAddressError("unsigned address: truncated, its signature is missing")
    if len(data) < size:
        raise InvalidAddressError(f"truncated address: {len(data)} of {size} bytes")
    if len(data) > size:
        raise InvalidAddressError(f"altered address: {len(data)} bytes where it says {size}")
    signed, signature = data[:-SIGNATURE_LENGTH], data[-SIGNATURE_LENGTH:]
    if not any(signature):
        raise InvalidAddressError("unsigned address: its signature is empty")
    try:
        fields = strict.take_list(strict.unpack(signed[_HEADER_LENGTH:]), "address", 6)
        key = strict.take_bytes(fields[0], "key", KEY_LENGTH)
    except ValueError as error:
        raise InvalidAddressError(f"altered address: {error}") from None
    if not verify(key, signature, _DOMAIN + signed):
        raise InvalidAddressError("altered address: its signature does not match its content")
    try:
        return _from_fields(fields, bytes(data))
    except ValueError as error:
        raise InvalidAddressError(f"malformed address: {error}") from None


def parse_address(address: str | bytes | bytearray | memoryview) -> PeerAddress:
    """Read an address in binary or text form (the latter as str or bytes).

    Raises:
        InvalidAddressError: the text says what is wrong with it.

    """
    if isinstance(address, str):
        return unpack_address(_from_text(address))
    data = bytes(address)
    prefix = ADDRESS_TEXT_PREFIX.encode("ascii")
    if data[:_MAX_TEXT].strip().startswith(prefix):
        return unpack_address(_from_text(data.decode("ascii", "replace")))
    return unpack_address(data)


def _from_text(text: str) -> bytes:
    text = text.strip()
    if not text.startswith(ADDRESS_TEXT_PREFIX):
        raise InvalidAddressError(
            f"not an address: an address in text form begins with {ADDRESS_TEXT_PREFIX}"
        )
    if len(text) > _MAX_TEXT:
        raise InvalidAddressError(
            f"oversize address: {len(text)} characters, at most {_MAX_TEXT} are allowed"
        )
    encoded = text[len(ADDRESS_TEXT_PREFIX) :]
    try:
        content = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise InvalidAddressError("truncated or mistyped address: it is no base64url") from None
    record, check = content[:-_CHECK_LENGTH], content[-_CHECK_LENGTH:]
    canonical = base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")
    if _checksum(record) != check or canonical != encoded:
        raise InvalidAddressError("truncated or mistyped address: its text checksum is wrong")
    return record


def _checksum(record: bytes) -> bytes:
    return hashlib.sha256(record).digest()[:_CHECK_LENGTH]


def _normal(record: InterfaceRecord) -> InterfaceRecord:
    """Leave out what a peer can't use: scopes, and endpoints beyond the cap."""
    return replace(
        record,
        endpoints=tuple(
            replace(
                each,
                ip=split_scope(each.ip)[0],
                ext_ip=None if each.ext_ip is None else split_scope(each.ext_ip)[0],
            )
            for each in record.endpoints[:MAX_ENDPOINTS]
        ),
    )


def _pack_interface(record: InterfaceRecord) -> list[Any]:
    return [record.index, [_pack_endpoint(endpoint) for endpoint in record.endpoints]]


def _pack_endpoint(endpoint: Endpoint) -> list[Any]:
    ip = ip_address(endpoint.ip).packed
    ext_ip = None if endpoint.ext_ip is None else ip_address(endpoint.ext_ip).packed
    if len(ip) != (4 if endpoint.af == IP4 else 16):
        raise ValueError(f"{endpoint.ip} is not of family {endpoint.af}")
    return [
        ip,
        int(endpoint.port),
        True if ext_ip == ip else ext_ip,
        True if endpoint.ext_port == endpoint.port else endpoint.ext_port,
        int(endpoint.nat),
        int(endpoint.delta),
    ]


def _from_fields(fields: list[Any], raw: bytes) -> PeerAddress:
    records = strict.take_list(fields[5], "interfaces", 0, MAX_INTERFACES)
    return PeerAddress(
        key=strict.take_bytes(fields[0], "key", KEY_LENGTH),
        exchange_key=strict.take_bytes(fields[1], "exchange key", KEY_LENGTH),
        machine=strict.take_bytes(fields[2], "machine", MAX_MACHINE_BYTES, 1),
        sequence=strict.take_int(fields[3], "sequence", MAX_SEQUENCE),
        brokers=_brokers(fields[4]),
        interfaces=tuple(_interface(record) for record in records),
        raw=raw,
    )


def _brokers(value: Any) -> tuple[str, ...]:
    brokers = strict.take_list(value, "brokers", 0, MAX_BROKERS)
    return tuple(strict.take_str(broker, "broker", MAX_BROKER_BYTES) for broker in brokers)


def _interface(value: Any) -> InterfaceRecord:
    index, endpoints = strict.take_list(value, "interface", 2)[:2]
    return InterfaceRecord(
        index=strict.take_int(index, "interface index", _MAX_INDEX),
        endpoints=tuple(
            _endpoint(each) for each in strict.take_list(endpoints, "endpoints", 0, MAX_ENDPOINTS)
        ),
    )


def _endpoint(value: Any) -> Endpoint:
    packed, port, ext_ip, ext_port, nat, delta = strict.take_list(value, "endpoint", 6)[:6]
    ip = _ip(packed)
    port = strict.take_int(port, "port", _MAX_PORT)
    if ext_ip is not None:
        ext_ip = ip if ext_ip is True else _ip(ext_ip)
        if (":" in ext_ip) != (":" in ip):
            raise ValueError(f"external address {ext_ip} of another family than {ip}")
    if ext_port is True:
        ext_port = port
    elif ext_port is not None:
        ext_port = strict.take_int(ext_port, "external port", _MAX_PORT)
    return Endpoint(
        af=IP6 if ":" in ip else IP4,
        ip=ip,
        port=port,
        ext_ip=ext_ip,
        ext_port=ext_port,
        nat=_known(nat, "nat", max(NATType)),
        delta=_known(delta, "delta", max(DeltaType)),
    )


def _ip(packed: Any) -> str:
    if not isinstance(packed, bytes) or len(packed) not in (4, 16):
        raise ValueError("an IP address is not 4 or 16 bytes")
    address = ip_address(packed)
    # A mapped address is IPv4 that claims to be IPv6; the others are no single host's.
    mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    if mapped or address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise ValueError(f"{address} can't be a host's address")
    return str(address)


def _known(value: Any, name: str, maximum: int) -> int:
    """Return a behaviour's number; one of a later version reads as not known."""
    number = strict.take_int(value, name, 255)
    return number if number <= maximum else 0
